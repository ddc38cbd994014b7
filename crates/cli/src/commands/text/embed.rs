//! `keyfold text embed`.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use keyfold_core::{Encoder, Progress, Role, atomic};
use keyfold_text::paragraph_vector::Embedded;
use serde_json::json;

use super::codes::{Codes, hex, model, named};
use super::pooled::{self, PoolArg};
use crate::args::Globals;
use crate::failure::{Outcome, wrong_use};
use crate::progress::StderrProgress;
use crate::update;

/// Texts that are embedded between looks at whether to stop.
const TOGETHER: usize = 256;

/// Give texts their codes and vectors
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A code is printed in hexadecimal, its first bit in the highest bit of the first byte. A text without \
a word that the model knows has no code, which is an error; into a .safetensors file the others are \
written.

Examples:
  keyfold text embed \"boat in the wind\" --model codes
  keyfold text embed notes/ papers.jsonl --model codes --out notes.safetensors
  keyfold text embed notes/ --model codes --bits --out notes.npy
  keyfold text embed notes/ --model all-MiniLM-L6-v2/ --pool mean --out notes.npy")]
pub(super) struct EmbedArgs {
    /// Texts, or files and folders with texts; of JSON Lines each line with a field `text`
    #[arg(required = true, value_name = "TEXT|FILE")]
    texts: Vec<String>,
    /// The model: a folder that `keyfold train binary-paragraph-vector` wrote, or a sentence
    /// encoder, a folder or a hub name, which gives a vector of length one
    #[arg(long, value_name = "DIR")]
    model: String,
    /// Codes alone, also where the model has real vectors
    #[arg(long)]
    bits: bool,
    /// Sentence encoders: how a text is pooled (default: as the model says)
    #[arg(long, value_name = "HOW", conflicts_with = "bits")]
    pool: Option<PoolArg>,
    /// Write into a file: .safetensors (codes, real vectors and names) or .npy (codes with --bits,
    /// else real vectors)
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(super) fn run(args: &EmbedArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    if args.pool.is_some() || pooled::is_encoder(&args.model) {
        return by_encoder(args, globals);
    }
    let model = model(&args.model)?;
    let extension = args.out.as_ref().and_then(|out| out.extension());
    let tensors = extension.is_some_and(|e| e == "safetensors");
    if args.out.is_some() && !tensors && extension.is_none_or(|e| e != "npy") {
        return Err(wrong_use(
            "--out: name a file that ends in .safetensors or .npy",
        ));
    }
    let texts = named(&args.texts, &update::options(globals).read)?;
    let progress = StderrProgress::new(globals.quiet, 20);
    progress.start("embedding", "texts", Some(texts.len() as u64));
    let threads = globals.threads.map_or(0, usize::from);
    let (mut names, mut all) = (Vec::new(), Vec::new());
    for some in texts.chunks(TOGETHER) {
        if progress.cancelled() {
            return Ok(Outcome::Interrupted);
        }
        let views: Vec<&str> = some.iter().map(|t| &*t.text).collect();
        for (text, embedded) in some.iter().zip(model.embed_all(&views, threads)) {
            match embedded {
                Ok(mut embedded) => {
                    if args.bits {
                        embedded.real = None;
                    }
                    names.push(text.name.clone());
                    all.push(embedded);
                }
                Err(e) if tensors => progress.note(&format!("{}: {e}", text.name)),
                Err(e) => {
                    return Err(
                        anyhow::Error::new(e).context(format!("cannot embed '{}'", text.name))
                    );
                }
            }
        }
        progress.advance(some.len() as u64);
    }
    progress.finish();
    match &args.out {
        None => print(&names, &all, globals.json)?,
        Some(out) if tensors => Codes::new(names, all, &model).write(out)?,
        Some(out) => npy(out, &all)?,
    }
    Ok(Outcome::Done)
}

/// Vectors of a sentence encoder, which has no codes.
fn by_encoder(args: &EmbedArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    if args.bits {
        return Err(wrong_use(
            "--bits: a sentence encoder has no codes; leave it out",
        ));
    }
    let extension = args.out.as_ref().map(|out| out.extension());
    if extension.is_some_and(|e| e.is_none_or(|e| e != "npy")) {
        return Err(wrong_use(
            "--out: vectors of a sentence encoder go into a file that ends in .npy",
        ));
    }
    let (_, encoder) = pooled::encoder(&args.model, args.pool, globals)?;
    let texts = named(&args.texts, &update::options(globals).read)?;
    let progress = StderrProgress::new(globals.quiet, 20);
    progress.start("embedding", "texts", Some(texts.len() as u64));
    let mut all = Vec::new();
    for some in texts.chunks(TOGETHER) {
        if progress.cancelled() {
            return Ok(Outcome::Interrupted);
        }
        let views: Vec<&str> = some.iter().map(|t| &*t.text).collect();
        let vectors = encoder.encode(&views, Role::Document)?;
        all.extend(vectors.into_iter().map(|v| Embedded {
            code: Vec::new(),
            real: Some(v.into_vec()),
        }));
        progress.advance(some.len() as u64);
    }
    progress.finish();
    let names: Vec<String> = texts.into_iter().map(|t| t.name).collect();
    match &args.out {
        None => print(&names, &all, globals.json)?,
        Some(out) => npy(out, &all)?,
    }
    Ok(Outcome::Done)
}

fn print(names: &[String], all: &[Embedded], as_json: bool) -> anyhow::Result<()> {
    let mut out = anstream::stdout().lock();
    if as_json {
        let one = |(name, embedded): (&String, &Embedded)| json!({"name": name, "code": hex(&embedded.code), "real": embedded.real});
        let all: Vec<_> = names.iter().zip(all).map(one).collect();
        writeln!(out, "{}", serde_json::to_string_pretty(&all)?)?;
        return Ok(());
    }
    for (name, embedded) in names.iter().zip(all) {
        let line = name.lines().next().unwrap_or("");
        if let (true, Some(real)) = (embedded.code.is_empty(), &embedded.real) {
            let numbers: Vec<String> = real.iter().map(|x| format!("{x:.6}")).collect();
            writeln!(out, "{}  {line}", numbers.join(" "))?;
            continue;
        }
        writeln!(out, "{}  {line}", hex(&embedded.code))?;
    }
    Ok(())
}

/// Writes numpy's format 1.0: real vectors, or codes where there are none.
fn npy(path: &Path, all: &[Embedded]) -> anyhow::Result<()> {
    let real = all.first().is_some_and(|e| e.real.is_some());
    let (kind, width) = match all.first() {
        Some(Embedded { real: Some(r), .. }) => ("<f4", r.len()),
        Some(e) => ("|u1", e.code.len()),
        None => ("|u1", 0),
    };
    let mut bytes = numpy_header(kind, all.len(), width);
    for embedded in all {
        match &embedded.real {
            Some(reals) if real => bytes.extend(reals.iter().flat_map(|x| x.to_le_bytes())),
            _ => bytes.extend(&embedded.code),
        }
    }
    atomic::write(path, &bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// Writes rows of `width` numbers in numpy's format.
pub(super) fn write_rows(path: &Path, numbers: &[f32], width: usize) -> anyhow::Result<()> {
    let mut bytes = numpy_header("<f4", numbers.len() / width.max(1), width);
    bytes.extend(numbers.iter().flat_map(|x| x.to_le_bytes()));
    atomic::write(path, &bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// What stands before the numbers of numpy's format 1.0.
fn numpy_header(kind: &str, rows: usize, width: usize) -> Vec<u8> {
    let mut header =
        format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': ({rows}, {width}), }}");
    // All before the numbers is a multiple of 64 bytes, and ends with a line end.
    let pad = 64 - (10 + header.len() + 1) % 64;
    header += &" ".repeat(pad % 64);
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes
}

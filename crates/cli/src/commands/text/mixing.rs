//! `keyfold text mixing`.

use std::io::Write;
use std::path::PathBuf;

use serde_json::json;

use super::embed::write_rows;
use super::pooled;
use crate::args::Globals;
use crate::failure::{Outcome, wrong_use};

/// Show the matrix by which a layer of a Hydra encoder mixes the positions of a text
///
/// Row `i` says how much of every position goes into position `i`: what stands before it comes by
/// one scan, what stands behind it by the other. A text has 2,048 tokens at most.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  keyfold text mixing \"a boat on the river\" --model encoder --layer 1 --head 0
  keyfold text mixing \"a boat on the river\" --model encoder --out matrix.npy")]
pub(super) struct MixingArgs {
    /// The text
    #[arg(value_name = "TEXT")]
    text: String,
    /// The model: a folder that `keyfold train hydra` wrote, or of the authors' layout
    #[arg(long, value_name = "DIR")]
    model: String,
    /// The layer, from 0
    #[arg(long, value_name = "N", default_value_t = 0)]
    layer: usize,
    /// The head, from 0
    #[arg(long, value_name = "N", default_value_t = 0)]
    head: usize,
    /// Write the matrix into a .npy file
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(super) fn run(args: &MixingArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    if let Some(out) = &args.out
        && out.extension().is_none_or(|e| e != "npy")
    {
        return Err(wrong_use("--out: name a file that ends in .npy"));
    }
    let (_, encoder) = pooled::encoder(&args.model, None, globals)?;
    let (tokens, matrix) = encoder.mixing(&args.text, args.layer, args.head)?;
    let n = tokens.len();
    if let Some(out) = &args.out {
        write_rows(out, &matrix, n)?;
    }
    let rows = matrix.chunks_exact(n);
    let mut out = anstream::stdout().lock();
    if globals.json {
        let rows: Vec<&[f32]> = rows.collect();
        let whole = json!({
            "layer": args.layer, "head": args.head, "tokens": tokens, "matrix": rows,
        });
        writeln!(out, "{whole}")?;
        return Ok(Outcome::Done);
    }
    let [place, token, before, own, behind] = ["place", "token", "before", "own", "behind"];
    writeln!(
        out,
        "{place:>5} {token:>8} {before:>9} {own:>9} {behind:>9}"
    )?;
    for (i, row) in rows.enumerate() {
        let size = |part: &[f32]| part.iter().fold(0.0f32, |sum, x| sum + x.abs());
        writeln!(
            out,
            "{i:>5} {:>8} {:>9.4} {:>9.4} {:>9.4}",
            tokens[i],
            size(&row[..i]),
            row[i].abs(),
            size(&row[i + 1..])
        )?;
    }
    writeln!(
        out,
        "sums of sizes of the numbers by which positions before, the position itself, and those behind it go into it"
    )?;
    Ok(Outcome::Done)
}

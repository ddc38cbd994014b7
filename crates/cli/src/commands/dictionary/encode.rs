//! `keyfold dictionary encode`.

use std::io::Write;
use std::path::PathBuf;

use keyfold_core::Progress;
use keyfold_data::rows::write_rows;
use keyfold_dictionary::{Coder, Codes};
use serde_json::json;

use super::input::{Chunks, Next, RowArgs, check_data};
use super::model::Model;
use crate::args::Globals;
use crate::failure::Outcome;
use crate::progress::StderrProgress;

/// Write rows as numbers of few atoms
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Without --out each row is a line: atom:number atom:number ... (with --json an object). A file holds \
all numbers, one row of as many as there are atoms.")]
pub(super) struct EncodeArgs {
    /// A folder of 'keyfold dictionary fit', or a sparse autoencoder of SAELens, sparsify or OpenAI
    dictionary: PathBuf,
    /// Files of rows, or - for standard input
    #[arg(required = true, value_name = "DATA")]
    data: Vec<PathBuf>,
    /// File for the codes: .npy, .csv, .tsv or .safetensors
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// How rows are coded: omp:ATOMS, lasso-lars:ALPHA, lasso-cd:ALPHA, threshold:ALPHA,
    /// hard-threshold:ALPHA or top-k:ATOMS (default: as the dictionary was learned)
    #[arg(long, value_name = "CODER")]
    coder: Option<Coder>,
    #[command(flatten)]
    rows: RowArgs,
}

pub(super) fn run(args: &EncodeArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    check_data(&args.data)?;
    let mut model = Model::load(&args.dictionary)?;
    if let Some(coder) = args.coder {
        model.code_by(coder)?;
    }
    let progress = StderrProgress::new(globals.quiet, 20);
    if let Some(warning) = model.warning() {
        progress.note(warning);
    }
    let mut dense = Vec::new();
    progress.start("encode", "rows", None);
    for path in &args.data {
        let mut chunks = Chunks::open(&args.rows, path)?;
        loop {
            if progress.cancelled() {
                return Ok(Outcome::Interrupted);
            }
            let rows = match chunks.next()? {
                Next::Rows(rows) => rows,
                Next::Nothing => continue,
                Next::End => break,
            };
            let codes = model.encode(&rows)?;
            match &args.out {
                Some(_) => dense.extend(codes.to_dense()),
                None => print(&codes, globals.json)?,
            }
            progress.advance(rows.len() as u64);
        }
    }
    progress.finish();
    if let Some(out) = &args.out {
        write_rows(out, &dense, model.n_components())?;
    }
    Ok(Outcome::Done)
}

fn print(codes: &Codes, as_json: bool) -> anyhow::Result<()> {
    let mut out = anstream::stdout().lock();
    for (atoms, values) in codes.iter() {
        if as_json {
            writeln!(out, "{}", json!({"atoms": atoms, "values": values}))?;
            continue;
        }
        let parts = atoms.iter().zip(values);
        let parts: Vec<String> = parts.map(|(a, v)| format!("{a}:{v}")).collect();
        writeln!(out, "{}", parts.join(" "))?;
    }
    Ok(())
}

//! `keyfold text nearest`.

use std::io::Write;
use std::path::PathBuf;

use clap::ValueEnum;
use serde_json::json;

use super::codes::{Codes, model, to_words};
use crate::args::Globals;
use crate::failure::{Outcome, wrong_use};

/// Find the texts of a file of codes that are nearest to a text
#[derive(Debug, clap::Args)]
#[command(after_help = "\
All codes are compared, by the number of bits in which they differ.

Examples:
  keyfold text embed notes/ --model codes --out notes.safetensors
  keyfold text nearest \"boat in the wind\" --model codes --codes notes.safetensors
  keyfold text nearest \"boat in the wind\" --model codes --codes notes.safetensors --rerank real")]
pub(super) struct NearestArgs {
    /// The text
    #[arg(value_name = "TEXT")]
    text: String,
    /// The model that made the codes
    #[arg(long, value_name = "DIR")]
    model: String,
    /// The file of codes, from `keyfold text embed --out FILE.safetensors`
    #[arg(long, value_name = "FILE")]
    codes: PathBuf,
    /// How many to find
    #[arg(short, default_value_t = 10)]
    k: usize,
    /// Order the first of them anew, by the cosine of their real vectors
    #[arg(long, value_name = "HOW")]
    rerank: Option<Rerank>,
    /// How many are ordered anew
    #[arg(long, value_name = "N", default_value_t = 100)]
    candidates: usize,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Rerank {
    /// By the cosine of real vectors
    Real,
}

struct Hit {
    place: usize,
    distance: u32,
    cosine: Option<f32>,
}

pub(super) fn run(args: &NearestArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let model = model(&args.model)?;
    let file = Codes::read(&args.codes, &model)?;
    let query = model.embed(&args.text)?;
    let mut distances = vec![0; file.names.len()];
    let words = to_words(&file.codes, file.width);
    keyfold_kernels::hamming_distances(&words, &to_words(&query.code, file.width), &mut distances);
    let mut hits: Vec<Hit> = distances
        .into_iter()
        .enumerate()
        .map(|(place, distance)| Hit {
            place,
            distance,
            cosine: None,
        })
        .collect();
    hits.sort_by_key(|hit| (hit.distance, hit.place));
    if let Some(Rerank::Real) = args.rerank {
        let real = query.real.filter(|_| file.dim > 0);
        let Some(real) = real.filter(|real| real.len() == file.dim) else {
            return Err(wrong_use(
                "--rerank real: the model or the file has no real vectors; train with \
                 --set real_dim=300 and embed without --bits",
            ));
        };
        hits.truncate(args.candidates.max(args.k));
        for hit in &mut hits {
            let row = &file.reals[hit.place * file.dim..][..file.dim];
            let lengths = keyfold_kernels::norm(row) * keyfold_kernels::norm(&real);
            hit.cosine = Some(keyfold_kernels::dot(row, &real) / lengths.max(1e-12));
        }
        // Equal cosines keep the order of their codes.
        hits.sort_by(|a, b| b.cosine.unwrap_or(0.0).total_cmp(&a.cosine.unwrap_or(0.0)));
    }
    hits.truncate(args.k);
    print(&hits, &file.names, globals.json)?;
    Ok(if hits.is_empty() {
        Outcome::Negative
    } else {
        Outcome::Done
    })
}

fn print(hits: &[Hit], names: &[String], as_json: bool) -> anyhow::Result<()> {
    let mut out = anstream::stdout().lock();
    if as_json {
        let one = |hit: &Hit| json!({"name": names[hit.place], "distance": hit.distance, "cosine": hit.cosine});
        let all: Vec<_> = hits.iter().map(one).collect();
        writeln!(out, "{}", serde_json::to_string_pretty(&all)?)?;
        return Ok(());
    }
    for hit in hits {
        let name = names[hit.place].lines().next().unwrap_or("");
        match hit.cosine {
            Some(cosine) => writeln!(out, "{:4} bits  {cosine:.4}  {name}", hit.distance)?,
            None => writeln!(out, "{:4} bits  {name}", hit.distance)?,
        }
    }
    Ok(())
}

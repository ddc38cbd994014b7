//! `keyfold dictionary show`.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use keyfold_core::atomic;
use keyfold_dictionary::draw::patches_svg;
use serde_json::json;

use super::input::{RowArgs, check_patch, patch};
use super::model::Model;
use crate::args::Globals;
use crate::failure::{Outcome, wrong_use};
use crate::output::terminal::BOLD;

/// Numbers of an atom that are told.
const TOLD: usize = 5;

/// Draw or list the atoms of a dictionary
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Atoms that are patches of pictures are drawn into --out as SVG; others are listed with their largest \
numbers, and how many rows of --data use them.")]
pub(super) struct ShowArgs {
    /// A folder of 'keyfold dictionary fit', or a sparse autoencoder of SAELens, sparsify or OpenAI
    dictionary: PathBuf,
    /// File for a picture of the atoms (.svg)
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Height and width of the atoms in the picture (default: as it was learned, or a square)
    #[arg(long, value_name = "HxW", value_parser = patch, requires = "out")]
    patch: Option<[usize; 2]>,
    /// Rows by which to count how often each atom is used
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    #[command(flatten)]
    rows: RowArgs,
}

pub(super) fn run(args: &ShowArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let model = Model::load(&args.dictionary)?;
    let (atoms, width) = model.atoms();
    if let Some(out) = &args.out {
        check_patch(args.patch, width)?;
        let Some(sides) = args.patch.or_else(|| known_patch(&model, width)) else {
            return Err(wrong_use(format!(
                "atoms of {width} numbers are no squares; say their height and width with --patch"
            )));
        };
        atomic::write(out, patches_svg(atoms, sides).as_bytes())
            .with_context(|| format!("cannot write {}", out.display()))?;
        return Ok(Outcome::Done);
    }
    let uses = match &args.data {
        Some(data) => Some(model.encode(&args.rows.open(data)?.read_all()?)?.uses()),
        None => None,
    };
    let told: Vec<Atom> = atoms.chunks_exact(width).map(Atom::of).collect();
    let mut out = anstream::stdout().lock();
    if globals.json {
        let list: Vec<_> = told.iter().enumerate().map(|(i, atom)| {
            json!({
                "atom": i,
                "norm": atom.norm,
                "largest": atom.largest.iter().map(|(column, x)| json!({"column": column, "value": x})).collect::<Vec<_>>(),
                "rows": uses.as_ref().map(|uses| uses[i]),
            })
        }).collect();
        let (method, config) = match &model {
            Model::Ours(saved) => (saved.method(), saved.config()),
            Model::Sae(file) => ("sae", &file.config),
        };
        let value = json!({"method": method, "settings": config, "n_components": told.len(), "n_features": width, "atoms": list});
        writeln!(out, "{value:#}")?;
        return Ok(Outcome::Done);
    }
    writeln!(out, "{BOLD}{} atoms of {width} numbers{BOLD:#}", told.len())?;
    for (i, atom) in told.iter().enumerate() {
        let rows = uses
            .as_ref()
            .map_or(String::new(), |uses| format!("  {:>8} rows", uses[i]));
        let parts = atom
            .largest
            .iter()
            .map(|(column, x)| format!("[{column}] {x:.3}"));
        let parts: Vec<String> = parts.collect();
        writeln!(
            out,
            "{i:>6}  length {:.3}{rows}  {}",
            atom.norm,
            parts.join("  ")
        )?;
    }
    Ok(Outcome::Done)
}

/// As it was learned, or a square.
fn known_patch(model: &Model, width: usize) -> Option<[usize; 2]> {
    if let Model::Ours(saved) = model
        && saved.patch.is_some()
    {
        return saved.patch;
    }
    let side = width.isqrt();
    (side * side == width).then_some([side, side])
}

/// What is told of an atom.
struct Atom {
    norm: f32,
    /// The largest numbers in absolute value, with their columns from 1.
    largest: Vec<(usize, f32)>,
}

impl Atom {
    fn of(atom: &[f32]) -> Self {
        let mut largest: Vec<(usize, f32)> = (1..).zip(atom.iter().copied()).collect();
        largest.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()));
        largest.truncate(TOLD);
        Self {
            norm: atom.iter().map(|x| x * x).sum::<f32>().sqrt(),
            largest,
        }
    }
}

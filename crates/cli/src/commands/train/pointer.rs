//! `keyfold train pointer-networks`.

use std::path::PathBuf;

use keyfold_inspect::route::examples::Examples;
use keyfold_inspect::route::training::{PointerTraining, train};

use super::training::TrainingArgs;
use crate::args::Globals;
use crate::failure::Outcome;

/// Train a network that points out hulls, triangulations or tours, sorts, or answers as your examples do
///
/// It learns from points that are drawn at random and from exact answers, so it needs no data. With
/// `--set task=custom` it learns from yours: JSON Lines like {"points": [[0.1, 0.7], [0.4, 0.2]],
/// "target": [2]}, where the target names points from 1. The settings without a recipe are the
/// publication's and take many hours.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  keyfold train pointer-networks --recipe recipes/pointer-networks-small.toml --out hull
  keyfold train pointer-networks --recipe recipes/pointer-networks-small.toml \\
      --set task=tour --set points=[5,12] --out tour
  keyfold train pointer-networks --recipe recipes/pointer-networks-small.toml \\
      --set task=custom --data examples.jsonl --out own
  keyfold lab route points.csv --model tour")]
pub(super) struct PointerArgs {
    /// Examples, for the task custom: JSON Lines with `points` and `target`
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    #[command(flatten)]
    training: TrainingArgs,
}

pub(super) fn run(args: &PointerArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let defaults = PointerTraining {
        seed: globals.seed,
        ..PointerTraining::default()
    };
    let data = args.data.as_slice();
    let Some(config) = args.training.settings(&defaults, data)? else {
        return Ok(Outcome::Done);
    };
    let examples = args.data.as_deref().map(Examples::read).transpose()?;
    args.training.watch(globals, "pointer-networks", |place| {
        train(&config, examples, place)
    })
}

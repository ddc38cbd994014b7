//! `keyfold train pointer-networks`.

use keyfold_inspect::route::training::{PointerTraining, train};

use super::training::TrainingArgs;
use crate::args::Globals;
use crate::failure::Outcome;

/// Train a network that points out hulls, triangulations or tours
///
/// It learns from points that are drawn at random and from exact answers, so it needs no data. The
/// settings without a recipe are the publication's and take many hours.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  keyfold train pointer-networks --recipe recipes/pointer-networks-small.toml --out hull
  keyfold train pointer-networks --recipe recipes/pointer-networks-small.toml \\
      --set task=tour --set points=[5,12] --out tour
  keyfold lab route points.csv --model tour")]
pub(super) struct PointerArgs {
    #[command(flatten)]
    training: TrainingArgs,
}

pub(super) fn run(args: &PointerArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let defaults = PointerTraining {
        seed: globals.seed,
        ..PointerTraining::default()
    };
    let Some(config) = args.training.settings(&defaults, &[])? else {
        return Ok(Outcome::Done);
    };
    args.training
        .watch(globals, "pointer-networks", |place| train(&config, place))
}

//! `keyfold train hydra`.

use std::path::PathBuf;

use keyfold_text::masked_model::{MaskedModelConfig, train};

use super::data;
use super::training::TrainingArgs;
use crate::args::Globals;
use crate::failure::Outcome;

/// Train an encoder of bytes on your own text that sees it from both sides
///
/// Hydra: two scans in place of attention, so that time grows with the length of a text. It
/// learns to guess bytes that are hidden from it; OUT is then a model folder of which `keyfold
/// text embed` makes vectors. Other mixers can be tried in its place: `--set
/// model.matrix_mixer_type=NAME`, of hydra, quasiseparable, dense, toeplitz, vandermonde, cauchy,
/// low_rank, attention, mamba2 (sees what comes before alone), mamba2_sum.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  keyfold train hydra --data books/ --out encoder
  keyfold train hydra --data notes.txt --out encoder --recipe recipes/hydra-small.toml
  keyfold text embed --model encoder \"a text\"
  keyfold bench hydra")]
pub(super) struct HydraArgs {
    /// Texts: files (.txt is read byte for byte) and folders of any kind, or JSON Lines with a
    /// field `text` (repeatable)
    #[arg(long, value_name = "PATH", required = true)]
    data: Vec<PathBuf>,
    #[command(flatten)]
    training: TrainingArgs,
}

pub(super) fn run(args: &HydraArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let defaults = MaskedModelConfig {
        seed: globals.seed,
        ..MaskedModelConfig::default()
    };
    let Some(config) = args.training.settings(&defaults, &args.data)? else {
        return Ok(Outcome::Done);
    };
    let Some(text) = data::joined(&args.data, globals)? else {
        return Ok(Outcome::Interrupted);
    };
    args.training
        .watch(globals, "hydra", |place| train(&text, &config, place))
}

//! `keyfold train crisp`.

use std::path::PathBuf;

use keyfold_core::ModelFolder;
use keyfold_text::crisp::{CrispConfig, train};

use super::data;
use super::training::TrainingArgs;
use crate::args::Globals;
use crate::failure::Outcome;

/// Train a late-interaction encoder whose vectors fold into few
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  keyfold train crisp --model all-MiniLM-L6-v2/ --data docs/ --out whole --set fold=none
  keyfold train crisp --model whole --data docs/ --out few --recipe recipes/crisp-small.toml
  keyfold index docs --store few-store --model few --fold c8x32 --fold-queries")]
pub(super) struct CrispArgs {
    /// The encoder to start from: a BERT or a late-interaction model, a folder or a hub name
    #[arg(long, value_name = "NAME")]
    model: String,
    /// Pairs: JSON Lines with query and positive, or files and folders of any kind, whose headings
    /// and sections make pairs (repeatable)
    #[arg(long, value_name = "PATH", required = true)]
    data: Vec<PathBuf>,
    #[command(flatten)]
    training: TrainingArgs,
}

pub(super) fn run(args: &CrispArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let defaults = CrispConfig {
        seed: globals.seed,
        ..CrispConfig::default()
    };
    let Some(config) = args.training.settings(&defaults, &args.data)? else {
        return Ok(Outcome::Done);
    };
    let folder = ModelFolder::find(&args.model)?;
    let Some(pairs) = data::pairs(&args.data, globals)? else {
        return Ok(Outcome::Interrupted);
    };
    args.training.watch(globals, "crisp", |place| {
        train(&folder, &pairs, &config, place)
    })
}

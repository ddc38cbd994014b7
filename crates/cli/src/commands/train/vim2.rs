//! `keyfold train vim2`.

use std::path::PathBuf;

use keyfold_core::Progress;
use keyfold_vision::Pictures;
use keyfold_vision::vim2::{Vim2Training, train};

use super::training::{NOTES, TrainingArgs};
use crate::args::Globals;
use crate::failure::Outcome;
use crate::progress::StderrProgress;

/// Train a network that tells classes of pictures
///
/// ViM2: layers of MambaMixer select over the places of a picture and over channels. The settings
/// without a recipe are the publication's, and take days.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  keyfold train vim2 --data photographs/ --out model --recipe recipes/vim2-small.toml
  keyfold image classify new.jpg --model model")]
pub(super) struct Vim2Args {
    /// A folder with a folder of pictures (PNG, JPEG) for each class
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    #[command(flatten)]
    training: TrainingArgs,
}

pub(super) fn run(args: &Vim2Args, globals: &Globals) -> anyhow::Result<Outcome> {
    let defaults = Vim2Training {
        seed: globals.seed,
        ..Vim2Training::default()
    };
    let data = std::slice::from_ref(&args.data);
    let Some(config) = args.training.settings(&defaults, data)? else {
        return Ok(Outcome::Done);
    };
    let progress = StderrProgress::new(globals.quiet, NOTES);
    let pictures = Pictures::read(&args.data, config.model.image_size, &mut |error| {
        progress.note(&error.to_string());
    })?;
    args.training
        .watch(globals, "vim2", |place| train(&pictures, &config, place))
}

//! `keyfold train colberter`.

use std::path::PathBuf;

use keyfold_core::{Encoder, ModelFolder};
use keyfold_text::colberter::train::{ColberterConfig, train};
use keyfold_text::{LoadOptions, SentenceEncoder};

use super::data;
use super::training::TrainingArgs;
use crate::args::Globals;
use crate::failure::Outcome;

/// Train an encoder with one vector for a text and a small one for each of its words
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The publication trains in three stages, each from the model of the one before:
  keyfold train colberter --model distilbert/ --teacher all-MiniLM-L6-v2/ --data docs/ --out texts --set stage=1
  keyfold train colberter --model texts --teacher all-MiniLM-L6-v2/ --data docs/ --out words --set stage=2
  keyfold train colberter --model words --teacher all-MiniLM-L6-v2/ --data docs/ --out gates --set stage=3
  keyfold search \"how to mend a net\" docs --model gates --explain")]
pub(super) struct ColberterArgs {
    /// The model to start from: a BERT, or a ColBERTer of an earlier stage; a folder or a hub name
    #[arg(long, value_name = "NAME")]
    model: String,
    /// A sentence encoder whose order of texts is learned (repeatable: the mean of their scores)
    #[arg(long, value_name = "NAME", required = true)]
    teacher: Vec<String>,
    /// Pairs: JSON Lines with query and positive, or files and folders of any kind, whose headings
    /// and sections make pairs (repeatable)
    #[arg(long, value_name = "PATH", required = true)]
    data: Vec<PathBuf>,
    #[command(flatten)]
    training: TrainingArgs,
}

pub(super) fn run(args: &ColberterArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let defaults = ColberterConfig {
        seed: globals.seed,
        ..ColberterConfig::default()
    };
    let Some(config) = args.training.settings(&defaults, &args.data)? else {
        return Ok(Outcome::Done);
    };
    let folder = ModelFolder::find(&args.model)?;
    let threads = globals.threads.map_or(0, usize::from);
    let mut teachers = Vec::new();
    for name in &args.teacher {
        let folder = ModelFolder::find(name)?;
        teachers.push(SentenceEncoder::load(&folder, &LoadOptions { threads })?);
    }
    let teachers: Vec<&dyn Encoder> = teachers.iter().map(|t| t as &dyn Encoder).collect();
    let Some(pairs) = data::pairs(&args.data, globals)? else {
        return Ok(Outcome::Interrupted);
    };
    args.training.watch(globals, "colberter", |place| {
        train(&folder, &teachers, &pairs, &config, place)
    })
}

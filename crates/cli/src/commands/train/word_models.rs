//! `keyfold train binary-paragraph-vector` and `keyfold train disambiguated-skip-gram`.

use std::path::PathBuf;

use keyfold_core::Progress;
use keyfold_text::training::Place;
use keyfold_text::{paragraph_vector, sense_skipgram};
use keyfold_train::{Report, RunConfig, TrainError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::data;
use super::training::{NOTES, TrainingArgs};
use crate::args::Globals;
use crate::failure::Outcome;
use crate::progress::StderrProgress;
use crate::update;

/// Learn short binary codes of documents, for search by Hamming distance
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  keyfold train binary-paragraph-vector --data notes/ --out codes \\
      --recipe recipes/binary-paragraph-vector-small.toml
  keyfold text embed notes/*.md --model codes --out notes.safetensors
  keyfold text nearest \"boat in the wind\" --model codes --codes notes.safetensors
  keyfold index notes --store codes-store --model codes")]
pub(super) struct ParagraphVectorArgs {
    #[command(flatten)]
    words: WordArgs,
}

/// Learn several vectors for each word, one for each of its senses
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  keyfold train disambiguated-skip-gram --data notes/ --out senses \\
      --recipe recipes/disambiguated-skip-gram-small.toml
  keyfold text senses bank --model senses
  keyfold text disambiguate \"a boat on the river bank\" --word bank --model senses")]
pub(super) struct SkipGramArgs {
    #[command(flatten)]
    words: WordArgs,
}

#[derive(Debug, clap::Args)]
struct WordArgs {
    /// Texts: JSON Lines with a field `text`, or files and folders of any kind (repeatable)
    #[arg(long, value_name = "PATH", required = true)]
    data: Vec<PathBuf>,
    #[command(flatten)]
    training: TrainingArgs,
}

/// Settings of the method, and how the run is kept.
#[derive(Serialize, Deserialize)]
struct Settings<C> {
    #[serde(flatten)]
    method: C,
    run: RunConfig,
}

pub(super) fn paragraph_vectors(
    args: &ParagraphVectorArgs,
    globals: &Globals,
) -> anyhow::Result<Outcome> {
    let defaults = paragraph_vector::Config {
        seed: globals.seed,
        ..paragraph_vector::Config::default()
    };
    let slug = "binary-paragraph-vector";
    train(
        &args.words,
        globals,
        slug,
        defaults,
        paragraph_vector::train,
    )
}

pub(super) fn skip_gram(args: &SkipGramArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let defaults = sense_skipgram::Config {
        seed: globals.seed,
        ..sense_skipgram::Config::default()
    };
    let slug = "disambiguated-skip-gram";
    train(&args.words, globals, slug, defaults, sense_skipgram::train)
}

fn train<C: Serialize + DeserializeOwned>(
    args: &WordArgs,
    globals: &Globals,
    slug: &str,
    defaults: C,
    learn: impl FnOnce(&[&str], &C, &RunConfig, usize, Place<'_>) -> Result<Report, TrainError>,
) -> anyhow::Result<Outcome> {
    let defaults = Settings {
        method: defaults,
        run: RunConfig::default(),
    };
    let Some(settings) = args.training.settings(&defaults, &args.data)? else {
        return Ok(Outcome::Done);
    };
    let reading = StderrProgress::new(globals.quiet, NOTES);
    let mut texts = Vec::new();
    for path in &args.data {
        data::texts(path, &update::options(globals).read, &mut texts, &reading)?;
    }
    if reading.cancelled() {
        return Ok(Outcome::Interrupted);
    }
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let threads = globals.threads.map_or(0, usize::from);
    args.training.watch(globals, slug, |place| {
        learn(&texts, &settings.method, &settings.run, threads, place)
    })
}

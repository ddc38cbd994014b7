//! `keyfold train language-model`.

use std::path::PathBuf;

use keyfold_text::language_model::{LanguageModelConfig, train};

use super::data;
use super::training::TrainingArgs;
use crate::args::Globals;
use crate::failure::Outcome;

/// Train a small language model of bytes on your own text
///
/// A Llama of about 2.4 million parameters that reads bytes: one that follows texts like yours,
/// and that recalls `key=value;` from far back, so that methods for long contexts can be tried on
/// it. OUT is then a model folder that `keyfold lm` reads. With `--set sharing.method=masa --set
/// start=random` its layers share the matrices of their attention from the beginning (MASA).
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  keyfold train language-model --data books/ --out bytes
  keyfold train language-model --data notes.txt --out bytes \\
      --recipe recipes/language-model-small.toml --set recall_share=0
  keyfold lm generate --model bytes \"The cat \" --max-tokens 200
  keyfold lm perplexity other.txt --model bytes")]
pub(super) struct LanguageModelArgs {
    /// Texts: files (.txt is read byte for byte) and folders of any kind, or JSON Lines with a
    /// field `text` (repeatable)
    #[arg(long, value_name = "PATH", required = true)]
    data: Vec<PathBuf>,
    #[command(flatten)]
    training: TrainingArgs,
}

pub(super) fn run(args: &LanguageModelArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let defaults = LanguageModelConfig {
        seed: globals.seed,
        ..LanguageModelConfig::default()
    };
    let Some(config) = args.training.settings(&defaults, &args.data)? else {
        return Ok(Outcome::Done);
    };
    let Some(text) = data::joined(&args.data, globals)? else {
        return Ok(Outcome::Interrupted);
    };
    args.training.watch(globals, "language-model", |place| {
        train(&text, &config, place)
    })
}

//! `keyfold train defsent-plus`.

use std::path::PathBuf;

use keyfold_core::ModelFolder;
use keyfold_text::defsent::{DefSentConfig, Dictionary, train};

use super::training::TrainingArgs;
use crate::args::Globals;
use crate::failure::Outcome;

/// Train a sentence encoder on a dictionary
///
/// A definition learns to point at its entry, a word or a phrase; no labels are needed. Each
/// round begins with the model again, with vectors of entries from the round before; its run
/// lies in OUT/rounds/N.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A dictionary is a text file with one entry a line, ENTRY TAB DEFINITION<|list_more_def|>DEFINITION, \
or the folder of WordNet's database (data.noun and so on).

Examples:
  keyfold train defsent-plus --data /usr/share/wordnet --model bert-base-uncased --out better
  keyfold train defsent-plus --data words.tsv --model roberta/ --out better \\
      --recipe recipes/defsent-plus-small.toml --set pool=cls
  keyfold text define \"a person who sails\" --model better --dictionary /usr/share/wordnet")]
pub(super) struct DefSentArgs {
    /// The encoder to start from: a BERT, RoBERTa or DistilBERT, a folder or a hub name
    #[arg(long, value_name = "NAME")]
    model: String,
    /// Dictionaries: files, or WordNet's folder (repeatable)
    #[arg(long, value_name = "DICTIONARY", required = true)]
    data: Vec<PathBuf>,
    #[command(flatten)]
    training: TrainingArgs,
}

pub(super) fn run(args: &DefSentArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let defaults = DefSentConfig {
        seed: globals.seed,
        ..DefSentConfig::default()
    };
    let Some(config) = args.training.settings(&defaults, &args.data)? else {
        return Ok(Outcome::Done);
    };
    let folder = ModelFolder::find(&args.model)?;
    let dictionary = Dictionary::read(&args.data)?;
    let threads = globals.threads.map_or(0, usize::from);
    args.training.watch(globals, "defsent-plus", |place| {
        let done = train(&folder, &dictionary, &config, threads, place)?;
        Ok(done.report)
    })
}

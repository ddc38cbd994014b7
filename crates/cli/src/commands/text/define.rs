//! `keyfold text define`.

use std::io::Write;
use std::path::PathBuf;

use keyfold_core::{Encoder, Progress};
use keyfold_text::defsent::{Dictionary, EntriesError, ReverseDictionary, embed, embed_cached};
use serde_json::json;

use super::pooled::{PoolArg, encoder};
use crate::args::Globals;
use crate::failure::{Outcome, wrong_use};
use crate::place;
use crate::progress::StderrProgress;

/// Find the words that fit a description
///
/// The vector of an entry is the mean of those of its definitions. Vectors of all entries are
/// kept beside the model (entries-*.safetensors), so that the next call takes no time.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  keyfold text define \"a person who sails\" --model better --dictionary /usr/share/wordnet
  keyfold text define \"fear of closed rooms\" --model better --dictionary words.tsv -k 3")]
pub(super) struct DefineArgs {
    /// The description
    words: String,
    /// The encoder: a folder or a hub name
    #[arg(long, value_name = "NAME")]
    model: String,
    /// Dictionaries: files with ENTRY TAB DEFINITION, or WordNet's folder (repeatable)
    #[arg(long, value_name = "DICTIONARY", required = true)]
    dictionary: Vec<PathBuf>,
    /// Entries to show
    #[arg(short, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    k: u16,
    /// How texts are pooled (default: as the model says)
    #[arg(long, value_name = "HOW")]
    pool: Option<PoolArg>,
}

pub(super) fn run(args: &DefineArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    if !args.words.chars().any(char::is_alphanumeric) {
        return Err(wrong_use(
            "the description has no words; say what the entry means",
        ));
    }
    for path in &args.dictionary {
        place::canonical(path)?;
    }
    let (folder, encoder) = encoder(&args.model, args.pool, globals)?;
    let dictionary = Dictionary::read(&args.dictionary)?;
    let progress = StderrProgress::new(globals.quiet, 20);
    let name = format!(
        "entries-{}-{}.safetensors",
        &encoder.identity().hash[..8],
        &dictionary.checksum()[..8]
    );
    let vectors = match embed_cached(&encoder, &dictionary, &folder.file(&name), &progress) {
        Err(EntriesError::Write { path, source }) => {
            progress.note(&format!(
                "vectors of the entries are not kept: cannot write {}: {source}",
                path.display()
            ));
            embed(&encoder, &dictionary, &progress)
        }
        other => other,
    };
    let vectors = match vectors {
        Err(EntriesError::Cancelled) => return Ok(Outcome::Interrupted),
        other => other?,
    };
    let reverse = ReverseDictionary::new(encoder, dictionary, vectors);
    let found = reverse.define(&args.words, args.k.into())?;
    let mut out = anstream::stdout().lock();
    if globals.json {
        let all: Vec<_> = found
            .iter()
            .map(|(words, cosine)| json!({"entry": words, "cosine": cosine}))
            .collect();
        writeln!(out, "{}", serde_json::to_string_pretty(&all)?)?;
        return Ok(Outcome::Done);
    }
    for (words, cosine) in found {
        writeln!(out, "{cosine:.4}  {words}")?;
    }
    Ok(Outcome::Done)
}

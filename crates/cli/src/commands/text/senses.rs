//! `keyfold text senses` and `keyfold text disambiguate`.

use std::io::Write;

use keyfold_core::ModelFolder;
use keyfold_text::sense_skipgram::SenseVectors;
use serde_json::json;

use crate::args::Globals;
use crate::failure::Outcome;

/// Show the senses of a word, each by the words that are near to it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  keyfold text senses bank --model senses
  keyfold text senses bank --model senses -k 5 --json")]
pub(super) struct SensesArgs {
    /// The word
    #[arg(value_name = "WORD")]
    word: String,
    /// The model: a folder that `keyfold train disambiguated-skip-gram` wrote
    #[arg(long, value_name = "DIR")]
    model: String,
    /// How many near words
    #[arg(short, default_value_t = 8)]
    k: usize,
}

/// Tell in which sense a word stands in a sentence
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  keyfold text disambiguate \"a boat on the river bank\" --word bank --model senses")]
pub(super) struct DisambiguateArgs {
    /// The sentence
    #[arg(value_name = "SENTENCE")]
    sentence: String,
    /// The word in it
    #[arg(long, value_name = "WORD")]
    word: String,
    /// The model: a folder that `keyfold train disambiguated-skip-gram` wrote
    #[arg(long, value_name = "DIR")]
    model: String,
    /// How many near words are shown for each sense
    #[arg(short, default_value_t = 5)]
    k: usize,
}

fn model(name: &str) -> anyhow::Result<SenseVectors> {
    Ok(SenseVectors::load(&ModelFolder::find(name)?)?)
}

pub(super) fn senses(args: &SensesArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let senses = model(&args.model)?.senses(&args.word, args.k)?;
    let mut out = anstream::stdout().lock();
    if globals.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&senses)?)?;
        return Ok(Outcome::Done);
    }
    for sense in senses {
        let share = 100.0 * sense.prior;
        writeln!(out, "{}  {share:3.0} %  {}", sense.sense, list(&sense.near))?;
    }
    Ok(Outcome::Done)
}

pub(super) fn disambiguate(args: &DisambiguateArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let model = model(&args.model)?;
    let probabilities = model.disambiguate(&args.sentence, &args.word)?;
    let senses = model.senses(&args.word, args.k)?;
    let mut out = anstream::stdout().lock();
    let mut all: Vec<_> = senses
        .into_iter()
        .map(|sense| (probabilities[sense.sense], sense))
        .collect();
    all.sort_by(|a, b| b.0.total_cmp(&a.0));
    if globals.json {
        let one =
            |(probability, sense): &(f32, _)| json!({"probability": probability, "sense": sense});
        let all: Vec<_> = all.iter().map(one).collect();
        writeln!(out, "{}", serde_json::to_string_pretty(&all)?)?;
        return Ok(Outcome::Done);
    }
    for (probability, sense) in all {
        writeln!(
            out,
            "{}  {probability:.3}  {}",
            sense.sense,
            list(&sense.near)
        )?;
    }
    Ok(Outcome::Done)
}

fn list(near: &[(String, f32)]) -> String {
    let words: Vec<&str> = near.iter().map(|(word, _)| &**word).collect();
    words.join(", ")
}

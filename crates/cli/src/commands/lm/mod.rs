//! `keyfold lm`: one file per command.

pub(crate) mod bases;
mod cache;
mod calibrate;
mod chat;
mod evict;
mod generate;
mod grid;
mod isotropy;
pub(super) mod mamba;
mod measure;
mod perplexity;
pub(super) mod policy;
mod score;
pub(super) mod setup;

pub(super) use chat::template;

use clap::Subcommand;
use keyfold_lm::LmError;

use crate::args::Globals;
use crate::failure::Outcome;

/// Read and write with a language model
#[derive(Debug, clap::Args)]
pub(crate) struct LmArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Generate(generate::GenerateArgs),
    Chat(chat::ChatArgs),
    Perplexity(perplexity::PerplexityArgs),
    Score(score::ScoreArgs),
    Isotropy(isotropy::IsotropyArgs),
    Calibrate(calibrate::CalibrateArgs),
    Bench(measure::MeasureArgs),
}

/// A prompt that Ctrl-C ended is no failure.
pub(super) fn stopped(result: anyhow::Result<Outcome>) -> anyhow::Result<Outcome> {
    match result {
        Err(e) if matches!(e.downcast_ref(), Some(LmError::Stopped)) => Ok(Outcome::Interrupted),
        other => other,
    }
}

pub(crate) fn run(args: &LmArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    stopped(match &args.action {
        Action::Generate(args) => generate::run(args, globals),
        Action::Chat(args) => chat::run(args, globals),
        Action::Perplexity(args) => perplexity::run(args, globals),
        Action::Score(args) => score::run(args, globals),
        Action::Isotropy(args) => isotropy::run(args, globals),
        Action::Calibrate(args) => calibrate::run(args, globals),
        Action::Bench(args) => measure::run(args, globals),
    })
}

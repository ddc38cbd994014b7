//! One file per command.

use clap::Subcommand;

use crate::args::Args;
use crate::failure::Outcome;

pub(crate) mod bench;
mod completions;
mod man;
mod systems;

/// What Keyfold can do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Bench(bench::BenchArgs),
    Systems(systems::SystemsArgs),
    Completions(completions::CompletionsArgs),
    Man(man::ManArgs),
}

/// Runs the command that the user typed.
pub(crate) fn run(args: &Args) -> anyhow::Result<Outcome> {
    match &args.command {
        Command::Bench(bench) => bench::run(bench, &args.globals),
        Command::Systems(systems) => systems::run(systems, &args.globals),
        Command::Completions(completions) => completions::run(completions),
        Command::Man(man) => man::run(man),
    }
}

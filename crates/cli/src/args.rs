//! What a user can type, apart from the arguments of single commands.

use anstream::ColorChoice;
use clap::{Parser, ValueEnum};

use crate::commands::Command;

/// Everything is a lookup: index a folder, search it by meaning.
#[derive(Debug, Parser)]
#[command(name = "keyfold", version, max_term_width = 100)]
#[command(subcommand_required = true, arg_required_else_help = true)]
#[command(after_help = "\
Examples:
  keyfold search \"plants before the frost\" ~/notes
  keyfold index ~/notes ~/papers --store ~/my-store
  keyfold search \"contracts that end this year\" --store ~/my-store --json

Exit codes: 0 success, 1 failure or nothing found, 2 wrong use, 130 stopped by Ctrl-C.")]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) globals: Globals,
}

/// Options that every command takes.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct Globals {
    /// Threads to work with (default: one per core)
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) threads: Option<u16>,
    /// Seed of everything that is drawn at random
    #[arg(long, global = true, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Print results as JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// When to use colour
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub(crate) color: Color,
    /// No progress and no notes on stderr, only errors
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
}

/// When to use colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

impl Globals {
    /// Makes the options hold for the whole process.
    pub(crate) fn apply(&self) {
        match self.color {
            Color::Auto => ColorChoice::Auto,
            Color::Always => ColorChoice::Always,
            Color::Never => ColorChoice::Never,
        }
        .write_global();
        if let Some(threads) = self.threads {
            // Fails only when a pool exists already, and this is the first use.
            let _ = rayon::ThreadPoolBuilder::new()
                .num_threads(threads.into())
                .build_global();
        }
    }
}

//! The `keyfold` command: one file per command in `commands`, results on
//! stdout, progress and messages on stderr.

mod args;
mod commands;
mod failure;
mod interrupt;
mod model;
mod output;
mod place;
mod progress;
mod systems;
mod update;
mod when;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let args = args::Args::parse();
    args.globals.apply();
    match commands::run(&args) {
        Ok(outcome) => outcome.exit_code(),
        Err(error) => failure::report(&error),
    }
}

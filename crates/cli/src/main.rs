//! The `keyfold` command: one file per command in `commands`, results on
//! stdout, progress and messages on stderr.

mod args;
mod candidates;
mod commands;
mod failure;
mod given;
mod interrupt;
mod mixing;
mod model;
mod output;
mod place;
mod progress;
mod reranking;
mod systems;
mod update;
mod when;

use std::process::ExitCode;

use clap::Parser;

/// The first argument of the process that reads PDF files for this program; see
/// [`keyfold_data::ReadOptions::pdf_worker`].
const PDF_WORKER: &str = "__read-pdf";

/// The first argument of the process by which `keyfold bench peers` measures this
/// program as it measures others; see [`keyfold_bench::peer`].
const PEER: &str = "__peer";

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let first = arguments.next().unwrap_or_default();
    if first == PDF_WORKER {
        let rest: Vec<_> = arguments.collect();
        let code = keyfold_data::pdf_worker_main(&rest);
        return ExitCode::from(u8::try_from(code).unwrap_or(1));
    }
    if first == PEER {
        let rest: Vec<_> = arguments
            .map(|a| a.to_string_lossy().into_owned())
            .collect();
        return match keyfold_bench::peer(&rest, &mut |line| anstream::println!("{line}")) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failure::report(&error.into()),
        };
    }
    let args = args::Args::parse();
    args.globals.apply();
    match commands::run(&args) {
        Ok(outcome) => outcome.exit_code(),
        Err(error) => failure::report(&error),
    }
}

//! `keyfold dictionary`: one file per command.

mod decode;
mod encode;
mod fit;
mod input;
mod model;
mod show;

use clap::Subcommand;

use crate::args::Globals;
use crate::failure::Outcome;

/// Write rows of numbers as sums of few atoms
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  keyfold dictionary fit patches.npy --method online --components 256 --out dict --set alpha=0.2
  sensors | keyfold dictionary fit - --method frank-wolfe --out dict
  keyfold dictionary encode dict patches.npy --out codes.npy
  keyfold dictionary show dict --patch 8x8 --out atoms.svg")]
pub(crate) struct DictionaryArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Fit(fit::FitArgs),
    Encode(encode::EncodeArgs),
    Decode(decode::DecodeArgs),
    Show(show::ShowArgs),
}

pub(crate) fn run(args: &DictionaryArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    match &args.action {
        Action::Fit(args) => fit::run(args, globals),
        Action::Encode(args) => encode::run(args, globals),
        Action::Decode(args) => decode::run(args, globals),
        Action::Show(args) => show::run(args, globals),
    }
}

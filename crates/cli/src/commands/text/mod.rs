//! `keyfold text`: one file per command.

mod codes;
mod define;
mod embed;
mod mixing;
mod nearest;
mod pooled;
mod senses;

use clap::Subcommand;

pub(super) use codes::json_lines;

use crate::args::Globals;
use crate::failure::Outcome;

/// Ask models about texts and words
#[derive(Debug, clap::Args)]
pub(crate) struct TextArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Embed(embed::EmbedArgs),
    Define(define::DefineArgs),
    Mixing(mixing::MixingArgs),
    Nearest(nearest::NearestArgs),
    Senses(senses::SensesArgs),
    Disambiguate(senses::DisambiguateArgs),
}

pub(crate) fn run(args: &TextArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    match &args.action {
        Action::Embed(args) => embed::run(args, globals),
        Action::Define(args) => define::run(args, globals),
        Action::Mixing(args) => mixing::run(args, globals),
        Action::Nearest(args) => nearest::run(args, globals),
        Action::Senses(args) => senses::senses(args, globals),
        Action::Disambiguate(args) => senses::disambiguate(args, globals),
    }
}

//! `keyfold image`: one file per command.

mod classify;

use clap::Subcommand;

use crate::args::Globals;
use crate::failure::Outcome;

/// Tell what pictures show
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  keyfold train vim2 --data photographs/ --out model --recipe recipes/vim2-small.toml
  keyfold image classify new/*.jpg --model model")]
pub(crate) struct ImageArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Classify(classify::ClassifyArgs),
}

pub(crate) fn run(args: &ImageArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    match &args.action {
        Action::Classify(args) => classify::run(args, globals),
    }
}

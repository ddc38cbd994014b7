//! `keyfold series`: one file per command.

mod forecast;
mod svg;

use clap::Subcommand;

use crate::args::Globals;
use crate::failure::Outcome;

/// Tell how columns of numbers over time go on
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  keyfold series forecast load.csv --horizon 24 --svg load.svg
  keyfold train tsm2 --data load.csv --out load-model --recipe recipes/tsm2-small.toml
  keyfold series forecast load.csv --model load-model --explain")]
pub(crate) struct SeriesArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Forecast(forecast::ForecastArgs),
}

pub(crate) fn run(args: &SeriesArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    match &args.action {
        Action::Forecast(args) => forecast::run(args, globals),
    }
}

pub(crate) use forecast::{still, still_line};

/// How a table is read.
#[derive(Debug, clap::Args)]
pub(crate) struct TableArgs {
    /// The column with times [default: the first, if its first cell is no number]
    #[arg(long, value_name = "COLUMN")]
    pub(crate) time: Option<String>,
    /// A column that is left out (repeatable)
    #[arg(long, value_name = "COLUMN")]
    pub(crate) ignore: Vec<String>,
    /// Let a cell without a number take the one above it, where it would be refused
    #[arg(long)]
    pub(crate) fill: bool,
}

impl TableArgs {
    pub(crate) fn options(&self) -> keyfold_signals::SeriesOptions {
        keyfold_signals::SeriesOptions {
            time: self.time.clone(),
            ignore: self.ignore.clone(),
            may_lack: false,
            fill: self.fill,
        }
    }
}

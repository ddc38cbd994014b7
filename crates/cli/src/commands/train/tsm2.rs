//! `keyfold train tsm2`.

use std::path::PathBuf;

use keyfold_core::Progress;
use keyfold_signals::tsm2::{Tsm2Training, train};
use keyfold_signals::{SeriesOptions, read_series};

use super::training::{NOTES, TrainingArgs};
use crate::args::Globals;
use crate::commands::series::{TableArgs, still, still_line};
use crate::failure::Outcome;
use crate::progress::StderrProgress;

/// Train a forecaster of many columns over time
///
/// TSM2: layers of MambaMixer select over the rows of each column and over the columns. `--set
/// model.seq_len` rows are looked at and `model.pred_len` rows forecast; the last fifth of the rows
/// (`held_out`) is measured on. `--set targets=[\"load\"]` forecasts some columns alone, `--set
/// future=[\"holiday\"]` names columns whose coming rows will be known.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  keyfold train tsm2 --data load.csv --out load-model --recipe recipes/tsm2-small.toml
  keyfold train tsm2 --data load.csv --out load-model --set future=[\\\"holiday\\\"] \\
      --static plants.csv
  keyfold series forecast load.csv --model load-model")]
pub(super) struct Tsm2Args {
    /// A table with a header, one row per time, the oldest first (CSV)
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Features of the columns that do not change: a table whose first cells name the columns
    #[arg(long = "static", value_name = "FILE")]
    statics: Option<PathBuf>,
    #[command(flatten)]
    table: TableArgs,
    #[command(flatten)]
    training: TrainingArgs,
}

pub(super) fn run(args: &Tsm2Args, globals: &Globals) -> anyhow::Result<Outcome> {
    let defaults = Tsm2Training {
        seed: globals.seed,
        ..Tsm2Training::default()
    };
    let data = std::slice::from_ref(&args.data);
    let Some(config) = args.training.settings(&defaults, data)? else {
        return Ok(Outcome::Done);
    };
    let series = read_series(&args.data, &args.table.options())?;
    let statics = match &args.statics {
        Some(path) => Some(read_series(path, &SeriesOptions::default())?),
        None => None,
    };
    let still = still(&series, &config.columns(&series));
    if !still.is_empty() {
        StderrProgress::new(globals.quiet, NOTES).note(&still_line(&still));
    }
    args.training.watch(globals, "tsm2", |place| {
        train(&series, statics.as_ref(), &config, place)
    })
}

//! MambaMixer: forecasts of tables (TSM2) and classes of pictures (ViM2).
//!
//! A. Behrouz, M. Santacatterina and R. Zabih, 2024. Measured: errors of forecasts of a table
//! (`--data ETTh1.csv`, or a made-up one) beside the last value, the last season and a linear
//! forecaster, with the parts of the layers taken away one at a time ([`forecasts`]); columns of
//! which one can be told from another alone ([`coupled`]); and shapes in small pictures ([`shapes`]).

mod coupled;
mod forecasts;
mod shapes;

use keyfold_core::{NoProgress, Progress};
use keyfold_signals::Series;
use keyfold_signals::tsm2::{Forecaster, Tsm2Training, train};
use serde_json::json;

use crate::report::Report;
use crate::{BenchError, BenchOptions, Experiment, plot, trained};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "mamba-mixer",
    about: "forecasts (--data ETTh1.csv) and pictures by layers that select over tokens and channels",
    run,
};

fn run(options: &BenchOptions, progress: &dyn Progress) -> Result<Report, BenchError> {
    let (mut tables, mut findings) = (Vec::new(), Vec::new());
    let (forecasts, bars) = forecasts::run(options, progress, &mut tables, &mut findings)?;
    let coupled = coupled::run(options, progress, &mut tables, &mut findings)?;
    let shapes = shapes::run(options, progress, &mut tables, &mut findings)?;
    Ok(Report {
        name: EXPERIMENT.name.to_owned(),
        tables,
        findings,
        values: json!({"forecasts": forecasts, "coupled": coupled, "shapes": shapes}),
        svg: plot::bars(
            "Forecasts of rows that were not learned from",
            "mean squared error, in deviations",
            &bars,
            None,
        )?,
    })
}

/// Trains a forecaster.
fn forecaster(series: &Series, config: &Tsm2Training) -> Result<Forecaster, BenchError> {
    let out = tempfile::tempdir()?;
    let folder = trained::train(out.path(), &NoProgress, |place| {
        train(series, None, config, place)
    })?;
    Forecaster::load(&folder).map_err(failed)
}

/// An error of a model as one of the experiment.
fn failed(e: impl std::fmt::Display) -> BenchError {
    BenchError::data(EXPERIMENT.name, e.to_string())
}

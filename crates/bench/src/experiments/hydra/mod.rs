//! Hydra beside the other mixers of its family and scans that see one side: guessing masked bytes,
//! fitting matrices, and time.
//!
//! S. Hwang et al., 2024. Measured: how well encoders of about equal size guess masked bytes of
//! held-out text (`--data`, or made-up text) after equal training ([`masked`]); how near
//! families of matrices come to random quasiseparable ones ([`fit`]); and the time of a layer as
//! texts grow ([`time`]).

mod fit;
mod masked;
mod time;

use keyfold_core::Progress;
use serde_json::json;

use crate::report::Report;
use crate::{BenchError, BenchOptions, Experiment, plot};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "hydra",
    about: "masked bytes (--data), matrices and time of Hydra beside other mixers and one-sided scans",
    run,
};

fn run(options: &BenchOptions, progress: &dyn Progress) -> Result<Report, BenchError> {
    let (mut tables, mut findings) = (Vec::new(), Vec::new());
    let (masked, bars) = masked::masked(options, progress, &mut tables, &mut findings)?;
    let fit = fit::fit(options, progress, &mut tables, &mut findings)?;
    let time = time::time(options, progress, &mut tables, &mut findings)?;
    Ok(Report {
        name: EXPERIMENT.name.to_owned(),
        tables,
        findings,
        values: json!({"masked": masked, "fit": fit, "time": time}),
        svg: plot::bars(
            "Masked bytes of held-out text",
            "cross entropy, bits",
            &bars,
            None,
        )?,
    })
}

/// An error of a model as one of the experiment.
fn failed(e: impl std::fmt::Display) -> BenchError {
    BenchError::data(EXPERIMENT.name, e.to_string())
}

//! HAX beside Mamba alone and beside sparse patterns that do not look at the content.
//!
//! Z. Zhan et al., 2025. Measured: joint recall and multi-query recall of small models after equal
//! training ([`recall`]); what hashed attention recalls without training, by construction; and
//! the time of attention to few keys beside attention to all ([`time`]).

mod recall;
mod time;

use keyfold_core::Progress;
use serde_json::json;

use crate::report::Report;
use crate::{BenchError, BenchOptions, Experiment, plot};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "hax",
    about: "joint and multi-query recall of Mamba with hashed and selected keys beside other patterns and alone",
    run,
};

fn run(options: &BenchOptions, progress: &dyn Progress) -> Result<Report, BenchError> {
    let (mut tables, mut findings) = (Vec::new(), Vec::new());
    let (joint, bars) = recall::joint(options, progress, &mut tables, &mut findings)?;
    let queries = recall::queries(options, progress, &mut tables, &mut findings)?;
    let built = recall::built(options, &mut findings)?;
    let time = time::time(options, progress, &mut tables, &mut findings)?;
    Ok(Report {
        name: EXPERIMENT.name.to_owned(),
        tables,
        findings,
        values: json!({"joint_recall": joint, "multi_query_recall": queries, "by_construction": built, "time": time}),
        svg: plot::bars("Joint recall", "answers that are right, %", &bars, None)?,
    })
}

/// An error of a model as one of the experiment.
fn failed(e: impl std::fmt::Display) -> BenchError {
    BenchError::data(EXPERIMENT.name, e.to_string())
}

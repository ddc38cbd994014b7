//! One file per experiment.

mod machine;
mod muvera;
mod scale;
mod search;

use crate::Experiment;

pub(crate) const ALL: &[Experiment] = &[
    machine::EXPERIMENT,
    search::EXPERIMENT,
    scale::EXPERIMENT,
    muvera::EXPERIMENT,
];

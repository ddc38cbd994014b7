//! One file per experiment.

mod anncur;
mod machine;
mod muvera;
mod prf_interpolation;
mod scale;
mod search;

use crate::Experiment;

pub(crate) const ALL: &[Experiment] = &[
    machine::EXPERIMENT,
    search::EXPERIMENT,
    scale::EXPERIMENT,
    muvera::EXPERIMENT,
    prf_interpolation::EXPERIMENT,
    anncur::EXPERIMENT,
];

//! One file per experiment.

mod anncur;
mod binary_paragraph_vector;
mod colberter;
mod contrastive_search;
mod crisp;
mod decoder;
mod defsent_plus;
mod disambiguated_skip_gram;
mod growth;
mod machine;
mod muvera;
pub(crate) mod peers;
mod prf_interpolation;
mod scale;
mod search;
mod training;

use crate::Experiment;

pub(crate) const ALL: &[Experiment] = &[
    machine::EXPERIMENT,
    search::EXPERIMENT,
    scale::EXPERIMENT,
    growth::EXPERIMENT,
    muvera::EXPERIMENT,
    prf_interpolation::EXPERIMENT,
    anncur::EXPERIMENT,
    colberter::EXPERIMENT,
    peers::EXPERIMENT,
    crisp::EXPERIMENT,
    training::EXPERIMENT,
    decoder::EXPERIMENT,
    contrastive_search::EXPERIMENT,
    defsent_plus::EXPERIMENT,
    binary_paragraph_vector::EXPERIMENT,
    disambiguated_skip_gram::EXPERIMENT,
];

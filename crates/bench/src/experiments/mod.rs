//! One file per experiment.

mod anncur;
mod binary_paragraph_vector;
mod colberter;
mod contrastive_search;
mod convergent_learning;
mod crisp;
mod cs_bottleneck;
mod decoder;
mod defsent_plus;
mod dictionary_speed;
mod disambiguated_skip_gram;
mod frank_wolfe_dictionary;
mod generative_heads;
mod growth;
mod hax;
mod hydra;
mod hyper_attention;
mod icl_algorithms;
mod icl_softmax;
mod key_value_bottleneck;
mod kvquant;
mod long_context;
mod long_mamba;
mod look_m;
mod machine;
mod mamba_mixer;
mod masa;
mod matryoshka_kv;
mod muvera;
pub(crate) mod peers;
mod plaid_check;
mod pointer_networks;
mod power_attention;
mod prf_interpolation;
mod r_sparse;
mod random_feature_attention;
mod sae_evaluation;
mod scale;
mod search;
mod selective_scan;
mod supervised_dictionary;
mod tensor_attention;
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
    long_context::double_sparsity::EXPERIMENT,
    long_context::tidal_decode::EXPERIMENT,
    long_context::act_qkv::EXPERIMENT,
    kvquant::EXPERIMENT,
    look_m::EXPERIMENT,
    power_attention::EXPERIMENT,
    hyper_attention::EXPERIMENT,
    r_sparse::EXPERIMENT,
    matryoshka_kv::EXPERIMENT,
    defsent_plus::EXPERIMENT,
    binary_paragraph_vector::EXPERIMENT,
    disambiguated_skip_gram::EXPERIMENT,
    frank_wolfe_dictionary::EXPERIMENT,
    dictionary_speed::EXPERIMENT,
    generative_heads::EXPERIMENT,
    supervised_dictionary::EXPERIMENT,
    key_value_bottleneck::EXPERIMENT,
    cs_bottleneck::EXPERIMENT,
    convergent_learning::EXPERIMENT,
    sae_evaluation::EXPERIMENT,
    icl_algorithms::EXPERIMENT,
    icl_softmax::EXPERIMENT,
    random_feature_attention::EXPERIMENT,
    hydra::EXPERIMENT,
    hax::EXPERIMENT,
    selective_scan::EXPERIMENT,
    long_mamba::EXPERIMENT,
    tensor_attention::EXPERIMENT,
    pointer_networks::EXPERIMENT,
    masa::EXPERIMENT,
    mamba_mixer::EXPERIMENT,
];

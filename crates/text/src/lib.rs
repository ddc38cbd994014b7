//! Text encoders: BERT family, late interaction, and the built-in model.
//!
//! [`load`] turns a folder in one of the published layouts into an
//! [`Encoder`](keyfold_core::Encoder); [`SparseTextEncoder`] and [`CrossEncoder`]
//! load models that weigh terms and models that read pairs. Inference runs on the
//! CPU over `keyfold-kernels`.

mod backbone;
pub mod builtin;
mod by_word;
pub mod colberter;
#[cfg(feature = "train")]
pub mod crisp;
mod cross_encoder;
pub mod defsent;
mod dense;
pub mod distill;
mod entity_pairs;
mod error;
#[cfg(feature = "train")]
pub mod hax;
#[cfg(feature = "train")]
pub mod language_model;
mod late;
mod load;
#[cfg(feature = "train")]
pub mod masked_model;
mod modules;
#[cfg_attr(not(feature = "train"), allow(dead_code))]
pub mod paragraph_vector;
mod pooling;
mod run;
// Some of it serves training alone.
#[cfg_attr(not(feature = "train"), allow(dead_code))]
mod sampled;
#[cfg_attr(not(feature = "train"), allow(dead_code))]
pub mod sense_skipgram;
mod sentence;
mod sparse;
mod tokenize;
#[cfg(feature = "train")]
pub mod training;

pub use colberter::{
    BagOfWords, ColberterEncoder, ColberterOptions, ColberterTerms, PairScore, TextWord, WholeWord,
    Words, whole_words,
};
pub use cross_encoder::CrossEncoder;
pub use error::LoadError;
pub use late::LateInteractionEncoder;
pub use load::{LoadOptions, load, load_colberter, load_sparse, split_options};
pub use pooling::Pool;
pub use sampled::{Vocabulary, WordLoss};
pub use sentence::SentenceEncoder;
pub use sparse::SparseTextEncoder;

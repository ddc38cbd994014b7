//! Text encoders: BERT family, late interaction, and the built-in model.
//!
//! [`load`] turns a folder in one of the published layouts into an
//! [`Encoder`](keyfold_core::Encoder). Inference runs on the CPU over
//! `keyfold-kernels`.

mod backbone;
pub mod builtin;
mod dense;
pub mod distill;
mod error;
mod late;
mod load;
mod modules;
mod pooling;
mod run;
mod sentence;
mod tokenize;
mod weights;

pub use error::LoadError;
pub use late::LateInteractionEncoder;
pub use load::{LoadOptions, load};
pub use sentence::SentenceEncoder;

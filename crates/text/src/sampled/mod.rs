//! Predicting words out of a large vocabulary, from a hidden vector, with a few words
//! that did not occur beside each that did. Both systems of Grzegorczyk (Vector
//! representations of text data in deep learning, 2019) stand on it.
//!
//! # Threads
//!
//! Word vectors are usually trained by threads that write into the same numbers
//! without locks, which gives other numbers each time. Here a *round* of batches is
//! computed against the same parameters, on as many threads as there are, and their
//! gradients are added in the order of the batches, each thread on its own rows. So
//! any number of threads gives the same bits, and parameters are never shared while
//! they are written.

mod files;
mod layer;
mod sampler;
mod table;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(feature = "train")]
mod train;
mod vocabulary;

pub(crate) use files::{Format, Tensors, write_tensors};
pub use layer::WordLoss;
pub(crate) use layer::{Batch, Layer};
pub(crate) use sampler::Sampler;
pub(crate) use table::{Descent, Rate, Table, Threads, bounds};
#[cfg(feature = "train")]
pub(crate) use train::{state, train};
pub use vocabulary::Vocabulary;

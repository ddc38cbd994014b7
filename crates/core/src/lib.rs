//! The nouns that every Keyfold crate speaks.
//!
//! Everything is a lookup: a query meets keys, some keys are selected, their
//! values are read. This crate names the parts that all lookups share: the
//! [`Vectors`] that serve as keys, the [`Encoder`] that makes them, what
//! [scores otherwise](scorers), the [`Progress`] of long work, [files that are
//! whole or absent](atomic) and the [folders that hold models](model_folder)
//! with their [weights], and [which blocks of a context see which](block_mask).

pub mod atomic;
pub mod block_mask;
pub mod encoder;
pub mod model_folder;
pub mod progress;
pub mod scorers;
mod seed;
pub mod vectors;
pub mod weights;

pub use encoder::{EncodeError, Encoder, EncoderIdentity, Role};
pub use model_folder::{ModelFolder, ModelFolderError};
pub use progress::{NoProgress, Progress, StopAfter};
pub use scorers::{PairScorer, SparseEncoder, SparseVector};
pub use seed::{normal, seed_of};
pub use vectors::{Vectors, VectorsError};

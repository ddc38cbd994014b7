//! What the trainings of text encoders share: pairs of texts that belong together, late
//! interaction that can be trained, and how well held-out queries find their document.

pub(crate) mod late;
mod pairs;
mod ranking;
pub(crate) mod rows;

pub use late::{LateModel, LateSettings};
pub use pairs::{Pair, Pairs};
pub use ranking::Ranking;

use keyfold_nn::ModelError;
use keyfold_train::LearnError;
pub use keyfold_train::Place;

/// An error of a model as one of its training.
pub(crate) fn model_error(error: ModelError) -> LearnError {
    LearnError::Data(error.to_string())
}

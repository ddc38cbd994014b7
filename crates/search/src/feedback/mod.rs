//! Pseudo relevance feedback: what a first search finds makes a better query for
//! a second one, without a person's judgement and without training.
//!
//! [`rm3`] adds words to a query of words; [`vector`] moves the vectors of a
//! query towards those of the passages that it found.

pub mod rm3;
pub mod vector;

pub use rm3::Rm3;
pub use vector::{Rocchio, TokenRows, VectorFeedback, VectorKind};

/// What a second search learns from the first.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Feedback {
    /// There is no second search.
    #[default]
    None,
    /// Words, for the search by words.
    Rm3(Rm3),
    /// Vectors, for the search by meaning.
    Vector(VectorFeedback),
}

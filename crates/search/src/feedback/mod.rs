//! Pseudo relevance feedback: what a first search finds makes a better query for
//! a second one, without a person's judgement and without training.
//!
//! [`rm3`] adds words to a query of words; [`vector`] moves the vectors of a
//! query towards those of the passages that it found.

pub mod rm3;
pub mod vector;

pub use rm3::Rm3;
pub use vector::{Rocchio, TokenRows, VectorFeedback, VectorKind};

/// What a second search learns from the first; the default is that there is none.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Feedback {
    /// Words, for the search by words.
    pub rm3: Option<Rm3>,
    /// Vectors, for the search by meaning.
    pub vector: Option<VectorFeedback>,
}

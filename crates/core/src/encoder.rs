//! What turns content into keys.

use std::ops::Range;

use crate::{Vectors, VectorsError};

/// On which side of the lookup a text stands. Late-interaction models treat the
/// two sides differently (markers, expansion, skipped punctuation, weights).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The text that looks for something.
    Query,
    /// A text that can be found.
    Document,
}

/// Which model made some vectors. Two encoders with the same identity give the
/// same vectors, so a store refuses a query from another one.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct EncoderIdentity {
    /// What a person calls it: `builtin`, a folder, a hub name.
    pub name: String,
    /// Hash (hex) over everything that changes its output: weights, tokenizer, configuration.
    pub hash: String,
    /// Length of its vectors.
    pub dim: usize,
}

/// Turns texts into keys, on either side of the lookup.
pub trait Encoder: Send + Sync {
    /// Which model this is.
    fn identity(&self) -> &EncoderIdentity;

    /// Encodes a batch; result `i` belongs to `texts[i]` and has any number of
    /// rows of `identity().dim` numbers. A text without content may give no row.
    ///
    /// The result for a text does not depend on the batch it stands in.
    fn encode(&self, texts: &[&str], role: Role) -> Result<Vec<Vectors>, EncodeError>;

    /// For each row that [`Encoder::encode`] gives for `text`, the bytes of
    /// `text` that the row stands for; `None` for rows that stand for no word
    /// (markers, expansion, a whole-text vector). Costs a tokenisation, not a
    /// forward pass.
    fn spans(&self, text: &str, role: Role) -> Result<Vec<Option<Range<usize>>>, EncodeError>;
}

/// Why a text could not be encoded.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The tokenizer refused the text.
    #[error("the tokenizer of model '{model}' failed: {reason}")]
    Tokenizer {
        /// Name of the model.
        model: String,
        /// What the tokenizer said.
        reason: String,
    },
    /// The model computed something that is not a number.
    #[error(
        "model '{model}' gave vectors that are not usable: {source}; its weights may be damaged"
    )]
    BadOutput {
        /// Name of the model.
        model: String,
        /// What is wrong with them.
        source: VectorsError,
    },
}

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

    /// How many rows at the head of every text are the parts of one vector of the
    /// whole text: row `i` of a query meets row `i` of a document and no other, and
    /// their products are added to MaxSim of the rows after them. Rows of such a
    /// model have any length, on both sides.
    fn whole_text_rows(&self) -> usize {
        0
    }

    /// Whether rows meet only rows with the same id (see [`Vectors::ids`]), where
    /// the user does not say.
    fn exact_match(&self) -> bool {
        false
    }

    /// Whether every row holds `±1 / √dim` alone, so that a bit keeps a number of it
    /// whole, and the product of two rows is `1 - 2 d / dim` with `d` bits that differ.
    fn binary(&self) -> bool {
        false
    }

    /// The way (`c8x32`) in which the rows of queries and documents were folded while
    /// the model learnt, if they were: a store of it should fold both alike.
    fn trained_fold(&self) -> Option<&str> {
        None
    }

    /// Whether documents are files of rows, made elsewhere, and no texts to encode.
    fn reads_rows(&self) -> bool {
        false
    }

    /// [`Encoder::spans`] for the rows with these ids, for models that give ids
    /// and do not know from the text alone which rows a document has.
    fn spans_of_ids(
        &self,
        text: &str,
        role: Role,
        _ids: &[u32],
    ) -> Result<Vec<Option<Range<usize>>>, EncodeError> {
        self.spans(text, role)
    }
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
    /// The text has more tokens than the model takes.
    #[error(
        "a text has {tokens} tokens, and model '{model}' takes {most}: index smaller passages \
         (--passage-tokens), or have the rest left out (--truncate)"
    )]
    TooLong {
        /// Name of the model.
        model: String,
        /// Tokens of the text.
        tokens: usize,
        /// The most that the model takes.
        most: usize,
    },
    /// A program of the user that scores pairs did not do it.
    #[error("the scorer '{program}' {what}")]
    Program {
        /// The program, as it was given.
        program: String,
        /// What it did, and what it should do.
        what: String,
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

//! One vector for each different whole word of a document, of any model with one for
//! each token: the mean of those of its pieces at all its places, scaled to length one.
//!
//! This is ColBERTer's aggregation (Hofstätter et al. 2022; see [`crate::ColberterEncoder`])
//! for models that were not trained for it: a smaller store, at some cost in accuracy.
//! Queries stay as they are, since the length and number of their rows weigh words.
//! Rows that stand for no word (markers) stay, and come first.

use std::ops::Range;

use keyfold_core::{EncodeError, Encoder, EncoderIdentity, Role, Vectors};
use keyfold_kernels as kernels;

use crate::colberter::{Word, Words, words};
use crate::sentence::vectors;

/// A model whose rows of documents are put together by words.
pub(crate) struct ByWordEncoder {
    inner: Box<dyn Encoder>,
    identity: EncoderIdentity,
    how: Words,
}

/// What becomes of the rows of a document.
struct Plan {
    /// Rows that stay, with their spans.
    stay: Vec<(usize, Option<Range<usize>>)>,
    words: Vec<Word>,
}

impl ByWordEncoder {
    /// `inner` by whole words; its name gets the option.
    pub(crate) fn new(inner: Box<dyn Encoder>, how: Words) -> Self {
        let named = match how {
            Words::Lower => "words=lower",
            Words::Stem => "words=stem",
        };
        let of = inner.identity();
        let identity = EncoderIdentity {
            name: format!("{}#{named}", of.name),
            hash: blake3::hash(format!("{} {named}", of.hash).as_bytes())
                .to_hex()
                .to_string(),
            dim: of.dim,
        };
        Self {
            inner,
            identity,
            how,
        }
    }

    fn plan(&self, text: &str) -> Result<Plan, EncodeError> {
        let spans = self.inner.spans(text, Role::Document)?;
        let words = words(text, &spans, self.how)?;
        let mut of_word = vec![false; spans.len()];
        for row in words.iter().flat_map(|word| &word.tokens) {
            of_word[*row] = true;
        }
        let stay = spans.into_iter().enumerate();
        let stay = stay.filter(|(row, _)| !of_word[*row]).collect();
        Ok(Plan { stay, words })
    }

    fn together(&self, text: &str, rows: &Vectors) -> Result<Vectors, EncodeError> {
        let plan = self.plan(text)?;
        let dim = rows.dim();
        let mut out = Vec::new();
        for (row, _) in plan.stay {
            out.extend_from_slice(rows.row(row));
        }
        for word in plan.words {
            let mut sum = vec![0.0; dim];
            for row in word.tokens {
                kernels::add_assign(&mut sum, rows.row(row));
            }
            kernels::normalize_rows(&mut sum, dim);
            out.extend(sum);
        }
        vectors(&self.identity.name, dim, out)
    }
}

impl Encoder for ByWordEncoder {
    fn identity(&self) -> &EncoderIdentity {
        &self.identity
    }

    fn encode(&self, texts: &[&str], role: Role) -> Result<Vec<Vectors>, EncodeError> {
        let all = self.inner.encode(texts, role)?;
        if role == Role::Query {
            return Ok(all);
        }
        let pairs = texts.iter().zip(&all);
        pairs
            .map(|(text, rows)| self.together(text, rows))
            .collect()
    }

    fn spans(&self, text: &str, role: Role) -> Result<Vec<Option<Range<usize>>>, EncodeError> {
        if role == Role::Query {
            return self.inner.spans(text, role);
        }
        let plan = self.plan(text)?;
        let words = plan.words.into_iter().map(|word| Some(word.span));
        Ok(plan
            .stay
            .into_iter()
            .map(|(_, span)| span)
            .chain(words)
            .collect())
    }

    fn trained_fold(&self) -> Option<&str> {
        self.inner.trained_fold()
    }
}

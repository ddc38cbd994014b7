//! Codes as the one row of a passage, for the store.

use std::ops::Range;

use keyfold_core::{EncodeError, Encoder, EncoderIdentity, Role, Vectors};

use super::{Embedded, ParagraphVectors};

/// Gives a text the row `(2 bit - 1) / √bits` for each bit, of length one. The product
/// of two rows is `1 - 2 d / bits` with `d` bits that differ, so the best row is the one
/// of least Hamming distance.
#[derive(Debug, Clone)]
pub struct CodeEncoder {
    model: ParagraphVectors,
    threads: usize,
}

impl CodeEncoder {
    /// Encodes with so many threads; 0 means all of the machine's.
    pub fn new(model: ParagraphVectors, threads: usize) -> Self {
        Self { model, threads }
    }

    fn row(&self, embedded: &Embedded) -> Result<Vectors, EncodeError> {
        let side = 1.0 / (self.model.config.bits as f32).sqrt();
        let bytes = embedded.code.iter();
        let bits = bytes.flat_map(|byte| (0..8).map(move |i| byte >> (7 - i) & 1));
        let row = bits
            .map(|bit| if bit == 1 { side } else { -side })
            .collect();
        self.vectors(row)
    }

    fn vectors(&self, numbers: Vec<f32>) -> Result<Vectors, EncodeError> {
        Vectors::new(self.model.config.bits, numbers).map_err(|source| EncodeError::BadOutput {
            model: self.model.identity.name.clone(),
            source,
        })
    }
}

impl Encoder for CodeEncoder {
    fn identity(&self) -> &EncoderIdentity {
        &self.model.identity
    }

    fn encode(&self, texts: &[&str], _: Role) -> Result<Vec<Vectors>, EncodeError> {
        let all = self.model.embed_all(texts, self.threads).into_iter();
        all.map(|one| match one {
            Ok(embedded) => self.row(&embedded),
            // A text without a known word has no code, so it is not found by it.
            Err(_) => self.vectors(Vec::new()),
        })
        .collect()
    }

    fn binary(&self) -> bool {
        true
    }

    fn spans(&self, text: &str, _: Role) -> Result<Vec<Option<Range<usize>>>, EncodeError> {
        let known = self.model.knows_a_word_of(text);
        Ok(vec![None; usize::from(known)])
    }
}

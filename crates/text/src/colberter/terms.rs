//! The words of Uni-ColBERTer in an inverted index.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;

use keyfold_core::{EncodeError, EncoderIdentity, Role, SparseEncoder, SparseVector};

use super::{CONFIG, ColberterEncoder, WholeWord};
use crate::error::{LoadError, invalid};

/// One number of a word becomes so many whole ones in an inverted index.
const PARTS: f32 = 256.0;
/// Terms of negative numbers are told from those of positive ones by this bit: a
/// product counts where it is positive, which is where both signs are the same.
const NEGATIVE: u32 = 1 << 31;

/// The words of a Uni-ColBERTer model as terms with weights: term and impact are the
/// id and the one number of a word.
///
/// `score = sum over shared words of max(0, A_q A_d)`, rounded: weights are whole
/// numbers of 1/256. Words of weight 0 are left out. A negative weight counts where
/// both sides are negative.
pub struct ColberterTerms {
    model: ColberterEncoder,
    identity: EncoderIdentity,
    /// The words of queries by term, since a hash does not say its word.
    known: Mutex<HashMap<u32, String>>,
}

impl ColberterTerms {
    /// Refuses a model whose words are more than one number that must match exactly.
    pub fn new(model: ColberterEncoder, path: &Path) -> Result<Self, LoadError> {
        if !model.is_uni() {
            return Err(invalid(
                &path.join(CONFIG),
                format!(
                    "its words are vectors of {} numbers, which are no weights of terms: use the \
                     model with --model, or one with second_compress_dim 1 and \
                     compress_to_exact_mini_mode (Uni-ColBERTer) with --sparse",
                    model.word_dim()
                ),
            ));
        }
        let identity = EncoderIdentity {
            // A word's id has 32 bits.
            dim: u32::MAX as usize,
            ..model.identity.clone()
        };
        Ok(Self {
            model,
            identity,
            known: Mutex::default(),
        })
    }

    /// The model.
    pub fn model(&self) -> &ColberterEncoder {
        &self.model
    }
}

impl SparseEncoder for ColberterTerms {
    fn identity(&self) -> &EncoderIdentity {
        &self.identity
    }

    fn unit(&self) -> f32 {
        1.0 / PARTS
    }

    fn encode(&self, texts: &[&str], role: Role) -> Result<Vec<SparseVector>, EncodeError> {
        let bags = self.model.bags(texts, role)?.into_iter();
        Ok(bags
            .map(|bag| {
                let words = bag.words.iter().filter(|word| self.model.keeps(word));
                let weight = |word: &WholeWord| {
                    let w = word.vector[0];
                    let sign = if w < 0.0 { NEGATIVE } else { 0 };
                    let term = word.id ^ sign;
                    if role == Role::Query {
                        let mut known = self.known.lock().unwrap_or_else(|e| e.into_inner());
                        known.entry(term).or_insert_with(|| word.text.clone());
                    }
                    (term, w.abs() * PARTS)
                };
                SparseVector::new(words.map(weight), f32::max)
            })
            .collect())
    }

    /// The word, if a query had it.
    fn term(&self, term: u32) -> String {
        let known = self.known.lock().unwrap_or_else(|e| e.into_inner());
        let word = known.get(&term).cloned();
        word.unwrap_or_else(|| format!("word {term:08x}"))
    }
}

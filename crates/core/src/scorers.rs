//! Other ways to compare than by vectors: weighted terms, and models that read
//! query and document together.

use crate::{EncodeError, EncoderIdentity, Role};

/// How much each term of a vocabulary says about a text: (term, weight), terms
/// ascending, each once, weights from 1. Weights are whole numbers, so that an
/// inverted index keeps them as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SparseVector {
    entries: Vec<(u32, u16)>,
}

impl SparseVector {
    /// Of weights in any order: those of one term are put together by `together`,
    /// rounded, clamped to what fits, and left out where they round to 0.
    pub fn new(
        weights: impl IntoIterator<Item = (u32, f32)>,
        together: fn(f32, f32) -> f32,
    ) -> Self {
        let mut all: Vec<(u32, f32)> = weights.into_iter().collect();
        // Stable, so that sums come out the same.
        all.sort_by_key(|&(term, _)| term);
        all.dedup_by(|later, kept| {
            let same = later.0 == kept.0;
            if same {
                kept.1 = together(kept.1, later.1);
            }
            same
        });
        // The cast turns NaN into 0 and ends at the largest number.
        let rounded = all.into_iter().map(|(term, w)| (term, w.round() as u16));
        Self {
            entries: rounded.filter(|&(_, w)| w > 0).collect(),
        }
    }

    /// The terms with their weights.
    pub fn entries(&self) -> &[(u32, u16)] {
        &self.entries
    }

    /// Sum over the shared terms of the products of their weights.
    pub fn dot(&self, other: &Self) -> u64 {
        let mut theirs = other.entries.iter().peekable();
        let mut sum = 0;
        for &(term, weight) in &self.entries {
            while theirs.next_if(|t| t.0 < term).is_some() {}
            if let Some(&&(found, w)) = theirs.peek()
                && found == term
            {
                sum += u64::from(weight) * u64::from(w);
            }
        }
        sum
    }
}

/// Turns texts into weighted terms, on either side of the lookup.
pub trait SparseEncoder: Send + Sync {
    /// Which model this is; its `dim` is the size of the vocabulary.
    fn identity(&self) -> &EncoderIdentity;

    /// What a weight of 1 stands for in the model's own numbers. Scores are given
    /// in these where it is not 1.
    fn unit(&self) -> f32 {
        1.0
    }

    /// Encodes a batch; result `i` belongs to `texts[i]`. The result for a text
    /// does not depend on the batch it stands in.
    fn encode(&self, texts: &[&str], role: Role) -> Result<Vec<SparseVector>, EncodeError>;

    /// A term as people read it.
    fn term(&self, term: u32) -> String;
}

/// Says how well a document answers a query by reading both at once: dear and
/// exact, where encoders are cheap and read each alone.
pub trait PairScorer: Send + Sync {
    /// Which model this is; its `dim` is 1.
    fn identity(&self) -> &EncoderIdentity;

    /// The scores of pairs (query, document), larger is better: raw numbers of the
    /// model, not probabilities, all finite. The score of a pair does not depend on
    /// the batch it stands in.
    fn score(&self, pairs: &[(&str, &str)]) -> Result<Vec<f32>, EncodeError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_of_a_term_are_put_together_and_rounded() {
        let weights = [
            (7, 1.4),
            (3, 0.2),
            (7, 2.0),
            (5, f32::NAN),
            (9, 1e9),
            (4, -3.0),
        ];
        let summed = SparseVector::new(weights, |a, b| a + b);
        assert_eq!(summed.entries(), [(7, 3), (9, u16::MAX)]);
        let largest = SparseVector::new(weights, f32::max);
        assert_eq!(largest.entries(), [(7, 2), (9, u16::MAX)]);
        let other = SparseVector::new([(1, 5.0), (7, 4.0)], f32::max);
        assert_eq!(summed.dot(&other), 12);
        assert_eq!(other.dot(&summed), 12);
        assert_eq!(summed.dot(&SparseVector::default()), 0);
    }
}

//! What the parity tests of both systems share.

use serde::Deserialize;

use super::layer::Negatives;
use super::{Batch, Table, WordLoss};

/// Targets and words that did not occur, of a case of `parity/word_models.py`.
#[derive(Deserialize)]
pub(crate) struct Words {
    pub(crate) loss: WordLoss,
    own: bool,
    rows: Vec<usize>,
    targets: Vec<u32>,
    negatives: Vec<u32>,
    #[serde(default)]
    expected_targets: Vec<f32>,
    #[serde(default)]
    expected_negatives: Vec<f32>,
}

impl Words {
    /// The same for so many hidden vectors.
    pub(crate) fn batch(&self, rows: usize) -> Batch {
        let until = |row: usize| self.rows.iter().filter(|r| **r <= row).count();
        let corrected = !self.own && self.loss != WordLoss::NegativeSampling;
        let words = self.negatives.clone();
        let negatives = match self.own {
            true => Negatives::Own { words, each: 3 },
            false => Negatives::Shared {
                expected: match corrected {
                    true => self.expected_negatives.clone(),
                    false => vec![0.0; words.len()],
                },
                words,
            },
        };
        let mut batch = Batch::default();
        batch.targets = self.targets.clone();
        batch.ends = (0..rows).map(until).collect();
        if corrected {
            batch.expected = self.expected_targets.clone();
        }
        batch.negatives = negatives;
        batch
    }
}

/// What was taken away, times `scale`.
pub(crate) fn scattered(before: &Table, after: &Table, scale: f32) -> Vec<f32> {
    let pairs = before.values.iter().zip(&after.values);
    pairs.map(|(b, a)| (b - a) * scale).collect()
}

/// Equal to 1e-6, and not all zero.
pub(crate) fn near(found: &[f32], want: &[f32], what: &str) {
    assert_eq!(found.len(), want.len(), "{what}");
    assert!(
        want.iter().any(|w| w.abs() > 1e-3),
        "{what}: nothing to see"
    );
    for (i, (f, w)) in found.iter().zip(want).enumerate() {
        assert!((f - w).abs() < 1e-6, "{what} [{i}]: {f}, not {w}");
    }
}

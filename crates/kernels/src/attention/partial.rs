//! A softmax whose keys come in parts.

use crate::norms::{exp_and_sum, maximum};
use crate::vector::{Eight, Pair, simd};

/// What is known of a softmax after some of its scores: their greatest, and the sum of
/// `exp(score - max)`. The weighted values beside it are not divided yet.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Partial {
    /// The greatest score; `-inf` before the first.
    pub max: f32,
    /// Sum of `exp(score - max)`.
    pub sum: f32,
}

impl Partial {
    /// Before the first score.
    pub const EMPTY: Self = Self {
        max: f32::NEG_INFINITY,
        sum: 0.0,
    };

    /// Replaces every score `s` by `exp(scale s - max)`, `max` the greatest `scale s`.
    /// `-inf` (a masked place) gives 0.
    pub fn of(scores: &mut [f32], scale: f32) -> Self {
        let (max, sum) = part(scores, scale);
        Self { max, sum }
    }

    /// `ln Σ exp(score)`.
    pub fn log_sum_exp(self) -> f32 {
        self.max + self.sum.ln()
    }

    /// Adds another part of the same softmax; `out` and `other_out` are the weighted
    /// values of each, not divided.
    ///
    /// # Panics
    /// When their lengths differ.
    pub fn merge(&mut self, out: &mut [f32], other: Self, other_out: &[f32]) {
        assert_eq!(out.len(), other_out.len(), "merge: lengths differ");
        let max = self.max.max(other.max);
        let (own, theirs) = (factor(self.max, max), factor(other.max, max));
        for (x, y) in out.iter_mut().zip(other_out) {
            *x = own * *x + theirs * *y;
        }
        self.sum = own * self.sum + theirs * other.sum;
        self.max = max;
    }

    /// Divides the weighted values; without any score they become zeros.
    pub fn finish(self, out: &mut [f32]) {
        let scale = if self.sum == 0.0 { 0.0 } else { 1.0 / self.sum };
        out.iter_mut().for_each(|x| *x *= scale);
    }
}

/// `exp(from - to)`, 0 where there was nothing (`to` may be `-inf` too).
pub(super) fn factor(from: f32, to: f32) -> f32 {
    if from == f32::NEG_INFINITY {
        0.0
    } else {
        (from - to).exp()
    }
}

simd! {
    fn part(scores: &mut [f32], scale: f32) -> (f32, f32) = part_body;
}

#[inline(always)]
pub(super) fn part_body<V: Eight>(scores: &mut [f32], scale: f32) -> (f32, f32) {
    scores.iter_mut().for_each(|s| *s *= scale);
    let max = maximum::<V>(scores);
    let shift = if max == f32::NEG_INFINITY { 0.0 } else { max };
    let sum = exp_and_sum::<Pair<V>>(scores, shift);
    (max, sum)
}

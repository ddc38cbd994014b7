//! The gradient of a softmax, and of which rows a maximum is.

use crate::dot::{assert_rows, dot_body};
use crate::norms::exp_and_sum;
use crate::vector::{Eight, Pair, simd};

/// The gradient of `softmax(factor · x)` of rows of `columns` numbers: replaces `gradient`
/// (of the weights `p`) by `factor · p · (gradient - Σ gradient · p)`.
///
/// # Panics
/// When a length does not fit.
pub fn softmax_backward(p: &[f32], gradient: &mut [f32], columns: usize, factor: f32) {
    assert_rows(p.len(), columns, "softmax_backward");
    assert_eq!(
        p.len(),
        gradient.len(),
        "softmax_backward: length of gradient"
    );
    softmax_checked(p, gradient, columns, factor);
}

simd! {
    fn softmax_checked(p: &[f32], gradient: &mut [f32], columns: usize, factor: f32) = softmax_body;
}

#[inline(always)]
fn softmax_body<V: Eight>(p: &[f32], gradient: &mut [f32], columns: usize, factor: f32) {
    let columns = columns.max(1);
    for (p, g) in p
        .chunks_exact(columns)
        .zip(gradient.chunks_exact_mut(columns))
    {
        let mean = dot_body::<V>(p, g);
        for (p, g) in p.iter().zip(g) {
            *g = factor * p * (*g - mean);
        }
    }
}

/// Replaces every `x` by `exp(x)` and gives their sum.
pub fn sum_of_exp(x: &mut [f32]) -> f32 {
    sum_of_exp_checked(x)
}

simd! {
    fn sum_of_exp_checked(x: &mut [f32]) -> f32 = sum_of_exp_body;
}

#[inline(always)]
fn sum_of_exp_body<V: Eight>(x: &mut [f32]) -> f32 {
    exp_and_sum::<Pair<V>>(x, 0.0)
}

/// Where a number of `scores` is greater than that of `best`, takes it over and writes
/// `number` to `at`.
///
/// # Panics
/// When the lengths differ.
pub fn keep_best(best: &mut [f32], at: &mut [u32], scores: &[f32], number: u32) {
    assert!(
        best.len() == scores.len() && at.len() == scores.len(),
        "keep_best: lengths differ"
    );
    keep_best_checked(best, at, scores, number);
}

simd! {
    fn keep_best_checked(best: &mut [f32], at: &mut [u32], scores: &[f32], number: u32) = keep_best_body;
}

/// Plain code: the compiler makes vectors of it.
#[inline(always)]
// `simd!` names the vector, which plain code has no use for.
#[allow(clippy::extra_unused_type_parameters)]
fn keep_best_body<V>(best: &mut [f32], at: &mut [u32], scores: &[f32], number: u32) {
    for ((best, at), score) in best.iter_mut().zip(at).zip(scores) {
        let more = *score > *best;
        *best = if more { *score } else { *best };
        *at = if more { number } else { *at };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::Portable;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_gradient_of_softmax_is_that_of_differences(
            columns in 1usize..40,
            numbers in prop::collection::vec(-1f32..1.0, 160),
        ) {
            let (x, rest) = numbers.split_at(2 * columns);
            let up = &rest[..2 * columns];
            let scaled = |x: &[f32]| {
                let mut p: Vec<f32> = x.iter().map(|x| 0.5 * x).collect();
                crate::softmax_rows(&mut p, columns);
                p
            };
            let p = scaled(x);
            for f in [softmax_checked, softmax_body::<Portable>] {
                let mut g = up.to_vec();
                f(&p, &mut g, columns, 0.5);
                for r in 0..2 {
                    let at = r * columns..(r + 1) * columns;
                    for i in at.clone() {
                        let want: f64 = at.clone().map(|j| {
                            let same = f64::from(i == j);
                            f64::from(up[j]) * f64::from(p[j]) * (same - f64::from(p[i])) * 0.5
                        }).sum();
                        prop_assert!((f64::from(g[i]) - want).abs() < 1e-6);
                    }
                }
            }
        }

        #[test]
        fn sums_of_exp_agree_with_f64(x in prop::collection::vec(-20f32..5.0, 0..40)) {
            for f in [sum_of_exp_checked, sum_of_exp_body::<Portable>] {
                let mut y = x.clone();
                let sum = f64::from(f(&mut y));
                let want: f64 = x.iter().map(|&x| f64::from(x).exp()).sum();
                prop_assert!((sum - want).abs() <= 1e-5 * want);
                for (x, y) in x.iter().zip(&y) {
                    prop_assert!((f64::from(*y) / f64::from(*x).exp() - 1.0).abs() < 3e-7);
                }
            }
        }

        #[test]
        fn the_best_is_the_first_of_the_greatest(
            scores in prop::collection::vec(prop::collection::vec(-3i8..3, 11), 1..6),
        ) {
            for f in [keep_best_checked, keep_best_body::<Portable>] {
                let (mut best, mut at) = (vec![f32::NEG_INFINITY; 11], vec![9; 11]);
                for (i, row) in scores.iter().enumerate() {
                    let row: Vec<f32> = row.iter().map(|&x| f32::from(x)).collect();
                    f(&mut best, &mut at, &row, i as u32);
                }
                for j in 0..11 {
                    let most = scores.iter().map(|r| r[j]).max().unwrap();
                    let first = scores.iter().position(|r| r[j] == most).unwrap();
                    prop_assert_eq!((best[j], at[j]), (f32::from(most), first as u32));
                }
            }
        }
    }
}

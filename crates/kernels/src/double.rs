//! Exponentials of numbers of double precision, for fits whose sums need it.
//!
//! The library's function changes between kinds of vector instructions, which after a product of
//! matrices takes a hundred nanoseconds a call; these stay in the loop around them, and the
//! compiler makes several at once for the vector unit of `simd!`. Cost: some ten cycles for four
//! numbers.

use crate::vector::{Vector, simd};

/// Bounds within which `2ⁿ` is a plain number.
const LOWEST: f64 = -708.0;
const HIGHEST: f64 = 709.0;

/// 1 / 12!, 1 / 11! and so on.
const TAYLOR: [f64; 13] = [
    1.0 / 479_001_600.0,
    1.0 / 39_916_800.0,
    1.0 / 3_628_800.0,
    1.0 / 362_880.0,
    1.0 / 40_320.0,
    1.0 / 5040.0,
    1.0 / 720.0,
    1.0 / 120.0,
    1.0 / 24.0,
    1.0 / 6.0,
    0.5,
    1.0,
    1.0,
];

/// `eˣ` to five units of the sixteenth digit, 0 below -708, and no more than at 709.
///
/// `x = n ln 2 + r`, `eˣ = 2ⁿ eʳ` with Taylor's polynomial for `|r| <= ln 2 / 2`.
#[inline(always)]
pub fn exp_of(x: f64) -> f64 {
    // 1.5 · 2⁵²: a sum with it is a whole number in its last bits.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    // ln 2 in two parts, the first so short that its products are exact.
    const LN_2: [f64; 2] = [
        f64::from_bits(0x3fe6_2e42_fee0_0000),
        f64::from_bits(0x3dea_39ef_3579_3c76),
    ];
    let bounded = x.clamp(LOWEST, HIGHEST);
    let shifted = bounded * std::f64::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (bounded - n * LN_2[0]) - n * LN_2[1];
    let mut sum = TAYLOR[0];
    for factor in &TAYLOR[1..] {
        sum = sum * r + factor;
    }
    let power = f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52);
    if x < LOWEST { 0.0 } else { sum * power }
}

simd! {
    /// Replaces every number by its exponential, as [`exp_of`] has it.
    pub fn exp(x: &mut [f64]) = exp_body;
}

/// `V` only names the vector unit that the compiler makes the loop for.
#[inline(always)]
fn exp_body<V: Vector>(x: &mut [f64]) {
    for x in x {
        *x = exp_of(*x);
    }
}

/// Turns rows of scores into probabilities in place, and writes `ln` of each row's sum of
/// exponentials into `logs`.
///
/// # Panics
/// When `x` is no whole number of rows or there is not one place for each.
pub fn softmax_rows(x: &mut [f64], cols: usize, logs: &mut [f64]) {
    assert!(
        x.len() == cols * logs.len(),
        "softmax_rows: one place for each row"
    );
    softmax_rows_checked(x, cols, logs);
}

simd! {
    fn softmax_rows_checked(x: &mut [f64], cols: usize, logs: &mut [f64]) = softmax_rows_body;
}

#[inline(always)]
fn softmax_rows_body<V: Vector>(x: &mut [f64], cols: usize, logs: &mut [f64]) {
    for (row, log) in x.chunks_exact_mut(cols.max(1)).zip(logs.iter_mut()) {
        *log = f64::NEG_INFINITY;
        for x in row.iter() {
            *log = if *x > *log { *x } else { *log };
        }
        for x in row {
            *x -= *log;
        }
    }
    // All rows at once, since a short row leaves lanes empty.
    exp_body::<V>(x);
    for (row, log) in x.chunks_exact_mut(cols.max(1)).zip(logs) {
        let mut sum = 0.0;
        for x in row.iter() {
            sum += *x;
        }
        let inverse = 1.0 / sum;
        for x in row {
            *x *= inverse;
        }
        *log += sum.ln();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::vector::Portable;

    #[test]
    fn exp_is_that_of_the_library() {
        let all = (0..300_000).map(|i| -707.5 + f64::from(i) * 4.7e-3);
        for x in all.chain([-708.0, -1e-300, 0.0, 1e-9, 709.0]) {
            let (ours, theirs) = (exp_of(x), x.exp());
            assert!((ours / theirs - 1.0).abs() < 1e-15, "{x}: {ours} {theirs}");
        }
        assert_eq!(
            (exp_of(0.0), exp_of(-709.0), exp_of(f64::NEG_INFINITY)),
            (1.0, 0.0, 0.0)
        );
        assert_eq!(exp_of(f64::INFINITY), exp_of(709.0));
        assert!(exp_of(f64::NAN).is_nan());
    }

    proptest! {
        #[test]
        fn many_at_once_are_as_one(x in prop::collection::vec(-800f64..800.0, 0..40)) {
            let want: Vec<f64> = x.iter().map(|x| exp_of(*x)).collect();
            for f in [exp, exp_body::<Portable>] {
                let mut found = x.clone();
                f(&mut found);
                for (found, want) in found.iter().zip(&want) {
                    prop_assert!(found == want || (found / want - 1.0).abs() < 1e-15);
                }
            }
        }

        #[test]
        fn rows_become_probabilities(
            cols in 1usize..14,
            x in prop::collection::vec(-900f64..900.0, 0..80),
        ) {
            let rows = x.len() / cols;
            let x = &x[..rows * cols];
            for f in [softmax_rows, softmax_rows_body::<Portable>] {
                let (mut found, mut logs) = (x.to_vec(), vec![0.0; rows]);
                f(&mut found, cols, &mut logs);
                for ((row, found), log) in x.chunks(cols).zip(found.chunks(cols)).zip(&logs) {
                    let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let sum: f64 = row.iter().map(|x| (x - most).exp()).sum();
                    prop_assert!((log - most - sum.ln()).abs() < 1e-12);
                    for (x, p) in row.iter().zip(found) {
                        prop_assert!(((x - log).exp() - p).abs() < 1e-12);
                    }
                }
            }
        }
    }

    #[test]
    fn softmax_takes_scores_of_any_size() {
        let (mut row, mut log) = ([1000.0, 1000.0, f64::NEG_INFINITY], [0.0]);
        softmax_rows(&mut row, 3, &mut log);
        assert_eq!(row, [0.5, 0.5, 0.0]);
        assert!((log[0] - 1000.0 - 2f64.ln()).abs() < 1e-12);
    }
}

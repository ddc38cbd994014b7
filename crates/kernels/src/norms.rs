//! Functions of whole rows: layer norm, RMS norm, softmax.

use crate::dot::{assert_rows, sum_from, sum_of_squares_from};
use crate::math::exp;
use crate::vector::{Eight, Pair, Vector, simd};

/// Layer norm of every row of `x` (`[n, dim]`): `(x - mean) / √(var + eps) * weight + bias`.
///
/// # Panics
/// When a length does not fit `dim`.
pub fn layer_norm(x: &mut [f32], dim: usize, weight: &[f32], bias: Option<&[f32]>, eps: f32) {
    assert_rows(x.len(), dim, "layer_norm");
    assert_eq!(weight.len(), dim, "layer_norm: length of weight");
    if let Some(bias) = bias {
        assert_eq!(bias.len(), dim, "layer_norm: length of bias");
    }
    layer_norm_checked(x, weight, bias, eps);
}

simd! {
    fn layer_norm_checked(x: &mut [f32], weight: &[f32], bias: Option<&[f32]>, eps: f32) = layer_norm_body;
}

#[inline(always)]
fn layer_norm_body<V: Eight>(x: &mut [f32], weight: &[f32], bias: Option<&[f32]>, eps: f32) {
    let dim = weight.len();
    for row in x.chunks_exact_mut(dim.max(1)) {
        let mean = sum_from::<V>(row, 0.0) / dim as f32;
        let variance = sum_of_squares_from::<V>(row, mean) / dim as f32;
        let scale = 1.0 / (variance + eps).sqrt();
        match bias {
            Some(bias) => {
                for ((x, w), b) in row.iter_mut().zip(weight).zip(bias) {
                    *x = (*x - mean) * scale * *w + *b;
                }
            }
            None => {
                for (x, w) in row.iter_mut().zip(weight) {
                    *x = (*x - mean) * scale * *w;
                }
            }
        }
    }
}

/// RMS norm of every row of `x` (`[n, dim]`): `x / √(mean(x²) + eps) * weight`.
///
/// # Panics
/// When a length does not fit `dim`.
pub fn rms_norm(x: &mut [f32], dim: usize, weight: &[f32], eps: f32) {
    assert_rows(x.len(), dim, "rms_norm");
    assert_eq!(weight.len(), dim, "rms_norm: length of weight");
    rms_norm_checked(x, weight, eps);
}

simd! {
    fn rms_norm_checked(x: &mut [f32], weight: &[f32], eps: f32) = rms_norm_body;
}

#[inline(always)]
fn rms_norm_body<V: Eight>(x: &mut [f32], weight: &[f32], eps: f32) {
    let dim = weight.len();
    for row in x.chunks_exact_mut(dim.max(1)) {
        let scale = 1.0 / (sum_of_squares_from::<V>(row, 0.0) / dim as f32 + eps).sqrt();
        for (x, w) in row.iter_mut().zip(weight) {
            *x *= scale * *w;
        }
    }
}

/// Softmax of every row of `x` (`[n, cols]`). `-inf` gives 0 (a masked place);
/// a row of nothing else gives zeros; a row with NaN or `+inf` gives NaN.
///
/// # Panics
/// When `x` is no whole number of rows.
pub fn softmax_rows(x: &mut [f32], cols: usize) {
    assert_rows(x.len(), cols, "softmax_rows");
    softmax_checked(x, cols);
}

simd! {
    fn softmax_checked(x: &mut [f32], cols: usize) = softmax_body;
}

#[inline(always)]
fn softmax_body<V: Eight>(x: &mut [f32], cols: usize) {
    for row in x.chunks_exact_mut(cols.max(1)) {
        let max = maximum::<V>(row);
        // In a row of -inf alone, subtracting -inf would give NaN.
        let max = if max == f32::NEG_INFINITY { 0.0 } else { max };
        let sum = exp_and_sum::<Pair<V>>(row, max);
        let scale = if sum == 0.0 { 0.0 } else { 1.0 / sum };
        row.iter_mut().for_each(|x| *x *= scale);
    }
}

/// Replaces every number of each row of `x` (`[n, cols]`) by `exp(x - m)`, `m` the
/// greatest of the row; `greatest` and `sums` get that and the sum of each row.
/// A softmax that has not been divided yet, so that more may join it.
///
/// # Panics
/// When `x` is no whole number of rows or there is not one place for each.
pub fn exp_rows(x: &mut [f32], cols: usize, greatest: &mut [f32], sums: &mut [f32]) {
    let rows = assert_rows(x.len(), cols, "exp_rows");
    assert!(
        greatest.len() == rows && sums.len() == rows,
        "exp_rows: one place for each row"
    );
    exp_rows_checked(x, cols, greatest, sums);
}

simd! {
    fn exp_rows_checked(x: &mut [f32], cols: usize, greatest: &mut [f32], sums: &mut [f32]) = exp_rows_body;
}

#[inline(always)]
fn exp_rows_body<V: Eight>(x: &mut [f32], cols: usize, greatest: &mut [f32], sums: &mut [f32]) {
    let places = greatest.iter_mut().zip(sums);
    for (row, (greatest, sum)) in x.chunks_exact_mut(cols.max(1)).zip(places) {
        *greatest = maximum::<V>(row);
        let shift = if *greatest == f32::NEG_INFINITY {
            0.0
        } else {
            *greatest
        };
        *sum = exp_and_sum::<Pair<V>>(row, shift);
    }
}

/// Replaces every `x` by `exp(x - shift)` and gives their sum.
#[inline(always)]
pub(crate) fn exp_and_sum<V: Vector>(row: &mut [f32], shift: f32) -> f32 {
    let mut sum = V::splat(0.0);
    let mut blocks = row.chunks_exact_mut(V::LEN);
    for block in &mut blocks {
        let y = exp(V::load(block).sub(V::splat(shift)));
        y.store(block);
        sum = sum.add(y);
    }
    let rest = blocks.into_remainder();
    if !rest.is_empty() {
        // exp(-inf) adds nothing to the sum.
        let padded = &mut [f32::NEG_INFINITY; 32][..V::LEN];
        padded[..rest.len()].copy_from_slice(rest);
        let y = exp(V::load(padded).sub(V::splat(shift)));
        y.store(padded);
        sum = sum.add(y);
        rest.copy_from_slice(&padded[..rest.len()]);
    }
    sum.sum()
}

/// Greatest number, passing over NaN; `-inf` of none.
#[inline(always)]
pub(crate) fn maximum<V: Eight>(row: &[f32]) -> f32 {
    let mut best = V::splat(f32::NEG_INFINITY);
    let blocks = row.chunks_exact(8);
    let rest = blocks.remainder();
    for block in blocks {
        best = V::load(block).max(best);
    }
    let greater = |a: f32, &b: &f32| if b > a { b } else { a };
    best.to_array()
        .iter()
        .chain(rest)
        .fold(f32::NEG_INFINITY, greater)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::Portable;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn layer_norm_agrees_with_f64(
            dim in 1usize..100,
            numbers in prop::collection::vec(-5f32..5.0, 400),
        ) {
            let (x, rest) = numbers.split_at(2 * dim);
            let (weight, rest) = rest.split_at(dim);
            let bias = (!rest.is_empty() && rest.len() >= dim).then(|| &rest[..dim]);
            for f in [layer_norm_checked, layer_norm_body::<Portable>] {
                let mut y = x.to_vec();
                f(&mut y, weight, bias, 1e-5);
                for (x, y) in x.chunks(dim).zip(y.chunks(dim)) {
                    let n = dim as f64;
                    let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
                    let var = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
                    for i in 0..dim {
                        let b = bias.map_or(0.0, |b| f64::from(b[i]));
                        let want = (f64::from(x[i]) - mean) / (var + 1e-5).sqrt() * f64::from(weight[i]) + b;
                        // One row of one number has no variance: the error of the mean is scaled up.
                        prop_assert!((f64::from(y[i]) - want).abs() < 2e-3, "{} {want}", y[i]);
                        if var > 0.1 {
                            prop_assert!((f64::from(y[i]) - want).abs() < 2e-5, "{} {want}", y[i]);
                        }
                    }
                }
            }
        }

        #[test]
        fn rms_norm_agrees_with_f64(
            dim in 1usize..100,
            numbers in prop::collection::vec(-5f32..5.0, 300),
        ) {
            let (x, rest) = numbers.split_at(2 * dim);
            let weight = &rest[..dim];
            for f in [rms_norm_checked, rms_norm_body::<Portable>] {
                let mut y = x.to_vec();
                f(&mut y, weight, 1e-6);
                for (x, y) in x.chunks(dim).zip(y.chunks(dim)) {
                    let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / dim as f64;
                    for i in 0..dim {
                        let want = f64::from(x[i]) / (mean + 1e-6).sqrt() * f64::from(weight[i]);
                        prop_assert!((f64::from(y[i]) - want).abs() < 2e-5, "{} {want}", y[i]);
                    }
                }
            }
        }

        #[test]
        fn exponents_and_their_sums_make_the_softmax(
            cols in 1usize..80,
            numbers in prop::collection::vec(prop_oneof![9 => -30f32..30.0, 1 => Just(f32::NEG_INFINITY)], 240),
        ) {
            let x = &numbers[..3 * cols];
            let mut soft = x.to_vec();
            softmax_rows(&mut soft, cols);
            for f in [exp_rows, exp_rows_body::<Portable>] {
                let (mut y, mut greatest, mut sums) = (x.to_vec(), [9.0; 3], [9.0; 3]);
                f(&mut y, cols, &mut greatest, &mut sums);
                for r in 0..3 {
                    let row = r * cols..(r + 1) * cols;
                    prop_assert_eq!(greatest[r], x[row.clone()].iter().copied().fold(f32::NEG_INFINITY, f32::max));
                    for (y, soft) in y[row.clone()].iter().zip(&soft[row]) {
                        let soft_here = if sums[r] == 0.0 { 0.0 } else { y / sums[r] };
                        prop_assert!((soft_here - soft).abs() < 1e-6);
                    }
                }
            }
        }

        #[test]
        fn softmax_agrees_with_f64(
            cols in 1usize..80,
            numbers in prop::collection::vec(prop_oneof![9 => -30f32..30.0, 1 => Just(f32::NEG_INFINITY)], 240),
        ) {
            let x = &numbers[..3 * cols];
            for f in [softmax_checked, softmax_body::<Portable>] {
                let mut y = x.to_vec();
                f(&mut y, cols);
                for (x, y) in x.chunks(cols).zip(y.chunks(cols)) {
                    let sum: f64 = x.iter().map(|&x| f64::from(x).exp()).sum();
                    for (x, y) in x.iter().zip(y) {
                        let want = if sum == 0.0 { 0.0 } else { f64::from(*x).exp() / sum };
                        prop_assert!((f64::from(*y) - want).abs() < 1e-6, "{y} {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn softmax_of_masked_places() {
        let inf = f32::INFINITY;
        let mut x = [-inf, -inf, 0.0, -inf, f32::NAN, 1.0, 1e30, 1e30];
        softmax_rows(&mut x, 2);
        assert_eq!(x[..4], [0.0, 0.0, 1.0, 0.0]);
        assert!(x[4].is_nan() && x[5].is_nan());
        assert_eq!(x[6..], [0.5, 0.5]);
    }
}

//! Products of matrices in double precision, by `faer`.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

/// Products of fewer multiplications are made by one thread.
const SHARE_FROM: usize = 1 << 20;

/// A row-major matrix in a slice.
pub(crate) fn view(numbers: &[f64], columns: usize) -> MatRef<'_, f64> {
    MatRef::from_row_major_slice(numbers, numbers.len() / columns.max(1), columns)
}

/// `a · b`, row-major.
pub(crate) fn product(a: MatRef<'_, f64>, b: MatRef<'_, f64>) -> Vec<f64> {
    let mut out = vec![0.0; a.nrows() * b.ncols()];
    multiply(&mut out, a, b, 1.0, false);
    out
}

/// `out = factor · a · b`, plus what `out` (row-major) holds when `add`.
pub(crate) fn multiply(
    out: &mut [f64],
    a: MatRef<'_, f64>,
    b: MatRef<'_, f64>,
    factor: f64,
    add: bool,
) {
    let work = a.nrows() * a.ncols() * b.ncols();
    let par = match work < SHARE_FROM {
        true => Par::Seq,
        false => Par::rayon(0),
    };
    multiply_by(out, a, b, factor, add, par);
}

/// [`multiply`] on the calling thread alone.
pub(crate) fn multiply_alone(out: &mut [f64], a: MatRef<'_, f64>, b: MatRef<'_, f64>, add: bool) {
    multiply_by(out, a, b, 1.0, add, Par::Seq);
}

fn multiply_by(
    out: &mut [f64],
    a: MatRef<'_, f64>,
    b: MatRef<'_, f64>,
    factor: f64,
    add: bool,
    par: Par,
) {
    let out = MatMut::from_row_major_slice_mut(out, a.nrows(), b.ncols());
    let add = match add {
        true => Accum::Add,
        false => Accum::Replace,
    };
    matmul(out, add, a, b, factor, par);
}

/// Sum of products.
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    // Four sums, so that one addition need not wait for the one before.
    let (a_blocks, b_blocks) = (a.chunks_exact(4), b.chunks_exact(4));
    let rest: f64 = (a_blocks.remainder().iter())
        .zip(b_blocks.remainder())
        .map(|(x, y)| x * y)
        .sum();
    let mut sums = [0.0; 4];
    for (x, y) in a_blocks.zip(b_blocks) {
        for i in 0..4 {
            sums[i] += x[i] * y[i];
        }
    }
    (sums[0] + sums[1]) + (sums[2] + sums[3]) + rest
}

/// Euclidean length; of a matrix, its Frobenius norm.
pub(crate) fn norm(a: &[f64]) -> f64 {
    dot(a, a).sqrt()
}

/// `eˣ` to five units of the sixteenth digit, 0 below -708, and no more than at 709.
///
/// The library's function changes between kinds of vector instructions, which after a product of
/// matrices took a hundred nanoseconds a call; this one stays in the loop around it. That of
/// `keyfold_kernels` is for single precision alone.
pub(crate) fn exp(x: f64) -> f64 {
    // 1.5 · 2⁵²: a sum with it is a whole number in its last bits.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    // ln 2 in two parts, the first so short that its products are exact.
    const LN_2: [f64; 2] = [
        f64::from_bits(0x3fe6_2e42_fee0_0000),
        f64::from_bits(0x3dea_39ef_3579_3c76),
    ];
    // 1 / 11!, 1 / 10! and so on.
    const TAYLOR: [f64; 12] = [
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
    let bounded = x.clamp(-708.0, 709.0);
    let shifted = bounded * std::f64::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (bounded - n * LN_2[0]) - n * LN_2[1];
    let sum = TAYLOR
        .iter()
        .fold(1.0 / 479_001_600.0, |sum, factor| sum * r + factor);
    let power = f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52);
    if x < -708.0 { 0.0 } else { sum * power }
}

/// Turns scores into probabilities in place, and gives `ln` of the sum of exponentials.
pub(crate) fn softmax(row: &mut [f64]) -> f64 {
    let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut sum = 0.0;
    for x in row.iter_mut() {
        *x = exp(*x - most);
        sum += *x;
    }
    row.iter_mut().for_each(|x| *x /= sum);
    most + sum.ln()
}

/// The place of the greatest number, the first of equals.
pub(crate) fn argmax(row: &[f64]) -> usize {
    let mut best = 0;
    for (i, &x) in row.iter().enumerate() {
        if x > row[best] {
            best = i;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_any_order_agree_with_their_definition() {
        let a: Vec<f64> = (0..15).map(f64::from).collect();
        let (x, y) = (view(&a, 5), view(&a, 5));
        let gram = product(x, y.transpose());
        for i in 0..3 {
            for j in 0..3 {
                let want: f64 = (0..5).map(|k| a[i * 5 + k] * a[j * 5 + k]).sum();
                assert_eq!(gram[i * 3 + j], want);
            }
        }
        let mut sum = vec![1.0; 25];
        multiply(&mut sum, x.transpose(), y, 2.0, true);
        let want: f64 = (0..3).map(|k| a[k * 5 + 1] * a[k * 5 + 4]).sum();
        assert_eq!(sum[5 + 4], 1.0 + 2.0 * want);
        assert_eq!(dot(&a, &a), a.iter().map(|x| x * x).sum::<f64>());
    }

    #[test]
    fn exp_is_that_of_the_library() {
        let all = (0..300_000).map(|i| -707.5 + f64::from(i) * 4.7e-3);
        for x in all.chain([-708.0, -1e-300, 0.0, 1e-9, 709.0]) {
            let (ours, theirs) = (exp(x), x.exp());
            assert!((ours / theirs - 1.0).abs() < 1e-15, "{x}: {ours} {theirs}");
        }
        assert_eq!(
            (exp(0.0), exp(-709.0), exp(f64::NEG_INFINITY)),
            (1.0, 0.0, 0.0)
        );
        assert_eq!(exp(f64::INFINITY), exp(709.0));
        assert!(exp(f64::NAN).is_nan());
    }

    #[test]
    fn softmax_takes_scores_of_any_size() {
        let mut row = [1000.0, 1000.0, f64::NEG_INFINITY];
        let log = softmax(&mut row);
        assert_eq!(row, [0.5, 0.5, 0.0]);
        assert!((log - 1000.0 - 2f64.ln()).abs() < 1e-12);
    }
}

//! Products of matrices in double precision, by `faer`.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use keyfold_kernels::double::softmax_rows;

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

/// Turns the scores of one row into probabilities in place, and gives `ln` of the sum of
/// exponentials.
pub(crate) fn softmax(row: &mut [f64]) -> f64 {
    let mut log = [0.0];
    softmax_rows(row, row.len(), &mut log);
    log[0]
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
}

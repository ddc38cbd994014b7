//! Decompositions, by faer in `f64`.

use faer::{Mat, MatRef, Side};

use crate::DictionaryError;

/// Row-major `f32` as a matrix.
pub(crate) fn matrix(rows: &[f32], width: usize) -> Mat<f64> {
    Mat::from_fn(rows.len() / width.max(1), width, |i, j| {
        f64::from(rows[i * width + j])
    })
}

/// A matrix as row-major `f32`.
pub(crate) fn numbers(m: MatRef<'_, f64>) -> Vec<f32> {
    let row = |i: usize| (0..m.ncols()).map(move |j| m[(i, j)] as f32);
    (0..m.nrows()).flat_map(row).collect()
}

/// The orthogonal factor `U Vᵀ` of `m = U S Vᵀ`: the matrix of spectral norm 1 that
/// goes with `m` best. Where `m` has not full rank the rest is filled orthonormally.
pub(crate) fn polar(m: MatRef<'_, f64>) -> Result<Mat<f64>, DictionaryError> {
    let svd = m
        .thin_svd()
        .map_err(|_| DictionaryError::Numeric("singular value decomposition"))?;
    Ok(svd.U() * svd.V().transpose())
}

/// [`polar`] of a matrix with full rank that is nearly orthogonal by Newton-Schulz steps,
/// which square the distance; by decomposition where it is further away.
pub(crate) fn polar_near(m: MatRef<'_, f64>) -> Result<Mat<f64>, DictionaryError> {
    const NEAR: f64 = 0.3;
    let mut a = m.to_owned();
    for step in 0..8 {
        let product = &a * a.transpose();
        let distance = Mat::from_fn(product.nrows(), product.ncols(), |i, j| {
            f64::from(u8::from(i == j)) - product[(i, j)]
        });
        let norm = distance.norm_l2();
        if norm < 1e-14 * (a.nrows() as f64) {
            return Ok(a);
        }
        if step == 0 && (norm.is_nan() || norm >= NEAR) {
            return polar(m);
        }
        // A + (I - A Aᵀ) A / 2
        a = &a + &distance * &a * faer::Scale(0.5);
    }
    Ok(a)
}

/// An orthogonal matrix: the factor Q of `m`.
pub(crate) fn orthogonal(m: MatRef<'_, f64>) -> Mat<f64> {
    m.qr().compute_thin_Q()
}

/// `S Vᵀ` of `m = U S Vᵀ`, at most `k` rows, the greatest first.
pub(crate) fn right_factor(m: MatRef<'_, f64>, k: usize) -> Result<Mat<f64>, DictionaryError> {
    let svd = m
        .thin_svd()
        .map_err(|_| DictionaryError::Numeric("singular value decomposition"))?;
    let (s, v) = (svd.S().column_vector(), svd.V());
    let k = k.min(s.nrows());
    Ok(Mat::from_fn(k, m.ncols(), |i, j| s[i] * v[(j, i)]))
}

/// Solves `a x = b` for a symmetric `a` that is not negative, with so much added to the
/// diagonal as makes it positive.
pub(crate) fn solve_symmetric(a: &Mat<f64>, b: &Mat<f64>) -> Result<Mat<f64>, DictionaryError> {
    let n = a.nrows();
    let trace: f64 = (0..n).map(|i| a[(i, i)]).sum();
    let mut ridge = 1e-10 * (trace / n.max(1) as f64).max(1e-30);
    for _ in 0..8 {
        let shifted = Mat::from_fn(n, n, |i, j| a[(i, j)] + if i == j { ridge } else { 0.0 });
        if let Ok(llt) = shifted.llt(Side::Lower) {
            use faer::linalg::solvers::Solve;
            return Ok(llt.solve(b));
        }
        ridge *= 100.0;
    }
    Err(DictionaryError::Numeric("Cholesky decomposition"))
}

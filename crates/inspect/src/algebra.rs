//! Decompositions and solutions in double precision, by `faer`.

use faer::linalg::solvers::Solve;
use faer::{Mat, MatRef, Par, Side};

use crate::InspectError;

/// Row-major `f32` as a matrix.
pub(crate) fn matrix(rows: &[f32], width: usize) -> Mat<f64> {
    Mat::from_fn(rows.len() / width.max(1), width, |i, j| {
        f64::from(rows[i * width + j])
    })
}

/// `sum += aᵀ b`
pub(crate) fn add_products(sum: &mut Mat<f64>, a: MatRef<'_, f64>, b: MatRef<'_, f64>) {
    let accumulate = faer::Accum::Add;
    let par = Par::rayon(0);
    faer::linalg::matmul::matmul(sum.as_mut(), accumulate, a.transpose(), b, 1.0, par);
}

/// Solves `(a + ridge I) x = b` for a symmetric `a` that is not negative; as much more is
/// added to the diagonal as makes it positive.
pub(crate) fn solve_symmetric(
    a: MatRef<'_, f64>,
    b: MatRef<'_, f64>,
    ridge: f64,
) -> Result<Mat<f64>, InspectError> {
    let n = a.nrows();
    let trace: f64 = (0..n).map(|i| a[(i, i)]).sum();
    let least = 1e-13 * (trace / n.max(1) as f64).max(1e-30);
    let mut more = 0.0;
    for _ in 0..10 {
        let shifted = Mat::from_fn(n, n, |i, j| {
            a[(i, j)] + if i == j { ridge + more } else { 0.0 }
        });
        if let Ok(llt) = shifted.llt(Side::Lower) {
            return Ok(llt.solve(b));
        }
        more = (more * 100.0).max(least);
    }
    Err(InspectError::Numeric("Cholesky decomposition"))
}

/// The solution of least length among those of least squared error `‖a x - b‖`.
pub(crate) fn least_squares(
    a: MatRef<'_, f64>,
    b: MatRef<'_, f64>,
) -> Result<Mat<f64>, InspectError> {
    let svd = a
        .thin_svd()
        .map_err(|_| InspectError::Numeric("singular value decomposition"))?;
    let (u, s, v) = (svd.U(), svd.S().column_vector(), svd.V());
    let top = (0..s.nrows()).map(|i| s[i]).fold(0.0, f64::max);
    let cut = top * f64::EPSILON * a.nrows().max(a.ncols()) as f64;
    let mut middle = u.transpose() * b;
    for i in 0..middle.nrows() {
        let factor = if s[i] > cut { 1.0 / s[i] } else { 0.0 };
        (0..middle.ncols()).for_each(|j| middle[(i, j)] *= factor);
    }
    Ok(v * middle)
}

/// Eigenvalues, the least first, and their vectors as columns.
pub(crate) fn eigen(a: MatRef<'_, f64>) -> Result<(Vec<f64>, Mat<f64>), InspectError> {
    let found = a
        .self_adjoint_eigen(Side::Lower)
        .map_err(|_| InspectError::Numeric("eigenvalue decomposition"))?;
    let s = found.S().column_vector();
    let values = (0..s.nrows()).map(|i| s[i]).collect();
    Ok((values, found.U().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_squares_solution_has_least_length() {
        // One equation x + 2y = 5: of all solutions (1, 2) is the shortest.
        let a = Mat::from_fn(1, 2, |_, j| [1.0, 2.0][j]);
        let b = Mat::from_fn(1, 1, |_, _| 5.0);
        let x = least_squares(a.as_ref(), b.as_ref()).unwrap();
        assert!((x[(0, 0)] - 1.0).abs() < 1e-12 && (x[(1, 0)] - 2.0).abs() < 1e-12);
    }

    #[test]
    fn a_singular_matrix_is_solved_with_a_little_more_on_its_diagonal() {
        let a = Mat::from_fn(2, 2, |_, _| 1.0);
        let b = Mat::from_fn(2, 1, |_, _| 2.0);
        let x = solve_symmetric(a.as_ref(), b.as_ref(), 0.0).unwrap();
        assert!((x[(0, 0)] + x[(1, 0)] - 2.0).abs() < 1e-6);
    }
}

//! Eigenvalues and eigenvectors of a symmetric matrix, and products of square ones, row-major.

use faer::{Mat, MatRef, Side};

/// Eigenvalues of a symmetric matrix, ascending, with their eigenvectors.
pub(super) struct Eigen {
    pub(super) values: Vec<f64>,
    /// `[n, n]`, one eigenvector a row.
    pub(super) vectors: Vec<f64>,
}

/// The eigenvalues of the symmetric `matrix` `[n, n]`; none where it is not finite.
pub(super) fn eigen(matrix: &[f64], n: usize) -> Option<Eigen> {
    if n == 0 || matrix.len() != n * n || matrix.iter().any(|x| !x.is_finite()) {
        return None;
    }
    let found = view(matrix, n).self_adjoint_eigen(Side::Lower).ok()?;
    Some(Eigen {
        values: found.S().column_vector().iter().copied().collect(),
        vectors: rows(found.U().transpose()),
    })
}

/// `a bᵀ`, both `[n, n]`.
pub(super) fn times_transposed(a: &[f64], b: &[f64], n: usize) -> Vec<f64> {
    let product: Mat<f64> = view(a, n) * view(b, n).transpose();
    rows(product.as_ref())
}

/// `aᵀ b`, both `[n, n]`.
pub(super) fn transposed_times(a: &[f64], b: &[f64], n: usize) -> Vec<f64> {
    let product: Mat<f64> = view(a, n).transpose() * view(b, n);
    rows(product.as_ref())
}

fn view(matrix: &[f64], n: usize) -> MatRef<'_, f64> {
    MatRef::from_row_major_slice(matrix, n, n)
}

/// The numbers of a matrix, row after row.
fn rows(matrix: MatRef<'_, f64>) -> Vec<f64> {
    let row = |i| (0..matrix.ncols()).map(move |j| matrix[(i, j)]);
    (0..matrix.nrows()).flat_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn eigenvectors_give_the_matrix_back(
            n in 1usize..12,
            numbers in prop::collection::vec(-2f64..2.0, 144),
            rank in 1usize..12,
        ) {
            // Of any rank up to n, so that values repeat.
            let mut factor = numbers[..n * n].to_vec();
            factor.chunks_exact_mut(n).skip(rank).for_each(|row| row.fill(0.0));
            let matrix = transposed_times(&factor, &factor, n);
            let found = eigen(&matrix, n).unwrap();
            prop_assert!(found.values.is_sorted());
            let unit = times_transposed(&found.vectors, &found.vectors, n);
            for (at, x) in unit.iter().enumerate() {
                let expected = f64::from(u8::from(at / n == at % n));
                prop_assert!((x - expected).abs() < 1e-9, "{x}");
            }
            let mut scaled = found.vectors.clone();
            for (row, value) in scaled.chunks_exact_mut(n).zip(&found.values) {
                row.iter_mut().for_each(|x| *x *= value);
            }
            let again = transposed_times(&found.vectors, &scaled, n);
            for (a, b) in again.iter().zip(&matrix) {
                prop_assert!((a - b).abs() < 1e-8, "{a} {b}");
            }
        }
    }

    #[test]
    fn what_is_not_finite_has_no_eigenvalues() {
        assert!(eigen(&[f64::NAN], 1).is_none());
        assert!(eigen(&[], 0).is_none());
        let zero = eigen(&[0.0; 9], 3).unwrap();
        assert_eq!(zero.values, [0.0; 3]);
    }
}

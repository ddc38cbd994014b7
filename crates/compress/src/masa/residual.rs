//! What atoms cannot say of a matrix, as two thin ones that lose least of its outputs.
//!
//! Over inputs with `R = E[x xᵀ] = C Cᵀ` (Cholesky) the mean of `|E x|²` is `|E C|²`, so the best
//! pair of rank `r` for `E` is the best of `E C` (Eckart and Young), taken back:
//!
//! ```text
//! E C = P Σ Qᵀ        E ≈ (P_r Σ_r) (Q_rᵀ C⁻¹)        lost = Σ_{s > r} σ_s²
//! ```

use faer::linalg::solvers::Solve;
use faer::{Mat, MatRef, Side};
use keyfold_kernels::{Matrix, product};

use super::Atoms;
use crate::CompressError;

/// What is added to the diagonal of `R`, as a share of its mean: directions that a text never
/// showed count a little.
const RIDGE: f64 = 1e-4;

/// Two thin matrices.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// `[out, rank]`.
    pub up: Vec<f32>,
    /// `[rank, in]`.
    pub down: Vec<f32>,
    /// How thin.
    pub rank: usize,
    /// Rows of their product.
    pub rows: usize,
    /// Columns of their product.
    pub columns: usize,
}

impl Pair {
    /// A pair that adds nothing.
    pub fn none(rows: usize, columns: usize) -> Self {
        Self {
            up: Vec::new(),
            down: Vec::new(),
            rank: 0,
            rows,
            columns,
        }
    }

    /// Adds their product to a matrix.
    ///
    /// # Panics
    /// When the matrix is of another size.
    pub fn add_to(&self, matrix: &mut [f32]) {
        assert_eq!(
            matrix.len(),
            self.rows * self.columns,
            "a pair of another size"
        );
        if self.rank > 0 {
            let (up, down) = (
                Matrix::new(&self.up, self.rank),
                Matrix::new(&self.down, self.columns),
            );
            product(matrix, self.columns, up, down, 1.0, true, 1);
        }
    }
}

/// A matrix in the measure of its outputs.
#[derive(Debug, Clone)]
pub struct Whitened {
    /// The singular values of `E C`, the greatest first.
    pub values: Vec<f64>,
    left: Mat<f64>,
    /// `C⁻ᵀ Q`.
    right: Mat<f64>,
}

impl Whitened {
    /// The pair of a rank, which is cut to what there is.
    pub fn pair(&self, rank: usize) -> Pair {
        let (rows, columns) = (self.left.nrows(), self.right.nrows());
        let rank = rank.min(self.values.len());
        // Both get the root, so that numbers of both are of one size.
        let roots: Vec<f64> = self.values[..rank].iter().map(|s| s.sqrt()).collect();
        let mut pair = Pair::none(rows, columns);
        pair.rank = rank;
        for i in 0..rows {
            pair.up
                .extend((0..rank).map(|s| (self.left[(i, s)] * roots[s]) as f32));
        }
        for (s, root) in roots.iter().enumerate() {
            pair.down
                .extend((0..columns).map(|j| (self.right[(j, s)] * root) as f32));
        }
        pair
    }
}

fn to_mat(matrix: &[f32], columns: usize) -> Mat<f64> {
    Mat::from_fn(matrix.len() / columns, columns, |i, j| {
        f64::from(matrix[i * columns + j])
    })
}

/// What is added to the diagonal of the moments.
fn ridge(columns: usize, moments: &[f64]) -> f64 {
    let trace: f64 = (0..columns).map(|i| moments[i * columns + i]).sum();
    RIDGE * trace / columns as f64
}

/// The moments with a ridge; it makes them positive definite.
fn ridged(columns: usize, moments: &[f64]) -> Result<Mat<f64>, CompressError> {
    let ridge = ridge(columns, moments);
    if !(ridge.is_finite() && ridge > 0.0) {
        return Err(CompressError::Settings(
            "the inputs on the text are all zero, so they say nothing of the outputs".into(),
        ));
    }
    Ok(Mat::from_fn(columns, columns, |i, j| {
        moments[i * columns + j] + if i == j { ridge } else { 0.0 }
    }))
}

/// The mixture of `atoms` that loses least of the outputs of a matrix, by least squares:
///
/// ```text
/// A c = b        A_st = <D_s R, D_t>        b_s = <D_s R, W>
/// ```
///
/// The mixture that is nearest to the matrix itself may lose more of them than no matrix at all,
/// where inputs lie along few directions.
///
/// # Errors
/// As [`residual`].
pub(super) fn mixture(
    atoms: &Atoms,
    matrix: &[f32],
    columns: usize,
    moments: &[f64],
) -> Result<Vec<f32>, CompressError> {
    let count = atoms.count;
    if count == 0 {
        return Ok(Vec::new());
    }
    let moments = ridged(columns, moments)?;
    let all: Vec<&[f32]> = atoms.matrices.chunks_exact(atoms.size).collect();
    let mut products = Mat::<f64>::zeros(count, count);
    let mut wanted = Mat::<f64>::zeros(count, 1);
    for (s, atom) in all.iter().enumerate() {
        // `R D_sᵀ`, whose columns are the rows of `D_s R`.
        let atom = Mat::from_fn(columns, atom.len() / columns, |j, i| {
            f64::from(atom[i * columns + j])
        });
        let turned = &moments * &atom;
        let inner = |other: &[f32]| {
            let rows = other.chunks_exact(columns).enumerate();
            rows.map(|(i, row)| {
                let turned = turned.col(i);
                let each = turned.iter().zip(row).map(|(a, b)| a * f64::from(*b));
                each.sum::<f64>()
            })
            .sum::<f64>()
        };
        // The lower half is read alone.
        for (t, other) in all[..=s].iter().enumerate() {
            products[(s, t)] = inner(other);
        }
        wanted[(s, 0)] = inner(matrix);
    }
    let cholesky = products
        .llt(Side::Lower)
        .map_err(|_| CompressError::Numeric("Cholesky decomposition"))?;
    let found = cholesky.solve(&wanted);
    Ok((0..count).map(|s| found[(s, 0)] as f32).collect())
}

/// Decomposes `rest` `[out, in]` for inputs with the moments `[in, in]`.
///
/// # Errors
/// When the moments are those of no inputs, or a decomposition does not converge.
pub fn residual(rest: &[f32], columns: usize, moments: &[f64]) -> Result<Whitened, CompressError> {
    let cholesky = ridged(columns, moments)?
        .llt(Side::Lower)
        .map_err(|_| CompressError::Numeric("Cholesky decomposition"))?;
    let root = cholesky.L();
    let svd = (to_mat(rest, columns) * root)
        .thin_svd()
        .map_err(|_| CompressError::Numeric("singular values"))?;
    let values: Vec<f64> = svd.S().column_vector().iter().copied().collect();
    // Cᵀ X = Q, by substitution from the end.
    let mut right = svd.V().to_owned();
    faer::linalg::triangular_solve::solve_upper_triangular_in_place(
        root.transpose(),
        right.as_mut(),
        faer::Par::Seq,
    );
    Ok(Whitened {
        values,
        left: svd.U().to_owned(),
        right,
    })
}

/// The mean of `|E x|²` over inputs with the moments.
pub(super) fn output_size(matrix: &[f32], columns: usize, moments: &[f64]) -> f64 {
    let matrix = to_mat(matrix, columns);
    let moments = MatRef::from_row_major_slice(moments, columns, columns);
    let turned: Mat<f64> = matrix.as_ref() * moments;
    let columns = (0..columns).map(|j| {
        let (a, b) = (turned.col(j), matrix.col(j));
        a.iter().zip(b.iter()).map(|(x, y)| x * y).sum::<f64>()
    });
    let sum: f64 = columns.sum();
    // Rounding may leave a little less than nothing; NaN stays.
    if sum < 0.0 { 0.0 } else { sum }
}

/// The same of a whole matrix, by which what is lost is divided: at least what the ridge alone gives.
///
/// Otherwise a matrix whose outputs are zero on the text would be worth any number of ranks.
pub(super) fn whole_size(matrix: &[f32], columns: usize, moments: &[f64]) -> f64 {
    let square: f64 = matrix.iter().map(|x| f64::from(*x).powi(2)).sum();
    let least = ridge(columns, moments) * square;
    output_size(matrix, columns, moments)
        .max(least)
        .max(f64::MIN_POSITIVE)
}

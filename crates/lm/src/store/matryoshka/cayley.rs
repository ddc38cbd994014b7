//! Orthogonal matrices as free numbers, for training.
//!
//! ```text
//! A = X - Xᵀ     U = (I - A/2)⁻¹ (I + A/2)     back: A = 2 (U - I) (I + U)⁻¹
//! ```
//!
//! `X` counts by its skew part only; the authors keep its strictly lower triangle.

use super::HeadBasis;
use super::bases::of_columns;
use crate::LmError;
use faer::Mat;
use faer::linalg::solvers::Solve;

fn refuse(what: &str) -> LmError {
    LmError::Input {
        what: format!("matryoshka: {what}"),
    }
}

/// The strictly lower triangle `X`, `[d, d]`, that gives a basis.
///
/// # Errors
/// When the determinant is -1, or `I + U` has no inverse.
pub fn to_cayley(basis: &HeadBasis) -> Result<Vec<f32>, LmError> {
    let d = basis.mean.len();
    let u = Mat::from_fn(d, d, |i, j| f64::from(basis.directions[j * d + i]));
    if u.determinant() < 0.0 {
        return Err(refuse(
            "a basis of determinant -1 has no Cayley form; turn the sign of a column",
        ));
    }
    let identity = Mat::<f64>::identity(d, d);
    let (minus, plus) = (&u - &identity, &u + &identity);
    // (U - I) (I + U)⁻¹ = ((I + U)⁻ᵀ (U - I)ᵀ)ᵀ; both commute.
    let half = plus
        .transpose()
        .to_owned()
        .full_piv_lu()
        .solve(minus.transpose());
    let a = |i: usize, j: usize| 2.0 * half[(j, i)];
    let largest = (0..d * d)
        .map(|i| a(i / d, i % d).abs())
        .fold(0.0, f64::max);
    let skew = |i: usize, j: usize| (a(i, j) + a(j, i)).abs() <= 1e-3 * largest.max(1.0);
    if !largest.is_finite() || largest > 1e6 || !(0..d * d).all(|i| skew(i / d, i % d)) {
        return Err(refuse(
            "a basis turns a direction around (I + U has no inverse), so that it has no Cayley \
             form; turn the signs of two columns",
        ));
    }
    let lower = |i: usize| {
        let (row, column) = (i / d, i % d);
        if column < row {
            (0.5 * (a(row, column) - a(column, row))) as f32
        } else {
            0.0
        }
    };
    Ok((0..d * d).map(lower).collect())
}

/// The basis that `x` `[d, d]` gives, with a mean.
///
/// # Errors
/// When there are not `d * d` numbers, or they are not finite.
pub fn from_cayley(mean: Vec<f32>, x: &[f32]) -> Result<HeadBasis, LmError> {
    let d = mean.len();
    if x.len() != d * d || !x.iter().chain(&mean).all(|x| x.is_finite()) {
        return Err(refuse("trained numbers are no basis"));
    }
    let half = |i: usize, j: usize| 0.5 * (f64::from(x[i * d + j]) - f64::from(x[j * d + i]));
    let identity = |i: usize, j: usize| f64::from(u8::from(i == j));
    let left = Mat::from_fn(d, d, |i, j| identity(i, j) - half(i, j));
    let right = Mat::from_fn(d, d, |i, j| identity(i, j) + half(i, j));
    Ok(of_columns(mean, &left.partial_piv_lu().solve(&right)))
}

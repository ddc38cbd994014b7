//! Atoms: the principal directions of the matrices of a group.
//!
//! Each matrix is one long vector. With the products of all pairs `G = XᵀX = U Λ Uᵀ` (`L x L`):
//!
//! ```text
//! D_s = X u_s / √λ_s        c_ls = √λ_s u_ls        Σ_l |W_l - Ŵ_l|² = Σ_{s > S} λ_s
//! ```
//!
//! without taking a mean away. Products are in double precision, since they square the condition of
//! the matrices.

use faer::{Mat, Side};
use rayon::prelude::*;

use crate::CompressError;

/// Eigenvalues below so much of the greatest are rounding.
const ROUNDING: f64 = 1e-10;

/// Matrices and the mixtures that layers are of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Atoms {
    /// How many.
    pub count: usize,
    /// Numbers of a matrix.
    pub size: usize,
    /// `[count, numbers of a matrix]`, of length one and at right angles.
    pub matrices: Vec<f32>,
    /// `[layers, count]`.
    pub coefficients: Vec<f32>,
    /// Share of `Σ |W_l|²` that they tell where mixtures are nearest to the matrices.
    pub energy: f64,
    /// `Σ |W_l - Ŵ_l|²` with such mixtures.
    pub lost: f64,
}

impl Atoms {
    /// `Σ_s c_ls D_s` of a layer.
    pub fn mixture(&self, layer: usize) -> Vec<f32> {
        let mut out = vec![0.0; self.size];
        let coefficients = &self.coefficients[layer * self.count..][..self.count];
        for (c, atom) in coefficients
            .iter()
            .zip(self.matrices.chunks_exact(self.size.max(1)))
        {
            keyfold_kernels::axpy(&mut out, *c, atom);
        }
        out
    }
}

/// The `count` matrices that tell most of `matrices`, which are of one size.
///
/// Fewer where the matrices have fewer directions.
///
/// # Errors
/// When the decomposition does not converge.
pub fn matrix_pca(matrices: &[&[f32]], count: usize) -> Result<Atoms, CompressError> {
    let layers = matrices.len();
    let pairs: Vec<(usize, usize)> = (0..layers)
        .flat_map(|i| (0..=i).map(move |j| (i, j)))
        .collect();
    let products: Vec<f64> = pairs
        .par_iter()
        .map(|(i, j)| product(matrices[*i], matrices[*j]))
        .collect();
    let mut gram = Mat::<f64>::zeros(layers, layers);
    for ((i, j), product) in pairs.into_iter().zip(products) {
        gram[(i, j)] = product;
        gram[(j, i)] = product;
    }
    let eigen = gram
        .self_adjoint_eigen(Side::Lower)
        .map_err(|_| CompressError::Numeric("eigenvalues"))?;
    // In rising order.
    let values: Vec<f64> = eigen.S().column_vector().iter().copied().collect();
    let greatest = values.last().copied().unwrap_or(0.0);
    let kept: Vec<usize> = (0..layers)
        .rev()
        .take(count)
        .filter(|at| values[*at] > ROUNDING * greatest && values[*at] > 0.0)
        .collect();
    let size = matrices.first().map_or(0, |m| m.len());
    let mut atoms = vec![0.0; kept.len() * size];
    let mut coefficients = vec![0.0; layers * kept.len()];
    for (s, at) in kept.iter().enumerate() {
        let root = values[*at].sqrt();
        let atom = &mut atoms[s * size..(s + 1) * size];
        for (layer, matrix) in matrices.iter().enumerate() {
            let u = eigen.U()[(layer, *at)];
            keyfold_kernels::axpy(atom, (u / root) as f32, matrix);
            coefficients[layer * kept.len() + s] = (u * root) as f32;
        }
    }
    let all: f64 = values.iter().sum();
    let told: f64 = kept.iter().map(|at| values[*at]).sum();
    Ok(Atoms {
        count: kept.len(),
        size,
        matrices: atoms,
        coefficients,
        energy: if all > 0.0 { told / all } else { 1.0 },
        lost: (all - told).max(0.0),
    })
}

fn product(a: &[f32], b: &[f32]) -> f64 {
    // Four sums at once, so that none waits for the one before.
    let mut sums = [0.0; 4];
    let (blocks_a, blocks_b) = (a.as_chunks::<4>(), b.as_chunks::<4>());
    for (a, b) in blocks_a.0.iter().zip(blocks_b.0) {
        for i in 0..4 {
            sums[i] += f64::from(a[i]) * f64::from(b[i]);
        }
    }
    let rest = blocks_a.1.iter().zip(blocks_b.1);
    sums.iter().sum::<f64>()
        + rest
            .map(|(a, b)| f64::from(*a) * f64::from(*b))
            .sum::<f64>()
}

//! Attention over tuples of positions: a query attends to pairs, or to more at once.
//!
//! J. Alman and Z. Song, 2024, How to Capture Higher-order Correlations? Generalizing
//! Matrix Softmax Attention to Kronecker Computation.
//!
//! ```text
//! s_ijk = scale Σ_l Q_il K1_jl K2_kl           (scale 1/d in the paper)
//! O_i   = Σ_jk exp(s_ijk) (V1_j ⊙ V2_k) / Σ_jk exp(s_ijk)
//! ```
//!
//! and so on with more keys. [`exact`](Attention::exact) takes `n^m d` steps for order `m`
//! (3 above). Where entries are bounded, so that scores stay small, `exp` is nearly a
//! polynomial of low degree, which [`polynomial`] sums in `n r d` steps, `r` the number of
//! monomials; the theorem says that this near-linear time ends where entries grow beyond
//! `(log n)^(1/3)`. [`polynomial::Certificate`] tells how wrong it can be at most.
//!
//! All numbers are `f64`, row-major. [`match3`] shows what pairs are good for: it finds three
//! numbers that sum to 0 modulo `M`, which one layer of ordinary attention cannot.

mod exact;
pub mod match3;
pub mod polynomial;
#[cfg(test)]
mod tests;

use crate::SequenceError;

pub use exact::{Triple, triples};

/// The longest sequence that is attended to exactly, by number of keys.
const LONGEST: [usize; 3] = [1 << 16, 2_048, 256];

/// What an attention reads: queries, keys and values of `n` positions.
#[derive(Debug, Clone)]
pub struct Attention<'a> {
    /// `[n, d]`.
    queries: &'a [f64],
    /// `[n, d]` each.
    keys: Vec<&'a [f64]>,
    /// `[n, values_dim]` each, as many as keys; at least one number wide.
    values: Vec<&'a [f64]>,
    dim: usize,
    values_dim: usize,
    scale: f64,
    causal: bool,
    patient: bool,
}

/// Gradients of what an [`Attention`] reads, in its shapes.
#[derive(Debug, Clone, PartialEq)]
pub struct Gradients {
    /// Of the queries.
    pub queries: Vec<f64>,
    /// Of each of the keys.
    pub keys: Vec<Vec<f64>>,
    /// Of each of the values.
    pub values: Vec<Vec<f64>>,
}

impl<'a> Attention<'a> {
    /// Attention with the paper's scale, `1 / d`, to all positions.
    ///
    /// # Errors
    /// When there are no keys, shapes differ, or a number is not finite.
    pub fn new(
        queries: &'a [f64],
        keys: Vec<&'a [f64]>,
        values: Vec<&'a [f64]>,
        dim: usize,
    ) -> Result<Self, SequenceError> {
        if dim == 0 || keys.is_empty() || keys.len() != values.len() {
            let what = "attention needs vectors of at least one number, and as many values as keys (one or more)";
            return Err(SequenceError::Refused(what.into()));
        }
        let n = queries.len() / dim;
        let shape = |what, found: usize, width: usize| {
            if found == n * width && n > 0 {
                return Ok(());
            }
            let expected = format!("{n} rows of {width}, at least one");
            Err(SequenceError::Shape {
                what,
                found,
                expected,
            })
        };
        shape("the matrix of queries", queries.len(), dim)?;
        let values_dim = (values[0].len() / n).max(1);
        for (key, value) in keys.iter().zip(&values) {
            shape("a matrix of keys", key.len(), dim)?;
            shape("a matrix of values", value.len(), values_dim)?;
            finite("a matrix of keys", key, dim)?;
            finite("a matrix of values", value, values_dim)?;
        }
        finite("the matrix of queries", queries, dim)?;
        Ok(Self {
            queries,
            keys,
            values,
            dim,
            values_dim,
            scale: 1.0 / dim as f64,
            causal: false,
            patient: false,
        })
    }

    /// With another factor of the scores.
    #[must_use]
    pub fn with_scale(self, scale: f64) -> Self {
        Self { scale, ..self }
    }

    /// A position attends to tuples of itself and what stands before it alone.
    #[must_use]
    pub fn causal(self, causal: bool) -> Self {
        Self { causal, ..self }
    }

    /// Exact attention is computed even where it takes very long.
    #[must_use]
    pub fn patient(self, patient: bool) -> Self {
        Self { patient, ..self }
    }

    /// Positions.
    pub fn len(&self) -> usize {
        self.queries.len() / self.dim
    }

    /// Never: there is at least one position.
    pub fn is_empty(&self) -> bool {
        self.queries.is_empty()
    }

    /// A bound on the size of all scores, by the largest key numbers of each dimension.
    pub fn score_bound(&self) -> f64 {
        let largest: Vec<Vec<f64>> = self.keys.iter().map(|k| largest(k, self.dim)).collect();
        let rows = self.queries.chunks_exact(self.dim);
        let of_row = |row: &[f64]| {
            let each = row.iter().enumerate().map(|(l, q)| {
                let keys: f64 = largest.iter().map(|k| k[l]).product();
                q.abs() * keys
            });
            each.sum::<f64>() * self.scale.abs()
        };
        rows.map(of_row).fold(0.0, f64::max)
    }

    /// The largest values by dimension, multiplied, and of those the largest: what no output
    /// number exceeds.
    fn value_bound(&self) -> f64 {
        let largest: Vec<Vec<f64>> = self
            .values
            .iter()
            .map(|v| largest(v, self.values_dim))
            .collect();
        (0..self.values_dim)
            .map(|c| largest.iter().map(|v| v[c]).product())
            .fold(0.0, f64::max)
    }

    /// Refuses what would take too long.
    ///
    /// # Errors
    /// When there are more positions than can be computed exactly in a bearable time.
    pub fn check_exact(&self) -> Result<(), SequenceError> {
        let limit = LONGEST.get(self.keys.len() - 1).copied().unwrap_or(64);
        if self.patient || self.len() <= limit {
            return Ok(());
        }
        Err(SequenceError::Refused(format!(
            "exact attention of order {} takes n^{} steps and is computed up to {limit} positions unless it is forced; there are {}",
            self.keys.len() + 1,
            self.keys.len() + 1,
            self.len()
        )))
    }
}

/// By dimension, the largest size of a number.
fn largest(rows: &[f64], dim: usize) -> Vec<f64> {
    let mut most = vec![0.0f64; dim];
    for row in rows.chunks_exact(dim) {
        for (most, x) in most.iter_mut().zip(row) {
            *most = most.max(x.abs());
        }
    }
    most
}

fn finite(what: &'static str, rows: &[f64], dim: usize) -> Result<(), SequenceError> {
    match rows.iter().position(|x| !x.is_finite()) {
        None => Ok(()),
        Some(at) => Err(SequenceError::NotFinite {
            what,
            row: at / dim,
            value: rows[at],
        }),
    }
}

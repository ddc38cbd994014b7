//! Late interaction: `maxsim(Q, D) = Σ_i max_j <q_i, d_j>`.

use crate::dot::{assert_rows, dot};

/// A query, prepared to be compared with many documents.
///
/// Holds scratch memory, so one per thread.
#[derive(Debug, Clone)]
pub struct MaxSim {
    dim: usize,
    query: Vec<f32>,
    pub(crate) decoded: Vec<f32>,
}

impl MaxSim {
    /// Prepares `query` (`[nq, dim]`).
    ///
    /// # Panics
    /// When `query` is no whole number of rows.
    pub fn new(query: &[f32], dim: usize) -> Self {
        assert_rows(query.len(), dim, "MaxSim::new");
        Self {
            dim,
            query: query.to_vec(),
            decoded: Vec::new(),
        }
    }

    /// Length of a row.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Sum over the query rows of the greatest dot product with any row of
    /// `doc_rows` (`[nd, dim]`). No document row, or none whose product is a
    /// number above `-inf`, adds nothing.
    ///
    /// # Panics
    /// When `doc_rows` is no whole number of rows.
    pub fn score(&mut self, doc_rows: &[f32]) -> f32 {
        assert_rows(doc_rows.len(), self.dim, "MaxSim::score");
        let best = |q: &[f32]| {
            doc_rows
                .chunks_exact(self.dim)
                .map(|d| dot(q, d))
                .fold(f32::NEG_INFINITY, f32::max)
        };
        self.query
            .chunks_exact(self.dim.max(1))
            .map(best)
            .filter(|&s| s > f32::NEG_INFINITY)
            .sum()
    }
}

/// [`MaxSim::score`] of one query (`[nq, dim]`) and one document (`[nd, dim]`).
///
/// # Panics
/// When a slice is no whole number of rows.
pub fn maxsim(query: &[f32], doc: &[f32], dim: usize) -> f32 {
    MaxSim::new(query, dim).score(doc)
}

/// For every row of `query` (`[nq, dim]`), which row of `doc` (`[nd, dim]`) it
/// meets best (the first of equals), and their dot product. Empty when `doc`
/// is; `(0, 0.0)` where no product is a number above `-inf`.
///
/// # Panics
/// When a slice is no whole number of rows.
pub fn maxsim_alignment(query: &[f32], doc: &[f32], dim: usize) -> Vec<(usize, f32)> {
    assert_rows(query.len(), dim, "maxsim_alignment: query");
    assert_rows(doc.len(), dim, "maxsim_alignment: doc");
    if doc.is_empty() {
        return Vec::new();
    }
    let best = |q: &[f32]| {
        let mut best = (0, f32::NEG_INFINITY);
        for (j, d) in doc.chunks_exact(dim).enumerate() {
            let score = dot(q, d);
            if score > best.1 {
                best = (j, score);
            }
        }
        if best.1 == f32::NEG_INFINITY {
            (0, 0.0)
        } else {
            best
        }
    };
    query.chunks_exact(dim.max(1)).map(best).collect()
}

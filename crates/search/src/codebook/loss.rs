//! What coding costs in accuracy.

use keyfold_kernels::{TopK, dot, norm};

use super::Codebook;

/// What coding costs in accuracy, measured on rows.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct QuantizationLoss {
    /// How many rows it was measured on.
    pub rows: usize,
    /// Mean cosine between a row and what is read back of it.
    pub mean_cosine: f32,
    /// Share of the ten nearest rows of a row that stay among its ten nearest
    /// when all others are read back from their codes.
    pub top10_agreement: f32,
}

impl Codebook {
    /// Measures what coding loses on rows `[n, dim]`, on at most 4096 of them;
    /// `None` if there is no row.
    pub fn loss(&self, rows: &[f32], threads: usize) -> Option<QuantizationLoss> {
        let step = (rows.len() / self.dim).div_ceil(4096).max(1);
        let original: Vec<f32> = (rows.chunks_exact(self.dim).step_by(step))
            .flatten()
            .copied()
            .collect();
        let n = original.len() / self.dim;
        if n == 0 {
            return None;
        }
        let coded = self.quantize(&original, threads);
        let mut decoded = Vec::with_capacity(original.len());
        self.decode(&coded.codes, &coded.packed, &mut decoded);
        let pairs = original
            .chunks_exact(self.dim)
            .zip(decoded.chunks_exact(self.dim));
        let mean_cosine = pairs.map(|(a, b)| cosine(a, b)).sum::<f32>() / n as f32;
        Some(QuantizationLoss {
            rows: n,
            mean_cosine,
            top10_agreement: top10_agreement(&original, &decoded, self.dim),
        })
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    dot(a, b) / (norm(a) * norm(b)).max(1e-12)
}

/// See [`QuantizationLoss::top10_agreement`]; up to 128 rows serve as queries.
fn top10_agreement(original: &[f32], decoded: &[f32], dim: usize) -> f32 {
    let n = original.len() / dim;
    let (mut same, mut all) = (0, 0);
    for q in (0..n).step_by(n.div_ceil(128)) {
        let query = &original[q * dim..(q + 1) * dim];
        let nearest = |rows: &[f32]| -> Vec<u64> {
            let mut top = TopK::new(10);
            for (i, row) in rows.chunks_exact(dim).enumerate().filter(|(i, _)| *i != q) {
                top.push(dot(query, row), i as u64);
            }
            top.into_sorted().into_iter().map(|(_, i)| i).collect()
        };
        let (exact, coded) = (nearest(original), nearest(decoded));
        same += exact.iter().filter(|i| coded.contains(i)).count();
        all += exact.len();
    }
    if all == 0 {
        1.0
    } else {
        same as f32 / all as f32
    }
}

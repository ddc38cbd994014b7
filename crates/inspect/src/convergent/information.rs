//! Mutual information of pairs of units.
//!
//! Each unit has bins of its own: one for what is 0 (below 0.000001), then shares of equal
//! size of what is above, between its percentiles. `I = Σ p_ij ln(p_ij / (p_i p_j))` in nats;
//! from `N` samples it comes out too large by about `cells / (2 N)`.

use faer::Mat;
use rayon::prelude::*;

use super::{Activations, Units, same_samples};
use crate::InspectError;

/// Bins of a unit.
pub const BINS: usize = 10;

/// What counts as 0.
const ZERO: f64 = 1e-6;

/// Mutual information of all pairs.
#[derive(Debug, Clone, PartialEq)]
pub struct Information {
    /// In nats, `[live of a, live of b]`.
    pub nats: Mat<f64>,
    /// About what independent units would have, in nats: `cells / (2 N)`.
    pub bias: f64,
}

/// The bin of each sample.
fn binned(activations: &Activations, unit: usize) -> Vec<u8> {
    let column: Vec<f64> = activations.column(unit).map(f64::from).collect();
    let mut sorted = column.clone();
    sorted.sort_by(f64::total_cmp);
    let zeros = sorted.partition_point(|x| *x < ZERO) as f64 / sorted.len() as f64;
    // A little above the share of zeros, so that all of them fall into the first bin.
    let from = (zeros * 1.001).min(1.0);
    let step = (1.0 - from) / (BINS - 1) as f64;
    let edge = |i: usize| percentile(&sorted, (from + step * i as f64).min(1.0));
    let edges: Vec<f64> = (0..BINS - 1).map(edge).collect();
    let bin = |x: &f64| edges.partition_point(|edge| edge <= x) as u8;
    column.iter().map(bin).collect()
}

/// By linear interpolation between the nearest ranks.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let at = share * (sorted.len() - 1) as f64;
    let low = sorted[at as usize];
    let high = sorted[(at as usize + 1).min(sorted.len() - 1)];
    low + (high - low) * at.fract()
}

/// Mutual information of every unit of `a` with every unit of `b` that changes.
///
/// # Errors
/// When the networks saw different numbers of samples.
pub fn mutual_information(
    (a, units_a): (&Activations, &Units),
    (b, units_b): (&Activations, &Units),
) -> Result<Information, InspectError> {
    same_samples(a, b)?;
    let bins = |x: &Activations, units: &Units| -> Vec<Vec<u8>> {
        units.live.par_iter().map(|unit| binned(x, *unit)).collect()
    };
    let (bins_a, bins_b) = (bins(a, units_a), bins(b, units_b));
    let rows: Vec<Vec<f64>> = bins_a
        .par_iter()
        .map(|x| bins_b.iter().map(|y| of_pair(x, y)).collect())
        .collect();
    Ok(Information {
        nats: Mat::from_fn(rows.len(), bins_b.len(), |i, j| rows[i][j]),
        bias: (BINS * BINS) as f64 / (2.0 * a.samples() as f64),
    })
}

/// `Σ p_ij ln(p_ij / (p_i p_j))`
fn of_pair(x: &[u8], y: &[u8]) -> f64 {
    let mut counts = [[0u32; BINS]; BINS];
    for (x, y) in x.iter().zip(y) {
        counts[usize::from(*x)][usize::from(*y)] += 1;
    }
    let total = x.len() as f64;
    let row = |i: usize| f64::from(counts[i].iter().sum::<u32>());
    let column = |j: usize| f64::from(counts.iter().map(|r| r[j]).sum::<u32>());
    let rows: [f64; BINS] = std::array::from_fn(row);
    let columns: [f64; BINS] = std::array::from_fn(column);
    let mut sum = 0.0;
    for (i, row) in counts.iter().enumerate() {
        for (j, n) in row.iter().enumerate().filter(|(_, n)| **n > 0) {
            let n = f64::from(*n);
            sum += n / total * (n * total / (rows[i] * columns[j])).ln();
        }
    }
    sum.max(0.0)
}

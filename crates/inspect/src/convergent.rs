//! Convergent learning: which units of two networks correspond.
//!
//! For whom: who trained a network twice, or has two layers, checkpoints or models, and asks
//! what both have learned: which unit of one is which of the other, which is only a sum
//! of a few, and which groups span the same space.
//!
//! Source: Yixuan Li, Jason Yosinski, Jeff Clune, Hod Lipson, John Hopcroft, Convergent
//! Learning: Do different neural networks learn the same representations? (ICLR 2016). With
//! activations `x_i` of one network and `y_j` of the other on the same inputs:
//!
//! | question | answer |
//! |---|---|
//! | one to one | correlation `C_ij = E[(x_i - μ_i)(y_j - μ_j)] / (σ_i σ_j)`; for each unit the best of the other ([`greedy`]); the assignment of greatest sum ([`matching`]) |
//! | beyond lines | mutual information of histograms ([`mutual_information`]) |
//! | few to one | lasso of each unit on all of the other ([`sparse_prediction`]) |
//! | many to many | spectral clusters of all units of both ([`clusters`]) |
//!
//! What chance alone gives is told by the same numbers with the samples of one network
//! [shuffled](Activations::shuffled). Units that never change have no correlation; they are
//! left out and [named](Units::dead).
//!
//! Shapes: activations `[samples, units]`; maps of a convolution become samples
//! ([`Activations::from_maps`]). Cost: `samples (n_a + n_b)²` for correlations in one pass by
//! blocks with sums in `f64`; `n³` for the assignment and the clusters.

mod assignment;
mod clusters;
mod information;
mod prediction;

use faer::{Mat, MatRef};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use serde::Serialize;

use crate::error::check_rows;
use crate::{InspectError, algebra};

pub use assignment::assign;
pub use clusters::{Cluster, clusters};
pub use information::{BINS, Information, mutual_information};
pub use prediction::{Prediction, sparse_prediction};

/// Samples that are taken together.
const BLOCK: usize = 1024;

/// What units of a network did, one row for each sample.
#[derive(Debug, Clone, PartialEq)]
pub struct Activations {
    values: Vec<f32>,
    width: usize,
}

impl Activations {
    /// Rows of `width` units.
    ///
    /// # Errors
    /// When there are fewer than 3 samples, or numbers that are not finite. `what` names the
    /// input then.
    pub fn new(what: &str, values: Vec<f32>, width: usize) -> Result<Self, InspectError> {
        let samples = check_rows(what, &values, width)?;
        if samples < 3 {
            return Err(InspectError::settings(format!(
                "{what}: {samples} samples tell nothing of correlations; give at least 3"
            )));
        }
        Ok(Self { values, width })
    }

    /// Maps of a convolution: each row holds `units` maps, one after the other. Each position
    /// becomes a sample, or with `pool` each map its mean.
    ///
    /// # Errors
    /// As [`new`](Self::new), and when rows are no whole maps.
    pub fn from_maps(
        what: &str,
        values: &[f32],
        width: usize,
        units: usize,
        pool: bool,
    ) -> Result<Self, InspectError> {
        check_rows(what, values, width)?;
        if units == 0 || !width.is_multiple_of(units) {
            return Err(InspectError::settings(format!(
                "{what}: rows of {width} numbers are no {units} maps of one size"
            )));
        }
        let places = width / units;
        let mut out = Vec::with_capacity(values.len());
        for row in values.chunks_exact(width) {
            if pool {
                let maps = row.chunks_exact(places);
                out.extend(maps.map(|map| map.iter().sum::<f32>() / places as f32));
            } else {
                let place = |p: usize| (0..units).map(move |u| row[u * places + p]);
                out.extend((0..places).flat_map(place));
            }
        }
        Self::new(what, out, units)
    }

    /// Number of samples.
    pub fn samples(&self) -> usize {
        self.values.len() / self.width
    }

    /// Number of units.
    pub fn width(&self) -> usize {
        self.width
    }

    /// All numbers, `[samples, width]`.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The same rows in another order: what the other network did on other inputs.
    pub fn shuffled(&self, seed: u64) -> Self {
        let mut rows: Vec<&[f32]> = self.values.chunks_exact(self.width).collect();
        rows.shuffle(&mut StdRng::seed_from_u64(seed));
        Self {
            values: rows.concat(),
            width: self.width,
        }
    }

    /// Rows `from..to`.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn rows(&self, from: usize, to: usize) -> &[f32] {
        &self.values[from * self.width..to * self.width]
    }

    fn column(&self, unit: usize) -> impl Iterator<Item = f32> {
        self.values[unit..].iter().step_by(self.width).copied()
    }
}

/// The units of one network.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Units {
    /// Units that change, in order: what rows and columns of correlations stand for.
    pub live: Vec<usize>,
    /// Units that never change.
    pub dead: Vec<usize>,
    /// Means of the units in `live`.
    pub mean: Vec<f64>,
    /// Standard deviations of the units in `live`.
    pub deviation: Vec<f64>,
}

/// Correlations of the units of two networks.
#[derive(Debug, Clone, PartialEq)]
pub struct Correlations {
    /// The units of the first.
    pub a: Units,
    /// The units of the second.
    pub b: Units,
    /// Of all units that change, those of `a` and then those of `b`: symmetric.
    pub all: Mat<f64>,
}

impl Correlations {
    /// `[live of a, live of b]`
    pub fn between(&self) -> MatRef<'_, f64> {
        let (n, m) = (self.a.live.len(), self.b.live.len());
        self.all.submatrix(0, n, n, m)
    }
}

/// Correlations of all units, in one pass.
///
/// # Errors
/// When the networks saw different numbers of samples, or one has no unit that changes.
pub fn correlations(a: &Activations, b: &Activations) -> Result<Correlations, InspectError> {
    same_samples(a, b)?;
    let (n, m, samples) = (a.width, b.width, a.samples());
    let row = |i: usize| a.rows(i, i + 1).iter().chain(b.rows(i, i + 1));
    // Sums of what lies above the mean of the first block: no digits are lost to large means.
    let first = samples.min(BLOCK);
    let mut shift = vec![0.0; n + m];
    for i in 0..first {
        let parts = shift.iter_mut().zip(row(i));
        parts.for_each(|(s, x)| *s += f64::from(*x) / first as f64);
    }
    let (mut sums, mut products) = (vec![0.0; n + m], Mat::<f64>::zeros(n + m, n + m));
    for from in (0..samples).step_by(BLOCK) {
        let rows = (samples - from).min(BLOCK);
        let mut block = Mat::<f64>::zeros(rows, n + m);
        for i in 0..rows {
            for (j, x) in row(from + i).enumerate() {
                let x = f64::from(*x) - shift[j];
                block[(i, j)] = x;
                sums[j] += x;
            }
        }
        algebra::add_products(&mut products, block.as_ref(), block.as_ref());
    }
    let count = samples as f64;
    let covariance = |i: usize, j: usize| (products[(i, j)] - sums[i] * sums[j] / count) / count;
    let means: Vec<f64> = (0..n + m).map(|j| shift[j] + sums[j] / count).collect();
    let changes = |j: usize| {
        let variance = covariance(j, j);
        variance > 1e-12 * (variance + means[j] * means[j]) && variance > 0.0
    };
    let units = |range: std::ops::Range<usize>| {
        let from = range.start;
        let (live, dead): (Vec<usize>, Vec<usize>) = range.partition(|j| changes(*j));
        Units {
            mean: live.iter().map(|&j| means[j]).collect(),
            deviation: live.iter().map(|&j| covariance(j, j).sqrt()).collect(),
            live: live.iter().map(|j| j - from).collect(),
            dead: dead.iter().map(|j| j - from).collect(),
        }
    };
    let (a, b) = (units(0..n), units(n..n + m));
    for (which, units) in [("first", &a), ("second", &b)] {
        if units.live.is_empty() {
            return Err(InspectError::settings(format!(
                "no unit of the {which} network changes from sample to sample"
            )));
        }
    }
    let places: Vec<usize> = a
        .live
        .iter()
        .copied()
        .chain(b.live.iter().map(|j| n + j))
        .collect();
    let deviations: Vec<f64> = a.deviation.iter().chain(&b.deviation).copied().collect();
    let all = Mat::from_fn(places.len(), places.len(), |i, j| match i == j {
        true => 1.0,
        false => {
            (covariance(places[i], places[j]) / (deviations[i] * deviations[j])).clamp(-1.0, 1.0)
        }
    });
    Ok(Correlations { a, b, all })
}

fn same_samples(a: &Activations, b: &Activations) -> Result<(), InspectError> {
    if a.samples() == b.samples() {
        return Ok(());
    }
    Err(InspectError::Disagree {
        what:
            "both networks must have seen the same samples (where maps differ in size, take their \
               means with --pool)"
                .to_owned(),
        left: a.samples(),
        right: b.samples(),
    })
}

/// A unit of the first network and its partner in the second.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Pair {
    /// Place in [`Units::live`] of the first.
    pub unit: usize,
    /// Place in [`Units::live`] of the second.
    pub partner: usize,
    /// How they go together: correlation, or mutual information.
    pub score: f64,
}

/// For each row of `scores` the best column; several may have the same.
pub fn greedy(scores: MatRef<'_, f64>) -> Vec<Pair> {
    let best = |unit: usize| {
        let columns = 0..scores.ncols();
        let partner = columns.reduce(|best, j| match scores[(unit, j)] > scores[(unit, best)] {
            true => j,
            false => best,
        })?;
        Some(Pair {
            unit,
            partner,
            score: scores[(unit, partner)],
        })
    };
    (0..scores.nrows()).filter_map(best).collect()
}

/// Pairs of the greatest sum in which no unit is twice; as many as the smaller network
/// has units.
pub fn matching(scores: MatRef<'_, f64>) -> Vec<Pair> {
    let pairs = assign(scores).into_iter().enumerate();
    let pair = |(unit, partner): (usize, Option<usize>)| {
        let partner = partner?;
        Some(Pair {
            unit,
            partner,
            score: scores[(unit, partner)],
        })
    };
    pairs.filter_map(pair).collect()
}

/// Mean score of pairs.
pub fn mean_score(pairs: &[Pair]) -> f64 {
    pairs.iter().map(|p| p.score).sum::<f64>() / pairs.len().max(1) as f64
}

/// How pairs stand.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct OneToOne {
    /// Mean over units of the best correlation.
    pub greedy: f64,
    /// Mean correlation of the assignment.
    pub matching: f64,
    /// Share of units whose partner is the same in both.
    pub same: f64,
}

impl OneToOne {
    /// Of scores `[units of a, units of b]`.
    pub fn of(scores: MatRef<'_, f64>) -> Self {
        let (greedy, matching) = (greedy(scores), matching(scores));
        let same = |p: &&Pair| greedy[p.unit].partner == p.partner;
        let count = matching.iter().filter(same).count();
        Self {
            same: count as f64 / matching.len().max(1) as f64,
            greedy: mean_score(&greedy),
            matching: mean_score(&matching),
        }
    }
}

#[cfg(test)]
mod tests;

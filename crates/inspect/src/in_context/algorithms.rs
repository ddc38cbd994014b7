//! Which algorithm a model runs when it learns in context.
//!
//! For whom: who wants to know what a sequence model does with examples in its prompt: does
//! it predict like least squares, ridge regression, gradient descent or neighbours, and do its
//! hidden states hold the weights that these would find?
//!
//! Source: Ekin Akyürek, Dale Schuurmans, Jacob Andreas, Tengyu Ma, Denny Zhou, What learning
//! algorithm is in-context learning? Investigations with linear models (ICLR 2023). Sequences are
//! `x_1, y_1, x_2, y_2, ...` with `y = <w, x> + ε`; before each `y` the pairs so far give
//!
//! | predictor | weights |
//! |---|---|
//! | least squares | `min ‖X w - y‖²`, of least length while pairs are few |
//! | ridge `α` | `(XᵀX + α I)⁻¹ Xᵀ y`; the Bayes answer at `α = σ² / τ²` |
//! | constant covariance | `Xᵀ y / i` |
//! | stochastic gradient descent | `w ← w - rate clamp(-2 x (y - <w, x>), ±20)`, one pass |
//! | growing gradient descent | after each pair one step on the sum over all so far |
//! | gradient steps | a number of steps on the mean over all, from 0 |
//! | neighbours | mean of the k nearest `y`, even or by inverse distance |
//!
//! Two predictors are compared by the squared difference of what they predict ([`spd`]) and of
//! the weights that their predictions imply ([`implied_weights`]). A transformer to compare is
//! in [`learner`](super::learner), transformers whose weights are written down in
//! [`constructed`](super::constructed), probes of hidden states in [`probe`](super::probe).
//!
//! Cost: all prefixes of a sequence together `n d²`, by updates of rank one; neighbours
//! `n² (d + ln n)`.

use std::fmt;
use std::str::FromStr;

use faer::Mat;
use serde::Serialize;

use super::{Sequence, dot};
use crate::{InspectError, algebra};

/// What no gradient of [`Predictor::Sgd`] and [`Predictor::Gd`] exceeds.
const CLAMP: f64 = 20.0;

/// A predictor that is refitted before every `y`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub enum Predictor {
    /// Least squares of least length.
    LeastSquares,
    /// Ridge regression with this penalty.
    Ridge(f64),
    /// `Xᵀ y / i`
    ConstantCovariance,
    /// One pass over the pairs at this rate.
    Sgd(f64),
    /// One step after each pair, on the sum over all pairs so far.
    Gd(f64),
    /// So many steps of this rate on the mean over all pairs so far, from 0.
    Steps(u32, f64),
    /// The nearest so many, even.
    Neighbours(usize),
    /// The nearest so many, by inverse distance.
    NearNeighbours(usize),
}

impl fmt::Display for Predictor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LeastSquares => f.write_str("ols"),
            Self::Ridge(alpha) => write!(f, "ridge:{alpha}"),
            Self::ConstantCovariance => f.write_str("constant"),
            Self::Sgd(rate) => write!(f, "sgd:{rate}"),
            Self::Gd(rate) => write!(f, "gd:{rate}"),
            Self::Steps(steps, rate) => write!(f, "steps:{steps}x{rate}"),
            Self::Neighbours(k) => write!(f, "knn:{k}"),
            Self::NearNeighbours(k) => write!(f, "knn-near:{k}"),
        }
    }
}

impl FromStr for Predictor {
    type Err = InspectError;

    fn from_str(text: &str) -> Result<Self, InspectError> {
        let (name, value) = text.split_once(':').unwrap_or((text, ""));
        let number = || {
            value
                .parse()
                .ok()
                .filter(|x: &f64| *x >= 0.0 && x.is_finite())
        };
        let whole = || value.parse().ok().filter(|k: &usize| *k > 0);
        let found = match name {
            "ols" if value.is_empty() => Some(Self::LeastSquares),
            "constant" if value.is_empty() => Some(Self::ConstantCovariance),
            "ridge" => number().map(Self::Ridge),
            "sgd" => number().map(Self::Sgd),
            "gd" => number().map(Self::Gd),
            "steps" => value.split_once('x').and_then(|(steps, rate)| {
                let rate = rate.parse().ok().filter(|x: &f64| x.is_finite())?;
                Some(Self::Steps(steps.parse().ok()?, rate))
            }),
            "knn" => whole().map(Self::Neighbours),
            "knn-near" => whole().map(Self::NearNeighbours),
            _ => None,
        };
        found.ok_or_else(|| {
            InspectError::settings(format!(
                "'{text}' is no predictor; known are ols, ridge:ALPHA, constant, sgd:RATE, gd:RATE, \
                 steps:COUNTxRATE, knn:K and knn-near:K"
            ))
        })
    }
}

impl Predictor {
    /// What is predicted for each `y` of a sequence from the pairs before it; 0 for the first.
    pub fn predict(&self, sequence: &Sequence) -> Vec<f64> {
        match self {
            Self::Neighbours(k) => neighbours(sequence, *k, false),
            Self::NearNeighbours(k) => neighbours(sequence, *k, true),
            _ => {
                let x = sequence.x.chunks_exact(sequence.d);
                self.weights(sequence)
                    .iter()
                    .zip(x)
                    .map(|(w, x)| dot(w, x))
                    .collect()
            }
        }
    }

    /// The weights before each pair, from those before it; empty for neighbours, which have none.
    pub fn weights(&self, sequence: &Sequence) -> Vec<Vec<f64>> {
        match *self {
            Self::LeastSquares => recursive(sequence, LeastSquares::new(sequence.d)),
            Self::Ridge(0.0) => recursive(sequence, LeastSquares::new(sequence.d)),
            Self::Ridge(alpha) => recursive(sequence, Ridge::new(sequence.d, alpha)),
            Self::Sgd(rate) => recursive(
                sequence,
                Sgd {
                    rate,
                    w: vec![0.0; sequence.d],
                },
            ),
            Self::ConstantCovariance => with_sums(sequence, |sums, w| {
                let count = sums.count as f64;
                w.iter_mut().zip(&sums.xy).for_each(|(w, b)| *w = b / count);
            }),
            Self::Gd(rate) => with_sums(sequence, |sums, w| {
                let slopes = sums.slopes(w);
                let step = |(w, g): (&mut f64, f64)| *w -= rate * g.clamp(-CLAMP, CLAMP);
                w.iter_mut().zip(slopes).for_each(step);
            }),
            Self::Steps(steps, rate) => with_sums(sequence, |sums, w| {
                w.fill(0.0);
                for _ in 0..steps {
                    let slopes = sums.slopes(w);
                    let step = |(w, g): (&mut f64, f64)| *w -= rate * g / sums.count as f64;
                    w.iter_mut().zip(slopes).for_each(step);
                }
            }),
            Self::Neighbours(_) | Self::NearNeighbours(_) => Vec::new(),
        }
    }
}

/// Takes pairs one after the other.
trait Recursive {
    fn add(&mut self, x: &[f64], y: f64);
    fn w(&self) -> &[f64];
}

fn recursive(sequence: &Sequence, mut learner: impl Recursive) -> Vec<Vec<f64>> {
    let mut out = Vec::new();
    for (x, y) in sequence.pairs() {
        out.push(learner.w().to_vec());
        learner.add(x, y);
    }
    out
}

/// Sums over the pairs so far.
struct Sums {
    count: usize,
    d: usize,
    xx: Vec<f64>,
    xy: Vec<f64>,
}

impl Sums {
    /// The gradient of `‖X w - y‖²`.
    fn slopes(&self, w: &[f64]) -> Vec<f64> {
        let rows = self.xx.chunks_exact(self.d).zip(&self.xy);
        rows.map(|(row, b)| 2.0 * (dot(row, w) - b)).collect()
    }
}

fn with_sums(sequence: &Sequence, mut step: impl FnMut(&Sums, &mut [f64])) -> Vec<Vec<f64>> {
    let d = sequence.d;
    let mut sums = Sums {
        count: 0,
        d,
        xx: vec![0.0; d * d],
        xy: vec![0.0; d],
    };
    let (mut w, mut out) = (vec![0.0; d], Vec::new());
    for (x, y) in sequence.pairs() {
        out.push(w.clone());
        sums.count += 1;
        for i in 0..d {
            sums.xy[i] += x[i] * y;
            for j in 0..d {
                sums.xx[i * d + j] += x[i] * x[j];
            }
        }
        step(&sums, &mut w);
    }
    out
}

struct Sgd {
    rate: f64,
    w: Vec<f64>,
}

impl Recursive for Sgd {
    fn add(&mut self, x: &[f64], y: f64) {
        let rest = y - dot(&self.w, x);
        for (w, x) in self.w.iter_mut().zip(x) {
            *w -= self.rate * (-2.0 * x * rest).clamp(-CLAMP, CLAMP);
        }
    }

    fn w(&self) -> &[f64] {
        &self.w
    }
}

/// `m x` of a square matrix.
fn times(m: &[f64], x: &[f64]) -> Vec<f64> {
    m.chunks_exact(x.len()).map(|row| dot(row, x)).collect()
}

/// `m += factor · a bᵀ`
fn add_outer(m: &mut [f64], factor: f64, a: &[f64], b: &[f64]) {
    for (row, a) in m.chunks_exact_mut(b.len()).zip(a) {
        row.iter_mut()
            .zip(b)
            .for_each(|(m, b)| *m += factor * a * b);
    }
}

fn identity(d: usize, value: f64) -> Vec<f64> {
    (0..d * d)
        .map(|i| if i % (d + 1) == 0 { value } else { 0.0 })
        .collect()
}

/// The inverse of `XᵀX + αI` by Sherman and Morrison.
struct Ridge {
    inverse: Vec<f64>,
    w: Vec<f64>,
}

impl Ridge {
    fn new(d: usize, alpha: f64) -> Self {
        Self {
            inverse: identity(d, 1.0 / alpha),
            w: vec![0.0; d],
        }
    }
}

impl Recursive for Ridge {
    fn add(&mut self, x: &[f64], y: f64) {
        let u = times(&self.inverse, x);
        let divisor = 1.0 + dot(x, &u);
        let rest = y - dot(&self.w, x);
        add_outer(&mut self.inverse, -1.0 / divisor, &u, &u);
        self.w
            .iter_mut()
            .zip(&u)
            .for_each(|(w, u)| *w += u * rest / divisor);
    }

    fn w(&self) -> &[f64] {
        &self.w
    }
}

/// The pseudo-inverse of `XᵀX`, and the projection on what no `x` has reached yet (Albert and
/// Sittler 1966): the solution has least length at every step.
struct LeastSquares {
    pseudo: Vec<f64>,
    free: Vec<f64>,
    /// Directions that some `x` has reached.
    rank: usize,
    w: Vec<f64>,
}

impl LeastSquares {
    fn new(d: usize) -> Self {
        Self {
            pseudo: vec![0.0; d * d],
            free: identity(d, 1.0),
            rank: 0,
            w: vec![0.0; d],
        }
    }
}

impl Recursive for LeastSquares {
    fn add(&mut self, x: &[f64], y: f64) {
        let new = times(&self.free, x);
        let size = dot(x, &new);
        let u = times(&self.pseudo, x);
        let inside = 1.0 + dot(x, &u);
        let rest = y - dot(&self.w, x);
        // With all directions reached, what is left in `free` is rounding.
        let reached = self.rank == x.len() || size <= 1e-10 * dot(x, x);
        let gain: Vec<f64> = if !reached {
            self.rank += 1;
            let gain: Vec<f64> = new.iter().map(|x| x / size).collect();
            add_outer(&mut self.pseudo, -1.0, &u, &gain);
            add_outer(&mut self.pseudo, -1.0, &gain, &u);
            add_outer(&mut self.pseudo, inside, &gain, &gain);
            add_outer(&mut self.free, -1.0 / size, &new, &new);
            gain
        } else {
            add_outer(&mut self.pseudo, -1.0 / inside, &u, &u);
            u.iter().map(|x| x / inside).collect()
        };
        self.w
            .iter_mut()
            .zip(gain)
            .for_each(|(w, g)| *w += g * rest);
    }

    fn w(&self) -> &[f64] {
        &self.w
    }
}

fn neighbours(sequence: &Sequence, k: usize, near: bool) -> Vec<f64> {
    let pairs: Vec<(&[f64], f64)> = sequence.pairs().collect();
    let of = |i: usize| {
        let (query, _) = pairs[i];
        let distance = |x: &[f64]| -> f64 {
            x.iter()
                .zip(query)
                .map(|(a, b)| (a - b).powi(2))
                .sum::<f64>()
                .sqrt()
        };
        let mut found: Vec<(f64, f64)> =
            pairs[..i].iter().map(|(x, y)| (distance(x), *y)).collect();
        found.sort_by(|a, b| a.0.total_cmp(&b.0));
        found.truncate(k);
        let at_hand = found.first().is_some_and(|f| f.0 == 0.0);
        let weight = |d: f64| match (near, at_hand) {
            (false, _) => 1.0,
            (true, true) => f64::from(u8::from(d == 0.0)),
            (true, false) => 1.0 / d,
        };
        let total: f64 = found.iter().map(|f| weight(f.0)).sum();
        let sum: f64 = found.iter().map(|f| weight(f.0) * f.1).sum();
        if total > 0.0 { sum / total } else { 0.0 }
    };
    (0..pairs.len()).map(of).collect()
}

/// For each place in the sequence the mean squared difference of two predictors (SPD), or of
/// predictions and truth. Both hold one list per sequence.
///
/// # Panics
/// When the lists have other lengths.
pub fn spd(a: &[Vec<f64>], b: &[Vec<f64>]) -> Vec<f64> {
    assert_eq!(a.len(), b.len(), "sequences of both predictors");
    let places = a.first().map_or(0, Vec::len);
    let at = |i: usize| {
        a.iter()
            .zip(b)
            .map(|(a, b)| (a[i] - b[i]).powi(2))
            .sum::<f64>()
    };
    (0..places).map(|i| at(i) / a.len() as f64).collect()
}

/// Weights that predictions imply, with the share of their variance that a line explains.
#[derive(Debug, Clone, PartialEq)]
pub struct Implied {
    /// The weights.
    pub w: Vec<f64>,
    /// What part of the variance of the predictions follows from them.
    pub r2: f64,
}

/// Fits a line with intercept to what is predicted for probes `[count, d]` after one context.
///
/// # Errors
/// When probes are not more than their numbers.
pub fn implied_weights(
    probes: &[f64],
    d: usize,
    predictions: &[f64],
) -> Result<Implied, InspectError> {
    let count = predictions.len();
    if count < d + 2 || probes.len() != count * d {
        return Err(InspectError::settings(format!(
            "{count} probes of {d} numbers do not tell {d} weights and an intercept; give at least {}",
            d + 2
        )));
    }
    let a = Mat::from_fn(
        count,
        d + 1,
        |i, j| if j < d { probes[i * d + j] } else { 1.0 },
    );
    let b = Mat::from_fn(count, 1, |i, _| predictions[i]);
    let w = algebra::least_squares(a.as_ref(), b.as_ref())?;
    let rest = &a * &w - &b;
    let mean = predictions.iter().sum::<f64>() / count as f64;
    let spread: f64 = predictions.iter().map(|p| (p - mean).powi(2)).sum();
    Ok(Implied {
        w: (0..d).map(|j| w[(j, 0)]).collect(),
        r2: 1.0 - rest.squared_norm_l2() / spread.max(1e-300),
    })
}

/// How far a model's predictions lie from those of each predictor.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// Mean squared error of the model, by the number of pairs before (from 0).
    pub model: Vec<f64>,
    /// The predictors, the nearest first.
    pub predictors: Vec<Compared>,
    /// Variance of the targets.
    pub variance: f64,
}

/// One predictor beside a model.
#[derive(Debug, Clone, Serialize)]
pub struct Compared {
    /// Its name, as it is typed.
    pub name: String,
    /// Mean squared error, by the number of pairs before.
    pub mse: Vec<f64>,
    /// Mean squared difference from the model, by the number of pairs before.
    pub spd: Vec<f64>,
    /// Mean of `spd` over all places but the first, where nothing is known.
    pub mean_spd: f64,
}

/// Sets a model's predictions (one list per sequence) beside those of predictors.
///
/// # Errors
/// When there are no sequences, or the predictions do not fit them.
pub fn compare(
    sequences: &[Sequence],
    model: &[Vec<f64>],
    predictors: &[Predictor],
) -> Result<Comparison, InspectError> {
    if sequences.is_empty() {
        return Err(InspectError::Empty {
            what: "sequences".to_owned(),
        });
    }
    let fits = model
        .iter()
        .zip(sequences)
        .all(|(m, s)| m.len() == s.y.len());
    if model.len() != sequences.len() || !fits {
        return Err(InspectError::Disagree {
            what: "predictions and sequences".to_owned(),
            left: model.len(),
            right: sequences.len(),
        });
    }
    let truth: Vec<Vec<f64>> = sequences.iter().map(|s| s.y.clone()).collect();
    let all: Vec<f64> = truth.concat();
    let mean = all.iter().sum::<f64>() / all.len() as f64;
    let beside = |p: &Predictor| {
        let told: Vec<Vec<f64>> = sequences.iter().map(|s| p.predict(s)).collect();
        let spd = spd(model, &told);
        let known = &spd[1.min(spd.len() - 1)..];
        Compared {
            name: p.to_string(),
            mse: self::spd(&told, &truth),
            mean_spd: known.iter().sum::<f64>() / known.len() as f64,
            spd,
        }
    };
    let mut predictors: Vec<Compared> = predictors.iter().map(beside).collect();
    predictors.sort_by(|a, b| a.mean_spd.total_cmp(&b.mean_spd));
    Ok(Comparison {
        model: spd(model, &truth),
        predictors,
        variance: all.iter().map(|y| (y - mean).powi(2)).sum::<f64>() / all.len() as f64,
    })
}

#[cfg(test)]
#[path = "algorithms_tests.rs"]
mod tests;

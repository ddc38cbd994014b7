//! What hidden states hold: probes.
//!
//! A probe learns to tell from hidden states what they may hold (the least squares weights,
//! `Xᵀ y`) on some sequences, and is scored on others by the share of variance that it explains.
//! [`linear`] reads one place by ridge regression; [`attended`] is that of Akyürek et al. (2023),
//!
//! `v = FF(sᵀ H)`
//!
//! of the states `H [places, hidden]` of a layer with learned weights `s` of its places and one
//! hidden layer: a model need not keep what it knows at its last place, nor as a line. The same
//! for targets of other sequences tells what chance gives.

use faer::Mat;
use keyfold_kernels::learn::gelu_backward;
use keyfold_kernels::{axpy, dot, gelu};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::Sequence;
use super::algorithms::Predictor;
use super::learner::Learner;
use crate::small_transformer::{Adam, Layout, Linear, warm_cosine};
use crate::{InspectError, algebra};

/// Rows that probes learn from; the last fifth is for scores.
fn learned(n: usize) -> usize {
    n - n / 5
}

fn check(
    states: &[f32],
    hidden: usize,
    targets: &[f64],
    width: usize,
) -> Result<usize, InspectError> {
    let n = crate::error::check_rows("hidden states", states, hidden)?;
    match n < 10 || targets.len() != n * width || width == 0 {
        true => Err(InspectError::settings(format!(
            "a probe needs at least 10 states and a target for each; there are {n} states and {} \
             numbers of targets of {width}",
            targets.len()
        ))),
        false => Ok(n),
    }
}

/// Share of the variance of `targets` (`[n, width]`) that follows linearly from states
/// (`[n, hidden]`), on the last fifth of the rows; at most 1, below 0 where the probe is worse
/// than the mean.
///
/// # Errors
/// When rows do not fit together or are fewer than 10.
pub fn linear(
    states: &[f32],
    hidden: usize,
    targets: &[f64],
    width: usize,
) -> Result<f64, InspectError> {
    let n = check(states, hidden, targets, width)?;
    let learn = learned(n);
    let mean = |column: &dyn Fn(usize) -> f64| (0..learn).map(column).sum::<f64>() / learn as f64;
    let x_mean: Vec<f64> = (0..hidden)
        .map(|j| mean(&|i| f64::from(states[i * hidden + j])))
        .collect();
    let y_mean: Vec<f64> = (0..width)
        .map(|j| mean(&|i| targets[i * width + j]))
        .collect();
    let x = Mat::from_fn(n, hidden, |i, j| {
        f64::from(states[i * hidden + j]) - x_mean[j]
    });
    let y = Mat::from_fn(n, width, |i, j| targets[i * width + j] - y_mean[j]);
    let (x_learn, y_learn) = (x.subrows(0, learn), y.subrows(0, learn));
    let gram = x_learn.transpose() * x_learn;
    let right = x_learn.transpose() * y_learn;
    let trace: f64 = (0..hidden).map(|i| gram[(i, i)]).sum();
    let ridge = 1e-4 * trace / hidden as f64;
    let map = algebra::solve_symmetric(gram.as_ref(), right.as_ref(), ridge)?;
    let (x_held, y_held) = (x.subrows(learn, n - learn), y.subrows(learn, n - learn));
    let rest = x_held * map - y_held;
    Ok(1.0 - rest.squared_norm_l2() / y_held.squared_norm_l2().max(1e-300))
}

/// How an [`attended`] probe is trained; the defaults are the authors' 20 times 100 steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeConfig {
    /// Numbers of the hidden layer.
    pub hidden: usize,
    /// Steps.
    pub steps: usize,
    /// Sequences of a step.
    pub batch_size: usize,
    /// Highest learning rate.
    pub learning_rate: f64,
    /// Seed of weights and batches.
    pub seed: u64,
}

impl Default for ProbeConfig {
    fn default() -> Self {
        Self {
            hidden: 64,
            steps: 2000,
            batch_size: 64,
            learning_rate: 3e-3,
            seed: 0,
        }
    }
}

/// Share of the variance of `targets` (`[n, width]`) that a probe of all places finds in states
/// (`[n, places, hidden]`), on the last fifth of the sequences.
///
/// # Errors
/// When rows do not fit together, are fewer than 10, or a setting is 0.
pub fn attended(
    states: &[f32],
    places: usize,
    hidden: usize,
    targets: &[f64],
    width: usize,
    config: &ProbeConfig,
) -> Result<f64, InspectError> {
    let n = check(states, places * hidden, targets, width)?;
    if config.hidden * config.steps * config.batch_size == 0 {
        return Err(InspectError::settings(
            "a probe's hidden, steps and batch_size must be above 0",
        ));
    }
    let learn = learned(n);
    let (targets, scale) = standard(targets, width, learn);
    let row = |i: usize| &states[i * places * hidden..(i + 1) * places * hidden];
    let target = |i: usize| &targets[i * width..(i + 1) * width];
    let mut rng = StdRng::seed_from_u64(config.seed);
    let mut probe = Attended::new(places, hidden, config.hidden, width, &mut rng);
    let mut adam = Adam::new(probe.weights.len(), (0.9, 0.98), 1e-9);
    for step in 0..config.steps {
        let batch: Vec<usize> = (0..config.batch_size)
            .map(|_| rng.random_range(0..learn))
            .collect();
        let told = probe.forward(batch.iter().map(|i| row(*i)));
        let truth = batch.iter().flat_map(|i| target(*i));
        let share = 2.0 / told.out.len() as f32;
        let d: Vec<f32> = told
            .out
            .iter()
            .zip(truth)
            .map(|(y, t)| share * (y - t))
            .collect();
        let gradient = probe.gradient(&told, &d, batch.iter().map(|i| row(*i)));
        let rate = warm_cosine(step, config.steps, config.learning_rate);
        adam.step(&mut probe.weights, &gradient, rate);
    }
    let told = probe.forward((learn..n).map(row));
    let (mut rest, mut all) = (0.0, 0.0);
    let mean: Vec<f64> = (0..width)
        .map(|j| (learn..n).map(|i| f64::from(target(i)[j])).sum::<f64>() / (n - learn) as f64)
        .collect();
    for (i, told) in (learn..n).zip(told.out.chunks_exact(width)) {
        for j in 0..width {
            let truth = f64::from(target(i)[j]);
            rest += (scale[j] * (f64::from(told[j]) - truth)).powi(2);
            all += (scale[j] * (truth - mean[j])).powi(2);
        }
    }
    Ok(1.0 - rest / all.max(1e-300))
}

/// What a layer of a model holds: shares of variance that probes find.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Held {
    /// Of `Xᵀ y / pairs`, at all places.
    pub moments: f64,
    /// Of the weights of least squares, at all places.
    pub weights: f64,
    /// Of the weights of other sequences: what chance gives.
    pub others: f64,
    /// Of the weights of least squares, by a line from the last place alone.
    pub line: f64,
}

/// What a model holds before its first layer and after each, once it has read `pairs` pairs and
/// the next `x`.
///
/// # Errors
/// As [`Learner::hidden`] and [`attended`].
pub fn layers(
    model: &Learner,
    sequences: &[Sequence],
    pairs: usize,
    config: &ProbeConfig,
) -> Result<Vec<Held>, InspectError> {
    let hidden = model.hidden(sequences, pairs)?;
    let (d, width) = (model.config().task.d, model.config().hidden_size);
    let places = 2 * pairs + 1;
    let of = |p: Predictor| -> Vec<f64> {
        let all = sequences.iter();
        all.flat_map(|s| p.weights(s)[pairs].clone()).collect()
    };
    let moments = of(Predictor::ConstantCovariance);
    let weights = of(Predictor::LeastSquares);
    let mut others = weights.clone();
    others.rotate_left(d);
    let of_layer = |states: Vec<f32>| -> Result<Held, InspectError> {
        let told = |targets: &[f64]| attended(&states, places, width, targets, d, config);
        let rows = states.chunks_exact(places * width);
        let last: Vec<f32> = rows
            .flat_map(|row| &row[(places - 1) * width..])
            .copied()
            .collect();
        Ok(Held {
            moments: told(&moments)?,
            weights: told(&weights)?,
            others: told(&others)?,
            line: linear(&last, width, &weights, d)?,
        })
    };
    // Each probe draws from a generator of its own, so that the order changes nothing.
    hidden.into_par_iter().map(of_layer).collect()
}

/// Targets of mean 0 and variance 1 over the rows to learn from, and what they were divided by.
fn standard(targets: &[f64], width: usize, learn: usize) -> (Vec<f32>, Vec<f64>) {
    let column = |j: usize| targets.iter().skip(j).step_by(width).take(learn);
    let n = learn as f64;
    let mean: Vec<f64> = (0..width).map(|j| column(j).sum::<f64>() / n).collect();
    let scale: Vec<f64> = (0..width)
        .map(|j| {
            let sum: f64 = column(j).map(|t| (t - mean[j]).powi(2)).sum();
            (sum / n).sqrt().max(1e-30)
        })
        .collect();
    let moved = targets.iter().enumerate();
    let moved = moved.map(|(i, t)| ((t - mean[i % width]) / scale[i % width]) as f32);
    (moved.collect(), scale)
}

/// A probe of all places.
struct Attended {
    weights: Vec<f32>,
    places: std::ops::Range<usize>,
    up: Linear,
    down: Linear,
    hidden: usize,
}

/// What a probe tells, and what its gradient needs.
struct Told {
    /// Sums over places, before and after gelu, and what is told.
    sums: Vec<f32>,
    up: Vec<f32>,
    active: Vec<f32>,
    out: Vec<f32>,
}

impl Attended {
    fn new(places: usize, hidden: usize, inner: usize, width: usize, rng: &mut StdRng) -> Self {
        let mut layout = Layout::default();
        let range = layout.take(places);
        let up = Linear::new(&mut layout, hidden, inner);
        let down = Linear::new(&mut layout, inner, width);
        let mut weights = layout.zeros();
        weights[range.clone()].fill(1.0 / places as f32);
        up.init(&mut weights, rng);
        down.init(&mut weights, rng);
        Self {
            weights,
            places: range,
            up,
            down,
            hidden,
        }
    }

    fn forward<'a>(&self, rows: impl ExactSizeIterator<Item = &'a [f32]>) -> Told {
        let mut sums = vec![0.0; rows.len() * self.hidden];
        for (sum, row) in sums.chunks_exact_mut(self.hidden).zip(rows) {
            let places = row.chunks_exact(self.hidden);
            for (s, state) in self.weights[self.places.clone()].iter().zip(places) {
                axpy(sum, *s, state);
            }
        }
        let up = self.up.forward(&self.weights, &sums);
        let mut active = up.clone();
        gelu(&mut active);
        let out = self.down.forward(&self.weights, &active);
        Told {
            sums,
            up,
            active,
            out,
        }
    }

    fn gradient<'a>(
        &self,
        told: &Told,
        d: &[f32],
        rows: impl ExactSizeIterator<Item = &'a [f32]>,
    ) -> Vec<f32> {
        let mut gradient = vec![0.0; self.weights.len()];
        let mut d = (self.down).backward(&self.weights, &told.active, d, &mut gradient);
        gelu_backward(&told.up, &mut d);
        let d = self
            .up
            .backward(&self.weights, &told.sums, &d, &mut gradient);
        let of_places = &mut gradient[self.places.clone()];
        for (d, row) in d.chunks_exact(self.hidden).zip(rows) {
            let places = row.chunks_exact(self.hidden);
            for (g, state) in of_places.iter_mut().zip(places) {
                *g += dot(d, state);
            }
        }
        gradient
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;
    use crate::random::normal;

    #[test]
    fn a_probe_finds_what_is_there_and_nothing_else() {
        let mut rng = StdRng::seed_from_u64(1);
        let states: Vec<f32> = (0..500 * 6).map(|_| normal(&mut rng) as f32).collect();
        let sums = states
            .chunks_exact(6)
            .flat_map(|s| [f64::from(s[0] - 2.0 * s[3]) + 5.0, f64::from(s[1])]);
        let held: Vec<f64> = sums.collect();
        assert!(linear(&states, 6, &held, 2).unwrap() > 0.999);
        let other: Vec<f64> = (0..1000).map(|_| normal(&mut rng)).collect();
        assert!(linear(&states, 6, &other, 2).unwrap() < 0.1);
    }

    #[test]
    fn a_probe_of_all_places_finds_a_product_that_stands_at_one_of_them() {
        let mut rng = StdRng::seed_from_u64(2);
        let (n, places, hidden) = (2000, 3, 4);
        let states: Vec<f32> = (0..n * places * hidden)
            .map(|_| normal(&mut rng) as f32)
            .collect();
        // Of the second place alone, and no line.
        let product = |s: &[f32]| f64::from(s[hidden] * s[hidden + 1]);
        let held: Vec<f64> = states.chunks_exact(places * hidden).map(product).collect();
        let config = ProbeConfig {
            hidden: 32,
            steps: 1500,
            learning_rate: 1e-2,
            ..ProbeConfig::default()
        };
        let found = attended(&states, places, hidden, &held, 1, &config).unwrap();
        assert!(found > 0.8, "{found}");
        let line = linear(&states, places * hidden, &held, 1).unwrap();
        assert!(line < 0.1, "{line}");
        let mut other = held;
        other.rotate_left(1);
        let found = attended(&states, places, hidden, &other, 1, &config).unwrap();
        assert!(found < 0.1, "{found}");
        let bad = ProbeConfig { steps: 0, ..config };
        assert!(attended(&states, places, hidden, &other, 1, &bad).is_err());
        assert!(attended(&states, places, hidden, &other[1..], 1, &config).is_err());
    }
}

//! Random-feature attention: a learner for functions of a vector and a set of vectors.
//!
//! For whom: who has examples of a query, a set of any size and a number, and wants a
//! predictor that does not care for the order of the set, needs few examples and no
//! training loop; and who wants to see what one layer of attention can learn.
//!
//! Source: Hengyu Fu, Tianyu Guo, Yu Bai, Song Mei, What can a Single Attention Layer Learn? A
//! Study Through the Random Features Lens (NeurIPS 2023). With `x̃ = [x; 1]`, a query `x_0`, a
//! set `x_1 .. x_N` and `M` heads whose `W_m` are drawn once and never change:
//!
//! `f(x) = Σ_m <v_m, φ_m(x)>`, `φ_m(x) = 1/N Σ_i relu(x̃_0ᵀ W_m x̃_i) x̃_i`
//!
//! The entries of `W_m` have variance 1/4, so that scores of vectors of length 1 have
//! variance 1; [biased](RandomFeaturesConfig::biased) heads have the identity as mean, which
//! gives scores the mean `<x_0, x_i>`. What is learned is linear: `v` is a ridge regression of
//! centred targets on features divided by one number, solved in the smaller of primal and dual
//! form, with the penalty of a grid that errs least on examples held out.
//!
//! Shapes: features `[n, M (d + 1)]`. Cost: `M (d+1)² + 2 M N (d+1)` a row; the solution
//! `F² n + F³` or `n² F + n³`.

mod saved;
mod synthetic;

use faer::Mat;
use keyfold_kernels as kernels;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::random::normal;
use crate::{InspectError, algebra};

pub use synthetic::{Target, synthetic};

/// Penalties that are tried, times examples and mean square of a feature.
pub const LAMBDAS: [f64; 4] = [1e-6, 1e-4, 1e-2, 1.0];

/// One example: a query, a set, and what is to be told of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Example {
    /// The query, `[d]`.
    pub q: Vec<f32>,
    /// The set: one or more vectors of `d`.
    pub set: Vec<Vec<f32>>,
    /// The target; not needed to predict.
    #[serde(default)]
    pub y: f64,
}

/// What maps a query and a set to features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Attention with random heads.
    Attention,
    /// A random layer on query and set one after the other, which minds their order: what
    /// attention is compared with.
    Mlp,
}

/// Settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RandomFeaturesConfig {
    /// Attention, or a random layer.
    pub kind: Kind,
    /// Number of heads; a random layer has `heads (d + 1)` neurons.
    pub heads: usize,
    /// Whether the heads have the identity as mean.
    pub biased: bool,
    /// The penalty, times examples and mean square of a feature; none: the best of [`LAMBDAS`].
    pub lambda: Option<f64>,
    /// Share of examples held out to choose the penalty.
    pub held_out: f64,
    /// Bytes that the solution may take.
    pub memory: u64,
    /// Seed of the heads and of what is held out.
    pub seed: u64,
}

impl Default for RandomFeaturesConfig {
    fn default() -> Self {
        Self {
            kind: Kind::Attention,
            heads: 1000,
            biased: false,
            lambda: None,
            held_out: 0.2,
            memory: 4 << 30,
            seed: 0,
        }
    }
}

/// A layer of heads that do not change.
#[derive(Debug, Clone, PartialEq)]
pub struct RandomFeatures {
    config: RandomFeaturesConfig,
    d: usize,
    /// Size that sets must have; 0 where any will do.
    set_size: usize,
    /// `[heads, d + 1, d + 1]` of attention; `[neurons, (N + 1)(d + 1)]` of the random layer.
    weights: Vec<f32>,
}

impl RandomFeatures {
    /// Draws the heads for vectors of `d` numbers; `set_size` is needed by the random layer alone.
    ///
    /// # Errors
    /// When a setting makes no sense, or the heads need more memory than allowed.
    pub fn new(
        config: &RandomFeaturesConfig,
        d: usize,
        set_size: usize,
    ) -> Result<Self, InspectError> {
        if d == 0 || config.heads == 0 {
            return Err(InspectError::settings(
                "random features need vectors of at least one number, and at least one head",
            ));
        }
        let side = d.saturating_add(1);
        let vectors = match config.kind {
            Kind::Attention => 1,
            Kind::Mlp if set_size > 0 => set_size.saturating_add(1),
            Kind::Mlp => {
                return Err(InspectError::settings(
                    "a random layer needs sets of one size, at least 1",
                ));
            }
        };
        let sizes = [side, side, vectors];
        let count = sizes.into_iter().fold(config.heads, usize::saturating_mul);
        if (count as u64).saturating_mul(4) > config.memory {
            return Err(InspectError::settings(format!(
                "{} heads for vectors of {d} numbers need more than {} MiB; take fewer heads, or allow \
                 more",
                config.heads,
                config.memory >> 20
            )));
        }
        let mut rng = StdRng::seed_from_u64(config.seed);
        let (weights, set_size) = match config.kind {
            Kind::Attention => {
                let mean = |i: usize| {
                    let (row, column) = (i / side % side, i % side);
                    config.biased && row == column && row < d
                };
                let draw = |i| 0.5 * normal(&mut rng) as f32 + f32::from(u8::from(mean(i)));
                ((0..count).map(draw).collect(), 0)
            }
            Kind::Mlp => {
                let scale = (0.5 / vectors as f64).sqrt();
                let draw = |_| (scale * normal(&mut rng)) as f32;
                ((0..count).map(draw).collect(), set_size)
            }
        };
        Ok(Self {
            config: config.clone(),
            d,
            set_size,
            weights,
        })
    }

    /// Number of features.
    pub fn len(&self) -> usize {
        self.config.heads * (self.d + 1)
    }

    /// Never true.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The numbers of all heads, `[heads, d + 1, d + 1]` of attention.
    pub fn weights(&self) -> &[f32] {
        &self.weights
    }

    /// Puts other heads in place of those drawn.
    ///
    /// # Panics
    /// When they are not as many.
    #[cfg(test)]
    pub(crate) fn set_weights(&mut self, weights: Vec<f32>) {
        assert_eq!(weights.len(), self.weights.len(), "numbers of the heads");
        self.weights = weights;
    }

    /// Refuses examples that do not fit.
    fn check(&self, examples: &[Example]) -> Result<(), InspectError> {
        if examples.is_empty() {
            return Err(InspectError::Empty {
                what: "examples".to_owned(),
            });
        }
        for (row, example) in (1..).zip(examples) {
            let vectors = || std::iter::once(&example.q).chain(&example.set);
            if example.set.is_empty() {
                return Err(InspectError::settings(format!(
                    "example {row} has an empty set; leave it out"
                )));
            }
            if let Some(other) = vectors().find(|v| v.len() != self.d) {
                return Err(InspectError::settings(format!(
                    "example {row} has a vector of {} numbers; the query of the first has {}",
                    other.len(),
                    self.d
                )));
            }
            let finite = vectors().flatten().all(|x| x.is_finite()) && example.y.is_finite();
            if !finite {
                return Err(InspectError::settings(format!(
                    "example {row} holds a number that is not finite; mend it or leave it out"
                )));
            }
            if self.set_size != 0 && example.set.len() != self.set_size {
                return Err(InspectError::settings(format!(
                    "example {row} has a set of {}; a random layer needs sets of {}",
                    example.set.len(),
                    self.set_size
                )));
            }
        }
        Ok(())
    }

    /// Features of examples, `[n, len]`.
    ///
    /// # Errors
    /// When an example has an empty set, vectors of another width, or numbers that are not
    /// finite.
    pub fn features(&self, examples: &[Example]) -> Result<Vec<f32>, InspectError> {
        self.check(examples)?;
        let mut out = vec![0.0; examples.len() * self.len()];
        let rows = out.par_chunks_mut(self.len()).zip(examples);
        match self.config.kind {
            Kind::Attention => rows.for_each(|(out, example)| self.attend(example, out)),
            Kind::Mlp => rows.for_each(|(out, example)| {
                let vectors = std::iter::once(&example.q).chain(&example.set);
                let input: Vec<f32> = vectors.flat_map(|v| with_one(v)).collect();
                let weights = self.weights.chunks_exact(input.len());
                let neurons = out.iter_mut().zip(weights);
                neurons.for_each(|(out, w)| *out = kernels::dot(w, &input).max(0.0));
            }),
        }
        Ok(out)
    }

    /// `1/N Σ_i relu(x̃_0ᵀ W_m x̃_i) x̃_i` of every head.
    fn attend(&self, example: &Example, out: &mut [f32]) {
        let (side, heads, n) = (self.d + 1, self.config.heads, example.set.len());
        let query: Vec<f32> = with_one(&example.q).collect();
        let keys: Vec<f32> = example.set.iter().flat_map(|v| with_one(v)).collect();
        // x̃_0ᵀ W_m of every head: the rows of a head, weighed by the query.
        let mut queries = vec![0.0; heads * side];
        for (w, q) in self
            .weights
            .chunks_exact(side * side)
            .zip(queries.chunks_exact_mut(side))
        {
            for (row, x) in w.chunks_exact(side).zip(&query) {
                kernels::axpy(q, *x, row);
            }
        }
        let mut scores = vec![0.0; heads * n];
        kernels::matmul_nt(&mut scores, &queries, &keys, heads, n, side, 1);
        scores.iter_mut().for_each(|s| *s = s.max(0.0) / n as f32);
        kernels::matmul_nn(out, &scores, &keys, heads, side, n, 1);
    }
}

/// `[x; 1]`
fn with_one(x: &[f32]) -> impl Iterator<Item = f32> + '_ {
    x.iter().copied().chain(std::iter::once(1.0))
}

/// Random features with the weights that were learned.
#[derive(Debug, Clone, PartialEq)]
pub struct RandomFeaturePredictor {
    features: RandomFeatures,
    /// One number by which all features are divided.
    scale: f64,
    /// Mean of the targets.
    mean: f64,
    /// The penalty that was taken, as in [`LAMBDAS`].
    lambda: f64,
    v: Vec<f64>,
}

/// The solution for several penalties at once: `v` of each, of features `[n, f]` and centred
/// targets.
fn ridge(features: &Mat<f64>, y: &[f64], lambdas: &[f64]) -> Result<Vec<Vec<f64>>, InspectError> {
    let (n, f) = (features.nrows(), features.ncols());
    let target = Mat::from_fn(n, 1, |i, _| y[i]);
    let column = |m: Mat<f64>| (0..m.nrows()).map(|i| m[(i, 0)]).collect();
    if f <= n {
        let gram = features.transpose() * features;
        let right = features.transpose() * &target;
        let solve = |l: &f64| algebra::solve_symmetric(gram.as_ref(), right.as_ref(), l * n as f64);
        return lambdas.iter().map(|l| Ok(column(solve(l)?))).collect();
    }
    let gram = features * features.transpose();
    let solve = |l: &f64| algebra::solve_symmetric(gram.as_ref(), target.as_ref(), l * n as f64);
    let primal = |l: &f64| Ok(column(features.transpose() * solve(l)?));
    lambdas.iter().map(primal).collect()
}

impl RandomFeaturePredictor {
    /// Learns from examples.
    ///
    /// # Errors
    /// When examples do not fit together, are fewer than 5, or need more memory than allowed.
    pub fn fit(config: &RandomFeaturesConfig, examples: &[Example]) -> Result<Self, InspectError> {
        let first = examples.first().ok_or_else(|| InspectError::Empty {
            what: "examples".to_owned(),
        })?;
        Self::fit_with(
            RandomFeatures::new(config, first.q.len(), first.set.len())?,
            examples,
        )
    }

    /// [`fit`](Self::fit) with heads that are there already.
    ///
    /// # Errors
    /// As there.
    pub fn fit_with(features: RandomFeatures, examples: &[Example]) -> Result<Self, InspectError> {
        if examples.len() < 5 {
            return Err(InspectError::settings(format!(
                "{} examples are too few to learn from; give at least 5",
                examples.len()
            )));
        }
        let config = &features.config;
        let small = features.len().min(examples.len()) as u64;
        let need = 8 * (examples.len() as u64 * features.len() as u64 + 2 * small * small);
        if need > config.memory {
            return Err(InspectError::settings(format!(
                "{} examples of {} features need {} MiB; take fewer heads or examples, or allow more \
                 (the limit is {} MiB)",
                examples.len(),
                features.len(),
                need >> 20,
                config.memory >> 20
            )));
        }
        let mut x = algebra::matrix(&features.features(examples)?, features.len());
        let count = (x.nrows() * x.ncols()) as f64;
        let power = x.squared_norm_l2() / count;
        let scale = if power > 0.0 { power.sqrt() } else { 1.0 };
        x *= faer::Scale(1.0 / scale);
        let y: Vec<f64> = examples.iter().map(|e| e.y).collect();
        let lambda = match config.lambda {
            Some(lambda) if lambda >= 0.0 && lambda.is_finite() => lambda,
            Some(lambda) => {
                return Err(InspectError::settings(format!(
                    "lambda is {lambda}; it must be 0 or more"
                )));
            }
            None => best_lambda(&x, &y, config)?,
        };
        let mean = y.iter().sum::<f64>() / y.len() as f64;
        let centred: Vec<f64> = y.iter().map(|y| y - mean).collect();
        let v = ridge(&x, &centred, &[lambda])?.pop().unwrap_or_default();
        Ok(Self {
            features,
            scale,
            mean,
            lambda,
            v,
        })
    }

    /// The penalty that was taken, times examples and mean square of a feature.
    pub fn lambda(&self) -> f64 {
        self.lambda
    }

    /// What is told of each example.
    ///
    /// # Errors
    /// When an example does not fit.
    pub fn predict(&self, examples: &[Example]) -> Result<Vec<f64>, InspectError> {
        let features = self.features.features(examples)?;
        let told = |row: &[f32]| {
            let products = row.iter().zip(&self.v).map(|(x, v)| f64::from(*x) * v);
            self.mean + products.sum::<f64>() / self.scale
        };
        Ok(features.par_chunks(self.features.len()).map(told).collect())
    }

    /// Mean squared error on examples, as a part of the variance of their targets.
    ///
    /// # Errors
    /// When an example does not fit.
    pub fn relative_error(&self, examples: &[Example]) -> Result<f64, InspectError> {
        let told = self.predict(examples)?;
        let mean = examples.iter().map(|e| e.y).sum::<f64>() / examples.len() as f64;
        let spread: f64 = examples.iter().map(|e| (e.y - mean).powi(2)).sum();
        let error: f64 = told
            .iter()
            .zip(examples)
            .map(|(t, e)| (t - e.y).powi(2))
            .sum();
        Ok(error / spread.max(1e-300))
    }
}

/// The penalty that errs least on examples held out.
fn best_lambda(
    x: &Mat<f64>,
    y: &[f64],
    config: &RandomFeaturesConfig,
) -> Result<f64, InspectError> {
    let n = y.len();
    let mut order: Vec<usize> = (0..n).collect();
    order.shuffle(&mut StdRng::seed_from_u64(config.seed ^ 0x5eed));
    let held = ((n as f64 * config.held_out).ceil() as usize).clamp(1, n - 2);
    let (held, learn) = order.split_at(held);
    let part = |rows: &[usize]| Mat::from_fn(rows.len(), x.ncols(), |i, j| x[(rows[i], j)]);
    let mean = learn.iter().map(|i| y[*i]).sum::<f64>() / learn.len() as f64;
    let centred: Vec<f64> = learn.iter().map(|i| y[*i] - mean).collect();
    let solutions = ridge(&part(learn), &centred, &LAMBDAS)?;
    let held_x = part(held);
    let error = |v: &Vec<f64>| -> f64 {
        let rows = held.iter().enumerate();
        let squares = rows.map(|(i, row)| {
            let told: f64 = v.iter().enumerate().map(|(j, v)| v * held_x[(i, j)]).sum();
            (told + mean - y[*row]).powi(2)
        });
        squares.sum()
    };
    let scored = solutions.iter().map(error).zip(LAMBDAS);
    let best = scored.min_by(|a, b| a.0.total_cmp(&b.0));
    Ok(best.map_or(LAMBDAS[1], |(_, lambda)| lambda))
}

#[cfg(test)]
mod tests;

//! One layer of softmax attention that learns in context, and what each of its heads does.
//!
//! For whom: who wants to see a circuit come about: trains attention on linear regression in
//! its context in a minute, then reads from each head what it compares (`ω`) and what it
//! writes (`μ`), and checks the closed form that the theory gives.
//!
//! Source: Jianliang He, Xintian Pan, Siyu Chen, Zhuoran Yang, In-Context Linear Regression
//! Demystified: Training Dynamics and Mechanistic Interpretability of Multi-Head Softmax Attention
//! (ICML 2025). With rows `z_l = (x_l, y_l)` and a query `z_q = (x_q, 0)`:
//!
//! `TF = Σ_h O_h V_h Zᵀ softmax(Z K_hᵀ Q_h z_q / √(d+1))`
//!
//! A head is known by `KQ_h = K_hᵀ Q_h / √(d+1)`, whose part for `x` becomes `ω_h I`, and by
//! `OV_h = O_h V_h`, whose entry for `y` becomes `μ_h`; the rest goes to 0. Then
//! `TF = Σ_h μ_h Σ_l y_l softmax_l(ω_h <x_l, x_q>)`, and about
//! `loss(ω, μ) = 1 + σ² - 2 μᵀω + μᵀ (ωωᵀ + (1+σ²)/L · exp(d ωωᵀ)) μ`
//! with `exp` entry by entry. One head: `ω = 1/√d`, `μ = √d / (1 + (1+σ²) d e / L)`. More heads
//! become pairs of `±ω` with `Σ μ = 0`, whose prediction is gradient descent on centred `y`.
//!
//! Shapes: `Q, K, V [heads (d + tasks), d + tasks]`, `O [tasks, heads (d + tasks)]`. Cost of a
//! step: `batch · heads · L (d + tasks)` eight times.

mod config;
mod prompts;
mod saved;
mod stack;
mod theory;
mod training;

use keyfold_core::seed_of;
use keyfold_kernels as kernels;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rayon::prelude::*;
use serde::Serialize;

use crate::InspectError;
use crate::small_transformer::draw;

pub use config::{Init, SoftmaxConfig};
pub use prompts::Prompts;
pub use stack::{Stack, StackConfig};
pub use theory::{
    Estimator, approximate_gradient, approximate_loss, best_mu, single_head_optimum, two_head_step,
};
#[cfg(test)]
pub(crate) use training::gradient;
pub use training::train;

/// One layer of attention; names of the weights are those of the authors' `state_dict`.
#[derive(Debug, Clone, PartialEq)]
pub struct SoftmaxModel {
    /// Numbers of `x`.
    pub d: usize,
    /// Number of `y`.
    pub tasks: usize,
    /// Heads.
    pub heads: usize,
    /// `[heads · row, row]`
    pub q: Vec<f32>,
    /// `[heads · row, row]`
    pub k: Vec<f32>,
    /// `[heads · row, row]`
    pub v: Vec<f32>,
    /// `[tasks, heads · row]`
    pub o: Vec<f32>,
}

/// What a head does, in the words of the theory.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Head {
    /// Mean of the diagonal of `KQ` for `x`.
    pub omega: f64,
    /// Greatest distance of any entry of `KQ` from `ω I`.
    pub spread: f64,
    /// The entry of `OV` for each `y`, by task.
    pub mu: Vec<f64>,
    /// Greatest other entry of `OV`.
    pub mu_spread: f64,
    /// "positive", "negative" or "dummy".
    pub role: &'static str,
}

impl SoftmaxModel {
    /// Weights as a setting says.
    ///
    /// # Errors
    /// When a setting makes no sense.
    pub fn new(config: &SoftmaxConfig) -> Result<Self, InspectError> {
        config.check()?;
        let (row, heads) = (config.row(), config.heads);
        let mut rng = rand::rngs::StdRng::seed_from_u64(config.seed);
        let mut random = |count: usize, fan_in: usize| {
            let mut out = vec![0.0; count];
            draw(&mut rng, fan_in, &mut out);
            out
        };
        let square = heads * row * row;
        let mut model = Self {
            d: config.d,
            tasks: config.tasks,
            heads,
            q: random(square, row),
            k: random(square, row),
            v: random(square, row),
            o: random(config.tasks * heads * row, heads * row),
        };
        let diagonal = |size: f32| -> Vec<f32> {
            let one = |i: usize| {
                if (i / row) % row == i % row {
                    size
                } else {
                    0.0
                }
            };
            (0..square).map(one).collect()
        };
        match config.init {
            Init::Random => {}
            Init::SmallId => {
                (model.q, model.k, model.v) = (diagonal(1e-6), diagonal(1e-6), diagonal(1e-6));
            }
            Init::SmallIdQk => (model.q, model.k) = (diagonal(1e-4), diagonal(1e-4)),
            Init::OppoSmallId => {
                (model.q, model.k) = (diagonal(1e-6), diagonal(1e-6));
                model.q[square / 2..].iter_mut().for_each(|x| *x = -*x);
            }
        }
        Ok(model)
    }

    fn row(&self) -> usize {
        self.d + self.tasks
    }

    /// `K_hᵀ Q_h / √row`, `[row, row]`.
    pub fn kq(&self, head: usize) -> Vec<f32> {
        let row = self.row();
        let part = |m: &'_ [f32]| m[head * row * row..][..row * row].to_vec();
        let (k, q) = (part(&self.k), part(&self.q));
        let mut out = vec![0.0; row * row];
        let (k, q) = (kernels::Matrix::new(&k, row), kernels::Matrix::new(&q, row));
        let scale = 1.0 / (row as f32).sqrt();
        kernels::product(&mut out, row, k.t(), q, scale, false, 1);
        out
    }

    /// `O_h V_h`, `[tasks, row]`.
    pub fn ov(&self, head: usize) -> Vec<f32> {
        let row = self.row();
        let v = kernels::Matrix::new(&self.v[head * row * row..][..row * row], row);
        let o = &self.o[head * row..];
        let o = kernels::Matrix::strided(o, self.tasks, row, self.heads * row);
        let mut out = vec![0.0; self.tasks * row];
        kernels::product(&mut out, row, o, v, 1.0, false, 1);
        out
    }

    /// What is predicted for each prompt, `[count, tasks]`.
    ///
    /// # Errors
    /// When prompts have other rows than the model.
    pub fn predict(&self, prompts: &Prompts) -> Result<Vec<f32>, InspectError> {
        if prompts.row != self.row() || prompts.is_empty() {
            return Err(InspectError::settings(format!(
                "the model reads rows of {} numbers; these prompts have {}",
                self.row(),
                prompts.row
            )));
        }
        let circuits: Vec<(Vec<f32>, Vec<f32>)> =
            (0..self.heads).map(|h| (self.kq(h), self.ov(h))).collect();
        let told = |i: usize| {
            let (z, query) = prompts.prompt(i);
            let mut out = vec![0.0; self.tasks];
            for (kq, ov) in &circuits {
                let key = kq
                    .chunks_exact(self.row())
                    .map(|r| kernels::dot(&r[..self.d], query));
                let key: Vec<f32> = key.collect();
                let mixed = attend(z, &key);
                for (out, ov) in out.iter_mut().zip(ov.chunks_exact(self.row())) {
                    *out += kernels::dot(ov, &mixed);
                }
            }
            out
        };
        Ok((0..prompts.len())
            .into_par_iter()
            .flat_map_iter(told)
            .collect())
    }

    /// Mean squared error on prompts, over tasks.
    ///
    /// # Errors
    /// As [`predict`](Self::predict).
    pub fn error(&self, prompts: &Prompts) -> Result<f64, InspectError> {
        Ok(mean_square(&self.predict(prompts)?, &prompts.targets))
    }

    /// What each head does.
    pub fn circuits(&self) -> Vec<Head> {
        let read = |head: usize| {
            let targets = (0..self.tasks).map(|t| (t, self.d + t));
            Head::read(&self.kq(head), &self.ov(head), self.d, targets)
        };
        named_roles((0..self.heads).map(read).collect())
    }
}

impl Head {
    /// Reads `KQ` and `OV`, both with rows of `row` numbers of which the first `d` are those of `x`;
    /// `mu` are the entries of `OV` at `targets`.
    fn read(
        kq: &[f32],
        ov: &[f32],
        d: usize,
        targets: impl Iterator<Item = (usize, usize)>,
    ) -> Self {
        let row = kq.len().isqrt();
        let omega = (0..d).map(|i| f64::from(kq[i * row + i])).sum::<f64>() / d as f64;
        // The query has no y, so that the last columns change nothing.
        let places = (0..row).flat_map(|i| (0..d).map(move |j| (i, j)));
        let away = places.map(|(i, j)| {
            let ideal = if i == j { omega } else { 0.0 };
            (f64::from(kq[i * row + j]) - ideal).abs()
        });
        let targets: Vec<usize> = targets.map(|(i, j)| i * row + j).collect();
        let others = ov.iter().enumerate().filter(|(i, _)| !targets.contains(i));
        Self {
            omega,
            spread: away.fold(0.0, f64::max),
            mu: targets.iter().map(|at| f64::from(ov[*at])).collect(),
            mu_spread: others.map(|(_, x)| f64::from(x.abs())).fold(0.0, f64::max),
            role: "dummy",
        }
    }
}

/// Heads that compare at least a fifth of what the strongest does are called by their sign.
fn named_roles(mut heads: Vec<Head>) -> Vec<Head> {
    let most = heads.iter().map(|h| h.omega.abs()).fold(0.0, f64::max);
    for head in &mut heads {
        if head.omega.abs() >= 0.2 * most && most > 0.0 {
            head.role = if head.omega > 0.0 {
                "positive"
            } else {
                "negative"
            };
        }
    }
    heads
}

/// `Zᵀ softmax(Z key)`
fn attend(z: &[f32], key: &[f32]) -> Vec<f32> {
    let rows = z.chunks_exact(key.len());
    let mut scores: Vec<f32> = rows.clone().map(|z| kernels::dot(z, key)).collect();
    let count = scores.len();
    kernels::softmax_rows(&mut scores, count);
    let mut out = vec![0.0; key.len()];
    rows.zip(&scores)
        .for_each(|(z, p)| kernels::axpy(&mut out, *p, z));
    out
}

fn mean_square(a: &[f32], b: &[f32]) -> f64 {
    let squares = a
        .iter()
        .zip(b)
        .map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
    squares.sum::<f64>() / a.len().max(1) as f64
}

#[cfg(test)]
mod tests;

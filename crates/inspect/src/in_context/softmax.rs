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

mod theory;
mod training;

use std::path::Path;

use keyfold_core::atomic;
use keyfold_core::seed_of;
use keyfold_kernels as kernels;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rayon::prelude::*;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use crate::InspectError;
use crate::random::normals;
use crate::small_transformer::draw;

pub use theory::{
    Estimator, approximate_gradient, approximate_loss, best_mu, single_head_optimum, two_head_step,
};
#[cfg(test)]
pub(crate) use training::gradient;
pub use training::train;

/// How weights begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// Evenly from `±1/√fan_in`.
    #[default]
    Random,
    /// All matrices a millionth of the identity; the output is drawn.
    SmallId,
    /// Queries and keys a ten-thousandth of the identity; the rest is drawn.
    SmallIdQk,
    /// Queries and keys a millionth of the identity, the queries of half the heads negative.
    OppoSmallId,
}

/// Settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SoftmaxConfig {
    /// Numbers of `x`.
    pub d: usize,
    /// Examples of a prompt.
    #[serde(rename = "L")]
    pub length: usize,
    /// Heads.
    pub heads: usize,
    /// Variance of the noise.
    pub sigma2: f64,
    /// Linear functions at once, each of a part of `x`.
    pub tasks: usize,
    /// Standard deviations of the numbers of `x`; empty for 1 each.
    pub spread: Vec<f64>,
    /// How weights begin.
    pub init: Init,
    /// Prompts of a step.
    pub batch_size: usize,
    /// Learning rate of Adam.
    pub learning_rate: f64,
    /// Steps.
    pub steps: usize,
    /// Seed of weights and prompts.
    pub seed: u64,
}

impl Default for SoftmaxConfig {
    fn default() -> Self {
        Self {
            d: 5,
            length: 40,
            heads: 2,
            sigma2: 0.1,
            tasks: 1,
            spread: Vec::new(),
            init: Init::Random,
            batch_size: 256,
            learning_rate: 1e-3,
            steps: 20_000,
            seed: 0,
        }
    }
}

impl SoftmaxConfig {
    /// Numbers of a row: `x` and one `y` for each task.
    fn row(&self) -> usize {
        self.d + self.tasks
    }

    /// Numbers of `x` that a task sees; those of all tasks together cover `x`.
    fn task_dim(&self) -> usize {
        match self.tasks {
            1 => self.d,
            // With two tasks of d = 6: x[..4] and x[2..].
            _ => (self.d * 2).div_ceil(self.tasks + 1),
        }
    }

    fn task_start(&self, task: usize) -> usize {
        match self.tasks {
            1 => 0,
            tasks => task * (self.d - self.task_dim()) / (tasks - 1),
        }
    }

    fn check(&self) -> Result<(), InspectError> {
        let counts = [
            ("d", self.d),
            ("L", self.length),
            ("heads", self.heads),
            ("tasks", self.tasks),
            ("batch_size", self.batch_size),
        ];
        if let Some((name, _)) = counts.iter().find(|(_, n)| *n == 0) {
            return Err(InspectError::settings(format!("{name} must be at least 1")));
        }
        if !(self.sigma2 >= 0.0 && self.sigma2.is_finite()) {
            return Err(InspectError::settings(format!(
                "sigma2 is {}; it must be 0 or more",
                self.sigma2
            )));
        }
        if self.tasks > self.d {
            return Err(InspectError::settings(format!(
                "{} tasks cannot share {} numbers of x; take fewer tasks",
                self.tasks, self.d
            )));
        }
        if self.init == Init::OppoSmallId && !self.heads.is_multiple_of(2) {
            return Err(InspectError::settings(
                "oppo_small_id needs an even number of heads",
            ));
        }
        let good = |s: &f64| *s > 0.0 && s.is_finite();
        if !self.spread.is_empty() && (self.spread.len() != self.d || !self.spread.iter().all(good))
        {
            return Err(InspectError::settings(format!(
                "spread needs {} numbers above 0, one for each of x",
                self.d
            )));
        }
        Ok(())
    }
}

/// Prompts: rows `(x, y)` and a query, with what is to be predicted.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompts {
    /// `[count, length, row]`
    pub z: Vec<f32>,
    /// `[count, d]`
    pub queries: Vec<f32>,
    /// `[count, tasks]`
    pub targets: Vec<f32>,
    /// Examples of a prompt.
    pub length: usize,
    /// Numbers of a row.
    pub row: usize,
}

impl Prompts {
    /// Draws prompts of any length. One task: `β ~ N(0, I/d)`, and the target has noise too;
    /// several: `β ~ N(0, I)` over the part of `x` that the task sees, noise as much larger,
    /// and none on the target.
    pub fn sample(config: &SoftmaxConfig, length: usize, count: usize, seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut out = Self {
            z: Vec::new(),
            queries: Vec::new(),
            targets: Vec::new(),
            length,
            row: config.row(),
        };
        out.draw(config, count, &mut rng);
        out
    }

    /// Draws `count` prompts in place of those that are there.
    fn draw(&mut self, config: &SoftmaxConfig, count: usize, rng: &mut SmallRng) {
        let (d, tasks, row, length) = (config.d, config.tasks, self.row, self.length);
        let dim = config.task_dim();
        let (scale, noise) = match tasks {
            1 => (1.0 / (d as f32).sqrt(), config.sigma2.sqrt() as f32),
            _ => (1.0, ((dim as f64) * config.sigma2).sqrt() as f32),
        };
        self.z.resize(count * length * row, 0.0);
        self.queries.resize(count * d, 0.0);
        self.targets.resize(count * tasks, 0.0);
        normals(rng, &mut self.z);
        normals(rng, &mut self.queries);
        let spread = |x: &mut [f32]| {
            let parts = x.iter_mut().zip(&config.spread);
            parts.for_each(|(x, s)| *x *= *s as f32);
        };
        let mut beta = vec![0.0; tasks * dim];
        let mut extra = vec![0.0; tasks];
        for prompt in 0..count {
            normals(rng, &mut beta);
            beta.iter_mut().for_each(|b| *b *= scale);
            let of = |x: &[f32], task: usize| -> f32 {
                let seen = &x[config.task_start(task)..][..dim];
                let beta = &beta[task * dim..][..dim];
                seen.iter().zip(beta).map(|(x, b)| x * b).sum()
            };
            for z in self.z[prompt * length * row..][..length * row].chunks_exact_mut(row) {
                let (x, y) = z.split_at_mut(d);
                spread(x);
                // What was drawn for y is its noise.
                y.iter_mut()
                    .enumerate()
                    .for_each(|(task, y)| *y = of(x, task) + noise * *y);
            }
            let query = &mut self.queries[prompt * d..][..d];
            spread(query);
            let targets = &mut self.targets[prompt * tasks..][..tasks];
            if tasks == 1 {
                normals(rng, &mut extra);
            }
            for (task, y) in targets.iter_mut().enumerate() {
                *y = of(query, task) + if tasks == 1 { noise * extra[task] } else { 0.0 };
            }
        }
    }

    /// Number of prompts.
    pub fn len(&self) -> usize {
        self.z.len() / (self.length * self.row).max(1)
    }

    /// True when there is no prompt.
    pub fn is_empty(&self) -> bool {
        self.z.is_empty()
    }

    fn prompt(&self, i: usize) -> (&[f32], &[f32]) {
        let (size, d) = (self.length * self.row, self.queries.len() / self.len());
        (&self.z[i * size..][..size], &self.queries[i * d..][..d])
    }
}

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
        let (d, row) = (self.d, self.row());
        let read = |head: usize| {
            let (kq, ov) = (self.kq(head), self.ov(head));
            let omega = (0..d).map(|i| f64::from(kq[i * row + i])).sum::<f64>() / d as f64;
            // The query has no y, so that the last columns change nothing.
            let places = (0..row).flat_map(|i| (0..d).map(move |j| (i, j)));
            let away = places.map(|(i, j)| {
                let ideal = if i == j { omega } else { 0.0 };
                (f64::from(kq[i * row + j]) - ideal).abs()
            });
            let mu = (0..self.tasks)
                .map(|t| f64::from(ov[t * row + d + t]))
                .collect();
            let others = ov
                .iter()
                .enumerate()
                .filter(|(i, _)| i % row != d + i / row);
            Head {
                omega,
                spread: away.fold(0.0, f64::max),
                mu,
                mu_spread: others.map(|(_, x)| f64::from(x.abs())).fold(0.0, f64::max),
                role: "dummy",
            }
        };
        let mut heads: Vec<Head> = (0..self.heads).map(read).collect();
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

    /// Writes safetensors with the authors' names.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), InspectError> {
        let row = self.row();
        let bytes = |x: &[f32]| x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let parts = self
            .named()
            .map(|(name, numbers, shape)| (name, bytes(numbers), shape));
        let mut views = Vec::new();
        for (name, bytes, shape) in &parts {
            let view = TensorView::new(Dtype::F32, shape.to_vec(), bytes)
                .map_err(|e| InspectError::format(path, e.to_string()))?;
            views.push((name.as_str(), view));
        }
        let tasks = [("tasks".to_owned(), (row - self.d).to_string())];
        let bytes = safetensors::serialize(views, Some(tasks.into()))
            .map_err(|e| InspectError::format(path, e.to_string()))?;
        atomic::write(path, &bytes).map_err(|e| InspectError::io(path, e))
    }

    fn named(&self) -> [(String, &Vec<f32>, [usize; 2]); 4] {
        let (row, heads) = (self.row(), self.heads);
        let name = |part: &str| format!("attention_layer.{part}_proj.weight");
        [
            (name("q"), &self.q, [heads * row, row]),
            (name("k"), &self.k, [heads * row, row]),
            (name("v"), &self.v, [heads * row, row]),
            (name("o"), &self.o, [self.tasks, heads * row]),
        ]
    }

    /// Reads what [`save`](Self::save) wrote, or the authors' weights as safetensors.
    ///
    /// # Errors
    /// When the file is not there or does not hold such weights.
    pub fn load(path: &Path) -> Result<Self, InspectError> {
        let bytes = std::fs::read(path).map_err(|e| InspectError::io(path, e))?;
        let damaged = |what: String| InspectError::format(path, what);
        let file = SafeTensors::deserialize(&bytes)
            .map_err(|e| damaged(format!("it is no safetensors file ({e})")))?;
        let read = |part: &str| {
            let name = format!("attention_layer.{part}_proj.weight");
            let view = file
                .tensor(&name)
                .map_err(|_| damaged(format!("it has no tensor '{name}'")))?;
            if view.dtype() != Dtype::F32 || view.shape().len() != 2 {
                return Err(damaged(format!("'{name}' is no matrix of 32-bit floats")));
            }
            let numbers = view.data().as_chunks::<4>().0.iter();
            let numbers: Vec<f32> = numbers.map(|b| f32::from_le_bytes(*b)).collect();
            match numbers.iter().all(|x| x.is_finite()) {
                true => Ok((numbers, view.shape().to_vec())),
                false => Err(damaged(format!(
                    "'{name}' holds numbers that are not finite"
                ))),
            }
        };
        let (q, shape) = read("q")?;
        let (k, v, o) = (read("k")?, read("v")?, read("o")?);
        let (inner, row, tasks) = (shape[0], shape[1], o.1[0]);
        let fits = row > tasks
            && tasks > 0
            && inner.is_multiple_of(row)
            && k.1 == shape
            && v.1 == shape
            && o.1[1] == inner;
        if !fits {
            return Err(damaged("its matrices do not fit together".to_owned()));
        }
        Ok(Self {
            d: row - tasks,
            tasks,
            heads: inner / row,
            q,
            k: k.0,
            v: v.0,
            o: o.0,
        })
    }
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

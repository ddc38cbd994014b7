//! Layers of causal softmax attention, one on the other, and a linear layer at their end.
//!
//! The authors' `MultiHeadAttentionStack`: rows `z_1 .. z_L` and the query `z_q` go through layers
//! that each replace every row by what its heads read of the rows up to it (nothing is added to
//! what was there), and the last row is read out:
//!
//! `X ← Σ_h softmax_causal(X Q_hᵀ K_h Xᵀ / √(d+1)) X V_hᵀ O_hᵀ`, `TF = w · X_q`
//!
//! `weight_tying` uses one layer's weights for all. `compat` is their released class, which takes
//! the softmax of all rows, hides later ones, and takes the softmax again, so that weights are nearly
//! even. Cost of a step: `batch · layers · heads · L² (d + tasks)` twelve times.

mod saved;

use keyfold_core::{Progress, seed_of};
use keyfold_kernels::learn::softmax_backward;
use keyfold_kernels::{self as kernels, Matrix, product};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Head, Prompts, SoftmaxConfig, mean_square, named_roles};
use crate::InspectError;
use crate::small_transformer::{Adam, by_parts, draw, train_steps};

/// Prompts whose gradient is made together.
const PART: usize = 16;

/// Settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StackConfig {
    /// Task, heads and training; weights begin as `init = random`.
    pub base: SoftmaxConfig,
    /// Layers.
    pub n_layers: usize,
    /// All layers have the same weights.
    pub weight_tying: bool,
    /// The softmax twice, as the released class has it.
    pub compat: bool,
}

impl Default for StackConfig {
    fn default() -> Self {
        Self {
            base: SoftmaxConfig::default(),
            n_layers: 2,
            weight_tying: false,
            compat: false,
        }
    }
}

/// A stack; weights `[Q, K, V [heads · row, row], O [row, heads · row]]` of each layer, then
/// `[tasks, row]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Stack {
    config: StackConfig,
    pub(crate) weights: Vec<f32>,
}

/// What a layer keeps of a prompt for its gradient.
struct Trace {
    /// Rows that came in, `[n, row]`.
    x: Vec<f32>,
    /// `[n, heads · row]` each; queries of the rows from `first` on.
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    /// `[heads, n - first, n]`: what rows read, and in `compat` the first softmax.
    weights: Vec<f32>,
    inner: Vec<f32>,
    /// `[n - first, heads · row]`
    mixed: Vec<f32>,
    first: usize,
}

impl Stack {
    /// Draws the weights evenly from `±1/√fan_in`.
    ///
    /// # Errors
    /// When a setting makes no sense.
    pub fn new(config: StackConfig) -> Result<Self, InspectError> {
        config.base.check()?;
        if config.n_layers == 0 || config.base.init != super::Init::Random {
            return Err(InspectError::settings(
                "a stack has at least one layer, and its weights begin as init = random",
            ));
        }
        let (row, wide) = (config.base.row(), config.base.heads * config.base.row());
        let mut rng = StdRng::seed_from_u64(config.base.seed);
        let mut weights = Vec::new();
        let mut random = |count: usize, fan_in: usize| {
            let at = weights.len();
            weights.resize(at + count, 0.0);
            draw(&mut rng, fan_in, &mut weights[at..]);
        };
        for _ in 0..config.stored() {
            (0..3).for_each(|_| random(wide * row, row));
            random(wide * row, wide);
        }
        random(config.base.tasks * row, row);
        Ok(Self { config, weights })
    }

    /// The settings.
    pub fn config(&self) -> &StackConfig {
        &self.config
    }

    fn row(&self) -> usize {
        self.config.base.row()
    }

    fn wide(&self) -> usize {
        self.config.base.heads * self.row()
    }

    /// Where the weights of a layer begin.
    fn layer(&self, layer: usize) -> usize {
        let layer = if self.config.weight_tying { 0 } else { layer };
        layer * 4 * self.wide() * self.row()
    }

    fn last(&self) -> usize {
        self.config.stored() * 4 * self.wide() * self.row()
    }

    /// Matrix `part` (of Q, K, V) of a layer, `[heads · row, row]`.
    fn matrix(&self, layer: usize, part: usize) -> Matrix<'_> {
        let size = self.wide() * self.row();
        let numbers = &self.weights[self.layer(layer) + part * size..][..size];
        Matrix::new(numbers, self.row())
    }

    /// `[row, heads · row]`
    fn output(&self, layer: usize) -> Matrix<'_> {
        let size = self.wide() * self.row();
        let numbers = &self.weights[self.layer(layer) + 3 * size..][..size];
        Matrix::new(numbers, self.wide())
    }

    /// A layer on the rows of a prompt; gives rows from `first` on.
    fn forward_layer(&self, layer: usize, x: Vec<f32>, first: usize) -> (Trace, Vec<f32>) {
        let (row, wide, heads) = (self.row(), self.wide(), self.config.base.heads);
        let n = x.len() / row;
        let m = n - first;
        let project = |part: usize, from: usize| {
            let mut out = vec![0.0; (n - from) * wide];
            let rows = Matrix::new(&x[from * row..], row);
            product(
                &mut out,
                wide,
                rows,
                self.matrix(layer, part).t(),
                1.0,
                false,
                1,
            );
            out
        };
        let (q, k, v) = (project(0, first), project(1, 0), project(2, 0));
        let mut weights = vec![0.0; heads * m * n];
        let mut inner = Vec::new();
        let mut mixed = vec![0.0; m * wide];
        let scale = 1.0 / (row as f32).sqrt();
        for (head, weights) in weights.chunks_exact_mut(m * n).enumerate() {
            let at = head * row;
            let keys = Matrix::strided(&k[at..], n, row, wide);
            let queries = Matrix::strided(&q[at..], m, row, wide);
            product(weights, n, queries, keys.t(), scale, false, 1);
            if self.config.compat {
                kernels::softmax_rows(weights, n);
                inner.extend_from_slice(weights);
            }
            for (i, row) in weights.chunks_exact_mut(n).enumerate() {
                row[first + i + 1..].fill(f32::NEG_INFINITY);
            }
            kernels::softmax_rows(weights, n);
            let values = Matrix::strided(&v[at..], n, row, wide);
            let out = &mut mixed[at..];
            product(out, wide, Matrix::new(weights, n), values, 1.0, false, 1);
        }
        let mut out = vec![0.0; m * row];
        let read = Matrix::new(&mixed, wide);
        product(&mut out, row, read, self.output(layer).t(), 1.0, false, 1);
        let trace = Trace {
            x,
            q,
            k,
            v,
            weights,
            inner,
            mixed,
            first,
        };
        (trace, out)
    }

    /// The gradient of the rows that came into a layer, from that of those that left it; adds those
    /// of its weights.
    fn backward_layer(&self, layer: usize, t: &Trace, d: &[f32], gradient: &mut [f32]) -> Vec<f32> {
        let (row, wide, heads) = (self.row(), self.wide(), self.config.base.heads);
        let n = t.x.len() / row;
        let m = n - t.first;
        let size = wide * row;
        let at = self.layer(layer);
        let d_out = Matrix::new(d, row);
        let out = &mut gradient[at + 3 * size..][..size];
        product(
            out,
            wide,
            d_out.t(),
            Matrix::new(&t.mixed, wide),
            1.0,
            true,
            1,
        );
        let mut d_mixed = vec![0.0; m * wide];
        product(&mut d_mixed, wide, d_out, self.output(layer), 1.0, false, 1);
        let (mut dq, mut dk, mut dv) = (
            vec![0.0; m * wide],
            vec![0.0; n * wide],
            vec![0.0; n * wide],
        );
        let scale = 1.0 / (row as f32).sqrt();
        let mut slopes = vec![0.0; m * n];
        for head in 0..heads {
            let at = head * row;
            let weights = &t.weights[head * m * n..][..m * n];
            let d_head = Matrix::strided(&d_mixed[at..], m, row, wide);
            let values = Matrix::strided(&t.v[at..], n, row, wide);
            product(&mut slopes, n, d_head, values.t(), 1.0, false, 1);
            let read = Matrix::new(weights, n);
            product(&mut dv[at..], wide, read.t(), d_head, 1.0, false, 1);
            // Weights of rows that are hidden are 0, and so are their slopes.
            softmax_backward(weights, &mut slopes, n, 1.0);
            if self.config.compat {
                softmax_backward(&t.inner[head * m * n..][..m * n], &mut slopes, n, 1.0);
            }
            let slopes = Matrix::new(&slopes, n);
            let keys = Matrix::strided(&t.k[at..], n, row, wide);
            let queries = Matrix::strided(&t.q[at..], m, row, wide);
            product(&mut dq[at..], wide, slopes, keys, scale, false, 1);
            product(&mut dk[at..], wide, slopes.t(), queries, scale, false, 1);
        }
        let mut dx = vec![0.0; n * row];
        for (part, (d, first)) in [(&dq, t.first), (&dk, 0), (&dv, 0)].into_iter().enumerate() {
            let (d, rows) = (Matrix::new(d, wide), Matrix::new(&t.x[first * row..], row));
            let out = &mut gradient[at + part * size..][..size];
            product(out, row, d.t(), rows, 1.0, true, 1);
            let out = &mut dx[first * row..];
            product(out, row, d, self.matrix(layer, part), 1.0, true, 1);
        }
        dx
    }

    /// The last row after all layers, and what they keep.
    fn forward(&self, prompts: &Prompts, i: usize) -> (Vec<Trace>, Vec<f32>) {
        let row = self.row();
        let (z, query) = prompts.prompt(i);
        let mut x = [z, query].concat();
        x.resize(z.len() + row, 0.0);
        let mut traces = Vec::with_capacity(self.config.n_layers);
        for layer in 0..self.config.n_layers {
            // Nothing reads any row but the query's after the last layer.
            let first = match layer + 1 == self.config.n_layers {
                true => prompts.length,
                false => 0,
            };
            let (trace, out) = self.forward_layer(layer, x, first);
            traces.push(trace);
            x = out;
        }
        (traces, x)
    }

    fn read_out(&self, x: &[f32]) -> Vec<f32> {
        let last = self.weights[self.last()..].chunks_exact(self.row());
        last.map(|w| kernels::dot(w, x)).collect()
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
        let told = |i: usize| self.read_out(&self.forward(prompts, i).1);
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

    /// The mean squared error of prompts, and its gradient by all weights.
    pub(crate) fn gradient(&self, prompts: &Prompts) -> (f64, Vec<f32>) {
        let places: Vec<usize> = (0..prompts.len()).collect();
        let total = prompts.targets.len();
        let (loss, gradient) = by_parts(&places, PART, |part| self.part(prompts, part, total));
        (loss / total as f64, gradient)
    }

    fn part(&self, prompts: &Prompts, part: &[usize], total: usize) -> (f64, Vec<f32>) {
        let (row, tasks) = (self.row(), self.config.base.tasks);
        let last = self.last();
        let mut gradient = vec![0.0; self.weights.len()];
        let mut loss = 0.0;
        for i in part {
            let (traces, x) = self.forward(prompts, *i);
            let mut d = vec![0.0; row];
            let targets = &prompts.targets[i * tasks..][..tasks];
            for (task, (told, target)) in self.read_out(&x).iter().zip(targets).enumerate() {
                let error = told - target;
                loss += f64::from(error) * f64::from(error);
                let slope = 2.0 * error / total as f32;
                kernels::axpy(&mut gradient[last + task * row..][..row], slope, &x);
                kernels::axpy(&mut d, slope, &self.weights[last + task * row..][..row]);
            }
            for (layer, trace) in traces.iter().enumerate().rev() {
                d = self.backward_layer(layer, trace, &d, &mut gradient);
            }
        }
        (loss, gradient)
    }

    /// Trains on fresh prompts; gives the mean squared error of each hundredth of the steps.
    ///
    /// # Errors
    /// When the user asked to stop.
    pub fn train(&mut self, progress: &dyn Progress) -> Result<Vec<f64>, InspectError> {
        let base = self.config.base.clone();
        let mut adam = Adam::new(self.weights.len(), (0.9, 0.999), 1e-8);
        train_steps("attention", "error", base.steps, progress, |step| {
            let seed = seed_of(&format!("softmax stack {} {step}", base.seed));
            let prompts = Prompts::sample(&base, base.length, base.batch_size, seed);
            let (loss, gradient) = self.gradient(&prompts);
            adam.step(&mut self.weights, &gradient, base.learning_rate);
            Ok(loss)
        })
    }

    /// What the heads of each layer do; `mu` are the entries of `O_h V_h` from each `y` to itself.
    pub fn circuits(&self) -> Vec<Vec<Head>> {
        let (d, row, wide) = (self.config.base.d, self.row(), self.wide());
        let head = |layer: usize, head: usize| {
            let part = |part: usize| {
                let at = self.layer(layer) + (part * wide + head * row) * row;
                Matrix::new(&self.weights[at..][..row * row], row)
            };
            let at = self.layer(layer) + 3 * wide * row + head * row;
            let o = Matrix::strided(&self.weights[at..], row, row, wide);
            let (mut kq, mut ov) = (vec![0.0; row * row], vec![0.0; row * row]);
            let scale = 1.0 / (row as f32).sqrt();
            product(&mut kq, row, part(1).t(), part(0), scale, false, 1);
            product(&mut ov, row, o, part(2), 1.0, false, 1);
            Head::read(&kq, &ov, d, (d..row).map(|t| (t, t)))
        };
        (0..self.config.n_layers)
            .map(|layer| {
                let heads = (0..self.config.base.heads).map(|h| head(layer, h));
                named_roles(heads.collect())
            })
            .collect()
    }
}

impl StackConfig {
    /// Layers that have weights of their own.
    fn stored(&self) -> usize {
        match self.weight_tying {
            true => 1,
            false => self.n_layers,
        }
    }
}

#[cfg(test)]
mod tests {
    use keyfold_core::NoProgress;

    use super::*;

    fn config() -> StackConfig {
        StackConfig {
            base: SoftmaxConfig {
                d: 3,
                length: 8,
                batch_size: 64,
                steps: 2000,
                learning_rate: 3e-3,
                ..SoftmaxConfig::default()
            },
            ..StackConfig::default()
        }
    }

    #[test]
    fn the_gradient_is_that_of_differences() {
        for (weight_tying, compat) in [(false, false), (true, false), (true, true)] {
            let config = StackConfig {
                weight_tying,
                compat,
                ..config()
            };
            let model = Stack::new(config.clone()).unwrap();
            let prompts = Prompts::sample(&config.base, 5, 20, 1);
            let (loss, gradient) = model.gradient(&prompts);
            assert!((loss - model.error(&prompts).unwrap()).abs() < 1e-6);
            for at in (0..gradient.len()).step_by(11) {
                let moved = |by: f32| {
                    let mut model = model.clone();
                    model.weights[at] += by;
                    model.error(&prompts).unwrap()
                };
                let found = (moved(1e-2) - moved(-1e-2)) / 2e-2;
                let analytic = f64::from(gradient[at]);
                assert!(
                    (analytic - found).abs() < 1e-3 * (1.0 + found.abs()),
                    "{at}: {analytic} {found}"
                );
            }
        }
    }

    #[test]
    fn a_stack_learns_and_comes_back_from_its_file() {
        let mut model = Stack::new(config()).unwrap();
        let curve = model.train(&NoProgress).unwrap();
        // Means of twenty steps each; nothing learned is 1, the variance of what is asked for.
        assert!(curve[curve.len() - 1] < 0.8 * curve[0], "{curve:?}");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stack.safetensors");
        model.save(&path).unwrap();
        assert_eq!(Stack::load(&path, config()).unwrap(), model);
        let tied = StackConfig {
            weight_tying: true,
            ..config()
        };
        let error = Stack::load(&path, tied.clone()).unwrap_err().to_string();
        assert!(error.contains("tied"), "{error}");
        let tied = Stack::new(tied).unwrap();
        tied.save(&path).unwrap();
        assert_eq!(Stack::load(&path, tied.config.clone()).unwrap(), tied);
        let deep = StackConfig {
            n_layers: 3,
            ..config()
        };
        assert!(Stack::load(&path, deep).is_err());
    }

    #[test]
    fn rows_after_one_do_not_change_what_it_becomes() {
        let model = Stack::new(config()).unwrap();
        let x: Vec<f32> = (0..24).map(|i| (i * i % 7) as f32 / 3.0).collect();
        let (_, before) = model.forward_layer(0, x.clone(), 0);
        let mut changed = x;
        changed[20..].fill(5.0);
        let (_, after) = model.forward_layer(0, changed, 0);
        assert_eq!(before[..20], after[..20]);
        assert_ne!(before[20..], after[20..]);
    }
}

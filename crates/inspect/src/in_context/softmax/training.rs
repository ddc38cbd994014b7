//! The gradient of one layer of softmax attention, for eight prompts at a time.
//!
//! What a head computes depends on `KQ` and `OV` alone, so the gradient is made of these and
//! carried on to `Q`, `K`, `V` and `O` once a step. Numbers of eight prompts lie side by side,
//! which the compiler turns into vector instructions.

use keyfold_core::Progress;

use super::*;
use crate::small_transformer::{Adam, train_steps};

/// Prompts side by side.
const LANES: usize = 8;

/// Prompts whose gradient is made together; of one size whatever the number of threads is.
const PART: usize = 64;

type Lanes = [f32; LANES];

fn add_product(sum: &mut Lanes, a: &Lanes, b: &Lanes) {
    for i in 0..LANES {
        sum[i] += a[i] * b[i];
    }
}

/// Sums over a part of the batch: loss, and gradients of `KQ` and `OV` of all heads.
#[derive(Default)]
struct Sums {
    loss: f64,
    kq: Vec<f64>,
    ov: Vec<f64>,
}

/// `KQ` and `OV` of all heads.
pub(super) struct Circuits {
    d: usize,
    tasks: usize,
    kq: Vec<Vec<f32>>,
    ov: Vec<Vec<f32>>,
}

impl Circuits {
    pub(super) fn of(model: &SoftmaxModel) -> Self {
        Self {
            d: model.d,
            tasks: model.tasks,
            kq: (0..model.heads).map(|h| model.kq(h)).collect(),
            ov: (0..model.heads).map(|h| model.ov(h)).collect(),
        }
    }

    fn row(&self) -> usize {
        self.d + self.tasks
    }

    /// Loss and gradients of prompts, divided by `total` predictions.
    fn gradient(&self, prompts: &Prompts, total: usize) -> Sums {
        let (row, heads) = (self.row(), self.kq.len());
        let mut sums = Sums {
            loss: 0.0,
            kq: vec![0.0; heads * row * row],
            ov: vec![0.0; heads * self.tasks * row],
        };
        let mut work = Work::new(self, prompts.length);
        for first in (0..prompts.len()).step_by(LANES) {
            work.load(prompts, first);
            work.eight(self, total, &mut sums);
        }
        sums
    }
}

/// Room for eight prompts.
struct Work {
    length: usize,
    /// `[length, row]`
    z: Vec<Lanes>,
    query: Vec<Lanes>,
    targets: Vec<Lanes>,
    /// 1 for each prompt that is there.
    present: Lanes,
    /// `[heads, length]`: attention weights.
    weights: Vec<Lanes>,
    /// `[heads, row]`: what heads read.
    mixed: Vec<Lanes>,
}

impl Work {
    fn new(c: &Circuits, length: usize) -> Self {
        let (row, heads) = (c.row(), c.kq.len());
        let zeros = |n: usize| vec![[0.0; LANES]; n];
        Self {
            length,
            z: zeros(length * row),
            query: zeros(c.d),
            targets: zeros(c.tasks),
            present: [0.0; LANES],
            weights: zeros(heads * length),
            mixed: zeros(heads * row),
        }
    }

    fn load(&mut self, prompts: &Prompts, first: usize) {
        let (size, d, tasks) = (self.z.len(), self.query.len(), self.targets.len());
        for lane in 0..LANES {
            let there = first + lane < prompts.len();
            self.present[lane] = f32::from(u8::from(there));
            if !there {
                // The prompt that lay here before is counted as none.
                continue;
            }
            let i = first + lane;
            let put = |to: &mut [Lanes], from: &[f32]| {
                to.iter_mut().zip(from).for_each(|(t, x)| t[lane] = *x);
            };
            put(&mut self.z, &prompts.z[i * size..][..size]);
            put(&mut self.query, &prompts.queries[i * d..][..d]);
            put(&mut self.targets, &prompts.targets[i * tasks..][..tasks]);
        }
    }

    fn eight(&mut self, c: &Circuits, total: usize, sums: &mut Sums) {
        let (row, d, tasks, length) = (c.row(), c.d, c.tasks, self.length);
        let mut out = vec![[0.0; LANES]; tasks];
        for (head, (kq, ov)) in c.kq.iter().zip(&c.ov).enumerate() {
            self.attend(head, kq, d, row);
            let mixed = &self.mixed[head * row..][..row];
            for (out, ov) in out.iter_mut().zip(ov.chunks_exact(row)) {
                for (w, m) in ov.iter().zip(mixed) {
                    add_product(out, &[*w; LANES], m);
                }
            }
        }
        // The gradient of each prediction.
        for (out, target) in out.iter_mut().zip(&self.targets) {
            for lane in 0..LANES {
                let error = (out[lane] - target[lane]) * self.present[lane];
                sums.loss += f64::from(error) * f64::from(error);
                out[lane] = 2.0 * error / total as f32;
            }
        }
        let add = |sum: &mut f64, lanes: &Lanes| *sum += f64::from(lanes.iter().sum::<f32>());
        let mut change = vec![[0.0; LANES]; row];
        for (head, ov) in c.ov.iter().enumerate() {
            let mixed = &self.mixed[head * row..][..row];
            let mut written = vec![[0.0; LANES]; row];
            for (task, d_out) in out.iter().enumerate() {
                for j in 0..row {
                    let mut product = [0.0; LANES];
                    add_product(&mut product, d_out, &mixed[j]);
                    add(&mut sums.ov[(head * tasks + task) * row + j], &product);
                    add_product(&mut written[j], d_out, &[ov[task * row + j]; LANES]);
                }
            }
            let mut mean = [0.0; LANES];
            for (w, m) in written.iter().zip(mixed) {
                add_product(&mut mean, w, m);
            }
            change.fill([0.0; LANES]);
            let weights = &self.weights[head * length..][..length];
            for (z, weight) in self.z.chunks_exact(row).zip(weights) {
                let mut slope = [0.0; LANES];
                for (w, z) in written.iter().zip(z) {
                    add_product(&mut slope, w, z);
                }
                for lane in 0..LANES {
                    slope[lane] = weight[lane] * (slope[lane] - mean[lane]);
                }
                for (change, z) in change.iter_mut().zip(z) {
                    add_product(change, &slope, z);
                }
            }
            for (j, change) in change.iter().enumerate() {
                for (k, query) in self.query.iter().enumerate() {
                    let mut product = [0.0; LANES];
                    add_product(&mut product, change, query);
                    add(&mut sums.kq[(head * row + j) * row + k], &product);
                }
            }
        }
    }

    /// Weights of a head, and what it reads.
    fn attend(&mut self, head: usize, kq: &[f32], d: usize, row: usize) {
        let mut key = vec![[0.0; LANES]; row];
        for (key, kq) in key.iter_mut().zip(kq.chunks_exact(row)) {
            for (w, x) in kq[..d].iter().zip(&self.query) {
                add_product(key, &[*w; LANES], x);
            }
        }
        let weights = &mut self.weights[head * self.length..][..self.length];
        let mut most = [f32::NEG_INFINITY; LANES];
        for (weight, z) in weights.iter_mut().zip(self.z.chunks_exact(row)) {
            let mut score = [0.0; LANES];
            for (key, z) in key.iter().zip(z) {
                add_product(&mut score, key, z);
            }
            for lane in 0..LANES {
                most[lane] = most[lane].max(score[lane]);
            }
            *weight = score;
        }
        for weight in weights.iter_mut() {
            for lane in 0..LANES {
                weight[lane] -= most[lane];
            }
        }
        kernels::exp(weights.as_flattened_mut());
        let mut sum = [0.0; LANES];
        for weight in weights.iter() {
            for lane in 0..LANES {
                sum[lane] += weight[lane];
            }
        }
        let part: Lanes = sum.map(|s| 1.0 / s);
        let mixed = &mut self.mixed[head * row..][..row];
        mixed.fill([0.0; LANES]);
        for (weight, z) in weights.iter_mut().zip(self.z.chunks_exact(row)) {
            for lane in 0..LANES {
                weight[lane] *= part[lane];
            }
            for (mixed, z) in mixed.iter_mut().zip(z) {
                add_product(mixed, weight, z);
            }
        }
    }
}

/// The mean squared error of prompts, and its gradient by `q`, `k`, `v` and `o`, one after the
/// other.
pub(crate) fn gradient(model: &SoftmaxModel, parts: &[Prompts]) -> (f64, Vec<f32>) {
    let circuits = Circuits::of(model);
    let total: usize = parts.iter().map(|p| p.targets.len()).sum();
    let sums: Vec<Sums> = parts
        .par_iter()
        .map(|p| circuits.gradient(p, total))
        .collect();
    let mut all = Sums::default();
    for sums in sums {
        all.loss += sums.loss;
        all.kq.resize(sums.kq.len(), 0.0);
        all.ov.resize(sums.ov.len(), 0.0);
        all.kq.iter_mut().zip(&sums.kq).for_each(|(a, b)| *a += b);
        all.ov.iter_mut().zip(&sums.ov).for_each(|(a, b)| *a += b);
    }
    let numbers = |x: &[f64]| -> Vec<f32> { x.iter().map(|x| *x as f32).collect() };
    let (d_kq, d_ov) = (numbers(&all.kq), numbers(&all.ov));
    (all.loss / total as f64, carry_on(model, &d_kq, &d_ov))
}

/// From gradients of `KQ` and `OV` to those of the weights.
fn carry_on(model: &SoftmaxModel, d_kq: &[f32], d_ov: &[f32]) -> Vec<f32> {
    use kernels::Matrix;
    let (row, heads, tasks) = (model.row(), model.heads, model.tasks);
    let square = row * row;
    let scale = 1.0 / (row as f32).sqrt();
    let (mut dq, mut dk, mut dv) = (
        vec![0.0; heads * square],
        vec![0.0; heads * square],
        vec![0.0; heads * square],
    );
    let mut d_o = vec![0.0; tasks * heads * row];
    for head in 0..heads {
        let part = |m: &'_ [f32]| m[head * square..][..square].to_vec();
        let (q, k, v, d_kq) = (part(&model.q), part(&model.k), part(&model.v), part(d_kq));
        let d_ov = &d_ov[head * tasks * row..][..tasks * row];
        let at = head * square;
        let out = &mut dq[at..at + square];
        kernels::product(
            out,
            row,
            Matrix::new(&k, row),
            Matrix::new(&d_kq, row),
            scale,
            false,
            1,
        );
        let out = &mut dk[at..at + square];
        let turned = Matrix::new(&d_kq, row).t();
        kernels::product(out, row, Matrix::new(&q, row), turned, scale, false, 1);
        let o = Matrix::strided(&model.o[head * row..], tasks, row, heads * row);
        let out = &mut dv[at..at + square];
        kernels::product(out, row, o.t(), Matrix::new(d_ov, row), 1.0, false, 1);
        let out = &mut d_o[head * row..];
        let v = Matrix::new(&v, row).t();
        kernels::product(out, heads * row, Matrix::new(d_ov, row), v, 1.0, false, 1);
    }
    [dq, dk, dv, d_o].concat()
}

/// Trains a model on fresh prompts; gives it with the mean squared error of each hundredth of the
/// steps.
///
/// # Errors
/// When a setting makes no sense, or the user asked to stop.
pub fn train(
    config: &SoftmaxConfig,
    progress: &dyn Progress,
) -> Result<(SoftmaxModel, Vec<f64>), InspectError> {
    let mut model = SoftmaxModel::new(config)?;
    let mut weights = [&model.q[..], &model.k, &model.v, &model.o].concat();
    let mut adam = Adam::new(weights.len(), (0.9, 0.999), 1e-8);
    let mut parts: Vec<Prompts> = (0..config.batch_size.div_ceil(PART))
        .map(|_| Prompts::sample(config, config.length, 0, 0))
        .collect();
    let curve = train_steps("attention", "error", config.steps, progress, |step| {
        parts.par_iter_mut().enumerate().for_each(|(at, part)| {
            let count = (config.batch_size - at * PART).min(PART);
            let seed = seed_of(&format!("softmax {} {step} {at}", config.seed));
            part.draw(config, count, &mut SmallRng::seed_from_u64(seed));
        });
        let (loss, gradient) = gradient(&model, &parts);
        adam.step(&mut weights, &gradient, config.learning_rate);
        let square = model.q.len();
        model.q.copy_from_slice(&weights[..square]);
        model.k.copy_from_slice(&weights[square..2 * square]);
        model.v.copy_from_slice(&weights[2 * square..3 * square]);
        model.o.copy_from_slice(&weights[3 * square..]);
        Ok(loss)
    })?;
    Ok((model, curve))
}

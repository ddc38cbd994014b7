//! A step while many codes are in use, as at the start: dense products, and no lists of what is
//! in use. For ReLU, jump ReLU and gated autoencoders; top-k has few codes from the start.
//!
//! Two or three arrays of `[rows, codes]` are all there is: the encoder's products `h`, and one for
//! each way through the decoder, which first holds the codes and then their slopes.

use keyfold_kernels::{self as kernels, Matrix};
use rayon::prelude::*;

use super::gradients::{Gradients, squares, variance};
use super::{Losses, SparsityLoss, Training};
use crate::sae::Activation;
use crate::sae::backward::is_dense;

/// Rows that one piece of work takes; fixed, so that sums do not depend on the threads.
const ROWS: usize = 64;

/// Of each code, over some rows.
struct Sums {
    /// In how many rows it is in use.
    used: Vec<f32>,
    /// Of the slopes by its product.
    slopes: Vec<f32>,
    /// Of those that the gate's bias gets.
    gate: Vec<f32>,
    /// Of what multiplies the gradient of its atom's length.
    by_norm: Vec<f32>,
    /// Of the gradient of the threshold, or of `b_mag`.
    own: Vec<f32>,
    r_mag: Vec<f32>,
    /// One row's `tanh`.
    row: Vec<f32>,
    /// The loss of sparsity, before its weight.
    loss: f64,
}

impl Sums {
    fn zeros(codes: usize) -> Self {
        let zeros = || vec![0.0; codes];
        Self {
            used: zeros(),
            slopes: zeros(),
            gate: zeros(),
            by_norm: zeros(),
            own: zeros(),
            r_mag: zeros(),
            row: zeros(),
            loss: 0.0,
        }
    }

    fn add(mut self, other: &Self) -> Self {
        for (a, b) in [
            (&mut self.used, &other.used),
            (&mut self.slopes, &other.slopes),
            (&mut self.gate, &other.gate),
            (&mut self.by_norm, &other.by_norm),
            (&mut self.own, &other.own),
            (&mut self.r_mag, &other.r_mag),
        ] {
            kernels::add_assign(a, b);
        }
        self.loss += other.loss;
        self
    }
}

/// What is the same for all rows.
struct Codes<'a> {
    norms: &'a [f32],
    /// The weight of sparsity in the gradient of one row.
    weight: f32,
    /// `e^r` of a gated autoencoder.
    scale: Vec<f32>,
}

impl Training {
    /// Whether so many codes take part in the decoder that dense products are faster.
    pub(super) fn is_dense(&self, h: &[f32]) -> bool {
        let d_sae = self.sae.d_sae;
        if matches!(self.sae.activation, Activation::TopK { .. }) {
            return false;
        }
        let count = |h: &[f32]| match &self.sae.activation {
            Activation::JumpRelu { threshold } => {
                let half = self.config.jumprelu_bandwidth / 2.0;
                let pairs = h.iter().zip(threshold);
                pairs.filter(|(x, t)| **x > **t - half).count()
            }
            Activation::Gated { .. } => {
                let pairs = h.iter().zip(&self.sae.b_enc);
                pairs.filter(|(x, b)| **x + **b > 0.0).count()
            }
            _ => h.iter().filter(|x| **x > 0.0).count(),
        };
        let rows = h.par_chunks(ROWS * d_sae);
        let used = rows.map(|rows| rows.chunks_exact(d_sae).map(count).sum::<usize>());
        is_dense(used.sum(), h.len() / d_sae, d_sae)
    }

    /// What [`gradients`](Self::gradients) gives; `x` are the rows as they were coded and `h` the
    /// encoder's products.
    pub(in crate::sae) fn dense(
        &mut self,
        rows: &[f32],
        targets: &[f32],
        x: &[f32],
        h: &[f32],
        norms: &[f32],
    ) -> (Gradients, Losses) {
        let sae = &self.sae;
        let (d_in, d_sae, d_out) = (sae.d_in, sae.d_sae, sae.d_out);
        let n = rows.len() / d_in;
        let threads = rayon::current_num_threads();
        let mut codes = Codes {
            norms,
            weight: self.sparsity() / n as f32,
            scale: Vec::new(),
        };
        if let Activation::Gated { r_mag, .. } = &sae.activation {
            codes.scale = r_mag.iter().map(|r| r.exp()).collect();
        }

        let mut error = vec![0.0; targets.len()];
        let mut way = self.values(h, &codes.scale);
        self.miss(&mut error, &way, rows, targets);
        let mse = squares(&error) / n as f64;
        let mut gradients = Gradients::zeros(sae);
        let step = 2.0 / n as f32;
        error.iter_mut().for_each(|e| *e *= step);
        let by_target = Matrix::new(&error, d_out);
        let f = Matrix::new(&way, d_sae);
        let out = &mut gradients.w_dec;
        kernels::product(out, d_out, f.t(), by_target, 1.0, false, threads);
        for row in error.chunks_exact(d_out) {
            kernels::add_assign(&mut gradients.b_dec, row);
        }
        if !gradients.w_skip.is_empty() {
            let out = &mut gradients.w_skip;
            let rows = Matrix::new(rows, d_in);
            kernels::product(out, d_in, by_target.t(), rows, 1.0, false, threads);
        }
        let w_dec = Matrix::new(&sae.w_dec, d_out);
        kernels::product(&mut way, d_sae, by_target, w_dec.t(), 1.0, false, threads);

        let mut other = 0.0;
        let mut gate = Vec::new();
        let gated = matches!(sae.activation, Activation::Gated { .. });
        if gated {
            gate = self.open_gates(h);
            self.miss(&mut error, &gate, rows, targets);
            other += squares(&error) / n as f64;
            error.iter_mut().for_each(|e| *e *= step);
            let by_gate = Matrix::new(&error, d_out);
            kernels::product(&mut gate, d_sae, by_gate, w_dec.t(), 1.0, false, threads);
        }
        let sums = self.through_dense(h, &mut way, &gate, &codes);
        let slopes = Matrix::new(&way, d_sae);
        let (out, x) = (&mut gradients.w_enc, Matrix::new(x, d_in));
        kernels::product(out, d_in, slopes.t(), x, 1.0, false, threads);

        gradients.b_enc = if gated {
            sums.gate
        } else {
            sums.slopes.clone()
        };
        if !gradients.own.is_empty() {
            gradients.own = sums.own;
        }
        if !gradients.r_mag.is_empty() {
            gradients.r_mag = sums.r_mag;
        }
        if sae.apply_b_dec_to_input {
            for (sum, w) in sums.slopes.iter().zip(sae.w_enc.chunks_exact(d_in)) {
                kernels::axpy(&mut gradients.b_dec, -sum, w);
            }
        }
        let weight = codes.weight;
        other += f64::from(weight) * sums.loss;
        let atoms = gradients.w_dec.par_chunks_exact_mut(d_out);
        let atoms = atoms.zip(sae.w_dec.par_chunks_exact(d_out));
        let lengths = sums.by_norm.par_iter().zip(norms);
        atoms.zip(lengths).for_each(|((out, w), (sum, norm))| {
            if *sum != 0.0 && *norm > 0.0 {
                kernels::axpy(out, weight * sum / norm, w);
            }
        });
        for (unused, used) in self.unused.iter_mut().zip(&sums.used) {
            *unused = if *used > 0.0 { 0.0 } else { *unused + 1.0 };
        }
        let used: f64 = sums.used.iter().map(|n| f64::from(*n)).sum();
        let losses = Losses {
            mse,
            unexplained: mse / variance(targets, d_out).max(1e-30),
            l0: used / n as f64,
            other,
            dead: self.dead_codes().len(),
        };
        (gradients, losses)
    }

    /// What the decoder makes of codes, minus the targets.
    fn miss(&self, error: &mut [f32], codes: &[f32], rows: &[f32], targets: &[f32]) {
        let sae = &self.sae;
        let w_dec = Matrix::new(&sae.w_dec, sae.d_out);
        let codes = Matrix::new(codes, sae.d_sae);
        let threads = rayon::current_num_threads();
        kernels::product(error, sae.d_out, codes, w_dec, 1.0, false, threads);
        kernels::add_bias(error, &sae.b_dec);
        sae.add_skip(error, rows);
        error.iter_mut().zip(targets).for_each(|(e, t)| *e -= t);
    }

    /// The codes of a batch.
    fn values(&self, h: &[f32], scale: &[f32]) -> Vec<f32> {
        match &self.sae.activation {
            Activation::JumpRelu { threshold } => self.each(h, |out, h| {
                for ((f, h), t) in out.iter_mut().zip(h).zip(threshold) {
                    *f = if h > t { *h } else { 0.0 };
                }
            }),
            Activation::Gated { b_mag, .. } => self.each(h, |out, h| {
                let gates = h.iter().zip(&self.sae.b_enc);
                let sizes = scale.iter().zip(b_mag);
                for ((f, (h, b)), (s, m)) in out.iter_mut().zip(gates).zip(sizes) {
                    let size = (h * s + m).max(0.0);
                    *f = if h + b > 0.0 { size } else { 0.0 };
                }
            }),
            _ => self.each(h, |out, h| {
                out.copy_from_slice(h);
                kernels::relu(out);
            }),
        }
    }

    /// What the gates alone say.
    fn open_gates(&self, h: &[f32]) -> Vec<f32> {
        self.each(h, |out, h| {
            let gates = h.iter().zip(&self.sae.b_enc);
            for (p, (h, b)) in out.iter_mut().zip(gates) {
                *p = (h + b).max(0.0);
            }
        })
    }

    /// A function of every row of products.
    fn each(&self, h: &[f32], row: impl Fn(&mut [f32], &[f32]) + Sync) -> Vec<f32> {
        let d_sae = self.sae.d_sae;
        let mut out = vec![0.0; h.len()];
        let rows = out
            .par_chunks_exact_mut(d_sae)
            .zip(h.par_chunks_exact(d_sae));
        rows.for_each(|(out, h)| row(out, h));
        out
    }

    /// Turns the slopes of all codes' values into those of the encoder's products; those of the
    /// gates, where there are any, are added.
    fn through_dense(&self, h: &[f32], slopes: &mut [f32], gate: &[f32], codes: &Codes) -> Sums {
        let d_sae = self.sae.d_sae;
        let parts = slopes
            .par_chunks_mut(ROWS * d_sae)
            .zip(h.par_chunks(ROWS * d_sae));
        let parts: Vec<Sums> = parts
            .enumerate()
            .map(|(part, (slopes, h))| {
                let mut sums = Sums::zeros(d_sae);
                let rows = slopes.chunks_exact_mut(d_sae).zip(h.chunks_exact(d_sae));
                for (row, (slopes, h)) in rows.enumerate() {
                    match &self.sae.activation {
                        Activation::JumpRelu { threshold } => {
                            self.jump_row(h, slopes, threshold, codes, &mut sums);
                        }
                        Activation::Gated { b_mag, .. } => {
                            let gate = &gate[(part * ROWS + row) * d_sae..][..d_sae];
                            self.gated_row(h, slopes, gate, b_mag, codes, &mut sums);
                        }
                        _ => relu_row(h, slopes, codes, &mut sums),
                    }
                }
                sums
            })
            .collect();
        let mut sums = parts.iter().fold(Sums::zeros(d_sae), Sums::add);
        let total = |numbers: &[f32]| numbers.iter().map(|x| f64::from(*x)).sum::<f64>();
        sums.loss = match (&self.sae.activation, self.counts_codes()) {
            (Activation::JumpRelu { .. }, true) => total(&sums.used),
            (Activation::JumpRelu { .. }, false) => sums.loss,
            _ => {
                let parts = sums.by_norm.iter().zip(codes.norms);
                parts.map(|(s, n)| f64::from(*s) * f64::from(*n)).sum()
            }
        };
        sums
    }

    /// Whether the sparsity loss of a jump ReLU is the number of codes in use.
    fn counts_codes(&self) -> bool {
        self.config.jumprelu_sparsity_loss_mode == SparsityLoss::Step
    }

    fn jump_row(
        &self,
        h: &[f32],
        slopes: &mut [f32],
        threshold: &[f32],
        codes: &Codes,
        sums: &mut Sums,
    ) {
        let d_sae = h.len();
        let (norms, weight) = (&codes.norms[..d_sae], codes.weight);
        let width = self.config.jumprelu_bandwidth;
        let threshold = &threshold[..d_sae];
        if !self.counts_codes() {
            let row = &mut sums.row[..d_sae];
            for j in 0..d_sae {
                row[j] = if h[j] > threshold[j] {
                    4.0 * h[j] * norms[j]
                } else {
                    0.0
                };
            }
            kernels::tanh(row);
            sums.loss += row.iter().map(|t| f64::from(*t)).sum::<f64>();
            for j in 0..d_sae {
                let rise = 4.0 * (1.0 - row[j] * row[j]);
                slopes[j] += weight * norms[j] * rise;
                let f = if h[j] > threshold[j] { h[j] } else { 0.0 };
                sums.by_norm[j] += f * rise;
            }
        }
        let step = if self.counts_codes() {
            weight / width
        } else {
            0.0
        };
        let (used, own) = (&mut sums.used[..d_sae], &mut sums.own[..d_sae]);
        let sum = &mut sums.slopes[..d_sae];
        for (j, slope) in slopes.iter_mut().enumerate() {
            let (h, t) = (h[j], threshold[j]);
            let near = ((h - t) / width).abs() < 0.5;
            own[j] -= if near { t / width * *slope + step } else { 0.0 };
            *slope = if h > t { *slope } else { 0.0 };
            sum[j] += *slope;
            used[j] += if h > t { 1.0 } else { 0.0 };
        }
    }

    fn gated_row(
        &self,
        h: &[f32],
        slopes: &mut [f32],
        gate: &[f32],
        b_mag: &[f32],
        codes: &Codes,
        sums: &mut Sums,
    ) {
        let d_sae = h.len();
        let (b_enc, b_mag) = (&self.sae.b_enc[..d_sae], &b_mag[..d_sae]);
        let (norms, scale) = (&codes.norms[..d_sae], &codes.scale[..d_sae]);
        let (gate, slopes) = (&gate[..d_sae], &mut slopes[..d_sae]);
        let (used, own) = (&mut sums.used[..d_sae], &mut sums.own[..d_sae]);
        let (r_mag, by_norm) = (&mut sums.r_mag[..d_sae], &mut sums.by_norm[..d_sae]);
        for j in 0..d_sae {
            let open = h[j] + b_enc[j] > 0.0;
            let in_use = open && h[j] * scale[j] + b_mag[j] > 0.0;
            let slope = if in_use { slopes[j] } else { 0.0 };
            used[j] += if in_use { 1.0 } else { 0.0 };
            own[j] += slope;
            r_mag[j] += slope * h[j] * scale[j];
            by_norm[j] += if open { h[j] + b_enc[j] } else { 0.0 };
            slopes[j] = slope * scale[j];
        }
        let (sum, to_gate) = (&mut sums.slopes[..d_sae], &mut sums.gate[..d_sae]);
        for j in 0..d_sae {
            let open = h[j] + b_enc[j] > 0.0;
            let more = gate[j] + codes.weight * norms[j];
            let more = if open { more } else { 0.0 };
            to_gate[j] += more;
            slopes[j] += more;
            sum[j] += slopes[j];
        }
    }
}

fn relu_row(h: &[f32], slopes: &mut [f32], codes: &Codes, sums: &mut Sums) {
    let d_sae = h.len();
    let (norms, slopes) = (&codes.norms[..d_sae], &mut slopes[..d_sae]);
    let (used, sum) = (&mut sums.used[..d_sae], &mut sums.slopes[..d_sae]);
    let by_norm = &mut sums.by_norm[..d_sae];
    for j in 0..d_sae {
        let open = h[j] > 0.0;
        let slope = slopes[j] + codes.weight * norms[j];
        slopes[j] = if open { slope } else { 0.0 };
        sum[j] += slopes[j];
        by_norm[j] += h[j].max(0.0);
        used[j] += if open { 1.0 } else { 0.0 };
    }
}

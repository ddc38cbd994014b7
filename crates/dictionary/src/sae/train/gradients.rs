//! Forward and backward of a batch.

use keyfold_kernels as kernels;
use rayon::prelude::*;

use super::{Losses, SaeMethod, SparsityLoss, Training};
use crate::sae::backward::{Active, ByCode};
use crate::sae::{Activation, Sae, largest};

/// The gradient of every weight, or a moment of it.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::sae) struct Gradients {
    pub(in crate::sae) w_enc: Vec<f32>,
    pub(in crate::sae) b_enc: Vec<f32>,
    pub(in crate::sae) w_dec: Vec<f32>,
    pub(in crate::sae) b_dec: Vec<f32>,
    pub(in crate::sae) w_skip: Vec<f32>,
    /// Of `threshold`, or of `b_mag`.
    pub(in crate::sae) own: Vec<f32>,
    pub(in crate::sae) r_mag: Vec<f32>,
}

impl Gradients {
    pub(super) fn zeros(sae: &Sae) -> Self {
        let (own, r_mag) = match &sae.activation {
            Activation::JumpRelu { threshold } => (threshold.len(), 0),
            Activation::Gated { b_mag, r_mag } => (b_mag.len(), r_mag.len()),
            _ => (0, 0),
        };
        Self {
            w_enc: vec![0.0; sae.w_enc.len()],
            b_enc: vec![0.0; sae.b_enc.len()],
            w_dec: vec![0.0; sae.w_dec.len()],
            b_dec: vec![0.0; sae.b_dec.len()],
            w_skip: vec![0.0; sae.w_skip.len()],
            own: vec![0.0; own],
            r_mag: vec![0.0; r_mag],
        }
    }

    pub(in crate::sae) fn parts(&self) -> [(&'static str, &Vec<f32>); 7] {
        [
            ("w_enc", &self.w_enc),
            ("b_enc", &self.b_enc),
            ("w_dec", &self.w_dec),
            ("b_dec", &self.b_dec),
            ("w_skip", &self.w_skip),
            ("own", &self.own),
            ("r_mag", &self.r_mag),
        ]
    }

    pub(super) fn parts_mut(&mut self) -> [&mut Vec<f32>; 7] {
        [
            &mut self.w_enc,
            &mut self.b_enc,
            &mut self.w_dec,
            &mut self.b_dec,
            &mut self.w_skip,
            &mut self.own,
            &mut self.r_mag,
        ]
    }
}

/// The weights in the order of [`Gradients::parts`]; none where there are none.
pub(super) fn weights_mut(sae: &mut Sae) -> [Option<&mut Vec<f32>>; 7] {
    let (own, r_mag) = match &mut sae.activation {
        Activation::JumpRelu { threshold } => (Some(threshold), None),
        Activation::Gated { b_mag, r_mag } => (Some(b_mag), Some(r_mag)),
        _ => (None, None),
    };
    [
        Some(&mut sae.w_enc),
        Some(&mut sae.b_enc),
        Some(&mut sae.w_dec),
        Some(&mut sae.b_dec),
        Some(&mut sae.w_skip),
        own,
        r_mag,
    ]
}

/// A second way through the decoder, with its error.
struct Second {
    active: Active,
    error: Vec<f32>,
    weight: f32,
    /// Whether the decoder learns from it.
    decoder: bool,
}

impl Training {
    pub(in crate::sae) fn gradients(
        &mut self,
        rows: &[f32],
        targets: &[f32],
        metric: Option<&[f32]>,
    ) -> (Gradients, Losses) {
        let sae = &self.sae;
        let (d_in, d_sae, d_out) = (sae.d_in, sae.d_sae, sae.d_out);
        let n = rows.len() / d_in;
        let mut x = rows.to_vec();
        let h = sae.products(&mut x, rayon::current_num_threads());
        let norms = sae.norms();
        if metric.is_none() && self.is_dense(&h) {
            return self.dense(rows, targets, &x, &h, &norms);
        }
        let active = self.active(&h, &norms);

        let mut error = vec![0.0; targets.len()];
        active.decode(&mut error, &sae.w_dec, d_out);
        kernels::add_bias(&mut error, &sae.b_dec);
        sae.add_skip(&mut error, rows);
        error.iter_mut().zip(targets).for_each(|(e, t)| *e -= t);

        let mse = squares(&error) / n as f64;
        let used = active.values.iter().filter(|f| **f != 0.0).count();
        let mut losses = Losses {
            mse,
            unexplained: mse / variance(targets, d_out).max(1e-30),
            l0: used as f64 / n as f64,
            ..Losses::default()
        };
        let second = match self.config.architecture {
            SaeMethod::TopK | SaeMethod::BatchTopK => self.dead(&h, &norms, &error),
            SaeMethod::Gated => Some(self.gate(&h, targets)),
            _ => None,
        };

        let mut gradients = Gradients::zeros(sae);
        let scale = 2.0 / n as f32;
        let mut g: Vec<f32> = error.iter().map(|e| e * scale).collect();
        let unexplained = metric.map_or(0.0, |metric| self.unexplained(&error, metric, &mut g));
        let by_code = active.by_code(d_sae);
        by_code.gather(&mut gradients.w_dec, &g, &active.values, d_out);
        for row in g.chunks_exact(d_out) {
            kernels::add_assign(&mut gradients.b_dec, row);
        }
        if !gradients.w_skip.is_empty() {
            let (g, rows) = (
                kernels::Matrix::new(&g, d_out),
                kernels::Matrix::new(rows, d_in),
            );
            let threads = rayon::current_num_threads();
            kernels::product(
                &mut gradients.w_skip,
                d_in,
                g.t(),
                rows,
                1.0,
                false,
                threads,
            );
        }
        let mut slopes = active.dots(&g, &sae.w_dec, d_out);
        losses.other = unexplained
            + self.through_activation(&active, &mut slopes, &norms, &by_code, &mut gradients, n);
        if let Some(metric) = metric {
            let w_dec = &mut gradients.w_dec;
            losses.other += self.attribute(&active, &mut slopes, &by_code, w_dec, metric);
        }
        by_code.gather(&mut gradients.w_enc, &x, &slopes, d_in);
        // What every code's product passes on to the biases.
        let mut sums = by_code.sums(&slopes);
        if !matches!(sae.activation, Activation::Gated { .. }) {
            kernels::add_assign(&mut gradients.b_enc, &sums);
        }
        if let Some(second) = second {
            let weight = second.weight;
            losses.other += f64::from(weight) * squares(&second.error) / n as f64;
            let g: Vec<f32> = second.error.iter().map(|e| e * scale * weight).collect();
            let (active, by_code) = (&second.active, second.active.by_code(d_sae));
            if second.decoder {
                by_code.gather(&mut gradients.w_dec, &g, &active.values, d_out);
            }
            let mut slopes = active.dots(&g, &sae.w_dec, d_out);
            if self.config.architecture == SaeMethod::Gated {
                let weight = self.sparsity() / n as f32;
                let w_dec = &mut gradients.w_dec;
                losses.other +=
                    self.weigh_by_norm(active, &mut slopes, &norms, &by_code, w_dec, weight);
            }
            by_code.gather(&mut gradients.w_enc, &x, &slopes, d_in);
            let more = by_code.sums(&slopes);
            kernels::add_assign(&mut gradients.b_enc, &more);
            kernels::add_assign(&mut sums, &more);
        }
        if sae.apply_b_dec_to_input {
            for (sum, w) in sums.iter().zip(sae.w_enc.chunks_exact(d_in)) {
                kernels::axpy(&mut gradients.b_dec, -sum, w);
            }
        }
        self.count_unused(&active);
        losses.dead = self.dead_codes().len();
        self.follow_threshold(&active, &norms);
        (gradients, losses)
    }

    /// The codes that take part in the decoder or are near a threshold.
    fn active(&self, h: &[f32], norms: &[f32]) -> Active {
        let d_sae = self.sae.d_sae;
        let share: &[f32] = match self.sae.rescale_acts_by_decoder_norm {
            true => norms,
            false => &[],
        };
        if self.config.architecture == SaeMethod::BatchTopK {
            return batch_top_k(h, share, d_sae, self.config.k * (h.len() / d_sae));
        }
        // Some rows to a thread at a time, put together in order.
        let parts: Vec<Active> = h
            .par_chunks(64 * d_sae)
            .map(|h| {
                let mut active = Active::new();
                for h in h.chunks_exact(d_sae) {
                    self.row_active(h, share, &mut active);
                    active.end_row();
                }
                active
            })
            .collect();
        let mut active = Active::new();
        parts.iter().for_each(|part| active.append(part));
        active
    }

    fn row_active(&self, h: &[f32], share: &[f32], active: &mut Active) {
        match &self.sae.activation {
            Activation::Relu => {
                let used = (0..).zip(h).filter(|(_, x)| **x > 0.0);
                used.for_each(|(j, x)| active.push(j, *x, *x));
            }
            Activation::TopK { k } => {
                for j in largest(h, share, *k) {
                    active.push(j, h[j as usize], h[j as usize]);
                }
            }
            Activation::JumpRelu { threshold } => {
                let half = self.config.jumprelu_bandwidth / 2.0;
                for (j, (x, t)) in (0..).zip(h.iter().zip(threshold)) {
                    if x > t || (x - t).abs() < half {
                        active.push(j, if x > t { *x } else { 0.0 }, *x);
                    }
                }
            }
            Activation::Gated { b_mag, r_mag } => {
                for (j, x) in h.iter().enumerate() {
                    if x + self.sae.b_enc[j] > 0.0 {
                        let size = (x * r_mag[j].exp() + b_mag[j]).max(0.0);
                        active.push(j as u32, size, *x);
                    }
                }
            }
        }
    }

    /// Turns the slopes of the codes' values into those of the encoder's products, adds
    /// what sparsity asks for, and gives its loss.
    fn through_activation(
        &self,
        active: &Active,
        slopes: &mut [f32],
        norms: &[f32],
        by_code: &ByCode,
        gradients: &mut Gradients,
        n: usize,
    ) -> f64 {
        let weight = self.sparsity() / n as f32;
        match &self.sae.activation {
            Activation::TopK { .. } => 0.0,
            Activation::Relu => {
                self.weigh_by_norm(active, slopes, norms, by_code, &mut gradients.w_dec, weight)
            }
            Activation::JumpRelu { threshold } => {
                let loss = self.jump(active, slopes, norms, threshold, gradients, weight);
                if self.config.jumprelu_sparsity_loss_mode == SparsityLoss::Tanh {
                    self.norm_gradient(norms, by_code, &mut gradients.w_dec, |p| {
                        let f = active.values[p];
                        weight * 4.0 * f * rise(f * norms[active.codes[p] as usize])
                    });
                }
                loss
            }
            Activation::Gated { r_mag, .. } => {
                for (place, slope) in slopes.iter_mut().enumerate() {
                    let j = active.codes[place] as usize;
                    if active.values[place] <= 0.0 {
                        *slope = 0.0;
                        continue;
                    }
                    let size = r_mag[j].exp();
                    gradients.own[j] += *slope;
                    gradients.r_mag[j] += *slope * active.products[place] * size;
                    *slope *= size;
                }
                0.0
            }
        }
    }

    /// The slopes through a jump ReLU, and its thresholds' gradient.
    fn jump(
        &self,
        active: &Active,
        slopes: &mut [f32],
        norms: &[f32],
        threshold: &[f32],
        gradients: &mut Gradients,
        weight: f32,
    ) -> f64 {
        let width = self.config.jumprelu_bandwidth;
        let tanh = self.config.jumprelu_sparsity_loss_mode == SparsityLoss::Tanh;
        let mut loss = 0.0;
        for (place, slope) in slopes.iter_mut().enumerate() {
            let j = active.codes[place] as usize;
            let (f, h, t) = (active.values[place], active.products[place], threshold[j]);
            if tanh {
                *slope += weight * 4.0 * norms[j] * rise(f * norms[j]);
                loss += f64::from(weight * (4.0 * f * norms[j]).tanh());
            } else if h > t {
                loss += f64::from(weight);
            }
            if ((h - t) / width).abs() < 0.5 {
                gradients.own[j] -= t / width * *slope;
                if !tanh {
                    gradients.own[j] -= weight / width;
                }
            }
            if h <= t {
                *slope = 0.0;
            }
        }
        loss
    }

    /// Adds `weight Σ value ‖W_dec_j‖` to the loss, which it gives, and its gradient.
    fn weigh_by_norm(
        &self,
        active: &Active,
        slopes: &mut [f32],
        norms: &[f32],
        by_code: &ByCode,
        w_dec: &mut [f32],
        weight: f32,
    ) -> f64 {
        let mut loss = 0.0;
        let parts = active.codes.iter().zip(&active.values);
        for (slope, (j, value)) in slopes.iter_mut().zip(parts) {
            *slope += weight * norms[*j as usize];
            loss += f64::from(weight * value * norms[*j as usize]);
        }
        self.norm_gradient(norms, by_code, w_dec, |p| weight * active.values[p]);
        loss
    }

    /// Adds the gradient of `Σ factor ‖W_dec_j‖` to that of the decoder.
    fn norm_gradient(
        &self,
        norms: &[f32],
        by_code: &ByCode,
        w_dec: &mut [f32],
        factor: impl Fn(usize) -> f32 + Sync,
    ) {
        let d = self.sae.d_out;
        let codes = w_dec.par_chunks_exact_mut(d).enumerate();
        codes.for_each(|(j, out)| {
            let sum: f32 = by_code.places(j).iter().map(|p| factor(*p)).sum();
            if sum != 0.0 && norms[j] > 0.0 {
                kernels::axpy(out, sum / norms[j], &self.sae.w_dec[j * d..][..d]);
            }
        });
    }

    pub(super) fn dead_codes(&self) -> Vec<usize> {
        let window = self.config.dead_feature_window as f32;
        let codes = 0..self.unused.len();
        codes.filter(|j| self.unused[*j] > window).collect()
    }

    /// What dead codes make of the error that is left.
    fn dead(&self, h: &[f32], norms: &[f32], error: &[f32]) -> Option<Second> {
        let dead = self.dead_codes();
        let most = self.sae.d_in / 2;
        if dead.is_empty() || most == 0 || self.config.aux_loss_coefficient == 0.0 {
            return None;
        }
        let share = self.sae.rescale_acts_by_decoder_norm;
        let size = |h: &[f32], j: usize| if share { h[j] * norms[j] } else { h[j] };
        let mut active = Active::new();
        for h in h.chunks_exact(self.sae.d_sae) {
            let sizes: Vec<f32> = dead.iter().map(|j| size(h, *j)).collect();
            for (_, place) in kernels::top_k(&sizes, most) {
                let j = dead[place as usize];
                active.push(j as u32, h[j], h[j]);
            }
            active.end_row();
        }
        // They are to give target minus result, which is minus the error.
        let mut rest = error.to_vec();
        active.decode(&mut rest, &self.sae.w_dec, self.sae.d_out);
        let few = (dead.len() as f32 / most as f32).min(1.0);
        Some(Second {
            active,
            error: rest,
            weight: self.config.aux_loss_coefficient * few,
            decoder: true,
        })
    }

    /// What the gate alone makes of the rows.
    fn gate(&self, h: &[f32], targets: &[f32]) -> Second {
        let mut active = Active::new();
        for h in h.chunks_exact(self.sae.d_sae) {
            for (j, (x, b)) in (0..).zip(h.iter().zip(&self.sae.b_enc)) {
                if x + b > 0.0 {
                    active.push(j, x + b, *x);
                }
            }
            active.end_row();
        }
        let mut error = vec![0.0; targets.len()];
        active.decode(&mut error, &self.sae.w_dec, self.sae.d_out);
        kernels::add_bias(&mut error, &self.sae.b_dec);
        error.iter_mut().zip(targets).for_each(|(e, t)| *e -= t);
        Second {
            active,
            error,
            weight: 1.0,
            decoder: false,
        }
    }

    fn count_unused(&mut self, active: &Active) {
        self.unused.iter_mut().for_each(|n| *n += 1.0);
        for (j, f) in active.codes.iter().zip(&active.values) {
            if *f > 0.0 {
                self.unused[*j as usize] = 0.0;
            }
        }
    }

    /// The least code in use, followed slowly.
    fn follow_threshold(&mut self, active: &Active, norms: &[f32]) {
        if self.config.architecture != SaeMethod::BatchTopK {
            return;
        }
        let share = self.sae.rescale_acts_by_decoder_norm;
        let used = active.codes.iter().zip(&active.values);
        let size = |(j, f): (&u32, &f32)| if share { f * norms[*j as usize] } else { *f };
        let least = used
            .map(size)
            .filter(|f| *f > 0.0)
            .fold(f32::INFINITY, f32::min);
        if least.is_finite() {
            self.threshold = 0.99 * self.threshold + 0.01 * f64::from(least);
        }
    }
}

/// The `most` largest of a whole batch, where positive.
fn batch_top_k(h: &[f32], norms: &[f32], d_sae: usize, most: usize) -> Active {
    let scaled: Vec<f32> = match norms.is_empty() {
        true => h.to_vec(),
        false => {
            let rows = h.chunks_exact(d_sae);
            rows.flat_map(|h| h.iter().zip(norms).map(|(x, n)| x * n))
                .collect()
        }
    };
    let mut positive: Vec<(f32, u32)> = (0..)
        .zip(&scaled)
        .filter(|(_, x)| **x > 0.0)
        .map(|(i, x)| (*x, i))
        .collect();
    if positive.len() > most {
        positive.select_nth_unstable_by(most, |a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        positive.truncate(most);
    }
    let mut places: Vec<usize> = positive.into_iter().map(|(_, i)| i as usize).collect();
    places.sort_unstable();
    let mut places = places.into_iter().peekable();
    let mut active = Active::new();
    for row in 0..h.len() / d_sae {
        while let Some(i) = places.next_if(|i| i / d_sae == row) {
            active.push((i % d_sae) as u32, h[i], h[i]);
        }
        active.end_row();
    }
    active
}

/// Slope of `tanh(4 x)`, over 4.
fn rise(x: f32) -> f32 {
    1.0 - (4.0 * x).tanh().powi(2)
}

pub(super) fn squares(numbers: &[f32]) -> f64 {
    numbers.iter().map(|x| f64::from(*x).powi(2)).sum()
}

/// Variance of rows, summed over columns.
pub(super) fn variance(rows: &[f32], width: usize) -> f64 {
    let n = (rows.len() / width) as f64;
    let (mut sum, mut square) = (vec![0f64; width], vec![0f64; width]);
    let first = &rows[..width];
    for row in rows.chunks_exact(width) {
        for (j, x) in row.iter().enumerate() {
            // From the first row, so that a large mean takes no digits.
            let x = f64::from(x - first[j]);
            sum[j] += x;
            square[j] += x * x;
        }
    }
    let columns = sum.iter().zip(&square);
    columns
        .map(|(s, q)| (q / n - (s / n).powi(2)).max(0.0))
        .sum()
}

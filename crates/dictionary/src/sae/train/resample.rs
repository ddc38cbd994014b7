//! Dead codes begin anew, at rows that are explained badly.
//!
//! As Makelov, Lange, Nanda 2024 do it, after Bricken et al. 2023: rows are drawn by the square of
//! their loss; such a row, of length 1, becomes the atom, and times a part of the mean length of
//! encoders in use the encoder; biases become 0, Adam's averages too, and the learning rate
//! grows from a tenth. They draw from all rows; here the rows of the batch are all there is.

use keyfold_core::seed_of;
use keyfold_kernels as kernels;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::gradients::Gradients;
use super::{SaeMethod, Training};
use crate::DictionaryError;
use crate::sae::Activation;

impl Training {
    pub(super) fn resample(
        &mut self,
        rows: &[f32],
        targets: &[f32],
        metric: Option<&[f32]>,
    ) -> Result<(), DictionaryError> {
        let dead = self.dead_codes();
        if dead.is_empty() {
            return Ok(());
        }
        let (d_in, d_out) = (self.sae.d_in, self.sae.d_out);
        let weights: Vec<f64> = self
            .row_losses(rows, targets, metric)?
            .into_iter()
            .zip(rows.chunks_exact(d_in).zip(targets.chunks_exact(d_out)))
            // A row of zeros has no direction.
            .map(
                |(loss, (row, target))| match usable(row) && usable(target) {
                    true => loss * loss,
                    false => 0.0,
                },
            )
            .collect();
        let total: f64 = weights.iter().sum();
        if !(total > 0.0 && total.is_finite()) {
            return Ok(());
        }
        let encoder = self.config.resample_scale * self.mean_encoder(&dead);
        let alive = self.alive(&dead);
        let norms = self.sae.norms();
        let atom = mean(alive.iter().map(|j| norms[*j]));
        let seed = seed_of(&format!("dead codes {} {}", self.config.seed, self.steps));
        let mut rng = StdRng::seed_from_u64(seed);
        for j in dead {
            let i = drawn(&weights, rng.random_range(0.0..total));
            let (row, target) = (&rows[i * d_in..][..d_in], &targets[i * d_out..][..d_out]);
            put(&mut self.sae.w_enc[j * d_in..][..d_in], row, encoder);
            put(&mut self.sae.w_dec[j * d_out..][..d_out], target, atom);
            self.sae.b_enc[j] = 0.0;
            match &mut self.sae.activation {
                Activation::JumpRelu { threshold } => {
                    threshold[j] = self.config.jumprelu_init_threshold;
                }
                Activation::Gated { b_mag, r_mag } => (b_mag[j], r_mag[j]) = (0.0, 0.0),
                _ => {}
            }
            for moments in [&mut self.first, &mut self.second] {
                clear(moments, j, d_in, d_out);
            }
            self.unused[j] = 0.0;
        }
        self.resampled = self.steps;
        Ok(())
    }

    /// The loss of each row: squared error, and what the method asks of each row beside it.
    fn row_losses(
        &self,
        rows: &[f32],
        targets: &[f32],
        metric: Option<&[f32]>,
    ) -> Result<Vec<f64>, DictionaryError> {
        let (config, d) = (&self.config, self.sae.d_out);
        let codes = self.sae.encode(rows)?;
        let told = self.sae.decode(&codes, rows)?;
        let norms = self.sae.norms();
        let l1 = match config.architecture {
            SaeMethod::Standard | SaeMethod::Gated | SaeMethod::Attribution => {
                config.l1_coefficient
            }
            _ => 0.0,
        };
        let loss = |i: usize| {
            let error: Vec<f32> = (told[i * d..][..d].iter().zip(&targets[i * d..]))
                .map(|(a, b)| a - b)
                .collect();
            let (atoms, values) = codes.row(i);
            let used = || atoms.iter().map(|j| *j as usize).zip(values);
            let sparsity: f32 = used().map(|(j, f)| f * norms[j]).sum();
            let mut loss = kernels::dot(&error, &error) + l1 * sparsity;
            if let Some(metric) = metric {
                let metric = &metric[i * d..][..d];
                let effect = |j: usize| kernels::dot(metric, &self.sae.w_dec[j * d..][..d]);
                let effects: f32 = used().map(|(j, f)| f * effect(j).abs()).sum();
                loss += config.attribution_sparsity_penalty * effects
                    + config.unexplained_attribution_penalty * kernels::dot(&error, metric).abs();
            }
            f64::from(loss)
        };
        Ok((0..codes.len()).map(loss).collect())
    }

    fn alive(&self, dead: &[usize]) -> Vec<usize> {
        let codes = 0..self.sae.d_sae;
        codes.filter(|j| dead.binary_search(j).is_err()).collect()
    }

    /// Mean length of the encoders in use.
    fn mean_encoder(&self, dead: &[usize]) -> f32 {
        let (alive, d) = (self.alive(dead), self.sae.d_in);
        let encoder = |j: &usize| &self.sae.w_enc[j * d..][..d];
        match self.config.compat {
            false => mean(alive.iter().map(|j| kernels::norm(encoder(j)))),
            true => mean((0..d).map(|column| {
                let squares = alive.iter().map(|j| encoder(j)[column].powi(2));
                squares.sum::<f32>().sqrt()
            })),
        }
    }
}

fn usable(row: &[f32]) -> bool {
    kernels::norm(row) > 1e-12
}

/// 1 of nothing.
fn mean(numbers: impl ExactSizeIterator<Item = f32>) -> f32 {
    match numbers.len() {
        0 => 1.0,
        n => numbers.sum::<f32>() / n as f32,
    }
}

/// The place at which the sum of weights passes `at`.
fn drawn(weights: &[f64], mut at: f64) -> usize {
    for (i, weight) in weights.iter().enumerate() {
        if at < *weight {
            return i;
        }
        at -= weight;
    }
    // Rounding: the last that may be drawn.
    weights.iter().rposition(|w| *w > 0.0).unwrap_or(0)
}

/// Writes `row` with a length of `norm`.
fn put(out: &mut [f32], row: &[f32], norm: f32) {
    let scale = norm / kernels::norm(row);
    out.iter_mut().zip(row).for_each(|(o, x)| *o = scale * x);
}

fn clear(moments: &mut Gradients, code: usize, d_in: usize, d_out: usize) {
    moments.w_enc[code * d_in..][..d_in].fill(0.0);
    moments.w_dec[code * d_out..][..d_out].fill(0.0);
    for numbers in [&mut moments.b_enc, &mut moments.own, &mut moments.r_mag] {
        if let Some(x) = numbers.get_mut(code) {
            *x = 0.0;
        }
    }
}

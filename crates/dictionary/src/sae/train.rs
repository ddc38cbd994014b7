//! Training of sparse autoencoders from a stream of rows.
//!
//! Losses are SAELens': the squared error, summed over columns, mean over rows, and:
//!
//! | method | beside it |
//! |---|---|
//! | standard | `l1 Σ_j f_j ‖W_dec_j‖` |
//! | topk, batchtopk | dead codes, the `d_in/2` largest, give what is lost; weight `min(dead / (d_in/2), 1)` |
//! | gated | `l1 Σ_j relu(π_j) ‖W_dec_j‖`, and the error of `relu(π)` under a decoder that is held |
//! | jumprelu | `l0 Σ_j 1[h_j > t_j]`, or `l0 Σ_j tanh(4 f_j ‖W_dec_j‖)` |
//! | attribution | as standard, and `p Σ_j f_j |a·W_dec_j|` and `u |a·(x - x̂)|` |
//!
//! `a` is the gradient of a metric of the model, as the difference of two logits, by the row
//! (Makelov, Lange, Nanda 2024, after Olah et al. 2024). Their recipe also has dead codes begin
//! anew (`resample`), at rows that are drawn by the square of their loss, and lets the learning rate
//! fall to 0 in the end.
//!
//! The threshold of a jump ReLU gets the gradient of a rectangle of the bandwidth `ε`
//! around it: `-(t/ε) g` of the codes, `-(1/ε) g` of the step. Adam makes the steps.

mod attribution;
mod config;
mod dense;
mod gradients;
mod resample;
mod state;

use keyfold_kernels as kernels;
use keyfold_kernels::learn::{AdamStep, adamw};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rayon::prelude::*;

use super::{Activation, Normalize, Sae};
use crate::DictionaryError;
use crate::error::check_rows;
use crate::learner::Batches;
use gradients::Gradients;

pub use config::{BiasInit, SaeConfig, SaeMethod, SparsityLoss};

/// What a step measured.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Losses {
    /// Squared error, summed over columns, mean over rows.
    pub mse: f64,
    /// The weighted losses of sparsity and of dead codes.
    pub other: f64,
    /// Codes in use per row.
    pub l0: f64,
    /// What part of the variance is not explained.
    pub unexplained: f64,
    /// Dead codes.
    pub dead: usize,
}

/// Trains a sparse autoencoder; the losses are in the [module](super).
#[derive(Debug, Clone, PartialEq)]
pub struct Training {
    config: SaeConfig,
    pub(super) sae: Sae,
    first: Gradients,
    second: Gradients,
    steps: u64,
    rows: u64,
    /// Steps since each code was in use.
    unused: Vec<f32>,
    /// The running threshold of batch top-k.
    threshold: f64,
    /// The step after which codes last began anew; 0 for never.
    resampled: u64,
    losses: Losses,
    batches: Batches,
}

impl Training {
    /// Weights drawn by the seed: atoms in random directions, the encoder their transpose.
    ///
    /// # Errors
    /// When a setting makes no sense for rows of `d_in` numbers.
    pub fn new(config: SaeConfig, d_in: usize) -> Result<Self, DictionaryError> {
        config.check()?;
        let d_sae = match config.d_sae {
            0 => 8 * d_in,
            n => n,
        };
        let transcoder = config.d_out != 0;
        let d_out = if transcoder { config.d_out } else { d_in };
        let mut rng = StdRng::seed_from_u64(config.seed);
        let mut directions = |width: usize, norm: f32| -> Vec<f32> {
            let numbers = (0..d_sae * width).map(|_| rng.random_range(-1.0..1.0));
            let mut all: Vec<f32> = numbers.collect();
            kernels::normalize_rows(&mut all, width);
            all.iter_mut().for_each(|x| *x *= norm);
            all
        };
        let norm = match config.normalize_decoder {
            true => 1.0,
            false => config.decoder_init_norm,
        };
        let w_dec = directions(d_out, norm);
        let w_enc = match transcoder {
            true => directions(d_in, norm),
            false => w_dec.clone(),
        };
        let top_k = matches!(config.architecture, SaeMethod::TopK | SaeMethod::BatchTopK);
        let skip = config.skip_connection && transcoder;
        let sae = Sae {
            d_in,
            d_sae,
            d_out,
            activation: match config.architecture {
                SaeMethod::Standard | SaeMethod::Attribution => Activation::Relu,
                SaeMethod::TopK | SaeMethod::BatchTopK => Activation::TopK { k: config.k },
                SaeMethod::Gated => Activation::Gated {
                    b_mag: vec![0.0; d_sae],
                    r_mag: vec![0.0; d_sae],
                },
                SaeMethod::JumpRelu => Activation::JumpRelu {
                    threshold: vec![config.jumprelu_init_threshold; d_sae],
                },
            },
            normalize: Normalize::None,
            apply_b_dec_to_input: config.apply_b_dec_to_input && !transcoder,
            rescale_acts_by_decoder_norm: config.rescale_acts_by_decoder_norm && top_k,
            w_enc,
            b_enc: vec![0.0; d_sae],
            w_dec,
            b_dec: vec![0.0; d_out],
            w_skip: vec![0.0; if skip { d_out * d_in } else { 0 }],
        };
        Self::with_weights(config, sae)
    }

    /// Begins with the weights of `sae`, as read from a file.
    ///
    /// # Errors
    /// When the weights do not fit together, or are of another architecture than the
    /// settings.
    pub fn with_weights(config: SaeConfig, sae: Sae) -> Result<Self, DictionaryError> {
        config.check()?;
        sae.check()?;
        let fits = matches!(
            (config.architecture, &sae.activation),
            (
                SaeMethod::Standard | SaeMethod::Attribution,
                Activation::Relu
            ) | (
                SaeMethod::TopK | SaeMethod::BatchTopK,
                Activation::TopK { .. }
            ) | (SaeMethod::Gated, Activation::Gated { .. })
                | (SaeMethod::JumpRelu, Activation::JumpRelu { .. })
        );
        if !fits || sae.normalize != Normalize::None {
            return Err(DictionaryError::settings(
                "the weights are of another architecture than the settings, or take normalised rows",
            ));
        }
        Ok(Self {
            first: Gradients::zeros(&sae),
            second: Gradients::zeros(&sae),
            unused: vec![0.0; sae.d_sae],
            batches: Batches::new(config.batch_size),
            config,
            sae,
            steps: 0,
            rows: 0,
            threshold: 0.0,
            resampled: 0,
            losses: Losses::default(),
        })
    }

    /// The settings.
    pub fn config(&self) -> &SaeConfig {
        &self.config
    }

    /// What the last step measured.
    pub fn losses(&self) -> Losses {
        self.losses
    }

    /// The autoencoder as it is used: batch top-k with its threshold, and what chose by shares
    /// with atoms of length 1.
    pub fn sae(&self) -> Sae {
        let mut sae = self.sae.clone();
        if sae.rescale_acts_by_decoder_norm {
            sae.make_atoms_unit();
            sae.rescale_acts_by_decoder_norm = false;
        }
        if self.config.architecture == SaeMethod::BatchTopK {
            sae.activation = Activation::JumpRelu {
                threshold: vec![self.threshold as f32; sae.d_sae],
            };
        }
        sae
    }

    /// Learns from one batch: rows `[n, d_in]` and what they should give, `[n, d_out]`.
    ///
    /// # Errors
    /// When they do not fit, or the architecture needs the gradient of a metric.
    pub fn step(&mut self, rows: &[f32], targets: &[f32]) -> Result<Losses, DictionaryError> {
        if self.config.architecture == SaeMethod::Attribution {
            return Err(DictionaryError::settings(
                "attribution learns from rows together with the gradient of a metric by each of them",
            ));
        }
        self.learn(rows, targets, None)
    }

    /// Learns from one batch, for [`SaeMethod::Attribution`]: rows `[n, d_in]`, and the gradient of a
    /// metric by each of them, `[n, d_in]`.
    ///
    /// # Errors
    /// When they do not fit, or the architecture has no use for gradients.
    pub fn step_attributed(
        &mut self,
        rows: &[f32],
        metric: &[f32],
    ) -> Result<Losses, DictionaryError> {
        if self.config.architecture != SaeMethod::Attribution {
            return Err(DictionaryError::settings(
                "only architecture=attribution learns from the gradient of a metric",
            ));
        }
        if check_rows(metric, self.sae.d_in)? != check_rows(rows, self.sae.d_in)? {
            return Err(DictionaryError::settings(
                "there are not as many gradients as rows",
            ));
        }
        self.learn(rows, rows, Some(metric))
    }

    fn learn(
        &mut self,
        rows: &[f32],
        targets: &[f32],
        metric: Option<&[f32]>,
    ) -> Result<Losses, DictionaryError> {
        let n = check_rows(rows, self.sae.d_in)?;
        if check_rows(targets, self.sae.d_out)? != n {
            return Err(DictionaryError::settings(
                "there are not as many targets as rows",
            ));
        }
        let mean_first = self.config.b_dec_init_method == BiasInit::Mean;
        if mean_first && self.steps == 0 && self.sae.b_dec.iter().all(|x| *x == 0.0) {
            self.sae.b_dec = mean(targets, self.sae.d_out);
        }
        let (gradients, losses) = self.gradients(rows, targets, metric);
        self.steps += 1;
        self.rows += n as u64;
        self.losses = losses;
        self.adam(&gradients);
        if self.config.normalize_decoder {
            kernels::normalize_rows(&mut self.sae.w_dec, self.sae.d_out);
        }
        if let Activation::JumpRelu { threshold } = &mut self.sae.activation {
            // Below 0 it would close no code any more.
            threshold.iter_mut().for_each(|t| *t = t.max(0.0));
        }
        if self.config.resample_steps.contains(&self.steps) {
            self.resample(rows, targets, metric)?;
        }
        Ok(losses)
    }

    fn adam(&mut self, gradients: &Gradients) {
        /// Weights that a thread takes at a time.
        const PART: usize = 1 << 14;
        let step = AdamStep {
            rate: self.rate(),
            beta_1: self.config.adam_beta1,
            beta_2: self.config.adam_beta2,
            epsilon: self.config.adam_eps,
            weight_decay: 0.0,
            number: u32::try_from(self.steps).unwrap_or(u32::MAX),
        };
        let moments = self.first.parts_mut().into_iter();
        let moments = moments.zip(self.second.parts_mut());
        let weights = gradients::weights_mut(&mut self.sae);
        let parts = weights.into_iter().zip(gradients.parts()).zip(moments);
        for ((weights, (_, gradient)), (first, second)) in parts {
            let Some(weights) = weights else { continue };
            weights
                .par_chunks_mut(PART)
                .zip(gradient.par_chunks(PART))
                .zip(first.par_chunks_mut(PART).zip(second.par_chunks_mut(PART)))
                .for_each(|((w, g), (m, v))| adamw(w, g, m, v, step));
        }
    }

    /// The learning rate of the step that is being made.
    fn rate(&self) -> f32 {
        let config = &self.config;
        let mut rate = config.lr * warmed(self.steps, config.lr_warm_up_steps);
        if config.lr_decay_end != 0 {
            let left = config.lr_decay_end.saturating_sub(self.steps) as f32;
            rate *= (left / (config.lr_decay_end - config.lr_decay_start) as f32).min(1.0);
        }
        if self.resampled != 0 {
            let since = self.steps - self.resampled;
            rate *= 0.1 + 0.9 * warmed(since, config.resample_warm_up_steps);
        }
        rate
    }

    /// Makes codes count as dead.
    #[cfg(test)]
    pub(super) fn kill(&mut self, codes: &[usize]) {
        codes.iter().for_each(|j| self.unused[*j] = f32::MAX);
    }

    /// The weight of sparsity in the step that is being made.
    fn sparsity(&self) -> f32 {
        let full = match self.config.architecture {
            SaeMethod::JumpRelu => self.config.l0_coefficient,
            _ => self.config.l1_coefficient,
        };
        full * warmed(self.steps, self.config.sparsity_warm_up_steps)
    }
}

/// How far a warm-up of `steps` has come.
fn warmed(step: u64, steps: u64) -> f32 {
    match steps {
        0 => 1.0,
        _ => (step as f32 / steps as f32).min(1.0),
    }
}

fn mean(rows: &[f32], width: usize) -> Vec<f32> {
    let n = (rows.len() / width) as f64;
    let mut mean = vec![0f64; width];
    for row in rows.chunks_exact(width) {
        mean.iter_mut()
            .zip(row)
            .for_each(|(m, x)| *m += f64::from(*x) / n);
    }
    mean.into_iter().map(|x| x as f32).collect()
}

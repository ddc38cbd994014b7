//! What a calibration is made from: keys and values of a text, and how much each of them
//! matters.
//!
//! ```text
//! t = 1 - (1 - sparsity_threshold) / 2
//! keys     upper, lower = quantiles t and 1 - t of each channel, over the tokens
//! values   the same of each token, over the channels
//! table    of x' within -1..1, weighed by F r²
//! ```

use std::sync::{Mutex, PoisonError};

use keyfold_kernels::Team;

use super::calibration::{Calibration, Fitted, OfLayer, published};
use super::quantizer::quantile;
use super::tables::Samples;
use super::{METHOD, check_threshold};
use crate::refusal::Refusal;
use crate::roles::Dims;

/// Fewer tokens say nothing about quantiles.
const LEAST_TOKENS: usize = 32;

/// Samples that a table is fitted to; of more, every second, third ... is taken.
const MOST_SAMPLES: usize = 1 << 20;

/// How numbers are weighed when a table is fitted; `F` is the square of the loss's gradient,
/// 1 where no gradients were handed over, and `r` the range of the number's channel or token.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Weighting {
    /// `F r²`: the error of `x` is `r` times that of `x'`.
    #[default]
    FisherRange,
    /// `F`, as the authors' code has it.
    Fisher,
}

/// How a calibration is made.
#[derive(Debug, Clone, PartialEq)]
pub struct CalibrationConfig {
    /// Share of numbers within the thresholds.
    pub sparsity_threshold: f64,
    /// How numbers are weighed.
    pub weighting: Weighting,
}

impl Default for CalibrationConfig {
    fn default() -> Self {
        Self {
            sparsity_threshold: 0.99,
            weighting: Weighting::default(),
        }
    }
}

/// Keys and values of one layer, and their weights.
#[derive(Debug, Clone, Default)]
struct Seen {
    /// Tokens of the present sequence.
    position: usize,
    /// `[tokens, width]`.
    keys: Vec<f32>,
    values: Vec<f32>,
    /// Squared gradients; empty where there are none.
    key_weights: Vec<f32>,
    value_weights: Vec<f32>,
}

/// Collects keys and values of a text. They are held in 32 bits: 8 bytes for each token,
/// layer and channel of a KV head, twice that with gradients.
#[derive(Debug, Clone)]
pub struct Statistics {
    dims: Dims,
    first_few_fp16: usize,
    interleaved: bool,
    layers: Vec<Seen>,
}

impl Statistics {
    /// Nothing seen yet. The first `first_few_fp16` tokens of a sequence are left out, since
    /// they are kept as they are. `interleaved`: the model's pairs of channels are neighbours.
    pub fn new(dims: Dims, first_few_fp16: usize, interleaved: bool) -> Self {
        Self {
            dims,
            first_few_fp16,
            interleaved,
            layers: vec![Seen::default(); dims.layers],
        }
    }

    /// Says that what comes is the beginning of a text.
    pub fn begin_sequence(&mut self) {
        self.layers.iter_mut().for_each(|l| l.position = 0);
    }

    /// Adds the next tokens of a sequence: keys before rotary embedding and values `[n,
    /// kv_heads, head_dim]`, and of each number the square of the loss's gradient in it (for
    /// all calls or for none).
    ///
    /// # Errors
    /// When a number is not finite, or the lengths do not fit.
    pub fn observe(
        &mut self,
        layer: usize,
        keys_before_rope: &[f32],
        values: &[f32],
        key_sq_grads: Option<&[f32]>,
        value_sq_grads: Option<&[f32]>,
    ) -> Result<(), Refusal> {
        let width = self.dims.kv_heads * self.dims.head_dim;
        let skip_to = self.first_few_fp16;
        let refuse = |what: String| Err(Refusal::setting(METHOD, what));
        let n = keys_before_rope.len();
        let lengths = [Some(values), key_sq_grads, value_sq_grads];
        let Some(seen) = self.layers.get_mut(layer) else {
            return refuse(format!("there is no layer {layer}"));
        };
        if !n.is_multiple_of(width) || lengths.iter().flatten().any(|x| x.len() != n) {
            return refuse(format!("rows of {width} keys and values were awaited"));
        }
        if key_sq_grads.is_some() != value_sq_grads.is_some()
            || (!seen.keys.is_empty() && key_sq_grads.is_some() == seen.key_weights.is_empty())
        {
            return refuse("gradients are there for some tokens and not for others".into());
        }
        let all = [
            Some(keys_before_rope),
            Some(values),
            key_sq_grads,
            value_sq_grads,
        ];
        if all
            .iter()
            .flatten()
            .any(|x| x.iter().any(|x| !x.is_finite()))
        {
            return refuse(format!(
                "keys or values of layer {layer} are not finite; the model or the text is unfit"
            ));
        }
        let from = skip_to.saturating_sub(seen.position).min(n / width) * width;
        seen.position += n / width;
        seen.keys.extend_from_slice(&keys_before_rope[from..]);
        seen.values.extend_from_slice(&values[from..]);
        if let (Some(of_keys), Some(of_values)) = (key_sq_grads, value_sq_grads) {
            seen.key_weights.extend_from_slice(&of_keys[from..]);
            seen.value_weights.extend_from_slice(&of_values[from..]);
        }
        Ok(())
    }

    /// Tokens that count so far.
    pub fn tokens(&self) -> usize {
        let width = self.dims.kv_heads * self.dims.head_dim;
        self.layers.first().map_or(0, |l| l.keys.len() / width)
    }

    /// Thresholds and tables. `model`: [`model_hash`](super::model_hash) of what was read with.
    ///
    /// # Errors
    /// When there are fewer than 32 tokens, or a setting is out of range.
    pub fn calibrate(
        &self,
        config: &CalibrationConfig,
        model: Option<u64>,
        team: &Team,
    ) -> Result<Calibration, Refusal> {
        check_threshold(config.sparsity_threshold)?;
        let tokens = self.tokens();
        if tokens < LEAST_TOKENS {
            return Err(Refusal::setting(
                METHOD,
                format!("a calibration needs {LEAST_TOKENS} tokens at least; there are {tokens}"),
            ));
        }
        let mut layers: Vec<Option<OfLayer>> = vec![None; self.dims.layers];
        // Layers take unlike long; threads take the next one.
        let next = Mutex::new(layers.iter_mut().zip(&self.layers));
        team.run(|_| {
            loop {
                let taken = next.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some((to, seen)) = taken else { return };
                *to = Some(self.layer(seen, config));
            }
        });
        Ok(Calibration {
            model,
            sparsity_threshold: config.sparsity_threshold,
            tokens: tokens as u64,
            fisher: self.layers.iter().any(|l| !l.key_weights.is_empty()),
            layers: layers.into_iter().flatten().collect(),
        })
    }

    fn layer(&self, seen: &Seen, config: &CalibrationConfig) -> OfLayer {
        let width = self.dims.kv_heads * self.dims.head_dim;
        let t = 1.0 - (1.0 - config.sparsity_threshold) / 2.0;
        let mut line = Vec::new();
        let mut ends = |numbers: &mut dyn Iterator<Item = f32>| -> (f32, f32) {
            line.clear();
            line.extend(numbers);
            line.sort_unstable_by(f32::total_cmp);
            (quantile(&line, t), quantile(&line, 1.0 - t))
        };
        let of_channel = |c: usize| seen.keys.iter().skip(c).step_by(width).copied();
        let of_channels: Vec<(f32, f32)> = (0..width).map(|c| ends(&mut of_channel(c))).collect();
        let rows = seen.values.chunks_exact(width);
        let of_tokens: Vec<(f32, f32)> = rows.map(|r| ends(&mut r.iter().copied())).collect();
        let keys = fit(&seen.keys, &seen.key_weights, width, config, |at| {
            of_channels[at % width]
        });
        let values = fit(&seen.values, &seen.value_weights, width, config, |at| {
            of_tokens[at / width]
        });
        let all = |which: fn(&(f32, f32)) -> f32| -> Vec<f32> {
            let all: Vec<f32> = of_channels.iter().map(which).collect();
            published(&all, self.dims.head_dim, self.interleaved)
        };
        OfLayer {
            upper: all(|e| e.0),
            lower: all(|e| e.1),
            keys,
            values,
        }
    }
}

/// Tables for numbers `[tokens, width]`, each between its ends.
fn fit(
    numbers: &[f32],
    weights: &[f32],
    width: usize,
    config: &CalibrationConfig,
    ends: impl Fn(usize) -> (f32, f32),
) -> [Fitted; 3] {
    let step = numbers.len().div_ceil(MOST_SAMPLES).max(1);
    // A step that shares a factor with the width would leave out channels.
    let step = (step..).find(|&s| gcd(s, width) == 1).unwrap_or(step);
    let mut samples = Vec::with_capacity(numbers.len() / step + 1);
    for at in (0..numbers.len()).step_by(step) {
        let (upper, lower) = ends(at);
        let (zero, range) = (0.5 * (upper + lower), 0.5 * (upper - lower));
        let scaled = (numbers[at] - zero) / range;
        // Outliers, and channels without a range.
        let inside = scaled.abs() <= 1.0;
        if !inside {
            continue;
        }
        let fisher = weights.get(at).copied().unwrap_or(1.0);
        let weight = match config.weighting {
            Weighting::FisherRange => fisher * range * range,
            Weighting::Fisher => fisher,
        };
        samples.push((scaled, weight));
    }
    let samples = Samples::new(samples);
    samples.fit().map(|centroids| Fitted {
        norm: samples.norm(&centroids),
        centroids,
    })
}

/// The greatest common divisor.
fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

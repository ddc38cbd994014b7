//! Does a dictionary of features describe, steer and explain a model?
//!
//! For whom: who has a sparse autoencoder and a task whose attributes are known, and wants
//! numbers instead of examples: what is lost when activations are replaced by their
//! reconstructions, whether a few features change one attribute and nothing else, and which
//! features stand for what. The yardstick is a dictionary computed from the labels.
//!
//! Source: Aleksandar Makelov, Georg Lange, Neel Nanda, Towards Principled Evaluations of Sparse
//! Autoencoders for Interpretability and Control (2024). With activations `a_i` of prompts whose
//! attribute `f` has the value `v_f(i)`:
//!
//! | part | definition |
//! |---|---|
//! | supervised dictionary | `a ≈ b + Σ_f u_f(v_f)`, of [means](SupervisedDictionary::mean_codes) or [least squares](SupervisedDictionary::mse_codes) |
//! | approximation | `\|LD(reconstructed) - LD(mean)\| / \|LD(clean) - LD(mean)\|` of logit differences ([`recovered`]) |
//! | supervised edit | `a - u_f(old) + u_f(new)` |
//! | [greedy edit](edits::greedy) | the `m` features whose change from prompt to counterfactual brings `a` nearest to the counterfactual's |
//! | [edit by meaning](edits::by_score) | out with the `m` features of best F1 for the old value, in with those for the new |
//! | weight of features | `w_j = f_j d_j · (x̂ - b_dec) / ‖x̂ - b_dec‖²`; a good edit moves little |
//! | [interpretability](scores) | F1 of a feature being active against an attribute having a value |
//!
//! Edits are added to the activation itself, so that what the autoencoder loses stays. Rows are
//! divided by [`scale_of`] before they are coded, and multiplied after. Cost: codes of all
//! rows once; a greedy step looks at features in use alone; F1 counts bits.

pub mod edits;
pub mod indirect_object;
pub mod scores;
mod supervised;

use keyfold_dictionary::Codes;
use keyfold_dictionary::sae::{Sae, SaeConfig, Training};
use keyfold_kernels as kernels;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use crate::InspectError;
use crate::error::check_rows;

pub use supervised::{Attribute, SupervisedDictionary};

/// By what rows are divided so that their mean length is `√d`.
///
/// # Errors
/// When rows are not finite, none, or all 0.
pub fn scale_of(rows: &[f32], d: usize) -> Result<f32, InspectError> {
    let n = check_rows("activations", rows, d)?;
    let lengths = rows.chunks_exact(d).map(|r| f64::from(kernels::norm(r)));
    let mean = lengths.sum::<f64>() / n as f64;
    match mean > 0.0 {
        true => Ok((mean / (d as f64).sqrt()) as f32),
        false => Err(InspectError::settings("all activations are 0")),
    }
}

/// A sparse autoencoder with the number by which its rows are divided.
#[derive(Debug, Clone, PartialEq)]
pub struct ScaledSae {
    /// The autoencoder.
    pub sae: Sae,
    /// By what rows are divided before they are coded.
    pub scale: f32,
}

/// Rows as an autoencoder sees them.
#[derive(Debug, Clone, PartialEq)]
pub struct Coded {
    /// The codes.
    pub codes: Codes,
    /// The reconstructions, in the scale of the rows.
    pub rows: Vec<f32>,
}

impl ScaledSae {
    /// Refuses an autoencoder for other rows.
    ///
    /// # Errors
    /// When it codes rows of another width, or gives back others than it takes.
    pub fn check(&self, d: usize) -> Result<(), InspectError> {
        if self.sae.d_in != d || self.sae.d_out != d {
            return Err(InspectError::Disagree {
                what: "numbers of a row of the dictionary and of the place in the model".to_owned(),
                left: self.sae.d_in,
                right: d,
            });
        }
        Ok(())
    }

    /// Codes and reconstructions.
    ///
    /// # Errors
    /// When rows do not fit.
    pub fn code(&self, rows: &[f32]) -> Result<Coded, InspectError> {
        let scaled: Vec<f32> = rows.iter().map(|x| x / self.scale).collect();
        let codes = self.sae.encode(&scaled)?;
        let mut rows = self.sae.decode(&codes, &scaled)?;
        rows.iter_mut().for_each(|x| *x *= self.scale);
        Ok(Coded { codes, rows })
    }

    /// A feature's atom in the scale of the rows, per unit of its code.
    fn atom(&self, feature: u32) -> impl Iterator<Item = f32> + '_ {
        let d = self.sae.d_out;
        let atom = &self.sae.w_dec[feature as usize * d..][..d];
        atom.iter().map(|x| x * self.scale)
    }

    /// The weight of each feature in use in a row's reconstruction; they sum to 1.
    pub fn weights(&self, coded: &Coded, row: usize) -> Vec<f64> {
        let d = self.sae.d_out;
        let bias = self.sae.b_dec.iter().map(|b| b * self.scale);
        let rest: Vec<f32> = coded.rows[row * d..][..d]
            .iter()
            .zip(bias)
            .map(|(x, b)| x - b)
            .collect();
        let size = f64::from(kernels::dot(&rest, &rest));
        let (features, values) = coded.codes.row(row);
        let weight = |(j, f): (&u32, &f32)| {
            let along: f64 = self
                .atom(*j)
                .zip(&rest)
                .map(|(a, r)| f64::from(a * r))
                .sum();
            f64::from(*f) * along / size.max(1e-300)
        };
        features.iter().zip(values).map(weight).collect()
    }
}

/// Trains an autoencoder on rows that are all there, in an order drawn anew for each pass. `metric`
/// is the gradient of what the model answers by each row, for `architecture = attribution`.
///
/// # Errors
/// When rows or settings make no sense, or the user asked to stop.
pub fn train_sae(
    rows: &[f32],
    d: usize,
    metric: Option<&[f32]>,
    config: SaeConfig,
    epochs: usize,
    progress: &dyn keyfold_core::Progress,
) -> Result<ScaledSae, InspectError> {
    let scale = scale_of(rows, d)?;
    let n = rows.len() / d;
    if let Some(metric) = metric
        && metric.len() != rows.len()
    {
        return Err(InspectError::Disagree {
            what: "numbers of gradients, and of rows".to_owned(),
            left: metric.len(),
            right: rows.len(),
        });
    }
    // A row of half the size does twice as much to the metric for each of its units; the released
    // code divides.
    let chain = if config.compat { 1.0 / scale } else { scale };
    let batch = config.batch_size.clamp(1, n);
    let mut order: Vec<usize> = (0..n).collect();
    let mut rng = StdRng::seed_from_u64(config.seed);
    let mut training = Training::new(config, d)?;
    progress.start("autoencoder", "passes", Some(epochs as u64));
    let (mut part, mut effects) = (Vec::with_capacity(batch * d), Vec::new());
    for _ in 0..epochs {
        if progress.cancelled() {
            return Err(InspectError::Cancelled);
        }
        order.shuffle(&mut rng);
        for rows_of in order.chunks(batch) {
            part.clear();
            effects.clear();
            for row in rows_of {
                part.extend(rows[row * d..][..d].iter().map(|x| x / scale));
                if let Some(metric) = metric {
                    effects.extend(metric[row * d..][..d].iter().map(|x| x * chain));
                }
            }
            match metric {
                None => training.step(&part, &part)?,
                Some(_) => training.step_attributed(&part, &effects)?,
            };
        }
        progress.advance(1);
    }
    progress.finish();
    Ok(ScaledSae {
        sae: training.sae(),
        scale,
    })
}

/// What part of an effect a replacement keeps: 1 is all, 0 is as much as the mean activation.
pub fn recovered(replaced: f64, mean_ablated: f64, clean: f64) -> f64 {
    (replaced - mean_ablated).abs() / (clean - mean_ablated).abs().max(1e-300)
}

/// What part of the variance of rows is not in their reconstructions.
///
/// # Panics
/// When the lengths differ.
pub fn unexplained(rows: &[f32], reconstructed: &[f32], d: usize) -> f64 {
    assert_eq!(rows.len(), reconstructed.len(), "rows and reconstructions");
    let n = (rows.len() / d).max(1) as f64;
    let mut mean = vec![0.0f64; d];
    for row in rows.chunks_exact(d) {
        mean.iter_mut()
            .zip(row)
            .for_each(|(m, x)| *m += f64::from(*x) / n);
    }
    let (mut rest, mut spread) = (0.0, 0.0);
    for (row, told) in rows.chunks_exact(d).zip(reconstructed.chunks_exact(d)) {
        for ((x, t), m) in row.iter().zip(told).zip(&mean) {
            rest += (f64::from(*x) - f64::from(*t)).powi(2);
            spread += (f64::from(*x) - m).powi(2);
        }
    }
    rest / f64::max(spread, 1e-300)
}

#[cfg(test)]
mod tests;

//! Losses by what a metric of the model makes of codes and of errors.

use keyfold_kernels as kernels;

use super::Training;
use crate::sae::backward::{Active, ByCode};

impl Training {
    /// Adds the gradient of what the error does to the metric to that of the result; gives the loss.
    pub(super) fn unexplained(&self, error: &[f32], metric: &[f32], g: &mut [f32]) -> f64 {
        let d = self.sae.d_out;
        let weight = self.config.unexplained_attribution_penalty / (error.len() / d) as f32;
        let rows = error.chunks_exact(d).zip(metric.chunks_exact(d));
        let mut loss = 0.0;
        for (g, (error, metric)) in g.chunks_exact_mut(d).zip(rows) {
            let effect = kernels::dot(error, metric);
            kernels::axpy(g, weight * sign(effect), metric);
            loss += f64::from(weight * effect.abs());
        }
        loss
    }

    /// Adds the gradient of what codes in use do to the metric, `f_j |a·W_dec_j|`; gives the loss.
    pub(super) fn attribute(
        &self,
        active: &Active,
        slopes: &mut [f32],
        by_code: &ByCode,
        w_dec: &mut [f32],
        metric: &[f32],
    ) -> f64 {
        let d = self.sae.d_out;
        let weight = self.config.attribution_sparsity_penalty / (metric.len() / d) as f32;
        let effects = active.dots(metric, &self.sae.w_dec, d);
        let mut loss = 0.0;
        let parts = slopes.iter_mut().zip(&effects).zip(&active.values);
        let factors: Vec<f32> = parts
            .map(|((slope, effect), f)| {
                *slope += weight * effect.abs();
                loss += f64::from(weight * f * effect.abs());
                weight * f * sign(*effect)
            })
            .collect();
        by_code.gather(w_dec, metric, &factors, d);
        loss
    }
}

/// As `signum`, but 0 at 0.
fn sign(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { x.signum() }
}

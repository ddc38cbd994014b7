//! The theory of softmax heads on linear regression: losses, optima, and what they predict.

use faer::Mat;
use keyfold_kernels as kernels;
use rayon::prelude::*;

use super::{Prompts, attend, mean_square};
use crate::{InspectError, algebra};

/// The approximate loss of the theory.
pub fn approximate_loss(omega: &[f64], mu: &[f64], d: usize, length: usize, sigma2: f64) -> f64 {
    let a = theory_matrix(omega, d, length, sigma2);
    let product = |i: usize| (0..mu.len()).map(|j| a[(i, j)] * mu[j]).sum::<f64>();
    let quadratic: f64 = (0..mu.len()).map(|i| mu[i] * product(i)).sum();
    let linear: f64 = mu.iter().zip(omega).map(|(m, o)| m * o).sum();
    1.0 + sigma2 - 2.0 * linear + quadratic
}

/// Gradients of [`approximate_loss`] by `ω` and `μ`.
pub fn approximate_gradient(
    omega: &[f64],
    mu: &[f64],
    d: usize,
    length: usize,
    sigma2: f64,
) -> (Vec<f64>, Vec<f64>) {
    let a = theory_matrix(omega, d, length, sigma2);
    let along: f64 = mu.iter().zip(omega).map(|(m, o)| m * o).sum();
    let factor = 2.0 * d as f64 * (1.0 + sigma2) / length as f64;
    let n = omega.len();
    let by_mu = |i: usize| -2.0 * omega[i] + 2.0 * (0..n).map(|j| a[(i, j)] * mu[j]).sum::<f64>();
    let by_omega = |i: usize| {
        let pull =
            (0..n).map(|j| (d as f64 * omega[i] * omega[j]).exp() * mu[i] * mu[j] * omega[j]);
        -2.0 * mu[i] + 2.0 * along * mu[i] + factor * pull.sum::<f64>()
    };
    ((0..n).map(by_omega).collect(), (0..n).map(by_mu).collect())
}

/// `ωωᵀ + (1+σ²)/L · exp(d ωωᵀ)`
fn theory_matrix(omega: &[f64], d: usize, length: usize, sigma2: f64) -> Mat<f64> {
    let share = (1.0 + sigma2) / length as f64;
    Mat::from_fn(omega.len(), omega.len(), |i, j| {
        let product = omega[i] * omega[j];
        product + share * (d as f64 * product).exp()
    })
}

/// The best `μ` for heads of these `ω`, by the approximate loss.
///
/// # Errors
/// When heads are so much alike that there is no one answer.
pub fn best_mu(
    omega: &[f64],
    d: usize,
    length: usize,
    sigma2: f64,
) -> Result<Vec<f64>, InspectError> {
    let a = theory_matrix(omega, d, length, sigma2);
    let right = Mat::from_fn(omega.len(), 1, |i, _| omega[i]);
    let mu = algebra::solve_symmetric(a.as_ref(), right.as_ref(), 0.0)?;
    Ok((0..omega.len()).map(|i| mu[(i, 0)]).collect())
}

/// `ω` and `μ` of one head at the optimum of the approximate loss.
pub fn single_head_optimum(d: usize, length: usize, sigma2: f64) -> (f64, f64) {
    let root = (d as f64).sqrt();
    let growth = (1.0 + sigma2) * d as f64 * std::f64::consts::E / length as f64;
    (1.0 / root, root / (1.0 + growth))
}

/// The step `2 ω μ` of two heads at the optimum: `1 / (1 + (1+σ²) d / L)`.
pub fn two_head_step(d: usize, length: usize, sigma2: f64) -> f64 {
    1.0 / (1.0 + (1.0 + sigma2) * d as f64 / length as f64)
}

/// An estimator that a trained model is compared with, for one task.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Estimator {
    /// `Σ_h μ_h Σ_l y_l softmax_l(ω_h <x_l, x_q>)` with `ω` and `-ω`, each with half the step.
    TwoHeads {
        /// What the heads compare with.
        omega: f64,
        /// `2 ω μ`
        step: f64,
    },
    /// The same with one head.
    OneHead {
        /// What the head compares with.
        omega: f64,
        /// What it writes.
        mu: f64,
    },
    /// `step / L · Σ_l y_l <x_l, x_q>`: one step of gradient descent from 0.
    GradientDescent {
        /// The step.
        step: f64,
    },
    /// The same with `y` centred.
    Debiased {
        /// The step.
        step: f64,
    },
    /// Ridge regression at this penalty; `σ² d` is the Bayes answer.
    Ridge {
        /// The penalty.
        alpha: f64,
    },
}

impl Estimator {
    /// Mean squared error on prompts of one task.
    ///
    /// # Errors
    /// When prompts have several tasks.
    pub fn error(&self, prompts: &Prompts) -> Result<f64, InspectError> {
        let d = prompts.row - 1;
        if prompts.is_empty() || prompts.queries.len() != d * prompts.len() {
            return Err(InspectError::settings(
                "estimators are for prompts of one task",
            ));
        }
        let told: Result<Vec<f32>, InspectError> = (0..prompts.len())
            .into_par_iter()
            .map(|i| {
                let (z, query) = prompts.prompt(i);
                self.predict(z, query)
            })
            .collect();
        Ok(mean_square(&told?, &prompts.targets))
    }

    pub(crate) fn predict(&self, z: &[f32], query: &[f32]) -> Result<f32, InspectError> {
        let d = query.len();
        let length = z.len() / (d + 1);
        let rows = || z.chunks_exact(d + 1);
        let head = |omega: f64| -> f64 {
            let mut key: Vec<f32> = query.iter().map(|x| x * omega as f32).collect();
            key.push(0.0);
            f64::from(attend(z, &key)[d])
        };
        let descent = |shift: f64| -> f64 {
            let products =
                rows().map(|z| (f64::from(z[d]) - shift) * f64::from(kernels::dot(&z[..d], query)));
            products.sum::<f64>() / length as f64
        };
        Ok(match *self {
            Self::TwoHeads { omega, step } => step / (2.0 * omega) * (head(omega) - head(-omega)),
            Self::OneHead { omega, mu } => mu * head(omega),
            Self::GradientDescent { step } => step * descent(0.0),
            Self::Debiased { step } => {
                let mean = rows().map(|z| f64::from(z[d])).sum::<f64>() / length as f64;
                step * descent(mean)
            }
            Self::Ridge { alpha } => {
                let x = Mat::from_fn(length, d, |i, j| f64::from(z[i * (d + 1) + j]));
                let y = Mat::from_fn(length, 1, |i, _| f64::from(z[i * (d + 1) + d]));
                let gram = x.transpose() * &x;
                let right = x.transpose() * &y;
                let w = algebra::solve_symmetric(gram.as_ref(), right.as_ref(), alpha)?;
                (0..d).map(|j| w[(j, 0)] * f64::from(query[j])).sum()
            }
        } as f32)
    }
}

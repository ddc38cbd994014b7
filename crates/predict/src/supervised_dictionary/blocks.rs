//! Block-coordinate descent: atoms, codes and regression in turn, none of them further
//! than a radius that shrinks from step to step.

use keyfold_core::{NoProgress, Progress};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::index;

use super::{State, Told, Variant};
use crate::algebra::{dot, multiply, norm, product, view};
use crate::logistic::{LogisticConfig, weights};
use crate::{Linear, PredictError};

/// Passes over the atoms in one step.
const PASSES: usize = 5;
/// Steps between two looks at the loss.
const LOOK: usize = 10;

pub(super) fn run(state: &mut State, progress: &dyn Progress) -> Result<Told, PredictError> {
    let mut told = Told::default();
    let mut rng = SmallRng::seed_from_u64(state.config.seed ^ 0x5d1);
    let mut regression = Regression::default();
    for k in 0..state.config.iter {
        if progress.cancelled() {
            return Err(PredictError::Cancelled);
        }
        let radius = state.config.beta.map(|beta| {
            let k = k as f64;
            state.config.search_radius_const * (k + 1.0).powf(-beta) / (k + 2.0).ln()
        });
        match state.config.variant {
            Variant::Filter => {
                atoms_with_labels(state, radius);
                make_unit(&mut state.w);
                codes(state, radius);
                regression.refit(state, true);
            }
            Variant::Feature => {
                atoms_alone(state, radius);
                make_unit(&mut state.w);
                regression.refit(state, false);
                codes_with_labels(state, radius, &mut rng);
            }
        }
        progress.advance(1);
        told.iterations = k + 1;
        if k % LOOK == 0 {
            let loss = state.loss();
            progress.status(&format!("loss {loss:.5}"));
            let before = told.losses.last().copied();
            told.losses.push(loss);
            if before.is_some_and(|before| loss > 1.1 * before) {
                told.grew = true;
                break;
            }
        }
    }
    regression.refit(state, state.config.variant == Variant::Filter);
    told.losses.push(state.loss());
    Ok(told)
}

fn make_unit(w: &mut [f64]) {
    let length = norm(w);
    if length > 0.0 {
        w.iter_mut().for_each(|x| *x /= length);
    }
}

/// Gradient steps of the atoms for reconstruction and labels together.
fn atoms_with_labels(state: &mut State, radius: Option<f64>) {
    let (p, r, n) = (state.p, state.r, state.n);
    let [_, a1] = state.config.l1;
    let [_, a2] = state.config.l2;
    let h = view(&state.h, n);
    let gram = product(h, h.transpose());
    let rows = view(state.x, p);
    // Wᵀ's own part of the gradient: X Hᵀ, [p, r].
    let target = product(rows.transpose(), h.transpose());
    let trace: f64 = (0..r).map(|j| gram[j * r + j]).sum();
    let weights: Vec<f64> = (state.beta.coef.chunks_exact(r + state.q))
        .flat_map(|row| &row[..r])
        .copied()
        .collect();
    let old = state.w.clone();
    let passes = if state.config.compat { 1 } else { PASSES };
    for i in 0..passes {
        // The released code counts rows where it should count passes.
        let count = if state.config.compat { n - 1 } else { i };
        let seen = state.seen(&state.filtered());
        let (residuals, _) = state.residuals(&seen);
        // X (P - Y)ᵀ B, [p, r].
        let pulled = product(rows.transpose(), view(&residuals, state.kappa));
        let mut gradient = product(view(&pulled, state.kappa), view(&weights, r));
        multiply(
            &mut gradient,
            view(&state.w, r),
            view(&gram, r),
            state.config.xi,
            true,
        );
        let step = 1.0 / ((count as f64 + 10.0).sqrt() * (trace + 1.0));
        for ((w, g), t) in state.w.iter_mut().zip(&gradient).zip(&target) {
            let sign = if *w == 0.0 { 0.0 } else { w.signum() };
            *w -= step * (g - state.config.xi * t + a1 * sign + a2 * *w);
        }
        pull_back(&mut state.w, &old, r, radius);
        if state.config.nonneg[1] {
            state.w.iter_mut().for_each(|w| *w = w.max(0.0));
        }
    }
}

/// Pulls a matrix with `columns` columns back towards another until the greatest singular
/// value of their difference is at most `radius`.
fn pull_back(matrix: &mut [f64], old: &[f64], columns: usize, radius: Option<f64>) {
    let Some(radius) = radius else { return };
    let apart: Vec<f64> = matrix.iter().zip(old).map(|(a, b)| a - b).collect();
    // No singular value is greater than the length of the whole.
    if norm(&apart) <= radius {
        return;
    }
    let far = spectral_norm(&apart, columns);
    if far > radius {
        let part = radius / far;
        let pairs = matrix.iter_mut().zip(old).zip(&apart);
        pairs.for_each(|((m, old), apart)| *m = old + part * apart);
    }
}

/// The greatest singular value.
pub(super) fn spectral_norm(matrix: &[f64], columns: usize) -> f64 {
    let matrix = view(matrix, columns);
    let (rows, columns) = (matrix.nrows(), matrix.ncols());
    let (gram, size) = match rows < columns {
        true => (product(matrix, matrix.transpose()), rows),
        false => (product(matrix.transpose(), matrix), columns),
    };
    let found = view(&gram, size).self_adjoint_eigenvalues(faer::Side::Lower);
    // Without eigenvalues the length, which is no less.
    match found {
        Ok(values) => values.last().map_or(0.0, |v| v.max(0.0).sqrt()),
        Err(_) => norm(&gram).sqrt(),
    }
}

/// Two passes of projected gradients, row by row, for `‖B - A H‖` in normal form: `A` is
/// the Gram matrix `[r, r]`, `B` and `H` are `[r, n]`.
fn descend(
    h: &mut [f64],
    a: &[f64],
    b: &[f64],
    r: usize,
    radius: Option<f64>,
    (l1, l2): (f64, f64),
    nonneg: bool,
) {
    let n = h.len() / r;
    let mut gradient = vec![0.0; n];
    for _ in 0..2 {
        for k in 0..r {
            gradient
                .iter_mut()
                .zip(&b[k * n..(k + 1) * n])
                .for_each(|(g, b)| *g = -b);
            for (j, row) in h.chunks_exact(n).enumerate() {
                let factor = a[k * r + j];
                gradient
                    .iter_mut()
                    .zip(row)
                    .for_each(|(g, h)| *g += factor * h);
            }
            let row = &mut h[k * n..(k + 1) * n];
            if l1 > 0.0 || l2 > 0.0 {
                for (g, h) in gradient.iter_mut().zip(row.iter()) {
                    let sign = if *h == 0.0 { 0.0 } else { h.signum() };
                    *g += l1 * sign + l2 * h;
                }
            }
            let mut step = 1.0 / (a[k * r + k] + 1.0);
            if let Some(radius) = radius {
                let far = step * dot(&gradient, &gradient).sqrt();
                step *= radius / radius.max(far);
            }
            for (h, g) in row.iter_mut().zip(&gradient) {
                *h -= step * g;
                if nonneg {
                    *h = h.max(0.0);
                }
            }
        }
    }
}

/// Codes that rebuild the rows better.
fn codes(state: &mut State, radius: Option<f64>) {
    let w = view(&state.w, state.r);
    let gram = product(w.transpose(), w);
    let filtered = state.filtered();
    let penalty = (state.config.l1[0], state.config.l2[0]);
    let nonneg = state.config.nonneg[0];
    descend(
        &mut state.h,
        &gram,
        &filtered,
        state.r,
        radius,
        penalty,
        nonneg,
    );
}

/// Atoms that rebuild the rows better.
fn atoms_alone(state: &mut State, radius: Option<f64>) {
    let h = view(&state.h, state.n);
    let gram = product(h, h.transpose());
    let target = product(h, view(state.x, state.p));
    let mut w = super::transposed(&state.w, state.r);
    let penalty = (state.config.l1[1], state.config.l2[1]);
    let nonneg = state.config.nonneg[1];
    descend(&mut w, &gram, &target, state.r, radius, penalty, nonneg);
    state.w = super::transposed(&w, state.p);
}

/// Codes of a tenth of the rows, drawn anew for each atom, for reconstruction and labels
/// together.
fn codes_with_labels(state: &mut State, radius: Option<f64>, rng: &mut SmallRng) {
    let (n, r, kappa) = (state.n, state.r, state.kappa);
    let columns = r + state.q;
    let w = view(&state.w, r);
    let gram = product(w.transpose(), w);
    let filtered = state.filtered();
    let some = (n / 10).clamp(1, n);
    let [l1, l2] = [state.config.l1[0], state.config.l2[0]];
    let old = state.h.clone();
    let mut row = vec![0.0; kappa];
    for i in 0..2 {
        for k in 0..r {
            let step = 1.0 / ((i as f64 + 10.0).sqrt() * (gram[k * r + k] + 1.0));
            let drawn = index::sample(rng, n, some);
            for s in drawn {
                let mut gradient = -filtered[k * n + s];
                for j in 0..r {
                    gradient += gram[k * r + j] * state.h[j * n + s];
                }
                gradient *= state.config.xi;
                let all = state.beta.coef.chunks_exact(columns);
                for ((score, coef), bias) in row.iter_mut().zip(all).zip(&state.beta.intercept) {
                    let codes: f64 = (0..r).map(|j| coef[j] * state.h[j * n + s]).sum();
                    let aux = &state.aux[s * state.q..(s + 1) * state.q];
                    *score = bias + codes + dot(&coef[r..], aux);
                }
                super::residual(&mut row, state.codes[s]);
                for (residual, coef) in row.iter().zip(state.beta.coef.chunks_exact(columns)) {
                    gradient += residual * coef[k];
                }
                let h = &mut state.h[k * n + s];
                let sign = if *h == 0.0 { 0.0 } else { h.signum() };
                *h -= step * (gradient + l1 * sign + l2 * *h);
                if state.config.nonneg[0] {
                    *h = h.max(0.0);
                }
            }
        }
    }
    pull_back(&mut state.h, &old, n, radius);
}

/// The logistic regression on the features, which starts where it ended last.
#[derive(Default)]
struct Regression {
    last: Option<Linear>,
}

impl Regression {
    fn refit(&mut self, state: &mut State, filter: bool) {
        let features = match filter {
            true => state.filtered(),
            false => state.h.clone(),
        };
        let seen = state.seen(&features);
        let config = LogisticConfig {
            tol: 1e-8,
            max_iter: 300,
            ..Default::default()
        };
        let columns = state.r + state.q;
        let (linear, _) = weights(
            &seen,
            columns,
            state.codes,
            state.kappa + 1,
            &config,
            self.last.as_ref(),
            &NoProgress,
        );
        state.beta = match state.kappa {
            1 => linear.clone(),
            // Against the first class, which is the one that carries no weights here.
            _ => against_first(&linear, columns),
        };
        self.last = Some(linear);
    }
}

fn against_first(linear: &Linear, columns: usize) -> Linear {
    let (first, rest) = linear.coef.split_at(columns);
    Linear {
        coef: (rest.chunks_exact(columns))
            .flat_map(|row| row.iter().zip(first).map(|(a, b)| a - b))
            .collect(),
        intercept: (linear.intercept[1..].iter())
            .map(|b| b - linear.intercept[0])
            .collect(),
    }
}

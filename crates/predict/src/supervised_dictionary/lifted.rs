//! Low-rank projected gradient descent on the lifted problem.
//!
//! With `A = W Bᵀ` and `M = W H` (variant `filter`; `A = B H` for `feature`) the loss is
//! convex in `A`, `M` and the covariates' weights, and the dictionary is there again in the
//! rank: `[A, M]` (or `[A; M]`) has rank `r`. Each step is a gradient step followed by the
//! nearest matrix of rank `r`.
//!
//! The loss bends along `A` as much as `‖X‖² / 4` and along `M` by `2ξ`. `A` is therefore
//! kept in a unit in which both bend alike, so that one step size suits both; the released
//! code has one step size without that, which must be small (`compat`).

use faer::{MatRef, Side};
use keyfold_core::Progress;

use super::blocks::spectral_norm;
use super::{State, Told, Variant};
use crate::algebra::{norm, product, view};
use crate::{Linear, PredictError};

/// The lifted variables, and how far they go in a step.
struct Lifted {
    /// Row-major: `[p, kappa + n]` for `filter`, `[kappa + p, n]` for `feature`.
    stack: Vec<f64>,
    columns: usize,
    /// Unit of `A`: what is in the stack is `A · unit`.
    unit: f64,
    /// Weights of the intercept and the covariates, `[kappa, 1 + q]`.
    gamma: Vec<f64>,
}

pub(super) fn run(state: &mut State, progress: &dyn Progress) -> Result<Told, PredictError> {
    let mut told = Told::default();
    let config = state.config;
    let filter = config.variant == Variant::Filter;
    let (p, kappa, q) = (state.p, state.kappa, state.q);
    // How much the loss bends along A, along M, and along the covariates.
    let along_a = match filter {
        true => 0.25 * spectral_norm(state.x, p).powi(2),
        false => 0.25,
    }
    .max(1e-12);
    let along_m = (2.0 * config.xi).max(1e-12);
    let covariates = covariates(state);
    let along_gamma = 0.25 * spectral_norm(&covariates, 1 + q).powi(2);
    let unit = match config.compat || config.xi == 0.0 {
        true => 1.0,
        false => (along_a / along_m).sqrt(),
    };
    let mut lifted = lift(state, filter, unit);
    let mut step = match (config.compat, config.xi == 0.0) {
        (true, _) => config.stepsize,
        (false, true) => 1.0 / along_a,
        (false, false) => 1.0 / along_m,
    };
    // Several classes bend up to twice as much.
    let several = if kappa > 1 { 0.5 } else { 1.0 };
    let mut before = f64::INFINITY;
    for k in 0..config.iter {
        if progress.cancelled() {
            return Err(PredictError::Cancelled);
        }
        if config.compat {
            step *= (k as f64 + 10.0).powf(-config.beta.unwrap_or(0.0));
        }
        let along = match config.compat {
            true => step,
            false => several * step,
        };
        let along_gamma = match config.compat {
            true => step,
            false => several / along_gamma,
        };
        let loss = lifted.descend(state, filter, &covariates, along, along_gamma);
        lifted.project(state.r)?;
        progress.advance(1);
        told.iterations = k + 1;
        if k % 10 == 0 {
            progress.status(&format!("loss {loss:.5}"));
            told.losses.push(loss);
            // Gradient steps of this length never climb for long; if they do, all is lost.
            if loss > 1.1 * before || !loss.is_finite() {
                told.grew = true;
                break;
            }
            before = loss;
        }
    }
    lifted.lower(state, filter)?;
    told.losses.push(state.loss());
    Ok(told)
}

/// A column of ones, then the covariates, `[n, 1 + q]`.
fn covariates(state: &State) -> Vec<f64> {
    let mut all = Vec::with_capacity(state.n * (1 + state.q));
    for i in 0..state.n {
        all.push(1.0);
        all.extend(&state.aux[i * state.q..(i + 1) * state.q]);
    }
    all
}

/// The lifted variables of a dictionary.
fn lift(state: &State, filter: bool, unit: f64) -> Lifted {
    let (n, p, r, kappa, q) = (state.n, state.p, state.r, state.kappa, state.q);
    let beta: Vec<f64> = (state.beta.coef.chunks_exact(r + q))
        .flat_map(|row| row[..r].iter().map(|b| b * unit))
        .collect();
    let gamma = (state.beta.coef.chunks_exact(r + q))
        .zip(&state.beta.intercept)
        .flat_map(|(row, b)| std::iter::once(*b).chain(row[r..].iter().copied()))
        .collect();
    let w = view(&state.w, r);
    let m = product(w, view(&state.h, n));
    let (stack, columns) = match filter {
        true => {
            let a = product(w, view(&beta, r).transpose());
            let rows = (a.chunks_exact(kappa)).zip(m.chunks_exact(n));
            let stack = rows.flat_map(|(a, m)| a.iter().chain(m).copied()).collect();
            (stack, kappa + n)
        }
        false => {
            let mut stack = product(view(&beta, r), view(&state.h, n));
            stack.extend(&m);
            (stack, n)
        }
    };
    debug_assert_eq!(
        stack.len(),
        if filter {
            p * (kappa + n)
        } else {
            (kappa + p) * n
        }
    );
    Lifted {
        stack,
        columns,
        unit,
        gamma,
    }
}

impl Lifted {
    /// A gradient step; gives the loss before it.
    fn descend(
        &mut self,
        state: &State,
        filter: bool,
        covariates: &[f64],
        step: f64,
        step_gamma: f64,
    ) -> f64 {
        let (n, p, kappa) = (state.n, state.p, state.kappa);
        let stack = view(&self.stack, self.columns);
        let mut scores = match filter {
            true => product(view(state.x, p), stack.subcols(0, kappa)),
            false => product(view(covariates, 1 + state.q), {
                let gamma = view(&self.gamma, 1 + state.q);
                gamma.transpose()
            }),
        };
        let z = view(covariates, 1 + state.q);
        match filter {
            true => {
                scores.iter_mut().for_each(|s| *s /= self.unit);
                let gamma = view(&self.gamma, 1 + state.q);
                crate::algebra::multiply(&mut scores, z, gamma.transpose(), 1.0, true);
            }
            false => {
                for (i, row) in scores.chunks_exact_mut(kappa).enumerate() {
                    for (k, s) in row.iter_mut().enumerate() {
                        *s += self.stack[k * n + i] / self.unit;
                    }
                }
            }
        }
        let mut loss = 0.0;
        for (row, &code) in scores.chunks_exact_mut(kappa).zip(state.codes) {
            loss += super::residual(row, code);
        }
        let residuals = view(&scores, kappa);
        let pulled = match filter {
            true => product(view(state.x, p).transpose(), residuals),
            false => Vec::new(),
        };
        let bends = 2.0 * state.config.xi * step;
        let mut rest = 0.0;
        for (at, row) in self.stack.chunks_exact_mut(self.columns).enumerate() {
            let (labels, feature) = match filter {
                true => (kappa, Some(at)),
                false => (0, at.checked_sub(kappa)),
            };
            for (k, a) in row[..labels].iter_mut().enumerate() {
                *a -= step * pulled[at * kappa + k] / self.unit;
            }
            match feature {
                Some(f) => {
                    for (i, m) in row[labels..].iter_mut().enumerate() {
                        let apart = *m - state.x[i * p + f];
                        rest += apart * apart;
                        *m -= bends * apart;
                    }
                }
                None => {
                    for (i, a) in row.iter_mut().enumerate() {
                        *a -= step * scores[i * kappa + at] / self.unit;
                    }
                }
            }
        }
        let gradient = product(residuals.transpose(), z);
        let pairs = self.gamma.iter_mut().zip(&gradient);
        pairs.for_each(|(g, d)| *g -= step_gamma * d);
        loss + state.config.xi * rest
    }

    /// The nearest matrix of rank `r`.
    fn project(&mut self, r: usize) -> Result<(), PredictError> {
        let stack = view(&self.stack, self.columns);
        let (rows, columns) = (stack.nrows(), stack.ncols());
        self.stack = match rows <= columns {
            true => {
                let left = leading(&product(stack, stack.transpose()), rows, r)?.1;
                let left = view(&left, r);
                let inside = product(left.transpose(), stack);
                product(left, view(&inside, columns))
            }
            false => {
                let right = leading(&product(stack.transpose(), stack), columns, r)?.1;
                let right = view(&right, r);
                let inside = product(stack, right);
                product(view(&inside, r), right.transpose())
            }
        };
        Ok(())
    }

    /// The dictionary of lifted variables.
    fn lower(&self, state: &mut State, filter: bool) -> Result<(), PredictError> {
        let (n, p, r, kappa, q) = (state.n, state.p, state.r, state.kappa, state.q);
        // In the unit of the loss, so that the factors are those of the plain stack.
        let mut stack = self.stack.clone();
        for (at, row) in stack.chunks_exact_mut(self.columns).enumerate() {
            let labels = match filter {
                true => kappa,
                false if at < kappa => self.columns,
                false => 0,
            };
            row[..labels].iter_mut().for_each(|a| *a /= self.unit);
        }
        let (left, right) = factors(view(&stack, self.columns), r)?;
        // left [rows, r], right [r, columns], with the roots of the singular values in both.
        let (mut w, mut h, mut beta) = (Vec::new(), Vec::new(), vec![0.0; kappa * r]);
        match filter {
            true => {
                w.extend(&left);
                for (j, row) in right.chunks_exact(kappa + n).enumerate() {
                    for (k, b) in row[..kappa].iter().enumerate() {
                        beta[k * r + j] = *b;
                    }
                    h.extend(&row[kappa..]);
                }
            }
            false => {
                beta.copy_from_slice(&left[..kappa * r]);
                w.extend(&left[kappa * r..]);
                h.extend(&right);
            }
        }
        let length = norm(&w).max(1e-300);
        w.iter_mut().for_each(|x| *x /= length);
        h.iter_mut().for_each(|x| *x *= length);
        let back = if filter { length } else { 1.0 / length };
        beta.iter_mut().for_each(|x| *x *= back);
        debug_assert_eq!(w.len(), p * r);
        let mut linear = Linear::zeros(kappa, r + q);
        for k in 0..kappa {
            let row = &mut linear.coef[k * (r + q)..(k + 1) * (r + q)];
            row[..r].copy_from_slice(&beta[k * r..(k + 1) * r]);
            row[r..].copy_from_slice(&self.gamma[k * (1 + q) + 1..(k + 1) * (1 + q)]);
            linear.intercept[k] = self.gamma[k * (1 + q)];
        }
        (state.w, state.h, state.beta) = (w, h, linear);
        Ok(())
    }
}

/// The greatest `r` eigenvalues of a symmetric matrix, in falling order, and their vectors
/// `[size, r]`.
fn leading(gram: &[f64], size: usize, r: usize) -> Result<(Vec<f64>, Vec<f64>), PredictError> {
    let diverged = PredictError::Diverged {
        what: "the lifted matrix",
        hint: "scale the rows (minmax), or take a smaller xi or stepsize",
    };
    if !gram.iter().all(|x| x.is_finite()) {
        return Err(diverged);
    }
    let Ok(found) = view(gram, size).self_adjoint_eigen(Side::Lower) else {
        return Err(diverged);
    };
    let (values, vectors) = (found.S().column_vector(), found.U());
    let order: Vec<usize> = (0..size).rev().take(r).collect();
    let all = (0..size).flat_map(|i| order.iter().map(move |&j| vectors[(i, j)]));
    Ok((order.iter().map(|&j| values[j]).collect(), all.collect()))
}

/// `U √S [rows, r]` and `√S Vᵀ [r, columns]` of a matrix of rank `r`.
fn factors(matrix: MatRef<'_, f64>, r: usize) -> Result<(Vec<f64>, Vec<f64>), PredictError> {
    let (rows, columns) = (matrix.nrows(), matrix.ncols());
    let wide = rows <= columns;
    let (gram, size) = match wide {
        true => (product(matrix, matrix.transpose()), rows),
        false => (product(matrix.transpose(), matrix), columns),
    };
    let (values, vectors) = leading(&gram, size, r)?;
    // Fourth roots: of the squares of the singular values the root of the value.
    let roots: Vec<f64> = values.iter().map(|v| v.max(0.0).powf(0.25)).collect();
    let scaled = |numbers: &[f64], power: f64| -> Vec<f64> {
        let by = |(i, x): (usize, &f64)| match roots[i % r] {
            root if root > 0.0 => x * root.powf(power),
            _ => 0.0,
        };
        numbers.iter().enumerate().map(by).collect()
    };
    let near = scaled(&vectors, 1.0);
    // The other side: the matrix times vectors over the singular value, times its root.
    let far_vectors = scaled(&vectors, -1.0);
    let far = view(&far_vectors, r);
    Ok(match wide {
        true => (near, product(far.transpose(), matrix)),
        false => (product(matrix, far), super::transposed(&near, r)),
    })
}

//! Codes of rows under given atoms, and classes by way of codes.

use rayon::prelude::*;

use super::{SupervisedDictionary, Telling};
use crate::algebra::{argmax, dot, product, view};

/// Passes of coordinate descent at most.
const PASSES: usize = 2000;

/// The codes `[rows, r]` that rebuild rows `[rows, p]` best, without negative numbers if
/// so asked: cyclic coordinate descent on the normal equations.
pub(super) fn encode(rows: &[f64], atoms: &[f64], r: usize, nonneg: bool) -> Vec<f64> {
    let p = atoms.len() / r;
    let w = view(atoms, r);
    let gram = product(w.transpose(), w);
    let targets = product(view(rows, p), w);
    let mut codes = vec![0.0; targets.len()];
    (codes.par_chunks_mut(r))
        .zip(targets.par_chunks(r))
        .for_each(|(code, target)| solve(code, &gram, target, nonneg));
    codes
}

/// Minimises `½ cᵀ G c - tᵀ c`.
fn solve(code: &mut [f64], gram: &[f64], target: &[f64], nonneg: bool) {
    let r = code.len();
    let scale = target.iter().fold(0f64, |m, t| m.max(t.abs()));
    for _ in 0..PASSES {
        let mut moved = 0f64;
        for j in 0..r {
            let row = &gram[j * r..(j + 1) * r];
            if row[j] <= 0.0 {
                continue;
            }
            let gradient = dot(row, code) - target[j];
            let mut next = code[j] - gradient / row[j];
            if nonneg {
                next = next.max(0.0);
            }
            moved = moved.max((next - code[j]).abs() * row[j]);
            code[j] = next;
        }
        if moved <= 1e-12 * scale {
            break;
        }
    }
}

/// Scores `[rows, classes]` by code and class together, from the codes that rebuild best.
pub(super) fn tell(
    model: &SupervisedDictionary,
    rows: &[f64],
    aux: &[f64],
    start: &[f64],
    naive: &[f64],
) -> Vec<f64> {
    let (r, q, p) = (model.config.n_components, model.config.covariates, model.p);
    let kappa = model.classes.len() - 1;
    let w = view(&model.atoms, r);
    let problem = Problem {
        model,
        gram: product(w.transpose(), w),
    };
    let targets = product(view(rows, p), w);
    let mut out = vec![0.0; naive.len() / kappa * (kappa + 1)];
    (out.par_chunks_mut(kappa + 1))
        .enumerate()
        .for_each(|(i, out)| {
            let row = Row {
                target: &targets[i * r..(i + 1) * r],
                aux: &aux[i * q..(i + 1) * q],
                start: &start[i * r..(i + 1) * r],
            };
            match model.config.prediction {
                Telling::Exhaustive | Telling::Naive => {
                    for (class, score) in out.iter_mut().enumerate() {
                        *score = -problem.best(&row, class).1;
                    }
                }
                Telling::Alt => {
                    out[1..].copy_from_slice(&naive[i * kappa..(i + 1) * kappa]);
                    problem.in_turn(&row, out);
                }
            }
        });
    out
}

struct Problem<'a> {
    model: &'a SupervisedDictionary,
    gram: Vec<f64>,
}

struct Row<'a> {
    target: &'a [f64],
    aux: &'a [f64],
    start: &'a [f64],
}

impl Problem<'_> {
    /// Class and code in turn, until the class stays.
    fn in_turn(&self, row: &Row, out: &mut [f64]) {
        let mut class = argmax(out);
        for _ in 0..200 {
            let (code, _) = self.best(row, class);
            out[0] = 0.0;
            let scores = self.scores(&code, row.aux);
            out[1..].copy_from_slice(&scores);
            let next = argmax(out);
            if next == class {
                break;
            }
            class = next;
        }
    }

    fn scores(&self, code: &[f64], aux: &[f64]) -> Vec<f64> {
        let regression = &self.model.regression;
        let columns = regression.columns();
        let all = regression.coef.chunks_exact(columns);
        all.zip(&regression.intercept)
            .map(|(coef, b)| b + dot(&coef[..code.len()], code) + dot(&coef[code.len()..], aux))
            .collect()
    }

    /// The code with which this class costs least, and the cost (up to `ξ ‖x‖²`).
    ///
    /// Projected gradients with the step of the greatest curvature: the cost is convex.
    fn best(&self, row: &Row, class: usize) -> (Vec<f64>, f64) {
        let r = row.start.len();
        let xi = self.model.config.xi;
        let nonneg = self.model.config.nonneg[0];
        let regression = &self.model.regression;
        let columns = regression.columns();
        let trace: f64 = (0..r).map(|j| self.gram[j * r + j]).sum();
        let bend: f64 = (regression.coef.chunks_exact(columns))
            .map(|coef| dot(&coef[..r], &coef[..r]))
            .sum();
        let step = 1.0 / (2.0 * xi * trace + 0.5 * bend + 1e-12);
        let mut code = row.start.to_vec();
        let mut cost = f64::INFINITY;
        for _ in 0..500 {
            let mut scores = self.scores(&code, row.aux);
            let mut value = super::residual(&mut scores, class);
            let pulled: Vec<f64> = (self.gram.chunks_exact(r)).map(|g| dot(g, &code)).collect();
            value += xi * (dot(&pulled, &code) - 2.0 * dot(row.target, &code));
            if cost - value < 1e-10 * (1.0 + value.abs()) {
                cost = cost.min(value);
                break;
            }
            cost = value;
            for j in 0..r {
                let mut gradient = 2.0 * xi * (pulled[j] - row.target[j]);
                for (s, coef) in scores.iter().zip(regression.coef.chunks_exact(columns)) {
                    gradient += s * coef[j];
                }
                code[j] -= step * gradient;
                if nonneg {
                    code[j] = code[j].max(0.0);
                }
            }
        }
        (code, cost)
    }
}

//! Multinomial logistic regression with a ridge.
//!
//! The discriminative head of Zheng et al., Revisiting Discriminative vs. Generative
//! Classifiers (ICML 2023), with scikit-learn's objective, so that `c` means what users
//! know:
//!
//! `C · Σᵢ -ln softmax(W xᵢ + b)[yᵢ] + ½ ‖W‖²`
//!
//! For two classes there is one row of weights, as there. The intercept carries no penalty.
//!
//! The minimum is found by [L-BFGS](crate::lbfgs) in centred columns that are scaled by
//! their curvature. That changes the way and not the place: columns of very different
//! scales need no scaling by the user to converge. Cost per step: one pass over the rows,
//! `4 · rows · columns · classes` operations; all sums in double precision, and in an order
//! that does not depend on the number of threads.

use keyfold_core::Progress;
use keyfold_kernels::double::{exp, softmax_rows};
use rayon::prelude::*;

use crate::algebra::{multiply_alone, view};
use crate::lbfgs::{Evaluation, LbfgsConfig, Stopped, minimise};
use crate::metrics::short;
use crate::{Classifier, Labels, Linear, PredictError, Table};

/// Settings, named as in scikit-learn.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogisticConfig {
    /// Weight of the data against the ridge; above 0, infinity for no ridge.
    pub c: f64,
    /// The greatest number in the gradient of the mean loss at which it stops.
    pub tol: f64,
    /// Steps at most.
    pub max_iter: usize,
}

impl Default for LogisticConfig {
    fn default() -> Self {
        Self {
            c: 1.0,
            tol: 1e-5,
            max_iter: 1000,
        }
    }
}

impl LogisticConfig {
    fn check(&self) -> Result<(), PredictError> {
        let setting = |setting, what: &str| PredictError::Setting {
            setting,
            what: what.to_owned(),
        };
        if self.c.is_nan() || self.c <= 0.0 {
            return Err(setting("c", "must be above 0"));
        }
        if self.tol.is_nan() || self.tol < 0.0 {
            return Err(setting("tol", "must be 0 or more"));
        }
        Ok(())
    }
}

/// A fitted model.
#[derive(Debug, Clone, PartialEq)]
pub struct Logistic {
    classes: Vec<String>,
    linear: Linear,
    told: Told,
}

/// How the fit went.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Told {
    /// Steps taken.
    pub iterations: usize,
    /// Why it ended.
    pub stopped: Stopped,
    /// The greatest number in the gradient of the mean loss.
    pub gradient: f64,
    /// The mean loss, with the ridge.
    pub loss: f64,
}

impl Logistic {
    /// Fits to rows and their classes.
    pub fn fit(
        x: &Table,
        labels: &Labels,
        config: &LogisticConfig,
        progress: &dyn Progress,
    ) -> Result<Self, PredictError> {
        Self::fit_from(x, labels, config, None, progress)
    }

    /// [`Logistic::fit`] from the weights of a model that is near: of fewer rows, or of
    /// another `c`.
    pub fn fit_from(
        x: &Table,
        labels: &Labels,
        config: &LogisticConfig,
        start: Option<&Linear>,
        progress: &dyn Progress,
    ) -> Result<Self, PredictError> {
        config.check()?;
        labels.check(x.rows())?;
        let k = labels.classes().len();
        let (linear, told) = weights(
            x.numbers(),
            x.columns(),
            labels.codes(),
            k,
            config,
            start,
            progress,
        );
        if told.stopped == Stopped::Cancelled {
            return Err(PredictError::Cancelled);
        }
        Ok(Self {
            classes: labels.classes().to_vec(),
            linear,
            told,
        })
    }

    pub(crate) fn known(classes: Vec<String>, linear: Linear, told: Told) -> Self {
        Self {
            classes,
            linear,
            told,
        }
    }

    /// The weights.
    pub fn linear(&self) -> &Linear {
        &self.linear
    }

    /// How the fit went.
    pub fn told(&self) -> &Told {
        &self.told
    }
}

impl Classifier for Logistic {
    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn columns(&self) -> usize {
        self.linear.columns()
    }

    fn logits(&self, x: &Table) -> Result<Vec<f64>, PredictError> {
        self.linear.logits(x)
    }
}

/// The weights of the minimum, for rows `[n, columns]` with classes below `classes`.
pub(crate) fn weights(
    x: &[f64],
    columns: usize,
    codes: &[usize],
    classes: usize,
    config: &LogisticConfig,
    start: Option<&Linear>,
    progress: &dyn Progress,
) -> (Linear, Told) {
    let rows = if classes == 2 { 1 } else { classes };
    let objective = Objective::new(x, columns, codes, rows, config.c);
    let start = match start {
        Some(linear) if linear.coef.len() == rows * columns => objective.hidden(linear),
        _ => vec![0.0; rows * (columns + 1)],
    };
    let lbfgs = LbfgsConfig {
        max_iter: config.max_iter,
        tol: config.tol,
        history: 10,
    };
    let found = minimise(start, |u, g| objective.evaluate(u, g), lbfgs, progress);
    let told = Told {
        iterations: found.iterations,
        stopped: found.stopped,
        gradient: short(found.gradient),
        loss: short(found.value),
    };
    (objective.linear(&found.x), told)
}

/// Parts into which the rows are cut, whatever the number of threads.
const PARTS: usize = 16;

/// In hidden coordinates an intercept, whose column of ones has the curvature of a column of
/// variance 1, has a scale as well. Without it the steps were half as many again.
const INTERCEPT: f64 = 0.5;

/// The mean loss in hidden coordinates: `w = u / scale`, `b = v / INTERCEPT - w · mean`.
struct Objective<'a> {
    x: &'a [f64],
    columns: usize,
    codes: &'a [usize],
    /// Rows of weights.
    rows: usize,
    /// Factor of `½ ‖W‖²`.
    ridge: f64,
    mean: Vec<f64>,
    scale: Vec<f64>,
}

impl<'a> Objective<'a> {
    fn new(x: &'a [f64], columns: usize, codes: &'a [usize], rows: usize, c: f64) -> Self {
        let n = codes.len() as f64;
        let ridge = 1.0 / (c * n);
        let (mean, variance) = moments(x, columns);
        // The curvature of a loss is at most a quarter of the variance.
        let scale = |v: &f64| match 0.25 * v + ridge {
            curvature if curvature > 1e-300 => curvature.sqrt(),
            _ => 1.0,
        };
        Self {
            x,
            columns,
            codes,
            rows,
            ridge,
            mean,
            scale: variance.iter().map(scale).collect(),
        }
    }

    /// The weights at a hidden point `[rows · columns, rows]`.
    fn linear(&self, u: &[f64]) -> Linear {
        let (u, v) = u.split_at(self.rows * self.columns);
        let mut coef = u.to_vec();
        let mut intercept: Vec<f64> = v.iter().map(|v| v / INTERCEPT).collect();
        for (w, b) in coef.chunks_exact_mut(self.columns).zip(&mut intercept) {
            for (f, w) in w.iter_mut().enumerate() {
                *w /= self.scale[f];
                *b -= *w * self.mean[f];
            }
        }
        Linear { coef, intercept }
    }

    /// The hidden point of weights.
    fn hidden(&self, linear: &Linear) -> Vec<f64> {
        let mut u = Vec::with_capacity(self.rows * (self.columns + 1));
        for w in linear.coef.chunks_exact(self.columns) {
            u.extend(w.iter().zip(&self.scale).map(|(w, d)| w * d));
        }
        for (w, b) in (linear.coef.chunks_exact(self.columns)).zip(&linear.intercept) {
            let moved: f64 = w.iter().zip(&self.mean).map(|(w, m)| w * m).sum();
            u.push((b + moved) * INTERCEPT);
        }
        u
    }

    fn evaluate(&self, u: &[f64], gradient: &mut [f64]) -> Evaluation {
        let linear = self.linear(u);
        let n = self.codes.len();
        let per_part = n.div_ceil(PARTS).max(1);
        let parts: Vec<Part> = (self.x.par_chunks(per_part * self.columns))
            .zip(self.codes.par_chunks(per_part))
            .map(|(x, codes)| self.part(x, codes, &linear))
            .collect();
        let mut sum = Part::new(self.rows, self.columns);
        parts.iter().for_each(|part| sum.add(part));

        let inverse = 1.0 / n as f64;
        let mut value = sum.loss * inverse;
        let mut greatest = 0f64;
        let (du, dv) = gradient.split_at_mut(self.rows * self.columns);
        for (k, (dv, sum_of_bias)) in dv.iter_mut().zip(&sum.intercept).enumerate() {
            let bias = sum_of_bias * inverse;
            greatest = greatest.max(bias.abs());
            *dv = bias / INTERCEPT;
            let row = k * self.columns..(k + 1) * self.columns;
            let weights = linear.coef[row.clone()].iter();
            for (f, (w, g)) in weights.zip(&sum.coef[row.clone()]).enumerate() {
                let g = g * inverse + self.ridge * w;
                value += 0.5 * self.ridge * w * w;
                greatest = greatest.max(g.abs());
                du[row.start + f] = (g - self.mean[f] * bias) / self.scale[f];
            }
        }
        Evaluation {
            value,
            gradient: greatest,
        }
    }

    /// Loss and gradient of some rows, block by block, so that a block is in the cache when
    /// it is met for the second time.
    fn part(&self, x: &[f64], codes: &[usize], linear: &Linear) -> Part {
        let mut sum = Part::new(self.rows, self.columns);
        let block = (32768 / self.columns).clamp(32, 2048);
        let coef = view(&linear.coef, self.columns);
        let mut scores = vec![0.0; block * self.rows];
        let mut spare = vec![0.0; block];
        for (x, codes) in (x.chunks(block * self.columns)).zip(codes.chunks(block)) {
            let x = view(x, self.columns);
            let scores = &mut scores[..codes.len() * self.rows];
            multiply_alone(scores, x, coef.transpose(), false);
            for row in scores.chunks_exact_mut(self.rows) {
                row.iter_mut()
                    .zip(&linear.intercept)
                    .for_each(|(s, b)| *s += b);
            }
            sum.loss += residuals(scores, codes, &mut spare[..codes.len()]);
            for row in scores.chunks_exact(self.rows) {
                row.iter()
                    .zip(&mut sum.intercept)
                    .for_each(|(r, b)| *b += r);
            }
            let residuals = view(scores, self.rows);
            multiply_alone(&mut sum.coef, residuals.transpose(), x, true);
        }
        sum
    }
}

/// Turns the scores of rows into probabilities minus truth; gives the sum of their losses.
/// `spare` has a place for each row.
fn residuals(scores: &mut [f64], codes: &[usize], spare: &mut [f64]) -> f64 {
    let rows = scores.len() / codes.len().max(1);
    let mut loss = 0.0;
    if rows == 1 {
        (spare.iter_mut().zip(scores.iter())).for_each(|(e, s)| *e = -s.abs());
        exp(spare);
        for ((score, e), &code) in scores.iter_mut().zip(spare).zip(codes) {
            let (s, y) = (*score, code as f64);
            // ln(1 + e^s) without overflow.
            loss += s.max(0.0) + e.ln_1p() - y * s;
            *score = (if s < 0.0 { *e } else { 1.0 }) / (1.0 + *e) - y;
        }
        return loss;
    }
    let at = |(i, code): (usize, &usize)| i * rows + code;
    for place in codes.iter().enumerate().map(at) {
        loss -= scores[place];
    }
    softmax_rows(scores, rows, spare);
    for place in codes.iter().enumerate().map(at) {
        scores[place] -= 1.0;
    }
    loss + spare.iter().sum::<f64>()
}

/// Sums over some rows.
struct Part {
    loss: f64,
    coef: Vec<f64>,
    intercept: Vec<f64>,
}

impl Part {
    fn new(rows: usize, columns: usize) -> Self {
        Self {
            loss: 0.0,
            coef: vec![0.0; rows * columns],
            intercept: vec![0.0; rows],
        }
    }

    fn add(&mut self, other: &Self) {
        self.loss += other.loss;
        let pairs = self.coef.iter_mut().zip(&other.coef);
        let more = self.intercept.iter_mut().zip(&other.intercept);
        pairs.chain(more).for_each(|(a, b)| *a += b);
    }
}

/// Mean and variance of each column.
pub(crate) fn moments(x: &[f64], columns: usize) -> (Vec<f64>, Vec<f64>) {
    let n = (x.len() / columns).max(1) as f64;
    let shift: Vec<f64> = x.iter().take(columns).copied().collect();
    let per_part = x.len().div_ceil(columns * PARTS).max(1) * columns;
    let parts: Vec<(Vec<f64>, Vec<f64>)> = (x.par_chunks(per_part))
        .map(|part| {
            let (mut sum, mut squares) = (vec![0.0; columns], vec![0.0; columns]);
            for row in part.chunks_exact(columns) {
                for f in 0..columns {
                    let d = row[f] - shift[f];
                    sum[f] += d;
                    squares[f] += d * d;
                }
            }
            (sum, squares)
        })
        .collect();
    let (mut mean, mut variance) = (vec![0.0; columns], vec![0.0; columns]);
    for (sum, squares) in &parts {
        for f in 0..columns {
            mean[f] += sum[f];
            variance[f] += squares[f];
        }
    }
    for f in 0..columns {
        mean[f] /= n;
        variance[f] = (variance[f] / n - mean[f] * mean[f]).max(0.0);
        mean[f] += shift[f];
    }
    (mean, variance)
}

#[cfg(test)]
mod tests;

//! Gaussian naive Bayes whose variances are shared by the classes.
//!
//! The generative head of Zheng et al., Revisiting Discriminative vs. Generative
//! Classifiers (ICML 2023): means `μ_k`, priors `π_k`, and for each column one variance
//! `v_f = Σ_k π_k var_{k,f}`. The score
//!
//! `ln π_k - ½ Σ_f (x_f - μ_{k,f})² / v_f`
//!
//! is linear in `x` up to what all classes share, so this is the generative partner of
//! multinomial [logistic regression](crate::logistic). It comes near its best with
//! `O(log n)` rows for `n` columns where that needs `O(n)`. With `variances = per-class` it
//! is scikit-learn's `GaussianNB`, a quadratic classifier.
//!
//! One pass over the rows; what it keeps are counts, means and squared deviations, which
//! later rows are merged into exactly ([`NaiveBayes::partial_fit`]) and taken out of
//! ([`NaiveBayes::forget`]). Memory: two numbers for each class and column.

use std::f64::consts::PI;

use rayon::prelude::*;

use crate::{Classifier, Labels, Linear, PredictError, Table};

/// Whose variances there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variances {
    /// One for each column: a linear classifier, as in the paper.
    #[default]
    Shared,
    /// One for each class and column: a quadratic classifier, as in scikit-learn.
    PerClass,
}

/// Settings.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NaiveBayesConfig {
    /// Whose variances there are.
    pub variances: Variances,
    /// Added to all variances: this part of the greatest variance of a column.
    pub var_smoothing: f64,
    /// Added to all variances as it is; the authors have 1e-9, and `var_smoothing` 0.
    pub val_epsilon: f64,
    /// No variance is taken to be smaller. A column that is constant in the rows learned
    /// from otherwise decides everything when a row deviates in it.
    pub floor: f64,
}

impl Default for NaiveBayesConfig {
    fn default() -> Self {
        Self {
            variances: Variances::Shared,
            var_smoothing: 1e-9,
            val_epsilon: 0.0,
            floor: 0.0,
        }
    }
}

impl NaiveBayesConfig {
    /// What the authors' code does.
    pub fn reference() -> Self {
        Self {
            var_smoothing: 0.0,
            val_epsilon: 1e-9,
            ..Self::default()
        }
    }

    fn check(&self) -> Result<(), PredictError> {
        let all = [
            ("var_smoothing", self.var_smoothing),
            ("val_epsilon", self.val_epsilon),
            ("floor", self.floor),
        ];
        match all.iter().find(|(_, v)| !v.is_finite() || *v < 0.0) {
            None => Ok(()),
            Some(&(setting, _)) => Err(PredictError::Setting {
                setting,
                what: "must be 0 or more".to_owned(),
            }),
        }
    }
}

/// A fitted model: the statistics of each class.
#[derive(Debug, Clone, PartialEq)]
pub struct NaiveBayes {
    config: NaiveBayesConfig,
    classes: Vec<String>,
    columns: usize,
    /// Rows of each class.
    counts: Vec<f64>,
    /// `[classes, columns]`.
    means: Vec<f64>,
    /// Sums of squared deviations from the mean, `[classes, columns]`.
    squares: Vec<f64>,
}

impl NaiveBayes {
    /// Fits to rows and their classes.
    pub fn fit(
        x: &Table,
        labels: &Labels,
        config: &NaiveBayesConfig,
    ) -> Result<Self, PredictError> {
        labels.check(x.rows())?;
        let mut model = Self::new(x.columns(), config)?;
        model.partial_fit(x, labels)?;
        Ok(model)
    }

    /// A model that knows nothing yet.
    pub fn new(columns: usize, config: &NaiveBayesConfig) -> Result<Self, PredictError> {
        config.check()?;
        Ok(Self {
            config: *config,
            classes: Vec::new(),
            columns,
            counts: Vec::new(),
            means: Vec::new(),
            squares: Vec::new(),
        })
    }

    /// Learns more rows, as if they had been there from the start. Labels may bring new
    /// classes, and need not have all that are known.
    pub fn partial_fit(&mut self, x: &Table, labels: &Labels) -> Result<(), PredictError> {
        x.expect_columns(self.columns)?;
        labels.check_count(x.rows())?;
        let codes = self.codes(labels);
        let more = Statistics::of(x, &codes, self.classes.len());
        for k in 0..self.classes.len() {
            let (a, b) = (self.counts[k], more.counts[k]);
            if b == 0.0 {
                continue;
            }
            let n = a + b;
            for f in k * self.columns..(k + 1) * self.columns {
                let apart = more.means[f] - self.means[f];
                self.squares[f] += more.squares[f] + apart * apart * (a * b / n);
                self.means[f] += apart * (b / n);
            }
            self.counts[k] = n;
        }
        Ok(())
    }

    /// Takes rows out again that were learned, as if they had never been there, up to
    /// rounding.
    pub fn forget(&mut self, x: &Table, labels: &Labels) -> Result<(), PredictError> {
        x.expect_columns(self.columns)?;
        labels.check_count(x.rows())?;
        let names: Vec<&str> = (0..x.rows()).map(|i| labels.name(i)).collect();
        let known = Labels::among(&self.classes, &names)?;
        let gone = Statistics::of(x, known.codes(), self.classes.len());
        if let Some(k) = (0..self.classes.len()).find(|&k| gone.counts[k] > self.counts[k]) {
            return Err(PredictError::Setting {
                setting: "forget",
                what: format!(
                    "{} rows of class '{}' are to be forgotten, but only {} were learned",
                    gone.counts[k], self.classes[k], self.counts[k]
                ),
            });
        }
        for k in 0..self.classes.len() {
            let b = gone.counts[k];
            let n = self.counts[k];
            let a = n - b;
            for f in k * self.columns..(k + 1) * self.columns {
                if a == 0.0 {
                    (self.means[f], self.squares[f]) = (0.0, 0.0);
                    continue;
                }
                let mean = (n * self.means[f] - b * gone.means[f]) / a;
                let apart = gone.means[f] - mean;
                let rest = self.squares[f] - gone.squares[f] - apart * apart * (a * b / n);
                self.squares[f] = rest.max(0.0);
                self.means[f] = mean;
            }
            self.counts[k] = a;
        }
        Ok(())
    }

    /// The codes of labels among all classes, with new ones added at the end.
    fn codes(&mut self, labels: &Labels) -> Vec<usize> {
        let mut present: Vec<usize> = labels.codes().to_vec();
        present.sort_unstable();
        present.dedup();
        let mut place = vec![0; labels.classes().len()];
        for code in present {
            let name = &labels.classes()[code];
            place[code] = match self.classes.iter().position(|c| c == name) {
                Some(at) => at,
                None => {
                    self.classes.push(name.clone());
                    self.counts.push(0.0);
                    let size = self.classes.len() * self.columns;
                    self.means.resize(size, 0.0);
                    self.squares.resize(size, 0.0);
                    self.classes.len() - 1
                }
            };
        }
        labels.codes().iter().map(|&c| place[c]).collect()
    }

    pub(crate) fn known(
        config: NaiveBayesConfig,
        classes: Vec<String>,
        columns: usize,
        [counts, means, squares]: [Vec<f64>; 3],
    ) -> Self {
        Self {
            config,
            classes,
            columns,
            counts,
            means,
            squares,
        }
    }

    /// The settings.
    pub fn config(&self) -> &NaiveBayesConfig {
        &self.config
    }

    /// Rows learned, of each class.
    pub fn counts(&self) -> &[f64] {
        &self.counts
    }

    /// Mean rows of the classes, `[classes, columns]`.
    pub fn means(&self) -> &[f64] {
        &self.means
    }

    pub(crate) fn squares(&self) -> &[f64] {
        &self.squares
    }

    /// Variances as they are used: `[columns]`, or `[classes, columns]` with
    /// [`Variances::PerClass`].
    pub fn variances(&self) -> Vec<f64> {
        let total = self.total();
        let config = &self.config;
        let greatest = || {
            // The variance of a column over all rows, as scikit-learn takes it.
            (0..self.columns)
                .map(|f| {
                    let at = |k: usize| k * self.columns + f;
                    let all = 0..self.classes.len();
                    let mean: f64 = all
                        .clone()
                        .map(|k| self.counts[k] * self.means[at(k)])
                        .sum::<f64>()
                        / total;
                    let sum: f64 = all
                        .map(|k| {
                            let apart = self.means[at(k)] - mean;
                            self.squares[at(k)] + self.counts[k] * apart * apart
                        })
                        .sum();
                    sum / total
                })
                .fold(0.0, f64::max)
        };
        let added = config.val_epsilon
            + match config.var_smoothing {
                0.0 => 0.0,
                part => part * greatest(),
            };
        // Where all columns are constant there is nothing that could decide.
        let finish = |v: f64| match (v + added).max(config.floor) {
            0.0 => f64::INFINITY,
            v => v,
        };
        match config.variances {
            Variances::Shared => (0..self.columns)
                .map(|f| {
                    let sum: f64 = self.squares[f..].iter().step_by(self.columns).sum();
                    finish(sum / total)
                })
                .collect(),
            Variances::PerClass => {
                let rows = self.squares.chunks_exact(self.columns).zip(&self.counts);
                rows.flat_map(|(row, n)| row.iter().map(move |s| finish(s / n.max(1.0))))
                    .collect()
            }
        }
    }

    fn total(&self) -> f64 {
        self.counts.iter().sum()
    }

    /// The linear layer that it is with shared variances, a row for each class.
    pub fn linear(&self) -> Option<Linear> {
        if self.config.variances == Variances::PerClass {
            return None;
        }
        let (variances, total) = (self.variances(), self.total());
        let mut linear = Linear::zeros(self.classes.len(), self.columns);
        for k in 0..self.classes.len() {
            let mut bias = (self.counts[k] / total).ln();
            let row = k * self.columns;
            for (f, v) in variances.iter().enumerate() {
                let mean = self.means[row + f];
                linear.coef[row + f] = mean / v;
                bias -= 0.5 * mean * mean / v;
            }
            linear.intercept[k] = bias;
        }
        Some(linear)
    }

    /// Logarithms of the joint density with variances of each class, `[rows, classes]`.
    fn densities(&self, x: &Table) -> Vec<f64> {
        let (variances, total) = (self.variances(), self.total());
        let inverse: Vec<f64> = variances.iter().map(|v| 1.0 / v).collect();
        let bias: Vec<f64> = (variances.chunks_exact(self.columns))
            .zip(&self.counts)
            .map(|(v, n)| {
                let logs = v.iter().filter(|v| v.is_finite());
                (n / total).ln() - 0.5 * logs.map(|v| (2.0 * PI * v).ln()).sum::<f64>()
            })
            .collect();
        let k = self.classes.len();
        let mut out = vec![0.0; x.rows() * k];
        (out.par_chunks_mut(k))
            .zip(x.numbers().par_chunks(self.columns))
            .for_each(|(out, row)| {
                let all = (self.means.chunks_exact(self.columns))
                    .zip(inverse.chunks_exact(self.columns))
                    .zip(&bias);
                for (out, ((means, inverse), bias)) in out.iter_mut().zip(all) {
                    let terms = row.iter().zip(means).zip(inverse);
                    let sum: f64 = terms.map(|((x, m), i)| (x - m) * (x - m) * i).sum();
                    *out = bias - 0.5 * sum;
                }
            });
        out
    }
}

impl Classifier for NaiveBayes {
    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn columns(&self) -> usize {
        self.columns
    }

    fn logits(&self, x: &Table) -> Result<Vec<f64>, PredictError> {
        x.expect_columns(self.columns)?;
        if self.total() == 0.0 {
            return Err(PredictError::NotReady(
                "naive Bayes has learned no rows; call fit or partial_fit first",
            ));
        }
        match self.linear() {
            Some(linear) if linear.intercept.len() > 1 => linear.logits(x),
            Some(_) => Ok(vec![0.0; x.rows()]),
            None => Ok(self.densities(x)),
        }
    }
}

/// Counts, means and squared deviations of the rows of each class.
struct Statistics {
    counts: Vec<f64>,
    means: Vec<f64>,
    squares: Vec<f64>,
}

/// Parts into which the rows are cut, whatever the number of threads.
const PARTS: usize = 16;

impl Statistics {
    /// One pass. Sums are taken from the class's first row, so that little is lost when
    /// the mean is large and the variance small.
    fn of(x: &Table, codes: &[usize], classes: usize) -> Self {
        let p = x.columns();
        let mut shift = vec![0.0; classes * p];
        let mut seen = vec![false; classes];
        let mut left = classes;
        for (i, &k) in codes.iter().enumerate() {
            if !seen[k] {
                seen[k] = true;
                left -= 1;
                shift[k * p..(k + 1) * p].copy_from_slice(x.row(i));
            }
            if left == 0 {
                break;
            }
        }
        let part = codes.len().div_ceil(PARTS).max(1);
        let parts: Vec<Self> = (x.numbers().par_chunks(part * p))
            .zip(codes.par_chunks(part))
            .map(|(numbers, codes)| Self::sums(numbers, p, codes, classes, &shift))
            .collect();
        let mut all = Self::zeros(classes, p);
        for part in &parts {
            let pairs = (all.counts.iter_mut().zip(&part.counts))
                .chain(all.means.iter_mut().zip(&part.means))
                .chain(all.squares.iter_mut().zip(&part.squares));
            pairs.for_each(|(a, b)| *a += b);
        }
        for k in 0..classes {
            let n = all.counts[k].max(1.0);
            let place = k * p..(k + 1) * p;
            let sums = (all.means[place.clone()].iter_mut()).zip(&mut all.squares[place.clone()]);
            for ((sum, squares), shift) in sums.zip(&shift[place]) {
                let mean = *sum / n;
                *squares = (*squares - mean * *sum).max(0.0);
                *sum = mean + shift;
            }
        }
        all
    }

    fn sums(numbers: &[f64], p: usize, codes: &[usize], classes: usize, shift: &[f64]) -> Self {
        let mut sums = Self::zeros(classes, p);
        for (row, &k) in numbers.chunks_exact(p).zip(codes) {
            sums.counts[k] += 1.0;
            let place = k * p..(k + 1) * p;
            let (mean, square) = (
                &mut sums.means[place.clone()],
                &mut sums.squares[place.clone()],
            );
            let pairs = mean
                .iter_mut()
                .zip(square)
                .zip(row.iter().zip(&shift[place]));
            for ((m, s), (x, shift)) in pairs {
                let d = x - shift;
                *m += d;
                *s += d * d;
            }
        }
        sums
    }

    fn zeros(classes: usize, columns: usize) -> Self {
        Self {
            counts: vec![0.0; classes],
            means: vec![0.0; classes * columns],
            squares: vec![0.0; classes * columns],
        }
    }
}

#[cfg(test)]
mod tests;

//! A dictionary whose atoms rebuild the rows and tell their class.
//!
//! Lee, Lyu and Yao: Supervised Dictionary Learning with Auxiliary Covariates (2022); as
//! supervised matrix factorisation also at NeurIPS 2023 and ICML 2024. For rows `x` of `p`
//! numbers, atoms `W [p, r]`, codes `h [r]`, classes `y` and covariates `z` (the last
//! columns of a row, which the dictionary does not rebuild):
//!
//! `Σᵢ -ln softmax([0, βᵢ])[yᵢ] + ξ ‖X - W H‖²`, where `β = B [1; Wᵀx; z]` for the variant
//! `filter` and `β = B [1; h; z]` for `feature`.
//!
//! Two ways to a minimum: block-coordinate descent (`blocks`) keeps numbers non-negative if
//! asked and is the default; the lifted (`lifted`) problem is convex but for its rank, and is
//! solved by projected gradients from anywhere. Large `ξ` asks for reconstruction, small for
//! classes. `W` as a whole has length 1.
//!
//! Cost per step: three products `rows · p · r`, and a logistic regression on `r` columns
//! that starts where the last one ended. `compat` does what the released code does, see
//! [`SupervisedDictionaryConfig::compat`].

mod blocks;
mod codes;
mod config;
mod lifted;
#[cfg(test)]
mod tests;

use keyfold_core::Progress;
use keyfold_kernels::double::exp_of;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::algebra::{norm, product, view};
use crate::metrics;
use crate::{Classifier, Labels, Linear, PredictError, Table};
use config::{check, setting};

pub use config::{Solver, SupervisedDictionaryConfig, Telling, Variant};

/// How a fit went.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Told {
    /// Steps taken.
    pub iterations: usize,
    /// The whole loss at every tenth step, and at the end.
    pub losses: Vec<f64>,
    /// `‖X - W H‖ / ‖X‖` at the end.
    pub reconstruction: f64,
    /// Area under the receiver operating characteristic of the rows learned from, with two
    /// classes.
    pub auc: Option<f64>,
    /// True when it ended because the loss grew by a tenth.
    pub grew: bool,
}

/// A fitted dictionary.
#[derive(Debug, Clone, PartialEq)]
pub struct SupervisedDictionary {
    config: SupervisedDictionaryConfig,
    classes: Vec<String>,
    /// `W`, row-major `[p, r]`.
    atoms: Vec<f64>,
    p: usize,
    /// A row for each class but the first, on features and covariates.
    regression: Linear,
    /// With two classes, the score from which on a row is of the second.
    threshold: f64,
    told: Told,
}

/// Where a fit begins; drawn at random unless given.
#[derive(Debug, Clone, PartialEq)]
pub struct Start {
    /// `W`, row-major `[p, r]`.
    pub atoms: Vec<f64>,
    /// `H`, row-major `[r, rows]`.
    pub codes: Vec<f64>,
    /// `B`, a row for each class but the first, on features and covariates.
    pub regression: Linear,
}

/// What is being learned, and what from.
struct State<'a> {
    config: &'a SupervisedDictionaryConfig,
    /// Row-major `[n, p]`.
    x: &'a [f64],
    /// Row-major `[n, q]`.
    aux: &'a [f64],
    codes: &'a [usize],
    /// Classes but the first.
    kappa: usize,
    n: usize,
    p: usize,
    r: usize,
    q: usize,
    /// `[p, r]`.
    w: Vec<f64>,
    /// `[r, n]`.
    h: Vec<f64>,
    beta: Linear,
}

impl State<'_> {
    /// `Wᵀ Xᵀ`, `[r, n]`.
    fn filtered(&self) -> Vec<f64> {
        let (w, x) = (view(&self.w, self.r), view(self.x, self.p));
        product(w.transpose(), x.transpose())
    }

    /// What the regression sees, row-major `[n, r + q]`, of features `[r, n]`.
    fn seen(&self, features: &[f64]) -> Vec<f64> {
        let mut seen = Vec::with_capacity(self.n * (self.r + self.q));
        for i in 0..self.n {
            seen.extend((0..self.r).map(|j| features[j * self.n + i]));
            seen.extend(&self.aux[i * self.q..(i + 1) * self.q]);
        }
        seen
    }

    /// Probability less truth for all classes but the first, row-major `[n, kappa]`, and
    /// the loss.
    fn residuals(&self, seen: &[f64]) -> (Vec<f64>, f64) {
        let columns = self.r + self.q;
        let coef = view(&self.beta.coef, columns);
        let mut scores = product(view(seen, columns), coef.transpose());
        let mut loss = 0.0;
        for (row, &code) in scores.chunks_exact_mut(self.kappa).zip(self.codes) {
            row.iter_mut()
                .zip(&self.beta.intercept)
                .for_each(|(s, b)| *s += b);
            loss += residual(row, code);
        }
        (scores, loss)
    }

    /// Squared distance of `W H` from the rows, without forming either.
    fn rest(&self) -> f64 {
        let w = view(&self.w, self.r);
        let h = view(&self.h, self.n);
        let gram_w = product(w.transpose(), w);
        let gram_h = product(h, h.transpose());
        let filtered = self.filtered();
        let cross = crate::algebra::dot(&filtered, &self.h);
        let both = crate::algebra::dot(&gram_w, &gram_h);
        (crate::algebra::dot(self.x, self.x) - 2.0 * cross + both).max(0.0)
    }

    /// The features that the variant tells from, `[r, n]`.
    fn features(&self) -> Vec<f64> {
        match self.config.variant {
            Variant::Filter => self.filtered(),
            Variant::Feature => self.h.clone(),
        }
    }

    /// The whole loss.
    fn loss(&self) -> f64 {
        let (_, labels) = self.residuals(&self.seen(&self.features()));
        let [l1, l2] = [self.config.l1, self.config.l2];
        let sum = |x: &[f64]| x.iter().map(|v| v.abs()).sum::<f64>();
        let half = |x: &[f64]| 0.5 * crate::algebra::dot(x, x);
        let penalty = l1[0] * sum(&self.h)
            + l1[1] * sum(&self.w)
            + l2[0] * half(&self.h)
            + l2[1] * half(&self.w);
        labels + self.config.xi * self.rest() + penalty
    }
}

/// Turns scores of the classes but the first into probability less truth; gives the loss.
fn residual(row: &mut [f64], code: usize) -> f64 {
    let most = row.iter().copied().fold(0.0, f64::max);
    let truth = if code == 0 { 0.0 } else { row[code - 1] };
    let mut sum = exp_of(-most);
    for s in row.iter_mut() {
        *s = exp_of(*s - most);
        sum += *s;
    }
    for (k, s) in row.iter_mut().enumerate() {
        *s = *s / sum - f64::from(u8::from(k + 1 == code));
    }
    most + sum.ln() - truth
}

impl SupervisedDictionary {
    /// Learns atoms and classes from rows whose last columns are covariates.
    pub fn fit(
        x: &Table,
        labels: &Labels,
        config: &SupervisedDictionaryConfig,
        progress: &dyn Progress,
    ) -> Result<Self, PredictError> {
        Self::fit_from(x, labels, config, None, progress).map(|(model, _)| model)
    }

    /// [`SupervisedDictionary::fit`] from a start; also gives the codes `H [r, rows]`.
    pub fn fit_from(
        x: &Table,
        labels: &Labels,
        config: &SupervisedDictionaryConfig,
        start: Option<Start>,
        progress: &dyn Progress,
    ) -> Result<(Self, Vec<f64>), PredictError> {
        labels.check(x.rows())?;
        let p = check(config, x)?;
        let (n, r, q) = (x.rows(), config.n_components, config.covariates);
        let kappa = labels.classes().len() - 1;
        let rows = x.part(0, p);
        let aux = x.part(p, p + q);
        let start = match start {
            Some(start) => start,
            None => random(config, p, n, kappa),
        };
        let expected = [p * r, r * n, kappa * (r + q), kappa];
        let given = [
            start.atoms.len(),
            start.codes.len(),
            start.regression.coef.len(),
            start.regression.intercept.len(),
        ];
        if given != expected {
            return Err(setting(
                "start",
                format!("it has {given:?} numbers and not {expected:?}"),
            ));
        }
        let mut state = State {
            config,
            x: &rows,
            aux: &aux,
            codes: labels.codes(),
            kappa,
            n,
            p,
            r,
            q,
            w: start.atoms,
            h: start.codes,
            beta: start.regression,
        };
        let mut told = match config.solver {
            Solver::Bcd => blocks::run(&mut state, progress)?,
            Solver::Lpgd => lifted::run(&mut state, progress)?,
        };
        let finite = |x: &[f64]| x.iter().all(|v| v.is_finite());
        if !(finite(&state.w) && finite(&state.h) && finite(&state.beta.coef)) {
            return Err(PredictError::Diverged {
                what: "the dictionary",
                hint: "scale the rows (minmax), or take a smaller xi or stepsize",
            });
        }
        told.reconstruction = metrics::short(state.rest().sqrt() / norm(&rows).max(1e-300));
        told.losses.iter_mut().for_each(|x| *x = metrics::short(*x));
        let State { w, h, beta, .. } = state;
        let mut model = Self {
            config: *config,
            classes: labels.classes().to_vec(),
            atoms: w,
            p,
            regression: beta,
            threshold: 0.0,
            told,
        };
        if kappa == 1 {
            let logits = model.logits(x)?;
            let scores: Vec<f64> = logits.chunks_exact(2).map(|s| s[1] - s[0]).collect();
            let second = metrics::is_second(labels);
            model.threshold = metrics::best_threshold(&scores, &second);
            model.told.auc = metrics::auc(&scores, &second).map(metrics::short);
        }
        Ok((model, h))
    }

    pub(crate) fn known(
        config: SupervisedDictionaryConfig,
        classes: Vec<String>,
        components: &[f64],
        regression: Linear,
        (threshold, told): (f64, Told),
    ) -> Self {
        let r = config.n_components;
        let p = components.len() / r.max(1);
        Self {
            config,
            classes,
            atoms: transposed(components, p),
            p,
            regression,
            threshold,
            told,
        }
    }

    /// The settings.
    pub fn config(&self) -> &SupervisedDictionaryConfig {
        &self.config
    }

    /// The atoms, one a row, `[r, p]`.
    pub fn components(&self) -> Vec<f64> {
        transposed(&self.atoms, self.config.n_components)
    }

    /// What each atom and covariate says for each class but the first.
    pub fn regression(&self) -> &Linear {
        &self.regression
    }

    /// With two classes, the score from which on a row is told to be of the second: where
    /// true positives less false ones were most among the rows learned from.
    pub fn threshold(&self) -> f64 {
        self.threshold
    }

    /// How the fit went.
    pub fn told(&self) -> &Told {
        &self.told
    }

    /// The codes that rebuild rows best, `[rows, r]`. Covariates may be left out.
    pub fn transform(&self, x: &Table) -> Result<Vec<f64>, PredictError> {
        if x.columns() != self.p {
            x.expect_columns(self.columns())?;
        }
        let rows = x.part(0, self.p);
        let nonneg = self.config.nonneg[0] && self.config.solver == Solver::Bcd;
        let r = self.config.n_components;
        Ok(codes::encode(&rows, &self.atoms, r, nonneg))
    }

    /// Rows of codes, `[rows, p]`.
    pub fn inverse_transform(&self, codes: &[f64]) -> Vec<f64> {
        let r = self.config.n_components;
        product(view(codes, r), view(&self.atoms, r).transpose())
    }

    /// Scores of the classes but the first, of features `[rows, r + q]`.
    fn scores(&self, seen: &[f64]) -> Vec<f64> {
        let columns = self.regression.columns();
        let coef = view(&self.regression.coef, columns);
        let mut scores = product(view(seen, columns), coef.transpose());
        for row in scores.chunks_exact_mut(self.regression.intercept.len()) {
            let biases = self.regression.intercept.iter();
            row.iter_mut().zip(biases).for_each(|(s, b)| *s += b);
        }
        scores
    }
}

impl Classifier for SupervisedDictionary {
    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn columns(&self) -> usize {
        self.p + self.config.covariates
    }

    fn logits(&self, x: &Table) -> Result<Vec<f64>, PredictError> {
        x.expect_columns(self.columns())?;
        let (r, q) = (self.config.n_components, self.config.covariates);
        let rows = x.part(0, self.p);
        let aux = x.part(self.p, self.p + q);
        let features = match self.config.variant {
            Variant::Filter => product(view(&rows, self.p), view(&self.atoms, r)),
            Variant::Feature => self.transform(x)?,
        };
        let together = |features: &[f64]| -> Vec<f64> {
            let rows = 0..x.rows();
            rows.flat_map(|i| {
                let covariates = &aux[i * q..(i + 1) * q];
                features[i * r..(i + 1) * r].iter().chain(covariates)
            })
            .copied()
            .collect()
        };
        let kappa = self.classes.len() - 1;
        let naive = self.scores(&together(&features));
        if self.config.variant == Variant::Feature && self.config.prediction != Telling::Naive {
            return Ok(codes::tell(self, &rows, &aux, &features, &naive));
        }
        let scores = naive.chunks_exact(kappa);
        Ok(scores
            .flat_map(|row| std::iter::once(0.0).chain(row.iter().copied()))
            .collect())
    }

    fn decide(&self, logits: &[f64]) -> usize {
        match logits {
            [first, second] => usize::from(second - first >= self.threshold),
            _ => crate::algebra::argmax(logits),
        }
    }
}

fn transposed(numbers: &[f64], columns: usize) -> Vec<f64> {
    let rows = numbers.len() / columns.max(1);
    let place = |i: usize| numbers[i % rows * columns + i / rows];
    (0..numbers.len()).map(place).collect()
}

fn random(config: &SupervisedDictionaryConfig, p: usize, n: usize, kappa: usize) -> Start {
    let mut rng = SmallRng::seed_from_u64(config.seed);
    let r = config.n_components;
    let mut uniform = |count: usize| -> Vec<f64> { (0..count).map(|_| rng.random()).collect() };
    Start {
        atoms: uniform(p * r),
        codes: uniform(r * n),
        regression: Linear {
            coef: uniform(kappa * (r + config.covariates))
                .iter()
                .map(|x| 1.0 - 2.0 * x)
                .collect(),
            intercept: uniform(kappa).iter().map(|x| 1.0 - 2.0 * x).collect(),
        },
    }
}

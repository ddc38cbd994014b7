//! Probabilities that mean what they say.
//!
//! Temperature scaling (Guo et al.: On Calibration of Modern Neural Networks, ICML 2017):
//! scores are divided by one number, chosen so that rows that were not learned from are
//! most likely. The classes that are told stay the same. The scores come from folds: each
//! row is told by a model of the other folds, and the model that is kept learned from all.

use keyfold_core::Progress;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;

use crate::metrics::{calibration_error, log_loss, short};
use crate::{Labels, PredictError, Table};
use keyfold_kernels::double::softmax_rows;

/// A temperature, and what it did to rows that were not learned from.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Calibration {
    /// Scores are divided by this.
    pub temperature: f64,
    /// Rows that it was fitted to.
    pub rows: usize,
    /// Expected calibration error before.
    pub error_before: f64,
    /// And after.
    pub error_after: f64,
    /// Mean of `-ln p` of the true class before.
    pub loss_before: f64,
    /// And after.
    pub loss_after: f64,
    /// Share of those rows whose class was told right.
    pub accuracy: f64,
}

/// Range of temperatures that are tried, as logarithms.
const WIDEST: f64 = 7.0;

/// Finds the temperature for scores `[rows, classes]` of rows with these classes.
pub fn fit(logits: &[f64], codes: &[usize]) -> Result<Calibration, PredictError> {
    if codes.is_empty() || logits.is_empty() {
        return Err(PredictError::Empty {
            what: "rows to calibrate with",
        });
    }
    let classes = logits.len() / codes.len();
    let loss = |log_t: f64| log_loss(&probabilities(logits, classes, log_t.exp()), codes);
    // The loss is convex in the inverse temperature, so it has one valley: golden section.
    let ratio = 0.5 * (5f64.sqrt() - 1.0);
    let (mut low, mut high) = (-WIDEST, WIDEST);
    let (mut a, mut b) = (high - ratio * (high - low), low + ratio * (high - low));
    let (mut at_a, mut at_b) = (loss(a), loss(b));
    while high - low > 1e-6 {
        if at_a <= at_b {
            (high, b, at_b) = (b, a, at_a);
            a = high - ratio * (high - low);
            at_a = loss(a);
        } else {
            (low, a, at_a) = (a, b, at_b);
            b = low + ratio * (high - low);
            at_b = loss(b);
        }
    }
    let temperature = short((0.5 * (low + high)).exp());
    let before = probabilities(logits, classes, 1.0);
    let after = probabilities(logits, classes, temperature);
    let right = (before.chunks_exact(classes).zip(codes))
        .filter(|(p, y)| crate::algebra::argmax(p) == **y)
        .count();
    Ok(Calibration {
        temperature,
        rows: codes.len(),
        error_before: short(calibration_error(&before, codes)),
        error_after: short(calibration_error(&after, codes)),
        loss_before: short(log_loss(&before, codes)),
        loss_after: short(log_loss(&after, codes)),
        accuracy: short(right as f64 / codes.len() as f64),
    })
}

/// Probabilities of scores at a temperature.
pub fn probabilities(logits: &[f64], classes: usize, temperature: f64) -> Vec<f64> {
    let mut all: Vec<f64> = logits.iter().map(|x| x / temperature).collect();
    softmax_rows(&mut all, classes, &mut vec![0.0; logits.len() / classes]);
    all
}

/// Finds the temperature with `folds` folds. `fit_and_tell` learns from rows with labels
/// and gives the scores of other rows, `[rows, classes]` in the order of `labels.classes()`.
///
/// A class of one row is always learned from and never told.
pub fn by_folds(
    x: &Table,
    labels: &Labels,
    folds: usize,
    seed: u64,
    progress: &dyn Progress,
    mut fit_and_tell: impl FnMut(&Table, &Labels, &Table) -> Result<Vec<f64>, PredictError>,
) -> Result<Calibration, PredictError> {
    labels.check(x.rows())?;
    if folds < 2 {
        return Err(PredictError::Setting {
            setting: "folds",
            what: "must be 2 or more".to_owned(),
        });
    }
    let fold = assign(labels, folds, seed);
    let (mut logits, mut codes) = (Vec::new(), Vec::new());
    for held in 0..folds {
        if progress.cancelled() {
            return Err(PredictError::Cancelled);
        }
        let rows = |is_held: bool| -> Vec<usize> {
            let all = 0..x.rows();
            all.filter(|&i| (fold[i] == Some(held)) == is_held)
                .collect()
        };
        let (learn, tell) = (rows(false), rows(true));
        if tell.is_empty() {
            continue;
        }
        let told = fit_and_tell(&x.select(&learn), &labels.select(&learn), &x.select(&tell))?;
        logits.extend(told);
        codes.extend(tell.iter().map(|&i| labels.codes()[i]));
    }
    fit(&logits, &codes)
}

/// The fold of each row: those of a class are dealt out evenly.
fn assign(labels: &Labels, folds: usize, seed: u64) -> Vec<Option<usize>> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut fold = vec![None; labels.codes().len()];
    let mut next = 0;
    for class in 0..labels.classes().len() {
        let rows = (0..fold.len()).filter(|&i| labels.codes()[i] == class);
        let mut rows: Vec<usize> = rows.collect();
        if rows.len() < 2 {
            continue;
        }
        rows.shuffle(&mut rng);
        for i in rows {
            fold[i] = Some(next % folds);
            next += 1;
        }
    }
    fold
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logistic::{Logistic, LogisticConfig};
    use crate::{Classifier, lbfgs};
    use keyfold_core::NoProgress;
    use rand::Rng;

    #[test]
    fn scores_that_are_three_times_too_large_are_found_out() {
        let mut rng = SmallRng::seed_from_u64(1);
        let (mut logits, mut codes) = (Vec::new(), Vec::new());
        for _ in 0..20_000 {
            let s: f64 = rng.random_range(-3.0..3.0);
            codes.push(usize::from(rng.random_bool(1.0 / (1.0 + (-s).exp()))));
            logits.extend([0.0, 3.0 * s]);
        }
        let found = fit(&logits, &codes).unwrap();
        assert!((found.temperature - 3.0).abs() < 0.15, "{found:?}");
        assert!(found.error_after < 0.3 * found.error_before);
        assert!(found.loss_after < found.loss_before);
    }

    #[test]
    fn folds_calibrate_an_overfitted_head_and_a_single_row_is_never_held_out() {
        let mut rng = SmallRng::seed_from_u64(2);
        let (mut numbers, mut names) = (Vec::new(), Vec::new());
        for i in 0..150 {
            let class = i % 2;
            names.push(class.to_string());
            numbers.extend((0..40).map(|f| {
                let shift = if f < 3 { class as f64 } else { 0.0 };
                shift + rng.random_range(-2.0..2.0)
            }));
        }
        names[149] = "rare".to_owned();
        let (x, labels) = (Table::new(40, numbers).unwrap(), Labels::new(&names));
        let config = LogisticConfig {
            c: 1e4,
            ..Default::default()
        };
        let mut seen = 0;
        let found = by_folds(&x, &labels, 5, 3, &NoProgress, |learn, told, rows| {
            assert!(told.codes().contains(&2));
            seen += rows.rows();
            let model = Logistic::fit(learn, told, &config, &NoProgress)?;
            assert_ne!(model.told().stopped, lbfgs::Stopped::Cancelled);
            model.logits(rows)
        })
        .unwrap();
        assert_eq!((seen, found.rows), (149, 149));
        assert!(found.temperature > 1.5, "{found:?}");
        assert!(found.error_after < found.error_before);
    }
}

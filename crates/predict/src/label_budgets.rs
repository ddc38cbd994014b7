//! Which head is better at how many labels.
//!
//! The experiment of Zheng et al., Revisiting Discriminative vs. Generative Classifiers
//! (ICML 2023): for each budget of `m` labelled rows, [naive Bayes](crate::naive_bayes) and
//! [logistic regression](crate::logistic) learn from the same `m` rows, drawn anew in each
//! repeat, and are measured on rows kept apart. Columns are scaled by what the `m` rows
//! show. Draws in which a class is missing are drawn again.

use keyfold_core::Progress;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use crate::logistic::{Logistic, LogisticConfig};
use crate::naive_bayes::{NaiveBayes, NaiveBayesConfig};
use crate::{Classifier, Labels, PredictError, Scale, Scaler, Table};

/// Settings.
#[derive(Debug, Clone, PartialEq)]
pub struct BudgetsConfig {
    /// Numbers of labelled rows.
    pub budgets: Vec<usize>,
    /// Draws for each.
    pub repeats: usize,
    /// How columns are scaled.
    pub scale: Scale,
    /// The generative head.
    pub naive_bayes: NaiveBayesConfig,
    /// The discriminative head.
    pub logistic: LogisticConfig,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for BudgetsConfig {
    fn default() -> Self {
        Self {
            budgets: vec![10, 20, 50, 100, 200, 500],
            repeats: 5,
            scale: Scale::MinMax,
            naive_bayes: NaiveBayesConfig::default(),
            logistic: LogisticConfig::default(),
            seed: 0,
        }
    }
}

/// Errors at one budget, a number for each repeat.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Point {
    /// Labelled rows.
    pub budget: usize,
    /// Share of wrong answers of naive Bayes.
    pub naive_bayes: Vec<f64>,
    /// Share of wrong answers of logistic regression.
    pub logistic: Vec<f64>,
}

impl Point {
    /// Mean errors, of naive Bayes and of logistic regression.
    pub fn means(&self) -> (f64, f64) {
        let mean = |all: &[f64]| all.iter().sum::<f64>() / all.len().max(1) as f64;
        (mean(&self.naive_bayes), mean(&self.logistic))
    }
}

/// Where logistic regression overtakes naive Bayes.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Crossing {
    /// Labelled rows, between two budgets; none where it never does, or always leads.
    pub at: Option<f64>,
    /// 5 and 95 per cent of the crossings when repeats are drawn with replacement; infinity
    /// where it does not cross.
    pub interval: (f64, f64),
    /// Share of those draws in which it crosses at all.
    pub crosses: f64,
}

/// Rows to learn from, and a share of them that is kept apart to be told.
pub fn hold_out(rows: usize, share: f64, seed: u64) -> (Vec<usize>, Vec<usize>) {
    let mut order: Vec<usize> = (0..rows).collect();
    order.shuffle(&mut SmallRng::seed_from_u64(seed));
    let kept = ((rows as f64 * share).round() as usize).clamp(1, rows.saturating_sub(1).max(1));
    let pool = order.split_off(kept.min(rows));
    (pool, order)
}

/// The errors of both heads at each budget, learned from `pool` and told on `test`.
pub fn curve(
    pool: (&Table, &Labels),
    test: (&Table, &Labels),
    config: &BudgetsConfig,
    progress: &dyn Progress,
) -> Result<Vec<Point>, PredictError> {
    let (x, labels) = pool;
    labels.check(x.rows())?;
    test.1.check_count(test.0.rows())?;
    test.0.expect_columns(x.columns())?;
    let classes = labels.counts().iter().filter(|n| **n > 0).count();
    let setting = |what: String| PredictError::Setting {
        setting: "budgets",
        what,
    };
    if config.budgets.is_empty() || config.repeats == 0 {
        return Err(setting("name at least one, and at least one repeat".into()));
    }
    if let Some(m) = config.budgets.iter().find(|m| **m > x.rows()) {
        return Err(setting(format!(
            "{m} is more than the {} rows that may be learned from",
            x.rows()
        )));
    }
    if let Some(m) = config.budgets.iter().find(|m| **m < classes) {
        return Err(setting(format!("{m} is less than the {classes} classes")));
    }
    let mut rng = SmallRng::seed_from_u64(config.seed);
    let mut points: Vec<Point> = (config.budgets.iter())
        .map(|&budget| Point {
            budget,
            naive_bayes: Vec::new(),
            logistic: Vec::new(),
        })
        .collect();
    for _ in 0..config.repeats {
        for point in &mut points {
            if progress.cancelled() {
                return Err(PredictError::Cancelled);
            }
            let rows = draw(labels, point.budget, classes, &mut rng)?;
            let (nb, lr) = errors(
                (&x.select(&rows), &labels.select(&rows)),
                test,
                config,
                progress,
            )?;
            point.naive_bayes.push(nb);
            point.logistic.push(lr);
            progress.advance(1);
        }
    }
    Ok(points)
}

/// Draws that are tried until all classes are in one.
const TRIES: usize = 1000;

/// `m` rows with all classes.
fn draw(
    labels: &Labels,
    m: usize,
    classes: usize,
    rng: &mut SmallRng,
) -> Result<Vec<usize>, PredictError> {
    let mut all: Vec<usize> = (0..labels.codes().len()).collect();
    for _ in 0..TRIES {
        let (some, _) = all.partial_shuffle(rng, m);
        let seen = labels.select(some).counts();
        if seen.iter().filter(|n| **n > 0).count() == classes {
            return Ok(some.to_vec());
        }
    }
    Err(PredictError::Setting {
        setting: "budgets",
        what: format!("of {TRIES} draws of {m} rows none had all classes; leave rare classes out"),
    })
}

/// Errors of both heads, learned from a few rows.
fn errors(
    few: (&Table, &Labels),
    test: (&Table, &Labels),
    config: &BudgetsConfig,
    progress: &dyn Progress,
) -> Result<(f64, f64), PredictError> {
    let scaler = Scaler::fit(config.scale, few.0);
    let (x, tested) = (scaler.apply(few.0)?, scaler.apply(test.0)?);
    let nb = NaiveBayes::fit(&x, few.1, &config.naive_bayes)?;
    let lr = Logistic::fit(&x, few.1, &config.logistic, progress)?;
    Ok((
        1.0 - nb.score(&tested, test.1)?,
        1.0 - lr.score(&tested, test.1)?,
    ))
}

/// Draws of repeats for an interval.
const BOOTSTRAP: usize = 1000;

/// Where the mean curves cross, with an interval from draws of the repeats.
pub fn crossing(points: &[Point], seed: u64) -> Crossing {
    let means: Vec<(f64, (f64, f64))> = (points.iter())
        .map(|p| (p.budget as f64, p.means()))
        .collect();
    let mut rng = SmallRng::seed_from_u64(seed);
    let repeats = points.first().map_or(0, |p| p.logistic.len());
    let mut drawn: Vec<f64> = Vec::with_capacity(BOOTSTRAP);
    for _ in 0..if repeats > 0 { BOOTSTRAP } else { 0 } {
        let some: Vec<usize> = (0..repeats).map(|_| rng.random_range(0..repeats)).collect();
        let mean = |all: &[f64]| some.iter().map(|&i| all[i]).sum::<f64>() / repeats as f64;
        let means: Vec<_> = (points.iter())
            .map(|p| (p.budget as f64, (mean(&p.naive_bayes), mean(&p.logistic))))
            .collect();
        drawn.push(first_crossing(&means).unwrap_or(f64::INFINITY));
    }
    drawn.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let place = (share * (drawn.len().max(1) - 1) as f64).round() as usize;
        drawn.get(place).copied().unwrap_or(f64::INFINITY)
    };
    let crossed = drawn.iter().filter(|x| x.is_finite()).count();
    Crossing {
        at: first_crossing(&means),
        interval: (at(0.05), at(0.95)),
        crosses: crossed as f64 / drawn.len().max(1) as f64,
    }
}

/// The budget from which on logistic regression is better, where naive Bayes was better or
/// as good before; on a logarithmic line between two budgets.
fn first_crossing(means: &[(f64, (f64, f64))]) -> Option<f64> {
    means.windows(2).find_map(|pair| {
        let [(m0, (nb0, lr0)), (m1, (nb1, lr1))] = pair else {
            return None;
        };
        let (before, after) = (nb0 - lr0, nb1 - lr1);
        (before <= 0.0 && after > 0.0).then(|| {
            let part = -before / (after - before);
            (m0.ln() + part * (m1.ln() - m0.ln())).exp()
        })
    })
}

/// The head to take with so many labels: whether it is naive Bayes.
pub fn prefers_naive_bayes(points: &[Point], labels: usize) -> bool {
    let nearest = points.iter().min_by(|a, b| {
        let far = |p: &Point| (p.budget as f64 / labels.max(1) as f64).ln().abs();
        far(a).total_cmp(&far(b))
    });
    nearest.is_some_and(|p| {
        let (nb, lr) = p.means();
        nb < lr
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use keyfold_core::{NoProgress, StopAfter};

    fn point(budget: usize, nb: f64, lr: f64) -> Point {
        Point {
            budget,
            naive_bayes: vec![nb; 3],
            logistic: vec![lr; 3],
        }
    }

    #[test]
    fn rows_that_are_held_out_are_not_learned_from() {
        let (pool, test) = hold_out(10, 0.3, 1);
        assert_eq!((pool.len(), test.len()), (7, 3));
        let mut all = [pool, test].concat();
        all.sort_unstable();
        assert_eq!(all, (0..10).collect::<Vec<_>>());
        assert_eq!(hold_out(2, 0.99, 1).0.len(), 1);
        assert_eq!(hold_out(1, 0.5, 1), (vec![], vec![0]));
    }

    #[test]
    fn the_crossing_lies_between_the_budgets_where_the_order_turns() {
        let points = [
            point(10, 0.1, 0.2),
            point(100, 0.08, 0.10),
            point(1000, 0.08, 0.06),
        ];
        let found = crossing(&points, 1);
        assert!((found.at.unwrap() - 100.0 * 10f64.sqrt()).abs() < 1e-6);
        assert_eq!(found.crosses, 1.0);
        assert!((found.interval.0 - found.interval.1).abs() < 1e-6);
        assert!(prefers_naive_bayes(&points, 20) && !prefers_naive_bayes(&points, 900));
        let never = crossing(&points[..2], 1);
        assert_eq!((never.at, never.crosses), (None, 0.0));
    }

    /// The paper's generator: two classes apart by 2 in each of `n` columns, half of which
    /// have variance `n`.
    fn paper(rows: usize, n: usize, seed: u64) -> (Table, Labels) {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut normal = || {
            let (a, b): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
            (-2.0 * a.ln()).sqrt() * (2.0 * std::f64::consts::PI * b).cos()
        };
        let (mut numbers, mut names) = (Vec::new(), Vec::new());
        for i in 0..rows {
            let mean = if i % 2 == 0 { -1.0 } else { 1.0 };
            names.push((i % 2).to_string());
            for f in 0..n {
                let sd = if f < n / 2 { (n as f64).sqrt() } else { 1.0 };
                numbers.push(mean + sd * normal());
            }
        }
        (Table::new(n, numbers).unwrap(), Labels::new(&names))
    }

    #[test]
    fn with_few_labels_naive_bayes_leads_in_the_papers_generator() {
        let (pool, test) = (paper(400, 20, 1), paper(2000, 20, 2));
        let config = BudgetsConfig {
            budgets: vec![10, 20],
            scale: Scale::None,
            repeats: 4,
            ..Default::default()
        };
        let run = || curve((&pool.0, &pool.1), (&test.0, &test.1), &config, &NoProgress).unwrap();
        let points = run();
        assert_eq!(points, run());
        for p in &points {
            let (nb, lr) = p.means();
            assert!(nb < lr, "{p:?}");
        }
        let too_many = BudgetsConfig {
            budgets: vec![401],
            ..config.clone()
        };
        let all = ((&pool.0, &pool.1), (&test.0, &test.1));
        assert!(curve(all.0, all.1, &too_many, &NoProgress).is_err());
        assert!(matches!(
            curve(all.0, all.1, &config, &StopAfter::new(1)),
            Err(PredictError::Cancelled)
        ));
    }
}

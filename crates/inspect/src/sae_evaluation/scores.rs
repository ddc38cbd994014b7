//! F1 of features being active against attributes having a value.
//!
//! Both are bits of prompts, so that a score is three counts. A feature that is never active
//! has no score and comes last.

use keyfold_dictionary::Codes;
use serde::Serialize;

use super::Attribute;

/// Values of which a group may be made.
const GROUP: usize = 10;

/// Bits of prompts.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Bits(Vec<u64>);

impl Bits {
    fn zeros(n: usize) -> Self {
        Self(vec![0; n.div_ceil(64)])
    }

    fn set(&mut self, i: usize) {
        self.0[i / 64] |= 1 << (i % 64);
    }

    fn count(&self) -> u32 {
        self.0.iter().map(|w| w.count_ones()).sum()
    }

    fn common(&self, other: &Self) -> u32 {
        self.0
            .iter()
            .zip(&other.0)
            .map(|(a, b)| (a & b).count_ones())
            .sum()
    }

    fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(a, b)| *a |= b);
    }
}

/// How a feature goes with a value.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Score {
    /// Share of the prompts where the feature is active that have the value.
    pub precision: f64,
    /// Share of the prompts with the value where the feature is active.
    pub recall: f64,
    /// Their harmonic mean; minus infinity of a feature that is never active.
    pub f1: f64,
}

fn score(common: u32, active: u32, having: u32) -> Score {
    let share = |of: u32| {
        if of == 0 {
            0.0
        } else {
            f64::from(common) / f64::from(of)
        }
    };
    Score {
        precision: share(active),
        recall: share(having),
        f1: match active {
            0 => f64::NEG_INFINITY,
            _ => 2.0 * f64::from(common) / f64::from(active + having),
        },
    }
}

/// Scores of all features against all values of one attribute.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    values: usize,
    /// `[features, values]`
    all: Vec<Score>,
    active: Vec<Bits>,
    having: Vec<Bits>,
}

/// What a feature stands for.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Meaning {
    /// The feature.
    pub feature: usize,
    /// The values, the best first.
    pub values: Vec<usize>,
    /// F1 of the feature against any of them.
    pub f1: f64,
}

/// How one value is spread over features.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Splitting {
    /// The value.
    pub value: usize,
    /// Features that are active on hardly anything else (precision of at least 0.9), and on at
    /// least one in fifty of its prompts.
    pub precise: usize,
    /// Best recall among them.
    pub best_recall: f64,
    /// How many of them, the best first, cover nine of ten of its prompts; none where all
    /// together do not.
    pub needed: Option<usize>,
}

impl Scores {
    /// Of codes (one row for each prompt) and an attribute.
    ///
    /// # Panics
    /// When codes and attribute have other numbers of prompts.
    pub fn of(codes: &Codes, attribute: &Attribute) -> Self {
        let n = codes.len();
        assert_eq!(n, attribute.of.len(), "prompts of codes and attribute");
        let mut active = vec![Bits::zeros(n); codes.n_components()];
        for (i, (features, values)) in codes.iter().enumerate() {
            // Gated codes can be below 0; these are not active.
            let on = features.iter().zip(values).filter(|(_, x)| **x > 0.0);
            on.for_each(|(j, _)| active[*j as usize].set(i));
        }
        let mut having = vec![Bits::zeros(n); attribute.values.len()];
        attribute
            .of
            .iter()
            .enumerate()
            .for_each(|(i, v)| having[*v].set(i));
        let counts: Vec<u32> = having.iter().map(Bits::count).collect();
        let mut all = Vec::with_capacity(active.len() * having.len());
        for feature in &active {
            let count = feature.count();
            let values = having.iter().zip(&counts);
            all.extend(values.map(|(v, having)| score(feature.common(v), count, *having)));
        }
        Self {
            values: having.len(),
            all,
            active,
            having,
        }
    }

    /// Number of features.
    pub fn features(&self) -> usize {
        self.active.len()
    }

    /// A feature against a value.
    ///
    /// # Panics
    /// When there is no such feature or value.
    pub fn get(&self, feature: usize, value: usize) -> Score {
        self.all[feature * self.values..][..self.values][value]
    }

    /// For each value the features by their F1, the best first.
    pub fn ranking(&self) -> Vec<Vec<u32>> {
        let by_value = |value: usize| {
            let mut order: Vec<u32> = (0..self.features() as u32).collect();
            let f1 = |j: &u32| self.get(*j as usize, value).f1;
            order.sort_by(|a, b| f1(b).total_cmp(&f1(a)));
            order
        };
        (0..self.values).map(by_value).collect()
    }

    /// The best feature of each value that some prompt has, with its F1.
    pub fn best(&self) -> Vec<(usize, usize, f64)> {
        let values = (0..self.values).filter(|v| self.having[*v].count() > 0);
        let best = |value: usize| {
            let features = 0..self.features();
            let best = features
                .max_by(|a, b| self.get(*a, value).f1.total_cmp(&self.get(*b, value).f1))?;
            Some((value, best, self.get(best, value).f1))
        };
        values.filter_map(best).collect()
    }

    /// Mean over values of the best F1.
    pub fn mean_best(&self) -> f64 {
        let best = self.best();
        let sum: f64 = best.iter().map(|b| b.2.max(0.0)).sum();
        sum / best.len().max(1) as f64
    }

    /// Features whose F1 against one value, or against up to ten of their best values together,
    /// is above a threshold; the best first.
    pub fn meanings(&self, threshold: f64) -> Vec<Meaning> {
        let mut out: Vec<Meaning> = (0..self.features())
            .filter_map(|feature| self.meaning(feature))
            .filter(|m| m.f1 > threshold)
            .collect();
        out.sort_by(|a, b| b.f1.total_cmp(&a.f1));
        out
    }

    fn meaning(&self, feature: usize) -> Option<Meaning> {
        let active = &self.active[feature];
        let count = active.count();
        if count == 0 {
            return None;
        }
        let mut order: Vec<usize> = (0..self.values).collect();
        let f1 = |v: &usize| self.get(feature, *v).f1;
        order.sort_by(|a, b| f1(b).total_cmp(&f1(a)));
        order.truncate(GROUP);
        let mut union = Bits(vec![0; active.0.len()]);
        let (mut best, mut size) = (f64::NEG_INFINITY, 0);
        for (at, value) in order.iter().enumerate() {
            union.add(&self.having[*value]);
            let f1 = score(active.common(&union), count, union.count()).f1;
            if f1 > best {
                (best, size) = (f1, at + 1);
            }
        }
        order.truncate(size);
        Some(Meaning {
            feature,
            values: order,
            f1: best,
        })
    }

    /// How each value that some prompt has is spread over features.
    pub fn splitting(&self) -> Vec<Splitting> {
        let values = (0..self.values).filter(|v| self.having[*v].count() > 0);
        let spread = |value: usize| {
            let clean = |j: &usize| {
                let score = self.get(*j, value);
                score.precision >= 0.9 && score.recall >= 0.02
            };
            let mut precise: Vec<usize> = (0..self.features()).filter(clean).collect();
            let recall = |j: &usize| self.get(*j, value).recall;
            precise.sort_by(|a, b| recall(b).total_cmp(&recall(a)));
            let having = &self.having[value];
            let mut union = Bits(vec![0; having.0.len()]);
            let enough = 0.9 * f64::from(having.count());
            let needed = precise.iter().position(|j| {
                union.add(&self.active[*j]);
                f64::from(union.common(having)) >= enough
            });
            Splitting {
                value,
                precise: precise.len(),
                best_recall: precise.first().map_or(0.0, recall),
                needed: needed.map(|at| at + 1),
            }
        };
        values.map(spread).collect()
    }
}

//! All tuples, one query after the other.
//!
//! All keys but the last are chosen one by one (the prefix of a tuple); scores with all rows
//! of the last key are then a matrix-vector product. The softmax is kept relative to the
//! largest score so far, so memory stays small.

use keyfold_kernels::Team;

use super::{Attention, Gradients};
use crate::SequenceError;

/// What is common to all tuples that begin alike.
struct Prefix {
    /// Rows of the keys before the last.
    rows: Vec<usize>,
    /// `scale · query · keys`, by dimension.
    keys: Vec<f64>,
    /// Values, multiplied.
    values: Vec<f64>,
}

/// A softmax that is under way.
struct Running {
    most: f64,
    sum: f64,
    out: Vec<f64>,
}

impl Attention<'_> {
    /// The output `[n, values_dim]`.
    ///
    /// # Errors
    /// When there are more positions than can be computed in a bearable time.
    pub fn exact(&self, team: &Team) -> Result<Vec<f64>, SequenceError> {
        self.check_exact()?;
        let mut out = vec![0.0; self.len() * self.values_dim];
        team.split(&mut out, self.values_dim, |first, out| {
            for (i, out) in out.chunks_exact_mut(self.values_dim).enumerate() {
                let running = self.attend(first / self.values_dim + i);
                for (out, sum) in out.iter_mut().zip(&running.out) {
                    *out = sum / running.sum;
                }
            }
        });
        Ok(out)
    }

    /// Gradients from `dout` `[n, values_dim]`.
    ///
    /// # Errors
    /// As [`exact`](Self::exact), or when `dout` has another shape.
    pub fn exact_backward(&self, dout: &[f64]) -> Result<Gradients, SequenceError> {
        self.check_exact()?;
        self.check_dout(dout)?;
        let zeros = |all: &[&[f64]]| all.iter().map(|x| vec![0.0; x.len()]).collect();
        let mut out = Gradients {
            queries: vec![0.0; self.queries.len()],
            keys: zeros(&self.keys),
            values: zeros(&self.values),
        };
        for (i, dout) in dout.chunks_exact(self.values_dim).enumerate() {
            self.back(i, dout, &mut out);
        }
        Ok(out)
    }

    pub(super) fn check_dout(&self, dout: &[f64]) -> Result<(), SequenceError> {
        let wanted = self.len() * self.values_dim;
        if dout.len() == wanted {
            return Ok(());
        }
        Err(SequenceError::Shape {
            what: "the gradient of the output",
            found: dout.len(),
            expected: wanted.to_string(),
        })
    }

    /// Rows that a query may attend to.
    fn seen(&self, query: usize) -> usize {
        if self.causal { query + 1 } else { self.len() }
    }

    /// Calls `each` with every prefix of a query's tuples.
    fn prefixes(&self, query: usize, each: &mut dyn FnMut(&Prefix)) {
        let q = &self.queries[query * self.dim..][..self.dim];
        let start = Prefix {
            rows: Vec::new(),
            keys: q.iter().map(|q| self.scale * q).collect(),
            values: vec![1.0; self.values_dim],
        };
        self.extend(&start, self.seen(query), each);
    }

    fn extend(&self, prefix: &Prefix, seen: usize, each: &mut dyn FnMut(&Prefix)) {
        let place = prefix.rows.len();
        if place + 1 == self.keys.len() {
            each(prefix);
            return;
        }
        for row in 0..seen {
            let times = |x: &[f64], rows: &[f64], width: usize| -> Vec<f64> {
                let row = &rows[row * width..][..width];
                x.iter().zip(row).map(|(a, b)| a * b).collect()
            };
            let longer = Prefix {
                rows: [&prefix.rows[..], &[row]].concat(),
                keys: times(&prefix.keys, self.keys[place], self.dim),
                values: times(&prefix.values, self.values[place], self.values_dim),
            };
            self.extend(&longer, seen, each);
        }
    }

    /// Scores of a prefix with the rows of the last key; gives the largest.
    fn scores(&self, prefix: &Prefix, scores: &mut [f64]) -> f64 {
        let keys = self.keys[self.keys.len() - 1].chunks_exact(self.dim);
        let mut most = f64::NEG_INFINITY;
        for (score, key) in scores.iter_mut().zip(keys) {
            *score = dot(&prefix.keys, key);
            most = most.max(*score);
        }
        most
    }

    fn attend(&self, query: usize) -> Running {
        let values = self.values[self.values.len() - 1];
        let mut scores = vec![0.0; self.seen(query)];
        let mut mixed = vec![0.0; self.values_dim];
        let mut all = Running {
            most: f64::NEG_INFINITY,
            sum: 0.0,
            out: vec![0.0; self.values_dim],
        };
        self.prefixes(query, &mut |prefix| {
            let most = self.scores(prefix, &mut scores);
            if most > all.most {
                let fade = (all.most - most).exp();
                all.most = most;
                all.sum *= fade;
                all.out.iter_mut().for_each(|x| *x *= fade);
            }
            mixed.fill(0.0);
            let rows = values.chunks_exact(self.values_dim);
            for (score, row) in scores.iter().zip(rows) {
                let weight = (score - all.most).exp();
                all.sum += weight;
                for (mixed, value) in mixed.iter_mut().zip(row) {
                    *mixed += weight * value;
                }
            }
            for ((out, mixed), value) in all.out.iter_mut().zip(&mixed).zip(&prefix.values) {
                *out += mixed * value;
            }
        });
        all
    }

    /// Adds the gradients of one query.
    fn back(&self, query: usize, dout: &[f64], to: &mut Gradients) {
        let (d, width) = (self.dim, self.values_dim);
        let running = self.attend(query);
        let out: Vec<f64> = running.out.iter().map(|x| x / running.sum).collect();
        let mean = dot(dout, &out);
        let last = self.keys.len() - 1;
        let q = &self.queries[query * d..][..d];
        let mut scores = vec![0.0; self.seen(query)];
        let (mut of_scores, mut of_weights) = (vec![0.0; d], vec![0.0; width]);
        self.prefixes(query, &mut |prefix| {
            self.scores(prefix, &mut scores);
            let reach: Vec<f64> = dout
                .iter()
                .zip(&prefix.values)
                .map(|(a, b)| a * b)
                .collect();
            of_scores.fill(0.0);
            of_weights.fill(0.0);
            for (k, score) in scores.iter().enumerate() {
                let weight = (score - running.most).exp() / running.sum;
                let key = &self.keys[last][k * d..][..d];
                let value = &self.values[last][k * width..][..width];
                let slope = weight * (dot(&reach, value) - mean);
                add(&mut of_scores, slope, key);
                add(&mut of_weights, weight, value);
                add(&mut to.keys[last][k * d..][..d], slope, &prefix.keys);
                add(&mut to.values[last][k * width..][..width], weight, &reach);
            }
            for l in 0..d {
                let chosen = |but: usize| -> f64 {
                    let rows = prefix.rows.iter().enumerate();
                    let others = rows.filter(|(place, _)| *place != but);
                    others
                        .map(|(place, row)| self.keys[place][row * d + l])
                        .product()
                };
                let slope = self.scale * of_scores[l];
                to.queries[query * d + l] += slope * chosen(usize::MAX);
                for (place, row) in prefix.rows.iter().enumerate() {
                    to.keys[place][row * d + l] += slope * q[l] * chosen(place);
                }
            }
            for c in 0..width {
                for (place, row) in prefix.rows.iter().enumerate() {
                    let rows = prefix.rows.iter().enumerate();
                    let others = rows.filter(|(other, _)| *other != place);
                    let others: f64 = others
                        .map(|(other, row)| self.values[other][row * width + c])
                        .product();
                    to.values[place][row * width + c] += of_weights[c] * dout[c] * others;
                }
            }
        });
    }
}

/// A query, and a pair that it attends to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Triple {
    /// The query's position.
    pub query: usize,
    /// Positions of the pair.
    pub pair: [usize; 2],
    /// The share of its attention.
    pub weight: f64,
}

/// The `top` triples with most weight of an attention of order 3, the strongest first.
///
/// # Errors
/// When it has another order or too many positions.
pub fn triples(attention: &Attention, top: usize) -> Result<Vec<Triple>, SequenceError> {
    if attention.keys.len() != 2 {
        let what = "triples are those of an attention with two keys";
        return Err(SequenceError::Refused(what.into()));
    }
    attention.check_exact()?;
    let mut best: Vec<Triple> = Vec::new();
    for query in 0..attention.len() {
        let running = attention.attend(query);
        let mut scores = vec![0.0; attention.seen(query)];
        attention.prefixes(query, &mut |prefix| {
            attention.scores(prefix, &mut scores);
            let least = if best.len() < top {
                f64::NEG_INFINITY
            } else {
                best.last().map_or(f64::INFINITY, |t| t.weight)
            };
            for (k, score) in scores.iter().enumerate() {
                let weight = (score - running.most).exp() / running.sum;
                if weight > least {
                    best.push(Triple {
                        query,
                        pair: [prefix.rows[0], k],
                        weight,
                    });
                }
            }
            if best.len() > top {
                best.sort_by(|a, b| b.weight.total_cmp(&a.weight));
                best.truncate(top);
            }
        });
    }
    best.sort_by(|a, b| b.weight.total_cmp(&a.weight));
    Ok(best)
}

pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

pub(super) fn add(to: &mut [f64], factor: f64, x: &[f64]) {
    to.iter_mut().zip(x).for_each(|(to, x)| *to += factor * x);
}

//! Which keys each position looks at.

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashMap, VecDeque};

use super::{HaxConfig, Mode, Source};
use crate::SequenceError;
use crate::matrix_mixers::shape;

/// The keys of every position of a text, in rising order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selected {
    keys: Vec<u32>,
    /// Where the keys of each position end.
    ends: Vec<usize>,
    /// Whether a position without a key reads the mean of all values.
    pub(super) mean_of_all: bool,
}

impl Selected {
    /// How many positions.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The keys of a position.
    ///
    /// # Panics
    /// When there is no such position.
    pub fn of(&self, position: usize) -> &[u32] {
        let from = position.checked_sub(1).map_or(0, |p| self.ends[p]);
        &self.keys[from..self.ends[position]]
    }

    /// Keys of all positions together.
    pub fn count(&self) -> usize {
        self.keys.len()
    }
}

/// A key and its score; the least stands on top of a heap of these reversed. Of two alike the
/// earlier counts as larger.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Scored {
    score: f32,
    key: u32,
}

impl Eq for Scored {}

impl Ord for Scored {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_score = self.score.total_cmp(&other.score);
        by_score.then(other.key.cmp(&self.key))
    }
}

impl PartialOrd for Scored {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Picks keys position by position: what was seen is kept in lists of one size.
#[derive(Debug, Clone)]
pub struct Chooser {
    config: HaxConfig,
    position: u32,
    /// The last keys of each hash.
    buckets: HashMap<u64, VecDeque<u32>>,
    best: BinaryHeap<Reverse<Scored>>,
}

impl Chooser {
    /// Before a text.
    ///
    /// # Errors
    /// When the configuration makes no sense.
    pub fn new(config: &HaxConfig) -> Result<Self, SequenceError> {
        config.check()?;
        Ok(Self {
            config: config.clone(),
            position: 0,
            buckets: HashMap::new(),
            best: BinaryHeap::new(),
        })
    }

    /// Appends the keys of the next position, whose query and key have these hashes (see
    /// [`Source::SignBinLsh`]) and whose key has this score, in rising order.
    pub fn step(&mut self, query_code: u64, key_code: u64, score: f32, out: &mut Vec<u32>) {
        let (t, each) = (self.position, self.config.keys_each());
        self.position += 1;
        let before = out.len();
        let near = u32::try_from(each).unwrap_or(u32::MAX);
        for source in &self.config.sparse_arch {
            match source {
                Source::Full => out.extend(0..=t),
                Source::SlidingWindow => out.extend((t + 1).saturating_sub(near)..=t),
                Source::Sink => out.extend(0..(t + 1).min(near)),
                Source::Dilated => {
                    let dilation = u32::try_from(self.config.dilation()).unwrap_or(u32::MAX);
                    let last = (t + 1) / dilation;
                    let first = last.saturating_sub(near);
                    out.extend((first..last).map(|i| (i + 1) * dilation - 1));
                }
                Source::SignBinLsh => {
                    let bucket = self.buckets.entry(key_code).or_default();
                    if bucket.len() == each {
                        bucket.pop_front();
                    }
                    bucket.push_back(t);
                    if let Some(bucket) = self.buckets.get(&query_code) {
                        out.extend(bucket);
                    }
                }
                Source::KeySelection => {
                    self.best.push(Reverse(Scored { score, key: t }));
                    if self.best.len() > each {
                        self.best.pop();
                    }
                    out.extend(self.best.iter().map(|Reverse(scored)| scored.key));
                }
            }
        }
        if self.config.sparse_arch.len() > 1 || self.config.has(Source::KeySelection) {
            out[before..].sort_unstable();
            let mut kept = before;
            for i in before..out.len() {
                if kept == before || out[kept - 1] != out[i] {
                    out[kept] = out[i];
                    kept += 1;
                }
            }
            out.truncate(kept);
        }
    }
}

/// The keys of all positions of a text: `q` and `k` are `[T, dim]` (`k` over the root of `dim`),
/// `hashes` `[dim, num_hash]` where there are hashes, `scores` one for each position where keys
/// are selected.
///
/// # Errors
/// When the configuration makes no sense or a shape does not fit.
pub fn select(
    config: &HaxConfig,
    q: &[f32],
    k: &[f32],
    dim: usize,
    hashes: &[f32],
    scores: &[f32],
) -> Result<Selected, SequenceError> {
    let mut chooser = Chooser::new(config)?;
    let t = q.len().checked_div(dim).unwrap_or(0);
    shape("the queries", q, t.max(1), dim)?;
    shape("the keys", k, t, dim)?;
    let codes = if config.has(Source::SignBinLsh) {
        shape("the hashes", hashes, dim, config.num_hash)?;
        [q, k].map(|x| codes(&centred(x, dim, config.mode), dim, hashes))
    } else {
        [vec![0; t], vec![0; t]]
    };
    let none = vec![0.0; t];
    let scores = if config.has(Source::KeySelection) {
        shape("the scores", scores, t, 1)?;
        scores
    } else {
        &none
    };
    let (mut keys, mut ends) = (Vec::new(), Vec::with_capacity(t));
    for ((&query, &key), &score) in codes[0].iter().zip(&codes[1]).zip(scores) {
        chooser.step(query, key, score, &mut keys);
        ends.push(keys.len());
    }
    Ok(Selected {
        keys,
        ends,
        mean_of_all: config.mode == Mode::Compat,
    })
}

/// Vectors less their mean, so far or of all. In the released mode each number is divided by its
/// length over the time, which moves the borders of the hashes.
fn centred(x: &[f32], dim: usize, mode: Mode) -> Vec<f32> {
    let t = x.len() / dim;
    let mut sum = vec![0.0f64; dim];
    let add = |sum: &mut [f64], row: &[f32]| {
        sum.iter_mut()
            .zip(row)
            .for_each(|(s, x)| *s += f64::from(*x));
    };
    let mut out = Vec::with_capacity(x.len());
    match mode {
        Mode::Causal => {
            for (i, row) in x.chunks_exact(dim).enumerate() {
                add(&mut sum, row);
                let seen = (i + 1) as f64;
                let numbers = row.iter().zip(&sum);
                out.extend(numbers.map(|(&x, s)| (f64::from(x) - s / seen) as f32));
            }
        }
        Mode::Compat => {
            x.chunks_exact(dim).for_each(|row| add(&mut sum, row));
            let numbers = x.iter().enumerate();
            out.extend(numbers.map(|(i, &x)| (f64::from(x) - sum[i % dim] / t as f64) as f32));
            over_time(&mut out, dim);
        }
    }
    out
}

/// Divides each number by its length over the time.
fn over_time(x: &mut [f32], dim: usize) {
    let mut squares = vec![0.0f64; dim];
    for (i, x) in x.iter().enumerate() {
        squares[i % dim] += f64::from(*x).powi(2);
    }
    for (i, x) in x.iter_mut().enumerate() {
        *x = (f64::from(*x) / squares[i % dim].sqrt().max(1e-12)) as f32;
    }
}

/// The signs of products with the hashes, the first in the lowest bit.
fn codes(x: &[f32], dim: usize, hashes: &[f32]) -> Vec<u64> {
    let bits = hashes.len() / dim;
    let mut products = vec![0.0f32; bits];
    let rows = x.chunks_exact(dim).map(|row| {
        products.fill(0.0);
        for (&x, hashes) in row.iter().zip(hashes.chunks_exact(bits)) {
            keyfold_kernels::axpy(&mut products, x, hashes);
        }
        let signs = products.iter().enumerate();
        signs.fold(0, |code, (i, p)| code | (u64::from(*p > 0.0) << i))
    });
    rows.collect()
}

/// What the score of each key is computed from, `[T, 2 dim]`: the key and the sum of the queries
/// so far, of length one (in the released mode each number over the time).
///
/// # Errors
/// When a shape does not fit.
pub fn score_inputs(
    q: &[f32],
    k: &[f32],
    dim: usize,
    mode: Mode,
) -> Result<Vec<f32>, SequenceError> {
    let t = q.len().checked_div(dim).unwrap_or(0);
    shape("the queries", q, t.max(1), dim)?;
    shape("the keys", k, t, dim)?;
    let mut sum = vec![0.0f64; dim];
    let mut sums = Vec::with_capacity(q.len());
    for row in q.chunks_exact(dim) {
        sum.iter_mut()
            .zip(row)
            .for_each(|(s, q)| *s += f64::from(*q));
        let length = match mode {
            Mode::Causal => sum.iter().map(|s| s * s).sum::<f64>().sqrt().max(1e-12),
            Mode::Compat => 1.0,
        };
        sums.extend(sum.iter().map(|s| (s / length) as f32));
    }
    if mode == Mode::Compat {
        over_time(&mut sums, dim);
    }
    let rows = k.chunks_exact(dim).zip(sums.chunks_exact(dim));
    Ok(rows.flat_map(|(k, s)| k.iter().chain(s)).copied().collect())
}

/// How much each of `chosen` keys is asked for: `Σ_{t>=j} sigmoid(q_t · k_j)`, what the scores
/// learn to rank.
///
/// # Panics
/// When a key is at no position.
pub fn importances(q: &[f32], k: &[f32], dim: usize, chosen: &[u32]) -> Vec<f32> {
    let one = |&j: &u32| {
        let key = &k[j as usize * dim..][..dim];
        let later = q[j as usize * dim..].chunks_exact(dim);
        later
            .map(|q| 1.0 / (1.0 + (-keyfold_kernels::dot(q, key)).exp()))
            .sum()
    };
    chosen.iter().map(one).collect()
}

//! Attention of many queries to a tile of keys: the inner step of reading a prompt.

use super::Partial;
use super::partial::factor;
use crate::matmul::{Matrix, matmul_nt_strided, product};
use crate::norms::{exp_and_sum, maximum};
use crate::vector::{Eight, Pair, simd};

/// Queries of one head and a tile of keys and values.
#[derive(Debug, Clone, Copy)]
pub struct Tile<'a> {
    /// `[nq, dim]`.
    pub queries: &'a [f32],
    /// Numbers from the start of a query to the start of the next.
    pub query_stride: usize,
    /// `[nk, dim]`.
    pub keys: &'a [f32],
    /// `[nk, dim]`.
    pub values: &'a [f32],
    /// Length of a head's vectors.
    pub dim: usize,
    /// What scores are multiplied with, mostly `1 / √dim`.
    pub scale: f32,
    /// For each query the keys of the tile that it sees: first, and the one behind the last.
    pub visible: &'a [(u32, u32)],
    /// What is added to the scaled scores of the first keys; 0 for those behind.
    pub bias: &'a [f32],
}

/// The part of a tile that anyone sees.
struct Seen {
    queries: std::ops::Range<usize>,
    keys: std::ops::Range<usize>,
}

impl Tile<'_> {
    fn keys(&self) -> usize {
        self.keys.len() / self.dim
    }

    /// The keys that query `q` sees, within `0..keys`.
    fn visible(&self, q: usize) -> std::ops::Range<usize> {
        let (from, to) = self.visible[q];
        let to = (to as usize).min(self.keys());
        (from as usize).min(to)..to
    }

    fn check(&self, partials: usize, who: &str) {
        crate::dot::assert_rows(self.keys.len(), self.dim, who);
        assert_eq!(self.keys.len(), self.values.len(), "{who}: keys and values");
        assert_eq!(
            self.visible.len(),
            partials,
            "{who}: a partial for each query"
        );
    }

    /// Writes scores `[queries, keys]` of what is seen, not scaled, and says what that is.
    fn scores(&self, scratch: &mut Vec<f32>) -> Option<Seen> {
        let sees = |q: &usize| !self.visible(*q).is_empty();
        let first = (0..self.visible.len()).find(sees)?;
        let last = (first..self.visible.len()).rev().find(sees)?;
        let queries = first..last + 1;
        let seen = || {
            queries
                .clone()
                .map(|q| self.visible(q))
                .filter(|k| !k.is_empty())
        };
        let from = seen().map(|k| k.start).min()?;
        let keys = from..seen().map(|k| k.end).max()?;
        let (nq, nk) = (queries.len(), keys.len());
        scratch.resize(nq * nk, 0.0);
        matmul_nt_strided(
            scratch,
            nk,
            &self.queries[first * self.query_stride..],
            self.query_stride,
            &self.keys[keys.start * self.dim..],
            self.dim,
            nq,
            nk,
            self.dim,
        );
        if let Some(bias) = self.bias.get(keys.start..) {
            for scores in scratch.chunks_exact_mut(nk) {
                let biased = scores.iter_mut().zip(bias);
                biased.for_each(|(score, bias)| *score += bias / self.scale);
            }
        }
        Some(Seen { queries, keys })
    }
}

/// Lets the queries of a tile attend to its keys: updates what is known of each query's
/// softmax, and its weighted values in `out` (`[nq, dim]`, `out_stride` apart, not divided;
/// see [`Partial::finish`]). `scratch` holds anything. One thread.
///
/// # Panics
/// When the shapes do not fit.
pub fn attend_tile(
    tile: &Tile,
    partials: &mut [Partial],
    out: &mut [f32],
    out_stride: usize,
    scratch: &mut Vec<f32>,
) {
    tile.check(partials.len(), "attend_tile");
    let dim = tile.dim;
    let Some(Seen { queries, keys }) = tile.scores(scratch) else {
        return;
    };
    let rows = scratch.chunks_exact_mut(keys.len());
    for (q, scores) in queries.clone().zip(rows) {
        let seen = tile.visible(q);
        if seen.is_empty() {
            scores.fill(0.0);
            continue;
        }
        let (from, to) = (seen.start - keys.start, seen.end - keys.start);
        scores[..from].fill(0.0);
        scores[to..].fill(0.0);
        let partial = &mut partials[q];
        let (max, sum) = join(&mut scores[from..to], tile.scale, partial.max);
        let old = factor(partial.max, max);
        if old != 1.0 {
            out[q * out_stride..][..dim]
                .iter_mut()
                .for_each(|x| *x *= old);
        }
        partial.sum = partial.sum * old + sum;
        partial.max = max;
    }
    let weights = Matrix::new(scratch, keys.len());
    let values = Matrix::new(&tile.values[keys.start * dim..keys.end * dim], dim);
    let out = &mut out[queries.start * out_stride..];
    product(out, out_stride, weights, values, 1.0, true, 1);
}

simd! {
    /// Replaces scores by `exp(scale s - m)` with `m` the greatest of them and `max`; gives
    /// `m` and their sum.
    fn join(scores: &mut [f32], scale: f32, max: f32) -> (f32, f32) = join_body;
}

#[inline(always)]
pub(super) fn join_body<V: Eight>(scores: &mut [f32], scale: f32, max: f32) -> (f32, f32) {
    scores.iter_mut().for_each(|s| *s *= scale);
    let max = maximum::<V>(scores).max(max);
    let shift = if max == f32::NEG_INFINITY { 0.0 } else { max };
    (max, exp_and_sum::<Pair<V>>(scores, shift))
}

/// Adds to `mass` (`[nk]`) the weight that every key of a tile has, summed over its
/// queries, whose `partials` are complete.
///
/// # Panics
/// When the shapes do not fit.
pub fn add_mass(tile: &Tile, partials: &[Partial], mass: &mut [f32], scratch: &mut Vec<f32>) {
    tile.check(partials.len(), "add_mass");
    assert_eq!(mass.len(), tile.keys(), "add_mass: length of mass");
    let Some(Seen { queries, keys }) = tile.scores(scratch) else {
        return;
    };
    for (q, scores) in queries.zip(scratch.chunks_exact_mut(keys.len())) {
        let seen = tile.visible(q);
        if seen.is_empty() || partials[q].sum == 0.0 {
            continue;
        }
        let scores = &mut scores[seen.start - keys.start..seen.end - keys.start];
        // All of them are below the greatest of the whole softmax.
        join(scores, tile.scale, partials[q].max);
        crate::axpy(&mut mass[seen], 1.0 / partials[q].sum, scores);
    }
}

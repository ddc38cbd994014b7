//! Queries that look at sorted blocks of keys, at samples, and at halves of a sequence.

use keyfold_kernels::attention::{Partial, Tile, attend_tile};

use super::lsh::AngularLsh;
use super::{Draw, Head, HyperConfig};
use crate::block_mask::TILE;

/// What queries have seen so far.
pub(super) struct State {
    /// `[queries, dim]`, not yet divided by the sums.
    out: Vec<f32>,
    partials: Vec<Partial>,
}

/// A run of the queries of a [`State`].
pub(super) struct StateMut<'a> {
    out: &'a mut [f32],
    partials: &'a mut [Partial],
}

impl State {
    pub(super) fn new(queries: usize, dim: usize) -> Self {
        Self {
            out: vec![0.0; queries * dim],
            partials: vec![Partial::EMPTY; queries],
        }
    }

    pub(super) fn whole(&mut self) -> StateMut<'_> {
        StateMut {
            out: &mut self.out,
            partials: &mut self.partials,
        }
    }

    pub(super) fn finish(mut self, dim: usize) -> Vec<f32> {
        let rows = self.out.chunks_exact_mut(dim);
        rows.zip(&self.partials)
            .for_each(|(row, partial)| partial.finish(row));
        self.out
    }
}

impl StateMut<'_> {
    fn split(&mut self, at: usize, dim: usize) -> (StateMut<'_>, StateMut<'_>) {
        let (out, later_out) = self.out.split_at_mut(at * dim);
        let (partials, later_partials) = self.partials.split_at_mut(at);
        (
            StateMut { out, partials },
            StateMut {
                out: later_out,
                partials: later_partials,
            },
        )
    }
}

/// Settings and randomness of one head.
pub(super) struct Run<'a> {
    pub(super) config: &'a HyperConfig,
    pub(super) lsh: &'a AngularLsh,
    pub(super) draw: Draw<'a>,
}

impl Run<'_> {
    /// Queries and keys of the same tokens, the first of which is number `first`.
    pub(super) fn causal(&self, head: Head, first: usize, state: &mut StateMut) {
        let n = head.n_queries();
        // A sequence of one cannot be halved.
        if n <= self.config.min_seq_len.max(1) {
            return exact(head, true, state);
        }
        let half = n.div_ceil(2);
        let (mut early, mut late) = state.split(half, head.dim);
        self.causal(head.of(0..half, 0..half), first, &mut early);
        self.causal(head.of(half..n, half..n), first + half, &mut late);
        self.unmasked(head.of(half..n, 0..half), first, &mut late);
    }

    /// Every query sees every key.
    pub(super) fn unmasked(&self, head: Head, first: usize, state: &mut StateMut) {
        let (n_queries, n_keys) = (head.n_queries(), head.n_keys());
        if n_queries < self.config.min_seq_len || n_keys == 0 {
            return exact(head, false, state);
        }
        let size = self.config.block_size;
        let queries = Sorted::new(head.queries, None, head.dim, size, self.lsh);
        let keys = Sorted::new(head.keys, Some(head.values), head.dim, size, self.lsh);
        // Queries of a block; all in one where there are no blocks.
        let of_block = match size {
            0 => n_queries,
            _ => (n_queries.div_ceil(size) * size).div_ceil(n_keys.div_ceil(size)),
        };
        let sampled =
            self.config.sample_size > 0 && (size == 0 || (n_queries > of_block && n_keys > size));
        let sample = match sampled {
            true => Sample::new((self.draw)(first, n_keys), &keys, head.dim),
            false => Sample::default(),
        };
        let weight = (n_keys as f32 / sample.rows.len().max(1) as f32).ln();
        let mut scratch = Vec::new();
        for (block, rows) in queries.order.chunks(of_block).enumerate() {
            let from = block * of_block * head.dim;
            let queries = &queries.rows[from..from + rows.len() * head.dim];
            let mut near = State::new(rows.len(), head.dim);
            if size > 0 {
                let own = (block * size).min(n_keys)..((block + 1) * size).min(n_keys);
                attend_rows(
                    queries,
                    &keys,
                    own.clone(),
                    head.dim,
                    &mut near,
                    &mut scratch,
                );
                if self.config.count_padding && !own.is_empty() {
                    near.see_zeros(size - own.len(), head.dim);
                }
            }
            if sampled {
                let mut far = State::new(rows.len(), head.dim);
                // Samples are ascending, so those of the own block are adjacent.
                let bound = |row: usize| sample.rows.partition_point(|&r| (r as usize) < row);
                let own = match size > 0 && !self.config.count_block_twice {
                    true => bound(block * size)..bound((block + 1) * size),
                    false => 0..0,
                };
                for part in [0..own.start, own.end..sample.rows.len()] {
                    attend_rows(
                        queries,
                        &sample.kept,
                        part,
                        head.dim,
                        &mut far,
                        &mut scratch,
                    );
                }
                for partial in &mut far.partials {
                    partial.max += weight;
                }
                near.merge(&far, head.dim);
            }
            for (i, &row) in rows.iter().enumerate() {
                let row = row as usize;
                let out = &mut state.out[row * head.dim..][..head.dim];
                let seen = &near.out[i * head.dim..][..head.dim];
                state.partials[row].merge(out, near.partials[i], seen);
            }
        }
    }
}

impl State {
    fn merge(&mut self, other: &Self, dim: usize) {
        let rows = self
            .out
            .chunks_exact_mut(dim)
            .zip(other.out.chunks_exact(dim));
        for ((out, theirs), (own, partial)) in
            rows.zip(self.partials.iter_mut().zip(&other.partials))
        {
            own.merge(out, *partial, theirs);
        }
    }

    /// Adds `count` keys and values of zeros, whose scores are 0.
    fn see_zeros(&mut self, count: usize, dim: usize) {
        if count == 0 {
            return;
        }
        let zeros = Partial {
            max: 0.0,
            sum: count as f32,
        };
        let nothing = vec![0.0; dim];
        for (out, partial) in self.out.chunks_exact_mut(dim).zip(&mut self.partials) {
            partial.merge(out, zeros, &nothing);
        }
    }
}

/// Rows in the order of their buckets.
#[derive(Default)]
struct Sorted {
    /// Which row each was.
    order: Vec<u32>,
    rows: Vec<f32>,
    values: Vec<f32>,
}

impl Sorted {
    fn new(
        rows: &[f32],
        values: Option<&[f32]>,
        dim: usize,
        block_size: usize,
        lsh: &AngularLsh,
    ) -> Self {
        let order = match block_size {
            0 => (0..(rows.len() / dim) as u32).collect(),
            _ => lsh.order(rows),
        };
        Self {
            rows: gather(rows, &order, dim),
            values: values.map_or_else(Vec::new, |values| gather(values, &order, dim)),
            order,
        }
    }
}

/// Sampled keys.
#[derive(Default)]
struct Sample {
    /// Their places among the sorted keys, ascending.
    rows: Vec<u32>,
    kept: Sorted,
}

impl Sample {
    fn new(mut rows: Vec<u32>, keys: &Sorted, dim: usize) -> Self {
        rows.sort_unstable();
        let kept = Sorted {
            order: Vec::new(),
            rows: gather(&keys.rows, &rows, dim),
            values: gather(&keys.values, &rows, dim),
        };
        Self { rows, kept }
    }
}

fn gather(rows: &[f32], order: &[u32], dim: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(order.len() * dim);
    for &row in order {
        out.extend_from_slice(&rows[row as usize * dim..][..dim]);
    }
    out
}

/// Lets all `queries` see `keys[range]`.
fn attend_rows(
    queries: &[f32],
    keys: &Sorted,
    range: std::ops::Range<usize>,
    dim: usize,
    state: &mut State,
    scratch: &mut Vec<f32>,
) {
    let n = state.partials.len();
    let visible = vec![(0, range.len() as u32); n];
    let tile = Tile {
        queries,
        query_stride: dim,
        keys: &keys.rows[range.start * dim..range.end * dim],
        values: &keys.values[range.start * dim..range.end * dim],
        dim,
        scale: (dim as f32).sqrt().recip(),
        visible: &visible,
        bias: &[],
    };
    attend_tile(&tile, &mut state.partials, &mut state.out, dim, scratch);
}

/// Exact attention, tile by tile.
fn exact(head: Head, causal: bool, state: &mut StateMut) {
    let dim = head.dim;
    let mut scratch = Vec::new();
    let mut visible = Vec::new();
    for first in (0..head.n_queries()).step_by(TILE) {
        let queries = first..(first + TILE).min(head.n_queries());
        let end = if causal { queries.end } else { head.n_keys() };
        for start in (0..end).step_by(TILE) {
            let keys = start..(start + TILE).min(end);
            visible.clear();
            visible.extend(queries.clone().map(|query| {
                let seen = if causal {
                    (query + 1).saturating_sub(start)
                } else {
                    keys.len()
                };
                (0, seen.min(keys.len()) as u32)
            }));
            let part = head.of(queries.clone(), keys);
            let tile = Tile {
                queries: part.queries,
                query_stride: dim,
                keys: part.keys,
                values: part.values,
                dim,
                scale: (dim as f32).sqrt().recip(),
                visible: &visible,
                bias: &[],
            };
            let out = &mut state.out[first * dim..];
            attend_tile(
                &tile,
                &mut state.partials[queries.clone()],
                out,
                dim,
                &mut scratch,
            );
        }
    }
}

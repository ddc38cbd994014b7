//! Exact attention of a chunk of a prompt to runs of rows of the store, tile by tile.

use std::ops::Range;

use keyfold_kernels::{Team, add_assign};

use crate::attention::visible;
use crate::block_mask::TILE;
use crate::roles::{Dims, KvStore};
use keyfold_kernels::attention::{Partial, Tile, add_mass, attend_tile};

/// Queries that share a list of runs, at most.
const QUERIES: usize = 64;

/// The chunk that attends.
pub(super) struct Chunk<'a> {
    pub(super) layer: usize,
    pub(super) dims: Dims,
    /// `[n, heads, head_dim]`.
    pub(super) queries: &'a [f32],
    /// Ascending.
    pub(super) positions: &'a [u32],
    pub(super) store: &'a dyn KvStore,
    /// Newest rows that a query sees, where its layer has a sliding window.
    pub(super) window: Option<usize>,
}

/// Work of one thread at a time: runs of queries of the heads of one KV head.
struct Unit<'a> {
    kv_head: usize,
    /// Adjacent runs, ascending.
    ranges: &'a [Range<usize>],
    /// `[group, queries, head_dim]`.
    out: Vec<f32>,
    /// Of all rows of the KV head, where asked for.
    mass: Vec<f32>,
}

/// Buffers of a tile.
#[derive(Default)]
struct Scratch {
    keys: Vec<f32>,
    values: Vec<f32>,
    scores: Vec<f32>,
    /// Of every query: rows of the tile that it sees.
    spans: Vec<(u32, u32)>,
}

/// [`attend`] to all rows.
pub(super) fn attend_all(chunk: &Chunk, team: &Team, out: &mut [f32], mass: &mut [f32]) {
    attend(chunk, 0, &|_| vec![(0, u32::MAX)], team, out, mass);
}

/// Writes to `out` `[n, heads, head_dim]` the attention of the chunk to those positions that
/// `runs(position)` shows, as far as they are not after the query's own. Queries whose
/// positions divided by `grain` are equal must see the same runs; `grain` 0 says that all do.
///
/// `mass` `[kv_heads, rows]` is added to unless empty.
pub(super) fn attend(
    chunk: &Chunk,
    grain: usize,
    runs: &(dyn Fn(u32) -> Vec<(u32, u32)> + Sync),
    team: &Team,
    out: &mut [f32],
    mass: &mut [f32],
) {
    let dims = chunk.dims;
    let rows = mass.len() / dims.kv_heads;
    let ranges = cut(chunk.positions, grain);
    // Every unit has its own sums of mass: no more units than keep the threads busy.
    let parts = team.threads().div_ceil(dims.kv_heads);
    let of_unit = match rows {
        0 => 1,
        _ => ranges.len().div_ceil(parts),
    };
    let units = (0..dims.kv_heads).flat_map(|kv_head| {
        ranges.chunks(of_unit.max(1)).map(move |ranges| Unit {
            kv_head,
            ranges,
            out: Vec::new(),
            mass: vec![0.0; rows],
        })
    });
    // Late queries see more: deal the units out, so that threads have equal work.
    let mut units: Vec<(usize, Unit)> = units.enumerate().collect();
    units.sort_by_key(|(i, _)| i % team.threads());

    team.split(&mut units, 1, |_, units| {
        let mut scratch = Scratch::default();
        for (_, unit) in units {
            unit.run(chunk, runs, &mut scratch);
        }
    });
    for (_, unit) in &units {
        unit.copy_to(out, &dims);
        if rows > 0 {
            add_assign(&mut mass[unit.kv_head * rows..][..rows], &unit.mass);
        }
    }
}

/// Runs of queries of at most [`QUERIES`], cut where a position is a multiple of `grain`.
fn cut(positions: &[u32], grain: usize) -> Vec<Range<usize>> {
    let block = |i: usize| positions[i] as usize / grain.max(1);
    let mut ranges = Vec::new();
    let mut from = 0;
    for i in 1..=positions.len() {
        let end = i == positions.len();
        if end || i - from == QUERIES || (grain > 0 && block(i) != block(from)) {
            ranges.push(from..i);
            from = i;
        }
    }
    ranges
}

impl Unit<'_> {
    /// All queries of the unit.
    fn queries(&self) -> Range<usize> {
        let start = self.ranges.first().map_or(0, |range| range.start);
        start..self.ranges.last().map_or(start, |range| range.end)
    }

    fn run(
        &mut self,
        chunk: &Chunk,
        runs: &(dyn Fn(u32) -> Vec<(u32, u32)> + Sync),
        scratch: &mut Scratch,
    ) {
        let (dim, group) = (chunk.dims.head_dim, chunk.dims.group());
        let (all, kv_head) = (self.queries(), self.kv_head);
        self.out = vec![0.0; group * all.len() * dim];
        for range in self.ranges {
            let n = range.len();
            let runs = runs(chunk.positions[range.start]);
            let mut partials = vec![Partial::EMPTY; group * n];
            let of_head = |g: usize| (g * all.len() + range.start - all.start) * dim;
            tiles(
                chunk,
                kv_head,
                range.clone(),
                &runs,
                scratch,
                |tile, g, _, scores| {
                    let out = &mut self.out[of_head(g)..][..n * dim];
                    attend_tile(tile, &mut partials[g * n..][..n], out, dim, scores);
                },
            );
            if !self.mass.is_empty() {
                tiles(
                    chunk,
                    kv_head,
                    range.clone(),
                    &runs,
                    scratch,
                    |tile, g, rows, scores| {
                        add_mass(tile, &partials[g * n..][..n], &mut self.mass[rows], scores);
                    },
                );
            }
            for (i, partial) in partials.iter().enumerate() {
                partial.finish(&mut self.out[of_head(i / n) + i % n * dim..][..dim]);
            }
        }
    }

    fn copy_to(&self, out: &mut [f32], dims: &Dims) {
        let (dim, wide, queries) = (dims.head_dim, dims.heads * dims.head_dim, self.queries());
        for (g, rows) in self.out.chunks_exact(queries.len() * dim).enumerate() {
            let head = self.kv_head * dims.group() + g;
            for (query, row) in queries.clone().zip(rows.chunks_exact(dim)) {
                out[query * wide + head * dim..][..dim].copy_from_slice(row);
            }
        }
    }
}

/// Calls `each(tile, query head of the group, rows, buffer)` for every tile of the `runs` that
/// `queries` may see.
fn tiles(
    chunk: &Chunk,
    kv_head: usize,
    queries: Range<usize>,
    runs: &[(u32, u32)],
    scratch: &mut Scratch,
    mut each: impl FnMut(&Tile, usize, Range<usize>, &mut Vec<f32>),
) {
    let dims = chunk.dims;
    let (dim, wide) = (dims.head_dim, dims.heads * dims.head_dim);
    let positions = chunk.store.positions(chunk.layer, kv_head);
    let bias = chunk.store.bias(chunk.layer, kv_head);
    let own = &chunk.positions[queries.clone()];
    let last = own.last().map_or(0, |&p| p + 1);
    let oldest = own
        .first()
        .map_or(0, |&p| visible(positions, p, chunk.window).0);
    let Scratch {
        keys,
        values,
        scores,
        spans,
    } = scratch;
    for &(from, to) in runs {
        let first = positions.partition_point(|&p| p < from).max(oldest);
        let end = positions.partition_point(|&p| p < to.min(last));
        for start in (first..end).step_by(TILE) {
            let rows = start..(start + TILE).min(end);
            keys.resize(rows.len() * dim, 0.0);
            values.resize(rows.len() * dim, 0.0);
            let store = chunk.store;
            store.read(chunk.layer, kv_head, rows.clone(), keys, values);
            let held = &positions[rows.clone()];
            spans.clear();
            spans.extend(own.iter().map(|&position| {
                let (from, to) = visible(held, position, chunk.window);
                (from as u32, to as u32)
            }));
            for g in 0..dims.group() {
                let head = kv_head * dims.group() + g;
                let tile = Tile {
                    queries: &chunk.queries[queries.start * wide + head * dim..],
                    query_stride: wide,
                    keys,
                    values,
                    dim,
                    scale: (dim as f32).sqrt().recip(),
                    visible: spans,
                    bias: bias.get(rows.start..).unwrap_or_default(),
                };
                each(&tile, g, rows.clone(), scores);
            }
        }
    }
}

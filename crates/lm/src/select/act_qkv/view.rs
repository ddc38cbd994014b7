//! What the queries of a chunk see: the window, and far keys as if at one distance.

use std::ops::Range;

use keyfold_kernels::Team;
use keyfold_kernels::attention::{
    CacheRows, Partial, RowSet, Tile, add_mass, attend_tile, dot_rows, mix_rows,
};
use keyfold_kernels::blocks::BlockType;

use super::memory::{Memory, append_head};
use crate::attention::share;
use crate::roles::{Dims, KvStore};

/// What the heads of a chunk see.
pub(super) struct View<'a> {
    pub(super) memory: &'a Memory,
    /// Whose rows of `layer` are the blocks.
    pub(super) store: &'a dyn KvStore,
    /// Whose rows are the tail, keys rotated by their positions.
    pub(super) near: &'a dyn KvStore,
    pub(super) layer: usize,
    pub(super) block_size: usize,
    pub(super) dims: Dims,
    pub(super) chosen: &'a [u32],
    pub(super) near_queries: &'a [f32],
    pub(super) far_queries: &'a [f32],
    /// Tokens of the tail before the chunk's own.
    pub(super) held: usize,
    pub(super) n_local: usize,
    /// Whether all queries see what leaves the window with the last of them.
    pub(super) twice: bool,
}

/// Of the query heads of one KV head.
#[derive(Debug, Clone, Default)]
pub(super) struct HeadResult {
    /// `[group, queries, head_dim]`.
    out: Vec<f32>,
    /// `[group, keys of the window]`.
    mass: Vec<f32>,
}

impl View<'_> {
    fn queries(&self) -> usize {
        self.near_queries.len() / (self.dims.heads * self.dims.head_dim)
    }

    /// Rows of the tail that some query has in its window.
    pub(super) fn window(&self) -> Range<usize> {
        self.held.saturating_sub(self.n_local)..self.held + self.queries()
    }

    /// Appends one head of the chosen blocks.
    fn recall_blocks(&self, kv_head: usize, keys: &mut Vec<f32>, values: &mut Vec<f32>) {
        let (size, dim) = (self.block_size, self.dims.head_dim);
        for &block in self.chosen {
            let (rows, at) = (block as usize * size, keys.len());
            keys.resize(at + size * dim, 0.0);
            values.resize(at + size * dim, 0.0);
            let (keys, values) = (&mut keys[at..], &mut values[at..]);
            self.store
                .read(self.layer, kv_head, rows..rows + size, keys, values);
        }
    }

    /// One query of each head, as a decoded token has: every thread takes a run of the rows of each
    /// kind, where they lie, and what it finds is merged by the log-sum-exp. Returns the attention
    /// to the rows of the window, `[rows, heads]`.
    pub(super) fn attend_one(&self, team: &Team, out: &mut [f32]) -> Vec<f32> {
        let (dim, heads) = (self.dims.head_dim, self.dims.heads);
        let threads = team.threads();
        let mut parts: Vec<Part> = (0..threads).map(|_| Part::new(heads, dim)).collect();
        let blocks = self.rows_of_blocks();
        team.split(&mut parts, 1, |thread, part| {
            for kind in self.kinds(&blocks) {
                let rows = share(kind.rows(), thread, threads);
                if !rows.is_empty() {
                    self.meet(&kind, rows, &mut part[0]);
                }
            }
        });
        let window = self.window();
        let mut mass = vec![0.0; window.len() * heads];
        for (head, out) in out.chunks_exact_mut(dim).enumerate() {
            let mut all = Partial::EMPTY;
            out.fill(0.0);
            for part in &parts {
                all.merge(out, part.partials[head], &part.out[head * dim..][..dim]);
            }
            all.finish(out);
            for part in parts.iter().filter(|part| !part.near.is_empty()) {
                let count = part.near.len() / heads;
                let scale = (part.near_max[head] - all.max).exp() / all.sum;
                let weights = &part.near[head * count..][..count];
                let first = part.near_from.saturating_sub(window.start);
                let mass = mass[first * heads..].iter_mut().skip(head).step_by(heads);
                mass.zip(weights).for_each(|(mass, w)| *mass = scale * w);
            }
        }
        mass
    }

    /// Rows of the chosen blocks.
    fn rows_of_blocks(&self) -> Vec<u32> {
        let size = self.block_size as u32;
        let blocks = self.chosen.iter();
        blocks.flat_map(|&b| b * size..(b + 1) * size).collect()
    }

    /// First row of the tail that is in the window of one query, and the one behind the last.
    fn seen(&self) -> Range<usize> {
        let end = self.held + 1;
        end.saturating_sub(self.n_local)..end
    }

    /// What one query meets.
    fn kinds<'b>(&'b self, blocks: &'b [u32]) -> [Kind<'b>; 4] {
        let (memory, seen) = (self.memory, self.seen());
        let narrow = self.dims.kv_heads * self.dims.head_dim;
        let first = memory.first.keys.len() / narrow;
        [
            Kind::Blocks(blocks),
            Kind::Far(&memory.first.keys, &memory.first.values, first),
            Kind::Far(&memory.tail.keys, &memory.tail.values, seen.start),
            Kind::Near(seen),
        ]
    }

    /// Bytes of the rows that are read, by as many queries as there are.
    pub(super) fn bytes(&self) -> u64 {
        let dims = &self.dims;
        let of = |(key, value): (u64, u64)| (key + value) * dims.kv_heads as u64;
        let whole = (8 * dims.kv_heads * dims.head_dim) as u64;
        let left = (self.held + self.queries()).saturating_sub(self.n_local);
        let far = self.memory.first.keys.len() / (dims.kv_heads * dims.head_dim) + left;
        (self.chosen.len() * self.block_size) as u64 * of(self.store.row_bytes())
            + far as u64 * whole
            + (self.window().len() as u64) * of(self.near.row_bytes())
    }

    /// Adds some rows of a kind to what a thread has found.
    fn meet(&self, kind: &Kind, rows: RowSet, part: &mut Part) {
        let (dims, dim, group) = (self.dims, self.dims.head_dim, self.dims.group());
        let scale = (dim as f32).sqrt().recip();
        let (queries, store) = match kind {
            Kind::Near(_) => (self.near_queries, self.near),
            _ => (self.far_queries, self.store),
        };
        let mut scores = vec![0.0; group * rows.len()];
        let (mut sums, mut partials) = (vec![0.0; group * dim], vec![Partial::EMPTY; group]);
        for kv_head in 0..dims.kv_heads {
            let own = kv_head * group * dim..(kv_head + 1) * group * dim;
            let queries = &queries[own.clone()];
            match kind {
                Kind::Far(keys, ..) => {
                    dot_rows(one_head(keys, &dims, kv_head), queries, rows, &mut scores)
                }
                _ => store.dot(self.layer, kv_head, queries, rows, &mut scores),
            }
            for (partial, scores) in partials.iter_mut().zip(scores.chunks_exact_mut(rows.len())) {
                *partial = Partial::of(scores, scale);
            }
            sums.fill(0.0);
            match kind {
                Kind::Far(_, values, _) => {
                    mix_rows(one_head(values, &dims, kv_head), &scores, rows, &mut sums)
                }
                _ => store.mix(self.layer, kv_head, &scores, rows, &mut sums),
            }
            if let (Kind::Near(_), RowSet::Range(from, _)) = (kind, rows) {
                part.near.extend_from_slice(&scores);
                part.near_max.extend(partials.iter().map(|p| p.max));
                part.near_from = from;
            }
            let so_far = part.partials[kv_head * group..].iter_mut();
            let outs = part.out[own].chunks_exact_mut(dim);
            for (((so_far, out), partial), sum) in
                so_far.zip(outs).zip(&partials).zip(sums.chunks_exact(dim))
            {
                so_far.merge(out, *partial, sum);
            }
        }
    }

    pub(super) fn attend_many(&self, kv_head: usize, result: &mut HeadResult) {
        let (dim, n) = (self.dims.head_dim, self.queries());
        let narrow = self.dims.kv_heads * dim;
        let window = self.window();
        let mut near_keys = vec![0.0; window.len() * dim];
        let mut near_values = near_keys.clone();
        let (keys, values) = (&mut near_keys, &mut near_values);
        self.near
            .read(self.layer, kv_head, window.clone(), keys, values);
        let near_visible: Vec<(u32, u32)> = (0..n)
            .map(|i| {
                let own = self.held + i;
                let from = (own + 1).saturating_sub(self.n_local).max(window.start);
                (
                    (from - window.start) as u32,
                    (own + 1 - window.start) as u32,
                )
            })
            .collect();

        let (mut far_keys, mut far_values) = (Vec::new(), Vec::new());
        let memory = self.memory;
        self.recall_blocks(kv_head, &mut far_keys, &mut far_values);
        memory.recall_first(kv_head, &self.dims, &mut far_keys, &mut far_values);
        let recalled = far_keys.len() / dim;
        let left = (self.held + n).saturating_sub(self.n_local);
        append_head(
            &memory.tail.keys[..left * narrow],
            kv_head,
            narrow,
            dim,
            &mut far_keys,
        );
        append_head(
            &memory.tail.values[..left * narrow],
            kv_head,
            narrow,
            dim,
            &mut far_values,
        );
        let far_visible: Vec<(u32, u32)> = (0..n)
            .map(|i| {
                let own = (self.held + i + 1).saturating_sub(self.n_local);
                let seen = if self.twice { left } else { own };
                (0, (recalled + seen) as u32)
            })
            .collect();

        let group = self.dims.group();
        result.out = vec![0.0; group * n * dim];
        result.mass = vec![0.0; group * window.len()];
        let mut scratch = Vec::new();
        let outs = result.out.chunks_exact_mut(n * dim);
        for ((g, out), mass) in outs
            .enumerate()
            .zip(result.mass.chunks_exact_mut(window.len()))
        {
            let at = (kv_head * group + g) * dim;
            let tile = |queries, keys, values, visible| Tile {
                queries,
                query_stride: self.dims.heads * dim,
                keys,
                values,
                dim,
                scale: (dim as f32).sqrt().recip(),
                visible,
                bias: &[],
            };
            let near = tile(
                &self.near_queries[at..],
                &near_keys,
                &near_values,
                &near_visible,
            );
            let far = tile(
                &self.far_queries[at..],
                &far_keys,
                &far_values,
                &far_visible,
            );
            let mut partials = vec![Partial::EMPTY; n];
            attend_tile(&near, &mut partials, out, dim, &mut scratch);
            attend_tile(&far, &mut partials, out, dim, &mut scratch);
            add_mass(&near, &partials, mass, &mut scratch);
            for (partial, out) in partials.iter().zip(out.chunks_exact_mut(dim)) {
                partial.finish(out);
            }
        }
    }
}

/// The rows of one head of `[rows, kv_heads, head_dim]`.
fn one_head<'a>(numbers: &'a [f32], dims: &Dims, kv_head: usize) -> CacheRows<'a> {
    CacheRows {
        kind: BlockType::F32,
        dim: dims.head_dim,
        stride: 4 * dims.kv_heads * dims.head_dim,
        bytes: bytemuck::cast_slice(&numbers[kv_head * dims.head_dim..]),
    }
}

/// Rows that a query meets in the same way.
enum Kind<'a> {
    /// Rows of chosen blocks.
    Blocks(&'a [u32]),
    /// So many rows of keys and values in 32 bits, met as if they were far.
    Far(&'a [f32], &'a [f32], usize),
    /// Rows of the window.
    Near(Range<usize>),
}

impl Kind<'_> {
    fn rows(&self) -> RowSet<'_> {
        match self {
            Kind::Blocks(rows) => RowSet::List(rows),
            Kind::Far(.., count) => RowSet::Range(0, *count),
            Kind::Near(rows) => RowSet::Range(rows.start, rows.end),
        }
    }
}

/// What one thread has found.
struct Part {
    partials: Vec<Partial>,
    /// `[heads, head_dim]`.
    out: Vec<f32>,
    /// `exp(score - near_max)` of its rows of the window, `[heads, rows]`, and the first of these.
    near: Vec<f32>,
    near_max: Vec<f32>,
    near_from: usize,
}

impl Part {
    fn new(heads: usize, dim: usize) -> Self {
        Self {
            partials: vec![Partial::EMPTY; heads],
            out: vec![0.0; heads * dim],
            near: Vec::new(),
            near_max: Vec::new(),
            near_from: 0,
        }
    }
}

impl HeadResult {
    /// Writes to `out` `[queries, heads, head_dim]` and adds to `mass` `[tail, heads]`.
    pub(super) fn write(
        &self,
        kv_head: usize,
        dims: &Dims,
        from: usize,
        out: &mut [f32],
        mass: &mut [f32],
    ) {
        let (dim, group) = (dims.head_dim, dims.group());
        let rows = self.out.chunks_exact(self.out.len() / group);
        let sums = self.mass.chunks_exact(self.mass.len() / group);
        for (g, (rows, sums)) in rows.zip(sums).enumerate() {
            let head = kv_head * group + g;
            for (row, out) in rows
                .chunks_exact(dim)
                .zip(out.chunks_exact_mut(dims.heads * dim))
            {
                out[head * dim..][..dim].copy_from_slice(row);
            }
            let mass = mass[from * dims.heads..]
                .iter_mut()
                .skip(head)
                .step_by(dims.heads);
            mass.zip(sums).for_each(|(mass, sum)| *mass += sum);
        }
    }
}

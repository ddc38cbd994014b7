//! What the queries of a chunk see: the window, and far keys as if at one distance.

use keyfold_kernels::attention::{Partial, RowSet, Tile, add_mass, attend_tile};
use keyfold_kernels::{axpy, dot, softmax_rows};

use super::memory::{Memory, append_head};
use crate::roles::{Dims, KvStore};

/// What the heads of a chunk see.
pub(super) struct View<'a> {
    pub(super) memory: &'a Memory,
    /// Whose rows of `layer` are the blocks.
    pub(super) store: &'a dyn KvStore,
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
    pub(super) fn window(&self) -> std::ops::Range<usize> {
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

    pub(super) fn attend(&self, kv_head: usize, result: &mut HeadResult) {
        match self.queries() {
            1 => self.attend_one(kv_head, result),
            _ => self.attend_many(kv_head, result),
        }
    }

    /// One query of each head, as a decoded token has: rows are read where they lie, those of
    /// blocks by the store itself.
    fn attend_one(&self, kv_head: usize, result: &mut HeadResult) {
        let (dim, group) = (self.dims.head_dim, self.dims.group());
        let (narrow, at) = (self.dims.kv_heads * dim, kv_head * dim);
        let own = at * group..(at + dim) * group;
        let (near_queries, far_queries) = (&self.near_queries[own.clone()], &self.far_queries[own]);
        let size = self.block_size as u32;
        let blocks = self.chosen.iter();
        let blocks: Vec<u32> = blocks.flat_map(|&b| b * size..(b + 1) * size).collect();
        let tail = &self.memory.tail;
        let seen = self.held + 1;
        let left = seen.saturating_sub(self.n_local);
        // One head of some rows.
        let head =
            |rows: &'_ [f32], range: std::ops::Range<usize>| -> Vec<std::ops::Range<usize>> {
                debug_assert!(range.end * narrow <= rows.len());
                range
                    .map(|r| r * narrow + at..r * narrow + at + dim)
                    .collect()
            };
        let first = head(
            &self.memory.first.keys,
            0..self.memory.first.keys.len() / narrow,
        );
        let outside = head(&tail.keys, 0..left);
        let inside = head(&self.memory.rotated, left..seen);
        // Keys and values behind those of the blocks, and which queries they meet.
        let parts = [
            (
                &first,
                &self.memory.first.keys,
                &self.memory.first.values,
                far_queries,
            ),
            (&outside, &tail.keys, &tail.values, far_queries),
            (&inside, &self.memory.rotated, &tail.values, near_queries),
        ];
        let count = blocks.len() + parts.iter().map(|part| part.0.len()).sum::<usize>();
        let mut of_blocks = vec![0.0; group * blocks.len()];
        let rows = RowSet::List(&blocks);
        self.store
            .dot(self.layer, kv_head, far_queries, rows, &mut of_blocks);
        let mut weights = vec![0.0; group * count];
        for (g, weights) in weights.chunks_exact_mut(count).enumerate() {
            let (scores, mut rest) = weights.split_at_mut(blocks.len());
            scores.copy_from_slice(&of_blocks[g * blocks.len()..][..blocks.len()]);
            for (rows, keys, _, queries) in parts {
                let query = &queries[g * dim..(g + 1) * dim];
                let (own, later) = rest.split_at_mut(rows.len());
                for (to, row) in own.iter_mut().zip(rows) {
                    *to = dot(query, &keys[row.clone()]);
                }
                rest = later;
            }
        }
        let scale = (dim as f32).sqrt().recip();
        weights.iter_mut().for_each(|x| *x *= scale);
        softmax_rows(&mut weights, count);
        for (g, weights) in weights.chunks_exact(count).enumerate() {
            of_blocks[g * blocks.len()..][..blocks.len()].copy_from_slice(&weights[..blocks.len()]);
        }
        result.out = vec![0.0; group * dim];
        self.store
            .mix(self.layer, kv_head, &of_blocks, rows, &mut result.out);
        let window = self.window();
        result.mass = vec![0.0; group * window.len()];
        let masses = result.mass.chunks_exact_mut(window.len());
        let outs = result.out.chunks_exact_mut(dim).zip(masses);
        for ((out, mass), weights) in outs.zip(weights.chunks_exact(count)) {
            let mut rest = &weights[blocks.len()..];
            for (rows, _, values, _) in parts {
                let (own, later) = rest.split_at(rows.len());
                for (weight, row) in own.iter().zip(rows) {
                    axpy(out, *weight, &values[row.clone()]);
                }
                rest = later;
            }
            let near = &weights[count - inside.len()..];
            mass[left - window.start..].copy_from_slice(near);
        }
    }

    fn attend_many(&self, kv_head: usize, result: &mut HeadResult) {
        let (dim, n) = (self.dims.head_dim, self.queries());
        let narrow = self.dims.kv_heads * dim;
        let window = self.window();
        let in_window = window.start * narrow..window.end * narrow;
        let (mut near_keys, mut near_values) = (Vec::new(), Vec::new());
        append_head(
            &self.memory.rotated[in_window.clone()],
            kv_head,
            narrow,
            dim,
            &mut near_keys,
        );
        append_head(
            &self.memory.tail.values[in_window],
            kv_head,
            narrow,
            dim,
            &mut near_values,
        );
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

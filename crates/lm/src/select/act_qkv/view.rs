//! What the queries of a chunk see: the window, and far keys as if at one distance.

use keyfold_kernels::attention::{Partial, Tile, add_mass, attend_tile};

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

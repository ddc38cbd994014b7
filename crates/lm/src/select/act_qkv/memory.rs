//! What a layer remembers: initial tokens, blocks of old tokens (the rows of a store), and the
//! tail that holds the local window and what is not yet a block.

use keyfold_kernels::{axpy, normalize_rows, top_k_rows};

use crate::roles::{Dims, KvStore};

/// Keys and values of consecutive tokens, `[tokens, kv_heads, head_dim]`.
#[derive(Debug, Clone, Default)]
pub(super) struct Rows {
    pub(super) keys: Vec<f32>,
    pub(super) values: Vec<f32>,
}

/// Appends the rows of one head of `[tokens, heads, dim]`.
pub(super) fn append_head(rows: &[f32], head: usize, wide: usize, dim: usize, out: &mut Vec<f32>) {
    for row in rows.chunks_exact(wide) {
        out.extend_from_slice(&row[head * dim..][..dim]);
    }
}

/// One layer's memory, but for its blocks, and for the tail as queries in its window meet it, which
/// are rows of stores.
#[derive(Debug, Clone, Default)]
pub(super) struct Memory {
    /// The first tokens, once they left the window.
    pub(super) first: Rows,
    pub(super) blocks: usize,
    /// Mean key of every block, of length one, `[blocks, heads * head_dim]`.
    pub(super) representatives: Vec<f32>,
    /// The newest tokens, keys not rotated.
    pub(super) tail: Rows,
    /// Attention that the tokens of the tail received while in the window, `[tokens, heads]`.
    pub(super) mass: Vec<f32>,
    /// Tokens so far.
    pub(super) tokens: usize,
}

/// Sizes that say what moves where.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) n_init: usize,
    pub(super) n_local: usize,
    pub(super) block_size: usize,
    pub(super) repr_topk: usize,
}

impl Memory {
    /// Tokens of the tail.
    pub(super) fn len(&self, dims: &Dims) -> usize {
        self.mass.len() / dims.heads
    }

    /// Appends tokens to the tail.
    pub(super) fn append(&mut self, keys: &[f32], values: &[f32], dims: &Dims) {
        let tokens = keys.len() / (dims.kv_heads * dims.head_dim);
        self.tail.keys.extend_from_slice(keys);
        self.tail.values.extend_from_slice(values);
        self.mass.resize(self.mass.len() + tokens * dims.heads, 0.0);
        self.tokens += tokens;
    }

    /// Moves what left the window to the initial tokens, then to blocks, whose rows `store` takes
    /// for the layer. `near` has the rows of the tail.
    pub(super) fn settle(
        &mut self,
        sizes: &Sizes,
        dims: &Dims,
        store: &mut dyn KvStore,
        near: &mut dyn KvStore,
        layer: usize,
    ) {
        let wide = dims.kv_heads * dims.head_dim;
        let mut outside = self.len(dims).saturating_sub(sizes.n_local);
        let missing = sizes.n_init - self.first.keys.len() / wide;
        let moved = missing.min(outside);
        if moved > 0 {
            self.first
                .keys
                .extend_from_slice(&self.tail.keys[..moved * wide]);
            self.first
                .values
                .extend_from_slice(&self.tail.values[..moved * wide]);
            outside -= moved;
        }
        let mut start = moved;
        while outside >= sizes.block_size {
            self.make_block(start, sizes, dims, store, layer);
            start += sizes.block_size;
            outside -= sizes.block_size;
        }
        if start == 0 {
            return;
        }
        let kept: Vec<u32> = (start as u32..self.len(dims) as u32).collect();
        for kv_head in 0..dims.kv_heads {
            near.keep(layer, kv_head, &kept);
        }
        for rows in [&mut self.tail.keys, &mut self.tail.values] {
            rows.drain(..start * wide);
        }
        self.mass.drain(..start * dims.heads);
    }

    fn make_block(
        &mut self,
        start: usize,
        sizes: &Sizes,
        dims: &Dims,
        store: &mut dyn KvStore,
        layer: usize,
    ) {
        let (dim, wide, size) = (
            dims.head_dim,
            dims.kv_heads * dims.head_dim,
            sizes.block_size,
        );
        let rows = start * wide..(start + size) * wide;
        let keys = &self.tail.keys[rows.clone()];
        let mut mean = vec![0.0; dims.heads * dim];
        for (head, mean) in mean.chunks_exact_mut(dim).enumerate() {
            let mass = self.mass[start * dims.heads..].iter();
            let mass: Vec<f32> = mass
                .skip(head)
                .step_by(dims.heads)
                .take(size)
                .copied()
                .collect();
            let key = |row: u32| &keys[row as usize * wide + head / dims.group() * dim..][..dim];
            mean_of_top(&mass, sizes.repr_topk, key, mean);
        }
        normalize_rows(&mut mean, dims.heads * dim);
        self.representatives.extend_from_slice(&mean);
        let first = (sizes.n_init + self.blocks * size) as u32;
        let positions: Vec<u32> = (first..first + size as u32).collect();
        store.append(layer, &positions, keys, &self.tail.values[rows]);
        self.blocks += 1;
    }

    /// Appends to `keys` and `values` one head of the initial tokens.
    pub(super) fn recall_first(
        &self,
        head: usize,
        dims: &Dims,
        keys: &mut Vec<f32>,
        values: &mut Vec<f32>,
    ) {
        let (wide, dim) = (dims.kv_heads * dims.head_dim, dims.head_dim);
        append_head(&self.first.keys, head, wide, dim, keys);
        append_head(&self.first.values, head, wide, dim, values);
    }

    /// Bytes of all but the rows in stores.
    pub(super) fn bytes(&self) -> u64 {
        let rows = |rows: &Rows| (rows.keys.len() + rows.values.len()) * 4;
        let numbers = self.representatives.len() + self.mass.len();
        (rows(&self.first) + rows(&self.tail) + numbers * 4) as u64
    }
}

/// The mean of the rows of greatest `mass`, at most `count` of them.
pub(super) fn mean_of_top<'a>(
    mass: &[f32],
    count: usize,
    row: impl Fn(u32) -> &'a [f32],
    mean: &mut [f32],
) {
    let mut chosen = Vec::with_capacity(count);
    top_k_rows(mass, count, &mut chosen);
    mean.fill(0.0);
    for &of in &chosen {
        axpy(mean, 1.0 / chosen.len() as f32, row(of));
    }
}

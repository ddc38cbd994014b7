//! Causal attention within each text of a packed batch, with heads that share keys.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::Tensor;
use keyfold_core::block_mask::BlockMask;
use keyfold_kernels::learn;
use keyfold_kernels::{self as kernels, Matrix};
use rayon::prelude::*;

use super::operator::{Array, Operator, apply};

/// Queries whose scores are in memory at once, where all see all.
const QUERIES: usize = 64;

/// How causal attention is split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedHeads {
    /// Query heads.
    pub count: usize,
    /// Heads of keys and values; divides `count`.
    pub kv: usize,
    /// Numbers of a head.
    pub size: usize,
}

/// `softmax(q kᵀ / √size) v` by head within each text, each row seeing itself and what came
/// before it, or of that what `mask` lets it see: `q` is `[rows, count · size]`, `k` and `v`
/// are `[rows, kv · size]`, the result is as `q`. `starts` has the first row of each text
/// and, at its end, the number of rows.
///
/// Weights are computed again in the backward pass: memory is that of the inputs. With a
/// mask only the blocks that are seen cost time.
///
/// # Panics
/// When the shapes do not fit, `starts` falls, or the mask has a block of 0.
pub fn causal_attention(
    q: Tensor<2>,
    k: Tensor<2>,
    v: Tensor<2>,
    starts: &[usize],
    heads: SharedHeads,
    mask: Option<&BlockMask>,
) -> Tensor<2> {
    let causal = Causal {
        starts: starts.into(),
        heads,
        mask: mask.cloned().map(Arc::new),
    };
    apply(causal, [q.into(), k.into(), v.into()])
}

#[derive(Clone, Debug)]
struct Causal {
    starts: Arc<[usize]>,
    heads: SharedHeads,
    mask: Option<Arc<BlockMask>>,
}

/// One KV head of one text.
struct Piece<'a> {
    rows: Range<usize>,
    kv_head: usize,
    /// `[len, size]` of the head's queries, `group` of them.
    q: Vec<Matrix<'a>>,
    k: Matrix<'a>,
    v: Matrix<'a>,
}

/// A block of queries and the rows that they see, the last of which are the block's own.
struct Block {
    queries: Range<usize>,
    seen: Vec<Range<usize>>,
    count: usize,
}

/// Keys and values of the rows that a block of queries sees.
#[derive(Default)]
struct Seen {
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Causal {
    fn group(&self) -> usize {
        self.heads.count / self.heads.kv
    }

    fn factor(&self) -> f32 {
        (self.heads.size as f32).sqrt().recip()
    }

    fn pieces<'a>(&self, [q, k, v]: [&'a Array; 3]) -> Vec<Piece<'a>> {
        let SharedHeads { count, kv, size } = self.heads;
        let mut pieces = Vec::new();
        for text in self.starts.windows(2) {
            let rows = text[0]..text[1];
            if rows.is_empty() {
                continue;
            }
            let head = |array: &'a Array, heads: usize, head: usize| {
                let from = &array.numbers()[rows.start * heads * size + head * size..];
                Matrix::strided(from, rows.len(), size, heads * size)
            };
            for kv_head in 0..kv {
                let group = kv_head * self.group()..(kv_head + 1) * self.group();
                pieces.push(Piece {
                    rows: rows.clone(),
                    kv_head,
                    q: group.map(|h| head(q, count, h)).collect(),
                    k: head(k, kv, kv_head),
                    v: head(v, kv, kv_head),
                });
            }
        }
        pieces
    }

    /// The queries of a text of `len` rows in blocks.
    fn blocks(&self, len: usize) -> Vec<Block> {
        let size = self.mask.as_ref().map_or(QUERIES, |mask| mask.block);
        (0..len)
            .step_by(size)
            .map(|from| {
                let queries = from..(from + size).min(len);
                let seen: Vec<Range<usize>> = match &self.mask {
                    None => std::iter::once(0..queries.end).collect(),
                    Some(mask) => mask
                        .runs(from / size)
                        .into_iter()
                        .map(|(first, end)| first * size..(end * size).min(len))
                        .collect(),
                };
                Block {
                    count: seen.iter().map(Range::len).sum(),
                    queries,
                    seen,
                }
            })
            .collect()
    }

    /// Weights `[queries, seen]`.
    fn weights(&self, q: Matrix, k: Matrix, block: &Block, weights: &mut Vec<f32>) {
        weights.resize(block.queries.len() * block.count, 0.0);
        kernels::product(weights, block.count, q, k.t(), self.factor(), false, 1);
        for (query, row) in block
            .queries
            .clone()
            .zip(weights.chunks_exact_mut(block.count))
        {
            let later = block.queries.end - 1 - query;
            row[block.count - later..].fill(f32::NEG_INFINITY);
        }
        kernels::softmax_rows(weights, block.count);
    }

    /// `[group][len, size]`.
    fn forward_piece(&self, piece: &Piece) -> Vec<f32> {
        let (len, size) = (piece.rows.len(), self.heads.size);
        let mut out = vec![0.0; piece.q.len() * len * size];
        let (mut weights, mut seen) = (Vec::new(), Seen::default());
        for block in self.blocks(len) {
            let [k, v] = seen.take(piece, &block, size);
            for (q, out) in piece.q.iter().zip(out.chunks_exact_mut(len * size)) {
                self.weights(q.rows(block.queries.clone()), k, &block, &mut weights);
                let p = Matrix::new(&weights, block.count);
                let out = &mut out[block.queries.start * size..block.queries.end * size];
                kernels::product(out, size, p, v, 1.0, false, 1);
            }
        }
        out
    }

    /// Gradients by queries `[group][len, size]`, keys and values `[len, size]`, of `g` as `q`.
    fn backward_piece(&self, piece: &Piece, g: &Array) -> [Vec<f32>; 3] {
        let (len, SharedHeads { count, size, .. }) = (piece.rows.len(), self.heads);
        let mut d_q = vec![0.0; piece.q.len() * len * size];
        let (mut d_k, mut d_v) = (vec![0.0; len * size], vec![0.0; len * size]);
        let (mut weights, mut scores) = (Vec::new(), Vec::new());
        let (mut seen, mut parts) = (Seen::default(), Seen::default());
        let first = piece.kv_head * self.group();
        for block in self.blocks(len) {
            let [k, v] = seen.take(piece, &block, size);
            parts.clear(block.count * size);
            let heads = piece.q.iter().zip(d_q.chunks_exact_mut(len * size));
            for (head, (q, d_q)) in (first..).zip(heads) {
                let from = &g.numbers()[piece.rows.start * count * size + head * size..];
                let g = Matrix::strided(from, len, size, count * size);
                let (q, g) = (q.rows(block.queries.clone()), g.rows(block.queries.clone()));
                self.weights(q, k, &block, &mut weights);
                let p = Matrix::new(&weights, block.count);
                kernels::product(&mut parts.v, size, p.t(), g, 1.0, true, 1);
                scores.resize(weights.len(), 0.0);
                kernels::product(&mut scores, block.count, g, v.t(), 1.0, false, 1);
                learn::softmax_backward(&weights, &mut scores, block.count, self.factor());
                let scores = Matrix::new(&scores, block.count);
                let d_q = &mut d_q[block.queries.start * size..block.queries.end * size];
                kernels::product(d_q, size, scores, k, 1.0, false, 1);
                kernels::product(&mut parts.k, size, scores.t(), q, 1.0, true, 1);
            }
            parts.add_to(&block, size, &mut d_k, &mut d_v);
        }
        [d_q, d_k, d_v]
    }

    /// Puts `[heads of the piece][len, size]` to its place in `[rows, heads · size]`.
    fn place(&self, piece: &Piece, part: &[f32], heads: usize, all: &mut [f32]) {
        let (len, size) = (piece.rows.len(), self.heads.size);
        let of_piece = heads / self.heads.kv;
        for (i, part) in part.chunks_exact(len * size).enumerate() {
            let head = piece.kv_head * of_piece + i;
            for (row, numbers) in piece.rows.clone().zip(part.chunks_exact(size)) {
                let at = (row * heads + head) * size;
                all[at..at + size].copy_from_slice(numbers);
            }
        }
    }
}

impl Seen {
    /// Keys and values `[seen, size]` of the rows that a block sees: views where they lie
    /// together.
    fn take<'a>(&'a mut self, piece: &Piece<'a>, block: &Block, size: usize) -> [Matrix<'a>; 2] {
        if let [all] = &block.seen[..] {
            return [piece.k.rows(all.clone()), piece.v.rows(all.clone())];
        }
        self.clear(0);
        for rows in &block.seen {
            for row in rows.clone() {
                self.k.extend_from_slice(piece.k.row(row));
                self.v.extend_from_slice(piece.v.row(row));
            }
        }
        [Matrix::new(&self.k, size), Matrix::new(&self.v, size)]
    }

    /// `len` zeros in each.
    fn clear(&mut self, len: usize) {
        for numbers in [&mut self.k, &mut self.v] {
            numbers.clear();
            numbers.resize(len, 0.0);
        }
    }

    /// Adds rows that belong to what a block sees.
    fn add_to(&self, block: &Block, size: usize, k: &mut [f32], v: &mut [f32]) {
        let mut from = 0;
        for rows in &block.seen {
            let to = from + rows.len() * size;
            let place = rows.start * size..rows.end * size;
            kernels::add_assign(&mut k[place.clone()], &self.k[from..to]);
            kernels::add_assign(&mut v[place], &self.v[from..to]);
            from = to;
        }
    }
}

impl Operator<3> for Causal {
    type Saved = [Array; 3];

    fn forward(&self, inputs: [Array; 3]) -> (Array, [Array; 3]) {
        let sizes = inputs[0].sizes();
        let mut out = vec![0.0; sizes[0] * sizes[1]];
        let pieces = self.pieces(inputs.each_ref());
        let parts: Vec<_> = pieces.par_iter().map(|p| self.forward_piece(p)).collect();
        for (piece, part) in pieces.iter().zip(&parts) {
            self.place(piece, part, self.heads.count, &mut out);
        }
        drop(pieces);
        (Array::new(out, sizes), inputs)
    }

    fn backward(&self, saved: [Array; 3], g: Array, _: [bool; 3]) -> [Option<Array>; 3] {
        let sizes = saved.each_ref().map(Array::sizes);
        let pieces = self.pieces(saved.each_ref());
        let parts: Vec<_> = pieces
            .par_iter()
            .map(|piece| self.backward_piece(piece, &g))
            .collect();
        let heads = [self.heads.count, self.heads.kv, self.heads.kv];
        let mut all = sizes.map(|[rows, width]| vec![0.0; rows * width]);
        for (piece, parts) in pieces.iter().zip(&parts) {
            for ((part, heads), all) in parts.iter().zip(heads).zip(&mut all) {
                self.place(piece, part, heads, all);
            }
        }
        let [q, k, v] = all;
        [(q, sizes[0]), (k, sizes[1]), (v, sizes[2])].map(|(x, sizes)| Some(Array::new(x, sizes)))
    }
}

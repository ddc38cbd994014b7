//! Causal attention of short sequences, and its gradient.

use super::BlockConfig;

/// Where the numbers of a head lie.
#[derive(Clone, Copy)]
pub(super) struct Heads {
    heads: usize,
    dim: usize,
    length: usize,
}

impl Heads {
    pub(super) fn new(config: &BlockConfig, length: usize) -> Self {
        Self {
            heads: config.heads,
            dim: config.head_dim,
            length,
        }
    }

    fn scale(self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }

    /// Query, key or value (`part` 0 to 2) of a token, in rows of queries, keys and values.
    fn place(self, token: usize, part: usize, head: usize) -> usize {
        (token * 3 + part) * self.heads * self.dim + head * self.dim
    }

    /// Weights `[length, length]` of a head in a sequence.
    fn weights(self, sequence: usize, head: usize) -> usize {
        (sequence * self.heads + head) * self.length * self.length
    }

    fn sequences(self, qkv: &[f32]) -> usize {
        qkv.len() / (3 * self.heads * self.dim * self.length)
    }
}

/// Numbers of one head in one sequence as `[dim, length]`: what is done for all tokens alike stands
/// side by side.
struct Turned {
    numbers: Vec<f32>,
    length: usize,
}

impl Turned {
    fn new(at: Heads) -> Self {
        Self {
            numbers: vec![0.0; at.dim * at.length],
            length: at.length,
        }
    }

    /// Takes the numbers of each token from its place.
    fn read(&mut self, from: &[f32], place: impl Fn(usize) -> usize) {
        for token in 0..self.length {
            let from = &from[place(token)..];
            for (row, x) in self.numbers.chunks_exact_mut(self.length).zip(from) {
                row[token] = *x;
            }
        }
    }

    fn write(&self, to: &mut [f32], place: impl Fn(usize) -> usize) {
        for token in 0..self.length {
            let to = &mut to[place(token)..];
            for (row, x) in self.numbers.chunks_exact(self.length).zip(to) {
                *x = row[token];
            }
        }
    }

    /// The row of each of the head's numbers.
    fn rows(&self) -> std::slice::ChunksExact<'_, f32> {
        self.numbers.chunks_exact(self.length)
    }

    /// Adds `x` times the numbers of token `i` of `of`, row by row.
    fn add_outer(&mut self, of: &Self, i: usize, x: &[f32]) {
        let rows = self.numbers.chunks_exact_mut(self.length).zip(of.rows());
        rows.for_each(|(row, of)| add(row, of[i], x));
    }

    /// For all tokens the sum over rows of their numbers with those of token `i` of `with`.
    fn products(&self, with: &Self, i: usize, factor: f32, out: &mut [f32]) {
        out.fill(0.0);
        let rows = self.rows().zip(with.rows());
        rows.for_each(|(row, with)| add(out, factor * with[i], row));
    }
}

fn add(y: &mut [f32], factor: f32, x: &[f32]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += factor * x);
}

/// A sum in eight parts, of which the compiler makes vectors.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut sums = [0.0; 8];
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

/// Weights `[sequences, heads, length, length]` and sums `[tokens, heads · dim]`.
pub(super) fn forward(at: Heads, qkv: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let (sequences, length, dim) = (at.sequences(qkv), at.length, at.dim);
    let mut weights = vec![0.0; sequences * at.heads * length * length];
    let mut sums = vec![0.0; sequences * length * at.heads * dim];
    let [mut q, mut k, mut v] = [0; 3].map(|_| Turned::new(at));
    for sequence in 0..sequences {
        for head in 0..at.heads {
            for (part, turned) in [&mut q, &mut k, &mut v].into_iter().enumerate() {
                turned.read(qkv, |i| at.place(sequence * length + i, part, head));
            }
            let weights = &mut weights[at.weights(sequence, head)..][..length * length];
            for (i, row) in weights.chunks_exact_mut(length).enumerate() {
                k.products(&q, i, at.scale(), row);
                row[i + 1..].fill(f32::NEG_INFINITY);
            }
            keyfold_kernels::softmax_rows(weights, length);
            for (i, row) in weights.chunks_exact(length).enumerate() {
                let out = &mut sums[((sequence * length + i) * at.heads + head) * dim..][..dim];
                out.iter_mut()
                    .zip(v.rows())
                    .for_each(|(o, v)| *o = dot(row, v));
            }
        }
    }
    (weights, sums)
}

/// The gradient of queries, keys and values.
pub(super) fn backward(at: Heads, qkv: &[f32], weights: &[f32], d_sums: &[f32]) -> Vec<f32> {
    let (sequences, length, dim) = (at.sequences(qkv), at.length, at.dim);
    let mut d = vec![0.0; qkv.len()];
    let mut slopes = vec![0.0; length];
    let [mut q, mut k, mut v, mut d_out] = [0; 4].map(|_| Turned::new(at));
    for sequence in 0..sequences {
        for head in 0..at.heads {
            for (part, turned) in [&mut q, &mut k, &mut v].into_iter().enumerate() {
                turned.read(qkv, |i| at.place(sequence * length + i, part, head));
            }
            let sum = |i: usize| ((sequence * length + i) * at.heads + head) * dim;
            d_out.read(d_sums, sum);
            let [mut d_k, mut d_v] = [0; 2].map(|_| Turned::new(at));
            let weights = &weights[at.weights(sequence, head)..][..length * length];
            for (i, row) in weights.chunks_exact(length).enumerate() {
                v.products(&d_out, i, 1.0, &mut slopes);
                let mean = dot(row, &slopes);
                // Weights of tokens that are not seen are 0, and so are their slopes.
                for (slope, w) in slopes.iter_mut().zip(row) {
                    *slope = at.scale() * w * (*slope - mean);
                }
                let d_q = &mut d[at.place(sequence * length + i, 0, head)..][..dim];
                d_q.iter_mut()
                    .zip(k.rows())
                    .for_each(|(d, k)| *d = dot(&slopes, k));
                d_k.add_outer(&q, i, &slopes);
                d_v.add_outer(&d_out, i, row);
            }
            for (part, turned) in [(1, &d_k), (2, &d_v)] {
                turned.write(&mut d, |i| at.place(sequence * length + i, part, head));
            }
        }
    }
    d
}

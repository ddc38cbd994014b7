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

/// Weights `[sequences, heads, length, length]` and sums `[tokens, heads · dim]`.
pub(super) fn forward(at: Heads, qkv: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let (sequences, length, dim) = (at.sequences(qkv), at.length, at.dim);
    let mut weights = vec![0.0; sequences * at.heads * length * length];
    let mut sums = vec![0.0; sequences * length * at.heads * dim];
    for sequence in 0..sequences {
        for head in 0..at.heads {
            let weights = &mut weights[at.weights(sequence, head)..][..length * length];
            for i in 0..length {
                let token = sequence * length + i;
                let query = &qkv[at.place(token, 0, head)..][..dim];
                let row = &mut weights[i * length..=i * length + i];
                let mut most = f32::NEG_INFINITY;
                for (j, w) in row.iter_mut().enumerate() {
                    let key = &qkv[at.place(sequence * length + j, 1, head)..][..dim];
                    *w = at.scale() * query.iter().zip(key).map(|(q, k)| q * k).sum::<f32>();
                    most = most.max(*w);
                }
                let mut sum = 0.0;
                for w in row.iter_mut() {
                    *w = (*w - most).exp();
                    sum += *w;
                }
                let out = &mut sums[(token * at.heads + head) * dim..][..dim];
                for (j, w) in row.iter_mut().enumerate() {
                    *w /= sum;
                    let value = &qkv[at.place(sequence * length + j, 2, head)..][..dim];
                    out.iter_mut().zip(value).for_each(|(o, v)| *o += *w * v);
                }
            }
        }
    }
    (weights, sums)
}

/// The gradient of queries, keys and values.
pub(super) fn backward(at: Heads, qkv: &[f32], weights: &[f32], d_sums: &[f32]) -> Vec<f32> {
    let (sequences, length, dim) = (at.sequences(qkv), at.length, at.dim);
    let mut d = vec![0.0; qkv.len()];
    let mut d_scores = vec![0.0; length];
    for sequence in 0..sequences {
        for head in 0..at.heads {
            let weights = &weights[at.weights(sequence, head)..][..length * length];
            for i in 0..length {
                let token = sequence * length + i;
                let row = &weights[i * length..=i * length + i];
                let d_out = &d_sums[(token * at.heads + head) * dim..][..dim];
                let mut mean = 0.0;
                for (j, w) in row.iter().enumerate() {
                    let value = at.place(sequence * length + j, 2, head);
                    let products = qkv[value..][..dim].iter().zip(d_out);
                    d_scores[j] = products.map(|(v, d)| v * d).sum();
                    mean += w * d_scores[j];
                    let d_value = d[value..][..dim].iter_mut().zip(d_out);
                    d_value.for_each(|(d, o)| *d += w * o);
                }
                let query = at.place(token, 0, head);
                for (j, w) in row.iter().enumerate() {
                    let slope = at.scale() * w * (d_scores[j] - mean);
                    let key = at.place(sequence * length + j, 1, head);
                    for x in 0..dim {
                        d[query + x] += slope * qkv[key + x];
                        d[key + x] += slope * qkv[query + x];
                    }
                }
            }
        }
    }
    d
}

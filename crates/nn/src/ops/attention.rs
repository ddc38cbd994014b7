//! Attention within each text of a packed batch.

use burn::tensor::{Tensor, activation::softmax};

use super::dropout;
use crate::random;

/// How attention is split, and what is dropped of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Heads {
    /// Number of heads.
    pub count: usize,
    /// Numbers of a head.
    pub size: usize,
    /// Probability with which a weight is set to 0 (the others grow), and the seed.
    pub dropout: Option<(f64, u64)>,
}

/// `softmax(q kᵀ / √size) v` by head within each text: `qkv` is `[rows, 3 · count · size]`,
/// queries, then keys, then values, each head after head; the result `[rows, count · size]`.
/// `starts` has the first row of each text and, at its end, the number of rows.
pub fn attention(qkv: Tensor<2>, starts: &[usize], heads: Heads) -> Tensor<2> {
    let Heads { count, size, .. } = heads;
    let texts = starts.windows(2).enumerate().filter(|(_, t)| t[0] < t[1]);
    let texts = texts.map(|(i, text)| {
        let len = text[1] - text[0];
        let parts = qkv.clone().narrow(0, text[0], len);
        let parts = parts.reshape([len, 3, count, size]).permute([1, 2, 0, 3]);
        let part = |i: usize| parts.clone().narrow(0, i, 1).squeeze_dim::<3>(0);
        let scores = part(0).matmul(part(1).transpose()) * (size as f64).sqrt().recip();
        let mut weights = softmax(scores, 2);
        if let Some((rate, seed)) = heads.dropout {
            weights = dropout(weights, rate, random::derive(seed, i as u64));
        }
        let context = weights.matmul(part(2));
        context.permute([1, 0, 2]).reshape([len, count * size])
    });
    let texts: Vec<Tensor<2>> = texts.collect();
    if texts.is_empty() {
        return qkv.slice([0..0, 0..count * size]);
    }
    Tensor::cat(texts, 0)
}

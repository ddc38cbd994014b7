//! Attention within each text of a packed batch.

use std::sync::Arc;

use burn::tensor::Tensor;
use keyfold_kernels::learn::{self, Dropout};
use keyfold_kernels::{self as kernels, Matrix};
use rayon::prelude::*;

use super::operator::{Array, Operator, apply, cut};

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

/// `dropout(softmax(q kᵀ / √size)) v` by head within each text: `qkv` is
/// `[rows, 3 · count · size]`, queries, then keys, then values, each head after head; the
/// result `[rows, count · size]`. `starts` has the first row of each text and, at its end,
/// the number of rows.
///
/// Keeps the weights of attention, `count · len²` numbers per text, for the backward pass.
///
/// # Panics
/// When the shapes do not fit, or `starts` falls.
pub fn attention(qkv: Tensor<2>, starts: &[usize], heads: Heads) -> Tensor<2> {
    let attention = Attention {
        starts: starts.into(),
        heads,
        dropout: heads.dropout.map(|(rate, seed)| Dropout::new(rate, seed)),
    };
    apply(attention, [qkv.into()])
}

#[derive(Clone, Debug)]
struct Attention {
    starts: Arc<[usize]>,
    heads: Heads,
    dropout: Option<Dropout>,
}

#[derive(Clone, Debug)]
struct Saved {
    qkv: Array,
    /// Weights before dropout: text after text, head after head, `[len, len]`.
    weights: Array,
}

/// One text: its first row, and its part of each array.
struct Text<'a> {
    first: usize,
    len: usize,
    /// `[len, 3 · width]`.
    qkv: &'a [f32],
}

impl Attention {
    fn width(&self) -> usize {
        self.heads.count * self.heads.size
    }

    fn lengths(&self) -> impl Iterator<Item = usize> {
        self.starts.windows(2).map(|t| t[1] - t[0])
    }

    fn texts<'a>(&self, qkv: &'a [f32]) -> Vec<Text<'a>> {
        let wide = 3 * self.width();
        let texts = self.starts.windows(2).map(|t| Text {
            first: t[0],
            len: t[1] - t[0],
            qkv: &qkv[t[0] * wide..t[1] * wide],
        });
        texts.collect()
    }

    /// Queries (0), keys (1) or values (2) of a head, `[len, size]`.
    fn part<'a>(&self, text: &Text<'a>, head: usize, part: usize) -> Matrix<'a> {
        let at = part * self.width() + head * self.heads.size;
        let from = at.min(text.qkv.len());
        Matrix::strided(
            &text.qkv[from..],
            text.len,
            self.heads.size,
            3 * self.width(),
        )
    }

    /// Drops weights of a head, the same in both passes.
    fn drop(&self, text: &Text, head: usize, weights: &mut [f32]) {
        if let Some(dropout) = self.dropout {
            for (row, weights) in weights.chunks_exact_mut(text.len).enumerate() {
                let row = (text.first + row) * self.heads.count + head;
                dropout.apply(row as u64, weights);
            }
        }
    }

    fn factor(&self) -> f32 {
        (self.heads.size as f32).sqrt().recip()
    }

    /// `weights` and `out` (`[len, width]`) are of this text.
    fn forward_text(&self, text: &Text, weights: &mut [f32], out: &mut [f32]) {
        let Heads { count, size, .. } = self.heads;
        let len = text.len;
        let mut dropped = Vec::new();
        for (head, weights) in weights.chunks_exact_mut(len * len).enumerate().take(count) {
            let [q, k, v] = [0, 1, 2].map(|part| self.part(text, head, part));
            kernels::product(weights, len, q, k.t(), self.factor(), false, 1);
            kernels::softmax_rows(weights, len);
            let mut used = &*weights;
            if self.dropout.is_some() {
                dropped.clear();
                dropped.extend_from_slice(weights);
                self.drop(text, head, &mut dropped);
                used = &dropped;
            }
            let out = &mut out[head * size..];
            kernels::product(out, self.width(), Matrix::new(used, len), v, 1.0, false, 1);
        }
    }

    /// `d_out` (`[len, width]`) and `d_qkv` (`[len, 3 · width]`) are of this text.
    fn backward_text(&self, text: &Text, weights: &[f32], d_out: &[f32], d_qkv: &mut [f32]) {
        let Heads { count, size, .. } = self.heads;
        let (len, width) = (text.len, self.width());
        let mut scores = vec![0.0; len * len];
        let mut dropped = Vec::new();
        for (head, weights) in weights.chunks_exact(len * len).enumerate().take(count) {
            let [q, k, v] = [0, 1, 2].map(|part| self.part(text, head, part));
            let g = Matrix::strided(&d_out[head * size..], len, size, width);
            let mut used = weights;
            if self.dropout.is_some() {
                dropped.clear();
                dropped.extend_from_slice(weights);
                self.drop(text, head, &mut dropped);
                used = &dropped;
            }
            let mut write = |part: usize, a: Matrix, b: Matrix| {
                let out = &mut d_qkv[part * width + head * size..];
                kernels::product(out, 3 * width, a, b, 1.0, false, 1);
            };
            write(2, Matrix::new(used, len).t(), g);
            kernels::product(&mut scores, len, g, v.t(), 1.0, false, 1);
            self.drop(text, head, &mut scores);
            learn::softmax_backward(weights, &mut scores, len, self.factor());
            let scores = Matrix::new(&scores, len);
            write(0, scores, k);
            write(1, scores.t(), q);
        }
    }
}

impl Operator<1> for Attention {
    type Saved = Saved;

    fn forward(&self, [qkv]: [Array; 1]) -> (Array, Saved) {
        let (rows, width) = (qkv.sizes()[0], self.width());
        let weights_of = |len: usize| self.heads.count * len * len;
        let mut weights = vec![0.0; self.lengths().map(weights_of).sum()];
        let mut out = vec![0.0; rows * width];
        let parts = cut(&mut weights, self.lengths().map(weights_of));
        let outs = cut(&mut out, self.lengths().map(|len| len * width));
        let texts = self.texts(qkv.numbers());
        texts
            .par_iter()
            .zip(parts)
            .zip(outs)
            .filter(|((text, _), _)| text.len > 0)
            .for_each(|((text, weights), out)| self.forward_text(text, weights, out));
        let count = weights.len();
        let saved = Saved {
            weights: Array::new(weights, [count]),
            qkv,
        };
        (Array::new(out, [rows, width]), saved)
    }

    fn backward(&self, saved: Saved, mut g: Array, _: [bool; 1]) -> [Option<Array>; 1] {
        let (rows, width) = (saved.qkv.sizes()[0], self.width());
        let mut d_qkv = vec![0.0; rows * 3 * width];
        let mut weights = saved.weights;
        let weights_of = |len: usize| self.heads.count * len * len;
        let parts = cut(weights.numbers_mut(), self.lengths().map(weights_of));
        let gradients = cut(g.numbers_mut(), self.lengths().map(|len| len * width));
        let outs = cut(&mut d_qkv, self.lengths().map(|len| 3 * len * width));
        let texts = self.texts(saved.qkv.numbers());
        texts
            .par_iter()
            .zip(parts)
            .zip(gradients)
            .zip(outs)
            .filter(|(((text, _), _), _)| text.len > 0)
            .for_each(|(((text, weights), g), out)| self.backward_text(text, weights, g, out));
        [Some(Array::new(d_qkv, [rows, 3 * width]))]
    }
}

//! Mixing of the positions of each text by a matrix of a family, head by head.

use std::sync::Arc;

use burn::tensor::Tensor;
use keyfold_sequence::matrix_mixers::{MatrixMixer, MixerGradients, QueriesKeys};
use rayon::prelude::*;

use super::operator::{Array, Input, Operator, apply, cut};

/// What the matrices of a mixer are made of; see [`keyfold_sequence::matrix_mixers`].
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant)]
pub enum MixNumbers {
    /// Any matrix for each head, `[heads · longest, longest]`; a shorter text takes its corner.
    Dense(Tensor<2>),
    /// A number for each distance, forward and reverse, `[rows, heads]` each.
    Toeplitz(Tensor<2>, Tensor<2>),
    /// Cosines of queries and keys, `[rows, heads · any]` each.
    Vandermonde(Tensor<2>, Tensor<2>),
    /// Reciprocals of sums of queries, keys and a bias `[1]`.
    Cauchy(Tensor<2>, Tensor<2>, Tensor<1>),
    /// Products of queries and keys.
    LowRank(Tensor<2>, Tensor<2>),
    /// The softmax of these.
    Attention(Tensor<2>, Tensor<2>),
}

/// `scale · M v + v` within each text and for each head: `v` is `[rows, heads · any]`. `longest`
/// is the length that scales are made for; no text is longer. `starts` has the first row of
/// each text and, at its end, the number of rows.
///
/// Matrices are made again in the backward pass: memory is that of one for each thread. Gradients of
/// dense matrices are there once for each text until they are summed up.
///
/// # Panics
/// When shapes do not fit, or a text is longer than `longest`.
pub fn matrix_mix(
    v: Tensor<2>,
    numbers: MixNumbers,
    starts: &[usize],
    heads: usize,
    longest: usize,
) -> Tensor<2> {
    assert_eq!(
        starts.last(),
        Some(&v.dims()[0]),
        "starts end with the rows"
    );
    assert!(
        starts
            .windows(2)
            .all(|t| t[0] <= t[1] && t[1] - t[0] <= longest),
        "texts of at most {longest} positions"
    );
    assert!(
        heads > 0 && v.dims()[1].is_multiple_of(heads),
        "heads divide the width"
    );
    let mix = |family| Mix {
        family,
        starts: starts.into(),
        heads,
        longest,
    };
    let pair = |family, q: Tensor<2>, k: Tensor<2>| {
        assert_eq!(q.dims(), k.dims(), "as many queries as keys");
        assert_eq!(q.dims()[0], v.dims()[0], "a query for each row");
        assert!(q.dims()[1].is_multiple_of(heads), "heads divide queries");
        (mix(family), q, k)
    };
    let three = |(mix, q, k): (Mix, Tensor<2>, Tensor<2>)| {
        let inputs: [Input; 3] = [v.clone().into(), q.into(), k.into()];
        apply(mix, inputs)
    };
    match numbers {
        MixNumbers::Dense(matrix) => {
            assert_eq!(matrix.dims(), [heads * longest, longest], "matrices");
            apply(mix(Family::Dense), [v.clone().into(), matrix.into()])
        }
        MixNumbers::Toeplitz(forward, reverse) => {
            assert_eq!(forward.dims()[1], heads, "a number for each head");
            three(pair(Family::Toeplitz, forward, reverse))
        }
        MixNumbers::Vandermonde(q, k) => three(pair(Family::Vandermonde, q, k)),
        MixNumbers::Cauchy(q, k, bias) => {
            let (mix, q, k) = pair(Family::Cauchy, q, k);
            apply(mix, [v.clone().into(), q.into(), k.into(), bias.into()])
        }
        MixNumbers::LowRank(q, k) => three(pair(Family::LowRank, q, k)),
        MixNumbers::Attention(q, k) => three(pair(Family::Attention, q, k)),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Dense,
    Toeplitz,
    Vandermonde,
    Cauchy,
    LowRank,
    Attention,
}

#[derive(Clone, Debug)]
struct Mix {
    family: Family,
    starts: Arc<[usize]>,
    heads: usize,
    longest: usize,
}

/// What one head of one text reads.
struct Head {
    v: Vec<f32>,
    first: Vec<f32>,
    second: Vec<f32>,
    bias: f32,
}

/// Gradients of one text's rows, and of what all texts share.
#[derive(Default)]
struct TextGradients {
    rows: [Vec<f32>; 3],
    /// Of the matrices of all heads, where they are dense.
    matrices: Vec<f32>,
    bias: f32,
}

/// The shapes were compared before.
const CHECKED: &str = "shapes were checked";

impl Mix {
    fn texts(&self) -> impl Iterator<Item = std::ops::Range<usize>> {
        self.starts.windows(2).map(|t| t[0]..t[1])
    }

    fn head(&self, inputs: &[Array], rows: &std::ops::Range<usize>, head: usize) -> Head {
        let columns = |i: usize| {
            let width = inputs[i].sizes()[1];
            let own = width / self.heads;
            let all = &inputs[i].numbers()[rows.start * width..rows.end * width];
            let rows = all.chunks_exact(width.max(1));
            rows.flat_map(|row| &row[head * own..(head + 1) * own])
                .copied()
                .collect::<Vec<f32>>()
        };
        let v = columns(0);
        if self.family == Family::Dense {
            let t = self.longest;
            let all = &inputs[1].numbers()[head * t * t..(head + 1) * t * t];
            let corner = all.chunks_exact(t).take(rows.len());
            return Head {
                v,
                first: corner.flat_map(|row| &row[..rows.len()]).copied().collect(),
                second: Vec::new(),
                bias: 0.0,
            };
        }
        Head {
            v,
            first: columns(1),
            second: columns(2),
            bias: inputs.get(3).map_or(0.0, |b| b.numbers()[0]),
        }
    }

    fn mixer<'a>(&self, head: &'a Head, len: usize) -> MatrixMixer<'a> {
        let of = QueriesKeys {
            queries: &head.first,
            keys: &head.second,
            dim: head.first.len() / len,
        };
        match self.family {
            Family::Dense => MatrixMixer::Dense(&head.first),
            Family::Toeplitz => MatrixMixer::Toeplitz {
                forward: &head.first,
                reverse: &head.second,
            },
            Family::Vandermonde => MatrixMixer::Vandermonde(of),
            Family::Cauchy => MatrixMixer::Cauchy {
                of,
                bias: head.bias,
            },
            Family::LowRank => MatrixMixer::LowRank(of),
            Family::Attention => MatrixMixer::Attention(of),
        }
    }

    fn backward_text(
        &self,
        inputs: &[Array],
        rows: &std::ops::Range<usize>,
        g: &[f32],
    ) -> TextGradients {
        let len = rows.len();
        let width = inputs[0].sizes()[1];
        let own = width / self.heads;
        let dense = self.family == Family::Dense;
        let t = self.longest;
        let mut out = TextGradients::default();
        let parts = if dense { 1 } else { 3 };
        for (rows, input) in out.rows.iter_mut().zip(inputs).take(parts) {
            rows.resize(len * input.sizes()[1], 0.0);
        }
        if dense {
            out.matrices.resize(self.heads * t * t, 0.0);
        }
        for number in 0..self.heads {
            let head = self.head(inputs, rows, number);
            let g: Vec<f32> = g
                .chunks_exact(width)
                .flat_map(|row| &row[number * own..(number + 1) * own])
                .copied()
                .collect();
            let found = self.mixer(&head, len).backward(&head.v, own, t, &g);
            let MixerGradients {
                values,
                first,
                second,
                bias,
            } = found.expect(CHECKED);
            self.scatter(&mut out.rows[0], &values, number, len);
            if dense {
                let all = out.matrices[number * t * t..(number + 1) * t * t].chunks_exact_mut(t);
                for (to, from) in all.zip(first.chunks_exact(len)) {
                    to[..len].copy_from_slice(from);
                }
            } else {
                self.scatter(&mut out.rows[1], &first, number, len);
                self.scatter(&mut out.rows[2], &second, number, len);
            }
            out.bias += bias;
        }
        out
    }

    /// A head's columns into the rows of all heads.
    fn scatter(&self, all: &mut [f32], own: &[f32], head: usize, len: usize) {
        let (width, part) = (all.len() / len, own.len() / len);
        for (to, from) in all.chunks_exact_mut(width).zip(own.chunks_exact(part)) {
            to[head * part..(head + 1) * part].copy_from_slice(from);
        }
    }
}

impl<const N: usize> Operator<N> for Mix {
    type Saved = [Array; N];

    fn forward(&self, inputs: [Array; N]) -> (Array, [Array; N]) {
        let [rows, width] = inputs[0].sizes();
        let own = width / self.heads;
        let mut out = vec![0.0; rows * width];
        let outs = cut(&mut out, self.texts().map(|t| t.len() * width));
        let texts: Vec<_> = self.texts().collect();
        texts
            .par_iter()
            .zip(outs)
            .filter(|(text, _)| !text.is_empty())
            .for_each(|(text, out)| {
                for number in 0..self.heads {
                    let head = self.head(&inputs, text, number);
                    let mixer = self.mixer(&head, text.len());
                    let found = mixer.mix(&head.v, own, self.longest).expect(CHECKED);
                    self.scatter(out, &found, number, text.len());
                }
            });
        (Array::new(out, [rows, width]), inputs)
    }

    fn backward(&self, inputs: [Array; N], g: Array, _: [bool; N]) -> [Option<Array>; N] {
        let width = inputs[0].sizes()[1];
        let texts: Vec<_> = self.texts().filter(|t| !t.is_empty()).collect();
        let found: Vec<TextGradients> = texts
            .par_iter()
            .map(|text| {
                let g = &g.numbers()[text.start * width..text.end * width];
                self.backward_text(&inputs, text, g)
            })
            .collect();
        let bias = found.iter().map(|text| text.bias).sum::<f32>();
        std::array::from_fn(|i| {
            let sizes = inputs[i].sizes();
            Some(if i == 3 {
                Array::new(vec![bias], [1])
            } else if i == 1 && self.family == Family::Dense {
                let mut all = vec![0.0; sizes[0] * sizes[1]];
                for text in &found {
                    keyfold_kernels::add_assign(&mut all, &text.matrices);
                }
                Array::new(all, sizes)
            } else {
                let rows = found.iter().flat_map(|text| &text.rows[i]);
                Array::new(rows.copied().collect(), sizes)
            })
        })
    }
}

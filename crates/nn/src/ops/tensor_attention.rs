//! Attention to pairs of positions within each text of a packed batch.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::Tensor;
use keyfold_kernels::Team;
use keyfold_sequence::SequenceError;
use keyfold_sequence::tensor_attention::polynomial::{Fit, Polynomial};
use keyfold_sequence::tensor_attention::{Attention, Gradients};
use rayon::prelude::*;

use super::operator::{Array, Operator, apply, cut};

/// What attention to pairs reads: `[rows, heads · any]` each, the rows of all texts one after the
/// other. Keys are as wide as queries, both values as each other.
#[derive(Debug, Clone)]
pub struct PairInputs {
    /// Queries.
    pub q: Tensor<2>,
    /// Keys of the first and of the second position of a pair.
    pub k: [Tensor<2>; 2],
    /// Values, which are multiplied.
    pub v: [Tensor<2>; 2],
}

/// How pairs are attended to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PairHeads {
    /// Number of heads.
    pub count: usize,
    /// Factor of the scores; the paper's is 1 by the numbers of a head.
    pub scale: f64,
    /// A position attends to pairs of itself and what stands before it alone.
    pub causal: bool,
    /// Degree of the polynomial (Taylor's) in the place of `exp`; `exp` itself where there is none.
    pub degree: Option<usize>,
}

/// [`keyfold_sequence::tensor_attention`] by head within each text, as a function of tensors:
/// `[rows, width of the values]`. `starts` has the first row of each text and, at its end, the
/// number of rows. In `f64` inside; a text of `n` positions takes `n³` steps, or `n` with a
/// polynomial.
///
/// # Errors
/// When a number is not finite, a text is too long for exact attention, or a polynomial has too
/// many monomials.
///
/// # Panics
/// When shapes do not fit, or `starts` falls.
pub fn tensor_attention(
    inputs: PairInputs,
    starts: &[usize],
    heads: PairHeads,
) -> Result<Tensor<2>, SequenceError> {
    let PairInputs {
        q,
        k: [k1, k2],
        v: [v1, v2],
    } = inputs;
    let ([rows, keys], [_, values]) = (q.dims(), v1.dims());
    for (x, width) in [(&k1, keys), (&k2, keys), (&v1, values), (&v2, values)] {
        assert_eq!(x.dims(), [rows, width], "tensor_attention: shapes");
    }
    assert_eq!(starts.last(), Some(&rows), "starts end with the rows");
    assert!(
        heads.count > 0 && keys.is_multiple_of(heads.count) && values.is_multiple_of(heads.count),
        "heads divide the widths"
    );
    let pairs = Pairs {
        starts: starts.into(),
        heads,
    };
    // What may be refused is tried on the numbers alone.
    let plain = [&q, &k1, &k2, &v1, &v2].map(|x| Array::plain(x.clone()));
    for text in pairs.texts() {
        for head in 0..heads.count {
            pairs.check(&pairs.head(&plain, &text, head), text.len())?;
        }
    }
    Ok(apply(
        pairs,
        [q.into(), k1.into(), k2.into(), v1.into(), v2.into()],
    ))
}

#[derive(Clone, Debug)]
struct Pairs {
    starts: Arc<[usize]>,
    heads: PairHeads,
}

/// The five inputs of one head of one text.
type Head = [Vec<f64>; 5];

/// They were tried before.
const TRIED: &str = "it was tried before";

impl Pairs {
    /// Texts with a row.
    fn texts(&self) -> Vec<Range<usize>> {
        let all = self.starts.windows(2).map(|t| t[0]..t[1]);
        all.filter(|t| !t.is_empty()).collect()
    }

    fn head(&self, inputs: &[Array; 5], rows: &Range<usize>, head: usize) -> Head {
        std::array::from_fn(|i| {
            let width = inputs[i].sizes()[1];
            let own = width / self.heads.count;
            let all = &inputs[i].numbers()[rows.start * width..rows.end * width];
            let rows = all.chunks_exact(width.max(1));
            let part = rows.flat_map(|row| &row[head * own..(head + 1) * own]);
            part.map(|x| f64::from(*x)).collect()
        })
    }

    fn attention<'a>(
        &self,
        [q, k1, k2, v1, v2]: &'a Head,
        rows: usize,
    ) -> Result<Attention<'a>, SequenceError> {
        let attention = Attention::new(q, vec![k1, k2], vec![v1, v2], q.len() / rows)?;
        Ok(attention
            .with_scale(self.heads.scale)
            .causal(self.heads.causal))
    }

    fn polynomial(&self, attention: &Attention) -> Result<Option<Polynomial>, SequenceError> {
        let degree = self.heads.degree;
        let made = degree.map(|degree| Polynomial::new(attention, degree, Fit::Taylor, true));
        made.transpose()
    }

    fn check(&self, head: &Head, rows: usize) -> Result<(), SequenceError> {
        let attention = self.attention(head, rows)?;
        match self.polynomial(&attention)? {
            Some(_) => Ok(()),
            None => attention.check_exact(),
        }
    }

    fn attend(&self, head: &Head, rows: usize) -> Result<Vec<f64>, SequenceError> {
        let attention = self.attention(head, rows)?;
        match self.polynomial(&attention)? {
            Some(polynomial) => Ok(polynomial.apply(&attention)),
            None => attention.exact(&Team::new(1)),
        }
    }

    fn back(&self, head: &Head, rows: usize, g: &[f64]) -> Result<Gradients, SequenceError> {
        let attention = self.attention(head, rows)?;
        match self.polynomial(&attention)? {
            Some(polynomial) => polynomial.backward(&attention, g),
            None => attention.exact_backward(g),
        }
    }

    /// A head's columns into rows of all heads.
    fn scatter(&self, all: &mut [f32], own: &[f64], head: usize, rows: usize) {
        let (width, part) = (all.len() / rows, own.len() / rows);
        let own = own.chunks_exact(part.max(1));
        for (to, from) in all.chunks_exact_mut(width.max(1)).zip(own) {
            for (to, from) in to[head * part..(head + 1) * part].iter_mut().zip(from) {
                *to = *from as f32;
            }
        }
    }
}

impl Operator<5> for Pairs {
    type Saved = [Array; 5];

    fn forward(&self, inputs: [Array; 5]) -> (Array, [Array; 5]) {
        let [rows, width] = inputs[3].sizes();
        let mut out = vec![0.0; rows * width];
        let texts = self.texts();
        let outs = cut(&mut out, texts.iter().map(|t| t.len() * width));
        texts.par_iter().zip(outs).for_each(|(text, out)| {
            for head in 0..self.heads.count {
                let found = self.attend(&self.head(&inputs, text, head), text.len());
                self.scatter(out, &found.expect(TRIED), head, text.len());
            }
        });
        (Array::new(out, [rows, width]), inputs)
    }

    fn backward(&self, inputs: [Array; 5], g: Array, _: [bool; 5]) -> [Option<Array>; 5] {
        let width = g.sizes()[1];
        let own = width / self.heads.count;
        let texts = self.texts();
        let found: Vec<[Vec<f32>; 5]> = texts
            .par_iter()
            .map(|text| {
                let mut all = inputs
                    .each_ref()
                    .map(|x| vec![0.0; text.len() * x.sizes()[1]]);
                for head in 0..self.heads.count {
                    let rows = g.numbers()[text.start * width..text.end * width].chunks(width);
                    let g = rows.flat_map(|row| &row[head * own..(head + 1) * own]);
                    let g: Vec<f64> = g.map(|x| f64::from(*x)).collect();
                    let found = self.back(&self.head(&inputs, text, head), text.len(), &g);
                    let found = found.expect(TRIED);
                    let parts = [&found.queries].into_iter().chain(&found.keys);
                    for (all, own) in all.iter_mut().zip(parts.chain(&found.values)) {
                        self.scatter(all, own, head, text.len());
                    }
                }
                all
            })
            .collect();
        std::array::from_fn(|i| {
            let rows = found.iter().flat_map(|text| &text[i]);
            Some(Array::new(rows.copied().collect(), inputs[i].sizes()))
        })
    }
}

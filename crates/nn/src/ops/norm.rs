//! Layer norm, of a sum with dropout or alone.

use burn::tensor::Tensor;
use keyfold_kernels::learn::{self, Dropout};
use rayon::prelude::*;

use super::dropout::drop_rows;
use super::operator::{Array, BLOCK, Operator, apply, sum};

/// Every row of `x` `[rows, width]` scaled and shifted to mean 0 and variance 1, then
/// times `weight` plus `bias`, both `[width]`.
///
/// # Panics
/// When the shapes do not fit.
pub fn layer_norm(x: Tensor<2>, weight: Tensor<1>, bias: Tensor<1>, eps: f64) -> Tensor<2> {
    let norm = Norm {
        eps: eps as f32,
        dropout: None,
    };
    apply(norm, [x.into(), weight.into(), bias.into()])
}

/// [`layer_norm`] of `x + dropout(y)`, as it stands after attention and feed-forward;
/// `dropout` is its rate and seed.
///
/// # Panics
/// When the shapes do not fit.
pub fn add_norm(
    x: Tensor<2>,
    y: Tensor<2>,
    dropout: Option<(f64, u64)>,
    weight: Tensor<1>,
    bias: Tensor<1>,
    eps: f64,
) -> Tensor<2> {
    let norm = Norm {
        eps: eps as f32,
        dropout: dropout.map(|(rate, seed)| Dropout::new(rate, seed)),
    };
    apply(norm, [x.into(), y.into(), weight.into(), bias.into()])
}

#[derive(Clone, Debug)]
struct Norm {
    eps: f32,
    /// Of the second summand.
    dropout: Option<Dropout>,
}

#[derive(Clone, Debug)]
struct Saved {
    normal: Array,
    scales: Vec<f32>,
    weight: Array,
}

impl Norm {
    fn normalise(&self, x: Array, y: Option<Array>, weight: Array, bias: &Array) -> (Array, Saved) {
        let [rows, width] = x.sizes();
        let mut normal = x.numbers().to_vec();
        let (mut out, mut scales) = (vec![0.0; normal.len()], vec![0.0; rows]);
        let block = BLOCK * width.max(1);
        let blocks = normal
            .par_chunks_mut(block)
            .zip(out.par_chunks_mut(block))
            .zip(scales.par_chunks_mut(BLOCK))
            .enumerate();
        blocks.for_each(|(number, ((normal, out), scales))| {
            if let Some(y) = &y {
                let y = &y.numbers()[number * block..][..normal.len()];
                // `out` is free until the norm writes it.
                out.copy_from_slice(y);
                if let Some(dropout) = self.dropout {
                    for (row, y) in out.chunks_exact_mut(width).enumerate() {
                        dropout.apply((number * BLOCK + row) as u64, y);
                    }
                }
                keyfold_kernels::add_assign(normal, out);
            }
            let (weight, bias) = (weight.numbers(), bias.numbers());
            learn::norm_forward(normal, weight, bias, self.eps, scales, out);
        });
        let saved = Saved {
            normal: Array::new(normal, [rows, width]),
            scales,
            weight,
        };
        (Array::new(out, [rows, width]), saved)
    }

    /// The gradients by the input, the weight and the bias.
    fn gradients(saved: &Saved, mut g: Array) -> [Array; 3] {
        let width = saved.weight.sizes()[1];
        let block = BLOCK * width.max(1);
        let blocks = g
            .numbers_mut()
            .par_chunks_mut(block)
            .zip(saved.normal.numbers().par_chunks(block))
            .zip(saved.scales.par_chunks(BLOCK));
        let parts = blocks.map(|((g, normal), scales)| {
            let (mut weight, mut bias) = (vec![0.0; width], vec![0.0; width]);
            let factor = saved.weight.numbers();
            learn::norm_backward(g, normal, scales, factor, &mut weight, &mut bias);
            (weight, bias)
        });
        let (weights, biases): (Vec<_>, Vec<_>) = parts.collect::<Vec<_>>().into_iter().unzip();
        let [weight, bias] = [weights, biases].map(|p| Array::new(sum(p, width), [width]));
        [g, weight, bias]
    }
}

impl Operator<3> for Norm {
    type Saved = Saved;

    fn forward(&self, [x, weight, bias]: [Array; 3]) -> (Array, Saved) {
        self.normalise(x, None, weight, &bias)
    }

    fn backward(&self, saved: Saved, g: Array, _: [bool; 3]) -> [Option<Array>; 3] {
        Self::gradients(&saved, g).map(Some)
    }
}

impl Operator<4> for Norm {
    type Saved = Saved;

    fn forward(&self, [x, y, weight, bias]: [Array; 4]) -> (Array, Saved) {
        self.normalise(x, Some(y), weight, &bias)
    }

    fn backward(&self, saved: Saved, g: Array, _: [bool; 4]) -> [Option<Array>; 4] {
        let [x, weight, bias] = Self::gradients(&saved, g);
        let y = match self.dropout {
            Some(dropout) => drop_rows(dropout, x.clone()),
            None => x.clone(),
        };
        [Some(x), Some(y), Some(weight), Some(bias)]
    }
}

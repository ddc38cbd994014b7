//! RMS norm.

use burn::tensor::Tensor;
use keyfold_kernels::learn;
use rayon::prelude::*;

use super::operator::{Array, BLOCK, Operator, apply, sum};

/// Every row of `x` `[rows, any · width]`, in parts of `width`, over the root of its mean
/// square, times `weight` `[width]`.
///
/// # Panics
/// When the shapes do not fit.
pub fn rms_norm(x: Tensor<2>, weight: Tensor<1>, eps: f64) -> Tensor<2> {
    apply(RmsNorm { eps: eps as f32 }, [x.into(), weight.into()])
}

#[derive(Clone, Debug)]
struct RmsNorm {
    eps: f32,
}

#[derive(Clone, Debug)]
struct Saved {
    x: Array,
    scales: Vec<f32>,
    weight: Array,
}

impl Operator<2> for RmsNorm {
    type Saved = Saved;

    fn forward(&self, [x, weight]: [Array; 2]) -> (Array, Saved) {
        let (sizes, width) = (x.sizes(), weight.sizes()[1].max(1));
        let numbers = x.numbers();
        let (mut out, mut scales) = (vec![0.0; numbers.len()], vec![0.0; numbers.len() / width]);
        let block = BLOCK * width;
        out.par_chunks_mut(block)
            .zip(numbers.par_chunks(block))
            .zip(scales.par_chunks_mut(BLOCK))
            .for_each(|((out, x), scales)| {
                learn::rms_forward(x, weight.numbers(), self.eps, scales, out);
            });
        (Array::new(out, sizes), Saved { x, scales, weight })
    }

    fn backward(&self, saved: Saved, mut g: Array, _: [bool; 2]) -> [Option<Array>; 2] {
        let width = saved.weight.sizes()[1];
        let block = BLOCK * width.max(1);
        let parts = g
            .numbers_mut()
            .par_chunks_mut(block)
            .zip(saved.x.numbers().par_chunks(block))
            .zip(saved.scales.par_chunks(BLOCK))
            .map(|((g, x), scales)| {
                let mut weight = vec![0.0; width];
                learn::rms_backward(g, x, scales, saved.weight.numbers(), &mut weight);
                weight
            });
        let weight = sum(parts.collect(), width);
        [Some(g), Some(Array::new(weight, [width]))]
    }
}

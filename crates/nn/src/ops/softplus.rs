//! The softplus by which the steps of a scan stay above 0.

use burn::tensor::Tensor;
use keyfold_kernels as kernels;
use rayon::prelude::*;

use super::operator::{Array, BLOCK, Operator, apply, sum};

/// `ln(1 + exp(x + bias))`, `x` `[rows, width]`, `bias` `[width]`; for large numbers as well.
///
/// # Panics
/// When the shapes do not fit.
pub fn softplus(x: Tensor<2>, bias: Tensor<1>) -> Tensor<2> {
    assert_eq!(x.dims()[1], bias.dims()[0], "softplus: length of bias");
    apply(Softplus, [x.into(), bias.into()])
}

#[derive(Clone, Debug)]
struct Softplus;

impl Operator<2> for Softplus {
    /// `x + bias`.
    type Saved = Array;

    fn forward(&self, [mut x, bias]: [Array; 2]) -> (Array, Array) {
        let sizes @ [_, width] = x.sizes();
        let block = BLOCK * width.max(1);
        x.numbers_mut()
            .par_chunks_mut(block)
            .for_each(|x| kernels::add_bias(x, bias.numbers()));
        let mut out = x.numbers().to_vec();
        out.par_chunks_mut(block).for_each(kernels::softplus);
        (Array::new(out, sizes), x)
    }

    fn backward(&self, mut x: Array, g: Array, _: [bool; 2]) -> [Option<Array>; 2] {
        let width = x.sizes()[1];
        let block = BLOCK * width.max(1);
        let parts = x
            .numbers_mut()
            .par_chunks_mut(block)
            .zip(g.numbers().par_chunks(block))
            .map(|(x, g)| {
                kernels::sigmoid(x);
                x.iter_mut().zip(g).for_each(|(x, g)| *x *= g);
                let mut bias = vec![0.0; width];
                kernels::learn::add_columns(&mut bias, x);
                bias
            });
        let bias = sum(parts.collect(), width);
        [Some(x), Some(Array::new(bias, [width]))]
    }
}

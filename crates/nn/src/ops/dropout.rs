//! Dropout that draws its choice again in the backward pass.

use burn::tensor::Tensor;
use keyfold_kernels::learn::Dropout;
use rayon::prelude::*;

use super::operator::{Array, BLOCK, Operator, apply};

/// Sets each number of `x` `[rows, width]` to 0 with probability `rate` (at least 0, below 1)
/// and scales the others by `1 / (1 - rate)`; which ones follows from `seed`.
pub fn dropout(x: Tensor<2>, rate: f64, seed: u64) -> Tensor<2> {
    if rate == 0.0 {
        return x;
    }
    apply(Drop(Dropout::new(rate, seed)), [x.into()])
}

#[derive(Clone, Debug)]
struct Drop(Dropout);

impl Operator<1> for Drop {
    type Saved = ();

    fn forward(&self, [x]: [Array; 1]) -> (Array, ()) {
        (drop_rows(self.0, x), ())
    }

    fn backward(&self, (): (), g: Array, _: [bool; 1]) -> [Option<Array>; 1] {
        [Some(drop_rows(self.0, g))]
    }
}

/// Drops numbers of every row, in place where the numbers are not shared.
pub(super) fn drop_rows(dropout: Dropout, mut x: Array) -> Array {
    let width = x.sizes()[1].max(1);
    let blocks = x.numbers_mut().par_chunks_mut(BLOCK * width).enumerate();
    blocks.for_each(|(block, x)| {
        for (row, x) in x.chunks_exact_mut(width).enumerate() {
            dropout.apply((block * BLOCK + row) as u64, x);
        }
    });
    x
}

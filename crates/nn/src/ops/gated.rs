//! The gated unit of Llama's feed-forward layer.

use burn::tensor::Tensor;
use keyfold_kernels::{self as kernels, learn};
use rayon::prelude::*;

use super::operator::{Array, Operator, apply};

/// Numbers that one piece of work takes.
const PIECE: usize = 1 << 13;

/// `silu(gate) · up`, number by number, `[rows, width]`.
///
/// # Panics
/// When the shapes differ.
pub fn silu_mul(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    apply(SiluMul, [gate.into(), up.into()])
}

#[derive(Clone, Debug)]
struct SiluMul;

impl Operator<2> for SiluMul {
    type Saved = [Array; 2];

    fn forward(&self, [gate, up]: [Array; 2]) -> (Array, [Array; 2]) {
        let mut out = gate.numbers().to_vec();
        out.par_chunks_mut(PIECE)
            .zip(up.numbers().par_chunks(PIECE))
            .for_each(|(out, up)| kernels::silu_mul(out, up));
        (Array::new(out, gate.sizes()), [gate, up])
    }

    fn backward(
        &self,
        [mut gate, mut up]: [Array; 2],
        g: Array,
        _: [bool; 2],
    ) -> [Option<Array>; 2] {
        gate.numbers_mut()
            .par_chunks_mut(PIECE)
            .zip(up.numbers_mut().par_chunks_mut(PIECE))
            .zip(g.numbers().par_chunks(PIECE))
            .for_each(|((gate, up), g)| learn::silu_mul_backward(gate, up, g));
        [Some(gate), Some(up)]
    }
}

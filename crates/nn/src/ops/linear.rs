//! A linear layer, with gelu after it or not.

use burn::tensor::Tensor;
use keyfold_kernels::{self as kernels, Matrix, learn};
use rayon::prelude::*;

use super::operator::{Array, BLOCK, Operator, apply, sum, threads};

/// `x Wᵀ + b`: `x` is `[rows, inputs]`, `weight` `[outputs, inputs]`, `bias` `[outputs]`.
///
/// # Panics
/// When the shapes do not fit.
pub fn linear(x: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
    match bias {
        Some(bias) => apply(
            Linear { gelu: false },
            [x.into(), weight.into(), bias.into()],
        ),
        None => apply(Linear { gelu: false }, [x.into(), weight.into()]),
    }
}

/// `gelu(x Wᵀ + b)`, gelu as `x Φ(x)`; shapes as in [`linear`].
///
/// # Panics
/// When the shapes do not fit.
pub fn linear_gelu(x: Tensor<2>, weight: Tensor<2>, bias: Tensor<1>) -> Tensor<2> {
    apply(
        Linear { gelu: true },
        [x.into(), weight.into(), bias.into()],
    )
}

#[derive(Clone, Debug)]
struct Linear {
    gelu: bool,
}

#[derive(Clone, Debug)]
struct Saved {
    x: Array,
    weight: Array,
    /// What went into gelu.
    inner: Option<Array>,
}

impl Operator<2> for Linear {
    type Saved = Saved;

    fn forward(&self, [x, weight]: [Array; 2]) -> (Array, Saved) {
        let (rows, outputs) = (x.sizes()[0], weight.sizes()[0]);
        let out = product(&x, &weight);
        let saved = Saved {
            x,
            weight,
            inner: None,
        };
        (Array::new(out, [rows, outputs]), saved)
    }

    fn backward(&self, saved: Saved, g: Array, wanted: [bool; 2]) -> [Option<Array>; 2] {
        through(&saved, &g, wanted)
    }
}

impl Operator<3> for Linear {
    type Saved = Saved;

    fn forward(&self, [x, weight, bias]: [Array; 3]) -> (Array, Saved) {
        let (rows, outputs) = (x.sizes()[0], weight.sizes()[0]);
        let mut out = product(&x, &weight);
        let (bias, block) = (bias.numbers(), BLOCK * outputs.max(1));
        let mut inner = None;
        if self.gelu {
            let mut sums = out;
            out = vec![0.0; sums.len()];
            let blocks = sums.par_chunks_mut(block).zip(out.par_chunks_mut(block));
            blocks.for_each(|(sums, out)| learn::bias_gelu(sums, bias, out));
            inner = Some(Array::new(sums, [rows, outputs]));
        } else {
            out.par_chunks_mut(block)
                .for_each(|out| kernels::add_bias(out, bias));
        }
        let saved = Saved { x, weight, inner };
        (Array::new(out, [rows, outputs]), saved)
    }

    fn backward(&self, saved: Saved, mut g: Array, wanted: [bool; 3]) -> [Option<Array>; 3] {
        let outputs = saved.weight.sizes()[0];
        let block = BLOCK * outputs.max(1);
        if let Some(inner) = &saved.inner {
            let blocks = g.numbers_mut().par_chunks_mut(block);
            blocks
                .zip(inner.numbers().par_chunks(block))
                .for_each(|(g, inner)| learn::gelu_backward(inner, g));
        }
        let bias = wanted[2].then(|| {
            let sums = g.numbers().par_chunks(block).map(|g| {
                let mut sum = vec![0.0; outputs];
                learn::add_columns(&mut sum, g);
                sum
            });
            Array::new(sum(sums.collect(), outputs), [outputs])
        });
        let [x, weight] = through(&saved, &g, [wanted[0], wanted[1]]);
        [x, weight, bias]
    }
}

/// `x Wᵀ`.
fn product(x: &Array, weight: &Array) -> Vec<f32> {
    let ([rows, inputs], [outputs, _]) = (x.sizes(), weight.sizes());
    let mut out = vec![0.0; rows * outputs];
    kernels::matmul_nt(
        &mut out,
        x.numbers(),
        weight.numbers(),
        rows,
        outputs,
        inputs,
        threads(),
    );
    out
}

/// The gradients by `x` (`g W`) and `W` (`gᵀ x`).
fn through(saved: &Saved, g: &Array, wanted: [bool; 2]) -> [Option<Array>; 2] {
    let ([rows, inputs], [outputs, _]) = (saved.x.sizes(), saved.weight.sizes());
    let matrix = |numbers, rows, columns| Matrix::strided(numbers, rows, columns, columns);
    let g = matrix(g.numbers(), rows, outputs);
    let weight = matrix(saved.weight.numbers(), outputs, inputs);
    let x = matrix(saved.x.numbers(), rows, inputs);
    let product = |a, b, rows: usize| {
        let mut out = vec![0.0; rows * inputs];
        kernels::product(&mut out, inputs, a, b, 1.0, false, threads());
        Array::new(out, [rows, inputs])
    };
    [
        wanted[0].then(|| product(g, weight, rows)),
        wanted[1].then(|| product(g.t(), x, outputs)),
    ]
}

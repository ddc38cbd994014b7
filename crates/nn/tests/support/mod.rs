//! What the tests of operators share.
#![allow(dead_code)]

use burn::tensor::{Device, Tensor, TensorData};
use keyfold_nn::checkpoint::numbers;
use keyfold_nn::random;
use proptest::prelude::*;

pub(crate) fn device() -> Device {
    Device::flex().autodiff()
}

/// Random numbers that require a gradient.
pub(crate) fn tensor<const D: usize>(seed: u64, shape: [usize; D]) -> Tensor<D> {
    let data = random::normal(seed, shape.iter().product(), 1.0);
    Tensor::from_data(TensorData::new(data, shape), &device()).require_grad()
}

/// The results of both functions and the gradients of a weighted sum of them by every
/// input must agree.
pub(crate) fn agree<const N: usize, const D: usize>(
    inputs: [Tensor<2>; N],
    ours: impl Fn([Tensor<2>; N]) -> Tensor<D>,
    theirs: impl Fn([Tensor<2>; N]) -> Tensor<D>,
) -> Result<(), TestCaseError> {
    let run = |f: &dyn Fn([Tensor<2>; N]) -> Tensor<D>| {
        let inputs = inputs.clone().map(|x| x.detach().require_grad());
        let out = f(inputs.clone());
        let factors = tensor(99, out.dims()).detach();
        let gradients = (out.clone() * factors).sum().backward();
        let mut all = vec![numbers(&out)];
        all.extend(inputs.iter().map(|x| {
            let gradient = x.grad(&gradients);
            gradient.map_or(vec![0.0; numbers(x).len()], |g| numbers(&g))
        }));
        all
    };
    let (ours, theirs) = (run(&ours), run(&theirs));
    for (which, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        prop_assert_eq!(ours.len(), theirs.len());
        let largest = theirs.iter().fold(1.0f32, |m, x| m.max(x.abs()));
        for (i, (a, b)) in ours.iter().zip(theirs).enumerate() {
            prop_assert!((a - b).abs() < 2e-5 * largest, "{which}[{i}]: {a} {b}");
        }
    }
    Ok(())
}

pub(crate) fn row(x: Tensor<2>) -> Tensor<1> {
    x.squeeze_dim(0)
}

/// First rows of texts with these lengths, and at the end the number of rows.
pub(crate) fn starts(lengths: &[usize]) -> Vec<usize> {
    let mut starts = vec![0];
    starts.extend(lengths.iter().scan(0, |sum, len| {
        *sum += len;
        Some(*sum)
    }));
    starts
}

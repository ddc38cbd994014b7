//! The optimiser AdamW in one pass over each weight.
//!
//! The framework's own makes a dozen passes over memory; where a model has many weights (a
//! table of words) that is a large share of a step. State and records are the framework's,
//! so a checkpoint of either is one of the other.

use burn::optim::{AdamWState, AdaptiveMomentumState, LearningRate, ModuleOptimizer, Optimizer};
use burn::tensor::{Device, Tensor};
use keyfold_kernels::learn::{self, AdamStep};
use rayon::prelude::*;

use crate::ops::operator::Array;

/// Numbers that one piece of work takes.
const PIECE: usize = 1 << 14;

/// AdamW (Loshchilov and Hutter: Decoupled Weight Decay Regularization, 2019):
/// `m ← β₁ m + (1 - β₁) g`, `v ← β₂ v + (1 - β₂) g²`,
/// `w ← (1 - rate · decay) w - rate · m̂ / (√v̂ + ε)`, with the moments corrected for their
/// beginning at 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Decay of the mean of gradients.
    pub beta_1: f32,
    /// Decay of the mean of their squares.
    pub beta_2: f32,
    /// Added to the root of that mean.
    pub epsilon: f32,
    /// What of a weight is taken away per step, times the learning rate.
    pub weight_decay: f32,
}

impl Default for AdamW {
    /// As PyTorch's.
    fn default() -> Self {
        Self {
            beta_1: 0.9,
            beta_2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.01,
        }
    }
}

impl AdamW {
    /// The optimiser of a whole module.
    pub fn init(self) -> ModuleOptimizer {
        ModuleOptimizer::from(self)
    }
}

impl Optimizer for AdamW {
    type State<const D: usize> = AdamWState<D>;

    fn step<const D: usize>(
        &self,
        rate: LearningRate,
        weights: Tensor<D>,
        gradient: Tensor<D>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<D>, Option<Self::State<D>>) {
        let momentum = state.map_or_else(
            || AdaptiveMomentumState {
                time: 0,
                moment_1: gradient.zeros_like(),
                moment_2: gradient.zeros_like(),
                max_moment_2: None,
            },
            |state| state.momentum,
        );
        let time = momentum.time + 1;
        let step = AdamStep {
            rate: rate as f32,
            beta_1: self.beta_1,
            beta_2: self.beta_2,
            epsilon: self.epsilon,
            weight_decay: self.weight_decay,
            number: u32::try_from(time).unwrap_or(u32::MAX),
        };
        let gradient = Array::plain(gradient);
        let [mut w, mut first, mut second] =
            [weights, momentum.moment_1, momentum.moment_2].map(Array::plain);
        w.numbers_mut()
            .par_chunks_mut(PIECE)
            .zip(gradient.numbers().par_chunks(PIECE))
            .zip(first.numbers_mut().par_chunks_mut(PIECE))
            .zip(second.numbers_mut().par_chunks_mut(PIECE))
            .for_each(|(((w, g), first), second)| learn::adamw(w, g, first, second, step));
        let [weights, moment_1, moment_2] = [w, first, second].map(Array::into_tensor);
        let momentum = AdaptiveMomentumState {
            time,
            moment_1,
            moment_2,
            max_moment_2: None,
        };
        (weights, Some(AdamWState { momentum }))
    }

    fn to_device<const D: usize>(mut state: Self::State<D>, device: &Device) -> Self::State<D> {
        state.momentum = state.momentum.to_device(device);
        state
    }
}

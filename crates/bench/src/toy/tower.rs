//! From a text to its rows and back.

use keyfold_core::Role;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{FEATURES, Groups, Text, parts};

/// Turns a text into rows, and gradients by rows into gradients by parameters.
pub(crate) trait Tower: Sync {
    /// What the backward pass needs of the forward pass.
    type Tape: Send + Sync;

    /// Length of a row.
    fn dim(&self) -> usize;

    /// The rows of a text, `[rows, dim]`.
    fn forward(&self, text: &Text, role: Role) -> (Vec<f32>, Self::Tape);

    /// Gradient of the loss by all parameters, given that by the rows of one text.
    /// A penalty on what happens inside (a gate that should close) adds its own part.
    fn backward(&self, text: &Text, tape: &Self::Tape, grad: Vec<f32>) -> Vec<f32>;

    /// All that is trained.
    fn parameters(&mut self) -> &mut [f32];
}

/// Says which rows (`[n, dim]`, of length one) of a text become one. No gradient
/// goes through the choice.
pub(crate) type Reduce = dyn Fn(&[f32], usize, Role) -> Groups + Sync;

/// `normalise(features · W)`, one row for each token, or the mean of each group of
/// tokens (which is not scaled again: its length says how sure it is).
#[derive(Clone)]
pub(crate) struct TokenTower<'a> {
    dim: usize,
    /// `[FEATURES, dim]`.
    weights: Vec<f32>,
    reduce: Option<&'a Reduce>,
}

/// What [`TokenTower`] remembers of a text.
pub(crate) struct TokenTape {
    unit: Vec<f32>,
    norms: Vec<f32>,
    groups: Option<Groups>,
}

impl<'a> TokenTower<'a> {
    /// Random weights.
    pub(crate) fn new(dim: usize, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let width = (3.0 / FEATURES as f32).sqrt();
        let weight = |_| rng.random_range(-width..width);
        Self {
            dim,
            weights: (0..FEATURES * dim).map(weight).collect(),
            reduce: None,
        }
    }

    /// The same weights with another reduction of the rows.
    pub(crate) fn with(&self, reduce: Option<&'a Reduce>) -> Self {
        Self {
            reduce,
            ..self.clone()
        }
    }
}

impl Tower for TokenTower<'_> {
    type Tape = TokenTape;

    fn dim(&self) -> usize {
        self.dim
    }

    fn forward(&self, text: &Text, role: Role) -> (Vec<f32>, TokenTape) {
        let mut unit = parts::linear(&text.features, &self.weights, FEATURES, self.dim);
        let norms = parts::normalize(&mut unit, self.dim);
        let groups = self.reduce.map(|reduce| reduce(&unit, self.dim, role));
        let rows = match &groups {
            Some(groups) => groups.means(&unit, self.dim),
            None => unit.clone(),
        };
        let tape = TokenTape {
            unit,
            norms,
            groups,
        };
        (rows, tape)
    }

    fn backward(&self, text: &Text, tape: &TokenTape, grad: Vec<f32>) -> Vec<f32> {
        let mut grad = match &tape.groups {
            Some(groups) => groups.means_backward(&grad, tape.norms.len(), self.dim),
            None => grad,
        };
        parts::normalize_backward(&mut grad, &tape.unit, &tape.norms, self.dim);
        parts::linear_backward(&text.features, &grad, FEATURES, self.dim)
    }

    fn parameters(&mut self) -> &mut [f32] {
        &mut self.weights
    }
}

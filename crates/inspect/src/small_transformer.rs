//! A small causal transformer with a gradient of its own, for models that are trained to be
//! looked into.
//!
//! For whom: the laboratories of this crate. Models of a few layers and some ten numbers of
//! width, trained in minutes on one machine; every hidden state and head can be read and
//! replaced. Without a tensor framework, since a few products of small matrices are all there is.
//!
//! A block, as the authors of the in-context studies have it (Akyürek et al. 2023), with the
//! residual stream itself normalised:
//!
//! `a = LN(x)`, `a ← a + Attn(a)`, `b = LN(a)`, `out = b + MLP(b)`
//!
//! Without norms: `a = x + Attn(x)`, `out = a + MLP(a)`; without an MLP: `out = a`. `Attn` has
//! biases on queries, keys, values and output, and scores are divided by `√head_dim`; the MLP
//! has the tanh form of gelu. Shapes: states `[sequences · length, width]`. Cost of a step: six
//! times the weights, for each token.

mod attention;
mod block;

use std::ops::Range;

use keyfold_core::Progress;
use keyfold_kernels::learn::{AdamStep, adamw};
use rand::Rng;
use rand::rngs::StdRng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::InspectError;
use block::Block;
pub(crate) use block::{BlockTrace, Linear};

/// Sizes of the blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BlockConfig {
    /// Numbers of a state.
    pub width: usize,
    /// Heads of a layer.
    pub heads: usize,
    /// Numbers of a head.
    pub head_dim: usize,
    /// Numbers inside the MLP; 0 for none.
    pub mlp: usize,
    /// Whether states are normalised.
    pub norm: bool,
    /// Number of blocks.
    pub layers: usize,
}

impl BlockConfig {
    pub(crate) fn check(&self) -> Result<(), InspectError> {
        match self.width * self.heads * self.head_dim * self.layers {
            0 => Err(InspectError::settings(
                "a transformer needs width, heads, head_dim and layers above 0",
            )),
            _ => Ok(()),
        }
    }

    fn inner(&self) -> usize {
        self.heads * self.head_dim
    }
}

/// Where numbers lie among all weights of a model.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Layout {
    len: usize,
}

impl Layout {
    /// The next `count` numbers.
    pub(crate) fn take(&mut self, count: usize) -> Range<usize> {
        self.len += count;
        self.len - count..self.len
    }

    /// All numbers so far, 0.
    pub(crate) fn zeros(self) -> Vec<f32> {
        vec![0.0; self.len]
    }
}

/// Numbers drawn evenly from `±1/√fan_in`.
pub(crate) fn draw(rng: &mut StdRng, fan_in: usize, out: &mut [f32]) {
    let bound = 1.0 / (fan_in.max(1) as f32).sqrt();
    out.iter_mut()
        .for_each(|x| *x = rng.random_range(-bound..bound));
}

/// What is done to the heads' outputs `[tokens, heads · head_dim]` of a layer.
pub(crate) type Edit<'a> = &'a mut dyn FnMut(usize, &mut [f32]);

/// Blocks one after the other; the weights lie with the model.
#[derive(Debug, Clone)]
pub(crate) struct Blocks {
    pub(crate) config: BlockConfig,
    blocks: Vec<Block>,
}

/// What a forward pass keeps for its gradient.
pub(crate) struct Trace {
    pub(crate) blocks: Vec<BlockTrace>,
    /// States after the last block.
    pub(crate) out: Vec<f32>,
}

impl Blocks {
    pub(crate) fn new(config: BlockConfig, layout: &mut Layout) -> Self {
        let blocks = (0..config.layers).map(|_| Block::new(&config, layout));
        Self {
            config,
            blocks: blocks.collect(),
        }
    }

    /// Draws all weights: matrices by their inputs, biases by their own length, norms 1 and 0.
    pub(crate) fn init(&self, weights: &mut [f32], rng: &mut StdRng) {
        self.blocks
            .iter()
            .for_each(|b| b.init(&self.config, weights, rng));
    }

    /// Sends states of sequences of `length` tokens through all blocks.
    pub(crate) fn forward(
        &self,
        weights: &[f32],
        x: Vec<f32>,
        length: usize,
        mut edit: Option<Edit>,
    ) -> Trace {
        let mut trace = Trace {
            blocks: Vec::with_capacity(self.blocks.len()),
            out: x,
        };
        for (layer, block) in self.blocks.iter().enumerate() {
            let x = std::mem::take(&mut trace.out);
            let mut at_layer = edit
                .as_deref_mut()
                .map(|edit| move |z: &mut [f32]| edit(layer, z));
            let at_layer = at_layer.as_mut().map(|f| f as &mut dyn FnMut(&mut [f32]));
            let (kept, out) = block.forward(&self.config, weights, x, length, at_layer);
            trace.blocks.push(kept);
            trace.out = out;
        }
        trace
    }

    /// The gradient of the states before the first block, from that after the last; adds those of
    /// the weights to `gradient`.
    pub(crate) fn backward(
        &self,
        weights: &[f32],
        trace: &Trace,
        mut d: Vec<f32>,
        length: usize,
        gradient: &mut [f32],
    ) -> Vec<f32> {
        for (block, kept) in self.blocks.iter().zip(&trace.blocks).rev() {
            d = block.backward(&self.config, weights, kept, d, length, gradient);
        }
        d
    }

    /// The gradient of the outputs of the heads of a layer, from that of the states after the last
    /// block; `gradient` has room for those of the weights on the way.
    pub(crate) fn backward_to_heads(
        &self,
        weights: &[f32],
        trace: &Trace,
        mut d: Vec<f32>,
        (layer, length): (usize, usize),
        gradient: &mut [f32],
    ) -> Vec<f32> {
        for (block, kept) in self.blocks[layer + 1..]
            .iter()
            .zip(&trace.blocks[layer + 1..])
            .rev()
        {
            d = block.backward(&self.config, weights, kept, d, length, gradient);
        }
        let at = (&self.blocks[layer], &trace.blocks[layer]);
        at.0.backward_to_heads(weights, at.1, d, gradient).1
    }

    /// Queries with keys and values, output, and the two layers of the MLP.
    pub(crate) fn parts(
        &self,
        layer: usize,
    ) -> (&Linear, &Linear, Option<&Linear>, Option<&Linear>) {
        self.blocks[layer].parts()
    }
}

/// Loss and gradient of all items, by `gradient` of parts that are made side by side; they are
/// added up in their order, so that the number of threads changes no bit.
pub(crate) fn by_parts<T: Sync>(
    items: &[T],
    part: usize,
    gradient: impl Fn(&[T]) -> (f64, Vec<f32>) + Sync + Send,
) -> (f64, Vec<f32>) {
    let parts: Vec<(f64, Vec<f32>)> = items.par_chunks(part).map(gradient).collect();
    let mut parts = parts.into_iter();
    let (mut loss, mut sum) = parts.next().unwrap_or_default();
    for (more, gradient) in parts {
        loss += more;
        keyfold_kernels::add_assign(&mut sum, &gradient);
    }
    (loss, sum)
}

/// Adam with the constants of the in-context studies.
#[derive(Debug, Clone)]
pub(crate) struct Adam {
    /// Means of gradients, and of their squares.
    pub(crate) first: Vec<f32>,
    pub(crate) second: Vec<f32>,
    /// Steps so far.
    pub(crate) number: u32,
    betas: (f32, f32),
    epsilon: f32,
}

impl Adam {
    pub(crate) fn new(count: usize, betas: (f32, f32), epsilon: f32) -> Self {
        Self {
            first: vec![0.0; count],
            second: vec![0.0; count],
            number: 0,
            betas,
            epsilon,
        }
    }

    pub(crate) fn step(&mut self, weights: &mut [f32], gradient: &[f32], rate: f64) {
        self.number += 1;
        let step = AdamStep {
            rate: rate as f32,
            beta_1: self.betas.0,
            beta_2: self.betas.1,
            epsilon: self.epsilon,
            weight_decay: 0.0,
            number: self.number,
        };
        adamw(weights, gradient, &mut self.first, &mut self.second, step);
    }
}

/// Makes steps, each of which gives its loss; gives the mean loss of each hundredth of them, which
/// is told as `what`.
///
/// # Errors
/// When a step fails, or the user asked to stop.
pub(crate) fn train_steps(
    name: &str,
    what: &str,
    steps: usize,
    progress: &dyn Progress,
    mut step: impl FnMut(usize) -> Result<f64, InspectError>,
) -> Result<Vec<f64>, InspectError> {
    let every = (steps / 100).max(1);
    let (mut curve, mut sum) = (Vec::new(), 0.0);
    progress.start(name, "steps", Some(steps as u64));
    for number in 0..steps {
        if progress.cancelled() {
            return Err(InspectError::Cancelled);
        }
        sum += step(number)?;
        if (number + 1) % every == 0 {
            curve.push(sum / every as f64);
            progress.status(&format!("{what} {:.4}", sum / every as f64));
            sum = 0.0;
        }
        progress.advance(1);
    }
    progress.finish();
    Ok(curve)
}

/// Linear up to a fifth of the steps, then half a cosine down to 0.
pub(crate) fn warm_cosine(step: usize, steps: usize, rate: f64) -> f64 {
    let warm = (steps / 5).max(1);
    if step < warm {
        return rate * (step + 1) as f64 / warm as f64;
    }
    let done = (step - warm) as f64 / (steps - warm).max(1) as f64;
    rate * 0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos())
}

#[cfg(test)]
pub(crate) mod tests;

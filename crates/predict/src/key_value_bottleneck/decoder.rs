//! Decoders with weights: scores from all values that a row has looked up, side by side.
//!
//! A linear probe or a network with one hidden layer (128, ReLU). They learn together with the
//! values of the first rows, and stay from then on: later rows move values alone, so that what was
//! learned is read as it was. A class that comes later gets weights that are drawn.

use keyfold_kernels as kernels;
use keyfold_kernels::learn::{AdamStep, adamw};
use rand::Rng;
use rand::rngs::SmallRng;

use super::Decoder;
use crate::tensors::Tensors;

/// A layer `y = W x + b`, `W [outputs, inputs]`.
#[derive(Debug, Clone, PartialEq)]
struct Layer {
    inputs: usize,
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Layer {
    fn new(inputs: usize) -> Self {
        Self {
            inputs,
            weight: Vec::new(),
            bias: Vec::new(),
        }
    }

    /// More outputs, drawn evenly from `±1/√inputs`.
    fn grow(&mut self, outputs: usize, rng: &mut SmallRng) {
        let bound = 1.0 / (self.inputs as f32).sqrt();
        let mut draw = || rng.random_range(-bound..bound);
        self.weight
            .resize_with(outputs.max(self.bias.len()) * self.inputs, &mut draw);
        self.bias.resize_with(outputs.max(self.bias.len()), draw);
    }

    fn remove(&mut self, output: usize) {
        self.weight
            .drain(output * self.inputs..(output + 1) * self.inputs);
        self.bias.remove(output);
    }

    fn forward(&self, x: &[f32]) -> Vec<f32> {
        let rows = self.weight.chunks_exact(self.inputs).zip(&self.bias);
        rows.map(|(w, b)| kernels::dot(w, x) + b).collect()
    }

    /// The gradient of `x`.
    fn backward(&self, d: &[f32]) -> Vec<f32> {
        let mut dx = vec![0.0; self.inputs];
        let rows = self.weight.chunks_exact(self.inputs).zip(d);
        rows.for_each(|(w, d)| kernels::axpy(&mut dx, *d, w));
        dx
    }
}

/// A decoder with weights.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Network {
    /// One for a probe, two with a hidden layer between.
    layers: Vec<Layer>,
    /// Whether the first rows were learned.
    pub(super) frozen: bool,
}

/// What a row makes of a network.
pub(super) struct Passed {
    hidden: Vec<f32>,
    pub(super) scores: Vec<f32>,
}

/// Adam's averages, and gradients, of all weights.
#[derive(Debug, Clone, Default)]
pub(super) struct Training {
    first: Vec<f32>,
    second: Vec<f32>,
    gradient: Vec<f32>,
    steps: u32,
}

impl Network {
    /// None for a decoder without weights.
    pub(super) fn new(
        decoder: Decoder,
        inputs: usize,
        hidden: usize,
        rng: &mut SmallRng,
    ) -> Option<Box<Self>> {
        let layers = match decoder {
            Decoder::CodebookVotingLogits => return None,
            Decoder::LinearProbe => vec![Layer::new(inputs)],
            Decoder::Mlp => {
                let mut first = Layer::new(inputs);
                first.grow(hidden, rng);
                vec![first, Layer::new(hidden)]
            }
        };
        Some(Box::new(Self {
            layers,
            frozen: false,
        }))
    }

    fn last(&mut self) -> Option<&mut Layer> {
        self.layers.last_mut()
    }

    pub(super) fn grow(&mut self, classes: usize, rng: &mut SmallRng) {
        if let Some(last) = self.last() {
            last.grow(classes, rng);
        }
    }

    pub(super) fn remove(&mut self, class: usize) {
        if let Some(last) = self.last() {
            last.remove(class);
        }
    }

    pub(super) fn forward(&self, values: &[f32]) -> Passed {
        let first = self.layers[0].forward(values);
        match self.layers.get(1) {
            None => Passed {
                hidden: Vec::new(),
                scores: first,
            },
            Some(second) => {
                let hidden: Vec<f32> = first.into_iter().map(|x| x.max(0.0)).collect();
                Passed {
                    scores: second.forward(&hidden),
                    hidden,
                }
            }
        }
    }

    /// The gradients of the values and, with a second layer, of the hidden numbers.
    pub(super) fn backward(&self, passed: &Passed, d: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let Some(second) = self.layers.get(1) else {
            return (self.layers[0].backward(d), Vec::new());
        };
        let mut inner = second.backward(d);
        let closed = inner.iter_mut().zip(&passed.hidden);
        closed
            .filter(|(_, h)| **h <= 0.0)
            .for_each(|(d, _)| *d = 0.0);
        (self.layers[0].backward(&inner), inner)
    }

    /// Adds what a row asks of the weights; `d` and `inner` are the gradients of scores and hidden
    /// numbers.
    pub(super) fn collect(
        &self,
        training: &mut Training,
        values: &[f32],
        (passed, d, inner): (&Passed, &[f32], &[f32]),
        factor: f32,
    ) {
        let count = self.layers.iter().map(|l| l.weight.len() + l.bias.len());
        training.gradient.resize(count.sum(), 0.0);
        let mut at = 0;
        for (i, layer) in self.layers.iter().enumerate() {
            let (x, d) = match (i, self.layers.len()) {
                (0, 2) => (values, inner),
                (1, _) => (&passed.hidden[..], d),
                _ => (values, d),
            };
            let (weight, bias) = training.gradient[at..].split_at_mut(layer.weight.len());
            for (row, d) in weight.chunks_exact_mut(layer.inputs).zip(d) {
                kernels::axpy(row, factor * d, x);
            }
            bias.iter_mut().zip(d).for_each(|(b, d)| *b += factor * d);
            at += layer.weight.len() + layer.bias.len();
        }
    }

    /// A step of Adam along what was collected, which is then gone.
    pub(super) fn step(&mut self, training: &mut Training, rate: f32) {
        let count = training.gradient.len();
        training.first.resize(count, 0.0);
        training.second.resize(count, 0.0);
        training.steps += 1;
        let step = AdamStep {
            rate,
            beta_1: 0.9,
            beta_2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            number: training.steps,
        };
        let mut at = 0;
        for layer in &mut self.layers {
            for part in [&mut layer.weight, &mut layer.bias] {
                let range = at..at + part.len();
                let first = &mut training.first[range.clone()];
                let second = &mut training.second[range.clone()];
                at = range.end;
                adamw(part, &training.gradient[range], first, second, step);
            }
        }
        training.gradient.fill(0.0);
    }

    /// Under the names of a `torch.nn.Sequential`.
    pub(super) fn save(&self, tensors: &mut Tensors) {
        for (i, layer) in self.layers.iter().enumerate() {
            let name = |part: &str| format!("decoder.{}.{part}", 2 * i);
            let shape = [layer.bias.len(), layer.inputs];
            tensors.put(&name("weight"), &shape, layer.weight.clone());
            tensors.put(&name("bias"), &shape[..1], layer.bias.clone());
        }
    }

    /// Reads what [`save`](Self::save) wrote into a network without classes.
    pub(super) fn load(&mut self, classes: usize, tensors: &mut Tensors) -> Result<(), String> {
        let count = self.layers.len();
        for (i, layer) in self.layers.iter_mut().enumerate() {
            let outputs = if i + 1 == count {
                classes
            } else {
                layer.bias.len()
            };
            let name = |part: &str| format!("decoder.{}.{part}", 2 * i);
            layer.weight = tensors.shaped(&name("weight"), &[outputs, layer.inputs])?;
            layer.bias = tensors.shaped(&name("bias"), &[outputs])?;
        }
        self.frozen = true;
        Ok(())
    }
}

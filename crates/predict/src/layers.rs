//! Linear layers one after the other, with hand-written gradients.

use keyfold_kernels::learn::{AdamStep, adamw, add_columns};
use keyfold_kernels::{Matrix, product};
use rand::Rng;
use rand::rngs::SmallRng;

use crate::tensors::Tensors;

/// `x Wᵀ + b`, with or without a ReLU after it.
#[derive(Debug, Clone, PartialEq)]
struct Layer {
    /// `[width, inputs]`.
    weight: Vec<f32>,
    bias: Vec<f32>,
    inputs: usize,
    relu: bool,
}

/// What a layer is: numbers that it gives and takes, and whether a ReLU follows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) width: usize,
    pub(crate) inputs: usize,
    pub(crate) relu: bool,
}

/// All layers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Layers {
    layers: Vec<Layer>,
}

/// What layers took in and gave out, for some rows: the rows, then the output of each layer.
pub(crate) struct Pass {
    pub(crate) values: Vec<Vec<f32>>,
}

impl Pass {
    /// What the last layer gave, `[rows, width]`.
    pub(crate) fn told(&self) -> &[f32] {
        self.values.last().map_or(&[], Vec::as_slice)
    }
}

/// Gradients of one layer.
pub(crate) struct Gradient {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

fn threads() -> usize {
    rayon::current_num_threads()
}

/// Evenly from `±1/√inputs`, as PyTorch draws.
fn draw(inputs: usize, rng: &mut SmallRng) -> f32 {
    let most = 1.0 / (inputs as f32).sqrt();
    rng.random_range(-most..most)
}

impl Layers {
    pub(crate) fn random(shapes: &[Shape], rng: &mut SmallRng) -> Self {
        let layer = |shape: &Shape| Layer {
            weight: (0..shape.width * shape.inputs)
                .map(|_| draw(shape.inputs, rng))
                .collect(),
            bias: (0..shape.width).map(|_| draw(shape.inputs, rng)).collect(),
            inputs: shape.inputs,
            relu: shape.relu,
        };
        Self {
            layers: shapes.iter().map(layer).collect(),
        }
    }

    /// Numbers of a row.
    pub(crate) fn columns(&self) -> usize {
        self.layers[0].inputs
    }

    /// More outputs of the last layer, which are drawn; those that are there stay.
    pub(crate) fn grow(&mut self, width: usize, rng: &mut SmallRng) {
        if let Some(last) = self.layers.last_mut() {
            let inputs = last.inputs;
            let width = width.max(last.bias.len());
            last.weight
                .resize_with(width * inputs, || draw(inputs, rng));
            last.bias.resize_with(width, || draw(inputs, rng));
        }
    }

    /// Takes an output of the last layer out.
    pub(crate) fn remove(&mut self, output: usize) {
        if let Some(last) = self.layers.last_mut() {
            let range = output * last.inputs..(output + 1) * last.inputs;
            last.weight.drain(range);
            last.bias.remove(output);
        }
    }

    pub(crate) fn forward(&self, rows: &[f32]) -> Pass {
        let n = rows.len() / self.columns();
        let mut values = vec![rows.to_vec()];
        for layer in &self.layers {
            let width = layer.bias.len();
            let input = Matrix::new(&values[values.len() - 1], layer.inputs);
            let weight = Matrix::new(&layer.weight, layer.inputs);
            let mut out = vec![0.0; n * width];
            product(&mut out, width, input, weight.t(), 1.0, false, threads());
            keyfold_kernels::add_bias(&mut out, &layer.bias);
            if layer.relu {
                keyfold_kernels::relu(&mut out);
            }
            values.push(out);
        }
        Pass { values }
    }

    /// Gradients of all layers, from those along what is told and along the output of layer `at`.
    pub(crate) fn backward(
        &self,
        pass: &Pass,
        told: &[f32],
        between: Option<(usize, &[f32])>,
    ) -> Vec<Gradient> {
        let mut all = Vec::with_capacity(self.layers.len());
        let mut pulled = told.to_vec();
        for at in (0..self.layers.len()).rev() {
            if let Some((_, more)) = between.filter(|(place, _)| *place == at) {
                keyfold_kernels::add_assign(&mut pulled, more);
            }
            let layer = &self.layers[at];
            layer.mask(&pass.values[at + 1], &mut pulled);
            let width = layer.bias.len();
            let gradient = Matrix::new(&pulled, width);
            let input = Matrix::new(&pass.values[at], layer.inputs);
            let mut weight = vec![0.0; layer.weight.len()];
            let (inputs, threads) = (layer.inputs, threads());
            product(
                &mut weight,
                inputs,
                gradient.t(),
                input,
                1.0,
                false,
                threads,
            );
            let mut bias = vec![0.0; width];
            add_columns(&mut bias, &pulled);
            all.push(Gradient { weight, bias });
            if at > 0 {
                pulled = layer.pull(&pulled);
            }
        }
        all.reverse();
        all
    }

    /// The gradient along the rows, `[rows, columns]`, from that along what is told.
    pub(crate) fn pull_to_rows(&self, pass: &Pass, told: &[f32]) -> Vec<f32> {
        let mut pulled = told.to_vec();
        for (layer, out) in self.layers.iter().zip(&pass.values[1..]).rev() {
            layer.mask(out, &mut pulled);
            pulled = layer.pull(&pulled);
        }
        pulled
    }

    /// Under `NAME.weight` and `NAME.bias`, a name for each layer.
    pub(crate) fn save(&self, names: &[&str], tensors: &mut Tensors) {
        for (layer, name) in self.layers.iter().zip(names) {
            let width = layer.bias.len();
            let shape = [width, layer.inputs];
            tensors.put(&format!("{name}.weight"), &shape, layer.weight.clone());
            tensors.put(&format!("{name}.bias"), &[width], layer.bias.clone());
        }
    }

    pub(crate) fn load(
        shapes: &[Shape],
        names: &[&str],
        tensors: &mut Tensors,
    ) -> Result<Self, String> {
        let mut layers = Vec::new();
        for (shape, name) in shapes.iter().zip(names) {
            layers.push(Layer {
                weight: tensors.shaped(&format!("{name}.weight"), &[shape.width, shape.inputs])?,
                bias: tensors.shaped(&format!("{name}.bias"), &[shape.width])?,
                inputs: shape.inputs,
                relu: shape.relu,
            });
        }
        Ok(Self { layers })
    }
}

impl Layer {
    /// No gradient goes through a ReLU that gave 0.
    fn mask(&self, out: &[f32], pulled: &mut [f32]) {
        if self.relu {
            let pairs = pulled.iter_mut().zip(out);
            pairs
                .filter(|(_, o)| **o <= 0.0)
                .for_each(|(p, _)| *p = 0.0);
        }
    }

    /// The gradient along the inputs.
    fn pull(&self, pulled: &[f32]) -> Vec<f32> {
        let width = self.bias.len();
        let mut out = vec![0.0; pulled.len() / width * self.inputs];
        let (d, weight) = (
            Matrix::new(pulled, width),
            Matrix::new(&self.weight, self.inputs),
        );
        product(&mut out, self.inputs, d, weight, 1.0, false, threads());
        out
    }
}

/// Adam over all layers.
pub(crate) struct Optimiser {
    moments: Vec<[Vec<f32>; 4]>,
    steps: u32,
}

impl Optimiser {
    pub(crate) fn new(network: &Layers) -> Self {
        let of = |layer: &Layer| {
            let (w, b) = (layer.weight.len(), layer.bias.len());
            [vec![0.0; w], vec![0.0; w], vec![0.0; b], vec![0.0; b]]
        };
        Self {
            moments: network.layers.iter().map(of).collect(),
            steps: 0,
        }
    }

    pub(crate) fn step(&mut self, network: &mut Layers, gradients: &[Gradient], rate: f32) {
        self.steps += 1;
        let step = AdamStep {
            rate,
            beta_1: 0.9,
            beta_2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            number: self.steps,
        };
        let all = network.layers.iter_mut().zip(gradients);
        for ((layer, gradient), [w1, w2, b1, b2]) in all.zip(&mut self.moments) {
            adamw(&mut layer.weight, &gradient.weight, w1, w2, step);
            adamw(&mut layer.bias, &gradient.bias, b1, b2, step);
        }
    }
}

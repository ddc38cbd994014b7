//! The small network: six linear layers with hand-written gradients.

use keyfold_kernels::learn::{AdamStep, adamw, add_columns};
use keyfold_kernels::{Matrix, product};
use rand::Rng;
use rand::rngs::SmallRng;

use crate::tensors::Tensors;

/// Names of the layers in the authors' state dict, and whether a ReLU follows.
const LAYERS: [(&str, bool); 6] = [
    ("encoder.f_theta.0", true),
    ("encoder.f_theta.2", true),
    ("encoder.f_theta.4", false),
    ("enc_mean", false),
    ("decoder.g_theta.0", true),
    ("decoder.g_theta.2", false),
];

/// The layer whose output is the code.
const CODE: usize = 3;

/// `x Wᵀ + b`, with or without a ReLU after it.
#[derive(Debug, Clone, PartialEq)]
struct Layer {
    /// `[width, inputs]`.
    weight: Vec<f32>,
    bias: Vec<f32>,
    inputs: usize,
    relu: bool,
}

/// All layers.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Network {
    layers: Vec<Layer>,
}

/// What layers took in and gave out, for some rows.
pub(super) struct Pass {
    /// The rows, then the output of each layer.
    values: Vec<Vec<f32>>,
}

impl Pass {
    /// The codes, `[rows, code]`.
    pub(super) fn code(&self) -> &[f32] {
        &self.values[CODE + 1]
    }

    /// What is told, one number for each row.
    pub(super) fn told(&self) -> &[f32] {
        &self.values[LAYERS.len()]
    }
}

/// Gradients of one layer.
pub(super) struct Gradient {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

fn shapes((columns, hidden, code): (usize, usize, usize)) -> [(usize, usize); 6] {
    [
        (hidden, columns),
        (hidden, hidden),
        (code, hidden),
        (code, code),
        (hidden, code),
        (1, hidden),
    ]
}

fn threads() -> usize {
    rayon::current_num_threads()
}

impl Network {
    /// Weights as PyTorch draws them: uniform, as wide as the root of the inputs is long.
    pub(super) fn random(widths: (usize, usize, usize), rng: &mut SmallRng) -> Self {
        let layer = |((width, inputs), relu): ((usize, usize), bool), rng: &mut SmallRng| {
            let most = 1.0 / (inputs as f32).sqrt();
            let mut draw =
                |n: usize| -> Vec<f32> { (0..n).map(|_| rng.random_range(-most..most)).collect() };
            Layer {
                weight: draw(width * inputs),
                bias: draw(width),
                inputs,
                relu,
            }
        };
        let all = shapes(widths).into_iter().zip(LAYERS.map(|(_, relu)| relu));
        Self {
            layers: all.map(|shape| layer(shape, rng)).collect(),
        }
    }

    pub(super) fn columns(&self) -> usize {
        self.layers[0].inputs
    }

    pub(super) fn forward(&self, rows: &[f32]) -> Pass {
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

    /// Gradients of all layers, from those along what is told and along the codes.
    pub(super) fn backward(
        &self,
        pass: &Pass,
        told: &[f32],
        code: Option<&[f32]>,
    ) -> Vec<Gradient> {
        let mut all = Vec::with_capacity(self.layers.len());
        let mut pulled = told.to_vec();
        for at in (0..self.layers.len()).rev() {
            if let (CODE, Some(code)) = (at, code) {
                keyfold_kernels::add_assign(&mut pulled, code);
            }
            let layer = &self.layers[at];
            layer.mask(&pass.values[at + 1], &mut pulled);
            let width = layer.bias.len();
            let gradient = Matrix::new(&pulled, width);
            let input = Matrix::new(&pass.values[at], layer.inputs);
            let mut weight = vec![0.0; layer.weight.len()];
            let threads = threads();
            product(
                &mut weight,
                layer.inputs,
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
    pub(super) fn pull_to_rows(&self, pass: &Pass, told: &[f32]) -> Vec<f32> {
        let mut pulled = told.to_vec();
        for (layer, out) in self.layers.iter().zip(&pass.values[1..]).rev() {
            layer.mask(out, &mut pulled);
            pulled = layer.pull(&pulled);
        }
        pulled
    }

    pub(super) fn save(&self, tensors: &mut Tensors) {
        for (layer, (name, _)) in self.layers.iter().zip(LAYERS) {
            let width = layer.bias.len();
            let shape = [width, layer.inputs];
            tensors.put(&format!("{name}.weight"), &shape, layer.weight.clone());
            tensors.put(&format!("{name}.bias"), &[width], layer.bias.clone());
        }
    }

    pub(super) fn load(
        widths: (usize, usize, usize),
        tensors: &mut Tensors,
    ) -> Result<Self, String> {
        let mut layers = Vec::new();
        for ((width, inputs), (name, relu)) in shapes(widths).into_iter().zip(LAYERS) {
            layers.push(Layer {
                weight: tensors.shaped(&format!("{name}.weight"), &[width, inputs])?,
                bias: tensors.shaped(&format!("{name}.bias"), &[width])?,
                inputs,
                relu,
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
        let rows = pulled.len() / width;
        let mut out = vec![0.0; rows * self.inputs];
        product(
            &mut out,
            self.inputs,
            Matrix::new(pulled, width),
            Matrix::new(&self.weight, self.inputs),
            1.0,
            false,
            threads(),
        );
        out
    }
}

/// Adam over all layers.
pub(super) struct Optimiser {
    moments: Vec<[Vec<f32>; 4]>,
    steps: u32,
}

impl Optimiser {
    pub(super) fn new(network: &Network) -> Self {
        let of = |layer: &Layer| {
            let (w, b) = (layer.weight.len(), layer.bias.len());
            [vec![0.0; w], vec![0.0; w], vec![0.0; b], vec![0.0; b]]
        };
        Self {
            moments: network.layers.iter().map(of).collect(),
            steps: 0,
        }
    }

    pub(super) fn step(&mut self, network: &mut Network, gradients: &[Gradient], rate: f32) {
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

//! Parts of models, with PyTorch's layout of weights.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use keyfold_core::weights::Weights;

use crate::checkpoint::NamedTensor;
use crate::{ModelError, ops, random};

/// `y = x Wᵀ + b`.
#[derive(Module, Debug)]
pub struct Linear {
    /// `W`, `[outputs, inputs]`.
    pub weight: Param<Tensor<2>>,
    /// `b`, `[outputs]`.
    pub bias: Option<Param<Tensor<1>>>,
}

impl Linear {
    /// With weights from a normal distribution of deviation `deviation`, and a bias of 0.
    pub fn init(
        inputs: usize,
        outputs: usize,
        bias: bool,
        deviation: f32,
        seed: u64,
        device: &Device,
    ) -> Self {
        let weight = random::normal(seed, inputs * outputs, deviation);
        let bias = bias.then(|| vec![0.0; outputs]);
        Self::of(weight, bias, inputs, device)
    }

    /// Reads `name.weight` and, when `bias`, `name.bias`.
    ///
    /// # Errors
    /// When one is missing or of another shape.
    pub fn load(
        weights: &Weights,
        name: &str,
        inputs: usize,
        outputs: usize,
        bias: bool,
        device: &Device,
    ) -> Result<Self, ModelError> {
        Self::load_stacked(weights, &[name.to_owned()], inputs, outputs, bias, device)
    }

    /// Several layers over the same input as one, outputs one after the other.
    pub(crate) fn load_stacked(
        weights: &Weights,
        names: &[String],
        inputs: usize,
        outputs: usize,
        bias: bool,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let mut weight = Vec::with_capacity(names.len() * inputs * outputs);
        let mut biases = bias.then(Vec::new);
        for name in names {
            weight.extend(weights.tensor(&format!("{name}.weight"), &[outputs, inputs])?);
            if let Some(biases) = &mut biases {
                biases.extend(weights.tensor(&format!("{name}.bias"), &[outputs])?);
            }
        }
        Ok(Self::of(weight, biases, inputs, device))
    }

    fn of(weight: Vec<f32>, bias: Option<Vec<f32>>, inputs: usize, device: &Device) -> Self {
        let outputs = weight.len() / inputs;
        Self {
            weight: parameter(weight, [outputs, inputs], device),
            bias: bias.map(|b| parameter(b, [outputs], device)),
        }
    }

    /// `[rows, inputs]` to `[rows, outputs]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        ops::linear(x, self.weight.val(), self.bias.as_ref().map(Param::val))
    }

    /// [`Linear::forward`] with gelu after it.
    pub fn forward_gelu(&self, x: Tensor<2>) -> Tensor<2> {
        let weight = self.weight.val();
        match &self.bias {
            Some(bias) => ops::linear_gelu(x, weight, bias.val()),
            None => burn::tensor::activation::gelu(ops::linear(x, weight, None)),
        }
    }

    /// The tensors as `name.weight` and `name.bias`.
    pub fn tensors(&self, name: &str) -> Vec<NamedTensor> {
        let weight = NamedTensor::new(format!("{name}.weight"), &self.weight.val());
        let bias = self.bias.as_ref();
        let bias = bias.map(|b| NamedTensor::new(format!("{name}.bias"), &b.val()));
        [weight].into_iter().chain(bias).collect()
    }

    /// The opposite of [`Linear::load_stacked`].
    pub(crate) fn tensors_apart(&self, names: &[String]) -> Vec<NamedTensor> {
        let all = self.tensors("");
        let outputs = self.weight.dims()[0] / names.len();
        let parts = names.iter().enumerate().flat_map(|(i, name)| {
            all.iter()
                .map(move |t| t.rows(format!("{name}{}", t.name), i * outputs..(i + 1) * outputs))
        });
        parts.collect()
    }
}

/// Scales and shifts every row to mean 0 and variance 1, then by weight and bias.
#[derive(Module, Debug)]
pub struct LayerNorm {
    /// `[width]`.
    pub weight: Param<Tensor<1>>,
    /// `[width]`.
    pub bias: Param<Tensor<1>>,
    /// What is added to the variance.
    pub eps: f64,
}

impl LayerNorm {
    /// With weight 1 and bias 0.
    pub fn init(width: usize, eps: f64, device: &Device) -> Self {
        Self {
            weight: parameter(vec![1.0; width], [width], device),
            bias: parameter(vec![0.0; width], [width], device),
            eps,
        }
    }

    /// Reads `name.weight` and `name.bias`.
    ///
    /// # Errors
    /// When one is missing or of another shape.
    pub fn load(
        weights: &Weights,
        name: &str,
        width: usize,
        eps: f64,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let tensor = |part| -> Result<_, ModelError> {
            let numbers = weights.tensor(&format!("{name}.{part}"), &[width])?;
            Ok(parameter(numbers, [width], device))
        };
        Ok(Self {
            weight: tensor("weight")?,
            bias: tensor("bias")?,
            eps,
        })
    }

    /// `[rows, width]` to the same.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        ops::layer_norm(x, self.weight.val(), self.bias.val(), self.eps)
    }

    /// The norm of `x + dropout(y)`; `dropout` is its rate and seed.
    pub fn forward_sum(
        &self,
        x: Tensor<2>,
        y: Tensor<2>,
        dropout: Option<(f64, u64)>,
    ) -> Tensor<2> {
        let (weight, bias) = (self.weight.val(), self.bias.val());
        ops::add_norm(x, y, dropout, weight, bias, self.eps)
    }

    /// The tensors as `name.weight` and `name.bias`.
    pub fn tensors(&self, name: &str) -> Vec<NamedTensor> {
        vec![
            NamedTensor::new(format!("{name}.weight"), &self.weight.val()),
            NamedTensor::new(format!("{name}.bias"), &self.bias.val()),
        ]
    }
}

/// One vector per id.
#[derive(Module, Debug)]
pub struct Embedding {
    /// `[ids, width]`.
    pub table: Param<Tensor<2>>,
}

impl Embedding {
    /// With numbers of a normal distribution of deviation `deviation`.
    pub fn init(ids: usize, width: usize, deviation: f32, seed: u64, device: &Device) -> Self {
        let numbers = random::normal(seed, ids * width, deviation);
        Self {
            table: parameter(numbers, [ids, width], device),
        }
    }

    /// Reads the table `name`, `[any, width]`; checkpoints round the number of ids up.
    ///
    /// # Errors
    /// When it is missing or of another shape.
    pub fn load(
        weights: &Weights,
        name: &str,
        width: usize,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let ids = weights.shape(name)?.first().copied().unwrap_or(0);
        let numbers = weights.tensor(name, &[ids, width])?;
        Ok(Self {
            table: parameter(numbers, [ids, width], device),
        })
    }

    /// How many ids have a vector.
    pub fn ids(&self) -> usize {
        self.table.dims()[0]
    }

    /// The vectors of `ids`, `[ids, width]`.
    pub fn forward(&self, ids: &[u32]) -> Tensor<2> {
        ops::rows(self.table.val(), ids)
    }
}

/// A parameter with these numbers, row-major.
pub(crate) fn parameter<const D: usize>(
    numbers: Vec<f32>,
    shape: [usize; D],
    device: &Device,
) -> Param<Tensor<D>> {
    Param::from_data(TensorData::new(numbers, shape), device)
}

//! The parts that all backbones share.

use std::path::Path;

use keyfold_kernels as kernels;

use crate::error::{LoadError, invalid};
use keyfold_core::weights::Weights;

/// `y = W x + b`, `W` as `[outputs, inputs]`.
pub(crate) struct Linear {
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    inputs: usize,
    outputs: usize,
}

impl Linear {
    /// Reads `name.weight` and, when `bias`, `name.bias`.
    pub(crate) fn load(
        weights: &Weights,
        name: &str,
        inputs: usize,
        outputs: usize,
        bias: bool,
    ) -> Result<Self, LoadError> {
        Ok(Self {
            weight: weights.tensor(&format!("{name}.weight"), &[outputs, inputs])?,
            bias: match bias {
                true => Some(weights.tensor(&format!("{name}.bias"), &[outputs])?),
                false => None,
            },
            inputs,
            outputs,
        })
    }

    /// Of a weight `[outputs, inputs]` and one bias for each output.
    pub(crate) fn new(weight: Vec<f32>, bias: Option<Vec<f32>>, inputs: usize) -> Self {
        Self {
            outputs: weight.len() / inputs,
            weight,
            bias,
            inputs,
        }
    }

    /// Several layers over the same input as one, outputs one after the other.
    /// All have a bias or none has.
    pub(crate) fn stack(layers: Vec<Self>) -> Self {
        let inputs = layers.first().map_or(0, |l| l.inputs);
        let mut all = Self {
            weight: Vec::new(),
            bias: layers.iter().all(|l| l.bias.is_some()).then(Vec::new),
            inputs,
            outputs: 0,
        };
        for layer in layers {
            all.weight.extend(layer.weight);
            if let (Some(all), Some(bias)) = (&mut all.bias, layer.bias) {
                all.extend(bias);
            }
            all.outputs += layer.outputs;
        }
        all
    }

    /// Multiplies what comes out by `factor`.
    pub(crate) fn scaled(mut self, factor: f32) -> Self {
        self.weight.iter_mut().for_each(|w| *w *= factor);
        self.bias.iter_mut().flatten().for_each(|b| *b *= factor);
        self
    }

    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    /// `x` is `[rows, inputs]`, `out` becomes `[rows, outputs]`.
    pub(crate) fn apply(&self, x: &[f32], out: &mut Vec<f32>, threads: usize) {
        let rows = x.len() / self.inputs;
        resize(out, rows * self.outputs);
        kernels::matmul_nt(
            out,
            x,
            &self.weight,
            rows,
            self.outputs,
            self.inputs,
            threads,
        );
        if let Some(bias) = &self.bias {
            kernels::add_bias(out, bias);
        }
    }
}

/// Gives a buffer a length without clearing what will be overwritten.
pub(crate) fn resize(buffer: &mut Vec<f32>, len: usize) {
    if buffer.len() > len {
        buffer.truncate(len);
    } else {
        buffer.resize(len, 0.0);
    }
}

/// Scales and shifts every row to mean 0 and variance 1, then by weight and bias.
pub(crate) struct LayerNorm {
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    eps: f32,
}

impl LayerNorm {
    /// Reads `name.weight` and, when `bias`, `name.bias`.
    pub(crate) fn load(
        weights: &Weights,
        name: &str,
        dim: usize,
        bias: bool,
        eps: f32,
    ) -> Result<Self, LoadError> {
        Ok(Self {
            weight: weights.tensor(&format!("{name}.weight"), &[dim])?,
            bias: match bias {
                true => Some(weights.tensor(&format!("{name}.bias"), &[dim])?),
                false => None,
            },
            eps,
        })
    }

    pub(crate) fn apply(&self, x: &mut [f32]) {
        kernels::layer_norm(
            x,
            self.weight.len(),
            &self.weight,
            self.bias.as_deref(),
            self.eps,
        );
    }
}

/// One vector per id or position.
pub(crate) struct Embedding {
    table: Vec<f32>,
    dim: usize,
}

impl Embedding {
    /// Reads a table `[any, dim]`; checkpoints round the number of rows up.
    pub(crate) fn load(weights: &Weights, name: &str, dim: usize) -> Result<Self, LoadError> {
        let rows = weights.shape(name)?.first().copied().unwrap_or(0);
        Ok(Self {
            table: weights.tensor(name, &[rows, dim])?,
            dim,
        })
    }

    pub(crate) fn rows(&self) -> usize {
        self.table.len() / self.dim
    }

    /// Row `i`, which must be below [`Embedding::rows`].
    pub(crate) fn row(&self, i: usize) -> &[f32] {
        &self.table[i * self.dim..(i + 1) * self.dim]
    }

    /// Adds `row` to every row.
    pub(crate) fn add_to_all(&mut self, row: &[f32]) {
        kernels::add_bias(&mut self.table, row);
    }
}

/// A function of one number, by its name in configurations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    Identity,
    Gelu,
    GeluTanh,
    Relu,
    Silu,
    Tanh,
    Sigmoid,
}

impl Activation {
    /// By the name in `config.json` (`gelu`) or the class that PyTorch has for it
    /// (`torch.nn.modules.activation.GELU`).
    pub(crate) fn named(name: &str, path: &Path) -> Result<Self, LoadError> {
        let last = name.rsplit('.').next().unwrap_or(name);
        match last.to_ascii_lowercase().as_str() {
            "identity" | "linear" => Ok(Self::Identity),
            "gelu" => Ok(Self::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Self::GeluTanh),
            "relu" => Ok(Self::Relu),
            "silu" | "swish" => Ok(Self::Silu),
            "tanh" => Ok(Self::Tanh),
            "sigmoid" => Ok(Self::Sigmoid),
            _ => Err(invalid(
                path,
                format!(
                    "activation '{name}' is not known; known are gelu, gelu_new, relu, silu, \
                     tanh, sigmoid and identity"
                ),
            )),
        }
    }

    pub(crate) fn apply(self, x: &mut [f32]) {
        match self {
            Self::Identity => {}
            Self::Gelu => kernels::gelu(x),
            Self::GeluTanh => kernels::gelu_tanh(x),
            Self::Relu => kernels::relu(x),
            Self::Silu => kernels::silu(x),
            Self::Tanh => kernels::tanh(x),
            Self::Sigmoid => x.iter_mut().for_each(|x| *x = 1.0 / (1.0 + (-*x).exp())),
        }
    }
}

/// Sizes of a transformer that must be sane before anything is read.
pub(crate) fn check_sizes(
    path: &Path,
    hidden: usize,
    layers: usize,
    heads: usize,
    inner: usize,
) -> Result<(), LoadError> {
    let sizes = [
        ("hidden size", hidden, 1 << 16),
        ("number of layers", layers, 1 << 10),
        ("number of attention heads", heads, 1 << 10),
        ("intermediate size", inner, 1 << 18),
    ];
    for (what, size, most) in sizes {
        if size == 0 || size > most {
            return Err(invalid(
                path,
                format!("the {what} is {size}; it must be between 1 and {most}"),
            ));
        }
    }
    Ok(())
}

/// Size of one head; refuses heads that do not divide `hidden`.
pub(crate) fn head_size(path: &Path, hidden: usize, heads: usize) -> Result<usize, LoadError> {
    if !hidden.is_multiple_of(heads) {
        return Err(invalid(
            path,
            format!("{heads} attention heads do not divide the hidden size {hidden}"),
        ));
    }
    Ok(hidden / heads)
}

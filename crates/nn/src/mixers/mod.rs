//! Layers that mix the positions of a text by scans and matrices, to be trained.
//!
//! `[rows, d_model]` in and out, with the rows of all texts one after the other and `starts` as
//! everywhere in this crate. Tensors have the names and shapes of the authors' modules.

/// How a layer is made, from random numbers or by reading it: by its own `from`.
macro_rules! drawn_or_read {
    ($layer:ident, $config:ident) => {
        impl $layer {
            /// A layer as the authors begin one, matrices from a normal distribution of
            /// `deviation`.
            ///
            /// # Errors
            /// When a size is 0 or sizes do not divide, or a choice makes no sense.
            pub fn init(
                config: &$config,
                deviation: f32,
                seed: u64,
                device: &burn::tensor::Device,
            ) -> Result<Self, $crate::ModelError> {
                let mut source = $crate::mixers::Source::drawn(deviation, seed);
                Self::from(config, &mut source, device)
            }

            /// Reads `prefix.in_proj.weight` and so on.
            ///
            /// # Errors
            /// When a tensor is missing or of another shape, or as [`init`](Self::init).
            pub fn load(
                config: &$config,
                weights: &keyfold_core::weights::Weights,
                prefix: &str,
                device: &burn::tensor::Device,
            ) -> Result<Self, $crate::ModelError> {
                let mut source = $crate::mixers::Source::read(weights, prefix);
                Self::from(config, &mut source, device)
            }
        }
    };
}

mod hax;
mod hydra;
mod mamba;
mod mamba2;
mod mamba_mixer;
mod matrix;
mod pairs;
mod s6;

pub use hax::{Hax, HaxBase, HaxLayerConfig, Looked, Sparse};
pub use hydra::{Hydra, HydraConfig};
pub use mamba::{Mamba, MambaConfig};
pub use mamba_mixer::{Averages, MambaMixer, MambaMixerConfig};
pub use mamba2::{Mamba2, Mamba2Config};
pub use matrix::{MatrixFamily, MatrixMixer, MatrixMixerConfig};
pub use pairs::{TensorAttention, TensorAttentionConfig};
pub use s6::{S6, S6Config};

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use keyfold_core::weights::Weights;

use crate::checkpoint::NamedTensor;
use crate::layers::{LayerNorm, parameter};
use crate::ops::{self, ConvShape};
use crate::{ModelError, random};

/// What is added under the roots of the norms.
const EPS: f64 = 1e-5;

/// A causal layer between its scan and its end.
pub(crate) struct Scanned {
    /// The gate before its silu, `[rows, Di]`.
    pub(crate) z: Tensor<2>,
    /// What the scan read, `[rows, Di]`.
    pub(crate) x: Tensor<2>,
    /// What it gave, `[rows, Di]`.
    pub(crate) y: Tensor<2>,
}

/// Where a layer's tensors come from: drawn or read.
pub(crate) enum Source<'a> {
    /// Random numbers; each tensor takes the next of the seed's streams.
    Drawn {
        /// Deviation of matrices.
        deviation: f32,
        /// The seed.
        seed: u64,
        /// Streams taken so far.
        taken: u64,
    },
    /// Tensors `prefix.name`.
    Read {
        /// Where they are.
        weights: &'a Weights,
        /// What stands before the name.
        prefix: String,
    },
}

impl<'a> Source<'a> {
    pub(crate) fn drawn(deviation: f32, seed: u64) -> Self {
        Self::Drawn {
            deviation,
            seed,
            taken: 0,
        }
    }

    pub(crate) fn read(weights: &'a Weights, prefix: impl Into<String>) -> Self {
        Self::Read {
            weights,
            prefix: prefix.into(),
        }
    }

    /// The tensors of a part of the layer.
    pub(crate) fn part(&mut self, name: &str) -> Self {
        match self {
            Self::Drawn {
                deviation,
                seed,
                taken,
            } => {
                *taken += 1;
                Self::drawn(*deviation, random::derive(*seed, *taken))
            }
            Self::Read { weights, prefix } => Self::read(weights, under(prefix, name)),
        }
    }

    /// A norm of rows of `width`.
    pub(crate) fn layer_norm(
        &mut self,
        name: &str,
        width: usize,
        device: &Device,
    ) -> Result<LayerNorm, ModelError> {
        Ok(LayerNorm {
            weight: self.vector(&format!("{name}.weight"), vec![1.0; width], device)?,
            bias: self.vector(&format!("{name}.bias"), vec![0.0; width], device)?,
            eps: EPS,
        })
    }

    /// A tensor, or what `draw` makes from a deviation and a seed.
    fn numbers(
        &mut self,
        name: &str,
        shape: &[usize],
        draw: impl FnOnce(f32, u64) -> Vec<f32>,
    ) -> Result<Vec<f32>, ModelError> {
        match self {
            Self::Drawn {
                deviation,
                seed,
                taken,
            } => {
                *taken += 1;
                Ok(draw(*deviation, random::derive(*seed, *taken)))
            }
            Self::Read { weights, prefix } => Ok(weights.tensor(&under(prefix, name), shape)?),
        }
    }

    /// [`numbers`](Self::numbers) as a parameter.
    fn tensor<const D: usize>(
        &mut self,
        name: &str,
        shape: [usize; D],
        device: &Device,
        draw: impl FnOnce(f32, u64) -> Vec<f32>,
    ) -> Result<Param<Tensor<D>>, ModelError> {
        let numbers = self.numbers(name, &shape, draw)?;
        Ok(parameter(numbers, shape, device))
    }

    /// A tensor drawn from a normal distribution.
    pub(crate) fn normal<const D: usize>(
        &mut self,
        name: &str,
        shape: [usize; D],
        device: &Device,
    ) -> Result<Param<Tensor<D>>, ModelError> {
        let count = shape.iter().product();
        self.tensor(name, shape, device, |deviation, seed| {
            random::normal(seed, count, deviation)
        })
    }

    /// A vector that begins as `start`.
    pub(crate) fn vector(
        &mut self,
        name: &str,
        start: Vec<f32>,
        device: &Device,
    ) -> Result<Param<Tensor<1>>, ModelError> {
        self.tensor(name, [start.len()], device, |_, _| start)
    }

    /// Biases of steps: softplus of them is spread evenly by its logarithm from 0.001 to 0.1.
    fn dt_bias(
        &mut self,
        name: &str,
        count: usize,
        device: &Device,
    ) -> Result<Param<Tensor<1>>, ModelError> {
        self.tensor(name, [count], device, |_, seed| {
            (0..count as u64).map(|i| first_bias(seed, i)).collect()
        })
    }

    /// The weight of a depthwise convolution, `[channels, 1, width]` in files, evenly within
    /// `±1/√width`.
    fn conv(
        &mut self,
        name: &str,
        channels: usize,
        width: usize,
        device: &Device,
    ) -> Result<Conv, ModelError> {
        let bound = (width as f64).sqrt().recip();
        let weight = self.numbers(
            &format!("{name}.weight"),
            &[channels, 1, width],
            |_, seed| even(seed, channels * width, bound),
        )?;
        Ok(Conv {
            weight: parameter(weight, [channels, width], device),
            bias: self.tensor(&format!("{name}.bias"), [channels], device, |_, seed| {
                even(seed, channels, bound)
            })?,
        })
    }
}

/// `prefix.name`, or the name alone where nothing stands before it.
fn under(prefix: &str, name: &str) -> String {
    match prefix {
        "" => name.to_owned(),
        prefix => format!("{prefix}.{name}"),
    }
}

/// Numbers drawn evenly within `±bound`.
fn even(seed: u64, count: usize, bound: f64) -> Vec<f32> {
    let number = |i| bound * (2.0 * random::unit(seed, i) - 1.0);
    (0..count as u64).map(|i| number(i) as f32).collect()
}

/// A bias with `softplus(bias)` between 0.001 and 0.1.
fn first_bias(seed: u64, i: u64) -> f32 {
    let (least, most) = (1e-3f64.ln(), 0.1f64.ln());
    let dt = (least + (most - least) * random::unit(seed, i))
        .exp()
        .max(1e-4);
    (dt + (-(-dt).exp_m1()).ln()) as f32
}

/// A depthwise convolution.
#[derive(Module, Debug)]
pub(crate) struct Conv {
    /// `[channels, width]`.
    weight: Param<Tensor<2>>,
    bias: Param<Tensor<1>>,
}

impl Conv {
    /// Some channels of the convolution, of `x` that has these alone.
    fn part(
        &self,
        x: Tensor<2>,
        channels: std::ops::Range<usize>,
        starts: &[usize],
        shape: ConvShape,
    ) -> Tensor<2> {
        let weight = self.weight.val().narrow(0, channels.start, channels.len());
        let bias = self.bias.val().narrow(0, channels.start, channels.len());
        ops::depthwise_conv(x, weight, bias, starts, shape)
    }

    fn width(&self) -> usize {
        self.weight.dims()[1]
    }

    fn tensors(&self, name: &str) -> [NamedTensor; 2] {
        let mut weight = NamedTensor::new(format!("{name}.weight"), &self.weight.val());
        weight.shape.insert(1, 1);
        [
            weight,
            NamedTensor::new(format!("{name}.bias"), &self.bias.val()),
        ]
    }
}

/// Some outputs of a projection `[outputs, inputs]` without bias.
fn part(u: &Tensor<2>, weight: &Param<Tensor<2>>, outputs: std::ops::Range<usize>) -> Tensor<2> {
    let weight = weight.val().narrow(0, outputs.start, outputs.len());
    ops::linear(u.clone(), weight, None)
}

/// `-exp(A_log)`.
fn rates<const D: usize>(a_log: &Param<Tensor<D>>) -> Tensor<D> {
    a_log.val().exp().neg()
}

/// How many heads of `headdim` some channels, `expand · d_model`, have.
fn heads(channels: usize, headdim: usize) -> Result<usize, ModelError> {
    if headdim == 0 || !channels.is_multiple_of(headdim) {
        return Err(refused(format!(
            "headdim {headdim} does not divide expand · d_model, {channels}"
        )));
    }
    Ok(channels / headdim)
}

/// Refuses an even width of a convolution that looks to both sides.
fn check_two_sided(d_conv: usize) -> Result<(), ModelError> {
    if d_conv.is_multiple_of(2) {
        return Err(refused(format!(
            "the convolution's width, d_conv, is {d_conv}; it looks to both sides alike and must be odd"
        )));
    }
    Ok(())
}

/// Refuses sizes of a layer.
pub(crate) fn refused(what: impl Into<String>) -> ModelError {
    crate::error::invalid(std::path::Path::new("the configuration"), what)
}

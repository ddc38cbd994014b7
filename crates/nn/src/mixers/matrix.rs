//! Mixers of positions that are a matrix of some family, in the shell of Hydra's layer.
//!
//! S. Hwang, A. Lahoti, T. Dao and A. Gu, 2024, Hydra: Bidirectional State Space Models Through
//! Generalized Matrix Mixers:
//!
//! ```text
//! z, v, q, k = W_in u           v, q, k = conv(v, q, k)          v = silu(v)
//! y = scale M(q, k) v + v       out = W_out (norm(y) silu(z))
//! ```
//!
//! The families are those of [`keyfold_sequence::matrix_mixers`]; the quasiseparable one is
//! [`Hydra`](super::Hydra) with `shared`. Cost `L²` for each text of `L` positions.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::{Conv, EPS, Source, check_two_sided, heads, part, refused};
use crate::ModelError;
use crate::checkpoint::NamedTensor;
use crate::layers::parameter;
use crate::ops::{self, ConvShape, MixNumbers};

/// A family of matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MatrixFamily {
    /// Any matrix, the same for all texts.
    Dense,
    /// A number for each distance.
    Toeplitz,
    /// Cosines of queries and keys.
    Vandermonde,
    /// Reciprocals of sums of queries and keys.
    Cauchy,
    /// Products of queries and keys.
    LowRank,
    /// The softmax of these.
    Attention,
}

/// Sizes of a layer; the defaults are the paper's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MatrixMixerConfig {
    /// What the matrix is.
    pub matrix_mixer_type: MatrixFamily,
    /// Width of the layer's input.
    pub d_model: usize,
    /// Numbers of a query and a key.
    pub qk_dim: usize,
    /// The longest text.
    pub max_seq_len: usize,
    /// Width of the convolution, odd.
    pub d_conv: usize,
    /// Channels for each number of the input.
    pub expand: usize,
    /// Channels of a head.
    pub headdim: usize,
}

impl Default for MatrixMixerConfig {
    fn default() -> Self {
        Self {
            matrix_mixer_type: MatrixFamily::LowRank,
            d_model: 768,
            qk_dim: 16,
            max_seq_len: 128,
            d_conv: 7,
            expand: 2,
            headdim: 128,
        }
    }
}

impl MatrixMixerConfig {
    /// Channels, heads, and numbers of all queries.
    fn sizes(&self) -> Result<(usize, usize, usize), ModelError> {
        let di = self.expand * self.d_model;
        if di == 0 || self.qk_dim == 0 || self.max_seq_len == 0 {
            return Err(refused(
                "d_model, expand, qk_dim and max_seq_len must be at least 1",
            ));
        }
        let heads = heads(di, self.headdim)?;
        check_two_sided(self.d_conv)?;
        let queries = match self.matrix_mixer_type {
            MatrixFamily::Dense => 0,
            MatrixFamily::Toeplitz => heads,
            _ => heads * self.qk_dim,
        };
        Ok((di, heads, queries))
    }
}

/// A layer that mixes by matrices of a family.
#[derive(Module, Debug)]
pub struct MatrixMixer {
    in_proj: Param<Tensor<2>>,
    conv1d: Conv,
    /// Of dense mixers, `[heads · longest, longest]`.
    matrices: Option<Param<Tensor<2>>>,
    /// Of Cauchy mixers.
    bias: Option<Param<Tensor<1>>>,
    norm: Param<Tensor<1>>,
    out_proj: Param<Tensor<2>>,
    #[module(skip)]
    family: MatrixFamily,
    heads: usize,
    longest: usize,
}

drawn_or_read!(MatrixMixer, MatrixMixerConfig);

impl MatrixMixer {
    pub(crate) fn from(
        config: &MatrixMixerConfig,
        source: &mut Source,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let (di, heads, queries) = config.sizes()?;
        let (d, t) = (config.d_model, config.max_seq_len);
        let channels = di + 2 * queries;
        let matrices = match config.matrix_mixer_type {
            MatrixFamily::Dense => {
                // Xavier's deviation for a matrix T x T of which there are as many as heads.
                let deviation = (2.0 / ((heads * t + t * t) as f32)).sqrt();
                let numbers = source.numbers("matrix_mixer.M", &[heads, t, t], |_, seed| {
                    crate::random::normal(seed, heads * t * t, deviation)
                })?;
                Some(parameter(numbers, [heads * t, t], device))
            }
            _ => None,
        };
        let bias = match config.matrix_mixer_type {
            MatrixFamily::Cauchy => {
                // A number without dimensions in the authors' files.
                let bias = source.numbers("matrix_mixer.bias", &[], |_, _| vec![0.5])?;
                Some(parameter(bias, [1], device))
            }
            _ => None,
        };
        Ok(Self {
            in_proj: source.normal("in_proj.weight", [di + channels, d], device)?,
            conv1d: source.conv("conv1d", channels, config.d_conv, device)?,
            matrices,
            bias,
            norm: source.vector("norm.weight", vec![1.0; di], device)?,
            out_proj: source.normal("out_proj.weight", [d, di], device)?,
            family: config.matrix_mixer_type,
            heads,
            longest: t,
        })
    }

    /// `[rows, d_model]` to the same; each position sees all of its text.
    ///
    /// # Panics
    /// When a text is longer than the layer was made for.
    pub fn forward(&self, u: Tensor<2>, starts: &[usize]) -> Tensor<2> {
        let di = self.norm.dims()[0];
        let queries = (self.in_proj.dims()[0] - 2 * di) / 2;
        let ahead = self.conv1d.width() / 2;
        let convolved = |from: usize, len: usize, silu: bool| {
            let x = part(&u, &self.in_proj, di + from..di + from + len);
            let shape = ConvShape { ahead, silu };
            self.conv1d.part(x, from..from + len, starts, shape)
        };
        // As released: only these two families activate what is not the values.
        let active = matches!(self.family, MatrixFamily::LowRank | MatrixFamily::Toeplitz);
        let pair = || {
            let of = |from| convolved(from, queries, active);
            (of(di), of(di + queries))
        };
        let numbers = match (self.family, &self.matrices, &self.bias) {
            (_, Some(matrices), _) => MixNumbers::Dense(matrices.val()),
            (_, _, Some(bias)) => {
                let (q, k) = pair();
                MixNumbers::Cauchy(q, k, bias.val())
            }
            (family, ..) => {
                let (q, k) = pair();
                match family {
                    MatrixFamily::Toeplitz => MixNumbers::Toeplitz(q, k),
                    MatrixFamily::Vandermonde => MixNumbers::Vandermonde(q, k),
                    MatrixFamily::Attention => MixNumbers::Attention(q, k),
                    _ => MixNumbers::LowRank(q, k),
                }
            }
        };
        let v = convolved(0, di, true);
        let y = ops::matrix_mix(v, numbers, starts, self.heads, self.longest);
        let normed = ops::rms_norm(y, self.norm.val(), EPS);
        let z = part(&u, &self.in_proj, 0..di);
        ops::linear(ops::silu_mul(z, normed), self.out_proj.val(), None)
    }

    /// The tensors as `prefix.in_proj.weight` and so on.
    pub fn tensors(&self, prefix: &str) -> Vec<NamedTensor> {
        let name = |part: &str| format!("{prefix}.{part}");
        let mut all = vec![
            NamedTensor::new(name("in_proj.weight"), &self.in_proj.val()),
            NamedTensor::new(name("norm.weight"), &self.norm.val()),
            NamedTensor::new(name("out_proj.weight"), &self.out_proj.val()),
        ];
        all.extend(self.conv1d.tensors(&name("conv1d")));
        if let Some(matrices) = &self.matrices {
            let mut tensor = NamedTensor::new(name("matrix_mixer.M"), &matrices.val());
            tensor.shape = vec![self.heads, self.longest, self.longest];
            all.push(tensor);
        }
        if let Some(bias) = &self.bias {
            let mut tensor = NamedTensor::new(name("matrix_mixer.bias"), &bias.val());
            tensor.shape.clear();
            all.push(tensor);
        }
        all
    }
}

//! A layer in which a position attends to pairs of positions.
//!
//! J. Alman and Z. Song, 2024, How to Capture Higher-order Correlations? Generalizing Matrix
//! Softmax Attention to Kronecker Computation: the definition; the layer is the obvious one, five
//! maps of the input in place of three. With heads of `d` numbers:
//!
//! ```text
//! q, k1, k2 = W u + b, or B tanh(W u + b) with a bound B       v1, v2 = W u + b
//! out = W_out (attention of q to pairs of k1 and k2 with values v1 v2)
//! ```
//!
//! Exactly in `n³` steps; with a degree, `exp` is a polynomial and time grows with `n`. For that
//! scores must be small, which the bound sees to: none is larger than `scale d B³`.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use keyfold_sequence::SequenceError;
use serde::{Deserialize, Serialize};

use super::{Source, refused};
use crate::ModelError;
use crate::checkpoint::NamedTensor;
use crate::ops::{self, PairHeads, PairInputs};

/// The largest score that a polynomial may meet.
const MOST_SCORE: f64 = 4.0;

/// Sizes of a layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TensorAttentionConfig {
    /// Numbers of a position.
    pub d_model: usize,
    /// Heads.
    pub heads: usize,
    /// Numbers of a head.
    pub headdim: usize,
    /// Factor of the scores; 0 stands for the paper's, 1 by `headdim`.
    pub scale: f64,
    /// No entry of queries and keys is larger; 0 for any.
    pub bound: f64,
    /// Degree of the polynomial; 0 for `exp` itself.
    pub degree: usize,
    /// A position attends to itself and what stands before it alone.
    pub causal: bool,
}

impl Default for TensorAttentionConfig {
    fn default() -> Self {
        Self {
            d_model: 64,
            heads: 8,
            headdim: 8,
            scale: 0.0,
            bound: 0.0,
            degree: 0,
            causal: false,
        }
    }
}

impl TensorAttentionConfig {
    fn scale(&self) -> f64 {
        match self.scale {
            0.0 => 1.0 / self.headdim as f64,
            scale => scale,
        }
    }

    fn check(&self) -> Result<(), ModelError> {
        if self.d_model == 0 || self.heads == 0 || self.headdim == 0 {
            return Err(refused("d_model, heads and headdim must be at least 1"));
        }
        if !(self.bound.is_finite() && self.bound >= 0.0 && self.scale.is_finite()) {
            return Err(refused("bound must be from 0 on, and scale finite"));
        }
        if self.degree == 0 {
            return Ok(());
        }
        let score = self.scale().abs() * self.headdim as f64 * self.bound.powi(3);
        if self.bound == 0.0 || score > MOST_SCORE {
            return Err(refused(format!(
                "degree {} wants a bound above 0 by which no score is larger than {MOST_SCORE}; bound {} allows {score}",
                self.degree, self.bound
            )));
        }
        Ok(())
    }
}

/// A layer of attention to pairs.
#[derive(Module, Debug)]
pub struct TensorAttention {
    /// Queries, both keys, both values, `[heads · headdim, d_model]` each.
    weights: Vec<Param<Tensor<2>>>,
    biases: Vec<Param<Tensor<1>>>,
    out_proj: Param<Tensor<2>>,
    #[module(skip)]
    config: TensorAttentionConfig,
}

const NAMES: [&str; 5] = ["q_proj", "k1_proj", "k2_proj", "v1_proj", "v2_proj"];

drawn_or_read!(TensorAttention, TensorAttentionConfig);

impl TensorAttention {
    pub(crate) fn from(
        config: &TensorAttentionConfig,
        source: &mut Source,
        device: &Device,
    ) -> Result<Self, ModelError> {
        config.check()?;
        let (d, inner) = (config.d_model, config.heads * config.headdim);
        let weights = NAMES
            .iter()
            .map(|name| source.normal(&format!("{name}.weight"), [inner, d], device));
        let weights = weights.collect::<Result<_, _>>()?;
        let biases = NAMES
            .iter()
            .map(|name| source.vector(&format!("{name}.bias"), vec![0.0; inner], device));
        Ok(Self {
            weights,
            biases: biases.collect::<Result<_, _>>()?,
            out_proj: source.normal("out_proj.weight", [d, inner], device)?,
            config: config.clone(),
        })
    }

    /// `[rows, d_model]` to the same, within each text.
    ///
    /// # Errors
    /// As [`ops::tensor_attention`].
    pub fn forward(&self, u: Tensor<2>, starts: &[usize]) -> Result<Tensor<2>, SequenceError> {
        let mapped = |i: usize| {
            let (weight, bias) = (self.weights[i].val(), self.biases[i].val());
            ops::linear(u.clone(), weight, Some(bias))
        };
        let bounded = |i: usize| match self.config.bound {
            0.0 => mapped(i),
            bound => mapped(i).tanh() * bound,
        };
        let inputs = PairInputs {
            q: bounded(0),
            k: [bounded(1), bounded(2)],
            v: [mapped(3), mapped(4)],
        };
        let heads = PairHeads {
            count: self.config.heads,
            scale: self.config.scale(),
            causal: self.config.causal,
            degree: (self.config.degree > 0).then_some(self.config.degree),
        };
        let found = ops::tensor_attention(inputs, starts, heads)?;
        Ok(ops::linear(found, self.out_proj.val(), None))
    }

    /// The tensors as `prefix.q_proj.weight` and so on.
    pub fn tensors(&self, prefix: &str) -> Vec<NamedTensor> {
        let name = |part: &str| super::under(prefix, part);
        let mut all = vec![NamedTensor::new(
            name("out_proj.weight"),
            &self.out_proj.val(),
        )];
        for ((part, weight), bias) in NAMES.iter().zip(&self.weights).zip(&self.biases) {
            all.push(NamedTensor::new(
                name(&format!("{part}.weight")),
                &weight.val(),
            ));
            all.push(NamedTensor::new(name(&format!("{part}.bias")), &bias.val()));
        }
        all
    }
}

//! The encoder of T5 (Raffel et al. 2020), versions 1.0 and 1.1.
//!
//! `x ← x + attention(rms(x))`, then `x ← x + W_o act(W_i rms(x))`, gated in
//! version 1.1; no biases, no `1/√d`. Positions enter as a bias on the attention
//! scores by the distance of key and query, the same in all layers.

use std::path::Path;

use keyfold_kernels as kernels;
use serde::Deserialize;

use super::attention::{DistanceBias, Heads, attend};
use super::layers::{Activation, Embedding, Linear, check_sizes};
use super::modernbert::gate;
use super::{LONGEST, Packed};
use crate::error::{LoadError, invalid};
use keyfold_core::weights::Weights;

/// The part of config.json that inference needs.
#[derive(Debug, Deserialize)]
pub(crate) struct Config {
    d_model: usize,
    d_kv: usize,
    d_ff: usize,
    num_layers: usize,
    num_heads: usize,
    feed_forward_proj: Option<String>,
    layer_norm_epsilon: Option<f32>,
    relative_attention_num_buckets: Option<usize>,
    relative_attention_max_distance: Option<usize>,
}

impl Config {
    /// The activation, and whether it is gated.
    fn feed_forward(&self, path: &Path) -> Result<(Activation, bool), LoadError> {
        match self.feed_forward_proj.as_deref().unwrap_or("relu") {
            // The name stands for the approximation by tanh.
            "gated-gelu" => Ok((Activation::GeluTanh, true)),
            name => match name.strip_prefix("gated-") {
                Some(name) => Ok((Activation::named(name, path)?, true)),
                None => Ok((Activation::named(name, path)?, false)),
            },
        }
    }
}

pub(crate) struct T5 {
    words: Embedding,
    layers: Vec<Layer>,
    final_norm: RmsNorm,
    bias: DistanceBias,
    heads: usize,
    head_size: usize,
    hidden: usize,
    activation: Activation,
    gated: bool,
}

struct Layer {
    attention_norm: RmsNorm,
    qkv: Linear,
    output: Linear,
    mlp_norm: RmsNorm,
    /// Both halves where the layer is gated.
    inner: Linear,
    outer: Linear,
}

/// `x / √(mean(x²) + eps) * weight`.
struct RmsNorm {
    weight: Vec<f32>,
    eps: f32,
}

impl RmsNorm {
    fn apply(&self, x: &mut [f32]) {
        kernels::rms_norm(x, self.weight.len(), &self.weight, self.eps);
    }
}

impl T5 {
    pub(crate) fn load(
        config: &Config,
        path: &Path,
        weights: &mut Weights,
    ) -> Result<Self, LoadError> {
        let (hidden, heads) = (config.d_model, config.num_heads);
        check_sizes(path, hidden, config.num_layers, heads, config.d_ff)?;
        let buckets = config.relative_attention_num_buckets.unwrap_or(32);
        let farthest = config.relative_attention_max_distance.unwrap_or(128);
        let sizes = [
            ("d_kv", config.d_kv, 1, 1 << 12),
            ("relative_attention_num_buckets", buckets, 4, 1 << 12),
            // The logarithm needs it beyond the distances that are exact.
            (
                "relative_attention_max_distance",
                farthest,
                buckets / 4 + 1,
                1 << 16,
            ),
        ];
        for (name, size, least, most) in sizes {
            if size < least || size > most {
                return Err(invalid(
                    path,
                    format!("{name} is {size}; it must be between {least} and {most}"),
                ));
            }
        }
        let (activation, gated) = config.feed_forward(path)?;
        weights.find_prefix("encoder.final_layer_norm.weight")?;
        let words = if weights.has("shared.weight") {
            "shared.weight"
        } else {
            "encoder.embed_tokens.weight"
        };
        let bias = weights.tensor(
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            &[buckets, heads],
        )?;
        let norm = |name: &str| -> Result<RmsNorm, LoadError> {
            Ok(RmsNorm {
                weight: weights.tensor(name, &[hidden])?,
                eps: config.layer_norm_epsilon.unwrap_or(1e-6),
            })
        };
        let layer = |i: usize| {
            let inside = heads * config.d_kv;
            let linear = |name: &str, inputs, outputs| {
                let name = format!("encoder.block.{i}.layer.{name}");
                Linear::load(weights, &name, inputs, outputs, false)
            };
            let norm =
                |part: usize| norm(&format!("encoder.block.{i}.layer.{part}.layer_norm.weight"));
            let inner: &[&str] = if gated { &["wi_0", "wi_1"] } else { &["wi"] };
            let inner = inner
                .iter()
                .map(|name| linear(&format!("1.DenseReluDense.{name}"), hidden, config.d_ff));
            Ok::<_, LoadError>(Layer {
                attention_norm: norm(0)?,
                qkv: Linear::stack(vec![
                    linear("0.SelfAttention.q", hidden, inside)?,
                    linear("0.SelfAttention.k", hidden, inside)?,
                    linear("0.SelfAttention.v", hidden, inside)?,
                ]),
                output: linear("0.SelfAttention.o", inside, hidden)?,
                mlp_norm: norm(1)?,
                inner: Linear::stack(inner.collect::<Result<_, _>>()?),
                outer: linear("1.DenseReluDense.wo", config.d_ff, hidden)?,
            })
        };
        Ok(Self {
            words: Embedding::load(weights, words, hidden)?,
            layers: (0..config.num_layers)
                .map(layer)
                .collect::<Result<_, _>>()?,
            final_norm: norm("encoder.final_layer_norm.weight")?,
            bias: DistanceBias::new(&bias, buckets, heads, farthest),
            heads,
            head_size: config.d_kv,
            hidden,
            activation,
            gated,
        })
    }

    pub(crate) fn hidden(&self) -> usize {
        self.hidden
    }

    pub(crate) fn vocabulary(&self) -> usize {
        self.words.rows()
    }

    pub(crate) fn longest(&self) -> usize {
        LONGEST
    }

    pub(crate) fn forward(&self, batch: &Packed, threads: usize) -> Vec<f32> {
        let mut x = Vec::with_capacity(batch.ids.len() * self.hidden);
        for &id in &batch.ids {
            x.extend_from_slice(self.words.row(id as usize));
        }
        let heads = Heads {
            count: self.heads,
            size: self.head_size,
            window: None,
            bias: Some(&self.bias),
        };
        let (mut normed, mut wide) = (Vec::new(), Vec::new());
        let (mut context, mut scores) = (Vec::new(), Vec::new());
        for layer in &self.layers {
            normed.clone_from(&x);
            layer.attention_norm.apply(&mut normed);
            layer.qkv.apply(&normed, &mut wide, threads);
            attend(batch, heads, &wide, &mut context, &mut scores);
            layer.output.apply(&context, &mut normed, threads);
            kernels::add_assign(&mut x, &normed);

            normed.clone_from(&x);
            layer.mlp_norm.apply(&mut normed);
            layer.inner.apply(&normed, &mut wide, threads);
            if self.gated {
                let inner = layer.inner.outputs() / 2;
                gate(self.activation, inner, &wide, &mut context);
                layer.outer.apply(&context, &mut normed, threads);
            } else {
                self.activation.apply(&mut wide);
                layer.outer.apply(&wide, &mut normed, threads);
            }
            kernels::add_assign(&mut x, &normed);
        }
        self.final_norm.apply(&mut x);
        x
    }
}

//! ModernBERT (Warner et al. 2024).
//!
//! `x ← x + attention(norm(x))`, then `x ← x + W_o(act(a) * b)` with
//! `a, b = W_i norm(x)`; no biases. Positions enter by turning queries and keys
//! (RoPE, Su et al. 2021). Every third layer sees the whole text, the others a
//! window around each token.

use std::path::Path;

use keyfold_kernels as kernels;
use serde::Deserialize;

use super::attention::{Heads, attend};
use super::layers::{Activation, Embedding, LayerNorm, Linear, check_sizes, head_size, resize};
use super::{LONGEST, Packed};
use crate::error::{LoadError, invalid};
use keyfold_core::weights::Weights;

/// The part of config.json that inference needs.
#[derive(Debug, Deserialize)]
pub(crate) struct Config {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    hidden_activation: Option<String>,
    max_position_embeddings: Option<usize>,
    norm_eps: Option<f32>,
    #[serde(default)]
    norm_bias: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    /// The whole width of the window.
    local_attention: Option<usize>,
    global_attn_every_n_layers: Option<usize>,
    /// By layer, in newer files: `full_attention` or `sliding_attention`.
    layer_types: Option<Vec<String>>,
    global_rope_theta: Option<f32>,
    local_rope_theta: Option<f32>,
    /// In newer files, instead of the two fields above.
    rope_parameters: Option<RopeParameters>,
}

#[derive(Debug, Default, Deserialize)]
struct RopeParameters {
    #[serde(default)]
    full_attention: Option<Rope>,
    #[serde(default)]
    sliding_attention: Option<Rope>,
}

#[derive(Debug, Deserialize)]
struct Rope {
    rope_theta: Option<f32>,
    rope_type: Option<String>,
}

impl Config {
    fn is_global(&self, layer: usize) -> bool {
        match &self.layer_types {
            Some(types) => types.get(layer).is_some_and(|t| t == "full_attention"),
            None => layer.is_multiple_of(self.global_attn_every_n_layers.unwrap_or(3).max(1)),
        }
    }

    /// The bases of the angles in global and local layers.
    fn thetas(&self, path: &Path) -> Result<(f32, f32), LoadError> {
        let none = RopeParameters::default();
        let parameters = self.rope_parameters.as_ref().unwrap_or(&none);
        let theta = |rope: &Option<Rope>, old: Option<f32>, usual| {
            if let Some(kind) = rope.as_ref().and_then(|r| r.rope_type.as_deref())
                && kind != "default"
            {
                return Err(invalid(
                    path,
                    format!("rope_type '{kind}' is not known; known is 'default'"),
                ));
            }
            let theta = rope.as_ref().and_then(|r| r.rope_theta).or(old);
            let theta: f32 = theta.unwrap_or(usual);
            if theta.is_finite() && theta >= 1.0 {
                Ok(theta)
            } else {
                Err(invalid(path, format!("rope theta {theta} is below 1")))
            }
        };
        Ok((
            theta(
                &parameters.full_attention,
                self.global_rope_theta,
                160_000.0,
            )?,
            theta(
                &parameters.sliding_attention,
                self.local_rope_theta,
                10_000.0,
            )?,
        ))
    }
}

pub(crate) struct ModernBert {
    words: Embedding,
    norm: LayerNorm,
    layers: Vec<Layer>,
    final_norm: LayerNorm,
    heads: usize,
    head_size: usize,
    /// How far a token of a local layer sees to either side.
    window: usize,
    global_theta: f32,
    local_theta: f32,
    activation: Activation,
    longest: usize,
}

struct Layer {
    /// The first layer has none: the embeddings are normed already.
    attention_norm: Option<LayerNorm>,
    qkv: Linear,
    output: Linear,
    mlp_norm: LayerNorm,
    /// Both halves of the gated layer.
    inner: Linear,
    outer: Linear,
    global: bool,
}

impl Layer {
    fn load(weights: &Weights, i: usize, config: &Config) -> Result<Self, LoadError> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let linear = |name: &str, inputs, outputs, bias| {
            Linear::load(
                weights,
                &format!("layers.{i}.{name}"),
                inputs,
                outputs,
                bias,
            )
        };
        let norm = |name: &str| {
            let eps = config.norm_eps.unwrap_or(1e-5);
            let name = format!("layers.{i}.{name}");
            LayerNorm::load(weights, &name, hidden, config.norm_bias, eps)
        };
        Ok(Self {
            attention_norm: match i {
                0 => None,
                _ => Some(norm("attn_norm")?),
            },
            qkv: linear("attn.Wqkv", hidden, 3 * hidden, config.attention_bias)?,
            output: linear("attn.Wo", hidden, hidden, config.attention_bias)?,
            mlp_norm: norm("mlp_norm")?,
            inner: linear("mlp.Wi", hidden, 2 * inner, config.mlp_bias)?,
            outer: linear("mlp.Wo", inner, hidden, config.mlp_bias)?,
            global: config.is_global(i),
        })
    }
}

impl ModernBert {
    pub(crate) fn load(
        config: &Config,
        path: &Path,
        weights: &mut Weights,
    ) -> Result<Self, LoadError> {
        let hidden = config.hidden_size;
        check_sizes(
            path,
            hidden,
            config.num_hidden_layers,
            config.num_attention_heads,
            config.intermediate_size,
        )?;
        let head_size = head_size(path, hidden, config.num_attention_heads)?;
        if !head_size.is_multiple_of(2) {
            return Err(invalid(
                path,
                format!(
                    "a head has {head_size} numbers; turning them in pairs needs an even count"
                ),
            ));
        }
        let (global_theta, local_theta) = config.thetas(path)?;
        weights.find_prefix("embeddings.tok_embeddings.weight")?;
        let norm = |name: &str| {
            let eps = config.norm_eps.unwrap_or(1e-5);
            LayerNorm::load(weights, name, hidden, config.norm_bias, eps)
        };
        Ok(Self {
            words: Embedding::load(weights, "embeddings.tok_embeddings.weight", hidden)?,
            norm: norm("embeddings.norm")?,
            layers: (0..config.num_hidden_layers)
                .map(|i| Layer::load(weights, i, config))
                .collect::<Result<_, _>>()?,
            final_norm: norm("final_norm")?,
            heads: config.num_attention_heads,
            head_size,
            window: config.local_attention.unwrap_or(128) / 2,
            global_theta,
            local_theta,
            activation: Activation::named(
                config.hidden_activation.as_deref().unwrap_or("gelu"),
                path,
            )?,
            longest: config
                .max_position_embeddings
                .unwrap_or(LONGEST)
                .clamp(1, LONGEST),
        })
    }

    pub(crate) fn hidden(&self) -> usize {
        self.heads * self.head_size
    }

    pub(crate) fn vocabulary(&self) -> usize {
        self.words.rows()
    }

    pub(crate) fn longest(&self) -> usize {
        self.longest
    }

    pub(crate) fn forward(&self, batch: &Packed, threads: usize) -> Vec<f32> {
        let mut x = Vec::with_capacity(batch.ids.len() * self.hidden());
        for &id in &batch.ids {
            x.extend_from_slice(self.words.row(id as usize));
        }
        self.norm.apply(&mut x);

        let longest = batch.longest();
        let global = Angles::new(self.global_theta, self.head_size, longest);
        let local = Angles::new(self.local_theta, self.head_size, longest);
        let (mut normed, mut wide) = (Vec::new(), Vec::new());
        let (mut context, mut scores) = (Vec::new(), Vec::new());
        for layer in &self.layers {
            normed.clone_from(&x);
            if let Some(norm) = &layer.attention_norm {
                norm.apply(&mut normed);
            }
            layer.qkv.apply(&normed, &mut wide, threads);
            let angles = if layer.global { &global } else { &local };
            self.turn(batch, angles, &mut wide);
            let heads = Heads {
                count: self.heads,
                size: self.head_size,
                window: (!layer.global).then_some(self.window),
                bias: None,
            };
            attend(batch, heads, &wide, &mut context, &mut scores);
            layer.output.apply(&context, &mut normed, threads);
            kernels::add_assign(&mut x, &normed);

            normed.clone_from(&x);
            layer.mlp_norm.apply(&mut normed);
            layer.inner.apply(&normed, &mut wide, threads);
            let inner = layer.inner.outputs() / 2;
            gate(self.activation, inner, &wide, &mut context);
            layer.outer.apply(&context, &mut normed, threads);
            kernels::add_assign(&mut x, &normed);
        }
        self.final_norm.apply(&mut x);
        x
    }

    /// Turns queries and keys by their positions, and scales queries by `1/√d`.
    fn turn(&self, batch: &Packed, angles: &Angles, qkv: &mut [f32]) {
        let width = self.hidden();
        let scale = (self.head_size as f32).sqrt().recip();
        for text in &batch.sequences {
            let rows = &mut qkv[text.start * 3 * width..(text.start + text.len) * 3 * width];
            for (position, row) in rows.chunks_exact_mut(3 * width).enumerate() {
                let (queries, keys) = row[..2 * width].split_at_mut(width);
                for head in queries.chunks_exact_mut(self.head_size) {
                    angles.turn(position, head);
                    head.iter_mut().for_each(|q| *q *= scale);
                }
                for head in keys.chunks_exact_mut(self.head_size) {
                    angles.turn(position, head);
                }
            }
        }
    }
}

/// `out = act(a) * b` for rows `[a, b]` of `2 * inner` numbers.
pub(super) fn gate(activation: Activation, inner: usize, wide: &[f32], out: &mut Vec<f32>) {
    resize(out, wide.len() / 2);
    let rows = wide.chunks_exact(2 * inner);
    for (row, out) in rows.clone().zip(out.chunks_exact_mut(inner)) {
        out.copy_from_slice(&row[..inner]);
    }
    activation.apply(out);
    for (row, out) in rows.zip(out.chunks_exact_mut(inner)) {
        let pairs = out.iter_mut().zip(&row[inner..]);
        pairs.for_each(|(o, b)| *o *= b);
    }
}

/// Cosine and sine of `position * theta^(-2i/d)`, `[positions, d / 2]`.
struct Angles {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

impl Angles {
    fn new(theta: f32, head_size: usize, positions: usize) -> Self {
        let half = head_size / 2;
        let angle = |position: usize, i: usize| {
            position as f32 * theta.powf((2 * i) as f32 / head_size as f32).recip()
        };
        let all = || (0..positions).flat_map(|p| (0..half).map(move |i| angle(p, i)));
        Self {
            cos: all().map(f32::cos).collect(),
            sin: all().map(f32::sin).collect(),
            half,
        }
    }

    /// Turns the pairs `(x[i], x[i + d/2])`.
    fn turn(&self, position: usize, head: &mut [f32]) {
        let at = position * self.half..(position + 1) * self.half;
        let (cos, sin) = (&self.cos[at.clone()], &self.sin[at]);
        let (first, second) = head.split_at_mut(self.half);
        for i in 0..self.half {
            let (a, b) = (first[i], second[i]);
            first[i] = a * cos[i] - b * sin[i];
            second[i] = b * cos[i] + a * sin[i];
        }
    }
}

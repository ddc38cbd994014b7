//! What a decoder is: its architecture and sizes, from `config.json` or GGUF metadata.
//!
//! Every number is checked when it is read, so that code that has a [`Config`] may
//! divide, allocate and index by it.

mod fields;
mod gguf;
mod hugging_face;
mod rope;

use std::path::Path;

use keyfold_core::block_mask::BlockMask;

use crate::error::LmError;
use crate::file::Gguf;
use crate::roles::Dims;

pub(crate) use fields::{Field, Fields};
pub use rope::{Rope, RopeScaling, rope_frequencies};

/// The most layers that a file may claim.
const MOST_LAYERS: usize = 4_096;
/// The most heads, and the longest head.
const MOST_HEADS: usize = 65_536;
/// The longest hidden state, and the widest MLP.
const MOST_WIDTH: usize = 1 << 24;
/// The largest vocabulary.
const MOST_TOKENS: usize = 1 << 26;
/// The longest context.
const MOST_CONTEXT: usize = 1 << 31;

/// Families of decoders that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// Llama, SmolLM, TinyLlama and many others.
    Llama,
    /// Mistral: Llama with a sliding window.
    Mistral,
    /// Qwen2 and Qwen2.5: Llama with biases on queries, keys and values.
    Qwen2,
    /// Qwen3: queries and keys are normed per head.
    Qwen3,
    /// SmolLM3: some layers without rotary embedding.
    SmolLm3,
    /// GPT-2: learned positions, layer norm, a plain MLP.
    Gpt2,
}

impl Architecture {
    const NAMES: [(&'static str, Self); 6] = [
        ("llama", Self::Llama),
        ("mistral", Self::Mistral),
        ("qwen2", Self::Qwen2),
        ("qwen3", Self::Qwen3),
        ("smollm3", Self::SmolLm3),
        ("gpt2", Self::Gpt2),
    ];

    fn named(name: &str) -> Option<Self> {
        let found = Self::NAMES.iter().find(|(n, _)| *n == name);
        found.map(|&(_, architecture)| architecture)
    }

    /// The name that files use.
    pub fn name(self) -> &'static str {
        let found = Self::NAMES.iter().find(|(_, a)| *a == self);
        found.map_or("", |&(name, _)| name)
    }

    fn refuse(fields: &Fields, field: &str, name: &str) -> LmError {
        let known: Vec<&str> = Self::NAMES.iter().map(|&(n, _)| n).collect();
        let known = known.join(", ");
        fields.wrong(
            field,
            format!("is '{name}'; the architectures that can be read are {known}"),
        )
    }
}

/// How hidden states are normed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norm {
    /// `x / rms(x) * weight`.
    Rms,
    /// `(x - mean) / deviation * weight + bias`.
    Layer,
}

/// The function between the matrices of the MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// GELU by the error function.
    Gelu,
    /// GELU by the hyperbolic tangent.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

impl Activation {
    fn read(fields: &Fields, field: &str, default: Self) -> Result<Self, LmError> {
        let Some(name) = fields.text(field)? else {
            return Ok(default);
        };
        match name.as_str() {
            "silu" | "swish" => Ok(Self::Silu),
            "gelu" => Ok(Self::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Self::GeluTanh),
            "relu" => Ok(Self::Relu),
            _ => Err(fields.wrong(
                field,
                format!("is '{name}'; silu, gelu, gelu_new and relu are known"),
            )),
        }
    }
}

/// How a decoder knows where a token stands.
#[derive(Debug, Clone, PartialEq)]
pub enum Positions {
    /// Queries and keys are rotated.
    Rope(Rope),
    /// A vector per position is added to the embedding (`model.embed_positions.weight`).
    Learned,
}

/// A decoder's architecture and sizes.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The family.
    pub architecture: Architecture,
    /// Layers, heads, lengths and vocabulary.
    pub dims: Dims,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// The longest text that the model was made for; see [`Config::context_limit`].
    pub max_position_embeddings: usize,
    /// How hidden states are normed. Norms of heads (`qk_norm`) are always RMS.
    pub norm: Norm,
    /// What is added under the root of every norm.
    pub norm_eps: f32,
    /// The function of the MLP.
    pub hidden_act: Activation,
    /// `down(act(gate x) * up x)`, else `down(act(up x))`.
    pub gated_mlp: bool,
    /// Whether queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Whether the matrix after attention has a bias.
    pub output_bias: bool,
    /// Whether the matrices of the MLP have biases.
    pub mlp_bias: bool,
    /// Whether each head's query and key is normed before it is rotated.
    pub qk_norm: bool,
    /// Whether the output matrix is the embedding.
    pub tie_word_embeddings: bool,
    /// How positions enter.
    pub positions: Positions,
    /// Per layer, how many of the newest tokens a token sees, itself among them.
    pub sliding_window: Vec<Option<usize>>,
    /// The mask of blocks that the model was trained on (PowerAttention).
    pub block_mask: Option<BlockMask>,
    /// What begins a text.
    pub bos_token_id: Option<u32>,
    /// What ends a text.
    pub eos_token_ids: Vec<u32>,
}

impl Config {
    /// Reads `config.json`. `generation` is `generation_config.json`, where models for
    /// chats name further tokens that end a text.
    pub fn from_json(path: &Path, json: &[u8], generation: Option<&[u8]>) -> Result<Self, LmError> {
        hugging_face::read(path, json, generation)
    }

    /// Reads the metadata of a GGUF file.
    pub fn from_gguf(file: &Gguf) -> Result<Self, LmError> {
        gguf::read(file)
    }

    /// Rotary embedding, if the model has it.
    pub fn rope(&self) -> Option<&Rope> {
        match &self.positions {
            Positions::Rope(rope) => Some(rope),
            Positions::Learned => None,
        }
    }

    /// The longest context that the model can read; none where its rotary embedding
    /// adapts to any length.
    pub fn context_limit(&self) -> Option<usize> {
        let trained = self.max_position_embeddings;
        let stretched = |length: usize, factor: f64| (length as f64 * factor) as usize;
        match self.rope().map(|rope| &rope.scaling) {
            Some(RopeScaling::Dynamic { .. }) => None,
            Some(&RopeScaling::Linear { factor }) => Some(trained.max(stretched(trained, factor))),
            Some(
                &RopeScaling::Yarn {
                    factor, original, ..
                }
                | &RopeScaling::Llama3 {
                    factor, original, ..
                },
            ) => Some(trained.max(stretched(original, factor))),
            Some(RopeScaling::None | RopeScaling::Divisors(_)) | None => Some(trained),
        }
    }

    /// Every tensor of the model under its canonical name, with its shape.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let d = &self.dims;
        let mut all = vec![(
            "model.embed_tokens.weight".to_owned(),
            vec![d.vocab, d.hidden],
        )];
        if self.positions == Positions::Learned {
            let shape = vec![self.max_position_embeddings, d.hidden];
            all.push(("model.embed_positions.weight".to_owned(), shape));
        }
        for layer in 0..d.layers {
            self.layer_tensors(&format!("model.layers.{layer}"), &mut all);
        }
        self.norm_tensors("model.norm", &mut all);
        if !self.tie_word_embeddings {
            all.push(("lm_head.weight".to_owned(), vec![d.vocab, d.hidden]));
        }
        all
    }

    fn layer_tensors(&self, layer: &str, all: &mut Vec<(String, Vec<usize>)>) {
        let d = &self.dims;
        let (q, kv, inner) = (
            d.heads * d.head_dim,
            d.kv_heads * d.head_dim,
            self.intermediate_size,
        );
        let mut linear = |name: &str, out: usize, input: usize, bias: bool| {
            all.push((format!("{layer}.{name}.weight"), vec![out, input]));
            if bias {
                all.push((format!("{layer}.{name}.bias"), vec![out]));
            }
        };
        linear("self_attn.q_proj", q, d.hidden, self.qkv_bias);
        linear("self_attn.k_proj", kv, d.hidden, self.qkv_bias);
        linear("self_attn.v_proj", kv, d.hidden, self.qkv_bias);
        linear("self_attn.o_proj", d.hidden, q, self.output_bias);
        if self.gated_mlp {
            linear("mlp.gate_proj", inner, d.hidden, self.mlp_bias);
        }
        linear("mlp.up_proj", inner, d.hidden, self.mlp_bias);
        linear("mlp.down_proj", d.hidden, inner, self.mlp_bias);
        if self.qk_norm {
            all.push((format!("{layer}.self_attn.q_norm.weight"), vec![d.head_dim]));
            all.push((format!("{layer}.self_attn.k_norm.weight"), vec![d.head_dim]));
        }
        self.norm_tensors(&format!("{layer}.input_layernorm"), all);
        self.norm_tensors(&format!("{layer}.post_attention_layernorm"), all);
    }

    fn norm_tensors(&self, name: &str, all: &mut Vec<(String, Vec<usize>)>) {
        all.push((format!("{name}.weight"), vec![self.dims.hidden]));
        if self.norm == Norm::Layer {
            all.push((format!("{name}.bias"), vec![self.dims.hidden]));
        }
    }
}

/// `hidden / heads`, for files that do not say how long a head is.
fn default_head_dim(
    fields: &Fields,
    names: [&str; 2],
    hidden: usize,
    heads: usize,
) -> Result<usize, LmError> {
    if hidden.is_multiple_of(heads) {
        return Ok(hidden / heads);
    }
    let [hidden_name, heads_name] = names;
    Err(fields.wrong(
        heads_name,
        format!("is {heads}, which does not divide '{hidden_name}', {hidden}"),
    ))
}

/// Refuses key heads that do not divide the query heads.
fn check_groups(fields: &Fields, name: &str, heads: usize, kv_heads: usize) -> Result<(), LmError> {
    if heads.is_multiple_of(kv_heads) {
        return Ok(());
    }
    Err(fields.wrong(
        name,
        format!("is {kv_heads}, which does not divide the {heads} heads"),
    ))
}

#[cfg(test)]
mod tests;

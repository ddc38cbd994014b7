//! Sizes of a decoder, as config.json has them.

use std::path::Path;

use keyfold_core::block_mask::BlockMask;
use keyfold_kernels::attention::Rotation;
use serde::{Deserialize, Serialize};

use crate::ModelError;
use crate::error::invalid;

/// Fields of config.json of a Llama, as transformers writes them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LlamaConfig {
    /// `["LlamaForCausalLM"]`.
    pub architectures: Vec<String>,
    /// `llama`.
    pub model_type: String,
    /// Number of tokens.
    pub vocab_size: usize,
    /// Length of a hidden state.
    pub hidden_size: usize,
    /// Width inside the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Heads of keys and values.
    pub num_key_value_heads: usize,
    /// Length of a head.
    pub head_dim: usize,
    /// What is added to the mean square in norms.
    pub rms_norm_eps: f64,
    /// Base of the rotary angles.
    pub rope_theta: f64,
    /// Longest text that the model is made for.
    pub max_position_embeddings: usize,
    /// Whether the output matrix is the table of token vectors.
    pub tie_word_embeddings: bool,
    /// Deviation of the weights at the beginning.
    pub initializer_range: f32,
    /// Begins a text.
    pub bos_token_id: u32,
    /// Ends a text.
    pub eos_token_id: u32,
    /// `silu`.
    pub hidden_act: String,
    /// How the weights are stored.
    pub torch_dtype: String,
    /// The blocks that attention sees, where that is not all; no field of transformers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_mask: Option<BlockMask>,
}

impl Default for LlamaConfig {
    /// A small model of bytes: 256, and begin, end, separator and padding after them.
    fn default() -> Self {
        Self {
            architectures: vec!["LlamaForCausalLM".into()],
            model_type: "llama".into(),
            vocab_size: 260,
            hidden_size: 192,
            intermediate_size: 512,
            num_hidden_layers: 6,
            num_attention_heads: 6,
            num_key_value_heads: 2,
            head_dim: 32,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            max_position_embeddings: 2048,
            tie_word_embeddings: true,
            initializer_range: 0.02,
            bos_token_id: 256,
            eos_token_id: 257,
            hidden_act: "silu".into(),
            torch_dtype: "float16".into(),
            block_mask: None,
        }
    }
}

impl LlamaConfig {
    /// What the layers need to know of it.
    ///
    /// # Errors
    /// When sizes do not fit each other, or it asks for what is not computed here; `path` is
    /// named as the place of the configuration.
    pub fn sizes(&self, path: &Path) -> Result<LlamaSizes, ModelError> {
        for (field, found, needed) in [
            ("model_type", &self.model_type, "llama"),
            ("hidden_act", &self.hidden_act, "silu"),
            ("torch_dtype", &self.torch_dtype, "float16"),
        ] {
            if found != needed {
                let what = format!("{field} is '{found}'; here it can only be '{needed}'");
                return Err(invalid(path, what));
            }
        }
        let sizes = LlamaSizes {
            layers: self.num_hidden_layers,
            hidden: self.hidden_size,
            intermediate: self.intermediate_size,
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            vocab: self.vocab_size,
            eps: self.rms_norm_eps,
            tied: self.tie_word_embeddings,
            attention_bias: false,
            head_norms: false,
            rope: RopeSizes {
                frequencies: (0..self.head_dim / 2)
                    .map(|i| self.rope_theta.powf(-2.0 * i as f64 / self.head_dim as f64) as f32)
                    .collect(),
                scale: 1.0,
                rotation: Rotation::Half,
                layers: vec![true; self.num_hidden_layers],
            },
        };
        sizes.check(path)?;
        Ok(sizes)
    }
}

/// Sizes of a decoder of Llama's kind (Llama, Mistral, Qwen 2 and 3, SmolLM).
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaSizes {
    /// Number of layers.
    pub layers: usize,
    /// Length of a hidden state.
    pub hidden: usize,
    /// Width inside the feed-forward layer.
    pub intermediate: usize,
    /// Query heads.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Length of a head.
    pub head_dim: usize,
    /// Number of tokens.
    pub vocab: usize,
    /// What is added to the mean square in norms.
    pub eps: f64,
    /// Whether the output matrix is the table of token vectors.
    pub tied: bool,
    /// Whether queries, keys and values have a bias (Qwen 2).
    pub attention_bias: bool,
    /// Whether every head of queries and keys is normed (Qwen 3).
    pub head_norms: bool,
    /// Rotary positions.
    pub rope: RopeSizes,
}

/// How positions turn queries and keys.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeSizes {
    /// Angle of a step, for every pair of dimensions.
    pub frequencies: Vec<f32>,
    /// Factor of cosines and sines.
    pub scale: f32,
    /// Which dimensions are pairs.
    pub rotation: Rotation,
    /// The layers that turn at all.
    pub layers: Vec<bool>,
}

impl LlamaSizes {
    /// # Errors
    /// When sizes do not fit each other.
    pub(super) fn check(&self, path: &Path) -> Result<(), ModelError> {
        let wrong = |what: &str| Err(invalid(path, what));
        let counts = [
            self.layers,
            self.hidden,
            self.intermediate,
            self.heads,
            self.kv_heads,
            self.head_dim,
            self.vocab,
        ];
        if counts.contains(&0) {
            return wrong("a size is 0");
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return wrong("num_key_value_heads must divide num_attention_heads");
        }
        if 2 * self.rope.frequencies.len() > self.head_dim || self.rope.layers.len() != self.layers
        {
            return wrong("the rotary angles do not fit the heads and layers");
        }
        Ok(())
    }
}

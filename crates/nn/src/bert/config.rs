//! What config.json says, and what the tensors are called.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::ModelError;
use crate::error::invalid;

/// Which names the tensors have and how positions count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// BERT (Devlin et al. 2019).
    Bert,
    /// DistilBERT (Sanh et al. 2019): no token types.
    DistilBert,
    /// RoBERTa (Liu et al. 2019), XLM-RoBERTa, CamemBERT: positions begin after the id of
    /// the padding.
    Roberta,
}

impl Family {
    pub(super) fn of(model_type: &str) -> Option<Self> {
        match model_type {
            "bert" => Some(Self::Bert),
            "distilbert" => Some(Self::DistilBert),
            "roberta" | "xlm-roberta" | "camembert" => Some(Self::Roberta),
            _ => None,
        }
    }

    pub(super) fn names(self) -> &'static Names {
        match self {
            Self::Bert | Self::Roberta => &BERT_NAMES,
            Self::DistilBert => &DISTILBERT_NAMES,
        }
    }
}

/// Names of the parts of a layer.
#[derive(Debug)]
pub(super) struct Names {
    pub(super) layer: &'static str,
    /// Queries, keys, values.
    pub(super) qkv: [&'static str; 3],
    pub(super) output: &'static str,
    pub(super) attention_norm: &'static str,
    pub(super) inner: &'static str,
    pub(super) outer: &'static str,
    pub(super) outer_norm: &'static str,
}

const BERT_NAMES: Names = Names {
    layer: "encoder.layer",
    qkv: [
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
    ],
    output: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    inner: "intermediate.dense",
    outer: "output.dense",
    outer_norm: "output.LayerNorm",
};

const DISTILBERT_NAMES: Names = Names {
    layer: "transformer.layer",
    qkv: ["attention.q_lin", "attention.k_lin", "attention.v_lin"],
    output: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    inner: "ffn.lin1",
    outer: "ffn.lin2",
    outer_norm: "output_layer_norm",
};

/// The part of config.json that training needs; DistilBERT has its own names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BertConfig {
    /// `bert`, `distilbert`, `roberta`, `xlm-roberta` or `camembert`.
    pub model_type: String,
    /// Number of token ids.
    pub vocab_size: usize,
    /// Length of a hidden state.
    #[serde(alias = "dim")]
    pub hidden_size: usize,
    /// Number of layers.
    #[serde(alias = "n_layers")]
    pub num_hidden_layers: usize,
    /// Number of heads; divides `hidden_size`.
    #[serde(alias = "n_heads")]
    pub num_attention_heads: usize,
    /// Width of the feed-forward part.
    #[serde(alias = "hidden_dim")]
    pub intermediate_size: usize,
    /// Rows of the table of positions.
    #[serde(default = "positions")]
    pub max_position_embeddings: usize,
    /// Rows of the table of token types (not DistilBERT).
    #[serde(default = "types")]
    pub type_vocab_size: usize,
    /// The function in the feed-forward part; `gelu` can be trained.
    #[serde(alias = "activation", default = "gelu")]
    pub hidden_act: String,
    /// Dropout of hidden states.
    #[serde(alias = "dropout", default = "tenth")]
    pub hidden_dropout_prob: f64,
    /// Dropout of the weights of attention.
    #[serde(alias = "attention_dropout", default = "tenth")]
    pub attention_probs_dropout_prob: f64,
    /// What layer norms add to the variance.
    #[serde(default = "eps")]
    pub layer_norm_eps: f64,
    /// Deviation of the first weights.
    #[serde(default = "deviation")]
    pub initializer_range: f32,
    /// The id of the padding, where positions begin after it (RoBERTa).
    #[serde(default)]
    pub pad_token_id: Option<u32>,
}

fn positions() -> usize {
    512
}

fn types() -> usize {
    2
}

fn gelu() -> String {
    "gelu".to_owned()
}

fn tenth() -> f64 {
    0.1
}

fn eps() -> f64 {
    1e-12
}

fn deviation() -> f32 {
    0.02
}

impl BertConfig {
    /// The family, and the checks that everything after relies on; `path` is where this
    /// configuration is from.
    pub(super) fn check(&self, path: &Path) -> Result<Family, ModelError> {
        let family = Family::of(&self.model_type).ok_or_else(|| {
            invalid(
                path,
                format!(
                    "models of type '{}' cannot be trained here; those of type bert, distilbert, \
                     roberta, xlm-roberta and camembert can",
                    self.model_type
                ),
            )
        })?;
        let sizes = [
            ("hidden size", self.hidden_size, 1 << 16),
            ("number of layers", self.num_hidden_layers, 1 << 10),
            (
                "number of attention heads",
                self.num_attention_heads,
                1 << 10,
            ),
            ("intermediate size", self.intermediate_size, 1 << 18),
        ];
        for (what, size, most) in sizes {
            if size == 0 || size > most {
                return Err(invalid(
                    path,
                    format!("the {what} is {size}; it must be between 1 and {most}"),
                ));
            }
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return Err(invalid(
                path,
                format!(
                    "{} attention heads do not divide the hidden size {}",
                    self.num_attention_heads, self.hidden_size
                ),
            ));
        }
        if self.hidden_act != "gelu" {
            return Err(invalid(
                path,
                format!(
                    "a model with the activation '{}' cannot be trained here, only one with gelu",
                    self.hidden_act
                ),
            ));
        }
        for rate in [self.hidden_dropout_prob, self.attention_probs_dropout_prob] {
            if !(0.0..1.0).contains(&rate) {
                return Err(invalid(
                    path,
                    format!("a dropout of {rate} makes no sense; it is at least 0 and below 1"),
                ));
            }
        }
        Ok(family)
    }
}

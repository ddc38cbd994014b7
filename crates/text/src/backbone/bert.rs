//! BERT (Devlin et al. 2019) and its kin with the same layers: DistilBERT,
//! RoBERTa, XLM-RoBERTa, CamemBERT, MPNet.
//!
//! `x ← norm(x + attention(x))`, then `x ← norm(x + W₂ act(W₁ x))`; the first
//! `x` is the normed sum of a vector per token id and one per position.

use std::path::Path;

use keyfold_kernels as kernels;
use serde::Deserialize;

use super::attention::{DistanceBias, Heads, attend};
use super::layers::{Activation, Embedding, LayerNorm, Linear, check_sizes, head_size};
use super::{LONGEST, Packed};
use crate::error::{LoadError, invalid};
use keyfold_core::weights::Weights;

/// MPNet's distance bias, fixed by its code.
const MPNET_BUCKETS: usize = 32;
const MPNET_FARTHEST: usize = 128;

/// Which names the tensors have and how positions count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    Bert,
    DistilBert,
    /// RoBERTa, XLM-RoBERTa, CamemBERT.
    Roberta,
    MpNet,
}

impl Family {
    /// By `model_type` of config.json.
    pub(crate) fn of(model_type: &str) -> Option<Self> {
        match model_type {
            "bert" => Some(Self::Bert),
            "distilbert" => Some(Self::DistilBert),
            "roberta" | "xlm-roberta" | "camembert" => Some(Self::Roberta),
            "mpnet" => Some(Self::MpNet),
            _ => None,
        }
    }

    fn names(self) -> &'static Names {
        match self {
            Self::Bert | Self::Roberta => &BERT_NAMES,
            Self::DistilBert => &DISTILBERT_NAMES,
            Self::MpNet => &MPNET_NAMES,
        }
    }
}

/// Names of the parts of a layer.
struct Names {
    layer: &'static str,
    query: &'static str,
    key: &'static str,
    value: &'static str,
    output: &'static str,
    attention_norm: &'static str,
    inner: &'static str,
    outer: &'static str,
    outer_norm: &'static str,
}

const BERT_NAMES: Names = Names {
    layer: "encoder.layer",
    query: "attention.self.query",
    key: "attention.self.key",
    value: "attention.self.value",
    output: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    inner: "intermediate.dense",
    outer: "output.dense",
    outer_norm: "output.LayerNorm",
};

const MPNET_NAMES: Names = Names {
    query: "attention.attn.q",
    key: "attention.attn.k",
    value: "attention.attn.v",
    output: "attention.attn.o",
    attention_norm: "attention.LayerNorm",
    ..BERT_NAMES
};

const DISTILBERT_NAMES: Names = Names {
    layer: "transformer.layer",
    query: "attention.q_lin",
    key: "attention.k_lin",
    value: "attention.v_lin",
    output: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    inner: "ffn.lin1",
    outer: "ffn.lin2",
    outer_norm: "output_layer_norm",
};

/// The part of config.json that inference needs; DistilBERT has its own names.
#[derive(Debug, Deserialize)]
pub(crate) struct Config {
    #[serde(alias = "dim")]
    hidden_size: usize,
    #[serde(alias = "n_layers")]
    num_hidden_layers: usize,
    #[serde(alias = "n_heads")]
    num_attention_heads: usize,
    #[serde(alias = "hidden_dim")]
    intermediate_size: usize,
    #[serde(alias = "activation")]
    hidden_act: Option<String>,
    layer_norm_eps: Option<f32>,
    pad_token_id: Option<u32>,
    position_embedding_type: Option<String>,
}

impl Config {
    /// That of `distilbert-base-uncased`, whose checkpoints other models name
    /// instead of repeating it.
    pub(crate) fn distilbert_base() -> Self {
        Self {
            hidden_size: 768,
            num_hidden_layers: 6,
            num_attention_heads: 12,
            intermediate_size: 3072,
            hidden_act: Some("gelu".to_owned()),
            layer_norm_eps: None,
            pad_token_id: Some(0),
            position_embedding_type: None,
        }
    }
}

pub(crate) struct Bert {
    words: Embedding,
    /// Vectors by position, with that of token type 0 added.
    positions: Embedding,
    /// What a token of the second of two texts has beyond that: the vector of type 1
    /// less that of type 0; none where the model knows one type.
    second: Option<Vec<f32>>,
    /// RoBERTa and MPNet: the id that does not count as a position; the
    /// positions begin one after it.
    padding: Option<u32>,
    norm: LayerNorm,
    layers: Vec<Layer>,
    bias: Option<DistanceBias>,
    heads: usize,
    head_size: usize,
    activation: Activation,
}

struct Layer {
    /// Queries (times `1/√d`), keys and values.
    qkv: Linear,
    output: Linear,
    attention_norm: LayerNorm,
    inner: Linear,
    outer: Linear,
    outer_norm: LayerNorm,
}

impl Layer {
    fn load(
        weights: &Weights,
        names: &Names,
        i: usize,
        config: &Config,
        head_size: usize,
    ) -> Result<Self, LoadError> {
        let (hidden, inner, eps) = (
            config.hidden_size,
            config.intermediate_size,
            config.layer_norm_eps.unwrap_or(1e-12),
        );
        let linear = |name: &str, inputs, outputs| {
            Linear::load(
                weights,
                &format!("{}.{i}.{name}", names.layer),
                inputs,
                outputs,
                true,
            )
        };
        let norm = |name: &str| {
            LayerNorm::load(
                weights,
                &format!("{}.{i}.{name}", names.layer),
                hidden,
                true,
                eps,
            )
        };
        Ok(Self {
            qkv: Linear::stack(vec![
                linear(names.query, hidden, hidden)?.scaled((head_size as f32).sqrt().recip()),
                linear(names.key, hidden, hidden)?,
                linear(names.value, hidden, hidden)?,
            ]),
            output: linear(names.output, hidden, hidden)?,
            attention_norm: norm(names.attention_norm)?,
            inner: linear(names.inner, hidden, inner)?,
            outer: linear(names.outer, inner, hidden)?,
            outer_norm: norm(names.outer_norm)?,
        })
    }
}

impl Bert {
    pub(crate) fn load(
        family: Family,
        config: &Config,
        path: &Path,
        weights: &mut Weights,
    ) -> Result<Self, LoadError> {
        let hidden = config.hidden_size;
        let heads = config.num_attention_heads;
        check_sizes(
            path,
            hidden,
            config.num_hidden_layers,
            heads,
            config.intermediate_size,
        )?;
        let head_size = head_size(path, hidden, heads)?;
        if let Some(kind) = &config.position_embedding_type
            && kind != "absolute"
        {
            return Err(invalid(
                path,
                format!("position embeddings of type '{kind}' are not known; known is 'absolute'"),
            ));
        }
        weights.find_prefix("embeddings.word_embeddings.weight")?;
        let words = Embedding::load(weights, "embeddings.word_embeddings.weight", hidden)?;
        let mut positions =
            Embedding::load(weights, "embeddings.position_embeddings.weight", hidden)?;
        let mut second = None;
        if matches!(family, Family::Bert | Family::Roberta) {
            let types =
                Embedding::load(weights, "embeddings.token_type_embeddings.weight", hidden)?;
            if types.rows() == 0 {
                return Err(invalid(weights.path(), "its token type table has no rows"));
            }
            positions.add_to_all(types.row(0));
            if types.rows() > 1 {
                let pairs = types.row(1).iter().zip(types.row(0));
                second = Some(pairs.map(|(one, zero)| one - zero).collect());
            }
        }
        let padding = match family {
            Family::Bert | Family::DistilBert => None,
            Family::Roberta => Some(config.pad_token_id.unwrap_or(1)),
            Family::MpNet => Some(1),
        };
        let bias = if family == Family::MpNet {
            let table = weights.tensor(
                "encoder.relative_attention_bias.weight",
                &[MPNET_BUCKETS, heads],
            )?;
            Some(DistanceBias::new(
                &table,
                MPNET_BUCKETS,
                heads,
                MPNET_FARTHEST,
            ))
        } else {
            None
        };
        let eps = config.layer_norm_eps.unwrap_or(1e-12);
        let bert = Self {
            words,
            positions,
            second,
            padding,
            norm: LayerNorm::load(weights, "embeddings.LayerNorm", hidden, true, eps)?,
            layers: (0..config.num_hidden_layers)
                .map(|i| Layer::load(weights, family.names(), i, config, head_size))
                .collect::<Result<_, _>>()?,
            bias,
            heads,
            head_size,
            activation: Activation::named(config.hidden_act.as_deref().unwrap_or("gelu"), path)?,
        };
        if bert.longest() == 0 {
            return Err(invalid(
                weights.path(),
                "its position table has no rows to use",
            ));
        }
        Ok(bert)
    }

    pub(crate) fn hidden(&self) -> usize {
        self.heads * self.head_size
    }

    pub(crate) fn vocabulary(&self) -> usize {
        self.words.rows()
    }

    pub(crate) fn longest(&self) -> usize {
        let first = self.padding.map_or(0, |p| p as usize + 1);
        self.positions.rows().saturating_sub(first).min(LONGEST)
    }

    pub(crate) fn forward(&self, batch: &Packed, threads: usize) -> Vec<f32> {
        let heads = Heads {
            count: self.heads,
            size: self.head_size,
            window: None,
            bias: self.bias.as_ref(),
        };
        let mut x = self.embed(batch);
        let (mut wide, mut context, mut scores) = (Vec::new(), Vec::new(), Vec::new());
        for layer in &self.layers {
            layer.qkv.apply(&x, &mut wide, threads);
            attend(batch, heads, &wide, &mut context, &mut scores);
            // `wide` is free again and takes what comes back.
            layer.output.apply(&context, &mut wide, threads);
            kernels::add_assign(&mut x, &wide);
            layer.attention_norm.apply(&mut x);

            layer.inner.apply(&x, &mut wide, threads);
            self.activation.apply(&mut wide);
            layer.outer.apply(&wide, &mut context, threads);
            kernels::add_assign(&mut x, &context);
            layer.outer_norm.apply(&mut x);
        }
        x
    }

    fn embed(&self, batch: &Packed) -> Vec<f32> {
        let mut x = Vec::with_capacity(batch.ids.len() * self.hidden());
        for text in &batch.sequences {
            let ids = &batch.ids[text.start..text.start + text.len];
            let mut next = self.padding.map_or(0, |p| p as usize + 1);
            for (row, &id) in ids.iter().enumerate() {
                if row == text.second {
                    next += text.gap;
                }
                let position = match self.padding {
                    Some(padding) if padding == id => padding as usize,
                    _ => {
                        next += 1;
                        next - 1
                    }
                };
                let word = self.words.row(id as usize);
                let position = self.positions.row(position);
                x.extend(word.iter().zip(position).map(|(w, p)| w + p));
                if row >= text.second
                    && let Some(second) = &self.second
                {
                    let last = x.len() - second.len();
                    kernels::add_assign(&mut x[last..], second);
                }
            }
        }
        self.norm.apply(&mut x);
        x
    }
}

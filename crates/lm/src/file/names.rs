//! One name per role: the names of Hugging Face's Llama, into which those of GPT-2 and
//! GGUF are translated.

use std::ops::Range;

use super::tensor::Tensor;
use crate::config::Config;

/// How a canonical tensor lies in one of the file.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum View {
    /// As it is.
    Whole,
    /// These rows of a matrix, or numbers of a vector.
    Rows(Range<usize>),
    /// These columns; they become rows (GPT-2 stores `[in, out]`).
    Columns(Range<usize>),
}

impl View {
    pub(super) fn shape(&self, stored: &[usize]) -> Vec<usize> {
        match (self, stored) {
            (Self::Rows(rows), [_, rest @ ..]) => [&[rows.len()], rest].concat(),
            (Self::Columns(columns), [rows, _]) => vec![columns.len(), *rows],
            _ => stored.to_vec(),
        }
    }

    pub(super) fn of(&self, stored: &Tensor) -> Tensor {
        match self {
            Self::Whole => stored.clone(),
            Self::Rows(rows) => stored.part(rows.clone()),
            Self::Columns(columns) => stored.transposed(columns.clone()),
        }
    }
}

/// Tensors that some checkpoints carry and no decoder needs.
pub(super) fn is_buffer(name: &str) -> bool {
    name.ends_with("rotary_emb.inv_freq")
        || name.ends_with(".attn.bias")
        || name.ends_with(".attn.masked_bias")
}

/// The canonical tensors in a tensor of a Hugging Face GPT-2 checkpoint.
pub(super) fn gpt2(name: &str, shape: &[usize], config: &Config) -> Vec<(String, View)> {
    let name = name.strip_prefix("transformer.").unwrap_or(name);
    let outside = match name {
        "wte.weight" => Some("model.embed_tokens.weight"),
        "wpe.weight" => Some("model.embed_positions.weight"),
        "ln_f.weight" => Some("model.norm.weight"),
        "ln_f.bias" => Some("model.norm.bias"),
        _ => None,
    };
    if let Some(canonical) = outside {
        return vec![(canonical.to_owned(), View::Whole)];
    }
    let Some((layer, inner)) = name
        .strip_prefix("h.")
        .and_then(|rest| rest.split_once('.'))
    else {
        return vec![(name.to_owned(), View::Whole)];
    };
    let Some((role, kind)) = inner.rsplit_once('.') else {
        return vec![(name.to_owned(), View::Whole)];
    };
    let canonical = |role: &str| format!("model.layers.{layer}.{role}.{kind}");
    let linear = |role: &str| {
        let view = match *shape {
            [_, out] => View::Columns(0..out),
            _ => View::Whole,
        };
        vec![(canonical(role), view)]
    };
    match role {
        "ln_1" => vec![(canonical("input_layernorm"), View::Whole)],
        "ln_2" => vec![(canonical("post_attention_layernorm"), View::Whole)],
        "attn.c_attn" => fused(&canonical, config, shape.len() == 2),
        "attn.c_proj" => linear("self_attn.o_proj"),
        "mlp.c_fc" => linear("mlp.up_proj"),
        "mlp.c_proj" => linear("mlp.down_proj"),
        _ => vec![(name.to_owned(), View::Whole)],
    }
}

/// Queries, keys and values in one matrix or bias.
fn fused(
    canonical: &dyn Fn(&str) -> String,
    config: &Config,
    columns: bool,
) -> Vec<(String, View)> {
    let d = &config.dims;
    let (q, kv) = (d.heads * d.head_dim, d.kv_heads * d.head_dim);
    let parts = [("q", 0..q), ("k", q..q + kv), ("v", q + kv..q + 2 * kv)];
    let view = |range| {
        if columns {
            View::Columns(range)
        } else {
            View::Rows(range)
        }
    };
    let parts = parts.into_iter();
    parts
        .map(|(role, range)| (canonical(&format!("self_attn.{role}_proj")), view(range)))
        .collect()
}

/// The canonical tensors in a tensor of a GGUF file.
pub(super) fn gguf(name: &str, config: &Config) -> Vec<(String, View)> {
    let outside = match name {
        "token_embd.weight" => Some("model.embed_tokens.weight"),
        "position_embd.weight" => Some("model.embed_positions.weight"),
        "output_norm.weight" => Some("model.norm.weight"),
        "output_norm.bias" => Some("model.norm.bias"),
        "output.weight" => Some("lm_head.weight"),
        _ => None,
    };
    if let Some(canonical) = outside {
        return vec![(canonical.to_owned(), View::Whole)];
    }
    let in_layer = name
        .strip_prefix("blk.")
        .and_then(|rest| rest.split_once('.'));
    let role = in_layer.and_then(|(layer, inner)| Some((layer, inner.rsplit_once('.')?)));
    let Some((layer, (role, kind))) = role else {
        return vec![(name.to_owned(), View::Whole)];
    };
    let canonical = |role: &str| format!("model.layers.{layer}.{role}.{kind}");
    let role = match role {
        "attn_norm" => "input_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_qkv" => return fused(&canonical, config, false),
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "ffn_norm" => "post_attention_layernorm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => return vec![(name.to_owned(), View::Whole)],
    };
    vec![(canonical(role), View::Whole)]
}

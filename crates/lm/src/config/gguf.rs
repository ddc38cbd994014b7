//! The metadata of GGUF files.

use super::rope::{self, Rope};
use super::{
    Activation, Architecture, Config, Fields, MOST_CONTEXT, MOST_HEADS, MOST_LAYERS, MOST_TOKENS,
    MOST_WIDTH, Norm, Positions, check_groups, default_head_dim,
};
use crate::error::LmError;
use crate::file::Gguf;
use crate::roles::Dims;

/// SmolLM3 leaves out the rotation in every layer whose number this divides; the files do not say.
const SMOLLM3_INTERVAL: usize = 4;

pub(super) fn read(file: &Gguf) -> Result<Config, LmError> {
    let fields = Fields::gguf(file);
    let name = fields
        .text("general.architecture")?
        .ok_or_else(|| fields.wrong("general.architecture", "is missing"))?;
    let architecture = Architecture::named(&name)
        .filter(|&a| a != Architecture::Mistral)
        .ok_or_else(|| Architecture::refuse(&fields, "general.architecture", &name))?;
    let key = |rest: &str| format!("{name}.{rest}");
    if let Some(parts) = fields
        .size("split.count", usize::MAX >> 1)?
        .filter(|&n| n > 1)
    {
        let what =
            format!("says that this is one of {parts} parts; join them with gguf-split first");
        return Err(fields.wrong("split.count", what));
    }
    let experts = key("expert_count");
    if fields.whole_numbers(&experts)?.is_some_and(|n| n != [0]) {
        return Err(fields.wrong(&experts, "asks for experts, which are not known"));
    }

    let hidden = fields.need(&key("embedding_length"), MOST_WIDTH)?;
    let layers = fields.need(&key("block_count"), MOST_LAYERS)?;
    let heads = per_layer(&fields, &key("attention.head_count"), MOST_HEADS)?
        .ok_or_else(|| fields.wrong(&key("attention.head_count"), "is missing"))?;
    let kv_heads =
        per_layer(&fields, &key("attention.head_count_kv"), MOST_HEADS)?.unwrap_or(heads);
    check_groups(&fields, &key("attention.head_count_kv"), heads, kv_heads)?;
    let head_dim = match fields.size(&key("attention.key_length"), MOST_HEADS)? {
        Some(length) => length,
        None => {
            let names = [&*key("embedding_length"), &*key("attention.head_count")];
            default_head_dim(&fields, names, hidden, heads)?
        }
    };
    let values = fields.size(&key("attention.value_length"), MOST_HEADS)?;
    if values.is_some_and(|n| n != head_dim) {
        let what = format!("is not the length of keys, {head_dim}; this is not known");
        return Err(fields.wrong(&key("attention.value_length"), what));
    }
    let max_position_embeddings = fields.need(&key("context_length"), MOST_CONTEXT)?;
    let gpt2 = architecture == Architecture::Gpt2;
    let positions = if gpt2 {
        Positions::Learned
    } else {
        let sizes = rope::Sizes {
            head_dim,
            max_position_embeddings,
        };
        let smollm3 = architecture == Architecture::SmolLm3;
        let rotated = (1..=layers).map(|n| !(smollm3 && n.is_multiple_of(SMOLLM3_INTERVAL)));
        Positions::Rope(Rope::from_gguf(
            file,
            architecture,
            sizes,
            rotated.collect(),
        )?)
    };
    let eps = if gpt2 {
        "layer_norm_epsilon"
    } else {
        "layer_norm_rms_epsilon"
    };
    let window = fields.size(&key("attention.sliding_window"), MOST_CONTEXT)?;
    Ok(Config {
        architecture,
        dims: Dims {
            layers,
            heads,
            kv_heads,
            head_dim,
            hidden,
            vocab: vocabulary(file, &fields, &key("vocab_size"))?,
        },
        intermediate_size: per_layer(&fields, &key("feed_forward_length"), MOST_WIDTH)?
            .ok_or_else(|| fields.wrong(&key("feed_forward_length"), "is missing"))?,
        max_position_embeddings,
        norm: if gpt2 { Norm::Layer } else { Norm::Rms },
        norm_eps: fields.epsilon(&key(&format!("attention.{eps}")), None)?,
        hidden_act: if gpt2 {
            Activation::GeluTanh
        } else {
            Activation::Silu
        },
        gated_mlp: !gpt2,
        qkv_bias: gpt2 || file.has("blk.0.attn_q.bias"),
        output_bias: gpt2 || file.has("blk.0.attn_output.bias"),
        mlp_bias: gpt2 || file.has("blk.0.ffn_up.bias"),
        qk_norm: architecture == Architecture::Qwen3,
        tie_word_embeddings: !file.has("output.weight"),
        positions,
        sliding_window: vec![window; layers],
        block_mask: None,
        bos_token_id: fields.token("tokenizer.ggml.bos_token_id")?,
        eos_token_ids: fields.tokens("tokenizer.ggml.eos_token_id")?,
    })
}

/// A size that may be given per layer, as long as it is the same in all.
fn per_layer(fields: &Fields, name: &str, most: usize) -> Result<Option<usize>, LmError> {
    let Some(numbers) = fields.whole_numbers(name)? else {
        return Ok(None);
    };
    match numbers[..] {
        [first, ref rest @ ..] if rest.iter().all(|&n| n == first) => {
            match usize::try_from(first) {
                Ok(n) if n >= 1 && n <= most => Ok(Some(n)),
                _ => Err(fields.wrong(name, format!("is {first}; it must be from 1 to {most}"))),
            }
        }
        [] => Err(fields.wrong(name, "is empty")),
        _ => Err(fields.wrong(name, "differs between layers, which is not known")),
    }
}

/// Rows of the embedding, which the metadata must not contradict.
fn vocabulary(file: &Gguf, fields: &Fields, name: &str) -> Result<usize, LmError> {
    let stated = fields.size(name, MOST_TOKENS)?;
    match file.shape("token_embd.weight") {
        Some(&[rows, _]) if rows <= MOST_TOKENS => Ok(rows),
        Some(_) | None => stated.ok_or_else(|| fields.wrong(name, "is missing")),
    }
}

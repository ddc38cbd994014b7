//! `config.json`, with the field names of transformers, old and new.

use std::path::Path;

use keyfold_core::block_mask::BlockMask;
use serde_json::{Map, Value as Json};

use super::rope::{self, Rope};
use super::{
    Activation, Architecture, Config, Fields, MOST_CONTEXT, MOST_HEADS, MOST_LAYERS, MOST_TOKENS,
    MOST_WIDTH, Norm, Positions, check_groups, default_head_dim,
};
use crate::error::{LmError, invalid};
use crate::roles::Dims;

pub(super) fn read(path: &Path, json: &[u8], generation: Option<&[u8]>) -> Result<Config, LmError> {
    let map: Map<String, Json> = serde_json::from_slice(json)
        .map_err(|e| invalid(path, format!("it is no JSON object: {e}")))?;
    let fields = Fields::json(path, &map);
    let architecture = architecture(&fields)?;
    if fields.object("quantization_config")?.is_some() {
        return Err(fields.wrong(
            "quantization_config",
            "says that the weights are quantised; take the unquantised model or a GGUF file",
        ));
    }
    let mut config = match architecture {
        Architecture::Gpt2 => gpt2(&fields)?,
        _ => llama(&fields, architecture)?,
    };
    if let Some(json) = generation {
        more_ends(path, json, &mut config.eos_token_ids)?;
    }
    Ok(config)
}

fn architecture(fields: &Fields) -> Result<Architecture, LmError> {
    match fields.text("model_type")? {
        Some(name) => Architecture::named(&name)
            .ok_or_else(|| Architecture::refuse(fields, "model_type", &name)),
        None => Err(fields.wrong("model_type", "is missing; it names the architecture")),
    }
}

/// Tokens that end a text by `generation_config.json`.
fn more_ends(config: &Path, json: &[u8], ends: &mut Vec<u32>) -> Result<(), LmError> {
    let path = config.with_file_name("generation_config.json");
    let map: Map<String, Json> = serde_json::from_slice(json)
        .map_err(|e| invalid(&path, format!("it is no JSON object: {e}")))?;
    for id in Fields::json(&path, &map).tokens("eos_token_id")? {
        if !ends.contains(&id) {
            ends.push(id);
        }
    }
    Ok(())
}

/// Llama and what descends from it.
fn llama(fields: &Fields, architecture: Architecture) -> Result<Config, LmError> {
    let hidden = fields.need("hidden_size", MOST_WIDTH)?;
    let heads = fields.need("num_attention_heads", MOST_HEADS)?;
    let layers = fields.need("num_hidden_layers", MOST_LAYERS)?;
    let kv_heads = fields
        .size("num_key_value_heads", MOST_HEADS)?
        .unwrap_or(heads);
    check_groups(fields, "num_key_value_heads", heads, kv_heads)?;
    let head_dim = match fields.size("head_dim", MOST_HEADS)? {
        Some(head_dim) => head_dim,
        None => default_head_dim(
            fields,
            ["hidden_size", "num_attention_heads"],
            hidden,
            heads,
        )?,
    };
    let max_position_embeddings = fields.need("max_position_embeddings", MOST_CONTEXT)?;
    let rotated = rotated_layers(fields, architecture, layers)?;
    let sizes = rope::Sizes {
        head_dim,
        max_position_embeddings,
    };
    let bias = fields.flag("attention_bias")?.unwrap_or(false);
    let qwen2 = architecture == Architecture::Qwen2;
    Ok(Config {
        architecture,
        dims: Dims {
            layers,
            heads,
            kv_heads,
            head_dim,
            hidden,
            vocab: fields.need("vocab_size", MOST_TOKENS)?,
        },
        intermediate_size: fields.need("intermediate_size", MOST_WIDTH)?,
        max_position_embeddings,
        norm: Norm::Rms,
        norm_eps: fields.epsilon("rms_norm_eps", None)?,
        hidden_act: Activation::read(fields, "hidden_act", Activation::Silu)?,
        gated_mlp: true,
        qkv_bias: bias || qwen2,
        output_bias: bias && !qwen2,
        mlp_bias: fields.flag("mlp_bias")?.unwrap_or(false),
        qk_norm: architecture == Architecture::Qwen3,
        tie_word_embeddings: fields
            .flag("tie_word_embeddings")?
            .unwrap_or(architecture == Architecture::SmolLm3),
        sliding_window: windows(fields, architecture, &rotated)?,
        block_mask: block_mask(fields)?,
        positions: Positions::Rope(Rope::from_json(fields, architecture, sizes, rotated)?),
        bos_token_id: fields.token("bos_token_id")?,
        eos_token_ids: fields.tokens("eos_token_id")?,
    })
}

/// Which layers rotate queries and keys.
fn rotated_layers(
    fields: &Fields,
    architecture: Architecture,
    layers: usize,
) -> Result<Vec<bool>, LmError> {
    if architecture != Architecture::SmolLm3 {
        return Ok(vec![true; layers]);
    }
    // The field says 1 where there *is* a rotation.
    if let Some(flags) = fields.whole_numbers("no_rope_layers")? {
        if flags.len() < layers {
            let what = format!("has {} entries for {layers} layers", flags.len());
            return Err(fields.wrong("no_rope_layers", what));
        }
        return Ok(flags[..layers].iter().map(|&flag| flag != 0).collect());
    }
    let interval = fields
        .size("no_rope_layer_interval", usize::MAX >> 1)?
        .unwrap_or(4);
    Ok((0..layers)
        .map(|i| !(i + 1).is_multiple_of(interval))
        .collect())
}

/// The window of every layer.
fn windows(
    fields: &Fields,
    architecture: Architecture,
    rotated: &[bool],
) -> Result<Vec<Option<usize>>, LmError> {
    let layers = rotated.len();
    let in_use = match architecture {
        Architecture::Mistral => true,
        Architecture::Qwen2 | Architecture::Qwen3 | Architecture::SmolLm3 => {
            fields.flag("use_sliding_window")?.unwrap_or(false)
        }
        Architecture::Llama | Architecture::Gpt2 => false,
    };
    let Some(window) = fields
        .size("sliding_window", MOST_CONTEXT)?
        .filter(|_| in_use)
    else {
        return Ok(vec![None; layers]);
    };
    let kinds = match architecture {
        Architecture::Mistral => None,
        _ => layer_types(fields, layers)?,
    };
    let slides: Vec<bool> = match (kinds, architecture) {
        (Some(kinds), _) => kinds,
        (None, Architecture::Mistral) => vec![true; layers],
        (None, Architecture::SmolLm3) => rotated.iter().map(|rotated| !rotated).collect(),
        (None, _) => {
            let full = fields.whole_numbers("max_window_layers")?;
            let full = full.and_then(|n| n.first().copied()).unwrap_or(28);
            (0..layers as i128).map(|i| i >= full).collect()
        }
    };
    Ok(slides
        .into_iter()
        .map(|slides| slides.then_some(window))
        .collect())
}

/// Whether each layer slides, where the configuration lists it.
fn layer_types(fields: &Fields, layers: usize) -> Result<Option<Vec<bool>>, LmError> {
    let Some(super::Field::List(items)) = fields.get("layer_types")? else {
        return Ok(None);
    };
    if items.len() != layers {
        let what = format!("has {} entries for {layers} layers", items.len());
        return Err(fields.wrong("layer_types", what));
    }
    let slides = |item: &super::Field| match item {
        super::Field::Text(kind) if kind == "sliding_attention" => Ok(true),
        super::Field::Text(kind) if kind == "full_attention" => Ok(false),
        other => Err(fields.wrong(
            "layer_types",
            format!("holds {other:?}; full_attention and sliding_attention are known"),
        )),
    };
    items.iter().map(slides).collect::<Result<_, _>>().map(Some)
}

fn gpt2(fields: &Fields) -> Result<Config, LmError> {
    let hidden = fields.need("n_embd", MOST_WIDTH)?;
    let heads = fields.need("n_head", MOST_HEADS)?;
    let layers = fields.need("n_layer", MOST_LAYERS)?;
    if fields.flag("scale_attn_weights")? == Some(false) {
        return Err(fields.wrong(
            "scale_attn_weights",
            "is false; only scaled scores are known",
        ));
    }
    for name in ["scale_attn_by_inverse_layer_idx", "add_cross_attention"] {
        if fields.flag(name)? == Some(true) {
            return Err(fields.wrong(name, "is true, which is not known"));
        }
    }
    Ok(Config {
        architecture: Architecture::Gpt2,
        dims: Dims {
            layers,
            heads,
            kv_heads: heads,
            head_dim: default_head_dim(fields, ["n_embd", "n_head"], hidden, heads)?,
            hidden,
            vocab: fields.need("vocab_size", MOST_TOKENS)?,
        },
        intermediate_size: fields.size("n_inner", MOST_WIDTH)?.unwrap_or(4 * hidden),
        max_position_embeddings: match fields.size("n_positions", MOST_CONTEXT)? {
            Some(positions) => positions,
            None => fields.need("n_ctx", MOST_CONTEXT)?,
        },
        norm: Norm::Layer,
        norm_eps: fields.epsilon("layer_norm_epsilon", Some(1e-5))?,
        hidden_act: Activation::read(fields, "activation_function", Activation::GeluTanh)?,
        gated_mlp: false,
        qkv_bias: true,
        output_bias: true,
        mlp_bias: true,
        qk_norm: false,
        tie_word_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(true),
        positions: Positions::Learned,
        sliding_window: vec![None; layers],
        block_mask: None,
        bos_token_id: fields.token("bos_token_id")?,
        eos_token_ids: fields.tokens("eos_token_id")?,
    })
}

/// The mask that `keyfold train language-model` trained on.
fn block_mask(fields: &Fields) -> Result<Option<BlockMask>, LmError> {
    let mask: Option<BlockMask> = fields.parsed("block_mask")?;
    match mask.as_ref().and_then(BlockMask::problem) {
        Some(problem) => Err(fields.wrong("block_mask", format!("makes no sense: {problem}"))),
        None => Ok(mask),
    }
}

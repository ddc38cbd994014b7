//! Folders of EleutherAI's sparsify: top-k autoencoders and transcoders.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::tensors::{Tensor, Tensors, write};
use super::{Layout, SaeFile, read_config, size, write_config};
use crate::DictionaryError;
use crate::sae::{Activation, Normalize, Sae};

pub(super) const WEIGHTS: &str = "sae.safetensors";
const CONFIG: &str = "cfg.json";

/// Codes to each number of a row, where the configuration does not say.
const EXPANSION: usize = 32;

pub(super) fn load(folder: &Path) -> Result<SaeFile, DictionaryError> {
    let path = folder.join(CONFIG);
    let config = read_config(&path)?;
    let or = |name: &str, default: usize| match config[name] {
        Value::Null => Ok(default),
        _ => size(&config, name, &path),
    };
    if let Some(other) = config["activation"].as_str().filter(|a| *a != "topk") {
        return Err(DictionaryError::format(
            &path,
            format!("its activation '{other}' is not known here; 'topk' is"),
        ));
    }
    let d_in = size(&config, "d_in", &path)?;
    let d_sae = match or("num_latents", 0)? {
        0 => d_in.saturating_mul(or("expansion_factor", EXPANSION)?),
        n => n,
    };
    let weights = folder.join(WEIGHTS);
    let mut tensors = Tensors::read(&weights)?;
    let precision = tensors.precision("encoder.weight");
    let sae = Sae {
        d_in,
        d_sae,
        d_out: d_in,
        activation: Activation::TopK { k: or("k", 32)? },
        normalize: Normalize::None,
        apply_b_dec_to_input: !config["transcode"].as_bool().unwrap_or(false),
        rescale_acts_by_decoder_norm: false,
        w_enc: tensors.take("encoder.weight", &[d_sae, d_in])?,
        b_enc: tensors.take("encoder.bias", &[d_sae])?,
        w_dec: tensors.take("W_dec", &[d_sae, d_in])?,
        b_dec: tensors.take("b_dec", &[d_in])?,
        w_skip: match tensors.has("W_skip") {
            true => tensors.take("W_skip", &[d_in, d_in])?,
            false => Vec::new(),
        },
    };
    Ok(SaeFile {
        sae,
        layout: Layout::Sparsify,
        config,
        precision,
        needs_input_scale: false,
        log_sparsity: None,
        others: tensors.rest(),
    })
}

/// The configuration of an autoencoder that was made here.
pub(super) fn config(sae: &Sae) -> Result<Value, DictionaryError> {
    let fits = sae.d_in == sae.d_out
        && sae.normalize == Normalize::None
        && !sae.rescale_acts_by_decoder_norm;
    let Activation::TopK { k } = sae.activation else {
        return Err(DictionaryError::settings(
            "sparsify's layout holds top-k autoencoders; write this one as SAELens'",
        ));
    };
    if !fits {
        return Err(DictionaryError::settings(
            "sparsify's layout has no place for another output width, normalised rows or choice by norm",
        ));
    }
    Ok(json!({
        "activation": "topk",
        "expansion_factor": EXPANSION,
        "normalize_decoder": true,
        "num_latents": sae.d_sae,
        "k": k,
        "multi_topk": false,
        "skip_connection": !sae.w_skip.is_empty(),
        "transcode": !sae.apply_b_dec_to_input,
        "d_in": sae.d_in,
    }))
}

pub(super) fn save(file: &SaeFile, folder: &Path) -> Result<(), DictionaryError> {
    fs::create_dir_all(folder).map_err(|source| DictionaryError::io(folder, source))?;
    let sae = &file.sae;
    let (d_in, d_sae) = (sae.d_in, sae.d_sae);
    let mut tensors = file.others.clone();
    let mut put = |name: &str, numbers: &[f32], shape: &[usize]| {
        tensors.insert(name.to_owned(), Tensor::of(numbers, shape, file.precision));
    };
    put("encoder.weight", &sae.w_enc, &[d_sae, d_in]);
    put("encoder.bias", &sae.b_enc, &[d_sae]);
    put("W_dec", &sae.w_dec, &[d_sae, d_in]);
    put("b_dec", &sae.b_dec, &[d_in]);
    if !sae.w_skip.is_empty() {
        put("W_skip", &sae.w_skip, &[d_in, d_in]);
    }
    write(&folder.join(WEIGHTS), &tensors)?;
    write_config(&folder.join(CONFIG), &file.config)
}

//! Folders of SAELens.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::tensors::{Tensor, Tensors, write};
use super::{Layout, SaeFile, read_config, size, transposed, write_config};
use crate::DictionaryError;
use crate::sae::{Activation, Normalize, Sae};

pub(super) const WEIGHTS: &str = "sae_weights.safetensors";
const CONFIG: &str = "cfg.json";
const SPARSITY: &str = "sparsity.safetensors";

/// What today's names are called in configurations before version 6.
fn said<'a>(config: &'a Value, name: &str, before: &str) -> &'a Value {
    match &config[name] {
        Value::Null => &config[before],
        value => value,
    }
}

/// The architecture, and whether it is a transcoder.
fn architecture(config: &Value, path: &Path) -> Result<(String, bool), DictionaryError> {
    let mut name = config["architecture"].as_str().unwrap_or("standard");
    if said(config, "activation_fn", "activation_fn_str") == "topk" {
        name = "topk";
    }
    let (name, transcoder) = match name {
        "standard" | "topk" | "gated" | "jumprelu" => (name, false),
        "transcoder" | "skip_transcoder" => ("standard", true),
        "jumprelu_transcoder" | "jumprelu_skip_transcoder" => ("jumprelu", true),
        other => {
            return Err(DictionaryError::format(
                path,
                format!(
                    "its architecture '{other}' is not known here; standard, topk, gated, jumprelu and \
                     transcoders are (batch top-k is saved for use as jumprelu)"
                ),
            ));
        }
    };
    Ok((name.to_owned(), transcoder))
}

fn normalize(config: &Value, path: &Path) -> Result<(Normalize, bool), DictionaryError> {
    match &config["normalize_activations"] {
        Value::Null | Value::Bool(false) => Ok((Normalize::None, false)),
        Value::Bool(true) => Ok((Normalize::None, true)),
        Value::String(name) => match name.as_str() {
            "none" => Ok((Normalize::None, false)),
            "expected_average_only_in" => Ok((Normalize::None, true)),
            "constant_norm_rescale" => Ok((Normalize::ConstantNorm, false)),
            "layer_norm" => Ok((Normalize::LayerNorm, false)),
            other => Err(DictionaryError::format(
                path,
                format!("it normalises rows by '{other}', which is not known here"),
            )),
        },
        other => Err(DictionaryError::format(
            path,
            format!("normalize_activations is {other}"),
        )),
    }
}

pub(super) fn load(folder: &Path) -> Result<SaeFile, DictionaryError> {
    let path = folder.join(CONFIG);
    let config = read_config(&path)?;
    let (name, transcoder) = architecture(&config, &path)?;
    let (d_in, d_sae) = (
        size(&config, "d_in", &path)?,
        size(&config, "d_sae", &path)?,
    );
    let d_out = match config["d_out"] {
        Value::Null => d_in,
        _ => size(&config, "d_out", &path)?,
    };
    let (normalize, needs_input_scale) = normalize(&config, &path)?;
    let weights = folder.join(WEIGHTS);
    let mut tensors = Tensors::read(&weights)?;
    let precision = tensors.precision("W_enc");
    let w_enc = transposed(&tensors.take("W_enc", &[d_in, d_sae])?, d_sae);
    let w_dec = tensors.take("W_dec", &[d_sae, d_out])?;
    let b_dec = tensors.take("b_dec", &[d_out])?;
    let gated = name == "gated";
    let b_enc = tensors.take(if gated { "b_gate" } else { "b_enc" }, &[d_sae])?;
    let activation = match name.as_str() {
        "topk" => Activation::TopK {
            k: match &config["k"] {
                Value::Null => size(&config["activation_fn_kwargs"], "k", &path)?,
                _ => size(&config, "k", &path)?,
            },
        },
        "gated" => Activation::Gated {
            b_mag: tensors.take("b_mag", &[d_sae])?,
            r_mag: tensors.take("r_mag", &[d_sae])?,
        },
        "jumprelu" if tensors.has("log_threshold") => Activation::JumpRelu {
            threshold: tensors
                .take("log_threshold", &[d_sae])?
                .iter()
                .map(|x| x.exp())
                .collect(),
        },
        "jumprelu" => Activation::JumpRelu {
            threshold: tensors.take("threshold", &[d_sae])?,
        },
        _ => Activation::Relu,
    };
    let w_skip = match tensors.has("W_skip") {
        true => tensors.take("W_skip", &[d_out, d_in])?,
        false => Vec::new(),
    };
    if tensors.has("scaling_factor") {
        let factors = tensors.take("scaling_factor", &[d_sae])?;
        if factors.iter().any(|x| *x != 1.0) {
            return Err(DictionaryError::format(
                &weights,
                "its codes were scaled again after training (scaling_factor), which is not known here",
            ));
        }
    }
    let sparsity = folder.join(SPARSITY);
    let log_sparsity = match sparsity.is_file() {
        true => Some(Tensors::read(&sparsity)?.take("sparsity", &[d_sae])?),
        false => None,
    };
    Ok(SaeFile {
        sae: Sae {
            d_in,
            d_sae,
            d_out,
            activation,
            normalize,
            apply_b_dec_to_input: !transcoder
                && config["apply_b_dec_to_input"].as_bool().unwrap_or(true),
            rescale_acts_by_decoder_norm: config["rescale_acts_by_decoder_norm"]
                .as_bool()
                .unwrap_or(false),
            w_enc,
            b_enc,
            w_dec,
            b_dec,
            w_skip,
        },
        layout: Layout::SaeLens,
        config,
        precision,
        needs_input_scale,
        log_sparsity,
        others: tensors.rest(),
    })
}

/// The configuration of an autoencoder that was made here.
pub(super) fn config(sae: &Sae) -> Value {
    let transcoder = !sae.apply_b_dec_to_input && (sae.d_in != sae.d_out || !sae.w_skip.is_empty());
    let skip = if sae.w_skip.is_empty() { "" } else { "skip_" };
    let name = match (&sae.activation, transcoder) {
        (Activation::Relu, false) => "standard".to_owned(),
        (Activation::Relu, true) => format!("{skip}transcoder"),
        (Activation::JumpRelu { .. }, false) => "jumprelu".to_owned(),
        (Activation::JumpRelu { .. }, true) => format!("jumprelu_{skip}transcoder"),
        (Activation::TopK { .. }, _) => "topk".to_owned(),
        (Activation::Gated { .. }, _) => "gated".to_owned(),
    };
    let mut config = json!({
        "architecture": name,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": sae.apply_b_dec_to_input,
        "normalize_activations": match sae.normalize {
            Normalize::None => "none",
            Normalize::ConstantNorm => "constant_norm_rescale",
            Normalize::LayerNorm => "layer_norm",
        },
        "reshape_activations": "none",
        "metadata": {},
    });
    if transcoder {
        config["d_out"] = sae.d_out.into();
    }
    if let Activation::TopK { k } = sae.activation {
        config["k"] = k.into();
        config["rescale_acts_by_decoder_norm"] = sae.rescale_acts_by_decoder_norm.into();
    }
    config
}

pub(super) fn save(file: &SaeFile, folder: &Path) -> Result<(), DictionaryError> {
    fs::create_dir_all(folder).map_err(|source| DictionaryError::io(folder, source))?;
    let sae = &file.sae;
    let (d_in, d_sae, d_out) = (sae.d_in, sae.d_sae, sae.d_out);
    let mut tensors = file.others.clone();
    let mut put = |name: &str, numbers: &[f32], shape: &[usize]| {
        tensors.insert(name.to_owned(), Tensor::of(numbers, shape, file.precision));
    };
    put("W_enc", &transposed(&sae.w_enc, d_in), &[d_in, d_sae]);
    put("W_dec", &sae.w_dec, &[d_sae, d_out]);
    put("b_dec", &sae.b_dec, &[d_out]);
    match &sae.activation {
        Activation::Gated { b_mag, r_mag } => {
            put("b_gate", &sae.b_enc, &[d_sae]);
            put("b_mag", b_mag, &[d_sae]);
            put("r_mag", r_mag, &[d_sae]);
        }
        other => {
            put("b_enc", &sae.b_enc, &[d_sae]);
            if let Activation::JumpRelu { threshold } = other {
                put("threshold", threshold, &[d_sae]);
            }
        }
    }
    if !sae.w_skip.is_empty() {
        put("W_skip", &sae.w_skip, &[d_out, d_in]);
    }
    write(&folder.join(WEIGHTS), &tensors)?;
    if let Some(sparsity) = &file.log_sparsity {
        let tensor = Tensor::of(sparsity, &[d_sae], super::Precision::F32);
        write(
            &folder.join(SPARSITY),
            &[("sparsity".to_owned(), tensor)].into(),
        )?;
    }
    write_config(&folder.join(CONFIG), &file.config)
}

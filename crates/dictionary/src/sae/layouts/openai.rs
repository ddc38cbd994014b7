//! Files of OpenAI's sparse_autoencoder: a dictionary of `torch.save` with tensors, the name
//! of the activation, and its settings.

use std::collections::BTreeMap;
use std::path::Path;

use keyfold_core::weights::{Scalar, TorchFile, WeightsError};
use serde_json::{Value, json};

use super::tensors::{Precision, Tensor};
use super::torch_writer::{self, Item};
use super::{Layout, SaeFile, transposed};
use crate::DictionaryError;
use crate::sae::{Activation, Normalize, Sae};

/// What the file is called here; theirs have the names of sites.
pub const WEIGHTS: &str = "autoencoder.pt";

/// Steps since each code was in use, as whole numbers.
const COUNT: &str = "stats_last_nonzero";

/// Statistics that the file holds for its viewer.
const STATISTICS: [&str; 3] = [COUNT, "latents_activation_frequency", "latents_mean_square"];

pub(super) fn load(path: &Path) -> Result<SaeFile, DictionaryError> {
    let fail = |e: WeightsError| DictionaryError::format(path, e.to_string());
    let file = TorchFile::open(path).map_err(fail)?;
    let shape = file.shape("encoder.weight").unwrap_or_default().to_vec();
    let &[d_sae, d_in] = &shape[..] else {
        return Err(DictionaryError::format(
            path,
            "it has no 'encoder.weight' with two axes; it is no autoencoder of OpenAI's",
        ));
    };
    let take = |name: &str, expected: &[usize]| match file.shape(name) {
        Some(found) if found == expected => file.read(name).map_err(fail),
        found => Err(DictionaryError::format(
            path,
            format!("tensor '{name}' has the shape {found:?}, not {expected:?}"),
        )),
    };
    let scalars: BTreeMap<String, Scalar> = file.scalars().into_iter().collect();
    let text = |name: &str| match scalars.get(name) {
        Some(Scalar::Text(text)) => Some(text.as_str()),
        _ => None,
    };
    let k = match scalars.get("activation_state_dict.k") {
        Some(Scalar::Int(k)) => usize::try_from(*k).unwrap_or(0),
        _ => 0,
    };
    let name = text("activation").unwrap_or("ReLU");
    let activation = match (name, text("activation_state_dict.postact_fn")) {
        ("ReLU", _) => Activation::Relu,
        ("TopK", None | Some("ReLU")) => Activation::TopK { k },
        (other, after) => {
            return Err(DictionaryError::format(
                path,
                format!(
                    "its activation '{other}' ({after:?}) is not known here; ReLU and TopK are"
                ),
            ));
        }
    };
    let mut others = BTreeMap::new();
    for name in STATISTICS {
        if let (Some(shape), Ok(numbers)) = (file.shape(name), file.read(name)) {
            let tensor = match name == COUNT {
                true => Tensor::whole(&numbers, shape),
                false => Tensor::of(&numbers, shape, Precision::F32),
            };
            others.insert(name.to_owned(), tensor);
        }
    }
    let sae = Sae {
        d_in,
        d_sae,
        d_out: d_in,
        // Files of top-k models do not say it, but all of them take normalised rows.
        normalize: match activation {
            Activation::TopK { .. } => Normalize::LayerNorm,
            _ => Normalize::None,
        },
        activation,
        apply_b_dec_to_input: true,
        rescale_acts_by_decoder_norm: false,
        w_enc: take("encoder.weight", &[d_sae, d_in])?,
        b_enc: take("latent_bias", &[d_sae])?,
        w_dec: transposed(&take("decoder.weight", &[d_in, d_sae])?, d_sae),
        b_dec: take("pre_bias", &[d_in])?,
        w_skip: Vec::new(),
    };
    Ok(SaeFile {
        config: config(&sae)?,
        sae,
        layout: Layout::OpenAi,
        precision: Precision::F32,
        needs_input_scale: false,
        log_sparsity: None,
        others,
    })
}

/// What the file says beside its tensors.
pub(super) fn config(sae: &Sae) -> Result<Value, DictionaryError> {
    let plain =
        sae.apply_b_dec_to_input && sae.w_skip.is_empty() && !sae.rescale_acts_by_decoder_norm;
    match (&sae.activation, sae.normalize) {
        (Activation::Relu, Normalize::None) if plain => Ok(json!({"activation": "ReLU"})),
        (Activation::TopK { k }, Normalize::LayerNorm) if plain => {
            Ok(json!({"activation": "TopK", "k": k, "postact_fn": "ReLU"}))
        }
        _ => Err(DictionaryError::settings(
            "OpenAI's layout holds ReLU autoencoders and top-k ones of normalised rows; write this one \
             as SAELens'",
        )),
    }
}

pub(super) fn save(file: &SaeFile, path: &Path) -> Result<(), DictionaryError> {
    let sae = &file.sae;
    let (d_in, d_sae) = (sae.d_in, sae.d_sae);
    let tensor =
        |numbers: &[f32], shape: &[usize]| Item::Tensor(Tensor::of(numbers, shape, Precision::F32));
    let mut items = vec![
        ("pre_bias", tensor(&sae.b_dec, &[d_in])),
        ("latent_bias", tensor(&sae.b_enc, &[d_sae])),
    ];
    for name in STATISTICS {
        if let Some(statistic) = file.others.get(name) {
            items.push((name, Item::Tensor(statistic.clone())));
        }
    }
    items.push(("encoder.weight", tensor(&sae.w_enc, &[d_sae, d_in])));
    items.push((
        "decoder.weight",
        tensor(&transposed(&sae.w_dec, d_in), &[d_in, d_sae]),
    ));
    match sae.activation {
        Activation::TopK { k } => {
            items.push(("activation", Item::Text("TopK".to_owned())));
            let settings = vec![
                ("k", Item::Int(k as u32)),
                ("postact_fn", Item::Text("ReLU".to_owned())),
            ];
            items.push(("activation_state_dict", Item::Dict(settings)));
        }
        _ => items.push(("activation", Item::Text("ReLU".to_owned()))),
    }
    torch_writer::write(path, &items).map_err(|source| DictionaryError::io(path, source))
}

//! Encoders of Hydra (Hwang et al. 2024), as their authors train them and `keyfold train hydra`.
//!
//! `x ← norm(x + hydra(x))`; the first `x` is the normed sum of a vector per token id and one for
//! the kind of text. Time and memory grow with the length of a text.

use std::path::Path;

use keyfold_kernels as kernels;
use keyfold_kernels::Team;
use keyfold_sequence::SequenceError;
use keyfold_sequence::hydra::{Hydra as Mixer, HydraConfig, HydraWeights};
use serde::Deserialize;

use super::layers::{Embedding, LayerNorm, check_sizes};
use super::{LONGEST, Packed};
use crate::error::{LoadError, invalid};
use keyfold_core::weights::Weights;

/// The part of config.json that inference needs.
#[derive(Debug, Deserialize)]
pub(crate) struct Config {
    hidden_size: usize,
    num_hidden_layers: usize,
    #[serde(default = "hydra")]
    matrix_mixer_type: String,
    max_position_embeddings: Option<usize>,
    #[serde(default)]
    is_prenorm: bool,
    #[serde(default)]
    use_position_embeddings: bool,
    layer_norm_eps: Option<f32>,
    d_state: Option<usize>,
    d_conv: Option<usize>,
    expand: Option<usize>,
    headdim: Option<usize>,
}

fn hydra() -> String {
    "hydra".into()
}

pub(crate) struct Hydra {
    words: Embedding,
    /// The vector of the first kind of text.
    kind: Vec<f32>,
    norm: LayerNorm,
    layers: Vec<(Mixer, LayerNorm)>,
    hidden: usize,
    longest: usize,
}

impl Hydra {
    pub(crate) fn load(
        config: &Config,
        path: &Path,
        weights: &mut Weights,
    ) -> Result<Self, LoadError> {
        if config.matrix_mixer_type != "hydra" {
            let what = format!(
                "matrix_mixer_type is '{}'; only encoders whose mixer is hydra are read here",
                config.matrix_mixer_type
            );
            return Err(invalid(path, what));
        }
        for (field, found) in [
            ("is_prenorm", config.is_prenorm),
            ("use_position_embeddings", config.use_position_embeddings),
        ] {
            if found {
                return Err(invalid(
                    path,
                    format!("{field} is true; here it can only be false"),
                ));
            }
        }
        let hidden = config.hidden_size;
        check_sizes(path, hidden, config.num_hidden_layers, 1, hidden)?;
        let defaults = HydraConfig::default();
        let sizes = HydraConfig {
            d_model: hidden,
            d_state: config.d_state.unwrap_or(defaults.d_state),
            d_conv: config.d_conv.unwrap_or(defaults.d_conv),
            expand: config.expand.unwrap_or(defaults.expand),
            headdim: config.headdim.unwrap_or(defaults.headdim),
            ngroups: 1,
        };
        weights.find_prefix("embeddings.word_embeddings.weight")?;
        let types = "embeddings.token_type_embeddings.weight";
        let kinds = weights.shape(types)?.first().copied().unwrap_or(0);
        let mut kind = weights.tensor(types, &[kinds, hidden])?;
        if kinds == 0 {
            return Err(invalid(weights.path(), "its token type table has no rows"));
        }
        kind.truncate(hidden);
        let eps = config.layer_norm_eps.unwrap_or(1e-12);
        let layers = (0..config.num_hidden_layers).map(|i| {
            let place = format!("encoder.layer.{i}.layer");
            let mixer = mixer(&sizes, path, weights, &format!("{place}.mixer"))?;
            let norm = LayerNorm::load(weights, &format!("{place}.norm"), hidden, true, 1e-5)?;
            Ok::<_, LoadError>((mixer, norm))
        });
        Ok(Self {
            words: Embedding::load(weights, "embeddings.word_embeddings.weight", hidden)?,
            kind,
            norm: LayerNorm::load(weights, "embeddings.LayerNorm", hidden, true, eps)?,
            layers: layers.collect::<Result<_, _>>()?,
            hidden,
            longest: config.max_position_embeddings.unwrap_or(LONGEST),
        })
    }

    pub(crate) fn hidden(&self) -> usize {
        self.hidden
    }

    pub(crate) fn vocabulary(&self) -> usize {
        self.words.rows()
    }

    pub(crate) fn longest(&self) -> usize {
        self.longest
    }

    pub(crate) fn forward(&self, batch: &Packed, threads: usize) -> Vec<f32> {
        let team = Team::new(threads.max(1));
        let mut all = Vec::with_capacity(batch.ids.len() * self.hidden);
        for text in &batch.sequences {
            let ids = &batch.ids[text.start..text.start + text.len];
            all.extend(self.through(ids, self.layers.len(), &team));
        }
        all
    }

    /// What the first layers make of one text.
    fn through(&self, ids: &[u32], layers: usize, team: &Team) -> Vec<f32> {
        let mut x = Vec::with_capacity(ids.len() * self.hidden);
        for &id in ids {
            x.extend_from_slice(self.words.row(id as usize));
        }
        kernels::add_bias(&mut x, &self.kind);
        self.norm.apply(&mut x);
        for (mixer, norm) in &self.layers[..layers] {
            // A text of no tokens has no rows, and there is no other refusal.
            if let Ok(mixed) = mixer.forward(&x, team) {
                kernels::add_assign(&mut x, &mixed);
            }
            norm.apply(&mut x);
        }
        x
    }

    /// The matrix `[tokens, tokens]` by which a head of a layer mixes the positions of a text.
    pub(crate) fn matrix(
        &self,
        ids: &[u32],
        layer: usize,
        head: usize,
    ) -> Result<Vec<f32>, SequenceError> {
        let Some((mixer, _)) = self.layers.get(layer) else {
            return Err(SequenceError::Refused(format!(
                "there is no layer {layer}; the model has {}, counted from 0",
                self.layers.len()
            )));
        };
        mixer.matrix(&self.through(ids, layer, &Team::new(1)), head)
    }
}

fn mixer(
    sizes: &HydraConfig,
    path: &Path,
    weights: &Weights,
    place: &str,
) -> Result<Mixer, LoadError> {
    let refused = |e: keyfold_sequence::SequenceError| invalid(path, e.to_string());
    let di = sizes.expand.saturating_mul(sizes.d_model);
    let states = sizes.ngroups.saturating_mul(sizes.d_state);
    if di > 1 << 20 || states > 1 << 16 || sizes.d_conv > 1 << 10 {
        return Err(invalid(path, "expand, d_state or d_conv is too large"));
    }
    let (heads, channels) = (di / sizes.headdim.max(1), di + 4 * states);
    let tensor = |name: &str, shape: &[usize]| weights.tensor(&format!("{place}.{name}"), shape);
    let read = HydraWeights {
        in_proj_weight: tensor(
            "in_proj.weight",
            &[di + channels + 2 * heads, sizes.d_model],
        )?,
        conv1d_weight: tensor("conv1d.weight", &[channels, 1, sizes.d_conv])?,
        conv1d_bias: tensor("conv1d.bias", &[channels])?,
        dt_bias: tensor("dt_bias", &[heads])?,
        a_log: tensor("A_log", &[heads])?,
        d: tensor("D", &[heads])?,
        fc_d_weight: tensor("fc_D.weight", &[heads, di])?,
        norm_weight: tensor("norm.weight", &[di])?,
        out_proj_weight: tensor("out_proj.weight", &[sizes.d_model, di])?,
    };
    Mixer::new(sizes.clone(), read).map_err(refused)
}

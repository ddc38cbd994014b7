//! Settings of PowerAttention: which [mask](keyfold_core::block_mask), and in which layers.
//!
//! A model that was not trained on the mask loses quality at layers that relay information;
//! leave some layers dense then. `keyfold train language-model` trains on it.

use std::str::FromStr;

use keyfold_core::block_mask::BlockMask;
use serde::{Deserialize, Serialize};

use crate::refusal::Refusal;
use crate::roles::Dims;

const METHOD: &str = "power";

/// Rows of the tiles in which attention is computed; blocks are whole tiles.
pub const TILE: usize = 64;

/// Settings.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PowerConfig {
    /// Which blocks see which.
    pub mask: BlockMask,
    /// Layers that see everything.
    pub dense_layers: DenseLayers,
    /// Whether the model was trained on the mask.
    pub adapted: bool,
}

/// Layers that see everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DenseLayers {
    /// None.
    #[default]
    None,
    /// These.
    List(Vec<usize>),
    /// The first so many of every so many.
    OfEvery(usize, usize),
}

impl DenseLayers {
    /// Whether `layer` sees everything.
    pub fn contains(&self, layer: usize) -> bool {
        match self {
            Self::None => false,
            Self::List(layers) => layers.contains(&layer),
            Self::OfEvery(first, every) => layer % every < *first,
        }
    }
}

impl From<BlockMask> for PowerConfig {
    fn from(mask: BlockMask) -> Self {
        Self {
            mask,
            ..Self::default()
        }
    }
}

impl FromStr for DenseLayers {
    type Err = Refusal;

    /// `none`, `2/7` (the first two of every seven), or `0,1,7,8`.
    fn from_str(text: &str) -> Result<Self, Refusal> {
        let number = |part: &str| {
            part.trim().parse::<usize>().map_err(|_| {
                Refusal::setting(
                    METHOD,
                    format!("{text:?} names no layers: write none, 0,1,7,8 or 2/7"),
                )
            })
        };
        if text.trim() == "none" {
            return Ok(Self::None);
        }
        match text.split_once('/') {
            Some((first, every)) => Ok(Self::OfEvery(number(first)?, number(every)?)),
            None => text
                .split(',')
                .map(number)
                .collect::<Result<_, _>>()
                .map(Self::List),
        }
    }
}

impl PowerConfig {
    /// Refuses what does not fit.
    pub fn validate(&self, dims: &Dims) -> Result<(), Refusal> {
        let refuse = |what: String| Err(Refusal::setting(METHOD, what));
        let block = self.mask.block;
        if block == 0 || !block.is_multiple_of(TILE) {
            return refuse(format!(
                "block = {block} is no multiple of the {TILE} rows of a tile"
            ));
        }
        if let Some(problem) = self.mask.problem() {
            return refuse(problem);
        }
        match &self.dense_layers {
            DenseLayers::List(layers) => match layers.iter().find(|&&l| l >= dims.layers) {
                Some(layer) => refuse(format!(
                    "dense layer {layer}: the model's layers are 0 to {}",
                    dims.layers.saturating_sub(1)
                )),
                None => Ok(()),
            },
            DenseLayers::OfEvery(_, 0) => refuse("dense layers of every 0".into()),
            _ => Ok(()),
        }
    }

    /// What a user should know.
    pub fn notices(&self) -> Vec<String> {
        let warn = !self.adapted && self.dense_layers == DenseLayers::None;
        warn.then(|| {
            format!(
                "{METHOD}: a model that was not trained on this mask answers worse with it; \
                 leave some layers dense (2/7 is the paper's hybrid)"
            )
        })
        .into_iter()
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfit_settings_are_refused_and_an_unadapted_model_is_warned_of() {
        let dims = Dims {
            layers: 4,
            heads: 2,
            kv_heads: 1,
            head_dim: 8,
            hidden: 16,
            vocab: 10,
        };
        let refused = |config: PowerConfig, says: &str| {
            let error = config.validate(&dims).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        };
        let default = PowerConfig::default;
        refused(
            PowerConfig {
                mask: BlockMask {
                    block: 100,
                    ..BlockMask::default()
                },
                ..default()
            },
            "block = 100",
        );
        refused(
            PowerConfig {
                mask: BlockMask {
                    window: 0,
                    ..BlockMask::default()
                },
                ..default()
            },
            "window = 0",
        );
        refused(
            PowerConfig {
                dense_layers: "0,4".parse().unwrap(),
                ..default()
            },
            "dense layer 4",
        );
        refused(
            PowerConfig {
                dense_layers: "2/0".parse().unwrap(),
                ..default()
            },
            "every 0",
        );
        assert!("a".parse::<DenseLayers>().is_err());
        assert_eq!(default().notices().len(), 1);
        let hybrid = PowerConfig {
            dense_layers: "2/7".parse().unwrap(),
            ..default()
        };
        assert!(hybrid.notices().is_empty());
        let dense: Vec<usize> = (0..14)
            .filter(|&l| hybrid.dense_layers.contains(l))
            .collect();
        assert_eq!(dense, [0, 1, 7, 8]);
    }
}

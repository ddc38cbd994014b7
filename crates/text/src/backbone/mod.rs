//! Transformer encoders: from token ids to one hidden state per token.
//!
//! The tokens of several texts stand one after the other in one matrix
//! ([`Packed`]), so nothing is padded: the linear layers see all rows at once,
//! attention runs within each text.

mod attention;
mod bert;
mod hydra;
mod layers;
mod modernbert;
mod t5;

use std::path::Path;

use keyfold_core::ModelFolder;

use crate::error::LoadError;
use bert::Bert;
use hydra::Hydra;
use keyfold_core::weights::{Weights, join};
use modernbert::ModernBert;
use t5::T5;

pub(crate) use layers::{Activation, LayerNorm, Linear};

const CONFIG: &str = "config.json";
const KNOWN: &str =
    "bert, distilbert, roberta, xlm-roberta, camembert, mpnet, modernbert, t5, mt5, hydra";

/// Longest text, in tokens, where neither the model nor its tokenizer has a limit.
const LONGEST: usize = 8192;

/// The tokens of several texts, one text after the other.
#[derive(Debug, Default)]
pub(crate) struct Packed {
    pub(crate) ids: Vec<u32>,
    pub(crate) sequences: Vec<Sequence>,
}

/// The place of one text in [`Packed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sequence {
    /// Its first row.
    pub(crate) start: usize,
    /// Its number of rows.
    pub(crate) len: usize,
    /// How many of its first rows can be attended to. The rows after them
    /// (query expansion) look at those, but are not seen themselves.
    pub(crate) visible: usize,
    /// Where the second of two texts begins among its rows; `len` if it is one.
    pub(crate) second: usize,
    /// Positions that are left out before the second text, by models that count them.
    pub(crate) gap: usize,
}

impl Packed {
    /// Adds a text, or two that are read together; from the token `second` on it is
    /// the second.
    pub(crate) fn push(&mut self, ids: &[u32], visible: usize, second: usize, gap: usize) {
        self.sequences.push(Sequence {
            start: self.ids.len(),
            len: ids.len(),
            visible,
            second,
            gap,
        });
        self.ids.extend_from_slice(ids);
    }

    /// Length of the longest text.
    fn longest(&self) -> usize {
        self.sequences.iter().map(|s| s.len).max().unwrap_or(0)
    }
}

/// A transformer encoder of one of the known architectures.
pub(crate) enum Backbone {
    Bert(Bert),
    ModernBert(ModernBert),
    T5(T5),
    Hydra(Hydra),
}

/// What config.json says first.
#[derive(serde::Deserialize)]
struct Kind {
    model_type: Option<String>,
    #[serde(default)]
    architectures: Vec<String>,
}

impl Backbone {
    /// Loads the backbone in `subfolder` (empty for the folder itself) of a model.
    pub(crate) fn load(
        folder: &ModelFolder,
        subfolder: &str,
        weights: &mut Weights,
    ) -> Result<Self, LoadError> {
        let name = join(subfolder, CONFIG);
        let path = folder.file(&name);
        let why = "it says what kind of model this is and its sizes";
        let kind: Kind = folder.json(&name, why)?;
        let model_type = kind.model_type.unwrap_or_default();
        if let Some(family) = bert::Family::of(&model_type) {
            let config = folder.json(&name, why)?;
            return Bert::load(family, &config, &path, weights).map(Self::Bert);
        }
        match model_type.as_str() {
            "modernbert" => {
                let config = folder.json(&name, why)?;
                ModernBert::load(&config, &path, weights).map(Self::ModernBert)
            }
            "t5" | "mt5" => {
                let config = folder.json(&name, why)?;
                T5::load(&config, &path, weights).map(Self::T5)
            }
            "hydra" => {
                let config = folder.json(&name, why)?;
                Hydra::load(&config, &path, weights).map(Self::Hydra)
            }
            _ => Err(unknown(&path, model_type, kind.architectures)),
        }
    }

    /// A backbone like `distilbert-base-uncased` with the weights in `weights`; `path`
    /// is the file that names it.
    pub(crate) fn distilbert_base(path: &Path, weights: &mut Weights) -> Result<Self, LoadError> {
        let config = bert::Config::distilbert_base();
        Bert::load(bert::Family::DistilBert, &config, path, weights).map(Self::Bert)
    }

    /// Length of a hidden state.
    pub(crate) fn hidden(&self) -> usize {
        match self {
            Self::Bert(m) => m.hidden(),
            Self::ModernBert(m) => m.hidden(),
            Self::T5(m) => m.hidden(),
            Self::Hydra(m) => m.hidden(),
        }
    }

    /// Longest text in tokens.
    pub(crate) fn longest(&self) -> usize {
        match self {
            Self::Bert(m) => m.longest(),
            Self::ModernBert(m) => m.longest(),
            Self::T5(m) => m.longest(),
            Self::Hydra(m) => m.longest(),
        }
    }

    /// Number of token ids that have an embedding.
    pub(crate) fn vocabulary(&self) -> usize {
        match self {
            Self::Bert(m) => m.vocabulary(),
            Self::ModernBert(m) => m.vocabulary(),
            Self::T5(m) => m.vocabulary(),
            Self::Hydra(m) => m.vocabulary(),
        }
    }

    /// Last hidden states `[tokens, hidden]`.
    ///
    /// Every id is below [`Backbone::vocabulary`] and no text longer than
    /// [`Backbone::longest`]; the encoders see to it.
    pub(crate) fn forward(&self, batch: &Packed, threads: usize) -> Vec<f32> {
        if batch.ids.is_empty() {
            return Vec::new();
        }
        match self {
            Self::Bert(m) => m.forward(batch, threads),
            Self::ModernBert(m) => m.forward(batch, threads),
            Self::T5(m) => m.forward(batch, threads),
            Self::Hydra(m) => m.forward(batch, threads),
        }
    }
}

fn unknown(path: &Path, model_type: String, architectures: Vec<String>) -> LoadError {
    let named = [model_type].into_iter().chain(architectures);
    let found = named
        .into_iter()
        .find(|name| !name.is_empty())
        .unwrap_or_else(|| "none".to_owned());
    LoadError::UnknownArchitecture {
        path: path.to_owned(),
        found,
        known: KNOWN,
    }
}

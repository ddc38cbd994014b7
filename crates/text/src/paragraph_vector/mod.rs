//! Binary paragraph vectors: short binary codes of documents, learned from the
//! documents alone, for search by Hamming distance; with real vectors to order the
//! first hits again if asked for.
//!
//! K. Grzegorczyk and M. Kurdziel, Binary paragraph vectors, 2017; K. Grzegorczyk,
//! Vector representations of text data in deep learning, 2019; on paragraph vectors of
//! Q. Le and T. Mikolov, 2014.
//!
//! A document `i` owns a row `D_i` of `bits` numbers. Its code predicts its words and
//! pairs of words (with [`WordLoss`](crate::WordLoss) for the softmax):
//!
//! ```text
//! c_i = round(σ(D_i))                   a bit is 1 where D_i > 0
//! p(w | i) = softmax(W c_i + b)
//! ∂c/∂D = σ(D) (1 - σ(D))               the gradient passes through the rounding
//! ```
//!
//! - PV-DM: vectors of the words around are added to `c_i`, or stand beside it.
//! - Real-binary: `D_i = P r_i`, with a real vector `r_i` that orders the hits.
//! - A new document: all but its own row is held, and the row learns from its words.
//!
//! Shapes: `D [documents, bits]`, `W [words and pairs, bits]`. A word costs
//! `bits · (1 + negatives)` multiplications three times; with shared negatives these
//! are matrix products.

mod config;
mod corpus;
mod encoder;
mod infer;
#[cfg(feature = "train")]
mod learn;
mod params;
#[cfg(test)]
mod parity;
#[cfg(test)]
mod tests;

use std::path::Path;

use keyfold_core::{EncoderIdentity, ModelFolder};

pub use config::{Architecture, Code, Config, Join, Optimizer};
pub use encoder::CodeEncoder;
#[cfg(feature = "train")]
pub use learn::{Trainer, train};

use crate::error::{LoadError, invalid};
use crate::sampled::{Format, Sampler, Vocabulary};
use corpus::Known;
use params::Params;

const FORMAT: Format = Format {
    model_type: "keyfold-paragraph-vector",
    version: 1,
};

/// A trained model, which gives codes to new texts.
#[derive(Debug, Clone)]
pub struct ParagraphVectors {
    config: Config,
    known: Known,
    params: Params,
    sampler: Sampler,
    identity: EncoderIdentity,
}

/// What a text becomes.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedded {
    /// The code, bit 0 in the highest bit of byte 0 (as `numpy.packbits` has it).
    pub code: Vec<u8>,
    /// The real vector of a real-binary model, or of plain paragraph vectors.
    pub real: Option<Vec<f32>>,
}

/// Why a text got no code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EmbedError {
    /// It has no word of the vocabulary.
    #[error(
        "the text has none of the {words} words that model '{model}' knows, so it has no code; \
         give more of it, or train on texts like it"
    )]
    NoKnownWord {
        /// Name of the model.
        model: String,
        /// Size of the vocabulary.
        words: usize,
    },
}

impl ParagraphVectors {
    /// Whether a folder holds such a model.
    pub fn is_in(folder: &Path) -> bool {
        FORMAT.is(folder)
    }

    /// Reads a model that [`ParagraphVectors::save`] wrote.
    ///
    /// # Errors
    /// When a file is missing, damaged, or of another version.
    pub fn load(folder: &ModelFolder) -> Result<Self, LoadError> {
        let mut read = FORMAT.read::<Config>(folder)?;
        let config = read.settings;
        let path = folder.file("config.json");
        config.check().map_err(|what| invalid(&path, what))?;
        let known = Known::of(read.words, &config);
        if known.words == 0 {
            return Err(invalid(
                &folder.file("vocabulary.tsv"),
                "it has no word; train the model again",
            ));
        }
        let outputs = known.outputs.len();
        let mut params = Params::new(0, 0, &config);
        params.layer.weights = read
            .tensors
            .take("output.weight", outputs, config.hidden())?;
        params.layer.bias = read.tensors.take("output.bias", outputs, 1)?;
        if let Some(context) = &mut params.context {
            *context = read
                .tensors
                .take("context.weight", known.words, config.bits)?;
        }
        if let Some(projection) = &mut params.projection {
            *projection = read
                .tensors
                .take("projection.weight", config.bits, config.real_dim)?;
        }
        Ok(Self::new(
            folder.name.clone(),
            read.hash,
            config,
            known,
            params,
        ))
    }

    fn new(name: String, hash: String, config: Config, known: Known, params: Params) -> Self {
        Self {
            sampler: Sampler::unigram(known.outputs.counts(), config.power),
            identity: EncoderIdentity {
                name,
                hash,
                dim: config.bits,
            },
            config,
            known,
            params,
        }
    }

    /// Writes the model: `config.json`, `vocabulary.tsv`, `model.safetensors`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), LoadError> {
        let layer = &self.params.layer;
        let mut tensors = vec![
            ("output.weight", &layer.weights),
            ("output.bias", &layer.bias),
        ];
        tensors.extend(self.params.context.iter().map(|c| ("context.weight", c)));
        let projection = self.params.projection.iter();
        tensors.extend(projection.map(|p| ("projection.weight", p)));
        FORMAT.write(folder, &self.config, &self.known.outputs, &tensors)
    }

    /// Its settings.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Words and pairs of words that it predicts, words first.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.known.outputs
    }

    /// Which model this is; its `dim` is the number of bits.
    pub fn identity(&self) -> &EncoderIdentity {
        &self.identity
    }
}

/// Bits of `sums` above 0, the first in the highest bit of the first byte.
pub(crate) fn pack(sums: &[f32]) -> Vec<u8> {
    let byte = |eight: &[f32]| {
        let bits = eight.iter().enumerate();
        bits.fold(0, |byte, (i, x)| byte | (u8::from(*x > 0.0) << (7 - i)))
    };
    sums.chunks(8).map(byte).collect()
}

//! What a checkpoint of the authors says of itself, and what a user may change.

use std::path::Path;

use serde::Deserialize;

use super::Words;
use crate::error::{LoadError, invalid};

/// `model_type` of `config.json` of these checkpoints.
pub(crate) const MODEL_TYPE: &str = "ColBERT";
/// Longest vector that a layer may make.
const MOST: i64 = 1 << 16;

/// The fields of `config.json` that inference needs; sizes of -1 mean that the part
/// is not there.
#[derive(Debug, Deserialize)]
pub(super) struct Config {
    /// Where sizes and tokenizer of the backbone come from.
    pub(super) bert_model: Option<String>,
    #[serde(default = "none")]
    compression_dim: i64,
    #[serde(default = "none")]
    retrieval_compression_dim: i64,
    #[serde(default = "none")]
    second_compress_dim: i64,
    #[serde(default)]
    pub(super) use_contextualized_stopwords: bool,
    #[serde(default)]
    pub(super) aggregate_unique_ids: bool,
    #[serde(default)]
    pub(super) compress_to_exact_mini_mode: bool,
}

fn none() -> i64 {
    -1
}

/// The sizes of the vectors of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizes {
    /// Of the vector of the whole text.
    pub(super) whole: usize,
    /// Of a token.
    pub(super) token: usize,
    /// Of a word after the second compression, if there is one.
    pub(super) second: Option<usize>,
}

impl Config {
    /// The sizes; refuses a configuration without them.
    pub(super) fn sizes(&self, path: &Path) -> Result<Sizes, LoadError> {
        let size = |field: &str, value: i64| match value {
            1..=MOST => Ok(value as usize),
            _ => Err(invalid(
                path,
                format!(
                    "{field} is {value}, but must be between 1 and {MOST}: this is no ColBERTer \
                     checkpoint (those have compression_dim and retrieval_compression_dim)"
                ),
            )),
        };
        Ok(Sizes {
            whole: size("retrieval_compression_dim", self.retrieval_compression_dim)?,
            token: size("compression_dim", self.compression_dim)?,
            second: match self.second_compress_dim {
                ..=-1 => None,
                value => Some(size("second_compress_dim", value)?),
            },
        })
    }
}

/// What can be chosen when a ColBERTer model is loaded. Other choices give other
/// vectors, so they are part of the model's identity; in a model's name they stand
/// after a `#`: `DIR#words=stem,keep-stopwords,truncate`.
///
/// Models with one vector for each token take `words`: then a document has one for each
/// different word, the mean of those of its pieces at all its places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ColberterOptions {
    /// When two words are the same; [`Words::Lower`] where it is not said.
    pub words: Option<Words>,
    /// Keep the words of documents that the model would remove.
    pub keep_stopwords: bool,
    /// Leave out what is beyond the longest text of the model, instead of refusing it.
    pub truncate: bool,
}

impl std::fmt::Display for ColberterOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = [
            self.words.map(|words| match words {
                Words::Lower => "words=lower",
                Words::Stem => "words=stem",
            }),
            self.keep_stopwords.then_some("keep-stopwords"),
            self.truncate.then_some("truncate"),
        ];
        let parts: Vec<&str> = parts.into_iter().flatten().collect();
        f.write_str(&parts.join(","))
    }
}

impl std::str::FromStr for ColberterOptions {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let mut options = Self::default();
        for part in s.split(',').filter(|part| !part.is_empty()) {
            match part.split_once('=') {
                Some(("words", words)) => options.words = Some(words.parse()?),
                None if part == "keep-stopwords" => options.keep_stopwords = true,
                None if part == "truncate" => options.truncate = true,
                _ => {
                    return Err(format!(
                        "'{part}' is no option of a ColBERTer model: known are words=lower, \
                         words=stem, keep-stopwords and truncate"
                    ));
                }
            }
        }
        Ok(options)
    }
}

//! Late interaction that can be trained: a BERT, a linear head on every token, rows of
//! length one.
//!
//! ```text
//! E_t = normalise(W · BERT(marker, text)_t)      of every token that is not skipped
//! ```
//!
//! Written in PyLate's layout, so `keyfold index --model` and others read it.

use std::path::Path;

use burn::module::{Module, Param};
use burn::tensor::Device;
use keyfold_core::weights::Weights;
use keyfold_core::{ModelFolder, atomic, seed_of};
use keyfold_nn::checkpoint::{self, NamedTensor};
use keyfold_nn::{Bert, Packed};
use keyfold_nn::{Linear, ops};
use keyfold_train::LearnError;
use serde::{Deserialize, Serialize};

use super::model_error;
use super::rows::{Rows, normalize};
use crate::modules;
use crate::tokenize::TextTokenizer;

const DENSE: &str = "1_Dense";

/// How texts become rows; the fields of `config_sentence_transformers.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LateSettings {
    /// Token before a query, one of the tokenizer's; empty for none.
    pub query_prefix: String,
    /// Token before a document.
    pub document_prefix: String,
    /// Most tokens of a query.
    pub query_length: usize,
    /// Most tokens of a document.
    pub document_length: usize,
    /// Length of a row; 0 keeps the hidden states as they are, without a head.
    pub dim: usize,
}

impl Default for LateSettings {
    fn default() -> Self {
        Self {
            query_prefix: "[unused0]".into(),
            document_prefix: "[unused1]".into(),
            query_length: 32,
            document_length: 180,
            dim: 128,
        }
    }
}

/// A late-interaction model that can be trained.
#[derive(Module, Debug)]
pub struct LateModel {
    bert: Bert,
    /// None: the hidden states are the rows.
    head: Option<Linear>,
}

/// A text as tokens.
#[derive(Debug, Clone)]
pub(crate) struct LateText {
    ids: Vec<u32>,
    /// Tokens whose rows stay.
    keep: Vec<u32>,
    /// By which it is folded.
    seed: u64,
}

/// Texts for one forward pass.
#[derive(Debug, Clone)]
pub(crate) struct LateBatch {
    packed: Packed,
    /// Rows that stay, of all texts.
    keep: Vec<u32>,
    starts: Vec<usize>,
    pub(crate) seeds: Vec<u64>,
}

impl LateModel {
    /// A model that starts from a BERT: that of a folder of Hugging Face's or PyLate's
    /// layout, with the head that it has, or a random one of deviation 0.02.
    ///
    /// # Errors
    /// When the folder holds no such model or its files do not fit.
    pub fn load(
        folder: &ModelFolder,
        settings: &LateSettings,
        seed: u64,
        device: &Device,
    ) -> Result<Self, LearnError> {
        let bert = Bert::load(folder, device).map_err(model_error)?;
        let hidden = bert.hidden();
        let head = match settings.dim {
            0 => None,
            dim if folder.file(DENSE).is_dir() => {
                plain_head(folder)?;
                let weights = Weights::open(folder, DENSE).map_err(|e| model_error(e.into()))?;
                Some(
                    Linear::load(&weights, "linear", hidden, dim, false, device)
                        .map_err(model_error)?,
                )
            }
            dim => Some(Linear::init(hidden, dim, false, 0.02, seed, device)),
        };
        Ok(Self { bert, head })
    }

    /// The rows of texts, of length one.
    pub(crate) fn rows(&self, batch: &LateBatch, dropout: Option<u64>) -> Rows {
        let states = self.bert.forward(&batch.packed, dropout);
        let kept = ops::rows(states, &batch.keep);
        let rows = match &self.head {
            Some(head) => head.forward(kept),
            None => kept,
        };
        Rows {
            rows: normalize(rows),
            starts: batch.starts.clone(),
        }
    }

    /// Texts for one forward pass.
    pub(crate) fn batch(&self, texts: &[&LateText]) -> Result<LateBatch, LearnError> {
        let ids: Vec<&[u32]> = texts.iter().map(|t| t.ids.as_slice()).collect();
        let packed = self.bert.pack(&ids).map_err(model_error)?;
        let mut keep = Vec::new();
        let mut starts = vec![0];
        for (text, first) in texts.iter().zip(&packed.starts) {
            keep.extend(text.keep.iter().map(|row| *first as u32 + row));
            starts.push(keep.len());
        }
        Ok(LateBatch {
            packed,
            keep,
            starts,
            seeds: texts.iter().map(|t| t.seed).collect(),
        })
    }

    /// Writes the model in PyLate's layout.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, folder: &Path, settings: &LateSettings) -> Result<(), LearnError> {
        self.bert.save(folder).map_err(model_error)?;
        let dense = folder.join(DENSE);
        std::fs::create_dir_all(&dense).map_err(LearnError::io(&dense))?;
        let hidden = self.bert.hidden();
        let weight = match &self.head {
            Some(head) => NamedTensor::new("linear.weight", &Param::val(&head.weight)),
            // Readers want a head: one that changes nothing.
            None => NamedTensor {
                name: "linear.weight".into(),
                shape: vec![hidden, hidden],
                numbers: (0..hidden * hidden)
                    .map(|i| f32::from(u8::from(i / hidden == i % hidden)))
                    .collect(),
            },
        };
        let outputs = weight.shape[0];
        checkpoint::write(&dense.join("model.safetensors"), &[weight]).map_err(model_error)?;
        let files = [
            (
                dense.join("config.json"),
                serde_json::json!({
                    "in_features": hidden,
                    "out_features": outputs,
                    "bias": false,
                    "activation_function": "torch.nn.modules.linear.Identity",
                }),
            ),
            (
                folder.join(modules::MODULES),
                serde_json::json!([
                    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
                    {"idx": 1, "name": "1", "path": DENSE, "type": "pylate.models.Dense.Dense"},
                ]),
            ),
            (
                folder.join(crate::sentence::SENTENCE_CONFIG),
                serde_json::json!({
                    "query_prefix": settings.query_prefix,
                    "document_prefix": settings.document_prefix,
                    "query_length": settings.query_length,
                    "document_length": settings.document_length,
                    "do_query_expansion": false,
                    "attend_to_expansion_tokens": false,
                    "skiplist_words": crate::late::punctuation(),
                    "similarity_fn_name": "MaxSim",
                    "model_type": "ColBERT",
                }),
            ),
        ];
        for (path, value) in files {
            let text = format!("{value:#}\n");
            atomic::write(&path, text.as_bytes()).map_err(LearnError::io(&path))?;
        }
        Ok(())
    }

    /// Longest text in tokens.
    pub(crate) fn longest(&self) -> usize {
        self.bert.longest()
    }
}

/// Refuses heads that are more than one linear layer without bias.
fn plain_head(folder: &ModelFolder) -> Result<(), LearnError> {
    #[derive(Deserialize)]
    struct Head {
        #[serde(default = "yes")]
        bias: bool,
        activation_function: Option<String>,
        #[serde(default)]
        use_residual: bool,
    }
    fn yes() -> bool {
        true
    }
    let file = format!("{DENSE}/config.json");
    let head: Head = folder
        .json(&file, "it says the shape of this linear head")
        .map_err(|e| LearnError::Data(e.to_string()))?;
    let act = head.activation_function.unwrap_or_default();
    let identity = act.is_empty() || act.ends_with(".Identity");
    if head.bias || head.use_residual || !identity || folder.file("2_Dense").is_dir() {
        return Err(LearnError::Data(format!(
            "{} has a head with a bias, an activation, a residual or a second layer; only one \
             plain linear layer can be trained here. Start from the folder of its BERT alone",
            folder.path.display()
        )));
    }
    Ok(())
}

/// Turns texts into tokens as inference does it.
pub(crate) struct LateTokenizer {
    tokenizer: TextTokenizer,
    query: (Option<u32>, usize),
    document: (Option<u32>, usize),
    /// Ids whose rows are left out of documents, ascending.
    skip: Vec<u32>,
}

impl LateTokenizer {
    pub(crate) fn new(
        folder: &ModelFolder,
        settings: &LateSettings,
        longest: usize,
    ) -> Result<Self, LearnError> {
        let tokenizer =
            TextTokenizer::load(folder, "", false).map_err(|e| LearnError::Data(e.to_string()))?;
        let side = |marker: &str, length: usize, what: &str| {
            let id = match marker {
                "" => None,
                _ => Some(tokenizer.id(marker).ok_or_else(|| {
                    LearnError::Data(format!(
                        "{what}_prefix '{marker}' is not a token of {}; choose one that is, or \
                         leave it empty",
                        tokenizer.path().display()
                    ))
                })?),
            };
            if length < 4 {
                return Err(LearnError::Data(format!(
                    "{what}_length is {length}; it must be at least 4"
                )));
            }
            Ok((id, length.min(longest)))
        };
        let unknown = tokenizer.role_id("unk_token", &["[UNK]", "<unk>"]);
        let mut skip: Vec<u32> = crate::late::punctuation()
            .iter()
            .filter_map(|word| tokenizer.id(word).or(unknown))
            .collect();
        skip.sort_unstable();
        Ok(Self {
            query: side(&settings.query_prefix, settings.query_length, "query")?,
            document: side(
                &settings.document_prefix,
                settings.document_length,
                "document",
            )?,
            skip,
            tokenizer,
        })
    }

    pub(crate) fn text(&self, text: &str, is_query: bool) -> Result<LateText, LearnError> {
        let (marker, length) = if is_query { self.query } else { self.document };
        let limit = length - usize::from(marker.is_some());
        let mut ids = self
            .tokenizer
            .tokens("", text, limit)
            .map_err(|e| LearnError::Data(e.to_string()))?
            .ids;
        if let Some(marker) = marker {
            ids.insert(ids.len().min(1), marker);
        }
        let stays = |id: &u32| is_query || self.skip.binary_search(id).is_err();
        let keep = (0..)
            .zip(&ids)
            .filter(|(_, id)| stays(id))
            .map(|(row, _)| row);
        Ok(LateText {
            keep: keep.collect(),
            ids,
            seed: seed_of(text),
        })
    }
}

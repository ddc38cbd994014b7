//! ColBERTer, to be trained: its layers over a BERT, from a folder and to a folder.

use std::path::Path;

use burn::module::{Module, Param};
use burn::tensor::activation::{relu, sigmoid};
use burn::tensor::{Device, Tensor};
use keyfold_core::weights::Weights;
use keyfold_core::{ModelFolder, atomic};
use keyfold_nn::checkpoint::{self, NamedTensor};
use keyfold_nn::ops::{self, Groups};
use keyfold_nn::{Bert, Linear, Packed};
use keyfold_train::LearnError;
use keyfold_train::order::step_seed;
use serde::Deserialize;

use super::ColberterConfig;
use crate::LoadError;
use crate::colberter::config::{Config, MODEL_TYPE};
use crate::colberter::{Base, CONFIG};
use crate::training::model_error;
use crate::training::rows::Rows;

/// Folder of the backbone's configuration and tokenizer in a trained model.
const BACKBONE: &str = "backbone";
/// Deviation of new layers.
const DEVIATION: f32 = 0.02;

/// ColBERTer, to be trained. Fields are named as in the authors' checkpoints.
#[derive(Module, Debug)]
pub struct ColberterModel {
    pub(super) bert_model: Bert,
    pub(super) compressor_retrieval: Linear,
    pub(super) compressor: Linear,
    pub(super) stop_word_reducer: Option<Linear>,
    pub(super) mini_compressor: Option<Linear>,
    pub(super) score_merger: Param<Tensor<1>>,
}

/// A text as tokens, and the words that they belong to.
#[derive(Debug, Clone)]
pub(super) struct WordText {
    pub(super) ids: Vec<u32>,
    /// The word of each token; none of special tokens.
    pub(super) word_of: Vec<Option<u32>>,
    /// Ids of the words.
    pub(super) words: Vec<u32>,
}

/// Texts for one forward pass.
pub(super) struct WordBatch {
    pub(super) packed: Packed,
    /// The words that tokens belong to.
    pub(super) groups: Groups,
}

impl WordBatch {
    /// Adds the words of a text, numbered on.
    pub(super) fn add(&mut self, text: &WordText) {
        let groups = &mut self.groups;
        let first = groups.ids.len() as u32;
        let numbered = text.word_of.iter().map(|w| w.map(|w| first + w));
        groups.of_rows.extend(numbered);
        groups.ids.extend_from_slice(&text.words);
        groups.starts.push(groups.ids.len());
    }
}

/// What the model makes of texts.
pub(super) struct Encoded {
    /// `[texts, retrieval_compression_dim]`.
    pub(super) whole: Tensor<2>,
    /// Vectors of words, `[words, width]`.
    pub(super) words: Rows,
    pub(super) ids: Vec<u32>,
    /// `[words, 1]`.
    pub(super) gates: Option<Tensor<2>>,
}

impl ColberterModel {
    /// A model that starts from a BERT, or goes on from a ColBERTer of an earlier stage,
    /// of whose layers it takes those that fit.
    ///
    /// # Errors
    /// When the folder holds no such model or its files do not fit.
    pub fn load(
        folder: &ModelFolder,
        config: &ColberterConfig,
        device: &Device,
    ) -> Result<Self, LearnError> {
        let before = Heads::of(folder)?;
        let bert_model = match &before {
            Some(_) => Bert::load_parts(&backbone(folder)?, folder, device),
            None => Bert::load(folder, device),
        }
        .map_err(model_error)?;
        let hidden = bert_model.hidden();
        let (token, whole) = (config.compression_dim, config.retrieval_compression_dim);
        let head = |name: &str, part: u64, inputs, outputs| {
            let seed = step_seed(config.seed, u64::MAX - part);
            match &before {
                Some(heads) if heads.0.has(&format!("{name}.weight")) => {
                    Linear::load(&heads.0, name, inputs, outputs, true, device).map_err(model_error)
                }
                _ => Ok(Linear::init(inputs, outputs, true, DEVIATION, seed, device)),
            }
        };
        let gate = match config.has_gates() {
            true => {
                let gate = head("stop_word_reducer", 3, token, 1)?;
                let known = before
                    .as_ref()
                    .is_some_and(|h| h.0.has("stop_word_reducer.weight"));
                // New gates stand open: the authors start their bias at 1.
                Some(match (known, gate) {
                    (false, gate) => Linear {
                        bias: Some(Param::from_tensor(
                            Tensor::from_data([1.0f32], device).require_grad(),
                        )),
                        ..gate
                    },
                    (true, gate) => gate,
                })
            }
            false => None,
        };
        let merger = match &before {
            Some(heads) => heads
                .0
                .tensor("score_merger", &[1])
                .map_err(|e| model_error(e.into()))?[0],
            None => 0.0,
        };
        Ok(Self {
            compressor_retrieval: head("compressor_retrieval", 1, hidden, whole)?,
            compressor: head("compressor", 2, hidden, token)?,
            stop_word_reducer: gate,
            mini_compressor: match config.second_compress_dim {
                ..=-1 => None,
                width => Some(head("mini_compressor", 4, token, width as usize)?),
            },
            score_merger: Param::from_tensor(Tensor::from_data([merger], device).require_grad()),
            bert_model,
        })
    }

    /// Whole texts and words; gates are of documents.
    pub(super) fn encode(
        &self,
        batch: &WordBatch,
        is_query: bool,
        dropout: Option<u64>,
    ) -> Encoded {
        let states = self.bert_model.forward(&batch.packed, dropout);
        self.heads(states, batch, is_query)
    }

    /// What the layers beside the backbone make of its states.
    pub(super) fn heads(&self, states: Tensor<2>, batch: &WordBatch, is_query: bool) -> Encoded {
        let firsts = ops::rows(states.clone(), &batch.packed.firsts());
        let tokens = self.compressor.forward(states);
        let mut words = ops::group_mean(tokens, &batch.groups);
        let mut gates = None;
        if let Some(reducer) = self.stop_word_reducer.as_ref().filter(|_| !is_query) {
            let gate = relu(reducer.forward(words.clone()));
            words = words * gate.clone();
            gates = Some(gate);
        }
        if let Some(second) = &self.mini_compressor {
            words = second.forward(words);
        }
        Encoded {
            whole: self.compressor_retrieval.forward(firsts),
            words: Rows {
                rows: words,
                starts: batch.groups.starts.clone(),
            },
            ids: batch.groups.ids.clone(),
            gates,
        }
    }

    /// The score of every pair, `[queries, documents]`, from that of the whole texts.
    pub(super) fn total(
        &self,
        whole: Tensor<2>,
        q: &Encoded,
        d: &Encoded,
        exact: bool,
    ) -> Tensor<2> {
        let words = match exact {
            true => ops::chamfer_equal(q.words.side(), &q.ids, d.words.side(), &d.ids),
            false => ops::chamfer(q.words.side(), d.words.side()),
        };
        let share = sigmoid(self.score_merger.val()).unsqueeze::<2>();
        whole * share.clone() + words * (share.neg().add_scalar(1.0))
    }

    /// Writes the model in the authors' layout, with the backbone's configuration and
    /// tokenizer in a folder within.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, folder: &Path, config: &ColberterConfig) -> Result<(), LearnError> {
        self.bert_model
            .save_files(&folder.join(BACKBONE))
            .map_err(model_error)?;
        let mut all: Vec<NamedTensor> = self.bert_model.tensors();
        for tensor in &mut all {
            tensor.name = format!("bert_model.{}", tensor.name);
        }
        all.push(NamedTensor::new("score_merger", &self.score_merger.val()));
        let heads = [
            ("compressor_retrieval", Some(&self.compressor_retrieval)),
            ("compressor", Some(&self.compressor)),
            ("stop_word_reducer", self.stop_word_reducer.as_ref()),
            ("mini_compressor", self.mini_compressor.as_ref()),
        ];
        for (name, head) in heads {
            all.extend(head.into_iter().flat_map(|head| head.tensors(name)));
        }
        checkpoint::write(&folder.join("model.safetensors"), &all).map_err(model_error)?;
        let json = serde_json::json!({
            "model_type": MODEL_TYPE,
            "architectures": ["ColBERTer"],
            "bert_model": BACKBONE,
            "compression_dim": config.compression_dim,
            "retrieval_compression_dim": config.retrieval_compression_dim,
            "use_contextualized_stopwords": self.stop_word_reducer.is_some(),
            "aggregate_unique_ids": config.aggregate_unique_ids,
            "second_compress_dim": config.second_compress_dim,
            "compress_to_exact_mini_mode": config.compress_to_exact_mini_mode,
            "dual_loss": true,
            "return_vecs": true,
            "trainable": true,
        });
        let path = folder.join("config.json");
        let text = format!("{json:#}\n");
        atomic::write(&path, text.as_bytes()).map_err(LearnError::io(&path))
    }
}

/// The layers beside the backbone in a checkpoint.
pub(super) struct Heads(Weights);

impl Heads {
    /// Of a ColBERTer checkpoint; none of another model.
    pub(super) fn of(folder: &ModelFolder) -> Result<Option<Self>, LearnError> {
        #[derive(Deserialize)]
        struct Kind {
            compression_dim: Option<i64>,
        }
        let kind: Option<Kind> = folder
            .json_optional("config.json")
            .map_err(|e| LearnError::Data(e.to_string()))?;
        match kind.and_then(|kind| kind.compression_dim) {
            Some(_) => Weights::open(folder, "")
                .map(|w| Some(Self(w)))
                .map_err(|e| model_error(e.into())),
            None => Ok(None),
        }
    }
}

/// The folder with the backbone's configuration and tokenizer.
pub(super) fn backbone(folder: &ModelFolder) -> Result<ModelFolder, LearnError> {
    let error = |e: LoadError| LearnError::Data(e.to_string());
    let config: Config = folder
        .json(CONFIG, "it says what the backbone is")
        .map_err(|e| error(e.into()))?;
    let base = Base::find(folder, &config).map_err(error)?;
    let missing = || error(base.missing(folder, CONFIG, "the sizes of the backbone"));
    base.folder.clone().ok_or_else(missing)
}

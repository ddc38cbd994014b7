//! Training of ColBERTer: several losses at once, in stages.
//!
//! With `s(q,d)` the score of a pair, `v` the vectors of whole texts, `T` the teacher's
//! score, `d⁺` the text that belongs to `q` and `d⁻` one that does not:
//!
//! ```text
//! L_pair  = mean ( s(q,d⁺) - s(q,d⁻) - (T(q,d⁺) - T(q,d⁻)) )²        Margin-MSE
//! L_cls   = the same with <v_q, v_d> in the place of s
//! L_batch = KL( softmax_d T(q,d) ‖ softmax_d <v_q, v_d> )             all texts of the batch
//! L_gates = mean of the gates of the words of documents
//! loss    = pair L_pair + cls L_cls + in_batch L_batch + sparsity L_gates
//! ```
//!
//! Batches are topic-aware and balanced (Hofstätter, Lin, Yang, Lin, Hanbury 2021:
//! *Efficiently Teaching an Effective Dense Retriever with Balanced Topic Aware
//! Sampling*): the queries of a batch are of one topic (a cluster of the teacher's
//! vectors), and `d⁻` is drawn so that small and large margins come equally often.
//!
//! The publication trains in stages, which add to each other: 1, whole texts alone
//! (`L_cls` and `L_batch`); 2, words as well; 3, their gates too. A stage starts from the
//! model of the one before. The weights of the losses are not in the released code; the
//! defaults are those of the authors' training library. Its teacher is an ensemble of
//! cross-encoders; here it is one or more sentence encoders, whose scores are means.

use std::collections::HashMap;
use std::path::Path;

use burn::module::{Module, Param};
use burn::tensor::activation::{log_softmax, relu, sigmoid, softmax};
use burn::tensor::{Device, Int, Tensor, TensorData};
use keyfold_core::weights::Weights;
use keyfold_core::{Encoder, ModelFolder, Progress, Role, atomic};
use keyfold_kernels::kmeans::{KMeansConfig, kmeans};
use keyfold_kernels::{dot, matmul_nt, top_k};
use keyfold_nn::Linear;
use keyfold_nn::checkpoint::{self, NamedTensor, numbers};
use keyfold_nn::ops::{self, Groups};
use keyfold_nn::{Bert, Packed};
use keyfold_train::gradient::{GradientLearner, Loss, OptimConfig, Task};
use keyfold_train::order::{hold_out, step_rng, step_seed};
use keyfold_train::{Decay, LearnError, Report, RunConfig, TrainError, Validation, run};
use rand::seq::SliceRandom;
use rand::{Rng, rngs::StdRng};
use serde::{Deserialize, Serialize};

use super::config::MODEL_TYPE;
use super::words::{Words, words};
use crate::tokenize::TextTokenizer;
use crate::training::rows::Rows;
use crate::training::{Pairs, Place, Ranking, model_error};

/// Folder of the backbone's configuration and tokenizer in a trained model.
const BACKBONE: &str = "backbone";
/// Deviation of new layers.
const DEVIATION: f32 = 0.02;
/// Texts that are no answer, for each query: the nearest ones, thinned out.
const CANDIDATES: usize = 16;
/// Of so many nearest texts.
const NEAREST: usize = 200;
/// Ranges of margins from which negatives come equally often.
const BINS: usize = 10;
/// Queries of a topic, about.
const TOPIC: usize = 200;
/// Held-out pairs that are ranked at most.
const MOST_VALIDATED: usize = 256;

/// Settings of a training: first the fields of the authors' `config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ColberterConfig {
    /// Length of the vector of a token.
    pub compression_dim: usize,
    /// Length of the vector of a text.
    pub retrieval_compression_dim: usize,
    /// Whether words of documents have gates.
    pub use_contextualized_stopwords: bool,
    /// Whether vectors stand for whole words; else for tokens.
    pub aggregate_unique_ids: bool,
    /// Length of the vector of a word after a second compression; -1 for none.
    pub second_compress_dim: i64,
    /// Whether words meet only the same word.
    pub compress_to_exact_mini_mode: bool,
    /// When two words are the same: `lower` or `stem`.
    pub words: String,
    /// Most tokens of a query.
    pub query_length: usize,
    /// Most tokens of a document.
    pub document_length: usize,
    /// 1, whole texts; 2, words too; 3, gates too.
    pub stage: u8,
    /// Weight of the margin of the whole score.
    pub pair: f64,
    /// Weight of the margin of the whole texts' score.
    pub cls: f64,
    /// Weight of the order within the batch.
    pub in_batch: f64,
    /// Weight of the gates.
    pub sparsity: f64,
    /// What the teacher's cosines are multiplied with.
    pub teacher_scale: f64,
    /// Queries in a batch.
    pub batch_size: usize,
    /// Dropout as the model's config.json says; else none.
    pub dropout: bool,
    /// Share of the pairs that is held out for validation.
    pub hold_out: f64,
    /// Seed of everything random.
    pub seed: u64,
    /// How gradients become weights.
    pub optim: OptimConfig,
    /// How the run is kept and watched.
    pub run: RunConfig,
}

impl Default for ColberterConfig {
    fn default() -> Self {
        Self {
            compression_dim: 32,
            retrieval_compression_dim: 128,
            use_contextualized_stopwords: true,
            aggregate_unique_ids: true,
            second_compress_dim: -1,
            compress_to_exact_mini_mode: false,
            words: "lower".into(),
            query_length: 30,
            document_length: 200,
            stage: 3,
            pair: 1.0,
            cls: 1.0,
            in_batch: 0.2,
            sparsity: 0.01,
            teacher_scale: 20.0,
            batch_size: 32,
            dropout: true,
            hold_out: 0.02,
            seed: 0,
            optim: OptimConfig {
                optimizer: keyfold_train::gradient::OptimizerKind::Adam,
                learning_rate: 7e-6,
                weight_decay: 0.0,
                decay: Decay::Constant,
                ..OptimConfig::default()
            },
            run: RunConfig::default(),
        }
    }
}

impl ColberterConfig {
    fn check(&self) -> Result<Words, LearnError> {
        let wrong = |what: String| Err(LearnError::Data(what));
        if self.compression_dim == 0 || self.retrieval_compression_dim == 0 {
            return wrong(
                "compression_dim and retrieval_compression_dim must be at least 1".into(),
            );
        }
        if self.second_compress_dim == 0 || self.second_compress_dim < -1 {
            return wrong("second_compress_dim must be at least 1, or -1 for none".into());
        }
        if !(1..=3).contains(&self.stage) {
            return wrong(format!("stage is {}; it is 1, 2 or 3", self.stage));
        }
        if self.query_length < 3 || self.document_length < 3 {
            return wrong("query_length and document_length must be at least 3".into());
        }
        if !(self.teacher_scale.is_finite() && self.teacher_scale > 0.0) {
            return wrong("teacher_scale must be above 0".into());
        }
        self.words.parse().map_err(LearnError::Data)
    }

    fn has_words(&self) -> bool {
        self.stage >= 2
    }

    fn has_gates(&self) -> bool {
        self.stage >= 3 && self.use_contextualized_stopwords
    }
}

/// ColBERTer, to be trained. Fields are named as in the authors' checkpoints.
#[derive(Module, Debug)]
pub struct ColberterModel {
    bert_model: Bert,
    compressor_retrieval: Linear,
    compressor: Linear,
    stop_word_reducer: Option<Linear>,
    mini_compressor: Option<Linear>,
    score_merger: Param<Tensor<1>>,
}

/// A text as tokens, and the words that they belong to.
#[derive(Debug, Clone)]
struct WordText {
    ids: Vec<u32>,
    /// The word of each token; none of special tokens.
    word_of: Vec<Option<u32>>,
    /// Ids of the words.
    words: Vec<u32>,
}

/// Texts for one forward pass.
struct WordBatch {
    packed: Packed,
    /// The words that tokens belong to.
    groups: Groups,
}

impl WordBatch {
    /// Adds the words of a text, numbered on.
    fn add(&mut self, text: &WordText) {
        let groups = &mut self.groups;
        let first = groups.ids.len() as u32;
        let numbered = text.word_of.iter().map(|w| w.map(|w| first + w));
        groups.of_rows.extend(numbered);
        groups.ids.extend_from_slice(&text.words);
        groups.starts.push(groups.ids.len());
    }
}

/// What the model makes of texts.
struct Encoded {
    /// `[texts, retrieval_compression_dim]`.
    whole: Tensor<2>,
    /// Vectors of words, `[words, width]`.
    words: Rows,
    ids: Vec<u32>,
    /// `[words, 1]`.
    gates: Option<Tensor<2>>,
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
    fn encode(&self, batch: &WordBatch, is_query: bool, dropout: Option<u64>) -> Encoded {
        let states = self.bert_model.forward(&batch.packed, dropout);
        self.heads(states, batch, is_query)
    }

    /// What the layers beside the backbone make of its states.
    fn heads(&self, states: Tensor<2>, batch: &WordBatch, is_query: bool) -> Encoded {
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
    fn total(&self, whole: Tensor<2>, q: &Encoded, d: &Encoded, exact: bool) -> Tensor<2> {
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
struct Heads(Weights);

impl Heads {
    /// Of a ColBERTer checkpoint; none of another model.
    fn of(folder: &ModelFolder) -> Result<Option<Self>, LearnError> {
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
fn backbone(folder: &ModelFolder) -> Result<ModelFolder, LearnError> {
    #[derive(Deserialize)]
    struct Names {
        bert_model: Option<String>,
    }
    let names: Names = folder
        .json("config.json", "it says what the backbone is")
        .map_err(|e| LearnError::Data(e.to_string()))?;
    let name = names.bert_model.unwrap_or_else(|| super::DISTILBERT.into());
    let within = folder.path.join(&name);
    let found = match within.is_dir() {
        true => ModelFolder::find(&within.to_string_lossy()),
        false => ModelFolder::find(&name),
    };
    found.map_err(|e| LearnError::Data(e.to_string()))
}

/// What a loss needs to know.
#[derive(Debug, Clone, Copy)]
struct Objective {
    pair: f64,
    cls: f64,
    in_batch: f64,
    sparsity: f64,
    words: bool,
    exact: bool,
}

/// Pairs as words, with the teacher's vectors, and how they become a loss.
pub struct Colberter {
    queries: Vec<WordText>,
    /// All different documents: those that belong to a query first.
    documents: Vec<WordText>,
    /// The document of each query.
    positive: Vec<usize>,
    teacher: Teacher,
    /// For each query documents that are no answer, with `T(q,d⁺) - T(q,d⁻)`, ascending.
    candidates: Vec<Vec<(usize, f32)>>,
    /// Queries of each topic.
    topics: Vec<Vec<usize>>,
    /// The topic of each query that is learned from, and its number.
    learn: Vec<(usize, usize)>,
    held_out: Vec<usize>,
    batch_size: usize,
    objective: Objective,
    /// Packs ids; its weights do not matter.
    packer: ColberterModel,
    seed: u64,
    dropout: bool,
}

/// The teacher's vectors: those of several, one after the other.
struct Teacher {
    dim: usize,
    queries: Vec<f32>,
    documents: Vec<f32>,
}

impl Teacher {
    fn new(
        teachers: &[&dyn Encoder],
        queries: &[&str],
        documents: &[&str],
        scale: f64,
        progress: &dyn Progress,
    ) -> Result<Self, LearnError> {
        let dims: Vec<usize> = teachers.iter().map(|t| t.identity().dim).collect();
        let dim: usize = dims.iter().sum();
        // The dot product of both sides is the mean cosine times the scale.
        let factor = (scale / teachers.len() as f64).sqrt() as f32;
        let total = (queries.len() + documents.len()) * teachers.len();
        progress.start("the teacher reads", "texts", Some(total as u64));
        let side = |texts: &[&str], role| -> Result<Vec<f32>, LearnError> {
            let mut all = vec![0.0; texts.len() * dim];
            let mut at = 0;
            for (teacher, width) in teachers.iter().zip(&dims) {
                for (chunk, texts) in texts.chunks(CHUNK).enumerate() {
                    if progress.cancelled() {
                        return Err(LearnError::Data("stopped while the teacher read".into()));
                    }
                    let vectors = teacher
                        .encode(texts, role)
                        .map_err(|e| LearnError::Data(e.to_string()))?;
                    for (i, vector) in vectors.iter().enumerate() {
                        let row = vector.as_slice();
                        if row.len() != *width {
                            return Err(LearnError::Data(format!(
                                "'{}' gives {} vectors for a text; a teacher is a sentence \
                                 encoder, which gives one",
                                teacher.identity().name,
                                row.len() / width
                            )));
                        }
                        let start = (chunk * CHUNK + i) * dim + at;
                        let place = &mut all[start..start + width];
                        place.iter_mut().zip(row).for_each(|(p, x)| *p = x * factor);
                    }
                    progress.advance(texts.len() as u64);
                }
                at += width;
            }
            Ok(all)
        };
        let made = Self {
            dim,
            queries: side(queries, Role::Query)?,
            documents: side(documents, Role::Document)?,
        };
        progress.finish();
        Ok(made)
    }

    fn query(&self, i: usize) -> &[f32] {
        &self.queries[i * self.dim..(i + 1) * self.dim]
    }

    fn document(&self, i: usize) -> &[f32] {
        &self.documents[i * self.dim..(i + 1) * self.dim]
    }

    fn score(&self, query: usize, document: usize) -> f32 {
        dot(self.query(query), self.document(document))
    }
}

/// Texts that the teacher reads at once.
const CHUNK: usize = 256;

impl Colberter {
    fn new(
        pairs: &Pairs,
        teachers: &[&dyn Encoder],
        tokenizer: &WordTokenizer,
        packer: ColberterModel,
        config: &ColberterConfig,
        progress: &dyn Progress,
    ) -> Result<Self, LearnError> {
        let mut numbers = HashMap::new();
        let mut texts: Vec<&str> = Vec::new();
        let mut number = |text: &'_ str| -> usize {
            // Lifetimes: the texts are the pairs'.
            let next = numbers.len();
            *numbers.entry(text.to_owned()).or_insert(next)
        };
        let positive: Vec<usize> = pairs.0.iter().map(|p| number(&p.positive)).collect();
        let given: Vec<Vec<usize>> = pairs
            .0
            .iter()
            .map(|p| p.negatives.iter().map(|n| number(n)).collect())
            .collect();
        let all = pairs.0.iter().map(|p| p.positive.as_str());
        let all = all.chain(
            pairs
                .0
                .iter()
                .flat_map(|p| p.negatives.iter().map(String::as_str)),
        );
        let mut seen = std::collections::HashSet::new();
        texts.extend(all.filter(|text| seen.insert(*text)));
        let queries: Vec<&str> = pairs.0.iter().map(|p| p.query.as_str()).collect();
        let teacher = Teacher::new(teachers, &queries, &texts, config.teacher_scale, progress)?;
        let (learn, held_out) = hold_out(pairs.0.len(), config.hold_out, config.seed);
        if learn.len() < 2 || texts.len() < 2 {
            return Err(LearnError::Data(
                "there is no text to tell an answer from; give pairs of different texts".into(),
            ));
        }
        let held: std::collections::HashSet<usize> =
            held_out.iter().map(|i| positive[*i]).collect();
        let candidates = candidates(&teacher, &positive, &given, &held, texts.len());
        let topics = topics(&teacher, &learn, config.seed);
        let learn = topics
            .iter()
            .enumerate()
            .flat_map(|(topic, members)| members.iter().map(move |q| (topic, *q)))
            .collect();
        Ok(Self {
            queries: queries
                .iter()
                .map(|text| tokenizer.text(text, config.query_length))
                .collect::<Result<_, _>>()?,
            documents: texts
                .iter()
                .map(|text| tokenizer.text(text, config.document_length))
                .collect::<Result<_, _>>()?,
            positive,
            teacher,
            candidates,
            topics,
            learn,
            held_out,
            batch_size: config.batch_size.max(1),
            objective: Objective {
                pair: config.pair,
                cls: config.cls,
                in_batch: config.in_batch,
                sparsity: config.sparsity,
                words: config.has_words(),
                exact: config.compress_to_exact_mini_mode,
            },
            packer,
            seed: config.seed,
            dropout: config.dropout,
        })
    }

    /// Queries of one topic, and for each a document that is no answer.
    fn draw(&self, rng: &mut StdRng) -> (Vec<usize>, Vec<usize>) {
        let (topic, first) = self.learn[rng.random_range(0..self.learn.len())];
        let mut chosen = vec![first];
        let mut others: Vec<usize> = self.topics[topic]
            .iter()
            .copied()
            .filter(|q| *q != first)
            .collect();
        others.shuffle(rng);
        chosen.extend(others.into_iter().take(self.batch_size - 1));
        // A small topic is filled up with other queries.
        let most = self.batch_size.min(self.learn.len());
        while chosen.len() < most {
            let (_, query) = self.learn[rng.random_range(0..self.learn.len())];
            if !chosen.contains(&query) {
                chosen.push(query);
            }
        }
        let negatives = chosen.iter().map(|q| balanced(&self.candidates[*q], rng));
        let negatives = negatives.collect();
        (chosen, negatives)
    }

    fn pack<'a>(&self, texts: impl Iterator<Item = &'a WordText>) -> Result<WordBatch, LearnError> {
        let texts: Vec<&WordText> = texts.collect();
        let ids: Vec<&[u32]> = texts.iter().map(|t| t.ids.as_slice()).collect();
        let mut batch = WordBatch {
            packed: self.packer.bert_model.pack(&ids).map_err(model_error)?,
            groups: Groups {
                of_rows: Vec::new(),
                starts: vec![0],
                ids: Vec::new(),
            },
        };
        texts.into_iter().for_each(|text| batch.add(text));
        Ok(batch)
    }

    fn make(
        &self,
        queries: &[usize],
        negatives: &[usize],
        dropout: Option<u64>,
    ) -> Result<ColberterBatch, LearnError> {
        let positives = queries.iter().map(|q| self.positive[*q]);
        let documents: Vec<usize> = positives.chain(negatives.iter().copied()).collect();
        let mut teacher = vec![0.0; queries.len() * documents.len()];
        for (row, q) in teacher.chunks_exact_mut(documents.len()).zip(queries) {
            for (cell, d) in row.iter_mut().zip(&documents) {
                *cell = self.teacher.score(*q, *d);
            }
        }
        Ok(ColberterBatch {
            queries: self.pack(queries.iter().map(|q| &self.queries[*q]))?,
            documents: self.pack(documents.iter().map(|d| &self.documents[*d]))?,
            teacher,
            dropout,
            objective: self.objective,
        })
    }
}

/// Texts of one step.
pub struct ColberterBatch {
    queries: WordBatch,
    /// The answers, then in the same order the texts that are none.
    documents: WordBatch,
    /// `[queries, documents]`.
    teacher: Vec<f32>,
    dropout: Option<u64>,
    objective: Objective,
}

impl ColberterBatch {
    fn count(&self) -> usize {
        self.queries.packed.texts()
    }

    fn sides(&self, model: &ColberterModel) -> (Encoded, Encoded) {
        (
            model.encode(&self.queries, true, self.dropout),
            // What is dropped differs between the sides.
            model.encode(&self.documents, false, self.dropout.map(|seed| !seed)),
        )
    }
}

impl Task for Colberter {
    type Model = ColberterModel;
    type Batch = ColberterBatch;

    fn batches_per_epoch(&self) -> u64 {
        self.learn.len().div_ceil(self.batch_size) as u64
    }

    fn batch(&mut self, number: u64) -> Result<ColberterBatch, LearnError> {
        let (queries, negatives) = self.draw(&mut step_rng(self.seed, number));
        let dropout = self.dropout.then(|| step_seed(!self.seed, number));
        self.make(&queries, &negatives, dropout)
    }

    fn items(batch: &ColberterBatch) -> u64 {
        batch.count() as u64
    }

    fn loss(model: &ColberterModel, batch: ColberterBatch) -> Loss {
        let (q, d) = batch.sides(model);
        mixed_loss(model, &q, d, &batch.teacher, batch.objective)
    }
    fn validate(&mut self, model: &ColberterModel) -> Result<Option<Validation>, LearnError> {
        let chosen = &self.held_out[..self.held_out.len().min(MOST_VALIDATED)];
        if chosen.len() < 2 {
            return Ok(None);
        }
        let batch = self.make(chosen, &[], None)?;
        let (q, d) = batch.sides(model);
        let mut scores = q.whole.clone().matmul(d.whole.clone().transpose());
        if self.objective.words {
            scores = model.total(scores, &q, &d, self.objective.exact);
        }
        let same = |i: usize, j: usize| self.positive[chosen[i]] == self.positive[chosen[j]];
        let ranking = Ranking::of(&numbers(&scores), chosen.len(), same);
        let mut validation = ranking.validation();
        if let Some(gates) = &d.gates {
            let gates = numbers(gates);
            let shut = gates.iter().filter(|g| **g <= 0.0).count();
            validation
                .measures
                .push(("words removed", shut as f64 / gates.len().max(1) as f64));
        }
        Ok(Some(validation))
    }
}

/// The loss of what the model made of `n` queries, of their answers and, after those, of
/// `n` texts that are none; `teacher` is `[n, 2n]`.
fn mixed_loss(
    model: &ColberterModel,
    q: &Encoded,
    d: Encoded,
    teacher: &[f32],
    objective: Objective,
) -> Loss {
    let device = model.score_merger.val().device();
    let (n, columns) = (q.whole.dims()[0], d.whole.dims()[0]);
    let whole = q.whole.clone().matmul(d.whole.clone().transpose());
    let teacher = TensorData::new(teacher.to_vec(), [n, columns]);
    let teacher = Tensor::<2>::from_data(teacher, &device);
    let margin = margins(&teacher, n);
    let mut parts = vec![
        (
            "cls",
            objective.cls,
            squares(margins(&whole, n), margin.clone()),
        ),
        (
            "in_batch",
            objective.in_batch,
            divergence(teacher, whole.clone()),
        ),
    ];
    if objective.words {
        let total = model.total(whole, q, &d, objective.exact);
        parts.push(("pair", objective.pair, squares(margins(&total, n), margin)));
    }
    if let Some(gates) = d.gates {
        parts.push(("gates", objective.sparsity, gates.mean()));
    }
    // There are parts, so there is a mix.
    Loss::mix(parts).expect("a loss has parts")
}

/// `scores[i, i] - scores[i, n + i]`, `[n, 1]`.
fn margins(scores: &Tensor<2>, n: usize) -> Tensor<2> {
    let device = scores.device();
    let column = |shift: usize| {
        let places: Vec<i64> = (0..n).map(|i| (shift + i) as i64).collect();
        let places = Tensor::<2, Int>::from_data(TensorData::new(places, [n, 1]), &device);
        scores.clone().gather(1, places)
    };
    column(0) - column(n)
}

fn squares(a: Tensor<2>, b: Tensor<2>) -> Tensor<1> {
    (a - b).powi_scalar(2).mean()
}

/// `KL(softmax(goal) ‖ softmax(scores))`, mean over rows.
fn divergence(goal: Tensor<2>, scores: Tensor<2>) -> Tensor<1> {
    let rows = goal.dims()[0] as f64;
    let wanted = softmax(goal.clone(), 1);
    let far = log_softmax(goal, 1) - log_softmax(scores, 1);
    (wanted * far).sum().div_scalar(rows)
}

/// For each query the documents of `given`, and of the nearest by the teacher some that
/// are not held out, with their margins, ascending.
fn candidates(
    teacher: &Teacher,
    positive: &[usize],
    given: &[Vec<usize>],
    held: &std::collections::HashSet<usize>,
    documents: usize,
) -> Vec<Vec<(usize, f32)>> {
    let dim = teacher.dim;
    let mut all = Vec::with_capacity(positive.len());
    for (block, queries) in teacher.queries.chunks(BLOCK * dim).enumerate() {
        let n = queries.len() / dim;
        let mut scores = vec![0.0; n * documents];
        matmul_nt(
            &mut scores,
            queries,
            &teacher.documents,
            n,
            documents,
            dim,
            0,
        );
        for (i, row) in scores.chunks_exact(documents).enumerate() {
            let query = block * BLOCK + i;
            let answer = positive[query];
            let mut found = given[query].clone();
            let near = top_k(row, NEAREST.min(documents)).into_iter();
            let near: Vec<usize> = near
                .map(|(_, d)| d as usize)
                .filter(|d| *d != answer && !held.contains(d))
                .collect();
            let step = near.len().div_ceil(CANDIDATES).max(1);
            found.extend(near.into_iter().step_by(step));
            found.retain(|d| *d != answer);
            let mut found: Vec<(usize, f32)> = found
                .into_iter()
                .map(|d| (d, row[answer] - row[d]))
                .collect();
            if found.is_empty() {
                // All others are held out: any other text will do.
                let other = (0..documents).find(|d| *d != answer).unwrap_or(answer);
                found.push((other, row[answer] - row[other]));
            }
            found.sort_unstable_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
            found.dedup();
            all.push(found);
        }
    }
    all
}

/// Queries that are compared with all documents at once.
const BLOCK: usize = 64;

/// A document of a margin that is drawn from equal ranges.
fn balanced(candidates: &[(usize, f32)], rng: &mut StdRng) -> usize {
    let (low, high) = (candidates[0].1, candidates[candidates.len() - 1].1);
    let width = (high - low) / BINS as f32;
    let bin = |margin: f32| match width > 0.0 {
        true => (((margin - low) / width) as usize).min(BINS - 1),
        false => 0,
    };
    let mut bins: Vec<usize> = candidates.iter().map(|c| bin(c.1)).collect();
    bins.dedup();
    let chosen = bins[rng.random_range(0..bins.len())];
    let inside: Vec<usize> = candidates
        .iter()
        .filter(|c| bin(c.1) == chosen)
        .map(|c| c.0)
        .collect();
    inside[rng.random_range(0..inside.len())]
}

/// The queries of each topic: clusters of the teacher's vectors.
fn topics(teacher: &Teacher, learn: &[usize], seed: u64) -> Vec<Vec<usize>> {
    let k = (learn.len() / TOPIC).max(1);
    let dim = teacher.dim;
    let rows: Vec<f32> = learn
        .iter()
        .flat_map(|q| teacher.query(*q))
        .copied()
        .collect();
    let centroids = kmeans(&rows, dim, &KMeansConfig::new(k, seed), 0);
    let mut topics = vec![Vec::new(); centroids.len() / dim];
    for (query, row) in learn.iter().zip(rows.chunks_exact(dim)) {
        let far = |c: &[f32]| dot(c, row) - 0.5 * dot(c, c);
        let nearest = centroids.chunks_exact(dim).enumerate();
        let nearest = nearest.max_by(|a, b| far(a.1).total_cmp(&far(b.1)));
        topics[nearest.map_or(0, |(i, _)| i)].push(*query);
    }
    topics.retain(|topic| !topic.is_empty());
    topics
}

/// Turns texts into tokens and words as inference does it.
struct WordTokenizer {
    tokenizer: TextTokenizer,
    words: Option<Words>,
    longest: usize,
}

impl WordTokenizer {
    fn text(&self, text: &str, limit: usize) -> Result<WordText, LearnError> {
        let error = |e: keyfold_core::EncodeError| LearnError::Data(e.to_string());
        let tokens = self
            .tokenizer
            .raw_tokens(text, limit.min(self.longest), true)
            .map_err(error)?
            .map_err(|n| LearnError::Data(format!("a text has {n} tokens")))?;
        let mut word_of = vec![None; tokens.ids.len()];
        let mut ids = Vec::new();
        match self.words {
            Some(how) => {
                for (number, word) in (0..).zip(words(text, &tokens.spans, how).map_err(error)?) {
                    ids.push(word.id);
                    word.tokens
                        .iter()
                        .for_each(|row| word_of[*row] = Some(number));
                }
            }
            None => {
                word_of = (0..tokens.ids.len() as u32).map(Some).collect();
                ids.clone_from(&tokens.ids);
            }
        }
        Ok(WordText {
            ids: tokens.ids,
            word_of,
            words: ids,
        })
    }
}

/// Trains a model on `pairs` with the scores of `teachers`, from the model in `folder`;
/// writes it into `place.out` in the authors' layout unless the user stopped the run.
///
/// # Errors
/// When the model, the data or a setting does not fit, or the run fails.
pub fn train(
    folder: &ModelFolder,
    teachers: &[&dyn Encoder],
    pairs: &Pairs,
    config: &ColberterConfig,
    place: Place<'_>,
) -> Result<Report, TrainError> {
    pairs.require(4)?;
    let how = config.check()?;
    if teachers.is_empty() {
        return Err(TrainError::Config("name at least one teacher".into()));
    }
    let device = Device::flex().autodiff();
    let model = ColberterModel::load(folder, config, &device)?;
    let base = match Heads::of(folder)? {
        Some(_) => backbone(folder)?,
        None => folder.clone(),
    };
    let tokenizer = WordTokenizer {
        tokenizer: TextTokenizer::load(&base, "", false)
            .map_err(|e| LearnError::Data(e.to_string()))?,
        words: config.aggregate_unique_ids.then_some(how),
        longest: model.bert_model.longest(),
    };
    let task = Colberter::new(
        pairs,
        teachers,
        &tokenizer,
        model.clone(),
        config,
        place.progress,
    )?;
    let mut learner = GradientLearner::new(task, model, &config.optim, &device, "pairs")?;
    let mut data = pairs.fingerprint();
    let names = teachers.iter().map(|t| t.identity().hash.clone());
    data["teachers"] = names.collect::<Vec<_>>().into();
    let settings = place.settings("colberter", config, &config.run, data, folder)?;
    let report = run(
        &mut learner,
        &settings,
        place.out,
        place.progress,
        place.watch,
    )?;
    if report.ended != keyfold_train::Ended::Stopped {
        learner.model().save(place.out, config)?;
    }
    Ok(report)
}

#[cfg(test)]
mod tests;

//! Settings of a training.

use keyfold_train::gradient::{OptimConfig, OptimizerKind};
use keyfold_train::{Decay, LearnError, RunConfig};
use serde::{Deserialize, Serialize};

use crate::colberter::Words;

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
                optimizer: OptimizerKind::Adam,
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
    pub(super) fn check(&self) -> Result<Words, LearnError> {
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

    pub(super) fn has_words(&self) -> bool {
        self.stage >= 2
    }

    pub(super) fn has_gates(&self) -> bool {
        self.stage >= 3 && self.use_contextualized_stopwords
    }
}

//! Settings of binary paragraph vectors.

use serde::{Deserialize, Serialize};

use crate::sampled::{Descent, Rate, WordLoss};

/// What predicts a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Architecture {
    /// The document alone (distributed bag of words).
    PvDbow,
    /// The document and the words around (distributed memory).
    PvDm,
}

/// What the numbers of a document become before they predict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The logistic function, rounded to 0 or 1; learned through the unrounded one.
    Rounded,
    /// The logistic function, rounded only after training.
    Sigmoid,
    /// Themselves: plain paragraph vectors.
    Real,
}

/// How gradients become changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Optimizer {
    /// Times the learning rate.
    Sgd,
    /// Over the root of the sum of all squares so far, for each number its own: a
    /// learning rate of 0.1 suits it.
    Adagrad,
}

/// How the words around join the code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Join {
    /// Their vectors are added to it.
    Sum,
    /// Their vectors stand beside it, one place for each.
    Concatenation,
}

/// Settings of binary paragraph vectors; the defaults are for codes of 128 bits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What predicts a word.
    pub architecture: Architecture,
    /// What the numbers of a document become.
    pub code: Code,
    /// Bits of a code; a multiple of 8.
    pub bits: usize,
    /// Numbers of the real vector of a document, from which its code is projected; 0 for
    /// codes alone, 300 for the publication's real-binary model.
    pub real_dim: usize,
    /// How the words around join the code, with `pv_dm`.
    pub context: Join,
    /// Words to each side, with `pv_dm`.
    pub window: usize,
    /// Whether pairs of neighbouring words are predicted as well, with `pv_dbow`.
    pub bigrams: bool,
    /// Least occurrences of a word.
    pub min_count: u64,
    /// Least occurrences of a pair of words.
    pub bigram_min_count: u64,
    /// Share of the text above which a word is passed over now and then; 0 for never.
    pub subsample: f64,
    /// Whether the biases begin with how frequent each word is, as the logarithm of its
    /// share, and not with 0. Until they have learned it, the codes do, which turns most
    /// bits to one side: where texts are few, that stays so.
    pub unigram_bias: bool,
    /// What is minimised.
    pub loss: WordLoss,
    /// Words that did not occur, for a batch or for each word.
    pub negatives: usize,
    /// Whether a batch shares these words; else each word has its own, and `loss` must be
    /// `negative_sampling`.
    pub share_negatives: bool,
    /// Such words are drawn in proportion to their count to this power.
    pub power: f64,
    /// How gradients become changes.
    pub optimizer: Optimizer,
    /// Learning rate of the first step; it falls in a straight line to 0.
    pub learning_rate: f32,
    /// Passes over the documents.
    pub epochs: u64,
    /// Words that are predicted before parameters change.
    pub batch: usize,
    /// Batches that are computed against the same parameters, so that threads share them.
    pub round: usize,
    /// Words of a step of the training, about.
    pub step_words: usize,
    /// Passes over a new document.
    pub infer_epochs: usize,
    /// Learning rate of the first pass over a new document; it falls to 0.
    pub infer_learning_rate: f32,
    /// Seed of everything random.
    pub seed: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            architecture: Architecture::PvDbow,
            code: Code::Rounded,
            bits: 128,
            real_dim: 0,
            context: Join::Sum,
            window: 5,
            bigrams: true,
            min_count: 5,
            bigram_min_count: 10,
            subsample: 1e-4,
            unigram_bias: false,
            loss: WordLoss::SampledSoftmax,
            negatives: 64,
            share_negatives: true,
            power: 0.75,
            optimizer: Optimizer::Sgd,
            learning_rate: 0.05,
            epochs: 20,
            batch: 128,
            round: 4,
            step_words: 16_384,
            infer_epochs: 20,
            infer_learning_rate: 0.05,
            seed: 0,
        }
    }
}

impl Config {
    /// What is wrong with the settings, and what to do.
    pub(crate) fn check(&self) -> Result<(), String> {
        let rates = [self.learning_rate, self.infer_learning_rate];
        let counts = [
            ("negatives", self.negatives),
            ("batch", self.batch),
            ("round", self.round),
            ("step_words", self.step_words),
            ("infer_epochs", self.infer_epochs),
        ];
        if self.bits == 0 || !self.bits.is_multiple_of(8) || self.bits > 1 << 16 {
            return Err(format!(
                "bits is {}; codes are stored in bytes, so take a multiple of 8 up to 65536",
                self.bits
            ));
        }
        if let Some((name, _)) = counts.iter().find(|(_, n)| *n == 0 || *n > 1 << 24) {
            return Err(format!("{name} must be from 1 to {}", 1 << 24));
        }
        if self.real_dim > 1 << 16 {
            return Err("real_dim must be at most 65536".into());
        }
        if !self.share_negatives && self.loss != WordLoss::NegativeSampling {
            return Err(
                "share_negatives = false needs loss = \"negative_sampling\": the other losses \
                 are corrected for words that a batch shares"
                    .into(),
            );
        }
        if self.unigram_bias && self.loss == WordLoss::NegativeSampling {
            return Err(
                "unigram_bias = true needs another loss: with negative_sampling scores are not \
                 the logarithms of probabilities"
                    .into(),
            );
        }
        if self.architecture == Architecture::PvDm && !(1..=100).contains(&self.window) {
            return Err("window must be from 1 to 100".into());
        }
        if rates.iter().any(|r| !(r.is_finite() && *r > 0.0)) {
            return Err("learning rates must be above 0".into());
        }
        if !(self.power.is_finite() && self.subsample.is_finite() && self.subsample >= 0.0) {
            return Err("power and subsample must be numbers, subsample not below 0".into());
        }
        if self.code == Code::Real && self.real_dim > 0 {
            return Err("code = \"real\" has no projection: set real_dim = 0".into());
        }
        Ok(())
    }

    /// Length of what predicts a word.
    pub(crate) fn hidden(&self) -> usize {
        match (self.architecture, self.context) {
            (Architecture::PvDm, Join::Concatenation) => self.bits * (1 + 2 * self.window),
            _ => self.bits,
        }
    }

    /// Numbers that are learned for a document.
    pub(crate) fn row(&self) -> usize {
        match self.real_dim {
            0 => self.bits,
            dim => dim,
        }
    }

    /// What a step of this learning rate is.
    pub(crate) fn rate(&self, learning_rate: f32) -> Rate {
        Rate {
            learning_rate,
            descent: match self.optimizer {
                Optimizer::Sgd => Descent::Plain,
                Optimizer::Adagrad => Descent::AdaGrad,
            },
        }
    }

    /// Pairs of words are predicted.
    pub(crate) fn pairs(&self) -> bool {
        self.bigrams && self.architecture == Architecture::PvDbow
    }
}

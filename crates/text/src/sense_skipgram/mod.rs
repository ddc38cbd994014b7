//! Disambiguated skip-gram: several vectors for each word, one for each of its senses,
//! and a model that tells from the context which sense is meant. Nothing is labelled.
//!
//! K. Grzegorczyk and M. Kurdziel, Disambiguated skip-gram model, 2018;
//! K. Grzegorczyk, Vector representations of text data in deep learning, 2019.
//!
//! For an occurrence of a word `w` among words `c_j`:
//!
//! ```text
//! u = mean_j O[c_j]                          held: no gradient goes through it
//! l = C_w u + b_w                            what the context says of the senses
//! z = softmax(l)                             first stage: one classifier for all words
//! z = softmax((l + g) / τ),  g ~ Gumbel      second stage: each word has its own
//! h = Σ_s z_s S[w, s]
//! loss = mean_j -log p(c_j | h) + λ H(z)     λ = -0.1 in the first stage, else 0
//! ```
//!
//! `p` is a softmax over the word and words drawn by Zipf's law. All learn by descent
//! with momentum. Then the senses of every occurrence are summed to priors, and rare
//! senses are dropped. In use `z` is the plain softmax, never a sample.
//!
//! Shapes: `S [words, senses, dim]`, `O [words, dim]`, `C [classifiers, senses, dim]`. An
//! occurrence costs `dim · (2 window + negatives + 2 senses)` multiplications three times.

mod config;
#[cfg(feature = "train")]
mod learn;
mod params;
#[cfg(test)]
mod parity;
mod prepare;
#[cfg(test)]
mod tests;

use std::path::Path;

use keyfold_core::ModelFolder;
use keyfold_kernels as kernels;

pub use config::Config;
#[cfg(feature = "train")]
pub use learn::{Trainer, train};

use crate::error::{LoadError, invalid};
use crate::sampled::{Format, Table, Vocabulary};
use params::Params;

const FORMAT: Format = Format {
    model_type: "keyfold-sense-skipgram",
    version: 1,
};

/// A trained model.
#[derive(Debug, Clone, PartialEq)]
pub struct SenseVectors {
    config: Config,
    words: Vocabulary,
    params: Params,
    /// How frequent each sense is among the occurrences of its word, `[words, senses]`;
    /// 0 for those dropped.
    priors: Table,
}

/// A sense of a word.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Sense {
    /// Its number, from 0.
    pub sense: usize,
    /// Its share of the occurrences of the word.
    pub prior: f32,
    /// The nearest senses of other words, with their cosine.
    pub near: Vec<(String, f32)>,
}

/// Why a word has no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SenseError {
    /// It is not known.
    #[error(
        "the model does not know the word '{word}': it was too rare in the texts, or is passed \
         over as a word without a meaning of its own"
    )]
    UnknownWord {
        /// The word.
        word: String,
    },
    /// It is not in the sentence.
    #[error("the word '{word}' is not in the sentence; write it as it stands there")]
    NotInSentence {
        /// The word.
        word: String,
    },
    /// The words around are not known.
    #[error("the model knows none of the words around '{word}', so nothing tells its sense")]
    NoContext {
        /// The word.
        word: String,
    },
}

impl SenseVectors {
    /// Whether a folder holds such a model.
    pub fn is_in(folder: &Path) -> bool {
        FORMAT.is(folder)
    }

    /// Reads a model that [`SenseVectors::save`] wrote.
    ///
    /// # Errors
    /// When a file is missing, damaged, or of another version.
    pub fn load(folder: &ModelFolder) -> Result<Self, LoadError> {
        let mut read = FORMAT.read::<Config>(folder)?;
        let config = read.settings;
        let path = folder.file("config.json");
        config.check().map_err(|what| invalid(&path, what))?;
        let words = read.words.len();
        let width = config.senses * config.dim;
        let slots = params::slots(read.words.counts(), &config);
        let classifiers = slots.iter().copied().max().unwrap_or(0) as usize + 1;
        let mut params = Params::new(0, &config);
        params.slots = slots;
        params.senses = read.tensors.take("senses.weight", words, width)?;
        params.layer.weights = read.tensors.take("output.weight", words, config.dim)?;
        params.layer.bias = read.tensors.take("output.bias", words, 1)?;
        params.classifier = read.tensors.take("classifier.weight", classifiers, width)?;
        params.classifier_bias =
            read.tensors
                .take("classifier.bias", classifiers, config.senses)?;
        let priors = read.tensors.take("priors", words, config.senses)?;
        Ok(Self {
            config,
            words: read.words,
            params,
            priors,
        })
    }

    /// Writes the model: `config.json`, `vocabulary.tsv`, `model.safetensors`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), LoadError> {
        let params = &self.params;
        let tensors = [
            ("senses.weight", &params.senses),
            ("output.weight", &params.layer.weights),
            ("output.bias", &params.layer.bias),
            ("classifier.weight", &params.classifier),
            ("classifier.bias", &params.classifier_bias),
            ("priors", &self.priors),
        ];
        FORMAT.write(folder, &self.config, &self.words, &tensors)
    }

    /// Its settings.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The words; the first stands for unknown ones.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.words
    }

    /// The senses of a word that were not dropped, the most frequent first, each with
    /// the `near` nearest senses of other words.
    ///
    /// # Errors
    /// When the word is not known.
    pub fn senses(&self, word: &str, near: usize) -> Result<Vec<Sense>, SenseError> {
        let number = self.number(word)?;
        let mut senses: Vec<Sense> = self
            .kept(number)
            .map(|(sense, prior)| Sense {
                sense,
                prior,
                near: self.near(number, sense, near),
            })
            .collect();
        senses.sort_by(|a, b| b.prior.total_cmp(&a.prior));
        Ok(senses)
    }

    /// The vector of a sense.
    pub fn vector(&self, word: &str, sense: usize) -> Option<&[f32]> {
        let number = self.words.number(word)?;
        (sense < self.config.senses).then(|| self.params.sense(number, sense))
    }

    /// The probability of each sense of the first occurrence of `word` in a sentence,
    /// from all other words and the word itself.
    ///
    /// # Errors
    /// When the word is not known or not in the sentence, or no other word is known.
    pub fn disambiguate(&self, sentence: &str, word: &str) -> Result<Vec<f32>, SenseError> {
        let number = self.number(word)?;
        let known: Vec<u32> = prepare::words(sentence, self.config.stop_words)
            .filter_map(|w| self.words.number(&w).filter(|n| *n > 0))
            .collect();
        let named = || word.to_owned();
        if !known.contains(&number) {
            return Err(SenseError::NotInSentence { word: named() });
        }
        if known.iter().all(|w| *w == number) {
            return Err(SenseError::NoContext { word: named() });
        }
        Ok(self.weigh(number, &known))
    }

    /// The probability of each sense among some words.
    fn weigh(&self, word: u32, around: &[u32]) -> Vec<f32> {
        let mut context = Vec::new();
        self.params.context(around, &mut context);
        let mut weights = vec![0.0; self.config.senses];
        self.params.logits(word, &context, &mut weights);
        kernels::softmax_rows(&mut weights, self.config.senses);
        weights
    }

    fn number(&self, word: &str) -> Result<u32, SenseError> {
        let lower = word.to_lowercase();
        let number = self.words.number(&lower).filter(|n| *n > 0);
        number.ok_or_else(|| SenseError::UnknownWord {
            word: word.to_owned(),
        })
    }

    /// Senses that were not dropped, with their priors.
    fn kept(&self, word: u32) -> impl Iterator<Item = (usize, f32)> {
        let priors = self.priors.row(word).iter().copied().enumerate();
        priors.filter(|(_, prior)| *prior > 0.0)
    }

    fn near(&self, word: u32, sense: usize, near: usize) -> Vec<(String, f32)> {
        let mine = self.params.sense(word, sense);
        let length = kernels::norm(mine).max(1e-12);
        let cosine = |(other, sense)| {
            let vector = self.params.sense(other, sense);
            kernels::dot(mine, vector) / length / kernels::norm(vector).max(1e-12)
        };
        let others = (1..self.words.len() as u32).filter(|other| *other != word);
        // The best sense of each other word.
        let best = others.filter_map(|other| {
            let senses = self.kept(other).map(|(sense, _)| cosine((other, sense)));
            senses.max_by(f32::total_cmp).map(|cosine| (other, cosine))
        });
        let mut best: Vec<(u32, f32)> = best.collect();
        best.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        best.truncate(near);
        let name = |(other, cosine)| (self.words.word(other).to_owned(), cosine);
        best.into_iter().map(name).collect()
    }
}

/// An occurrence of a word in a sentence.
#[derive(Debug, Clone, PartialEq)]
pub struct Occurrence {
    /// The probability of each sense, from the window around it, as in training.
    pub weights: Vec<f32>,
    /// The mean of the vectors of the words of the window.
    pub context: Vec<f32>,
}

impl SenseVectors {
    /// All occurrences of `word` in a sentence, in order.
    ///
    /// # Errors
    /// When the word is not known.
    pub fn occurrences(&self, sentence: &str, word: &str) -> Result<Vec<Occurrence>, SenseError> {
        let number = self.number(word)?;
        let window = self.config.window;
        let mut numbers = vec![0; window];
        let words = prepare::words(sentence, self.config.stop_words);
        numbers.extend(words.map(|w| self.words.number(&w).unwrap_or(0)));
        numbers.resize(numbers.len() + window, 0);
        let places = (window..numbers.len() - window).filter(|i| numbers[*i] == number);
        let occurrence = |i: usize| {
            let around = [&numbers[i - window..i], &numbers[i + 1..i + 1 + window]].concat();
            let mut context = Vec::new();
            self.params.context(&around, &mut context);
            Occurrence {
                weights: self.weigh(number, &around),
                context,
            }
        };
        Ok(places.map(occurrence).collect())
    }
}

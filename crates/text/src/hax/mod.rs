//! Small Mamba models with attention to few keys (HAX), or without, trained to recall or to
//! follow a user's text.
//!
//! Z. Zhan et al., 2025, Overcoming Long-Context Limitations of State-Space Models via
//! Context-Dependent Sparse Attention. Tasks are joint recall and multi-query recall
//! ([`keyfold_sequence::recall`]), drawn anew for each batch, where
//!
//! ```text
//! loss = mean over questions of -log p(answer) + gate_loss · Σ over layers of the ranking's loss
//! ```
//!
//! and language, where each byte of a window is asked for. What comes out is a model folder;
//! without attention and on language it is a Mamba that `keyfold lm` reads.

pub mod sparsity;

use std::path::Path;

use burn::tensor::Device;
use keyfold_nn::{HaxModel, HaxModelConfig, random};
use keyfold_sequence::recall::{JointRecall, MultiQueryRecall, RecallText};
use keyfold_train::gradient::{GradientLearner, Loss, OptimConfig, Task};
use keyfold_train::{Decay, LearnError, Report, RunConfig, TrainError, Validation};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::language_model::{BOS, tokenizer};
use crate::masked_model::{Guesses, TOGETHER};
use crate::training::{Place, model_error};

/// What is learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HaxTask {
    /// Values of keys that differ by context.
    JointRecall,
    /// Values of keys.
    MultiQueryRecall,
    /// A user's text, byte by byte.
    Language,
}

/// How a model is shaped and trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HaxConfig {
    /// Its sizes; a `vocab_size` of 0 is what the task needs.
    pub model: HaxModelConfig,
    /// What is learned.
    pub task: HaxTask,
    /// Sizes of joint recall.
    pub joint_recall: JointRecall,
    /// Sizes of multi-query recall.
    pub multi_query_recall: MultiQueryRecall,
    /// Tokens of a window of text.
    pub length: usize,
    /// Texts of a micro-batch.
    pub batch_size: usize,
    /// Weight of the ranking's loss.
    pub gate_loss: f64,
    /// Made-up texts on which the model is measured.
    pub validation_texts: usize,
    /// Share of a user's text that the model never learns from, at its end.
    pub held_out: f64,
    /// Learning rates, steps, clipping.
    pub optim: OptimConfig,
    /// Seed of weights and texts.
    pub seed: u64,
    /// How the run is kept and watched.
    pub run: RunConfig,
}

impl Default for HaxConfig {
    /// The paper's model and texts for joint recall, on a thirtieth of its steps.
    fn default() -> Self {
        Self {
            model: HaxModelConfig {
                vocab_size: 0,
                ..HaxModelConfig::default()
            },
            task: HaxTask::JointRecall,
            joint_recall: JointRecall::default(),
            multi_query_recall: MultiQueryRecall::default(),
            length: 256,
            batch_size: 64,
            gate_loss: 0.1,
            validation_texts: 128,
            held_out: 0.05,
            optim: OptimConfig {
                learning_rate: 2e-3,
                max_steps: 12_000,
                warmup_steps: 500,
                decay: Decay::Constant,
                ..OptimConfig::default()
            },
            seed: 0,
            run: RunConfig::default(),
        }
    }
}

impl HaxConfig {
    /// The model's sizes with the tokens that the task needs.
    ///
    /// # Errors
    /// When settings make no sense.
    pub fn sizes(&self) -> Result<HaxModelConfig, TrainError> {
        let wrong = |what: String| Err(TrainError::Config(what));
        let refused = |e: keyfold_sequence::SequenceError| TrainError::Config(e.to_string());
        let (needed, longest) = match self.task {
            HaxTask::JointRecall => {
                self.joint_recall.check().map_err(refused)?;
                (self.joint_recall.tokens(), self.joint_recall.longest())
            }
            HaxTask::MultiQueryRecall => {
                self.multi_query_recall.check().map_err(refused)?;
                let task = &self.multi_query_recall;
                (task.vocab_size, task.input_seq_len)
            }
            HaxTask::Language => (tokenizer::TOKENS, self.length),
        };
        let mut sizes = self.model.clone();
        if sizes.vocab_size == 0 {
            sizes.vocab_size = needed;
        }
        if sizes.vocab_size < needed {
            return wrong(format!(
                "model.vocab_size is {}; the task has {needed} tokens",
                sizes.vocab_size
            ));
        }
        if self.batch_size == 0 || longest < 2 {
            return wrong("batch_size must be at least 1, and length at least 2".into());
        }
        if !(0.0..1.0).contains(&self.held_out) {
            return wrong(format!(
                "held_out is {}; it must be at least 0 and below 1",
                self.held_out
            ));
        }
        if !(self.gate_loss.is_finite() && self.gate_loss >= 0.0) {
            return wrong(format!(
                "gate_loss is {}; it must be 0 or more",
                self.gate_loss
            ));
        }
        Ok(sizes)
    }
}

/// Texts one after the other, and what is asked of them.
#[derive(Debug, Clone, Default)]
pub struct Questions {
    tokens: Vec<u32>,
    starts: Vec<usize>,
    /// Rows at which something is asked.
    rows: Vec<u32>,
    /// The answers.
    targets: Vec<u32>,
    gate_loss: f64,
    seed: u64,
}

impl Questions {
    fn new(gate_loss: f64, seed: u64) -> Self {
        Self {
            starts: vec![0],
            gate_loss,
            seed,
            ..Self::default()
        }
    }

    fn push(&mut self, text: &RecallText) {
        let first = self.tokens.len() as u32;
        self.tokens.extend_from_slice(&text.tokens);
        self.starts.push(self.tokens.len());
        self.rows
            .extend(text.asked.iter().map(|(at, _)| first + at));
        self.targets.extend(text.asked.iter().map(|(_, a)| *a));
    }
}

/// A window of bytes, each asked for by what comes before it.
fn window(bytes: &[u8]) -> RecallText {
    let asked = bytes.iter().enumerate();
    let asked = asked
        .map(|(at, &byte)| (at as u32, u32::from(byte)))
        .collect();
    let mut tokens = vec![BOS];
    tokens.extend(bytes.iter().map(|&b| u32::from(b)));
    tokens.pop();
    RecallText {
        tokens,
        asked,
        told: Vec::new(),
    }
}

struct HaxLearning<'a> {
    config: &'a HaxConfig,
    /// What is learned from, where that is a text.
    text: &'a [u8],
    /// What is not.
    held_out: &'a [u8],
}

impl HaxLearning<'_> {
    fn text(&self, seed: u64) -> Result<RecallText, LearnError> {
        let made = match self.config.task {
            HaxTask::JointRecall => self.config.joint_recall.text(seed),
            HaxTask::MultiQueryRecall => self.config.multi_query_recall.text(seed),
            HaxTask::Language => {
                let length = self.config.length;
                let room = (self.text.len() - length + 1) as f64;
                let from = (random::unit(seed, 0) * room) as usize;
                return Ok(window(&self.text[from..from + length]));
            }
        };
        made.map_err(|e| LearnError::Data(e.to_string()))
    }
}

impl Task for HaxLearning<'_> {
    type Model = HaxModel;
    type Batch = Questions;

    fn batches_per_epoch(&self) -> u64 {
        // The length counts for language alone, and may be 0 elsewhere.
        let batch = self.config.batch_size * self.config.length;
        self.text.len().checked_div(batch).unwrap_or(1).max(1) as u64
    }

    fn batch(&mut self, number: u64) -> Result<Questions, LearnError> {
        let seed = random::derive(self.config.seed, 1 + number);
        let mut questions = Questions::new(self.config.gate_loss, random::derive(seed, 0));
        for text in 0..self.config.batch_size as u64 {
            questions.push(&self.text(random::derive(seed, 1 + text))?);
        }
        Ok(questions)
    }

    fn items(batch: &Questions) -> u64 {
        batch.tokens.len() as u64
    }

    fn loss(model: &HaxModel, batch: Questions) -> Loss {
        let found = model.states(&batch.tokens, &batch.starts, Some(batch.seed));
        let loss = model.loss(found.states, &batch.rows, &batch.targets);
        match found.ranking {
            None => loss.into(),
            Some(ranking) => Loss {
                total: loss.clone() + ranking.clone().mul_scalar(batch.gate_loss),
                parts: vec![("answers", loss), ("ranking", ranking)],
            },
        }
    }

    fn validate(&mut self, model: &HaxModel) -> Result<Option<Validation>, LearnError> {
        let texts: Vec<RecallText> = match self.config.task {
            HaxTask::Language => {
                let windows = self.held_out.chunks_exact(self.config.length);
                windows.take(16).map(window).collect()
            }
            _ => {
                // None of the seeds of what is learned.
                let seed = random::derive(self.config.seed ^ 0x5eed, 0);
                let texts = 0..self.config.validation_texts as u64;
                texts
                    .map(|i| self.text(random::derive(seed, i)))
                    .collect::<Result<_, _>>()?
            }
        };
        Ok(
            Answered::of(model, &texts).map(|found| match self.config.task {
                HaxTask::Language => Validation {
                    loss: found.loss / std::f64::consts::LN_2,
                    measures: Vec::new(),
                },
                _ => Validation {
                    loss: found.loss,
                    measures: vec![("accuracy", found.accuracy)],
                },
            }),
        )
    }
}

/// How well a model answers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Answered {
    /// Mean of `-log p` of the answers, natural.
    pub loss: f64,
    /// Share of answers that are the likeliest token.
    pub accuracy: f64,
    /// How many questions there were.
    pub questions: usize,
}

impl Answered {
    /// Asks a model all questions of some texts, by the hashes that it has; none where nothing
    /// is asked.
    ///
    /// # Panics
    /// When a token is not below the size of the vocabulary.
    pub fn of(model: &HaxModel, texts: &[RecallText]) -> Option<Self> {
        let mut guesses = Guesses::default();
        for texts in texts.chunks(TOGETHER) {
            let mut questions = Questions::new(0.0, 0);
            texts.iter().for_each(|text| questions.push(text));
            if questions.rows.is_empty() {
                continue;
            }
            let states = model
                .states(&questions.tokens, &questions.starts, None)
                .states;
            guesses.add(&model.logits(states, &questions.rows), &questions.targets);
        }
        guesses.means().map(|(loss, accuracy, questions)| Self {
            loss,
            accuracy,
            questions,
        })
    }
}

/// Trains a model in the run's folder and leaves it there as a model folder. `text` is read
/// where the task is language.
///
/// # Errors
/// When the settings make no sense, the text is too short, or the run fails.
pub fn train(text: &str, config: &HaxConfig, place: Place<'_>) -> Result<Report, TrainError> {
    let sizes = config.sizes()?;
    let bytes = text.as_bytes();
    let cut = (bytes.len() as f64 * (1.0 - config.held_out)) as usize;
    let language = config.task == HaxTask::Language;
    if language && cut < config.length {
        return Err(LearnError::Data(format!(
            "the text has {} bytes, a window {}; more text or smaller windows help",
            bytes.len(),
            config.length
        ))
        .into());
    }
    let device = Device::flex().autodiff();
    let model = HaxModel::init(&sizes, config.seed, &device).map_err(model_error)?;
    let task = HaxLearning {
        config,
        text: &bytes[..cut],
        held_out: &bytes[cut..],
    };
    let mut learner = GradientLearner::new(task, model, &config.optim, &device, "tokens")?;
    let data = match language {
        true => json!({ "bytes": bytes.len(), "blake3": blake3::hash(bytes).to_hex().as_str() }),
        false => json!(null),
    };
    let settings = place.settings("hax", config, &config.run, data, None)?;
    place.train(&mut learner, &settings, |learner, out| {
        save(learner.model(), language, out)
    })
}

fn save(model: &HaxModel, language: bool, out: &Path) -> Result<(), LearnError> {
    model.save(out).map_err(model_error)?;
    if language {
        tokenizer::write(out, tokenizer::TOKENS)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_of_a_window_is_asked_for_before_it_is_read() {
        let text = window(b"abc");
        assert_eq!(text.tokens, [BOS, 97, 98]);
        assert_eq!(text.asked, [(0, 97), (1, 98), (2, 99)]);
    }
}

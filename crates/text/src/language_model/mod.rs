//! A small language model of bytes, trained from scratch on a user's text and on a task of
//! recall, so that methods for long contexts have a model whose every step is known.
//!
//! The model is a Llama (Touvron et al. 2023) over 260 tokens: the bytes, and begin, end,
//! separator and padding. A batch is a mix of windows of text and of made-up records
//! ([`Recall`]), whose values can only be known by looking back:
//!
//! ```text
//! loss = mean over tokens of -log p(byte | bytes before it in the window)
//! ```
//!
//! of all tokens of text, and of those of records that can be known.
//!
//! The first weights of two layers look back already (`start`), since finding that out takes a
//! small model more steps than all the rest. The last steps have longer windows (`long_length`
//! from `long_from` of the steps on), so that the model works at those lengths. Without a share
//! of recall it is a plain language model. With `attention = "blocks"` it learns on
//! PowerAttention's mask (Chen et al. 2025), so that `keyfold lm --prefill power --select power`
//! reads it as it was trained. With `sharing` its layers share the matrices of their attention from
//! the beginning (MASA, Zhussip et al. 2026); what is written is an ordinary Llama.

mod recall;
mod sharing;
mod start;
pub(crate) mod tokenizer;

use std::path::Path;

use burn::tensor::Device;
use keyfold_core::block_mask::BlockMask;
use keyfold_nn::checkpoint::numbers;
use keyfold_nn::{Llama, LlamaConfig, NoHook, random};
use keyfold_train::gradient::{GradientLearner, Loss, OptimConfig, Task};
use keyfold_train::{Decay, LearnError, Report, RunConfig, TrainError, Validation};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::training::{Place, model_error};
pub use recall::Recall;
use sharing::Decoder;
pub use sharing::{SharedTypes, SharingConfig, SharingMethod};
use start::LookBack;

/// Tokens of the shortest windows.
const SHORTEST: usize = 64;

/// Begins every window.
pub const BOS: u32 = 256;

/// How a model is shaped and trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LanguageModelConfig {
    /// Its sizes, as config.json has them.
    pub model: LlamaConfig,
    /// What attention sees.
    pub attention: Attention,
    /// The blocks that it sees, where it is `blocks`; for `keyfold lm` blocks of a multiple of 64.
    pub mask: BlockMask,
    /// What layers share of their attention.
    pub sharing: SharingConfig,
    /// Share of windows that are records to recall.
    pub recall_share: f64,
    /// The first weights.
    pub start: Start,
    /// Tokens of a window.
    pub length: usize,
    /// Tokens of a window at the end of the training.
    pub long_length: usize,
    /// The share of steps after which windows are long.
    pub long_from: f64,
    /// Tokens of a step's micro-batch; the number of windows follows from it.
    pub batch_tokens: usize,
    /// Share of the text that the model never learns from, at its end.
    pub held_out: f64,
    /// Learning rates, steps, clipping.
    pub optim: OptimConfig,
    /// Seed of weights and windows.
    pub seed: u64,
    /// How the run is kept and watched.
    pub run: RunConfig,
}

/// What attention sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Attention {
    /// All that came before.
    Dense,
    /// Blocks of it, as a mask says (PowerAttention).
    Blocks,
}

/// The first weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// All random.
    Random,
    /// Those of two layers find what followed the same three bytes before; the others are random.
    LookBack,
}

impl Default for LanguageModelConfig {
    fn default() -> Self {
        Self {
            model: LlamaConfig {
                // Angles slow enough to know the same bytes again 2,048 positions away.
                rope_theta: 1e6,
                ..LlamaConfig::default()
            },
            attention: Attention::Dense,
            mask: BlockMask {
                block: 64,
                window: 3,
                ..BlockMask::default()
            },
            sharing: SharingConfig::default(),
            recall_share: 0.4,
            start: Start::LookBack,
            length: 512,
            long_length: 2048,
            long_from: 0.8,
            batch_tokens: 4096,
            held_out: 0.02,
            optim: OptimConfig {
                learning_rate: 1e-3,
                weight_decay: 0.1,
                beta2: 0.95,
                max_steps: 2000,
                warmup_steps: 100,
                decay: Decay::Cosine,
                ..OptimConfig::default()
            },
            seed: 0,
            run: RunConfig {
                checkpoint_every: 200,
                validate_every: 200,
                ..RunConfig::default()
            },
        }
    }
}

impl LanguageModelConfig {
    fn check(&self) -> Result<(), TrainError> {
        let wrong = |what: String| Err(TrainError::Config(what));
        if self.model.vocab_size != tokenizer::TOKENS {
            return wrong(format!(
                "model.vocab_size is {}; a model of bytes has {}",
                self.model.vocab_size,
                tokenizer::TOKENS
            ));
        }
        if self.sharing.method != SharingMethod::None && self.start == Start::LookBack {
            return wrong(
                "start is look-back, for which every layer has matrices of its own; with sharing.method it must be \
                 random"
                    .into(),
            );
        }
        let longest = self.length.max(self.long_length);
        if self.length.min(self.long_length) < SHORTEST || longest > self.batch_tokens {
            return wrong(format!(
                "length and long_length must be at least {SHORTEST} and at most batch_tokens ({})",
                self.batch_tokens
            ));
        }
        if longest > self.model.max_position_embeddings {
            return wrong(format!(
                "windows of {longest} are longer than model.max_position_embeddings ({})",
                self.model.max_position_embeddings
            ));
        }
        for (name, share) in [
            ("recall_share", self.recall_share),
            ("long_from", self.long_from),
            ("held_out", self.held_out),
        ] {
            if !(0.0..=1.0).contains(&share) {
                return wrong(format!("{name} is {share}; it must be from 0 to 1"));
            }
        }
        Ok(())
    }

    /// The model's sizes with the mask that it is trained on.
    fn sizes(&self) -> LlamaConfig {
        LlamaConfig {
            block_mask: match self.attention {
                Attention::Dense => None,
                Attention::Blocks => Some(self.mask.clone()),
            },
            ..self.model.clone()
        }
    }

    /// Tokens of a window of micro-batch `number` of `all`.
    fn window(&self, number: u64, all: u64) -> usize {
        if (number as f64) < self.long_from * all.max(1) as f64 {
            self.length
        } else {
            self.long_length
        }
    }

    /// The model with its first weights.
    fn init(&self, device: &Device) -> Result<Decoder, TrainError> {
        if self.sharing.method != SharingMethod::None {
            return self.sharing.init(&self.sizes(), self.seed, device);
        }
        let look_back = match self.start {
            Start::Random => None,
            Start::LookBack => Some(LookBack::new(&self.model, self.seed)?),
        };
        let mut change = |name: &str, weights: &mut [f32]| {
            if let Some(start) = &look_back {
                start.change(name, weights);
            }
        };
        let model = Llama::init_with(&self.sizes(), self.seed, device, &mut change);
        let model = model.map_err(model_error)?;
        Ok(Decoder::Whole(model))
    }
}

/// Windows one after the other.
pub struct Windows {
    tokens: Vec<u32>,
    starts: Vec<usize>,
    /// The tokens after which the next one counts.
    rows: Vec<u32>,
}

impl Windows {
    fn none() -> Self {
        Self {
            tokens: Vec::new(),
            starts: vec![0],
            rows: Vec::new(),
        }
    }

    /// One window more, whose bytes at `counted` count in the loss.
    fn push(&mut self, bytes: impl Iterator<Item = u32>, counted: impl Iterator<Item = usize>) {
        // The token before byte i stands at i, since the begin token comes first.
        let start = self.tokens.len();
        self.rows.extend(counted.map(|byte| (start + byte) as u32));
        self.tokens.push(BOS);
        self.tokens.extend(bytes);
        self.starts.push(self.tokens.len());
    }
}

struct LanguageTask<'a> {
    config: &'a LanguageModelConfig,
    /// What is learned from.
    text: &'a [u8],
    /// What is not.
    held_out: &'a [u8],
    /// Micro-batches of the whole training.
    all: u64,
}

impl LanguageTask<'_> {
    /// Adds a window of `length` tokens, the begin token first.
    fn add_window(&self, windows: &mut Windows, length: usize, seed: u64, recall: bool) {
        let bytes = length - 1;
        if recall {
            let mut recall = Recall::new(seed);
            let tokens = recall.tokens(bytes);
            windows.push(tokens.into_iter(), recall.known());
        } else {
            let room = (self.text.len() - bytes) as f64;
            let from = (random::unit(seed, 0) * room) as usize;
            let text = &self.text[from..from + bytes];
            windows.push(text.iter().map(|&b| u32::from(b)), 0..bytes);
        }
    }
}

impl Task for LanguageTask<'_> {
    type Model = Decoder;
    type Batch = Windows;

    fn batches_per_epoch(&self) -> u64 {
        (self.text.len() / self.config.batch_tokens).max(1) as u64
    }

    fn batch(&mut self, number: u64) -> Result<Windows, LearnError> {
        let length = self.config.window(number, self.all);
        let mut windows = Windows::none();
        let seed = random::derive(self.config.seed, 1 + number);
        for window in 0..(self.config.batch_tokens / length) as u64 {
            let seed = random::derive(seed, window);
            let recall = random::unit(seed, 1) < self.config.recall_share;
            self.add_window(&mut windows, length, seed, recall);
        }
        if windows.rows.is_empty() {
            self.add_window(&mut windows, length, seed, false);
        }
        Ok(windows)
    }

    fn items(batch: &Windows) -> u64 {
        batch.tokens.len() as u64
    }

    fn loss(model: &Decoder, batch: Windows) -> Loss {
        let Windows {
            tokens,
            starts,
            rows,
        } = batch;
        model
            .whole()
            .loss_after(&rows, &tokens, &starts, &mut NoHook)
            .into()
    }

    /// Bits a byte of held-out text decide, in the longest windows, since the weights that are
    /// kept must read those; the share of values that are recalled stands by.
    fn validate(&mut self, model: &Decoder) -> Result<Option<Validation>, LearnError> {
        let model = &model.whole();
        let length = self.config.length;
        let longest = length.max(self.config.long_length) - 1;
        let bytes = longest.min(self.held_out.len()).max(1);
        let windows = self.held_out.chunks_exact(bytes);
        let windows = windows.take((16 * length).div_ceil(bytes));
        let mut bits = Vec::new();
        for window in windows {
            let mut tokens = vec![BOS];
            tokens.extend(window.iter().map(|&b| u32::from(b)));
            let loss = model.loss(&tokens, &[0, tokens.len()], &mut NoHook);
            bits.push(f64::from(loss.into_scalar::<f32>()) / std::f64::consts::LN_2);
        }
        if bits.is_empty() {
            return Ok(None);
        }
        let bits = bits.iter().sum::<f64>() / bits.len() as f64;
        let mut measures = Vec::new();
        if self.config.recall_share > 0.0 {
            measures.push(("recalled", recalled(model, length, self.config.seed)));
        }
        Ok(Some(Validation {
            loss: bits,
            measures,
        }))
    }
}

/// The share of asked values of which every byte is the likeliest, in 8 windows.
fn recalled(model: &Llama, length: usize, seed: u64) -> f64 {
    let (mut right, mut asked) = (0, 0);
    for window in 0..8 {
        let mut recall = Recall::new(random::derive(seed ^ 0x5eed, window));
        let mut tokens = vec![BOS];
        tokens.extend(recall.tokens(length - 1));
        let states = model.states(&tokens, &[0, tokens.len()], &mut NoHook);
        let logits = numbers(&model.logits(states));
        let vocab = model.sizes().vocab;
        for answer in recall.answers() {
            // The begin token shifts bytes by one; a row predicts what follows it.
            let good = answer.clone().all(|byte| {
                let row = &logits[byte * vocab..(byte + 1) * vocab];
                let best = (0..vocab).max_by(|&a, &b| row[a].total_cmp(&row[b]));
                best == Some(tokens[byte + 1] as usize)
            });
            right += usize::from(good);
            asked += 1;
        }
    }
    right as f64 / f64::from(asked.max(1))
}

/// Trains a model on `text` in the run's folder and leaves it there as a model folder, which
/// `keyfold lm` reads.
///
/// # Errors
/// When the settings make no sense, the text is too short, or the run fails.
pub fn train(
    text: &str,
    config: &LanguageModelConfig,
    place: Place<'_>,
) -> Result<Report, TrainError> {
    config.check()?;
    let bytes = text.as_bytes();
    let longest = config.length.max(config.long_length);
    let cut = (bytes.len() as f64 * (1.0 - config.held_out)) as usize;
    if cut < longest {
        return Err(LearnError::Data(format!(
            "the text has {} bytes, a window {longest}; more text or smaller windows help",
            bytes.len()
        ))
        .into());
    }
    let device = Device::flex().autodiff();
    let sizes = config.sizes();
    let model = config.init(&device)?;
    let mut task = LanguageTask {
        config,
        text: &bytes[..cut],
        held_out: &bytes[cut..],
        all: 0,
    };
    let steps = config.optim.schedule(task.batches_per_epoch())?.steps;
    task.all = steps * config.optim.micro_batches();
    let mut learner = GradientLearner::new(task, model, &config.optim, &device, "bytes")?;
    let data = json!({ "bytes": bytes.len(), "blake3": blake3::hash(bytes).to_hex().as_str() });
    let settings = place.settings("language-model", config, &config.run, data, None)?;
    place.train(&mut learner, &settings, |learner, out| {
        save(&learner.model().whole(), &sizes, out)
    })
}

fn save(model: &Llama, config: &LlamaConfig, out: &Path) -> Result<(), LearnError> {
    model.save(config, out).map_err(model_error)?;
    tokenizer::write(out, tokenizer::TOKENS)
}

#[cfg(test)]
mod tests;

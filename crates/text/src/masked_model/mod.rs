//! An encoder of bytes, trained from scratch on a user's text to guess what is hidden of it,
//! whose positions are mixed by Hydra or another mixer.
//!
//! S. Hwang, A. Lahoti, T. Dao and A. Gu, 2024, Hydra: Bidirectional State Space Models Through
//! Generalized Matrix Mixers, with the objective of BERT (Devlin et al. 2019): of some share of
//! the bytes of a window 80 % become a mask, 10 % another byte, 10 % stay, and
//!
//! ```text
//! loss = mean over these of -log p(byte | the window around it)
//! ```
//!
//! What comes out is a model folder: `keyfold text embed` gives a text's vector by it, and
//! [`MixerEncoder`] loads it to be trained on.

use std::path::Path;

use burn::tensor::{Device, Tensor};
use keyfold_nn::checkpoint::numbers;
use keyfold_nn::{MixerEncoder, MixerEncoderConfig, random};
use keyfold_train::gradient::{GradientLearner, Loss, OptimConfig, Task};
use keyfold_train::{Decay, LearnError, Report, RunConfig, TrainError, Validation};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::language_model::{BOS, tokenizer};
use crate::training::{Place, model_error};

/// Stands for a byte that is to be guessed.
pub const MASK: u32 = 260;

/// The bytes, and what follows them.
const TOKENS: usize = 256 + tokenizer::SPECIAL.len();

/// Windows of held-out text that are measured.
const MEASURED: usize = 64;

/// Texts of a pass that measures.
pub(crate) const TOGETHER: usize = 16;

/// How an encoder is shaped and trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MaskedModelConfig {
    /// Its sizes, as config.json has them, and its mixer.
    pub model: MixerEncoderConfig,
    /// Tokens of a window, its begin token included.
    pub length: usize,
    /// Windows of a micro-batch.
    pub batch_size: usize,
    /// Share of bytes that are to be guessed.
    pub mask_share: f64,
    /// The same where the model is measured.
    pub validation_mask_share: f64,
    /// Share of the text that the model never learns from, at its end.
    pub held_out: f64,
    /// Learning rates, steps, clipping.
    pub optim: OptimConfig,
    /// Seed of weights, windows and masks.
    pub seed: u64,
    /// How the run is kept and watched.
    pub run: RunConfig,
}

impl Default for MaskedModelConfig {
    /// A model of about a million parameters; shares, rates and betas are the authors'.
    fn default() -> Self {
        Self {
            model: MixerEncoderConfig {
                vocab_size: TOKENS,
                type_vocab_size: 1,
                hidden_size: 128,
                num_hidden_layers: 6,
                max_position_embeddings: 512,
                headdim: 32,
                ..MixerEncoderConfig::default()
            },
            length: 128,
            batch_size: 32,
            mask_share: 0.3,
            validation_mask_share: 0.15,
            held_out: 0.05,
            optim: OptimConfig {
                learning_rate: 2e-3,
                weight_decay: 1e-5,
                beta2: 0.98,
                eps: 1e-6,
                max_steps: 3000,
                warmup_steps: 180,
                decay: Decay::Linear,
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

impl MaskedModelConfig {
    fn check(&self) -> Result<(), TrainError> {
        let wrong = |what: String| Err(TrainError::Config(what));
        if self.model.vocab_size != TOKENS {
            return wrong(format!(
                "model.vocab_size is {}; an encoder of bytes has {TOKENS}",
                self.model.vocab_size
            ));
        }
        if self.length < 8 || self.length > self.model.max_position_embeddings {
            return wrong(format!(
                "length is {}; it must be from 8 to model.max_position_embeddings ({})",
                self.length, self.model.max_position_embeddings
            ));
        }
        if self.batch_size == 0 {
            return wrong("batch_size is 0; it must be at least 1".into());
        }
        for (name, share) in [
            ("mask_share", self.mask_share),
            ("validation_mask_share", self.validation_mask_share),
        ] {
            if !(share > 0.0 && share < 1.0) {
                return wrong(format!("{name} is {share}; it must be above 0 and below 1"));
            }
        }
        if !(0.0..1.0).contains(&self.held_out) {
            return wrong(format!(
                "held_out is {}; it must be at least 0 and below 1",
                self.held_out
            ));
        }
        Ok(())
    }
}

/// Windows one after the other, with what is hidden of them.
#[derive(Default)]
pub struct MaskedWindows {
    tokens: Vec<u32>,
    starts: Vec<usize>,
    /// Where bytes are to be guessed.
    rows: Vec<u32>,
    /// These bytes.
    targets: Vec<u32>,
}

impl MaskedWindows {
    fn new() -> Self {
        Self {
            starts: vec![0],
            ..Self::default()
        }
    }

    /// Adds a window of `bytes`, of which about `share` are hidden; at least one.
    fn push(&mut self, bytes: &[u8], share: f64, seed: u64) {
        self.tokens.push(BOS);
        let before = self.rows.len();
        let one = (random::unit(seed, 0) * bytes.len() as f64) as usize;
        for (i, &byte) in bytes.iter().enumerate() {
            let draw = |which: u64| random::unit(seed, 4 * i as u64 + which);
            let hidden = draw(1) < share || (i == one && self.rows.len() == before);
            let byte = u32::from(byte);
            if !hidden {
                self.tokens.push(byte);
                continue;
            }
            self.rows.push(self.tokens.len() as u32);
            self.targets.push(byte);
            self.tokens.push(match draw(2) {
                x if x < 0.8 => MASK,
                x if x < 0.9 => (draw(3) * 256.0) as u32,
                _ => byte,
            });
        }
        self.starts.push(self.tokens.len());
    }
}

struct MaskedTask<'a> {
    config: &'a MaskedModelConfig,
    /// What is learned from.
    text: &'a [u8],
    /// What is not.
    held_out: &'a [u8],
}

impl Task for MaskedTask<'_> {
    type Model = MixerEncoder;
    type Batch = MaskedWindows;

    fn batches_per_epoch(&self) -> u64 {
        let batch = self.config.batch_size * self.config.length;
        (self.text.len() / batch).max(1) as u64
    }

    fn batch(&mut self, number: u64) -> Result<MaskedWindows, LearnError> {
        let bytes = self.config.length - 1;
        let mut windows = MaskedWindows::new();
        let seed = random::derive(self.config.seed, 1 + number);
        for window in 0..self.config.batch_size as u64 {
            let seed = random::derive(seed, window);
            let room = (self.text.len() - bytes) as f64;
            let from = (random::unit(seed, 0) * room) as usize;
            let seed = random::derive(seed, 1);
            windows.push(&self.text[from..from + bytes], self.config.mask_share, seed);
        }
        Ok(windows)
    }

    fn items(batch: &MaskedWindows) -> u64 {
        batch.tokens.len() as u64
    }

    fn loss(model: &MixerEncoder, batch: MaskedWindows) -> Loss {
        let MaskedWindows {
            tokens,
            starts,
            rows,
            targets,
        } = batch;
        let loss = model.masked_loss(&tokens, &starts, &rows, &targets);
        // Lengths and tokens were compared with the model's before the first batch.
        loss.expect("windows that the model reads").into()
    }

    fn validate(&mut self, model: &MixerEncoder) -> Result<Option<Validation>, LearnError> {
        let measured = Measured::of(model, self.held_out, self.config)?;
        Ok(measured.map(|m| Validation {
            loss: m.loss,
            measures: vec![("accuracy", m.accuracy)],
        }))
    }
}

/// How well an encoder guesses hidden bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// Mean of `-log p` of the bytes, natural.
    pub loss: f64,
    /// Share of bytes that are its likeliest.
    pub accuracy: f64,
    /// How many bytes were guessed.
    pub bytes: usize,
}

impl Measured {
    /// Measures `model` on at most 64 windows of `text`, with the masks that `config` gives; none
    /// where the text is shorter than a window.
    ///
    /// # Errors
    /// When the windows are longer than the model reads.
    pub fn of(
        model: &MixerEncoder,
        text: &[u8],
        config: &MaskedModelConfig,
    ) -> Result<Option<Self>, LearnError> {
        let bytes = config.length - 1;
        let parts: Vec<&[u8]> = text.chunks_exact(bytes).take(MEASURED).collect();
        let mut guesses = Guesses::default();
        for (group, parts) in parts.chunks(TOGETHER).enumerate() {
            let mut windows = MaskedWindows::new();
            for (i, part) in parts.iter().enumerate() {
                let number = (group * TOGETHER + i) as u64;
                let seed = random::derive(config.seed ^ 0x5eed, number);
                windows.push(part, config.validation_mask_share, seed);
            }
            let logits = model.logits(&windows.tokens, &windows.starts, &windows.rows);
            guesses.add(&logits.map_err(model_error)?, &windows.targets);
        }
        Ok(guesses.means().map(|(loss, accuracy, bytes)| Self {
            loss,
            accuracy,
            bytes,
        }))
    }
}

/// Sums over tokens that a model was asked for.
#[derive(Default)]
pub(crate) struct Guesses {
    loss: f64,
    right: usize,
    count: usize,
}

impl Guesses {
    /// Adds tokens and the logits `[tokens, vocab]` that a model gave where they are asked for.
    pub(crate) fn add(&mut self, logits: &Tensor<2>, targets: &[u32]) {
        let vocab = logits.dims()[1];
        for (row, &target) in numbers(logits).chunks_exact(vocab).zip(targets) {
            let (best, most) = best(row);
            let sum: f64 = row.iter().map(|x| f64::from(x - most).exp()).sum();
            self.loss += sum.ln() - f64::from(row[target as usize] - most);
            self.right += usize::from(best == target as usize);
            self.count += 1;
        }
    }

    /// The mean of `-log p`, the share that is the likeliest token, and how many there are; none
    /// of nothing.
    pub(crate) fn means(&self) -> Option<(f64, f64, usize)> {
        let count = self.count as f64;
        (self.count > 0).then(|| (self.loss / count, self.right as f64 / count, self.count))
    }
}

/// The largest of some numbers and where it is.
fn best(row: &[f32]) -> (usize, f32) {
    let largest = row.iter().copied().enumerate();
    largest.fold(
        (0, f32::NEG_INFINITY),
        |best, x| if x.1 > best.1 { x } else { best },
    )
}

/// Trains an encoder on `text` in the run's folder and leaves it there as a model folder.
///
/// # Errors
/// When the settings make no sense, the text is too short, or the run fails.
pub fn train(
    text: &str,
    config: &MaskedModelConfig,
    place: Place<'_>,
) -> Result<Report, TrainError> {
    config.check()?;
    let bytes = text.as_bytes();
    let cut = (bytes.len() as f64 * (1.0 - config.held_out)) as usize;
    if cut < config.length {
        return Err(LearnError::Data(format!(
            "the text has {} bytes, a window {}; more text or smaller windows help",
            bytes.len(),
            config.length
        ))
        .into());
    }
    let device = Device::flex().autodiff();
    let model = MixerEncoder::init(&config.model, config.seed, &device).map_err(model_error)?;
    let task = MaskedTask {
        config,
        text: &bytes[..cut],
        held_out: &bytes[cut..],
    };
    let mut learner = GradientLearner::new(task, model, &config.optim, &device, "bytes")?;
    let data = json!({ "bytes": bytes.len(), "blake3": blake3::hash(bytes).to_hex().as_str() });
    let settings = place.settings("hydra", config, &config.run, data, None)?;
    place.train(&mut learner, &settings, |learner, out| {
        save(learner.model(), out)
    })
}

fn save(model: &MixerEncoder, out: &Path) -> Result<(), LearnError> {
    model.save(out).map_err(model_error)?;
    tokenizer::write(out, TOKENS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_hide_the_share_that_is_asked_for() {
        let mut windows = MaskedWindows::new();
        let bytes = [b'x'; 4000];
        windows.push(&bytes, 0.3, 5);
        let hidden = windows.rows.len() as f64 / 4000.0;
        assert!((hidden - 0.3).abs() < 0.03, "{hidden}");
        assert!(windows.targets.iter().all(|&t| t == u32::from(b'x')));
        let masks = windows.tokens.iter().filter(|&&t| t == MASK).count();
        let share = masks as f64 / windows.rows.len() as f64;
        assert!((share - 0.8).abs() < 0.05, "{share}");
        // What is not asked for is the text.
        for (at, &token) in windows.tokens.iter().enumerate().skip(1) {
            assert!(token == u32::from(b'x') || windows.rows.contains(&(at as u32)));
        }
        windows.push(b"ab", 1e-9, 6);
        assert_eq!(windows.starts, [0, 4001, 4004]);
        assert_eq!(windows.rows.iter().filter(|&&r| r >= 4001).count(), 1);
    }
}

//! Distils the [built-in encoder](crate::builtin) from a sentence encoder.
//!
//! The hidden states of a sentence encoder's tokens already work as keys of
//! late interaction, and keep working on their first principal axes. So the
//! student learns to point every token's key where the teacher's state of the
//! same token in the same text points, on those axes:
//!
//! ```text
//! pₜ   = Aᵀ (teacher(text)ₜ - μ)
//! goalₜ = pₜ / |pₜ| + text_share · p̄ / |p̄|         # p̄ the mean of p over the text
//! loss = mean over tokens of 1 - cos(student(text)ₜ, goalₜ)
//! ```
//!
//! with `A` the axes and `μ` the mean of the states. The share of the whole text
//! in every key makes MaxSim find better and is easier to learn. No labels are
//! needed, any folder of text will do. The table of token vectors starts at the
//! teacher's mean state of each token. Where there are pairs of texts, a second stage
//! ([`rank`]) teaches the student to rank them as the teacher does.

mod adam;
mod gradient;
mod ranking;
mod targets;

use std::path::{Path, PathBuf};

use keyfold_core::{EncodeError, ModelFolder, ModelFolderError, Progress, atomic};
use keyfold_kernels as kernels;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::builtin::mixer::{Mixer, MixerConfig};
use crate::builtin::{self, TokenTable, Weights};
use crate::{LoadError, SentenceEncoder};
use adam::{Moments, Step};
pub use ranking::{RankingConfig, RankingPairs, RankingReport, rank};
pub use targets::Targets;

/// How the student is shaped and trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DistillConfig {
    /// Numbers per token inside the student.
    pub hidden_size: usize,
    /// Mixing blocks.
    pub num_blocks: usize,
    /// Tokens that a block sees around each token; odd.
    pub kernel_size: usize,
    /// Numbers between the two linear layers of a block.
    pub intermediate_size: usize,
    /// Numbers of a key.
    pub output_size: usize,
    /// Longest text in tokens.
    pub max_length: usize,
    /// Weight of the whole text's direction in the goal of each of its tokens.
    pub text_share: f32,
    /// Training steps.
    pub steps: usize,
    /// Tokens per step, about.
    pub batch_tokens: usize,
    /// Peak learning rate of the mixer.
    pub learning_rate: f32,
    /// Peak learning rate of the token table.
    pub table_learning_rate: f32,
    /// Weight decay of all weights.
    pub weight_decay: f32,
    /// Steps over which the learning rate rises; then it falls as a half cosine.
    pub warmup_steps: usize,
    /// Seed of everything random.
    pub seed: u64,
    /// Threads; 0 means all of the machine's.
    pub threads: usize,
    /// The second stage, where there are pairs.
    pub ranking: RankingConfig,
}

impl Default for DistillConfig {
    fn default() -> Self {
        Self {
            hidden_size: 256,
            num_blocks: 2,
            kernel_size: 7,
            intermediate_size: 128,
            output_size: 96,
            max_length: 512,
            text_share: 0.7,
            steps: 20_000,
            batch_tokens: 2048,
            learning_rate: 2e-3,
            table_learning_rate: 3e-3,
            weight_decay: 0.01,
            warmup_steps: 200,
            seed: 0,
            threads: 0,
            ranking: RankingConfig::default(),
        }
    }
}

/// Why a distillation did not end with a model.
#[derive(Debug, thiserror::Error)]
pub enum DistillError {
    /// The teacher could not read a text.
    #[error(transparent)]
    Teacher(#[from] EncodeError),
    /// A file of the teacher's folder is missing.
    #[error(transparent)]
    Folder(#[from] ModelFolderError),
    /// The encoder to begin from is none of this kind.
    #[error(transparent)]
    Start(#[from] LoadError),
    /// A file could not be written or read.
    #[error("cannot write {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// There is nothing to learn from.
    #[error("the data holds no text; give files or folders with prose, some million words in all")]
    NoText,
    /// The loss stopped being a number.
    #[error("the loss is not a number after step {step}; a lower learning_rate may help")]
    NotFinite {
        /// The step.
        step: usize,
    },
    /// The configuration cannot be.
    #[error("{what}")]
    Config {
        /// What is wrong.
        what: String,
    },
    /// The user asked to stop.
    #[error("stopped; the teacher's states are kept if they were complete, run again to go on")]
    Cancelled,
}

/// What a distillation reports.
#[derive(Debug, Clone, Serialize)]
pub struct DistillReport {
    /// Texts that were read.
    pub texts: usize,
    /// Tokens in them.
    pub tokens: usize,
    /// Mean cosine between student and teacher on texts that were held out.
    pub held_out_cosine: f64,
    /// Bytes of the model's three files.
    pub bytes: u64,
}

/// Every so many texts one is held out to measure the student.
const HOLD_OUT: usize = 50;

/// Distils `teacher` (whose folder is `folder`) on `texts` into the folder `out`.
///
/// # Errors
/// When the teacher fails, files cannot be written, or the user stops it.
pub fn distill(
    teacher: &SentenceEncoder,
    folder: &ModelFolder,
    texts: &[String],
    config: &DistillConfig,
    out: &Path,
    progress: &dyn Progress,
) -> Result<DistillReport, DistillError> {
    if config.kernel_size.is_multiple_of(2) {
        return Err(DistillError::Config {
            what: format!("kernel_size is {}; it must be odd", config.kernel_size),
        });
    }
    std::fs::create_dir_all(out).map_err(io(out))?;
    let targets = Targets::make(
        teacher,
        texts,
        config,
        &out.join("teacher.safetensors"),
        progress,
    )?;
    let tokenizer = folder.read("tokenizer.json", "the student uses it as it is")?;
    let is_key = builtin::read_tokenizer(&tokenizer)
        .and_then(|t| builtin::keys(&t, targets.table.len() / config.hidden_size))
        .map_err(|what| DistillError::Config { what })?;
    let student = train(&targets, &is_key, config, progress)?;
    Ok(DistillReport {
        texts: texts.len(),
        tokens: targets.ids.len(),
        held_out_cosine: student.held_out_cosine,
        bytes: student.save(tokenizer, out)?,
    })
}

/// Teaches the encoder in `start`, or the built-in one, to rank `pairs` of a query and a document
/// that belongs to it as `teacher` does; the result goes into the folder `out`. What the teacher says is kept in
/// `teacher-pairs.safetensors` there.
///
/// # Errors
/// As [`distill`], and when `start` holds no encoder of this kind.
pub fn distill_ranking(
    start: Option<&ModelFolder>,
    teacher: &SentenceEncoder,
    pairs: &[(&str, &str)],
    config: &DistillConfig,
    out: &Path,
    progress: &dyn Progress,
) -> Result<RankingReport, DistillError> {
    std::fs::create_dir_all(out).map_err(io(out))?;
    let wrong = |what| DistillError::Config { what };
    let (weights, tokenizer) = builtin::weights(start)?;
    let mut student = Student::from(weights);
    let reader = builtin::read_tokenizer(&tokenizer).map_err(wrong)?;
    let is_key = builtin::keys(&reader, student.mixer.config.vocab_size).map_err(wrong)?;
    let cache = out.join("teacher-pairs.safetensors");
    let pairs = RankingPairs::make(&reader, teacher, pairs, &cache, progress)?;
    let report = rank(&mut student, &pairs, &is_key, config, progress)?;
    student.save(tokenizer, out)?;
    Ok(report)
}

/// A failed reading or writing of `path` as an error of ours.
fn io(path: &Path) -> impl FnOnce(std::io::Error) -> DistillError {
    let path = path.to_owned();
    move |source| DistillError::Io { path, source }
}

/// A trained student.
pub struct Student {
    table: Vec<f32>,
    query_weight: Vec<f32>,
    mixer: Mixer,
    /// Mean cosine to the teacher on the texts that were held out.
    pub held_out_cosine: f64,
}

impl From<Weights> for Student {
    fn from(weights: Weights) -> Self {
        let h = weights.mixer.config.hidden_size;
        Self {
            table: weights.table.rows(h),
            query_weight: weights.query_weight,
            mixer: weights.mixer,
            held_out_cosine: 0.0,
        }
    }
}

impl Student {
    /// Writes its three files into a folder; gives their bytes.
    fn save(&self, tokenizer: Vec<u8>, out: &Path) -> Result<u64, DistillError> {
        let weights = self
            .to_safetensors()
            .map_err(|what| DistillError::Config { what })?;
        let mut bytes = 0;
        for (name, content) in [
            ("config.json", self.config_json()),
            ("model.safetensors", weights),
            ("tokenizer.json", tokenizer),
        ] {
            bytes += content.len() as u64;
            let path = out.join(name);
            atomic::write(&path, &content).map_err(io(&path))?;
        }
        Ok(bytes)
    }

    /// Its weights, the table rounded to bytes.
    pub fn to_safetensors(&self) -> Result<Vec<u8>, String> {
        builtin::write_weights(&mut Weights {
            table: TokenTable::quantize(&self.table, self.mixer.config.hidden_size),
            query_weight: self.query_weight.clone(),
            mixer: self.mixer.clone(),
        })
    }

    /// Its `config.json`.
    pub fn config_json(&self) -> Vec<u8> {
        let mut json = serde_json::json!(self.mixer.config);
        json["model_type"] = builtin::MODEL_TYPE.into();
        let mut text = format!("{json:#}");
        text.push('\n');
        text.into_bytes()
    }
}

/// Trains a student on the teacher's states. `is_key` says which token ids become keys.
pub fn train(
    targets: &Targets,
    is_key: &[bool],
    config: &DistillConfig,
    progress: &dyn Progress,
) -> Result<Student, DistillError> {
    let mut rng = StdRng::seed_from_u64(config.seed);
    let mut student = start(targets, config, &mut rng);
    let mut learning = Learning::new(&mut student);
    let texts = 0..targets.starts.len() - 1;
    let (held_out, learn): (Vec<usize>, Vec<usize>) = texts.partition(|i| i % HOLD_OUT == 0);
    let learn = if learn.is_empty() {
        held_out.clone()
    } else {
        learn
    };
    let mut order: Vec<usize> = Vec::new();
    progress.start("student learns", "steps", Some(config.steps as u64));
    for number in 1..=config.steps {
        if progress.cancelled() {
            return Err(DistillError::Cancelled);
        }
        let batch = next_batch(&mut order, &learn, targets, config.batch_tokens, &mut rng);
        let shards = batch_gradients(&student, targets, is_key, &batch, config);
        let factor = schedule(number, config.warmup_steps, config.steps);
        let rates = Rates {
            mixer: factor * config.learning_rate,
            table: factor * config.table_learning_rate,
            weight_decay: config.weight_decay,
        };
        let count: usize = shards.iter().map(|s| s.count).sum();
        let mean = 1.0 / count.max(1) as f32;
        if !learning.step(&mut student, shards, rates, number, mean) {
            return Err(DistillError::NotFinite { step: number });
        }
        progress.advance(1);
    }
    progress.finish();
    let mut lost = 0.0;
    let mut count = 0;
    for some in held_out.chunks(64) {
        for shard in batch_gradients(&student, targets, is_key, some, config) {
            lost += shard.loss;
            count += shard.count;
        }
    }
    student.held_out_cosine = 1.0 - lost / count.max(1) as f64;
    Ok(student)
}

/// Random small weights; the last layer of every block starts near zero, so that
/// training starts from the table alone.
fn start(targets: &Targets, config: &DistillConfig, rng: &mut StdRng) -> Student {
    let mut mixer = Mixer::zeros(&MixerConfig {
        vocab_size: targets.table.len() / config.hidden_size,
        hidden_size: config.hidden_size,
        num_blocks: config.num_blocks,
        kernel_size: config.kernel_size,
        intermediate_size: config.intermediate_size,
        output_size: config.output_size,
        max_length: config.max_length,
    });
    for (name, shape, data) in mixer.tensors_mut() {
        let bound = match name.rsplit_once('.').unwrap_or_default() {
            (part, "weight") if part.ends_with("norm") => {
                data.fill(1.0);
                continue;
            }
            (part, "weight") if part.ends_with("conv") => 1.0 / (shape[0] as f32).sqrt(),
            (part, "weight") if part.ends_with("outer") => 0.2 / (shape[1] as f32).sqrt(),
            (_, "weight") => 1.0 / (shape[1] as f32).sqrt(),
            _ => continue,
        };
        data.iter_mut()
            .for_each(|x| *x = rng.random_range(-bound..bound));
    }
    Student {
        table: targets.table.clone(),
        query_weight: targets.rarity(mixer.config.vocab_size),
        mixer,
        held_out_cosine: 0.0,
    }
}

/// Texts of about `tokens` tokens in all; every text comes once before any comes again.
fn next_batch(
    order: &mut Vec<usize>,
    learn: &[usize],
    targets: &Targets,
    tokens: usize,
    rng: &mut StdRng,
) -> Vec<usize> {
    let mut batch = Vec::new();
    let mut size = 0;
    while size < tokens && batch.len() < tokens {
        let text = order.pop().unwrap_or_else(|| {
            order.extend(learn);
            order.shuffle(rng);
            // `learn` is never empty, so there is one.
            order.pop().unwrap_or(0)
        });
        size += targets.starts[text + 1] - targets.starts[text];
        batch.push(text);
    }
    batch
}

/// Half a cosine after a linear rise.
fn schedule(step: usize, warmup_steps: usize, steps: usize) -> f32 {
    let rise = (step as f32 / warmup_steps.max(1) as f32).min(1.0);
    let fall = 0.5 * (1.0 + (std::f32::consts::PI * step as f32 / steps as f32).cos());
    rise * fall
}

/// The gradient of a part of a batch.
struct Shard {
    ids: Vec<u32>,
    mixer: Mixer,
    /// `[tokens, hidden]`
    tokens: Vec<f32>,
    loss: f64,
    /// Tokens that count.
    count: usize,
}

/// Gradients of the texts of a batch, shared between threads; in the order of
/// the texts, so that the sum does not depend on which thread was faster.
fn batch_gradients(
    student: &Student,
    targets: &Targets,
    is_key: &[bool],
    batch: &[usize],
    config: &DistillConfig,
) -> Vec<Shard> {
    let threads = crate::run::thread_count(config.threads);
    let text_share = config.text_share;
    let share = batch.len().div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let handles: Vec<_> = batch
            .chunks(share)
            .map(|texts| scope.spawn(move || shard(student, targets, is_key, text_share, texts)))
            .collect();
        handles
            .into_iter()
            .map(|h| h.join().unwrap_or_else(|e| std::panic::resume_unwind(e)))
            .collect()
    })
}

fn shard(
    student: &Student,
    targets: &Targets,
    is_key: &[bool],
    text_share: f32,
    texts: &[usize],
) -> Shard {
    let c = &student.mixer.config;
    let (h, o) = (c.hidden_size, c.output_size);
    let mut ids = Vec::new();
    let mut starts = vec![0];
    let mut wanted = Vec::new();
    for &text in texts {
        let range = targets.starts[text]..targets.starts[text + 1];
        ids.extend(&targets.ids[range.clone()]);
        starts.push(ids.len());
        let states = &targets.states[range.start * o..range.end * o];
        let from = wanted.len();
        wanted.extend(states.iter().map(|x| x.to_f32()));
        add_text(&mut wanted[from..], o, text_share);
    }
    let mut x = Vec::with_capacity(ids.len() * h);
    let mut count = 0;
    for (&id, wanted) in ids.iter().zip(wanted.chunks_exact_mut(o)) {
        let id = id as usize;
        x.extend(&student.table[id * h..(id + 1) * h]);
        if is_key[id] {
            count += 1;
        } else {
            wanted.fill(0.0);
        }
    }
    let found = gradient::gradient(&student.mixer, x, &starts, &wanted);
    Shard {
        ids,
        mixer: found.mixer,
        tokens: found.tokens,
        loss: found.loss,
        count,
    }
}

/// Turns the projected states of a text into the goals of its tokens.
fn add_text(states: &mut [f32], dim: usize, text_share: f32) {
    let mut text = vec![0.0; dim];
    for state in states.chunks_exact(dim) {
        kernels::add_assign(&mut text, state);
    }
    kernels::normalize_rows(&mut text, dim);
    text.iter_mut().for_each(|x| *x *= text_share);
    kernels::normalize_rows(states, dim);
    kernels::add_bias(states, &text);
    kernels::normalize_rows(states, dim);
}

/// Learning rates of a step.
#[derive(Clone, Copy)]
struct Rates {
    mixer: f32,
    table: f32,
    weight_decay: f32,
}

/// The running means of Adam for a student.
struct Learning {
    mixer: Vec<Moments>,
    table: Moments,
}

impl Learning {
    fn new(student: &mut Student) -> Self {
        let tensors = student.mixer.tensors_mut();
        let moments = tensors.iter().map(|(_, _, data)| Moments::new(data.len()));
        Self {
            mixer: moments.collect(),
            table: Moments::new(student.table.len()),
        }
    }

    /// One step of Adam on the sum of the shards' gradients times `mean`, its length clipped to
    /// one; false when the gradient is not finite.
    fn step(
        &mut self,
        student: &mut Student,
        shards: Vec<Shard>,
        rates: Rates,
        number: usize,
        mean: f32,
    ) -> bool {
        let h = student.mixer.config.hidden_size;
        let mut rows: std::collections::BTreeMap<u32, Vec<f32>> = Default::default();
        let mut total: Option<Mixer> = None;
        for shard in shards {
            for (id, row) in shard.ids.iter().zip(shard.tokens.chunks_exact(h)) {
                let sum = rows.entry(*id).or_insert_with(|| vec![0.0; h]);
                kernels::add_assign(sum, row);
            }
            let mut mixer = shard.mixer;
            match &mut total {
                None => total = Some(mixer),
                Some(total) => {
                    let pairs = total.tensors_mut().into_iter().zip(mixer.tensors_mut());
                    for ((_, _, a), (_, _, b)) in pairs {
                        kernels::add_assign(a, b);
                    }
                }
            }
        }
        let Some(mut total) = total else { return true };
        let mut square: f64 = rows.values().map(|r| f64::from(kernels::dot(r, r))).sum();
        for (_, _, g) in total.tensors_mut() {
            square += f64::from(kernels::dot(g, g));
        }
        let norm = square.sqrt() as f32 * mean;
        if !norm.is_finite() {
            return false;
        }
        let step = Step {
            number: number as i32,
            learning_rate: rates.mixer,
            weight_decay: rates.weight_decay,
            scale: mean / norm.max(1.0),
        };
        let tensors = student.mixer.tensors_mut().into_iter();
        let tensors = tensors.zip(total.tensors_mut()).zip(&mut self.mixer);
        for (((_, _, weights), (_, _, g)), moments) in tensors {
            moments.update(weights, 0, g, step);
        }
        let step = Step {
            learning_rate: rates.table,
            ..step
        };
        for (id, row) in rows {
            self.table
                .update(&mut student.table, id as usize * h, &row, step);
        }
        true
    }
}

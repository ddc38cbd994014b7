//! Training of binary paragraph vectors.

use std::path::Path;

use keyfold_train::order::step_rng;
use keyfold_train::{LearnError, Learner, Report, RunConfig, Step, TrainError};
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use super::config::{Config, Optimizer};
use super::corpus::{GAP, Known};
use super::infer::{around, samples};
use super::params::{Batch, Bounds, Params, Sample};
use super::{Embedded, ParagraphVectors, pack};
use crate::sampled::{Sampler, Table, Tensors, Threads, state, train as run, write_tensors};
use crate::training::Place;

/// Trains a model on texts; a [`Learner`] for `keyfold_train::run`.
///
/// The weights do not depend on the number of threads.
pub struct Trainer {
    config: Config,
    threads: Threads,
    known: Known,
    /// The words of all documents, one after another, in the order of the training.
    numbers: Vec<u32>,
    /// Where each document begins, and the end of the last.
    starts: Vec<usize>,
    /// For each document its number among the texts.
    texts: Vec<u32>,
    /// Documents of each step of an epoch: first, and one past the last.
    blocks: Vec<(usize, usize)>,
    sampler: Sampler,
    bounds: Bounds,
    pub(super) params: Params,
    pub(super) documents: Table,
    batches: Vec<Batch>,
}

impl Trainer {
    /// Reads the texts; 0 threads means all of the machine's.
    ///
    /// # Errors
    /// When the settings make no sense, or no word occurs often enough.
    pub fn new(texts: &[&str], config: &Config, threads: usize) -> Result<Self, LearnError> {
        config.check().map_err(LearnError::Data)?;
        let known = Known::learn(texts.iter().copied(), config).map_err(LearnError::Data)?;
        let mut order: Vec<u32> = (0..texts.len() as u32).collect();
        order.shuffle(&mut step_rng(config.seed, 0));
        let (mut numbers, mut starts, mut kept) = (Vec::new(), vec![0], Vec::new());
        for text in order {
            let words = known.numbers(texts[text as usize]);
            if words.iter().any(|w| *w != GAP) {
                numbers.extend(words);
                starts.push(numbers.len());
                kept.push(text);
            }
        }
        let threads = Threads::new(threads);
        let documents = kept.len();
        let mut params = Params::new(known.outputs.len(), known.words, config);
        if config.unigram_bias {
            params.layer.bias.values = known.log_shares();
        }
        Ok(Self {
            blocks: blocks(&starts, config.step_words),
            sampler: Sampler::unigram(known.outputs.counts(), config.power),
            bounds: Bounds::new(known.outputs.counts(), documents, &threads),
            params,
            documents: Params::documents(documents, config),
            config: config.clone(),
            texts: kept,
            batches: Vec::new(),
            known,
            threads,
            numbers,
            starts,
        })
    }

    /// The model as it is now.
    pub fn model(&self, name: &str) -> ParagraphVectors {
        ParagraphVectors::new(
            name.to_owned(),
            String::new(),
            self.config.clone(),
            self.known.clone(),
            self.params.clone(),
        )
    }

    /// The codes that the texts got in training, with their real vectors; none for a
    /// text without a known word.
    pub fn trained(&self) -> Vec<Option<Embedded>> {
        let texts = self
            .texts
            .iter()
            .map(|t| *t as usize + 1)
            .max()
            .unwrap_or(0);
        let mut all = vec![None; texts];
        for (row, &text) in (0..).zip(&self.texts) {
            let row = self.documents.row(row);
            let real = self.config.real_dim > 0 || self.config.code == super::Code::Real;
            all[text as usize] = Some(Embedded {
                code: pack(&self.params.sums(row, &self.config)),
                real: real.then(|| row.to_vec()),
            });
        }
        all
    }

    /// Different words and pairs of words that are predicted.
    pub fn outputs(&self) -> usize {
        self.known.outputs.len()
    }

    /// Documents with a known word.
    pub fn documents(&self) -> usize {
        self.texts.len()
    }

    fn samples(&self, number: u64) -> (Vec<Sample>, u64) {
        let block = (number - 1) % self.blocks.len() as u64;
        let (first, end) = self.blocks[block as usize];
        let mut rng = SmallRng::seed_from_u64(step_rng(self.config.seed, number).random());
        let mut all = Vec::new();
        for document in first..end {
            let numbers = &self.numbers[self.starts[document]..self.starts[document + 1]];
            let mut some = samples(&self.known, document as u32, numbers);
            some.retain(|s| self.known.keeps(s.word, &mut rng));
            all.extend(some);
        }
        all.shuffle(&mut rng);
        (all, rng.random())
    }
}

/// What a checkpoint calls the sums of squares of a table.
fn squares(name: &str) -> String {
    format!("{name}.squares")
}

/// Cuts documents into steps of about `words` words.
fn blocks(starts: &[usize], words: usize) -> Vec<(usize, usize)> {
    let mut blocks = Vec::new();
    let mut first = 0;
    for end in 1..starts.len() {
        if starts[end] - starts[first] >= words || end + 1 == starts.len() {
            blocks.push((first, end));
            first = end;
        }
    }
    blocks
}

impl Learner for Trainer {
    fn steps(&self) -> u64 {
        self.blocks.len() as u64 * self.config.epochs
    }

    fn unit(&self) -> &'static str {
        "words"
    }

    fn step(&mut self, number: u64) -> Result<Step, LearnError> {
        let (mut samples, seed) = self.samples(number);
        let config = &self.config;
        let left = 1.0 - (number - 1) as f32 / self.steps() as f32;
        let rate = config.rate(config.learning_rate * left);
        let words = samples.len();
        let mut loss = 0.0;
        let mut batches = std::mem::take(&mut self.batches);
        for (round, some) in samples.chunks_mut(config.batch * config.round).enumerate() {
            let parts: Vec<&mut [Sample]> = some.chunks_mut(config.batch).collect();
            batches.resize_with(parts.len(), Batch::default);
            let jobs = batches.iter_mut().zip(parts).enumerate().collect();
            self.threads.each(jobs, |(i, (batch, part)): (usize, _)| {
                let salt = (round * config.round + i) as u64;
                let mut rng = SmallRng::seed_from_u64(seed.wrapping_add(salt));
                let words = |s: &Sample, out: &mut Vec<u32>| {
                    let document = s.document as usize;
                    let numbers = &self.numbers[self.starts[document]..self.starts[document + 1]];
                    around(numbers, s, config, out);
                };
                let batch: &mut Batch = batch;
                batch.fill(part, words, config);
                batch.draw(config, &self.sampler, &mut rng);
                self.params.backward(&self.documents, batch, config);
            });
            loss += batches.iter().map(|b| b.words.loss).sum::<f64>();
            self.params.descend(
                &mut self.documents,
                &batches,
                rate,
                &self.threads,
                &self.bounds,
                config,
            );
        }
        self.batches = batches;
        Ok(Step {
            loss: loss / words.max(1) as f64,
            parts: Vec::new(),
            items: words as u64,
            learning_rate: f64::from(rate.learning_rate),
        })
    }

    fn save(&self, folder: &Path) -> Result<(), LearnError> {
        let path = folder.join("state.safetensors");
        let layer = &self.params.layer;
        let mut tensors = vec![
            ("documents", &self.documents),
            ("output.weight", &layer.weights),
            ("output.bias", &layer.bias),
        ];
        tensors.extend(self.params.context.iter().map(|c| ("context.weight", c)));
        let projection = self.params.projection.iter();
        tensors.extend(projection.map(|p| ("projection.weight", p)));
        let velocity = |(name, table): &(&str, &Table)| {
            let values = table.velocity.clone();
            (!values.is_empty()).then(|| (squares(name), Table::new(table.dim, values)))
        };
        let velocities: Vec<(String, Table)> = tensors.iter().filter_map(velocity).collect();
        tensors.extend(velocities.iter().map(|(name, table)| (&**name, table)));
        write_tensors(&path, &tensors).map_err(|e| state(&path, &e))
    }

    fn load(&mut self, folder: &Path) -> Result<(), LearnError> {
        let path = folder.join("state.safetensors");
        let mut tensors = Tensors::read(&path).map_err(|e| state(&path, &e))?;
        let layer = &mut self.params.layer;
        let mut all = vec![
            ("documents", &mut self.documents),
            ("output.weight", &mut layer.weights),
            ("output.bias", &mut layer.bias),
        ];
        all.extend(
            self.params
                .context
                .iter_mut()
                .map(|c| ("context.weight", c)),
        );
        let projection = self.params.projection.iter_mut();
        all.extend(projection.map(|p| ("projection.weight", p)));
        for (name, table) in all {
            let (rows, dim) = (table.values.len() / table.dim.max(1), table.dim);
            let mut take = |name: &str| tensors.take(name, rows, dim).map_err(|e| state(&path, &e));
            *table = take(name)?;
            if self.config.optimizer == Optimizer::Adagrad {
                table.velocity = take(&squares(name))?.values;
            }
        }
        Ok(())
    }
}

/// Trains a model on texts and writes it into the folder of the run. Any number of
/// `threads` (0: all of the machine's) gives the same weights.
///
/// # Errors
/// When the settings or the texts make no sense, or the run fails.
pub fn train(
    texts: &[&str],
    config: &Config,
    kept: &RunConfig,
    threads: usize,
    place: Place<'_>,
) -> Result<Report, TrainError> {
    let mut trainer = Trainer::new(texts, config, threads)?;
    let slug = "binary-paragraph-vector";
    run(
        &mut trainer,
        slug,
        (config, kept),
        texts,
        place,
        |trainer, out| trainer.model("").save(out),
    )
}

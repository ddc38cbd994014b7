//! Training of disambiguated skip-gram.

use std::path::Path;

use keyfold_train::order::step_rng;
use keyfold_train::{LearnError, Learner, Report, RunConfig, Step, TrainError};
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use super::SenseVectors;
use super::config::Config;
use super::params::{Batch, Bounds, Params, Stage};
use super::prepare::Corpus;
use crate::sampled::{
    Descent, Rate, Sampler, Table, Tensors, Threads, state, train as run, write_tensors,
};
use crate::training::Place;

/// Names of the tables in a checkpoint.
const NAMES: [&str; 5] = [
    "senses.weight",
    "output.weight",
    "output.bias",
    "classifier.weight",
    "classifier.bias",
];

/// Holds 1 once the second stage has begun.
const STAGE: &str = "stage";

/// Trains a model on texts; a [`Learner`] for `keyfold_train::run`.
///
/// The weights do not depend on the number of threads.
pub struct Trainer {
    config: Config,
    threads: Threads,
    corpus: Corpus,
    sampler: Sampler,
    bounds: Bounds,
    pub(super) params: Params,
    /// Whether the second stage has begun.
    split: bool,
    batches: Vec<Batch>,
}

/// What a step is to do.
struct Plan {
    stage: Stage,
    rate: Rate,
}

impl Trainer {
    /// Reads the texts; 0 threads means all of the machine's.
    ///
    /// # Errors
    /// When the settings make no sense, or too few words occur often enough.
    pub fn new(texts: &[&str], config: &Config, threads: usize) -> Result<Self, LearnError> {
        config.check().map_err(LearnError::Data)?;
        let corpus = Corpus::read(texts, config).map_err(LearnError::Data)?;
        let threads = Threads::new(threads);
        Ok(Self {
            config: config.clone(),
            sampler: Sampler::log_uniform(corpus.words.len()),
            bounds: Bounds::new(corpus.words.counts(), &threads),
            params: Params::new(corpus.words.len(), config),
            split: false,
            batches: Vec::new(),
            corpus,
            threads,
        })
    }

    /// Occurrences of known words in the texts.
    pub fn occurrences(&self) -> usize {
        self.corpus.places.len()
    }

    /// Different words, the unknown one among them.
    pub fn words(&self) -> usize {
        self.corpus.words.len()
    }

    /// The model as it is now. Takes a pass over the texts, for the priors.
    pub fn model(&self) -> SenseVectors {
        let mut model = SenseVectors {
            config: self.config.clone(),
            words: self.corpus.words.clone(),
            params: self.params.clone(),
            priors: Table::zeros(self.corpus.words.len(), self.config.senses),
        };
        if !self.split {
            model.params.split(self.corpus.words.counts(), &self.config);
        }
        let senses = self.config.senses;
        let mut around = Vec::new();
        let mut sums = vec![0.0f64; model.priors.values.len()];
        for &place in &self.corpus.places {
            around.clear();
            around.extend(self.corpus.around(place, self.config.window));
            let word = self.corpus.numbers[place as usize];
            let weights = model.weigh(word, &around);
            let sums = &mut sums[word as usize * senses..][..senses];
            sums.iter_mut()
                .zip(weights)
                .for_each(|(s, w)| *s += f64::from(w));
        }
        for (priors, sums) in model
            .priors
            .values
            .chunks_mut(senses)
            .zip(sums.chunks(senses))
        {
            let all: f64 = sums.iter().sum();
            for (prior, sum) in priors.iter_mut().zip(sums) {
                // A word that never stands in a sentence, as the unknown one: all alike.
                let share = if all > 0.0 {
                    sum / all
                } else {
                    1.0 / senses as f64
                };
                *prior = if share < f64::from(self.config.prune) {
                    0.0
                } else {
                    share as f32
                };
            }
        }
        model
    }

    pub(super) fn steps_per_epoch(&self) -> u64 {
        self.corpus.places.len().div_ceil(self.config.step_words) as u64
    }

    fn plan(&self, number: u64) -> Plan {
        let config = &self.config;
        let (per_epoch, done) = (self.steps_per_epoch(), number - 1);
        let epoch = done / per_epoch;
        let momentum = |epoch: u64| {
            let last = config.momentum.len().saturating_sub(1);
            let momentum = config.momentum.get((epoch as usize).min(last)).copied();
            momentum.map_or(Descent::Plain, Descent::Momentum)
        };
        if epoch < config.first_epochs {
            let left = 1.0 - done as f32 / (per_epoch * config.first_epochs) as f32;
            return Plan {
                stage: Stage::Soft {
                    entropy: config.entropy,
                },
                rate: Rate {
                    learning_rate: config.first_learning_rate * left,
                    descent: momentum(epoch),
                },
            };
        }
        let epoch = epoch - config.first_epochs;
        let into = (done % per_epoch) as f32 / per_epoch as f32;
        let temperature = match epoch {
            0 => config.temperature + into * (config.last_temperature - config.temperature),
            _ => config.last_temperature,
        };
        Plan {
            stage: Stage::Sampled { temperature },
            rate: Rate {
                learning_rate: config.learning_rates[epoch as usize],
                descent: momentum(epoch),
            },
        }
    }
}

impl Learner for Trainer {
    fn steps(&self) -> u64 {
        self.steps_per_epoch() * self.config.epochs()
    }

    fn unit(&self) -> &'static str {
        "pairs"
    }

    fn step(&mut self, number: u64) -> Result<Step, LearnError> {
        let plan = self.plan(number);
        if matches!(plan.stage, Stage::Sampled { .. }) && !self.split {
            self.params.split(self.corpus.words.counts(), &self.config);
            self.split = true;
        }
        let config = &self.config;
        let step = ((number - 1) % self.steps_per_epoch()) as usize;
        let first = step * config.step_words;
        let end = (first + config.step_words).min(self.corpus.places.len());
        let mut rng = SmallRng::seed_from_u64(step_rng(config.seed, number).random());
        let mut places = self.corpus.places[first..end].to_vec();
        places.shuffle(&mut rng);
        let seed: u64 = rng.random();
        let mut batches = std::mem::take(&mut self.batches);
        let (mut loss, mut entropy, mut pairs, mut count) = (0.0, 0.0, 0, 0.0);
        for (round, some) in places.chunks(config.batch * config.round).enumerate() {
            let parts: Vec<&[u32]> = some.chunks(config.batch).collect();
            batches.resize_with(parts.len(), Batch::default);
            let jobs = batches.iter_mut().zip(parts).enumerate().collect();
            self.threads
                .each(jobs, |(i, (batch, places)): (usize, (&mut Batch, _))| {
                    let salt = (round * config.round + i) as u64;
                    let mut rng = SmallRng::seed_from_u64(seed.wrapping_add(salt));
                    let mut around = Vec::with_capacity(places.len() * 2 * config.window);
                    batch.clear();
                    for &place in places {
                        let start = around.len();
                        around.extend(self.corpus.around(place, config.window));
                        batch.push(self.corpus.numbers[place as usize], &around[start..]);
                    }
                    batch.draw(config, &self.sampler, &mut rng);
                    self.params.backward(batch, &around, plan.stage, config);
                });
            for batch in &batches {
                loss += batch.loss;
                entropy += batch.entropy;
                pairs += batch.words.targets.len() as u64;
                count += 1.0;
            }
            self.params
                .descend(&batches, plan.rate, &self.threads, &self.bounds);
        }
        self.batches = batches;
        let parts = match plan.stage {
            Stage::Soft { .. } => vec![("entropy", entropy / count)],
            Stage::Sampled { .. } => Vec::new(),
        };
        Ok(Step {
            loss: loss / count,
            parts,
            items: pairs,
            learning_rate: f64::from(plan.rate.learning_rate),
        })
    }

    fn save(&self, folder: &Path) -> Result<(), LearnError> {
        let path = folder.join("state.safetensors");
        let params = &self.params;
        let tables = [
            &params.senses,
            &params.layer.weights,
            &params.layer.bias,
            &params.classifier,
            &params.classifier_bias,
        ];
        let velocities: Vec<(String, Table)> = NAMES
            .iter()
            .zip(tables)
            .filter(|(_, table)| !table.velocity.is_empty())
            .map(|(name, table)| {
                (
                    format!("{name}.velocity"),
                    Table::new(table.dim, table.velocity.clone()),
                )
            })
            .collect();
        let stage = Table::new(1, vec![f32::from(u8::from(self.split))]);
        let mut all: Vec<(&str, &Table)> = NAMES.iter().copied().zip(tables).collect();
        all.push((STAGE, &stage));
        all.extend(velocities.iter().map(|(name, table)| (&**name, table)));
        write_tensors(&path, &all).map_err(|e| state(&path, &e))
    }

    fn load(&mut self, folder: &Path) -> Result<(), LearnError> {
        let path = folder.join("state.safetensors");
        let mut tensors = Tensors::read(&path).map_err(|e| state(&path, &e))?;
        let stage = tensors.take(STAGE, 1, 1).map_err(|e| state(&path, &e))?;
        if stage.values == [1.0] {
            self.params.split(self.corpus.words.counts(), &self.config);
            self.split = true;
        }
        for (name, table) in NAMES.iter().zip(self.params.tables_mut()) {
            let (rows, dim) = (table.values.len() / table.dim.max(1), table.dim);
            let take = |tensors: &mut Tensors, name: &str| {
                tensors.take(name, rows, dim).map_err(|e| state(&path, &e))
            };
            *table = take(&mut tensors, name)?;
            let velocity = format!("{name}.velocity");
            // There is none before the first step with momentum.
            if tensors.has(&velocity) {
                table.velocity = take(&mut tensors, &velocity)?.values;
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
    let slug = "disambiguated-skip-gram";
    run(
        &mut trainer,
        slug,
        (config, kept),
        texts,
        place,
        |trainer, out| trainer.model().save(out),
    )
}

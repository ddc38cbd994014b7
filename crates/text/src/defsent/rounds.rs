//! The rounds of a training.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use keyfold_core::{Encoder, ModelFolder, Progress};
use keyfold_nn::checkpoint::numbers;
use keyfold_train::gradient::{GradientLearner, OptimConfig};
use keyfold_train::{Ended, LearnError, Report, RunConfig, TrainError, agree, run};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::entries::kept;
use super::task::{Definitions, Example, of_entries, of_words};
use super::{
    DefSentModel, Dictionary, EntriesError, FastIca, IcaError, embed_cached, mean_cosine,
    partition_ratio, standardize,
};
use crate::pooling::Pool;
use crate::training::Place;
use crate::{LoadError, LoadOptions, SentenceEncoder};

/// Pairs of which the mean cosine is told.
const PAIRS: usize = 20_000;

/// How the vectors of definitions make that of their entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryVectors {
    /// The average of the `[CLS]` states.
    Ac,
    /// The average of the mean-pooled states.
    Amp,
}

impl EntryVectors {
    fn pool(self) -> Pool {
        match self {
            Self::Ac => Pool::Cls,
            Self::Amp => Pool::Mean,
        }
    }
}

/// What a definition is to point at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Classes {
    /// The vector of its entry, of any number of words.
    Entries,
    /// The encoder's input vector of its entry, which must be one token: DefSent
    /// (Tsukagoshi, Sasano, Takeda 2021), the method before this one.
    Words,
}

/// How entries' vectors are made independent before the last round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IcaConfig {
    /// Whether they are: for BERT as it is; not for encoders that were trained for sentences.
    pub last_round: bool,
    /// Most iterations.
    pub iterations: usize,
    /// The rotation is found when it turns by no more.
    pub tolerance: f64,
    /// Rows from which it is found; 0 for all.
    pub rows: usize,
    /// Seed of its beginning.
    pub seed: u64,
    /// By what the sources are multiplied, or logits are too small for a softmax.
    pub scale: f32,
}

impl Default for IcaConfig {
    fn default() -> Self {
        Self {
            last_round: true,
            iterations: 1000,
            tolerance: 1e-4,
            rows: 20_000,
            seed: 42,
            scale: 100.0,
        }
    }
}

/// Settings of a training; the defaults are the authors' for BERT as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DefSentConfig {
    /// How a definition is pooled in training: `cls` or `mean`.
    pub pool: Pool,
    /// Vectors of entries: `ac` or `amp`.
    pub entries: EntryVectors,
    /// What definitions point at: `entries`, or `words` for plain DefSent.
    pub classes: Classes,
    /// Rounds, 1 to 3; each begins with the original encoder.
    pub rounds: usize,
    /// Learning rate of each round; empty: that of `optim` in all.
    pub learning_rates: Vec<f64>,
    /// Entries that are used at most, spread over the dictionary; 0 for all.
    pub most_entries: usize,
    /// Longest definition in tokens.
    pub max_length: usize,
    /// Definitions in a batch.
    pub batch_size: usize,
    /// Dropout as the model's config.json says; else none.
    pub dropout: bool,
    /// Share of the definitions that is held out for validation; the authors hold out none.
    pub hold_out: f64,
    /// How the trained model pools when it is used: `cls`, `mean` or `prompt`.
    pub use_pool: Pool,
    /// Seed of everything random but the independent axes.
    pub seed: u64,
    /// The transformation before the last round.
    pub ica: IcaConfig,
    /// How gradients become weights.
    pub optim: OptimConfig,
    /// How the run is kept and watched.
    pub run: RunConfig,
}

impl Default for DefSentConfig {
    fn default() -> Self {
        Self {
            pool: Pool::Mean,
            entries: EntryVectors::Ac,
            classes: Classes::Entries,
            rounds: 3,
            learning_rates: Vec::new(),
            most_entries: 0,
            max_length: 150,
            batch_size: 32,
            dropout: true,
            hold_out: 0.0,
            use_pool: Pool::Mean,
            seed: 0,
            ica: IcaConfig::default(),
            optim: OptimConfig {
                learning_rate: 2e-5,
                // Those of the library that the authors' program takes AdamW from.
                weight_decay: 0.0,
                eps: 1e-6,
                ..OptimConfig::default()
            },
            run: RunConfig::default(),
        }
    }
}

impl DefSentConfig {
    fn check(&self) -> Result<(), LearnError> {
        let error = |what: String| Err(LearnError::Data(what));
        if self.pool == Pool::Prompt {
            return error(
                "pool is prompt; training pools by cls or mean (use_pool may be prompt)".into(),
            );
        }
        if !(1..=3).contains(&self.rounds) {
            return error(format!("rounds is {}; it must be 1, 2 or 3", self.rounds));
        }
        if self.classes == Classes::Words && self.rounds > 1 {
            return error("classes is words: DefSent has one round; set rounds=1".into());
        }
        if self.max_length < 4 {
            return error(format!(
                "max_length is {}; it must be at least 4",
                self.max_length
            ));
        }
        if !self.learning_rates.is_empty() && self.learning_rates.len() != self.rounds {
            return error(format!(
                "learning_rates has {} numbers for {} rounds; give one for each, or none",
                self.learning_rates.len(),
                self.rounds
            ));
        }
        Ok(())
    }

    fn is_independent(&self, round: usize) -> bool {
        self.classes == Classes::Entries && self.ica.last_round && round == self.rounds
    }
}

/// What one round did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Round {
    /// Classes.
    pub classes: usize,
    /// Definitions that were learned from, held-out ones included.
    pub definitions: usize,
    /// Mean cosine of pairs of class vectors, before independent axes and as used.
    pub mean_cosine: [f64; 2],
    /// [`partition_ratio`] of the same.
    pub partition_ratio: [Option<f64>; 2],
    /// The run.
    pub report: Report,
}

/// What a training did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rounds {
    /// How it ended, with the steps and seconds of all rounds of this call.
    pub report: Report,
    /// Each round that was trained in this call.
    pub rounds: Vec<Round>,
}

/// Trains the encoder in `folder` on `dictionary`; the encoder of the last round comes to
/// lie in `place.out`, each round's run in `place.out/rounds/N`, its encoder in `model` there.
///
/// # Errors
/// When the model, the dictionary or a setting does not fit, or the run fails.
pub fn train(
    folder: &ModelFolder,
    dictionary: &Dictionary,
    config: &DefSentConfig,
    threads: usize,
    mut place: Place<'_>,
) -> Result<Rounds, TrainError> {
    config.check()?;
    let all = place.out.join("rounds");
    if place.resume && !all.is_dir() {
        return Err(TrainError::NothingToResume {
            folder: place.out.to_owned(),
        });
    }
    if dictionary.entries().len() < 2 {
        let few = EntriesError::TooFew(dictionary.entries().len());
        return Err(LearnError::Data(few.to_string()).into());
    }
    if !place.resume && all.join("1/run.json").is_file() {
        return Err(TrainError::Occupied {
            folder: place.out.to_owned(),
        });
    }
    let mut dictionary = dictionary.clone();
    dictionary.thin(config.most_entries);
    let mut done = Rounds {
        report: Report {
            ended: Ended::Finished,
            steps: 0,
            seconds: 0.0,
            loss: 0.0,
            best: None,
        },
        rounds: Vec::new(),
    };
    let mut source = folder.clone();
    for number in 1..=config.rounds {
        let at = all.join(number.to_string());
        let round = One {
            original: folder,
            source: &source,
            dictionary: &dictionary,
            config,
            number,
            threads,
            last: number == config.rounds,
            at: &at,
        };
        match round.train(&mut place) {
            Ok(Some(round)) => {
                done.report.ended = round.report.ended;
                done.report.steps += round.report.steps;
                done.report.seconds += round.report.seconds;
                (done.report.loss, done.report.best) = (round.report.loss, round.report.best);
                done.rounds.push(round);
            }
            Ok(None) => {}
            Err(Failed::Stopped) => done.report.ended = Ended::Stopped,
            Err(Failed::Train(e)) => return Err(e),
        }
        if done.report.ended == Ended::Stopped {
            break;
        }
        let path = round_model(&at);
        source = ModelFolder {
            name: path.display().to_string(),
            path,
        };
    }
    Ok(done)
}

fn round_model(at: &Path) -> PathBuf {
    at.join("model")
}

enum Failed {
    Stopped,
    Train(TrainError),
}

impl<E: Into<TrainError>> From<E> for Failed {
    fn from(e: E) -> Self {
        Self::Train(e.into())
    }
}

impl From<EntriesError> for Failed {
    fn from(e: EntriesError) -> Self {
        match e {
            EntriesError::Cancelled => Self::Stopped,
            other => LearnError::Data(other.to_string()).into(),
        }
    }
}

fn loaded(e: LoadError) -> LearnError {
    LearnError::Data(e.to_string())
}

/// One round.
struct One<'a> {
    original: &'a ModelFolder,
    /// Whose encoder makes the vectors of entries.
    source: &'a ModelFolder,
    dictionary: &'a Dictionary,
    config: &'a DefSentConfig,
    number: usize,
    threads: usize,
    last: bool,
    at: &'a Path,
}

/// What a round learns from.
struct Data {
    examples: Vec<Example>,
    /// `[classes, dim]`.
    classes: Vec<f32>,
    mean_cosine: [f64; 2],
    partition_ratio: [Option<f64>; 2],
}

impl One<'_> {
    /// None when it was finished before.
    fn train(&self, place: &mut Place<'_>) -> Result<Option<Round>, Failed> {
        let config = self.config;
        let mut settings = place.settings(
            "defsent-plus",
            config,
            &config.run,
            json!({
                "entries": self.dictionary.entries().len(),
                "checksum": &self.dictionary.checksum()[..16],
                "round": self.number,
            }),
            Some(self.original),
        )?;
        let begun = self.at.join("run.json");
        settings.resume = place.resume && begun.is_file();
        let finished = round_model(self.at).join("model.safetensors").is_file();
        if finished && settings.resume {
            agree(&settings, self.at)?;
            return Ok(None);
        }
        let device = Device::flex().autodiff();
        let model = DefSentModel::load(self.original, config.seed, &device)?;
        std::fs::create_dir_all(self.at).map_err(LearnError::io(self.at))?;
        let data = self.data(&model, place.progress)?;
        let dim = model.bert().hidden();
        let count = data.classes.len() / dim;
        let round = |report| Round {
            classes: count,
            definitions: data.examples.len(),
            mean_cosine: data.mean_cosine,
            partition_ratio: data.partition_ratio,
            report,
        };
        let classes = TensorData::new(data.classes.clone(), [count, dim]);
        let classes = Tensor::from_data(classes, &device);
        let task = Definitions::new(data.examples.clone(), classes, model.clone(), config);
        let optim = OptimConfig {
            learning_rate: (config.learning_rates.get(self.number - 1).copied())
                .unwrap_or(config.optim.learning_rate),
            ..config.optim.clone()
        };
        let mut learner = GradientLearner::new(task, model, &optim, &device, "definitions")?;
        let report = run(
            &mut learner,
            &settings,
            self.at,
            place.progress,
            place.watch,
        )?;
        if report.ended != Ended::Stopped {
            learner
                .model()
                .save(&round_model(self.at), config.use_pool)?;
            if self.last {
                learner.model().save(place.out, config.use_pool)?;
            }
        }
        Ok(Some(round(report)))
    }

    fn data(&self, model: &DefSentModel, progress: &dyn Progress) -> Result<Data, Failed> {
        let config = self.config;
        let options = LoadOptions {
            threads: self.threads,
        };
        let encoder = SentenceEncoder::load(self.source, &options)
            .and_then(|e| e.with_pool(config.entries.pool()))
            .map_err(loaded)?
            .with_longest(config.max_length);
        let encoded = |e: keyfold_core::EncodeError| LearnError::Data(e.to_string());
        let dim = encoder.identity().dim;
        let (examples, classes) = match config.classes {
            Classes::Entries => {
                let file = self.at.join("entries.safetensors");
                let vectors = embed_cached(&encoder, self.dictionary, &file, progress)?;
                (
                    of_entries(&encoder, self.dictionary).map_err(encoded)?,
                    vectors,
                )
            }
            Classes::Words => {
                let examples = of_words(&encoder, self.dictionary).map_err(encoded)?;
                if examples.is_empty() {
                    return Err(LearnError::Data(
                        "no entry of the dictionary is one token of the model; classes=words \
                         needs some"
                            .into(),
                    )
                    .into());
                }
                (examples, numbers(&model.bert().word_table().val()))
            }
        };
        let measures = |v: &[f32]| {
            (
                mean_cosine(v, dim, PAIRS, config.seed),
                partition_ratio(v, dim),
            )
        };
        let before = measures(&classes);
        let (classes, after) = if config.is_independent(self.number) {
            let file = self.at.join("independent.safetensors");
            let of = [
                ("vectors", blake3_of(&classes)),
                ("settings", json!(config.ica).to_string()),
            ];
            let shape = [self.dictionary.entries().len(), dim];
            let classes = kept(&file, &of, shape, || {
                self.independent(classes, dim, progress)
            })?;
            let after = measures(&classes);
            (classes, after)
        } else {
            (classes, before)
        };
        Ok(Data {
            examples,
            classes,
            mean_cosine: [before.0, after.0],
            partition_ratio: [before.1, after.1],
        })
    }

    fn independent(
        &self,
        mut vectors: Vec<f32>,
        dim: usize,
        progress: &dyn Progress,
    ) -> Result<Vec<f32>, EntriesError> {
        let config = &self.config.ica;
        standardize(&mut vectors, dim);
        let ica = FastIca {
            tolerance: config.tolerance,
            iterations: config.iterations,
            rows: config.rows,
            seed: config.seed,
            threads: crate::run::thread_count(self.threads),
        };
        let mut found = ica
            .fit(&vectors, dim, None, progress)
            .map_err(|e| match e {
                IcaError::Cancelled => EntriesError::Cancelled,
                IcaError::Data(what) => EntriesError::Independent(what),
            })?;
        if !found.converged {
            progress.note(&format!(
                "the independent axes did not come to rest in {} iterations; they are used as \
                 they are (ica.iterations, ica.tolerance)",
                found.iterations
            ));
        }
        found.rows.iter_mut().for_each(|x| *x *= config.scale);
        Ok(found.rows)
    }
}

fn blake3_of(numbers: &[f32]) -> String {
    let mut hasher = blake3::Hasher::new();
    for x in numbers {
        hasher.update(&x.to_le_bytes());
    }
    hasher.finalize().to_string()
}

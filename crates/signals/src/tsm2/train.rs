//! Training of TSM2: windows of a table, mean squared error in deviations of each column.

use burn::tensor::{Device, Tensor, TensorData};
use keyfold_nn::checkpoint::numbers;
use keyfold_nn::random;
use keyfold_train::gradient::{GradientLearner, Loss, OptimConfig, Task};
use keyfold_train::order::Batches;
use keyfold_train::{Decay, LearnError, Place, Report, RunConfig, TrainError, Validation};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Forecaster, Inputs, Learned, Tsm2, Tsm2Config};
use crate::{Errors, Scaler, Series, SignalError, Windows};

/// Windows that are measured together.
const TOGETHER: usize = 16;

/// How a model is shaped and trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tsm2Training {
    /// Its sizes.
    pub model: Tsm2Config,
    /// Columns that are forecast; none stands for all but those of `future`.
    pub targets: Vec<String>,
    /// Columns whose coming rows will be known when a forecast is asked for.
    pub future: Vec<String>,
    /// Share of the rows that the model never learns from, at the end.
    pub held_out: f64,
    /// The most windows of these on which the model is measured; 0 for all.
    pub validation_windows: usize,
    /// Windows of a micro-batch.
    pub batch_size: usize,
    /// Learning rates, epochs, clipping.
    pub optim: OptimConfig,
    /// Seed of weights and order.
    pub seed: u64,
    /// How the run is kept and watched.
    pub run: RunConfig,
}

impl Default for Tsm2Training {
    /// The replication's for ETT.
    fn default() -> Self {
        Self {
            model: Tsm2Config::default(),
            targets: Vec::new(),
            future: Vec::new(),
            held_out: 0.2,
            validation_windows: 0,
            batch_size: 128,
            optim: OptimConfig {
                learning_rate: 1e-4,
                weight_decay: 0.01,
                epochs: 15.0,
                decay: Decay::Cosine,
                max_grad_norm: 1.0,
                ..OptimConfig::default()
            },
            seed: 0,
            run: RunConfig {
                validate_every: 60,
                patience: 5,
                ..RunConfig::default()
            },
        }
    }
}

impl Tsm2Training {
    /// The names of the columns of a table that are forecast.
    pub fn columns(&self, series: &Series) -> Vec<String> {
        if !self.targets.is_empty() {
            return self.targets.clone();
        }
        let others = series.names.iter().filter(|n| !self.future.contains(n));
        others.cloned().collect()
    }
}

/// Columns in units of their deviations.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Scaled {
    /// Columns that are forecast.
    pub targets: Vec<Vec<f32>>,
    /// Columns whose coming rows are known.
    pub future: Vec<Vec<f32>>,
    /// Features that do not change, `[targets, features]`.
    pub statics: Vec<f32>,
}

impl Scaled {
    /// Some windows, and what came after them, `[windows M, H]`.
    fn batch(&self, windows: &Windows, chosen: &[usize]) -> (Inputs, Vec<f32>) {
        let mut inputs = Inputs {
            columns: self.targets.len(),
            statics: self.statics.clone(),
            ..Inputs::default()
        };
        let mut came = Vec::new();
        for &number in chosen {
            for column in &self.targets {
                inputs
                    .contexts
                    .extend_from_slice(&column[windows.context(number)]);
                came.extend_from_slice(&column[windows.horizon(number)]);
            }
            for column in &self.future {
                inputs
                    .future
                    .extend_from_slice(&column[windows.horizon(number)]);
            }
        }
        (inputs, came)
    }

    /// Errors of a model on some windows.
    ///
    /// # Panics
    /// When the columns or windows do not fit the model's sizes.
    pub fn errors(&self, model: &Tsm2, windows: &Windows, chosen: &[usize]) -> Errors {
        let mut errors = Errors::default();
        for chosen in chosen.chunks(TOGETHER) {
            let (inputs, came) = self.batch(windows, chosen);
            errors.add(&numbers(&model.forward(&inputs, None)), &came);
        }
        errors
    }
}

/// Windows of a step.
struct Batch {
    inputs: Inputs,
    came: Vec<f32>,
    seed: u64,
}

struct Learning {
    data: Scaled,
    windows: Windows,
    order: Batches,
    measured: Windows,
    /// Windows that are measured.
    chosen: Vec<usize>,
    seed: u64,
}

impl Task for Learning {
    type Model = Tsm2;
    type Batch = Batch;

    fn batches_per_epoch(&self) -> u64 {
        self.order.per_epoch()
    }

    fn batch(&mut self, number: u64) -> Result<Batch, LearnError> {
        let (inputs, came) = self.data.batch(&self.windows, self.order.batch(number));
        Ok(Batch {
            inputs,
            came,
            seed: random::derive(self.seed, 1 + number),
        })
    }

    fn items(batch: &Batch) -> u64 {
        (batch.inputs.contexts.len() / batch.inputs.columns) as u64
    }

    fn loss(model: &Tsm2, batch: Batch) -> Loss {
        let told = model.forward(&batch.inputs, Some(batch.seed));
        let came = TensorData::new(batch.came, told.dims());
        let error = told.clone() - Tensor::<2>::from_data(came, &told.device());
        (error.clone() * error).mean().into()
    }

    fn validate(&mut self, model: &Tsm2) -> Result<Option<Validation>, LearnError> {
        let errors = self.data.errors(model, &self.measured, &self.chosen);
        Ok((errors.count > 0).then(|| Validation {
            loss: errors.mse,
            measures: vec![("mae", errors.mae)],
        }))
    }
}

/// Trains a model in the run's folder and leaves it there as a model folder ([`Forecaster`]).
/// `statics` has the features of the columns that do not change: a row for each, whose time is the
/// column's name.
///
/// # Errors
/// When the settings make no sense, columns are missing or too short, or the run fails.
pub fn train(
    series: &Series,
    statics: Option<&Series>,
    config: &Tsm2Training,
    place: Place<'_>,
) -> Result<Report, TrainError> {
    let (data, learned, sizes) = prepared(series, statics, config).map_err(refused)?;
    let rows = series.rows();
    let cut = (rows as f64 * (1.0 - config.held_out)).round() as usize;
    let windows = |rows| Windows::new(sizes.seq_len, sizes.pred_len, rows);
    let learned_windows = windows(0..cut).map_err(refused)?;
    let (measured, chosen) = match config.held_out > 0.0 {
        false => (learned_windows.clone(), Vec::new()),
        true => {
            let measured = windows(cut..rows).map_err(refused)?;
            let most = match config.validation_windows {
                0 => measured.len(),
                most => most,
            };
            let chosen = measured.some(most);
            (measured, chosen)
        }
    };
    let device = Device::flex().autodiff();
    let model = Tsm2::init(&sizes, config.seed, &device).map_err(refused)?;
    let task = Learning {
        order: Batches::new(learned_windows.len(), config.batch_size, config.seed),
        data,
        windows: learned_windows,
        measured,
        chosen,
        seed: config.seed,
    };
    let mut learner = GradientLearner::new(task, model, &config.optim, &device, "series")?;
    let described = json!({ "rows": rows, "blake3": checksum(series, statics) });
    let settings = place.settings("tsm2", config, &config.run, described, None)?;
    place.train(&mut learner, &settings, |learner, out| {
        Forecaster::new(learner.model().clone(), learned)
            .save(out)
            .map_err(data_error)
    })
}

/// Columns in units of the learned part's deviations, what to remember of them, and the sizes with
/// the features that there are.
fn prepared(
    series: &Series,
    statics: Option<&Series>,
    config: &Tsm2Training,
) -> Result<(Scaled, Learned, Tsm2Config), SignalError> {
    if !(0.0..1.0).contains(&config.held_out) {
        return Err(SignalError::Unfit(format!(
            "held_out is {}; it must be at least 0 and below 1",
            config.held_out
        )));
    }
    if config.batch_size == 0 {
        return Err(SignalError::Unfit("batch_size is 0".into()));
    }
    let mut names = config.columns(series);
    if let Some(both) = names.iter().find(|n| config.future.contains(n)) {
        return Err(SignalError::Unfit(format!(
            "'{both}' is forecast and known at once; leave it out of one of targets and future"
        )));
    }
    let targets = names.len();
    if targets == 0 {
        return Err(SignalError::Unfit("no column is left to forecast".into()));
    }
    names.extend(config.future.iter().cloned());
    let all = series.select(&names, "the table")?;
    let cut = (all.rows() as f64 * (1.0 - config.held_out)).round() as usize;
    let scaler = Scaler::of(&all.part(0..cut));
    let mut columns = scaler.scaled(&all);
    let future = columns.split_off(targets);
    let (statics, features) = match statics {
        None => (Vec::new(), 0),
        Some(table) => of_columns(table, &names[..targets])?,
    };
    let mut sizes = config.model.clone();
    for (field, set, found) in [
        ("static_features", &mut sizes.static_features, features),
        ("future_features", &mut sizes.future_features, future.len()),
    ] {
        if *set != 0 && *set != found {
            return Err(SignalError::Unfit(format!(
                "model.{field} is {set}; the data has {found}"
            )));
        }
        *set = found;
    }
    sizes.check_columns(targets)?;
    sizes.check()?;
    let learned = Learned {
        targets: names[..targets].to_vec(),
        future: config.future.clone(),
        scaler,
        statics: statics.clone(),
    };
    let data = Scaled {
        targets: columns,
        future,
        statics,
    };
    Ok((data, learned, sizes))
}

/// The features of columns, `[columns, features]` with mean 0 and deviation 1, and how many there are.
fn of_columns(table: &Series, names: &[String]) -> Result<(Vec<f32>, usize), SignalError> {
    let scaled = Scaler::of(table).scaled(table);
    let mut all = Vec::with_capacity(names.len() * scaled.len());
    for name in names {
        let row = table.times.iter().position(|n| n == name).ok_or_else(|| {
            SignalError::Unfit(format!("the table of features has no row for '{name}'"))
        })?;
        all.extend(scaled.iter().map(|feature| feature[row]));
    }
    Ok((all, scaled.len()))
}

fn checksum(series: &Series, statics: Option<&Series>) -> String {
    let mut hasher = blake3::Hasher::new();
    for table in [Some(series), statics].into_iter().flatten() {
        for (name, column) in table.names.iter().zip(&table.columns) {
            hasher.update(name.as_bytes());
            column.iter().for_each(|x| {
                hasher.update(&x.to_le_bytes());
            });
        }
    }
    hasher.finalize().to_hex().to_string()
}

fn data_error(e: SignalError) -> LearnError {
    LearnError::Data(e.to_string())
}

fn refused(e: SignalError) -> TrainError {
    TrainError::Learn(data_error(e))
}

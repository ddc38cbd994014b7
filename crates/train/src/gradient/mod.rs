//! Learning by gradients, on the tensor framework Burn: its modules, its optimisers,
//! its workers for several devices.
//!
//! Per step, with `g_i` the gradient of the loss of micro-batch `i` of `n` (accumulated
//! one after the other, or on several devices at once):
//!
//! ```text
//! g = (g_1 + … + g_n) / n
//! g ← g · min(1, max_grad_norm / |g|)          |g| over all parameters together
//! weights ← optimiser(weights, g, learning rate of the step)
//! ```
//!
//! So two devices make the same step as two accumulated micro-batches on one.

mod clip;
mod config;
mod dashboard;
mod parallel;

use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleDisplay};
use burn::optim::{GradientsAccumulator, GradientsParams, ModuleOptimizer, OptimizerRecord};
use burn::store::ModuleRecord;
use burn::tensor::{Device, Tensor};

use crate::{LearnError, Learner, Schedule, Step, Validation};
pub use config::{OptimConfig, OptimizerKind};
pub use dashboard::{Dashboard, Stop};
use parallel::Workers;

/// A loss and the parts that it was mixed of.
pub struct Loss {
    /// What is minimised: one number.
    pub total: Tensor<1>,
    /// The parts by name, before their weights; empty for a single one.
    pub parts: Vec<(&'static str, Tensor<1>)>,
}

impl Loss {
    /// The sum of parts, each times its weight. Empty parts make no loss.
    pub fn mix(parts: Vec<(&'static str, f64, Tensor<1>)>) -> Option<Self> {
        let weighted = parts
            .iter()
            .map(|(_, weight, x)| x.clone().mul_scalar(*weight));
        let total = weighted.reduce(|a, b| a + b)?;
        Some(Self {
            total,
            parts: parts.into_iter().map(|(name, _, x)| (name, x)).collect(),
        })
    }
}

impl From<Tensor<1>> for Loss {
    fn from(total: Tensor<1>) -> Self {
        Self {
            total,
            parts: Vec::new(),
        }
    }
}

/// What a model learns: its batches and its loss.
pub trait Task {
    /// The model; it starts on an autodiff device.
    type Model: Module + ModuleDisplay + 'static;
    /// One micro-batch, with the seed of whatever is random in its loss.
    type Batch: Send + 'static;

    /// Micro-batches of one epoch.
    fn batches_per_epoch(&self) -> u64;

    /// Micro-batch `number`, from 0, on into later epochs; the same for the same number.
    ///
    /// # Errors
    /// When the data of the batch cannot be read or makes no sense.
    fn batch(&mut self, number: u64) -> Result<Self::Batch, LearnError>;

    /// How many items a micro-batch has.
    fn items(batch: &Self::Batch) -> u64;

    /// The loss of a micro-batch.
    fn loss(model: &Self::Model, batch: Self::Batch) -> Loss;

    /// Measures the model, without gradients, on data that it does not learn from.
    ///
    /// # Errors
    /// As for a batch.
    fn validate(&mut self, _model: &Self::Model) -> Result<Option<Validation>, LearnError> {
        Ok(None)
    }
}

/// A [`Learner`] that follows the gradients of a [`Task`].
pub struct GradientLearner<T: Task> {
    task: T,
    model: T::Model,
    optimizer: ModuleOptimizer,
    schedule: Schedule,
    config: OptimConfig,
    unit: &'static str,
    workers: Option<Workers<T::Model>>,
}

impl<T: Task> GradientLearner<T> {
    /// A learner of `task` that starts from `model`, which is on the autodiff `device`.
    ///
    /// # Errors
    /// When a setting makes no sense, or the data has no batch.
    pub fn new(
        task: T,
        model: T::Model,
        config: &OptimConfig,
        device: &Device,
        unit: &'static str,
    ) -> Result<Self, LearnError> {
        let schedule = config.schedule(task.batches_per_epoch())?;
        let workers = (config.devices > 1).then(|| Workers::new(config.devices, device));
        Ok(Self {
            task,
            model,
            optimizer: config.optimizer(),
            schedule,
            config: config.clone(),
            unit,
            workers,
        })
    }

    /// The model as it is.
    pub fn model(&self) -> &T::Model {
        &self.model
    }

    /// The task, with its data.
    pub fn task(&self) -> &T {
        &self.task
    }

    /// Gradients of the micro-batches of step `number`, summed, and their losses.
    fn gradients(&mut self, number: u64) -> Result<(GradientsParams, Vec<Measured>), LearnError> {
        let micro = self.config.micro_batches();
        let first = (number - 1) * micro;
        let mut accumulator = GradientsAccumulator::new();
        let mut losses = Vec::new();
        match &mut self.workers {
            None => {
                for index in first..first + micro {
                    let batch = self.task.batch(index)?;
                    let (grads, loss) = backward::<T>(&self.model, batch);
                    accumulator.accumulate(&self.model, grads);
                    losses.push(loss);
                }
            }
            Some(workers) => {
                let devices = self.config.devices as u64;
                for round in 0..self.config.accumulation as u64 {
                    let start = first + round * devices;
                    let batches = (start..start + devices).map(|index| self.task.batch(index));
                    let batches = batches.collect::<Result<Vec<_>, _>>()?;
                    for (grads, loss) in workers.step::<T>(&self.model, batches)? {
                        accumulator.accumulate(&self.model, grads);
                        losses.push(loss);
                    }
                }
            }
        }
        Ok((accumulator.grads(), losses))
    }
}

/// The numbers of one micro-batch.
pub(crate) struct Measured {
    loss: f64,
    parts: Vec<(&'static str, f64)>,
    items: u64,
}

/// Forward and backward of one micro-batch.
fn backward<T: Task>(model: &T::Model, batch: T::Batch) -> (GradientsParams, Measured) {
    let items = T::items(&batch);
    let loss = T::loss(model, batch);
    let number = |x: &Tensor<1>| f64::from(x.clone().into_scalar::<f32>());
    let measured = Measured {
        loss: number(&loss.total),
        parts: loss.parts.iter().map(|(n, x)| (*n, number(x))).collect(),
        items,
    };
    let grads = GradientsParams::from_grads(loss.total.backward(), model);
    (grads, measured)
}

impl<T: Task> Learner for GradientLearner<T> {
    fn steps(&self) -> u64 {
        self.schedule.steps
    }

    fn unit(&self) -> &'static str {
        self.unit
    }

    fn step(&mut self, number: u64) -> Result<Step, LearnError> {
        let learning_rate = self.schedule.at(number);
        let (grads, losses) = self.gradients(number)?;
        let n = losses.len() as f64;
        let loss = losses.iter().map(|l| l.loss).sum::<f64>() / n;
        let parts = losses[0].parts.iter().enumerate();
        let parts = parts
            .map(|(i, (name, _))| (*name, losses.iter().map(|l| l.parts[i].1).sum::<f64>() / n))
            .collect();
        // A loss that is no number must not reach the weights.
        if loss.is_finite() {
            let grads = clip::scale(&self.model, grads, 1.0 / n, self.config.max_grad_norm);
            self.model = self
                .optimizer
                .step(learning_rate, self.model.clone(), grads);
        }
        Ok(Step {
            loss,
            parts,
            items: losses.iter().map(|l| l.items).sum(),
            learning_rate,
        })
    }

    fn validate(&mut self) -> Result<Option<Validation>, LearnError> {
        let model = self.model.valid();
        self.task.validate(&model)
    }

    fn save(&self, folder: &Path) -> Result<(), LearnError> {
        let path = model_file(folder);
        self.model
            .clone()
            .into_record()
            .save(&path)
            .map_err(|e| failed(&path, e))?;
        let path = optimizer_file(folder);
        self.optimizer
            .to_record()
            .save(&path)
            .map_err(|e| failed(&path, e))
    }

    fn load(&mut self, folder: &Path) -> Result<(), LearnError> {
        let path = model_file(folder);
        let record = ModuleRecord::load(&path).map_err(|e| unfit(&path, e))?;
        self.model = self
            .model
            .clone()
            .try_load_record(record)
            .map_err(|e| unfit(&path, e))?;
        let path = optimizer_file(folder);
        let record = OptimizerRecord::load(&path).map_err(|e| unfit(&path, e))?;
        self.optimizer = self.optimizer.clone().load_record(record);
        Ok(())
    }
}

fn model_file(folder: &Path) -> PathBuf {
    folder.join("model.bpk")
}

fn optimizer_file(folder: &Path) -> PathBuf {
    folder.join("optimizer.bpk")
}

fn failed(path: &Path, error: impl std::fmt::Display) -> LearnError {
    LearnError::io(path)(std::io::Error::other(error.to_string()))
}

fn unfit(path: &Path, error: impl std::fmt::Display) -> LearnError {
    LearnError::State {
        path: path.to_owned(),
        what: error.to_string(),
    }
}

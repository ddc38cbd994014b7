//! Training of the small model in a folder of its own, with checkpoints.

use std::path::Path;

use keyfold_core::seed_of;
use keyfold_train::{LearnError, Learner, Place, Report, RunConfig, Step, TrainError, Validation};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::saved::{TASK, write_task};
use super::{NAMES, PART, Prompt, SmallModel, SmallModelConfig};
use crate::small_transformer::{Adam, warm_cosine};
use crate::state;

/// Prompts of a validation.
const VALIDATION: usize = 512;

/// How a small model is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IndirectObjectTraining {
    /// Numbers of a state.
    pub d_model: usize,
    /// Heads of a layer; a head has `d_model / heads` numbers.
    pub heads: usize,
    /// Layers.
    pub layers: usize,
    /// Prompts of a step.
    pub batch_size: usize,
    /// Highest learning rate.
    pub learning_rate: f64,
    /// Steps.
    pub steps: u64,
    /// Prompts in the file of the task that is written beside the model.
    pub prompts: usize,
    /// Seed of weights and prompts.
    pub seed: u64,
    /// How the run is kept and watched.
    pub run: RunConfig,
}

impl Default for IndirectObjectTraining {
    fn default() -> Self {
        let model = SmallModelConfig::default();
        Self {
            d_model: model.d_model,
            heads: model.heads,
            layers: model.layers,
            batch_size: model.batch_size,
            learning_rate: model.learning_rate,
            steps: 2500,
            prompts: 5000,
            seed: model.seed,
            run: RunConfig::default(),
        }
    }
}

impl IndirectObjectTraining {
    fn model(&self) -> Result<SmallModelConfig, LearnError> {
        let wrong = |what: String| Err(LearnError::Data(what));
        for (name, value, most) in [
            ("d_model", self.d_model, 1 << 12),
            ("layers", self.layers, 1 << 8),
            ("batch_size", self.batch_size, 1 << 16),
            ("prompts", self.prompts, 1 << 20),
        ] {
            if value == 0 || value > most {
                return wrong(format!("{name} is {value}; it must be from 1 to {most}"));
            }
        }
        if !(self.learning_rate.is_finite() && self.learning_rate > 0.0) {
            return wrong(format!(
                "learning_rate is {}; it must be above 0",
                self.learning_rate
            ));
        }
        let steps = usize::try_from(self.steps).unwrap_or(usize::MAX);
        Ok(SmallModelConfig {
            d_model: self.d_model,
            heads: self.heads,
            layers: self.layers,
            batch_size: self.batch_size,
            learning_rate: self.learning_rate,
            steps,
            seed: self.seed,
        })
    }
}

fn learn_error(e: impl std::fmt::Display) -> LearnError {
    LearnError::Data(e.to_string())
}

/// A training as a [`Learner`].
pub struct IndirectObjectLearner {
    model: SmallModel,
    adam: Adam,
    /// Prompts that are never learned from.
    held_out: Vec<Prompt>,
}

impl IndirectObjectLearner {
    /// A learner that begins at random weights.
    ///
    /// # Errors
    /// When a setting makes no sense.
    pub fn new(config: &IndirectObjectTraining) -> Result<Self, LearnError> {
        let model = SmallModel::new(config.model()?).map_err(learn_error)?;
        let seed = seed_of(&format!("indirect object {} validation", config.seed));
        Ok(Self {
            adam: model.adam(),
            held_out: Prompt::sample(VALIDATION, NAMES.len(), seed).map_err(learn_error)?,
            model,
        })
    }

    /// The model as it is.
    pub fn model(&self) -> &SmallModel {
        &self.model
    }
}

impl Learner for IndirectObjectLearner {
    fn steps(&self) -> u64 {
        self.model.config.steps as u64
    }

    fn unit(&self) -> &'static str {
        "prompts"
    }

    fn step(&mut self, number: u64) -> Result<Step, LearnError> {
        let config = self.model.config;
        // Steps of the model count from 0, and a checkpoint does not hold Adam's count.
        let step = number.saturating_sub(1);
        self.adam.number = u32::try_from(step).unwrap_or(u32::MAX - 1);
        let step = step as usize;
        Ok(Step {
            loss: self.model.step(&mut self.adam, step).map_err(learn_error)?,
            parts: Vec::new(),
            items: config.batch_size as u64,
            learning_rate: warm_cosine(step, config.steps, config.learning_rate),
        })
    }

    fn validate(&mut self) -> Result<Option<Validation>, LearnError> {
        let model = &self.model;
        let losses = self.held_out.par_chunks(PART).map(|part| {
            let (_, _, mut logits) = model.forward(&model.tokens(part), None);
            model.errors(&mut logits, part)
        });
        let losses: Vec<f64> = losses.collect();
        let pass = model.pass(&self.held_out, None).map_err(learn_error)?;
        Ok(Some(Validation {
            loss: losses.iter().sum::<f64>() / self.held_out.len() as f64,
            measures: vec![
                ("right", pass.share(self.held_out.iter().map(|p| p.io))),
                ("logit_difference", pass.logit_difference(&self.held_out)),
            ],
        }))
    }

    fn save(&self, folder: &Path) -> Result<(), LearnError> {
        let parts = [
            ("weights", &self.model.weights[..]),
            ("first", &self.adam.first[..]),
            ("second", &self.adam.second[..]),
        ];
        state::save(folder, &parts)
    }

    fn load(&mut self, folder: &Path) -> Result<(), LearnError> {
        let mut parts = [
            ("weights", &mut self.model.weights[..]),
            ("first", &mut self.adam.first[..]),
            ("second", &mut self.adam.second[..]),
        ];
        state::load(folder, &mut parts)
    }
}

/// Trains a model in the run's folder and leaves it there, with a file of its task.
///
/// # Errors
/// When the settings make no sense or the run fails.
pub fn train(config: &IndirectObjectTraining, place: Place<'_>) -> Result<Report, TrainError> {
    let mut learner = IndirectObjectLearner::new(config)?;
    let settings = place.settings("indirect-object", config, &config.run, json!({}), None)?;
    place.train(&mut learner, &settings, |learner, out| {
        let seed = seed_of(&format!("indirect object {} task", config.seed));
        let prompts = Prompt::sample(config.prompts, NAMES.len(), seed).map_err(learn_error)?;
        write_task(&out.join(TASK), &prompts, seed).map_err(learn_error)?;
        learner.model().save(out).map_err(learn_error)
    })
}

//! What can be trained.

use std::path::Path;

use crate::LearnError;

/// What one step did.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The loss that was minimised.
    pub loss: f64,
    /// The parts of a mixed loss by name, before their weights; empty for a single one.
    pub parts: Vec<(&'static str, f64)>,
    /// How much was learned from, in the learner's [unit](Learner::unit).
    pub items: u64,
    /// The learning rate of the step.
    pub learning_rate: f64,
}

/// What the model is worth on data that it does not learn from.
#[derive(Debug, Clone, PartialEq)]
pub struct Validation {
    /// What decides: lower is better.
    pub loss: f64,
    /// Other measures by name.
    pub measures: Vec<(&'static str, f64)>,
}

/// Something that learns in steps.
///
/// To go on after a kill to the same weights, everything random in a step must follow
/// from the seed and the step's number (see [`crate::order`]), and everything else that
/// a step reads must be in what [`save`](Self::save) writes.
pub trait Learner {
    /// Steps of the whole training.
    fn steps(&self) -> u64;

    /// What [`Step::items`] counts: `pairs`, `words`.
    fn unit(&self) -> &'static str;

    /// Makes step `number`, from 1.
    ///
    /// # Errors
    /// When the data of the step cannot be read or makes no sense.
    fn step(&mut self, number: u64) -> Result<Step, LearnError>;

    /// Measures the model on data that it does not learn from; nothing when there is none.
    ///
    /// # Errors
    /// As for a step.
    fn validate(&mut self) -> Result<Option<Validation>, LearnError> {
        Ok(None)
    }

    /// Writes the state into `folder`, which exists and is empty. The files become
    /// durable and get checksums afterwards, so plain writes are enough.
    ///
    /// # Errors
    /// When a file cannot be written.
    fn save(&self, folder: &Path) -> Result<(), LearnError>;

    /// Takes up the state that [`save`](Self::save) wrote.
    ///
    /// # Errors
    /// When the files do not fit this learner.
    fn load(&mut self, folder: &Path) -> Result<(), LearnError>;
}

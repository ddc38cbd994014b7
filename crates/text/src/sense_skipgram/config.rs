//! Settings of disambiguated skip-gram.

use serde::{Deserialize, Serialize};

/// Settings of disambiguated skip-gram; the defaults are the authors' values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Sense vectors of a word.
    pub senses: usize,
    /// Length of a vector.
    pub dim: usize,
    /// Words to each side that are predicted, and that tell the sense.
    pub window: usize,
    /// Least occurrences of a word; others are one unknown word.
    pub min_count: u64,
    /// Least occurrences of a word that gets a sense classifier of its own (`dim` times
    /// `senses` numbers); others share one.
    pub classifier_min_count: u64,
    /// Whether English words without a meaning of their own are left out.
    pub stop_words: bool,
    /// Words that did not occur, for a batch.
    pub negatives: usize,
    /// Passes over the text in the first stage, where all words share a classifier.
    pub first_epochs: u64,
    /// Learning rate at the start of the first stage; it falls in a straight line to 0.
    pub first_learning_rate: f32,
    /// Factor of the mean entropy of the senses in the loss of the first stage: below 0
    /// it rewards the use of all senses.
    pub entropy: f32,
    /// Learning rate of each pass of the second stage.
    pub learning_rates: Vec<f32>,
    /// Momentum of each pass, from the start of each stage; the last one stays.
    pub momentum: Vec<f32>,
    /// Temperature at the start of the second stage.
    pub temperature: f32,
    /// Temperature after its first pass, to which it falls in a straight line.
    pub last_temperature: f32,
    /// Words whose contexts are predicted before parameters change. The loss is the mean
    /// over all that is predicted.
    pub batch: usize,
    /// Batches that are computed against the same parameters, so that threads share them.
    pub round: usize,
    /// Words of a step of the training.
    pub step_words: usize,
    /// Senses that are less frequent among the occurrences of a word are dropped.
    pub prune: f32,
    /// Seed of everything random.
    pub seed: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            senses: 5,
            dim: 300,
            window: 5,
            min_count: 100,
            classifier_min_count: 0,
            stop_words: true,
            negatives: 64,
            first_epochs: 1,
            first_learning_rate: 0.1,
            entropy: -0.1,
            learning_rates: vec![0.1, 0.05, 0.01],
            momentum: vec![0.5, 0.6, 0.7, 0.8, 0.9],
            temperature: 1.0,
            last_temperature: 0.5,
            batch: 128,
            round: 4,
            step_words: 16_384,
            prune: 0.05,
            seed: 0,
        }
    }
}

impl Config {
    /// What is wrong with the settings, and what to do.
    pub(crate) fn check(&self) -> Result<(), String> {
        if !(2..=256).contains(&self.senses) {
            return Err(format!(
                "senses is {}; with fewer than 2 there is nothing to tell apart, so take 2 to 256",
                self.senses
            ));
        }
        let counts = [
            ("dim", self.dim),
            ("window", self.window),
            ("negatives", self.negatives),
            ("batch", self.batch),
            ("round", self.round),
            ("step_words", self.step_words),
        ];
        if let Some((name, _)) = counts.iter().find(|(_, n)| *n == 0 || *n > 1 << 24) {
            return Err(format!("{name} must be from 1 to {}", 1 << 24));
        }
        let positive = [self.temperature, self.last_temperature];
        if positive.iter().any(|t| !(t.is_finite() && *t > 0.0)) {
            return Err("temperatures must be above 0".into());
        }
        let mut rates = self
            .learning_rates
            .iter()
            .chain([&self.first_learning_rate]);
        if rates.any(|r| !(r.is_finite() && *r > 0.0)) {
            return Err("learning rates must be above 0".into());
        }
        if self.momentum.is_empty() || self.momentum.iter().any(|m| !(0.0..1.0).contains(m)) {
            return Err("momentum needs at least one value, each from 0 to below 1".into());
        }
        if !(self.entropy.is_finite() && (0.0..1.0).contains(&self.prune)) {
            return Err("entropy must be a number, and prune from 0 to below 1".into());
        }
        Ok(())
    }

    /// Passes over the text in both stages.
    pub(crate) fn epochs(&self) -> u64 {
        self.first_epochs + self.learning_rates.len() as u64
    }
}

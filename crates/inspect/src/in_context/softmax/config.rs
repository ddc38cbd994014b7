//! Settings.

use serde::{Deserialize, Serialize};

use crate::InspectError;

/// How weights begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// Evenly from `±1/√fan_in`.
    #[default]
    Random,
    /// All matrices a millionth of the identity; the output is drawn.
    SmallId,
    /// Queries and keys a ten-thousandth of the identity; the rest is drawn.
    SmallIdQk,
    /// Queries and keys a millionth of the identity, the queries of half the heads negative.
    OppoSmallId,
}

/// Settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SoftmaxConfig {
    /// Numbers of `x`.
    pub d: usize,
    /// Examples of a prompt.
    #[serde(rename = "L")]
    pub length: usize,
    /// Heads.
    pub heads: usize,
    /// Variance of the noise.
    pub sigma2: f64,
    /// Linear functions at once, each of a part of `x`.
    pub tasks: usize,
    /// Standard deviations of the numbers of `x`; empty for 1 each.
    pub spread: Vec<f64>,
    /// How weights begin.
    pub init: Init,
    /// Prompts of a step.
    pub batch_size: usize,
    /// Learning rate of Adam.
    pub learning_rate: f64,
    /// Steps.
    pub steps: usize,
    /// Seed of weights and prompts.
    pub seed: u64,
}

impl Default for SoftmaxConfig {
    fn default() -> Self {
        Self {
            d: 5,
            length: 40,
            heads: 2,
            sigma2: 0.1,
            tasks: 1,
            spread: Vec::new(),
            init: Init::Random,
            batch_size: 256,
            learning_rate: 1e-3,
            steps: 20_000,
            seed: 0,
        }
    }
}

impl SoftmaxConfig {
    /// Numbers of a row: `x` and one `y` for each task.
    pub(super) fn row(&self) -> usize {
        self.d + self.tasks
    }

    /// Numbers of `x` that a task sees; those of all tasks together cover `x`.
    pub(super) fn task_dim(&self) -> usize {
        match self.tasks {
            1 => self.d,
            // With two tasks of d = 6: x[..4] and x[2..].
            _ => (self.d * 2).div_ceil(self.tasks + 1),
        }
    }

    pub(super) fn task_start(&self, task: usize) -> usize {
        match self.tasks {
            1 => 0,
            tasks => task * (self.d - self.task_dim()) / (tasks - 1),
        }
    }

    pub(super) fn check(&self) -> Result<(), InspectError> {
        let counts = [
            ("d", self.d),
            ("L", self.length),
            ("heads", self.heads),
            ("tasks", self.tasks),
            ("batch_size", self.batch_size),
        ];
        if let Some((name, _)) = counts.iter().find(|(_, n)| *n == 0) {
            return Err(InspectError::settings(format!("{name} must be at least 1")));
        }
        if !(self.sigma2 >= 0.0 && self.sigma2.is_finite()) {
            return Err(InspectError::settings(format!(
                "sigma2 is {}; it must be 0 or more",
                self.sigma2
            )));
        }
        if self.tasks > self.d {
            return Err(InspectError::settings(format!(
                "{} tasks cannot share {} numbers of x; take fewer tasks",
                self.tasks, self.d
            )));
        }
        if self.init == Init::OppoSmallId && !self.heads.is_multiple_of(2) {
            return Err(InspectError::settings(
                "oppo_small_id needs an even number of heads",
            ));
        }
        let good = |s: &f64| *s > 0.0 && s.is_finite();
        if !self.spread.is_empty() && (self.spread.len() != self.d || !self.spread.iter().all(good))
        {
            return Err(InspectError::settings(format!(
                "spread needs {} numbers above 0, one for each of x",
                self.d
            )));
        }
        Ok(())
    }
}

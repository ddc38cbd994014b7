//! Settings of the optimiser.

use burn::optim::{AdamConfig, ModuleOptimizer, SgdConfig, momentum::MomentumConfig};
use keyfold_nn::AdamW;
use serde::{Deserialize, Serialize};

use crate::{Decay, LearnError, Schedule};

/// The rule by which gradients change weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Adam with decoupled weight decay (Loshchilov and Hutter 2019).
    AdamW,
    /// Adam (Kingma and Ba 2015); weight decay is added to the gradient.
    Adam,
    /// Stochastic gradient descent, with momentum where that is not 0.
    Sgd,
}

/// How gradients become weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimConfig {
    /// The rule.
    pub optimizer: OptimizerKind,
    /// The largest learning rate.
    pub learning_rate: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// First decay rate of Adam.
    pub beta1: f64,
    /// Second decay rate of Adam.
    pub beta2: f64,
    /// Epsilon of Adam.
    pub eps: f64,
    /// Momentum of `sgd`.
    pub momentum: f64,
    /// Times that all data is seen.
    pub epochs: f64,
    /// Steps in all, whatever `epochs` says; 0 leaves it to `epochs`.
    pub max_steps: u64,
    /// Steps over which the learning rate rises.
    pub warmup_steps: u64,
    /// How it falls afterwards.
    pub decay: Decay,
    /// The gradient of all parameters together is at most this long; 0 for any length.
    pub max_grad_norm: f64,
    /// Micro-batches per step, one after the other.
    pub accumulation: usize,
    /// Devices that work on micro-batches at once; the loss and the weights are those of
    /// `accumulation` times as many on one.
    pub devices: usize,
}

impl Default for OptimConfig {
    fn default() -> Self {
        Self {
            optimizer: OptimizerKind::AdamW,
            learning_rate: 2e-5,
            weight_decay: 0.01,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            momentum: 0.9,
            epochs: 1.0,
            max_steps: 0,
            warmup_steps: 0,
            decay: Decay::Linear,
            max_grad_norm: 1.0,
            accumulation: 1,
            devices: 1,
        }
    }
}

impl OptimConfig {
    /// Micro-batches of one step.
    pub fn micro_batches(&self) -> u64 {
        (self.accumulation * self.devices) as u64
    }

    /// The rates of all steps, for data with so many micro-batches.
    ///
    /// # Errors
    /// When a setting makes no sense, or there is no step to make.
    pub fn schedule(&self, batches_per_epoch: u64) -> Result<Schedule, LearnError> {
        self.check().map_err(LearnError::Data)?;
        let per_step = self.micro_batches();
        let steps = match self.max_steps {
            0 => (batches_per_epoch as f64 * self.epochs / per_step as f64).floor() as u64,
            n => n,
        };
        if batches_per_epoch == 0 || steps == 0 {
            return Err(LearnError::Data(format!(
                "there is no step to make: {batches_per_epoch} batches an epoch, {per_step} a \
                 step, {} epochs; more data, a smaller batch_size or more epochs help",
                self.epochs
            )));
        }
        Ok(Schedule {
            learning_rate: self.learning_rate,
            warmup_steps: self.warmup_steps.min(steps),
            decay: self.decay,
            steps,
        })
    }

    fn check(&self) -> Result<(), String> {
        let at_least_zero = [
            ("learning_rate", self.learning_rate),
            ("weight_decay", self.weight_decay),
            ("epochs", self.epochs),
            ("max_grad_norm", self.max_grad_norm),
        ];
        for (name, value) in at_least_zero {
            if !value.is_finite() || value < 0.0 {
                return Err(format!("{name} is {value}; it must be 0 or more"));
            }
        }
        let shares = [
            ("beta1", self.beta1),
            ("beta2", self.beta2),
            ("momentum", self.momentum),
        ];
        for (name, value) in shares {
            if !(0.0..1.0).contains(&value) {
                return Err(format!(
                    "{name} is {value}; it must be at least 0 and below 1"
                ));
            }
        }
        if self.accumulation == 0 || self.devices == 0 {
            return Err("accumulation and devices must be at least 1".into());
        }
        Ok(())
    }

    pub(super) fn optimizer(&self) -> ModuleOptimizer {
        let (beta1, beta2) = (self.beta1 as f32, self.beta2 as f32);
        let (eps, decay) = (self.eps as f32, self.weight_decay as f32);
        match self.optimizer {
            OptimizerKind::AdamW => AdamW {
                beta_1: beta1,
                beta_2: beta2,
                epsilon: eps,
                weight_decay: decay,
            }
            .init(),
            OptimizerKind::Adam => AdamConfig::new()
                .with_beta_1(beta1)
                .with_beta_2(beta2)
                .with_epsilon(eps)
                .with_weight_decay(
                    (decay > 0.0).then(|| burn::optim::decay::WeightDecayConfig::new(decay)),
                )
                .init(),
            OptimizerKind::Sgd => SgdConfig::new()
                .with_weight_decay(
                    (decay > 0.0).then(|| burn::optim::decay::WeightDecayConfig::new(decay)),
                )
                .with_momentum((self.momentum > 0.0).then(|| {
                    MomentumConfig::new()
                        .with_momentum(self.momentum)
                        .with_dampening(0.0)
                }))
                .init(),
        }
    }
}

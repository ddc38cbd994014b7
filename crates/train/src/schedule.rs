//! The learning rate as a function of the step.

use serde::{Deserialize, Serialize};

/// How the rate falls after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// It stays.
    Constant,
    /// In a straight line to zero.
    Linear,
    /// As a half cosine to zero.
    Cosine,
}

/// A rise over the first steps, then a [`Decay`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// The largest rate.
    pub learning_rate: f64,
    /// Steps of the rise.
    pub warmup_steps: u64,
    /// How it falls.
    pub decay: Decay,
    /// Steps in all.
    pub steps: u64,
}

impl Schedule {
    /// The rate of step `number`, from 1.
    pub fn at(&self, number: u64) -> f64 {
        if number <= self.warmup_steps {
            return self.learning_rate * number as f64 / self.warmup_steps as f64;
        }
        // As the usual schedulers count: the first step after the rise has the whole rate.
        let done = (number - self.warmup_steps - 1) as f64;
        let all = self.steps.saturating_sub(self.warmup_steps).max(1) as f64;
        let left = (1.0 - done / all).max(0.0);
        self.learning_rate
            * match self.decay {
                Decay::Constant => 1.0,
                Decay::Linear => left,
                Decay::Cosine => 0.5 - 0.5 * (std::f64::consts::PI * left).cos(),
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_and_falls_as_named() {
        let mut schedule = Schedule {
            learning_rate: 2.0,
            warmup_steps: 4,
            decay: Decay::Linear,
            steps: 14,
        };
        let rates: Vec<f64> = (1..=14).map(|n| schedule.at(n)).collect();
        assert_eq!(&rates[..5], &[0.5, 1.0, 1.5, 2.0, 2.0]);
        assert!(
            (rates[9] - 1.0).abs() < 1e-12,
            "half way down: {}",
            rates[9]
        );
        assert!(rates[13] > 0.0 && rates[13] < 0.3);
        schedule.decay = Decay::Cosine;
        assert!((schedule.at(5) - 2.0).abs() < 1e-12);
        assert!((schedule.at(10) - 1.0).abs() < 1e-12);
        schedule.decay = Decay::Constant;
        assert_eq!(schedule.at(14), 2.0);
    }
}

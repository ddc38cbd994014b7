//! Greedy choice and sampling from the logits of the next token.
//!
//! In the order in which Transformers applies them: repetition penalty, temperature,
//! top-k, top-p (nucleus), min-p, then one draw.

use super::DecodingError;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;

/// How a token is drawn. The default draws from the model's own distribution.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingConfig {
    /// Logits are divided by it; 0 always takes the likeliest token.
    pub temperature: f32,
    /// Only so many likeliest tokens; 0 means all.
    pub top_k: usize,
    /// Only the likeliest tokens that together have this probability.
    pub top_p: f32,
    /// Only tokens with at least this share of the likeliest token's probability.
    pub min_p: f32,
    /// Logits of tokens that occurred are divided by it where positive, multiplied where
    /// negative (Keskar et al., 2019); 1 changes nothing.
    pub repetition_penalty: f32,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for SamplingConfig {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
        }
    }
}

impl SamplingConfig {
    /// Always the likeliest token.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            ..Self::default()
        }
    }

    /// Whether the settings make sense.
    ///
    /// # Errors
    /// Names the setting that is out of its range.
    pub fn validate(&self) -> Result<(), DecodingError> {
        let checks = [
            (
                "temperature",
                self.temperature,
                self.temperature >= 0.0,
                "at least 0",
            ),
            (
                "top_p",
                self.top_p,
                self.top_p > 0.0 && self.top_p <= 1.0,
                "above 0 and at most 1",
            ),
            (
                "min_p",
                self.min_p,
                (0.0..=1.0).contains(&self.min_p),
                "from 0 to 1",
            ),
            (
                "repetition_penalty",
                self.repetition_penalty,
                self.repetition_penalty > 0.0,
                "above 0",
            ),
        ];
        for (name, value, holds, range) in checks {
            if !holds || !value.is_finite() {
                return Err(DecodingError::Setting {
                    name,
                    value: value.to_string(),
                    range,
                });
            }
        }
        Ok(())
    }
}

/// Draws tokens. The same seed and the same logits give the same tokens.
#[derive(Debug)]
pub struct Sampler {
    config: SamplingConfig,
    rng: StdRng,
    /// Token and probability of what may be drawn, likeliest first.
    choices: Vec<(u32, f32)>,
}

impl Sampler {
    /// # Errors
    /// When a setting is out of its range.
    pub fn new(config: SamplingConfig) -> Result<Self, DecodingError> {
        config.validate()?;
        let rng = StdRng::seed_from_u64(config.seed);
        Ok(Self {
            config,
            rng,
            choices: Vec::new(),
        })
    }

    /// The next token after `context`. `logits` are used up: the penalty changes them in place.
    pub fn next(&mut self, logits: &mut [f32], context: &[u32]) -> u32 {
        penalize(logits, context, self.config.repetition_penalty);
        if self.config.temperature == 0.0 {
            return argmax(logits);
        }
        self.fill_choices(logits);
        let total: f32 = self.choices.iter().map(|c| c.1).sum();
        let mut left = self.rng.random::<f32>() * total;
        for &(token, p) in &self.choices {
            left -= p;
            if left < 0.0 {
                return token;
            }
        }
        // Rounding may leave a rest.
        self.choices.last().map_or(0, |c| c.0)
    }

    /// Fills `choices` with what the settings leave over.
    fn fill_choices(&mut self, logits: &[f32]) {
        let SamplingConfig {
            temperature,
            top_k,
            top_p,
            min_p,
            ..
        } = self.config;
        let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        self.choices.clear();
        // NaN compares as not above zero and is left out.
        self.choices
            .extend(logits.iter().enumerate().filter_map(|(token, &logit)| {
                let p = ((logit - highest) / temperature).exp();
                (p > 0.0 && p >= min_p).then_some((token as u32, p))
            }));
        let likelier = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if top_k > 0 && top_k < self.choices.len() {
            self.choices.select_nth_unstable_by(top_k - 1, likelier);
            self.choices.truncate(top_k);
        }
        if top_p < 1.0 {
            let kept = sort_share(&mut self.choices, top_p, likelier).max(1);
            self.choices.truncate(kept);
        }
    }
}

/// Moves the likeliest choices that hold a `share` of all to the front, sorted, and tells how
/// many. Mostly few of tens of thousands do, so that the others are not sorted.
fn sort_share(
    choices: &mut [(u32, f32)],
    share: f32,
    likelier: impl Fn(&(u32, f32), &(u32, f32)) -> Ordering,
) -> usize {
    let total: f32 = choices.iter().map(|c| c.1).sum();
    let (mut sorted, mut next, mut sum) = (0, 64, 0.0);
    while sorted < choices.len() {
        let rest = &mut choices[sorted..];
        let count = next.min(rest.len());
        if count < rest.len() {
            rest.select_nth_unstable_by(count - 1, &likelier);
        }
        rest[..count].sort_unstable_by(&likelier);
        for (place, choice) in rest[..count].iter().enumerate() {
            if sum >= share * total {
                return sorted + place;
            }
            sum += choice.1;
        }
        sorted += count;
        next *= 8;
    }
    choices.len()
}

/// The token of the highest logit, the first of equals; 0 where all are NaN.
pub fn argmax(logits: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (token, &logit) in logits.iter().enumerate() {
        if logit > best.1 {
            best = (token, logit);
        }
    }
    best.0 as u32
}

/// Makes tokens of the context less likely, each once.
fn penalize(logits: &mut [f32], context: &[u32], penalty: f32) {
    if penalty == 1.0 {
        return;
    }
    let mut seen = context.to_vec();
    seen.sort_unstable();
    seen.dedup();
    for token in seen {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit = if *logit > 0.0 {
                *logit / penalty
            } else {
                *logit * penalty
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frequencies(config: SamplingConfig, logits: &[f32], draws: usize) -> Vec<f32> {
        let mut sampler = Sampler::new(config).unwrap();
        let mut counts = vec![0.0; logits.len()];
        for _ in 0..draws {
            counts[sampler.next(&mut logits.to_vec(), &[]) as usize] += 1.0 / draws as f32;
        }
        counts
    }

    #[test]
    fn draws_follow_the_distribution_and_the_seed() {
        let logits: Vec<f32> = [0.5f32, 0.3, 0.2].iter().map(|p| p.ln()).collect();
        let found = frequencies(SamplingConfig::default(), &logits, 20_000);
        for (found, expected) in found.iter().zip([0.5, 0.3, 0.2]) {
            assert!((found - expected).abs() < 0.015, "{found} {expected}");
        }
        let draw = |seed| {
            let mut sampler = Sampler::new(SamplingConfig {
                seed,
                ..Default::default()
            })
            .unwrap();
            (0..50)
                .map(|_| sampler.next(&mut logits.clone(), &[]))
                .collect::<Vec<_>>()
        };
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(4));
    }

    #[test]
    fn a_share_of_many_choices_is_that_of_a_full_sort() {
        let likelier = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        // Few values, so that many are equal.
        let choices: Vec<(u32, f32)> = (0..3000u32)
            .map(|i| {
                (
                    i,
                    0.5f32.powi((i.wrapping_mul(2_654_435_761) >> 20) as i32 % 12),
                )
            })
            .collect();
        let mut all = choices.clone();
        all.sort_unstable_by(likelier);
        let total: f32 = all.iter().map(|c| c.1).sum();
        for share in [1e-4, 0.1, 0.5, 0.9, 0.999] {
            let mut some = choices.clone();
            let kept = sort_share(&mut some, share, likelier);
            assert_eq!(some[..kept], all[..kept], "{share}");
            let held: f32 = all[..kept].iter().map(|c| c.1).sum();
            assert!(held > share * total * 0.999, "{share}");
            assert!(held - all[kept - 1].1 < share * total * 1.001, "{share}");
        }
    }

    #[test]
    fn limits_leave_out_the_unlikely() {
        let logits: Vec<f32> = [0.5f32, 0.3, 0.15, 0.05].iter().map(|p| p.ln()).collect();
        let of = |config| {
            let found = frequencies(config, &logits, 4_000);
            found.iter().filter(|f| **f > 0.0).count()
        };
        assert_eq!(
            of(SamplingConfig {
                top_k: 2,
                ..Default::default()
            }),
            2
        );
        // 0.5 alone does not reach .6, 0.5 and 0.3 do.
        assert_eq!(
            of(SamplingConfig {
                top_p: 0.6,
                ..Default::default()
            }),
            2
        );
        assert_eq!(
            of(SamplingConfig {
                top_p: 1e-6,
                ..Default::default()
            }),
            1
        );
        assert_eq!(
            of(SamplingConfig {
                min_p: 0.25,
                ..Default::default()
            }),
            3
        );
        assert_eq!(
            of(SamplingConfig {
                temperature: 0.01,
                ..Default::default()
            }),
            1
        );
    }

    #[test]
    fn greedy_takes_the_first_of_equals_and_the_penalty_moves_it() {
        let mut sampler = Sampler::new(SamplingConfig {
            repetition_penalty: 2.0,
            ..SamplingConfig::greedy()
        })
        .unwrap();
        assert_eq!(sampler.next(&mut [1.0, 2.0, 2.0], &[]), 1);
        assert_eq!(sampler.next(&mut [1.5, 2.0, 1.0], &[1, 1]), 0);
        // A negative logit becomes more negative.
        assert_eq!(sampler.next(&mut [-1.0, -1.5], &[0]), 1);
    }

    #[test]
    fn useless_logits_give_a_token_and_useless_settings_an_error() {
        let mut sampler = Sampler::new(SamplingConfig::default()).unwrap();
        assert_eq!(sampler.next(&mut [f32::NAN; 3], &[]), 0);
        assert_eq!(
            sampler.next(&mut [f32::NAN, 1.0, f32::NEG_INFINITY], &[]),
            1
        );
        for bad in [
            SamplingConfig {
                temperature: -1.0,
                ..Default::default()
            },
            SamplingConfig {
                top_p: 0.0,
                ..Default::default()
            },
            SamplingConfig {
                min_p: f32::NAN,
                ..Default::default()
            },
            SamplingConfig {
                repetition_penalty: 0.0,
                ..Default::default()
            },
        ] {
            assert!(Sampler::new(bad).is_err());
        }
    }
}

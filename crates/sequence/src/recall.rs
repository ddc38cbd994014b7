//! Made-up texts that can only be continued by looking back at what they said before.
//!
//! - [`MultiQueryRecall`]: pairs of keys and values, then some keys are asked for (S. Arora et
//!   al., 2023, Zoology: Measuring and Improving Recall in Efficient Language Models),
//! - [`JointRecall`]: a key has another value in each of several contexts (Z. Zhan et al., 2025,
//!   Overcoming Long-Context Limitations of State-Space Models via Context-Dependent Sparse
//!   Attention).
//!
//! The drawing is that of the authors' programs; numbers are ours, by a seed.

use rand::rngs::StdRng;
use rand::seq::{SliceRandom, index};
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::SequenceError;

/// A text and what is asked of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RecallText {
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// Positions at which something is asked, and the token that is the answer.
    pub asked: Vec<(u32, u32)>,
    /// Where the answer to each of these was told; empty where that is not known.
    pub told: Vec<u32>,
}

/// Values of keys in contexts: `begin`, for each context its name and then keys with their values,
/// `separator`, and all once more in another order, where values are asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JointRecall {
    /// Fewest contexts, and fewest keys of each.
    pub least: usize,
    /// Most contexts.
    pub max_n_context: usize,
    /// Most keys of a context.
    pub max_n_key: usize,
    /// Different values.
    pub n_value: usize,
}

impl Default for JointRecall {
    fn default() -> Self {
        Self {
            least: 5,
            max_n_context: 16,
            max_n_key: 16,
            n_value: 16,
        }
    }
}

/// Tokens before the first value.
const BEFORE_VALUES: u32 = 10;
const BEGIN: u32 = 1;
const SEPARATOR: u32 = 4;

impl JointRecall {
    /// # Errors
    /// When there is nothing to recall.
    pub fn check(&self) -> Result<(), SequenceError> {
        if self.least == 0 || self.least > self.max_n_context.min(self.max_n_key) {
            return Err(SequenceError::Refused(format!(
                "joint recall of {} to {} contexts and {} to {} keys: there must be at least one, and no more than the most",
                self.least, self.max_n_context, self.least, self.max_n_key
            )));
        }
        if self.n_value == 0 {
            return Err(SequenceError::Refused("joint recall needs a value".into()));
        }
        Ok(())
    }

    /// One more than the largest token.
    pub fn tokens(&self) -> usize {
        BEFORE_VALUES as usize + self.n_value + self.max_n_key + self.max_n_context
    }

    /// Length of the longest text.
    pub fn longest(&self) -> usize {
        2 * self.max_n_context * (2 * self.max_n_key + 1) + 2
    }

    /// The text of a seed, with any number of contexts and keys.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn text(&self, seed: u64) -> Result<RecallText, SequenceError> {
        self.check()?;
        let mut rng = StdRng::seed_from_u64(seed);
        let contexts = rng.random_range(self.least..=self.max_n_context);
        let keys = rng.random_range(self.least..=self.max_n_key);
        Ok(self.sized(contexts, keys, &mut rng))
    }

    fn sized(&self, contexts: usize, keys: usize, rng: &mut StdRng) -> RecallText {
        let values: Vec<u32> = (0..contexts * keys)
            .map(|_| rng.random_range(0..self.n_value as u32))
            .collect();
        let key_token = |key: usize| BEFORE_VALUES + (self.n_value + key) as u32;
        let context_token = |c: usize| BEFORE_VALUES + (self.n_value + self.max_n_key + c) as u32;
        let mut text = RecallText {
            tokens: vec![BEGIN],
            ..RecallText::default()
        };
        let mut told = vec![0; values.len()];
        for half in 0..2 {
            for context in permutation(contexts, rng) {
                text.tokens.push(context_token(context));
                for key in permutation(keys, rng) {
                    let pair = context * keys + key;
                    let value = BEFORE_VALUES + values[pair];
                    let at = text.tokens.len() as u32;
                    if half == 0 {
                        told[pair] = at + 1;
                    } else {
                        text.asked.push((at, value));
                        text.told.push(told[pair]);
                    }
                    text.tokens.extend([key_token(key), value]);
                }
            }
            if half == 0 {
                text.tokens.push(SEPARATOR);
            }
        }
        text
    }
}

fn permutation(count: usize, rng: &mut StdRng) -> Vec<usize> {
    let mut all: Vec<usize> = (0..count).collect();
    all.shuffle(rng);
    all
}

/// Pairs of keys and values, then the keys once more, each some way behind, where the value is
/// asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MultiQueryRecall {
    /// Tokens: keys are below the half (0 stands for nothing), values above.
    pub vocab_size: usize,
    /// Length of a text.
    pub input_seq_len: usize,
    /// Pairs.
    pub num_kv_pairs: usize,
    /// How far behind keys are asked for: gaps `r` are drawn with weights `r^(power_a - 1)`.
    pub power_a: f64,
    /// Whether tokens between questions are any tokens, or 0.
    pub random_non_queries: bool,
}

impl Default for MultiQueryRecall {
    fn default() -> Self {
        Self {
            vocab_size: 256,
            input_seq_len: 64,
            num_kv_pairs: 4,
            power_a: 0.01,
            random_non_queries: true,
        }
    }
}

impl MultiQueryRecall {
    /// # Errors
    /// When a text has no room for the pairs and questions, there are too few tokens, or `power_a`
    /// is not above 0.
    pub fn check(&self) -> Result<(), SequenceError> {
        let pairs = self.num_kv_pairs;
        if pairs == 0 || self.input_seq_len < 4 * pairs || !self.input_seq_len.is_multiple_of(2) {
            return Err(SequenceError::Refused(format!(
                "{pairs} pairs (num_kv_pairs) and their questions need texts of an even length of at least {}; input_seq_len is {}",
                4 * pairs.max(1),
                self.input_seq_len
            )));
        }
        if self.vocab_size / 2 < pairs + 1 || self.vocab_size <= self.input_seq_len {
            return Err(SequenceError::Refused(format!(
                "vocab_size {} is too small for {pairs} keys and texts of {} tokens",
                self.vocab_size, self.input_seq_len
            )));
        }
        // Weights of 0 would put two questions in one place.
        if !(self.power_a > 0.0 && self.power_a.is_finite()) {
            return Err(SequenceError::Refused(format!(
                "power_a is {}; it must be a number above 0",
                self.power_a
            )));
        }
        Ok(())
    }

    /// The text of a seed.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn text(&self, seed: u64) -> Result<RecallText, SequenceError> {
        self.check()?;
        let mut rng = StdRng::seed_from_u64(seed);
        let half = self.vocab_size / 2;
        let pairs = self.num_kv_pairs;
        let keys = index::sample(&mut rng, half - 1, pairs).into_iter();
        let keys: Vec<u32> = keys.map(|i| 1 + i as u32).collect();
        let values = index::sample(&mut rng, self.vocab_size - half, pairs).into_iter();
        let values: Vec<u32> = values.map(|i| (half + i) as u32).collect();
        let mut tokens: Vec<u32> = keys
            .iter()
            .zip(&values)
            .flat_map(|(&k, &v)| [k, v])
            .collect();
        let context = tokens.len();
        tokens.resize(self.input_seq_len, 0);
        let mut questions = Vec::with_capacity(pairs);
        let space = (self.input_seq_len - context) / 2;
        let pairs = keys.iter().zip(&values);
        for (pair, (gap, (&key, &value))) in self
            .gaps(space, &mut rng)
            .into_iter()
            .zip(pairs)
            .enumerate()
        {
            let at = context + 2 * gap;
            tokens[at] = key;
            questions.push((at as u32, value, 2 * pair as u32 + 1));
        }
        if self.random_non_queries {
            for token in tokens.iter_mut().filter(|t| **t == 0) {
                *token = rng.random_range(0..self.vocab_size as u32);
            }
        }
        questions.sort_unstable();
        Ok(RecallText {
            tokens,
            asked: questions
                .iter()
                .map(|&(at, value, _)| (at, value))
                .collect(),
            told: questions.iter().map(|&(.., told)| told).collect(),
        })
    }

    /// Different numbers below `space`, the smaller the likelier.
    fn gaps(&self, space: usize, rng: &mut StdRng) -> Vec<usize> {
        let mut weights: Vec<f64> = (1..=space)
            .map(|r| (r as f64).powf(self.power_a - 1.0))
            .collect();
        let draw = |_| {
            let mut left = rng.random::<f64>() * weights.iter().sum::<f64>();
            let mut found = weights.iter().rposition(|w| *w > 0.0).unwrap_or(0);
            for (i, weight) in weights.iter().enumerate() {
                if *weight > 0.0 && left < *weight {
                    found = i;
                    break;
                }
                left -= weight;
            }
            weights[found] = 0.0;
            found
        };
        (0..self.num_kv_pairs).map(draw).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{HashMap, HashSet};

    #[test]
    fn joint_recall_asks_for_what_a_context_said_of_a_key() {
        let task = JointRecall {
            least: 2,
            max_n_context: 4,
            max_n_key: 5,
            n_value: 7,
        };
        let mut sizes = HashSet::new();
        for seed in 0..60 {
            let text = task.text(seed).unwrap();
            assert!(text.tokens.len() <= task.longest());
            assert!(text.tokens.iter().all(|&t| (t as usize) < task.tokens()));
            let middle = text.tokens.iter().position(|&t| t == SEPARATOR).unwrap();
            assert_eq!(text.tokens.len(), 2 * middle);
            let (mut said, mut context) = (HashMap::new(), 0);
            let names = BEFORE_VALUES + 12;
            for at in 1..text.tokens.len() - 1 {
                let (token, next) = (text.tokens[at], text.tokens[at + 1]);
                if token >= names {
                    context = token;
                } else if token >= BEFORE_VALUES + 7 {
                    if at < middle {
                        said.insert((context, token), next);
                    } else {
                        assert!(text.asked.contains(&(at as u32, next)));
                        assert_eq!(said[&(context, token)], next);
                    }
                }
            }
            assert_eq!(text.asked.len(), said.len());
            assert_told(&text, |at| {
                let names = text.tokens[..at].iter().rev();
                *names.clone().find(|&&t| t >= BEFORE_VALUES + 12).unwrap()
            });
            sizes.insert(text.tokens.len());
        }
        assert!(sizes.len() > 5, "{sizes:?}");
        assert_eq!(task.text(3).unwrap(), task.text(3).unwrap());
    }

    /// Each answer was told behind its key, in a place that is alike by `context`.
    fn assert_told(text: &RecallText, context: impl Fn(usize) -> u32) {
        assert_eq!(text.told.len(), text.asked.len());
        for (&(at, answer), &told) in text.asked.iter().zip(&text.told) {
            let (at, told) = (at as usize, told as usize);
            assert!(told < at);
            assert_eq!(text.tokens[told], answer);
            assert_eq!(text.tokens[told - 1], text.tokens[at]);
            assert_eq!(context(told), context(at));
        }
    }

    #[test]
    fn multi_query_recall_asks_for_each_key_once() {
        let task = MultiQueryRecall::default();
        let mut near = 0;
        for seed in 0..200 {
            let text = task.text(seed).unwrap();
            assert_eq!((text.tokens.len(), text.asked.len()), (64, 4));
            let said: HashMap<u32, u32> =
                text.tokens[..8].chunks(2).map(|p| (p[0], p[1])).collect();
            assert_eq!(said.len(), 4);
            assert_told(&text, |_| 0);
            for &(at, answer) in &text.asked {
                assert!(at >= 8 && at.is_multiple_of(2));
                assert_eq!(said[&text.tokens[at as usize]], answer);
                assert!((128..256).contains(&answer));
                near += usize::from(at < 8 + 14);
            }
        }
        // A power law: the first quarter of the places has more than half of the questions.
        assert!((400..640).contains(&near), "{near}");
        let quiet = MultiQueryRecall {
            random_non_queries: false,
            ..task
        };
        let text = quiet.text(1).unwrap();
        assert_eq!(text.tokens.iter().filter(|&&t| t != 0).count(), 12);
    }

    #[test]
    fn tasks_without_room_are_refused() {
        let crowded = MultiQueryRecall {
            num_kv_pairs: 17,
            ..MultiQueryRecall::default()
        };
        assert!(
            crowded
                .text(0)
                .unwrap_err()
                .to_string()
                .contains("17 pairs")
        );
        let steep = MultiQueryRecall {
            power_a: -3000.0,
            ..MultiQueryRecall::default()
        };
        assert!(steep.text(0).unwrap_err().to_string().contains("power_a"));
        let empty = JointRecall {
            least: 5,
            max_n_context: 4,
            ..JointRecall::default()
        };
        assert!(empty.text(0).is_err());
    }
}

//! Records in text, one of which is asked for.

use keyfold_core::NoProgress;
use keyfold_lm::Policy;
use keyfold_lm::decoding::argmax;
use rand::Rng;
use rand::rngs::StdRng;

use super::{Model, failed};
use crate::BenchError;

/// Records as text with a question after them.
pub(super) struct Records {
    pub(super) prompt: Vec<u32>,
    pub(super) question: usize,
    value: Vec<u32>,
}

const NAMES: [&str; 16] = [
    "river", "stone", "garden", "window", "candle", "market", "harbor", "forest", "winter",
    "silver", "bridge", "castle", "island", "meadow", "rocket", "thunder",
];

impl Records {
    pub(super) fn new(
        model: &Model,
        length: usize,
        depth: f64,
        rng: &mut StdRng,
    ) -> Result<Self, BenchError> {
        let line = |rng: &mut StdRng, i: usize| {
            let of = |rng: &mut StdRng| NAMES[rng.random_range(0..NAMES.len())];
            let key = format!("{}-{}-{i}", of(rng), of(rng));
            (key, rng.random_range(1000..10_000u32).to_string())
        };
        let intro = model.encode("Here are the codes of all doors.\n")?;
        let mut prompt = [model.prefix(), intro].concat();
        let mut all = Vec::new();
        let room = 24;
        while prompt.len() + room < length {
            let (key, code) = line(rng, all.len());
            prompt.extend(model.encode(&format!("The code of door {key} is {code}.\n"))?);
            all.push((key, code));
        }
        let at = ((all.len() as f64 * depth) as usize).min(all.len().saturating_sub(1));
        let (key, code) = &all[at];
        let question = model.encode(&format!("\nThe code of door {key} is"))?;
        // The value as it follows the question, and as it stands in the record.
        let both = model.encode(&format!("\nThe code of door {key} is {code}"))?;
        let value = both
            .get(question.len()..)
            .map_or(Vec::new(), <[u32]>::to_vec);
        prompt.extend(&question);
        Ok(Self {
            prompt,
            question: question.len(),
            value,
        })
    }

    /// Whether every token of the value is the likeliest, after the prompt's tokens from `from` on.
    pub(super) fn answered(
        &self,
        model: &Model,
        policy: Policy,
        from: usize,
    ) -> Result<bool, BenchError> {
        let mut session = model.session(policy);
        session
            .prefill(&self.prompt[from..], &NoProgress)
            .map_err(failed(&model.name))?;
        for (i, &token) in self.value.iter().enumerate() {
            if argmax(session.logits()) != token {
                return Ok(false);
            }
            if i + 1 < self.value.len() {
                session.step(token).map_err(failed(&model.name))?;
            }
        }
        Ok(true)
    }
}

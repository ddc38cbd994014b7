//! Contrastive search: likely tokens that do not repeat what was said.
//!
//! Y. Su and N. Collier, 2023, *Contrastive Search Is What You Need For Neural Text
//! Generation* (TMLR). Of the `k` likeliest tokens it takes the one with the highest
//!
//! ```text
//! (1 - alpha) * p(v)  -  alpha * max over j < t of cos(h_v, h_j)
//! ```
//!
//! where `p` is the probability among the whole vocabulary, `h_v` the last hidden state
//! (after the final norm) that the model has on reading `v`, and `h_j` those of all
//! positions before, prompt included. It is deterministic; `k = 1` or `alpha = 0` is greedy.
//!
//! Cost of a token: one forward pass of `k` rows over one shared cache, and `k` products
//! with the hidden states so far, `S * D` numbers, kept at length one in 16 bits.

use super::{DecodingError, argmax};
use half::f16;
use serde::{Deserialize, Serialize};

/// Settings under the authors' names; the defaults are theirs for open-ended English text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ContrastiveConfig {
    /// How many candidates.
    pub k: usize,
    /// Weight of the penalty, 0 to 1.
    pub alpha: f32,
}

impl Default for ContrastiveConfig {
    fn default() -> Self {
        Self { k: 5, alpha: 0.6 }
    }
}

impl ContrastiveConfig {
    /// Whether the settings fit a vocabulary.
    ///
    /// # Errors
    /// Names the setting that is out of its range.
    pub fn validate(&self, vocab: usize) -> Result<(), DecodingError> {
        if self.k == 0 || self.k > vocab {
            let value = self.k.to_string();
            let range = "at least 1 and at most the size of the vocabulary";
            return Err(DecodingError::Setting {
                name: "k",
                value,
                range,
            });
        }
        if !(0.0..=1.0).contains(&self.alpha) {
            let value = self.alpha.to_string();
            return Err(DecodingError::Setting {
                name: "alpha",
                value,
                range: "from 0 to 1",
            });
        }
        Ok(())
    }
}

/// Which candidate was picked, and why.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Pick {
    /// Its place among the candidates (0 is the likeliest).
    pub candidate: usize,
    /// Its probability.
    pub probability: f32,
    /// Its greatest cosine with a hidden state before it.
    pub penalty: f32,
    /// What decided.
    pub score: f32,
    /// The place of the second best, where there is one.
    pub runner_up: Option<usize>,
}

/// Hidden states of a text, and the choice among candidates.
#[derive(Debug)]
pub struct ContrastiveSearch {
    config: ContrastiveConfig,
    hidden: usize,
    /// `[S, hidden]`, each of length one.
    history: Vec<f16>,
    candidates: Vec<(u32, f32)>,
    /// A hidden state at length one.
    unit: Vec<f32>,
}

impl ContrastiveSearch {
    /// For hidden states of `hidden` numbers.
    pub fn new(config: ContrastiveConfig, hidden: usize) -> Self {
        let (history, candidates, unit) = (Vec::new(), Vec::new(), Vec::new());
        Self {
            config,
            hidden,
            history,
            candidates,
            unit,
        }
    }

    /// Hidden states `[n, hidden]` of tokens that now stand in the text.
    pub fn push(&mut self, hidden: &[f32]) {
        for row in hidden.chunks_exact(self.hidden) {
            self.set_unit(row);
            self.history
                .extend(self.unit.iter().map(|&x| f16::from_f32(x)));
        }
    }

    /// The `k` likeliest tokens, likeliest first, with their probabilities.
    pub fn candidates(&mut self, logits: &[f32]) -> &[(u32, f32)] {
        let highest = logits[argmax(logits) as usize];
        let total: f64 = logits
            .iter()
            .map(|&l| f64::from((l - highest).exp()))
            .filter(|p| !p.is_nan())
            .sum();
        let likelier = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        self.candidates.clear();
        // NaN would sort before everything.
        self.candidates.extend(
            logits
                .iter()
                .enumerate()
                .filter(|(_, l)| !l.is_nan())
                .map(|(t, &l)| (t as u32, l)),
        );
        let k = self.config.k.min(self.candidates.len());
        if k > 0 && k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(k - 1, likelier);
        }
        self.candidates.truncate(k);
        self.candidates.sort_unstable_by(likelier);
        for c in &mut self.candidates {
            c.1 = (f64::from((c.1 - highest).exp()) / total) as f32;
        }
        &self.candidates
    }

    /// Picks among the last [`candidates`](Self::candidates), given the hidden states
    /// `[k, hidden]` that the model has on reading each. The picked one's hidden state
    /// is added to the text.
    pub fn pick(&mut self, hidden: &[f32]) -> Pick {
        let alpha = self.config.alpha;
        let mut best: Option<Pick> = None;
        let mut second: Option<Pick> = None;
        for (candidate, row) in hidden.chunks_exact(self.hidden).enumerate() {
            let Some(&(_, probability)) = self.candidates.get(candidate) else {
                break;
            };
            let penalty = self.greatest_cosine(row);
            let score = (1.0 - alpha) * probability - alpha * penalty;
            let pick = Pick {
                candidate,
                probability,
                penalty,
                score,
                runner_up: None,
            };
            // Of equals the likelier stays.
            if best.is_none_or(|b| score > b.score) {
                second = best.replace(pick);
            } else if second.is_none_or(|s| score > s.score) {
                second = Some(pick);
            }
        }
        let mut pick = best.unwrap_or(Pick {
            candidate: 0,
            probability: 0.0,
            penalty: 0.0,
            score: 0.0,
            runner_up: None,
        });
        pick.runner_up = second.map(|s| s.candidate);
        if let Some(row) = hidden.chunks_exact(self.hidden).nth(pick.candidate) {
            self.push(row);
        }
        pick
    }

    /// Greatest cosine of a hidden state with those of the text; 0 where there is no text.
    fn greatest_cosine(&mut self, row: &[f32]) -> f32 {
        self.set_unit(row);
        let cosine =
            |h: &[f16]| -> f32 { h.iter().zip(&self.unit).map(|(h, u)| h.to_f32() * u).sum() };
        let greatest = self
            .history
            .chunks_exact(self.hidden)
            .map(cosine)
            .fold(f32::NEG_INFINITY, f32::max);
        if greatest.is_finite() { greatest } else { 0.0 }
    }

    /// Sets `unit` to `row` at length one.
    fn set_unit(&mut self, row: &[f32]) {
        let norm = keyfold_kernels::norm(row).max(f32::MIN_POSITIVE);
        self.unit.clear();
        self.unit.extend(row.iter().map(|x| x / norm));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_is_penalised() {
        let config = ContrastiveConfig { k: 2, alpha: 0.6 };
        let mut search = ContrastiveSearch::new(config, 2);
        search.push(&[2.0, 0.0]);
        let logits: Vec<f32> = [0.7f32, 0.25, 0.05].iter().map(|p| p.ln()).collect();
        let candidates: Vec<u32> = search.candidates(&logits).iter().map(|c| c.0).collect();
        assert_eq!(candidates, [0, 1]);
        // The likelier candidate says the same again, the other something new.
        let pick = search.pick(&[3.0, 0.0, 0.0, 1.0]);
        assert_eq!((pick.candidate, pick.runner_up), (1, Some(0)));
        assert!((pick.score - 0.4 * 0.25).abs() < 1e-3, "{pick:?}");
        // Now both directions were said: the likelier one wins.
        search.candidates(&logits);
        let pick = search.pick(&[3.0, 0.0, 0.0, 1.0]);
        assert_eq!(pick.candidate, 0);
        assert!((pick.penalty - 1.0).abs() < 1e-3);
    }

    #[test]
    fn probabilities_are_of_the_whole_vocabulary_and_nan_is_no_candidate() {
        let mut search = ContrastiveSearch::new(ContrastiveConfig { k: 2, alpha: 0.0 }, 1);
        let found = search.candidates(&[0.0, f32::NAN, 0.0, 0.0]).to_vec();
        assert_eq!(found.iter().map(|c| c.0).collect::<Vec<_>>(), [0, 2]);
        assert!(found.iter().all(|c| (c.1 - 1.0 / 3.0).abs() < 1e-6));
        assert_eq!(search.pick(&[1.0, 1.0]).candidate, 0);
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let of = |k, alpha| ContrastiveConfig { k, alpha }.validate(10);
        assert!(of(5, 0.6).is_ok() && of(1, 0.0).is_ok() && of(10, 1.0).is_ok());
        for bad in [
            of(0, 0.5),
            of(11, 0.5),
            of(5, -0.1),
            of(5, 1.1),
            of(5, f32::NAN),
        ] {
            assert!(bad.is_err());
        }
    }
}

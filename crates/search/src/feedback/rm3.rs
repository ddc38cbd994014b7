//! RM3: a query of words is mixed with the words of the passages that it found.
//!
//! Source: Abdul-Jaleel et al., UMass at TREC 2004; as Anserini does it. With `f`
//! the passages found, each with its BM25 score `s`, and `tf` the number of times
//! a passage has a word:
//!
//! ```text
//! p(t) = sum over f of s_f tf(t, f) / sum_t tf(t, f),   the `terms` greatest, scaled to sum 1
//! q'(t) = w q(t) + (1 - w) p(t),                        q scaled to sum 1
//! ```
//!
//! Words count as feedback if they have 2 to 20 characters, all of them letters
//! a to z or digits, and stand in at most a tenth of the passages; of each passage
//! the `terms` most frequent ones. Cost: a second search of up to `terms` more
//! words, and reading `passages` texts.

use std::collections::BTreeMap;

use crate::error::SearchError;
use crate::fuse::Ranked;
use crate::lexical::Words;
use crate::store::Snapshot;

/// Words in more than this share of the passages say nothing of a topic.
const COMMON: f64 = 0.1;
/// A passage with less than this is left out.
const LEAST_NORM: f32 = 0.001;

/// How words are added. The default is Anserini's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rm3 {
    /// How many words are added, from 1.
    pub terms: usize,
    /// From how many passages, from 1.
    pub passages: usize,
    /// What the words of the query keep, from 0 to 1.
    pub weight: f32,
}

impl Default for Rm3 {
    fn default() -> Self {
        Self {
            terms: 10,
            passages: 10,
            weight: 0.5,
        }
    }
}

/// A passage that feedback learns from.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// How often it has each word that may count.
    pub words: BTreeMap<String, f32>,
    /// How well it fits the query.
    pub score: f32,
}

impl Rm3 {
    /// The words of the new query with their weights, ascending. `query` has the
    /// words of the old one with how often it has them.
    pub fn expand(&self, query: &[(&str, f32)], found: &[Found]) -> Vec<(String, f32)> {
        let mut model = self.relevance_model(found);
        model.values_mut().for_each(|p| *p *= 1.0 - self.weight);
        let total: f32 = query.iter().map(|(_, count)| count).sum();
        for &(word, count) in query {
            *model.entry(word.to_owned()).or_default() += self.weight * count / total;
        }
        model.into_iter().collect()
    }

    /// What words the found passages share, summing to 1.
    fn relevance_model(&self, found: &[Found]) -> BTreeMap<String, f32> {
        let mut model: BTreeMap<String, f32> = BTreeMap::new();
        for passage in found.iter().take(self.passages) {
            let words = greatest(&passage.words, self.terms);
            let norm: f32 = words.iter().map(|(_, tf)| tf).sum();
            if norm > LEAST_NORM {
                for (word, tf) in words {
                    *model.entry(word).or_default() += tf / norm * passage.score;
                }
            }
        }
        let kept = greatest(&model, self.terms);
        let norm: f32 = kept.iter().map(|(_, p)| p.abs()).sum();
        let scaled = |(word, p): (String, f32)| (word, if norm > 0.0 { p / norm } else { 0.0 });
        kept.into_iter().map(scaled).collect()
    }

    /// The new query for words that found `ranked`.
    pub(crate) fn learn(
        &self,
        snapshot: &Snapshot,
        words: &Words<'_>,
        ranked: &[Ranked],
    ) -> Result<Vec<(String, f32)>, SearchError> {
        let mut found = Vec::new();
        let mut rare: BTreeMap<String, bool> = BTreeMap::new();
        for ranked in ranked.iter().take(self.passages) {
            let Some(stored) = snapshot.passage(ranked.passage)? else {
                continue;
            };
            let mut usable = BTreeMap::new();
            for (word, count) in words.frequencies(&stored.passage) {
                if !is_plain(&word) {
                    continue;
                }
                let known = rare.get(&word).copied();
                let rare_enough = match known {
                    Some(known) => known,
                    None => words.share(&word)? <= COMMON,
                };
                rare.insert(word.clone(), rare_enough);
                if rare_enough {
                    usable.insert(word, count as f32);
                }
            }
            found.push(Found {
                words: usable,
                score: ranked.score,
            });
        }
        let query = words.weights();
        let query: Vec<(&str, f32)> = query.iter().map(|(w, x)| (&**w, *x)).collect();
        Ok(self.expand(&query, &found))
    }
}

/// The `n` greatest; among equals the first by name.
fn greatest(weights: &BTreeMap<String, f32>, n: usize) -> Vec<(String, f32)> {
    let mut all: Vec<(String, f32)> = weights.iter().map(|(w, &x)| (w.clone(), x)).collect();
    // Stable, so that names stay in order among equals.
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    all.truncate(n);
    all
}

fn is_plain(word: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    (2..=20).contains(&word.len()) && word.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(words: &[(&str, f32)], score: f32) -> Found {
        Found {
            words: words.iter().map(|&(w, n)| (w.to_owned(), n)).collect(),
            score,
        }
    }

    #[test]
    fn words_of_good_passages_are_added() {
        let rm3 = Rm3 {
            terms: 2,
            passages: 2,
            weight: 0.5,
        };
        let passages = [
            found(&[("boat", 3.0), ("wind", 1.0), ("zebra", 0.5)], 2.0),
            found(&[("wind", 1.0), ("sail", 1.0)], 1.0),
            found(&[("never", 9.0)], 9.0),
        ];
        // boat 2 * 3/4 = 1.5; wind 2 * 1/4 + 1 * 1/2 = 1; sail 0.5 is cut off, and
        // so is zebra of the first passage.
        let expected = [("boat", 0.3), ("storm", 0.25), ("wind", 0.25 + 0.2)];
        let new = rm3.expand(&[("storm", 1.0), ("wind", 1.0)], &passages);
        assert_eq!(new.len(), expected.len());
        for ((word, weight), (w, x)) in new.iter().zip(expected) {
            assert!(word == w && (weight - x).abs() < 1e-6, "{new:?}");
        }
    }

    #[test]
    fn nothing_found_leaves_the_query() {
        let rm3 = Rm3::default();
        for passages in [&[][..], &[found(&[], 3.0)]] {
            let new = rm3.expand(&[("storm", 2.0)], passages);
            assert_eq!(new, [("storm".to_owned(), 0.5)]);
        }
        assert!(
            is_plain("word2") && !is_plain("a") && !is_plain("snake_case") && !is_plain("東京")
        );
    }
}

//! Documents, queries and what belongs together.

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use super::super::search;
use crate::quality::Relevant;
use crate::{BenchError, BenchOptions, Scale};

/// A collection with judgements.
pub(super) struct Collection {
    pub(super) documents: Vec<String>,
    pub(super) queries: Vec<String>,
    pub(super) relevant: Vec<Relevant>,
    /// What it is, for the title.
    pub(super) about: &'static str,
}

/// How large a made-up collection is.
struct Sizes {
    topics: usize,
    documents: usize,
    queries: usize,
    words: usize,
}

impl Collection {
    /// The user's, or a made-up one.
    pub(super) fn read(options: &BenchOptions) -> Result<Self, BenchError> {
        if let Some(folder) = &options.data {
            let given = search::read(folder)?;
            let joined = given.documents.iter();
            return Ok(Self {
                documents: joined
                    .map(|d| format!("{}\n{}", d.heading, d.body))
                    .collect(),
                queries: given.queries,
                relevant: given.relevant,
                about: "judged queries",
            });
        }
        let sizes = match options.scale {
            Scale::Smoke => Sizes {
                topics: 8,
                documents: 160,
                queries: 40,
                words: 30,
            },
            _ => Sizes {
                topics: 40,
                documents: 3000,
                queries: 400,
                words: 60,
            },
        };
        Ok(made_up(&sizes, options.seed))
    }
}

/// Every document is about a topic, a little about another, and the rest are words that
/// stand anywhere. A query is a further document; those of its topic belong to it.
fn made_up(sizes: &Sizes, seed: u64) -> Collection {
    let mut rng = StdRng::seed_from_u64(seed ^ 0x70f1);
    let vocabulary = 30 * sizes.topics;
    let words: Vec<Vec<usize>> = (0..sizes.topics)
        .map(|_| {
            let mut all: Vec<usize> = (0..vocabulary).collect();
            all.shuffle(&mut rng);
            all.truncate(60);
            all
        })
        .collect();
    let mut text = |topic: usize| {
        let other = rng.random_range(0..sizes.topics);
        let word = |_| match rng.random_range(0..10) {
            0..4 => word(words[topic][skewed(60, &mut rng)]),
            4..6 => word(words[other][skewed(60, &mut rng)]),
            _ => word(vocabulary + skewed(200, &mut rng)),
        };
        let words: Vec<String> = (0..sizes.words).map(word).collect();
        words.join(" ")
    };
    let topic = |i: usize| i % sizes.topics;
    let documents = (0..sizes.documents).map(|i| text(topic(i))).collect();
    let queries = (0..sizes.queries).map(|i| text(topic(i))).collect();
    let same = |i: usize| (0..sizes.documents).filter(move |d| topic(*d) == topic(i));
    let relevant = (0..sizes.queries).map(|i| same(i).map(|d| (d, 1.0)).collect());
    Collection {
        documents,
        queries,
        relevant: relevant.collect(),
        about: "made-up documents of topics",
    }
}

/// A place below `n`, the first more often.
fn skewed(n: usize, rng: &mut StdRng) -> usize {
    let x: f64 = rng.random();
    (x * x * n as f64) as usize
}

/// A word for a number, of letters alone.
fn word(number: usize) -> String {
    let letter = |n: usize| char::from(b'a' + (n % 26) as u8);
    [number / 676, number / 26, number]
        .map(letter)
        .iter()
        .collect()
}

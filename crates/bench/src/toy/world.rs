//! A collection as the toy encoder sees it.

use std::borrow::Cow;

use keyfold_core::Role;
use keyfold_kernels::{MaxSim, top_k};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::index;

use super::{Lexicon, Pair, Text, Tower, encode, in_parallel};
use crate::store;

/// Shorter sentences say too little to be a query.
const SHORTEST_SENTENCE: usize = 5;

/// Texts to train on and to search.
pub(crate) struct World {
    /// Features of the words of titles and texts.
    pub(crate) lexicon: Lexicon,
    /// The texts that are found, without their titles.
    pub(crate) documents: Vec<Text>,
    /// What is searched for.
    pub(crate) queries: Vec<Text>,
    /// Documents with their titles and their sentences, for training.
    sources: Vec<Source>,
}

struct Source {
    document: usize,
    title: String,
    sentences: Vec<String>,
}

impl World {
    /// Learns the words of `documents` and reads all texts.
    pub(crate) fn new(documents: &[store::Text], queries: &[String], seed: u64) -> Self {
        let texts: Vec<&str> = documents
            .iter()
            .flat_map(|d| [d.heading.as_str(), d.body.as_str()])
            .collect();
        let lexicon = Lexicon::learn(&texts, seed);
        let source = |(document, d): (usize, &store::Text)| {
            let words = |s: &str| s.split_whitespace().count();
            let sentences = d.body.split(['.', '!', '?']);
            Source {
                document,
                title: d.heading.clone(),
                sentences: sentences
                    .filter(|s| words(s) >= SHORTEST_SENTENCE)
                    .map(str::to_owned)
                    .collect(),
            }
        };
        Self {
            documents: documents.iter().map(|d| lexicon.read(&d.body)).collect(),
            queries: queries.iter().map(|q| lexicon.read(q)).collect(),
            sources: documents
                .iter()
                .enumerate()
                .map(source)
                .filter(|s| !s.title.is_empty() && !s.sentences.is_empty())
                .collect(),
            lexicon,
        }
    }

    /// Pairs of different documents: of each, by chance, its title or one of its
    /// sentences, and its text. As many as there are, `size` at most.
    pub(crate) fn batch(&self, size: usize, rng: &mut StdRng) -> Vec<Pair<'_>> {
        let count = size.min(self.sources.len());
        let chosen = index::sample(rng, self.sources.len(), count);
        chosen
            .into_iter()
            .map(|i| {
                let source = &self.sources[i];
                let query = if rng.random() {
                    &source.title
                } else {
                    &source.sentences[rng.random_range(0..source.sentences.len())]
                };
                let query = Cow::Owned(self.lexicon.read(query));
                (query, &self.documents[source.document])
            })
            .collect()
    }

    /// For every query the `k` documents of the greatest Chamfer similarity, best
    /// first, and the mean number of rows of a document and of a query.
    pub(crate) fn rank<T: Tower>(&self, tower: &T, k: usize, threads: usize) -> Ranked {
        let documents = encode(tower, &self.documents, Role::Document, threads);
        let queries = encode(tower, &self.queries, Role::Query, threads);
        let lists = in_parallel(&queries, threads, |query| {
            let mut scorer = MaxSim::new(query, tower.dim());
            let scores: Vec<f32> = documents.iter().map(|d| scorer.score(d)).collect();
            let best = top_k(&scores, k);
            best.into_iter().map(|(_, i)| i as usize).collect()
        });
        let rows = |texts: &[Vec<f32>]| {
            let all: usize = texts.iter().map(|t| t.len() / tower.dim()).sum();
            all as f64 / texts.len().max(1) as f64
        };
        Ranked {
            document_rows: rows(&documents),
            query_rows: rows(&queries),
            lists,
        }
    }
}

/// What [`World::rank`] gives.
pub(crate) struct Ranked {
    /// Places of documents for every query.
    pub(crate) lists: Vec<Vec<usize>>,
    /// Mean rows of a document.
    pub(crate) document_rows: f64,
    /// Mean rows of a query.
    pub(crate) query_rows: f64,
}

#[cfg(test)]
mod tests {
    use super::super::{TokenTower, TrainOptions, train};
    use super::*;
    use keyfold_core::NoProgress;
    use rand::SeedableRng;

    fn world() -> World {
        let topics = [
            "wing lift drag flow",
            "heat slab plate wall",
            "ship hull wave keel",
        ];
        let documents: Vec<store::Text> = (0..12)
            .map(|i| {
                let words: Vec<&str> = topics[i % 3].split(' ').collect();
                let (a, b) = (words[i / 3], words[(i / 3 + 1) % 4]);
                store::Text {
                    heading: format!("on the {a} and {b}"),
                    body: format!(
                        "we report tests of {a} in {}. more of the {b} is said.",
                        words[0]
                    ),
                }
            })
            .collect();
        World::new(&documents, &["tests of keel and ship".to_owned()], 1)
    }

    #[test]
    fn a_trained_tower_finds_documents() {
        let world = world();
        let mut rng = StdRng::seed_from_u64(2);
        let batch = world.batch(8, &mut rng);
        assert_eq!(batch.len(), 8);
        let mut tower = TokenTower::new(16, 1);
        let options = TrainOptions {
            steps: 40,
            rate: 1e-2,
            ..TrainOptions::default()
        };
        train(
            &mut tower,
            || world.batch(8, &mut rng),
            &options,
            &NoProgress,
        )
        .unwrap();
        let ranked = world.rank(&tower, 3, 1);
        assert_eq!(ranked.lists, world.rank(&tower, 3, 2).lists);
        assert!(
            ranked.lists[0].iter().all(|d| d % 3 == 2),
            "{:?}",
            ranked.lists
        );
        assert!(ranked.document_rows > 9.0 && ranked.query_rows == 5.0);
    }
}

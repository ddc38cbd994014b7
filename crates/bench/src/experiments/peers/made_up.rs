//! Token vectors that lie as those of real models do.
//!
//! ```text
//! token = unit(word + 0.55 context + 0.3 noise + 0.65 common)
//! ```
//!
//! `word` is one of 12,000, near one of 500 topics, drawn by Zipf's law from the
//! topics of the document or from everywhere; `context` is the document's own, near
//! its topics; `common` is in all tokens. Every part but `common` is drawn with
//! variances that fall as `i^-0.7`, and has length 1. How near tokens come to lie is
//! measured and reported beside a real model's.
//!
//! A query has 32 rows, as ColBERT's: words of a document in a context half its own,
//! with more noise.

use std::path::Path;

use keyfold_core::Progress;
use keyfold_kernels::normalize_rows;
use rand::distr::Distribution;
use rand::distr::weighted::WeightedIndex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rayon::prelude::*;

use super::vectors::ItemWriter;
use crate::BenchError;
use crate::random::normal;

/// Length of a vector, as ColBERT's.
pub(super) const DIM: usize = 128;
const WORDS: usize = 12_000;
const TOPICS: usize = 500;
/// Words of a document: uniform, 80 in the mean.
const LENGTH: std::ops::RangeInclusive<usize> = 40..=120;
const QUERY_ROWS: usize = 32;
/// Documents that are drawn at a time.
const BATCH: usize = 1024;

struct World {
    /// Standard deviations.
    scale: Vec<f32>,
    topics: Vec<Vec<f32>>,
    words: Vec<Vec<f32>>,
    common: Vec<f32>,
    /// The words of each topic.
    of_topic: Vec<Vec<usize>>,
    frequent: WeightedIndex<f64>,
    seed: u64,
}

/// What a document is about.
struct Content {
    context: Vec<f32>,
    words: Vec<usize>,
}

impl World {
    fn new(seed: u64) -> Result<Self, BenchError> {
        let mut rng = StdRng::seed_from_u64(seed);
        let scale: Vec<f32> = (1..=DIM).map(|i| (i as f32).powf(-0.35)).collect();
        let topics: Vec<Vec<f32>> = (0..TOPICS).map(|_| direction(&scale, &mut rng)).collect();
        let mut of_topic = vec![Vec::new(); TOPICS];
        let words = (0..WORDS)
            .map(|word| {
                let topic = rng.random_range(0..TOPICS);
                of_topic[topic].push(word);
                unit(&[(0.6, &topics[topic]), (0.8, &direction(&scale, &mut rng))])
            })
            .collect();
        let zipf = (0..WORDS).map(|rank| 1.0 / (rank as f64 + 2.7));
        Ok(Self {
            common: direction(&scale, &mut rng),
            frequent: WeightedIndex::new(zipf)
                .map_err(|e| BenchError::data("made-up words", e.to_string()))?,
            scale,
            topics,
            words,
            of_topic,
            seed,
        })
    }

    /// What document `number` is about; the same every time.
    fn content(&self, number: usize) -> (Content, StdRng) {
        let mut rng = StdRng::seed_from_u64(
            self.seed ^ (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15),
        );
        let topics = [rng.random_range(0..TOPICS), rng.random_range(0..TOPICS)];
        let context = unit(&[
            (0.8, &self.topics[topics[0]]),
            (0.4, &self.topics[topics[1]]),
            (0.5, &direction(&self.scale, &mut rng)),
        ]);
        let words = (0..rng.random_range(LENGTH))
            .map(|_| {
                let topic = &self.of_topic[topics[usize::from(rng.random_bool(0.3))]];
                if topic.is_empty() || rng.random_bool(0.4) {
                    return self.frequent.sample(&mut rng);
                }
                // Density falls as 1 / rank.
                let at = (topic.len() as f64).powf(rng.random::<f64>()) as usize - 1;
                topic[at.min(topic.len() - 1)]
            })
            .collect();
        (Content { context, words }, rng)
    }

    fn token(&self, word: usize, context: &[f32], noise: f32, rng: &mut StdRng) -> Vec<f32> {
        unit(&[
            (1.0, &self.words[word]),
            (0.55, context),
            (noise, &direction(&self.scale, rng)),
            (0.65, &self.common),
        ])
    }

    fn document(&self, number: usize) -> Vec<f32> {
        let (content, mut rng) = self.content(number);
        let tokens = content.words.iter();
        tokens
            .flat_map(|&word| self.token(word, &content.context, 0.3, &mut rng))
            .collect()
    }

    fn query(&self, documents: usize, rng: &mut StdRng) -> Vec<f32> {
        let (content, _) = self.content(rng.random_range(0..documents));
        let any = |rng: &mut StdRng| content.words[rng.random_range(0..content.words.len())];
        let context = unit(&[(0.7, &content.context), (0.7, &direction(&self.scale, rng))]);
        (0..QUERY_ROWS)
            .flat_map(|_| {
                let word = any(rng);
                self.token(word, &context, 0.5, rng)
            })
            .collect()
    }
}

/// Writes so many documents and queries.
pub(super) fn write(
    folder: &Path,
    documents: usize,
    queries: usize,
    seed: u64,
    progress: &dyn Progress,
) -> Result<(), BenchError> {
    let world = World::new(seed)?;
    let mut writer = ItemWriter::create(folder, "documents", DIM)?;
    progress.start("make vectors", "documents", Some(documents as u64));
    for first in (0..documents).step_by(BATCH) {
        if progress.cancelled() {
            return Err(BenchError::Cancelled);
        }
        let numbers = first..documents.min(first + BATCH);
        let items: Vec<Vec<f32>> = numbers.into_par_iter().map(|n| world.document(n)).collect();
        for item in &items {
            writer.item(item)?;
        }
        progress.advance(items.len() as u64);
    }
    writer.finish()?;
    progress.finish();
    let mut writer = ItemWriter::create(folder, "queries", DIM)?;
    let mut rng = StdRng::seed_from_u64(seed.wrapping_add(1));
    for _ in 0..queries {
        writer.item(&world.query(documents, &mut rng))?;
    }
    writer.finish()
}

/// A random direction.
fn direction(scale: &[f32], rng: &mut StdRng) -> Vec<f32> {
    let mut row: Vec<f32> = scale.iter().map(|s| s * normal(rng)).collect();
    normalize_rows(&mut row, DIM);
    row
}

/// The sum of weighted parts, at length 1.
fn unit(parts: &[(f32, &[f32])]) -> Vec<f32> {
    let mut row: Vec<f32> = (0..DIM)
        .map(|i| parts.iter().map(|(w, p)| w * p[i]).sum())
        .collect();
    normalize_rows(&mut row, DIM);
    row
}

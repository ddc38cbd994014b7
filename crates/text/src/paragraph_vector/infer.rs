//! Codes of documents that were not trained on.

use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;

use super::config::{Architecture, Config};
use super::corpus::{GAP, Known};
use super::params::{Batch, NONE, Params, Sample};
use super::{Code, EmbedError, Embedded, ParagraphVectors, pack};
use crate::sampled::Threads;

/// Words of a new document that are learned at once: as they change the same row, few.
const TOGETHER: usize = 16;

impl ParagraphVectors {
    /// The code of a text, and its real vector where the model has some. Only a row of
    /// its own learns, from its words. The same text always gets the same code.
    ///
    /// # Errors
    /// When the text has no word that the model knows.
    pub fn embed(&self, text: &str) -> Result<Embedded, EmbedError> {
        let numbers = self.known.numbers(text);
        if numbers.iter().all(|n| *n == GAP) {
            return Err(EmbedError::NoKnownWord {
                model: self.identity.name.clone(),
                words: self.known.words,
            });
        }
        let row = self.infer(&numbers);
        let sums = self.params.sums(&row, &self.config);
        let real = self.config.real_dim > 0 || self.config.code == Code::Real;
        Ok(Embedded {
            code: pack(&sums),
            real: real.then_some(row),
        })
    }

    /// [`ParagraphVectors::embed`] of many texts, on several threads (0: all).
    pub fn embed_all(&self, texts: &[&str], threads: usize) -> Vec<Result<Embedded, EmbedError>> {
        let threads = Threads::new(threads);
        let mut results: Vec<Option<Result<Embedded, EmbedError>>> = vec![None; texts.len()];
        let jobs = results.iter_mut().zip(texts).collect();
        threads.each(jobs, |(result, text): (&mut Option<_>, &&str)| {
            *result = Some(self.embed(text));
        });
        results.into_iter().flatten().collect()
    }

    /// Whether a text has a code.
    pub(super) fn knows_a_word_of(&self, text: &str) -> bool {
        self.known.numbers(text).iter().any(|n| *n != GAP)
    }

    fn infer(&self, numbers: &[u32]) -> Vec<f32> {
        let config = &self.config;
        let mut rng = SmallRng::seed_from_u64(config.seed ^ 0x1fe4);
        let mut row = Params::documents(1, config);
        let mut samples = samples(&self.known, 0, numbers);
        let mut batch = [Batch::default()];
        let threads = Threads::one();
        let batches = samples.len().div_ceil(TOGETHER) * config.infer_epochs;
        let mut done = 0;
        for _ in 0..config.infer_epochs {
            samples.shuffle(&mut rng);
            for some in samples.chunks_mut(TOGETHER) {
                batch[0].fill(some, |s, out| around(numbers, s, config, out), config);
                batch[0].draw(config, &self.sampler, &mut rng);
                self.params.backward(&row, &mut batch[0], config);
                let left = 1.0 - done as f32 / batches as f32;
                let rate = config.rate(config.infer_learning_rate * left);
                Params::descend_documents(&mut row, &batch, rate, &threads, &[]);
                done += 1;
            }
        }
        row.values
    }
}

/// All that a document's words are to predict.
pub(super) fn samples(known: &Known, document: u32, numbers: &[u32]) -> Vec<Sample> {
    let places = 0..numbers.len();
    let all = places.flat_map(|place| known.at(numbers, place).map(move |word| (place, word)));
    let sample = |(place, word)| Sample {
        document,
        place: place as u32,
        word,
    };
    all.map(sample).collect()
}

/// The words around a place.
pub(super) fn around(numbers: &[u32], sample: &Sample, config: &Config, out: &mut Vec<u32>) {
    if config.architecture != Architecture::PvDm {
        return;
    }
    let (place, window) = (sample.place as usize, config.window);
    let at = |other: Option<usize>| {
        let word = other.and_then(|i| numbers.get(i)).copied();
        word.filter(|w| *w != GAP).unwrap_or(NONE)
    };
    out.extend((1..=window).rev().map(|by| at(place.checked_sub(by))));
    out.extend((1..=window).map(|by| at(place.checked_add(by))));
}

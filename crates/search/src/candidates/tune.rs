//! Choosing how to search a store by trying it: on queries made of the store's own
//! words, against the exact best ten.
//!
//! A query is some neighbouring words of a passage drawn at random. Each way to
//! find candidates is tried from little work to much until it finds the wanted
//! share of the ten best by MaxSim; the fastest of those that do is taken.

use std::collections::HashSet;
use std::time::Instant;

use keyfold_core::{Encoder, Progress, Role, Vectors};
use keyfold_kernels::{MaxSim, TopK};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use super::fde::{Choice, Fde, FdeConfig, FdeOptions};
use super::{CandidateOptions, Method, Tuned, nearest};
use crate::codebook::Bits;
use crate::error::{BINARY, SearchError};
use crate::score;
use crate::store::{Segment, Snapshot};

/// Passages that are to be found for each query.
const BEST: usize = 10;
/// Passages on which encodings are compared, at most.
const SAMPLE: usize = 2000;

/// How to tune.
#[derive(Debug, Clone, PartialEq)]
pub struct TuneOptions {
    /// Queries to try.
    pub queries: usize,
    /// Share of the ten best that must be found.
    pub recall: f64,
    /// Seed of the choice of queries.
    pub seed: u64,
    /// Threads of a query.
    pub threads: usize,
}

impl Default for TuneOptions {
    fn default() -> Self {
        Self {
            queries: 100,
            recall: 0.98,
            seed: 0,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

/// What was tried, and what was best; none if the user asked to stop, or if the
/// store has no passage to make a query of.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tuning {
    /// All that was tried, the exhaustive search first.
    pub trials: Vec<Tuned>,
    /// The choice.
    pub best: Option<Tuned>,
}

/// Tries ways to search the store; by encodings too, if it has them.
pub fn tune(
    snapshot: &Snapshot,
    encoder: &dyn Encoder,
    options: &TuneOptions,
    progress: &dyn Progress,
) -> Result<Tuning, SearchError> {
    snapshot.require_encoder(encoder.identity())?;
    if snapshot.whole_text_rows() > 0 {
        return Err(SearchError::OtherComparison {
            what: "tuning".to_owned(),
            model: encoder.identity().name.clone(),
            how: "whole texts and then words",
            instead: "choose how many passages are compared by words with search --cls-candidates",
        });
    }
    if snapshot.bits() == Bits::One {
        return Err(SearchError::OtherComparison {
            what: "tuning".to_owned(),
            model: encoder.identity().name.clone(),
            how: BINARY,
            instead: "there is nothing to tune",
        });
    }
    let queries = queries(snapshot, encoder, options)?;
    let mut tuning = Tuning::default();
    if queries.is_empty() {
        return Ok(tuning);
    }
    let ways = ways(snapshot.segments().iter().all(|s| s.encodings().is_some()));
    let all: usize = 1 + ways.iter().map(Vec::len).sum::<usize>();
    progress.start("tuning", "trials", Some(all as u64));
    let exhaustive = CandidateOptions {
        method: Method::Exhaustive,
        threads: options.threads,
        ..CandidateOptions::default()
    };
    let (truth, milliseconds) = search(snapshot, &queries, &exhaustive)?;
    let trial = |o: &CandidateOptions, recall, milliseconds| Tuned {
        method: o.method,
        probes: o.probes,
        estimated: o.estimated,
        encoded: o.encoded,
        exact: o.exact,
        recall,
        milliseconds,
        passages: snapshot.passage_count(),
    };
    tuning.trials.push(trial(&exhaustive, 1.0, milliseconds));
    progress.advance(1);
    for way in ways {
        let mut rest = way.len() as u64;
        for tried in way {
            if progress.cancelled() {
                return Ok(Tuning::default());
            }
            let tried = CandidateOptions {
                threads: options.threads,
                ..tried
            };
            let (found, milliseconds) = search(snapshot, &queries, &tried)?;
            let recall = recall(&found, &truth);
            tuning.trials.push(trial(&tried, recall, milliseconds));
            rest -= 1;
            progress.advance(1);
            if recall >= options.recall {
                break;
            }
        }
        progress.advance(rest);
    }
    progress.finish();
    let enough = tuning.trials.iter().filter(|t| t.recall >= options.recall);
    tuning.best = enough
        .min_by(|a, b| a.milliseconds.total_cmp(&b.milliseconds))
        .cloned();
    Ok(tuning)
}

/// What is tried: lists from little work to much.
fn ways(encoded: bool) -> Vec<Vec<CandidateOptions>> {
    let base = CandidateOptions::default();
    let mut all = Vec::new();
    for (probes, exact) in [(8, 64), (16, 64), (16, 128), (32, 256)] {
        let estimated = [256, 512, 1024, 2048, 3072, 4096, 8192];
        let way = estimated.into_iter().map(|estimated| CandidateOptions {
            method: Method::Centroids,
            probes,
            exact,
            estimated,
            ..base
        });
        all.push(way.collect());
    }
    if encoded {
        for exact in [64, 128, 256] {
            let counts = [64, 128, 256, 512, 1024, 2048, 4096];
            let counts = counts.into_iter().filter(|&n| n >= exact);
            let way = counts.map(|encoded| CandidateOptions {
                method: Method::Fde,
                exact,
                encoded,
                ..base
            });
            all.push(way.collect());
        }
    }
    all
}

/// The best of every query, and the time of one in the median, milliseconds.
fn search(
    snapshot: &Snapshot,
    queries: &[Vectors],
    options: &CandidateOptions,
) -> Result<(Vec<Vec<u64>>, f64), SearchError> {
    let mut lists = Vec::new();
    let mut times = Vec::new();
    for query in queries {
        let mut shortest = f64::INFINITY;
        let mut found = Vec::new();
        // The first run may wait for the disk; an exhaustive one is long enough.
        for _ in 0..if options.method == Method::Exhaustive {
            1
        } else {
            2
        } {
            let clock = Instant::now();
            found = nearest(snapshot.segments(), query, BEST, None, options)?.0;
            shortest = shortest.min(clock.elapsed().as_secs_f64() * 1e3);
        }
        lists.push(found.into_iter().map(|r| r.passage).collect());
        times.push(shortest);
    }
    times.sort_by(f64::total_cmp);
    Ok((lists, times[times.len() / 2]))
}

/// Share of `truth` that was found.
fn recall(found: &[Vec<u64>], truth: &[Vec<u64>]) -> f64 {
    let pairs = found.iter().zip(truth);
    let both: usize = pairs
        .map(|(found, truth)| truth.iter().filter(|t| found.contains(t)).count())
        .sum();
    both as f64 / truth.iter().map(Vec::len).sum::<usize>().max(1) as f64
}

/// Vectors of queries of four to ten neighbouring words of passages.
fn queries(
    snapshot: &Snapshot,
    encoder: &dyn Encoder,
    options: &TuneOptions,
) -> Result<Vec<Vectors>, SearchError> {
    let mut rng = StdRng::seed_from_u64(options.seed);
    let mut passages = live(snapshot.segments());
    let (chosen, _) = passages.partial_shuffle(&mut rng, 4 * options.queries);
    let mut queries = Vec::new();
    for &mut (segment, local) in chosen {
        if queries.len() == options.queries {
            break;
        }
        let id = snapshot.segments()[segment].passage_id(local)?;
        let Some(stored) = snapshot.passage(id)? else {
            continue;
        };
        let words: Vec<&str> = stored.passage.text.split_whitespace().collect();
        let count = rng.random_range(4..=10).min(words.len());
        if count == 0 {
            continue;
        }
        let first = rng.random_range(0..=words.len() - count);
        let query = words[first..first + count].join(" ");
        let rows = encoder.encode(&[&query], Role::Query)?.pop();
        let rows = rows.map(|rows| snapshot.folding().query(rows, &query));
        queries.extend(rows.filter(|rows| !rows.is_empty()));
    }
    Ok(queries)
}

/// All live passages.
fn live(segments: &[Segment]) -> Vec<(usize, u32)> {
    let mut all = Vec::new();
    for (number, segment) in segments.iter().enumerate() {
        all.extend(segment.live().map(|local| (number, local)));
    }
    all
}

/// An encoding that was tried on a sample of the passages.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct EncodingTrial {
    /// The encoding.
    pub options: FdeOptions,
    /// Bytes of a passage.
    pub bytes: usize,
    /// How many of the sample must be candidates for the wanted recall.
    pub candidates: usize,
}

/// Tries encodings on a sample of the passages, and gives all with the number of
/// candidates that they need, the best first: the fewest candidates, or fewer
/// bytes at hardly more candidates. None if the user asked to stop.
pub fn tune_encodings(
    snapshot: &Snapshot,
    encoder: &dyn Encoder,
    options: &TuneOptions,
    progress: &dyn Progress,
) -> Result<Vec<EncodingTrial>, SearchError> {
    snapshot.require_encoder(encoder.identity())?;
    let sample = Sample::draw(snapshot, encoder, options)?;
    let grid = encodings(encoder.identity().dim);
    let mut trials = Vec::new();
    if sample.queries.is_empty() || sample.counts.len() <= BEST {
        return Ok(trials);
    }
    progress.start("trying encodings", "encodings", Some(grid.len() as u64));
    for tried in grid {
        if progress.cancelled() {
            return Ok(Vec::new());
        }
        let candidates =
            sample
                .needed(&tried, options.recall)
                .map_err(|source| SearchError::Encodings {
                    store: snapshot.store().to_owned(),
                    source: source.into(),
                })?;
        trials.push(EncodingTrial {
            bytes: tried.bytes(sample.dim),
            options: tried,
            candidates,
        });
        progress.advance(1);
    }
    progress.finish();
    let fewest = trials.iter().map(|t| t.candidates).min().unwrap_or(0);
    // A tenth more candidates cost less than twice the bytes to scan.
    let near = |t: &EncodingTrial| t.candidates <= fewest + fewest / 10;
    trials.sort_by_key(|t| {
        (
            !near(t),
            if near(t) { t.bytes } else { t.candidates },
            t.candidates,
        )
    });
    Ok(trials)
}

/// Encodings worth trying.
fn encodings(dim: usize) -> Vec<FdeOptions> {
    let mut all = Vec::new();
    for (r, k, p) in [
        (20, 3, 8),
        (20, 4, 8),
        (20, 4, 16),
        (20, 5, 16),
        (40, 4, 16),
    ] {
        for center in [Choice::Off, Choice::On] {
            for fill in [false, true] {
                all.push(FdeOptions {
                    config: FdeConfig {
                        num_repetitions: r,
                        num_simhash_projections: k,
                        projection_dimension: p.min(dim),
                        fill_empty_partitions: fill,
                        ..FdeConfig::default()
                    },
                    center,
                    ..FdeOptions::default()
                });
            }
        }
    }
    all
}

/// Passages and queries, and which passages are best for each.
struct Sample {
    dim: usize,
    rows: Vec<f32>,
    counts: Vec<usize>,
    queries: Vec<Vectors>,
    best: Vec<HashSet<u64>>,
}

impl Sample {
    fn draw(
        snapshot: &Snapshot,
        encoder: &dyn Encoder,
        options: &TuneOptions,
    ) -> Result<Self, SearchError> {
        let mut rng = StdRng::seed_from_u64(options.seed);
        let segments = snapshot.segments();
        let mut passages = live(segments);
        let (chosen, _) = passages.partial_shuffle(&mut rng, SAMPLE);
        let (mut rows, mut counts) = (Vec::new(), Vec::new());
        for &mut (segment, local) in chosen {
            counts.push(score::decode_into(&segments[segment], local, &mut rows)?);
        }
        let dim = encoder.identity().dim;
        let queries = queries(snapshot, encoder, options)?;
        let best = queries.iter().map(|query| {
            let mut scorer = MaxSim::new(query.as_slice(), dim);
            let mut best = TopK::new(BEST);
            let mut first = 0;
            for (i, count) in counts.iter().enumerate() {
                let own = &rows[first * dim..(first + count) * dim];
                best.push(scorer.score(own), i as u64);
                first += count;
            }
            best.into_sorted().into_iter().map(|(_, i)| i).collect()
        });
        Ok(Self {
            best: best.collect(),
            dim,
            rows,
            counts,
            queries,
        })
    }

    /// How many candidates hold the wanted share of the best.
    fn needed(&self, options: &FdeOptions, recall: f64) -> Result<usize, super::fde::FdeError> {
        let mut mean = vec![0.0; self.dim];
        let rows = self.rows.chunks_exact(self.dim);
        rows.for_each(|row| keyfold_kernels::add_assign(&mut mean, row));
        let scale = self.dim as f32 / self.rows.len().max(1) as f32;
        mean.iter_mut().for_each(|x| *x *= scale);
        let mean = options.center.centers(&mean).then_some(&mean[..]);
        let fde = Fde::new(self.dim, options.config.clone(), mean)?;
        let queries: Vec<_> = self
            .queries
            .iter()
            .map(|q| fde.query(q.as_slice()))
            .collect::<Result<_, _>>()?;
        // Passage by passage, so that one encoding is held at a time.
        let mut scores = vec![Vec::with_capacity(self.counts.len()); queries.len()];
        let mut first = 0;
        for count in &self.counts {
            let own = &self.rows[first * self.dim..(first + count) * self.dim];
            let document = fde.document(own)?;
            for (query, scores) in queries.iter().zip(&mut scores) {
                scores.push(query.dot(&document));
            }
            first += count;
        }
        let mut ranks = Vec::new();
        for (scores, best) in scores.iter().zip(&self.best) {
            for &i in best {
                let own = scores[i as usize];
                ranks.push(1 + scores.iter().filter(|s| **s > own).count());
            }
        }
        ranks.sort_unstable();
        let at = (recall * ranks.len() as f64).ceil() as usize;
        Ok(ranks
            .get(at.max(1) - 1)
            .or(ranks.last())
            .copied()
            .unwrap_or(0))
    }
}

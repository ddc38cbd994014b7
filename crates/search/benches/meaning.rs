//! Search by meaning on a store of made-up token vectors: how fast, where the
//! time goes, and how many of the true best ten are found.
//!
//! `cargo bench -p keyfold-search --bench meaning -- STORE [PASSAGES] [DIM] [BITS]`
//! makes the store in the folder STORE if it is not there, then measures it.
//! Without STORE it does nothing. GRID names other probes, estimates and exact
//! scores (`16,4096,128 8,2048,128`), FDE other encodings (`reps=10,proj=8`).
//!
//! The vectors imitate those of late-interaction models: word types with Zipf
//! frequencies and related types near each other; an occurrence of a type is its
//! vector, moved towards the topic of its passage and by noise. A query is some
//! of the rarer words of a passage in another context, weighted by rarity.

// A program for its own author: it prints, and ends where something is wrong.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::path::Path;
use std::time::{Duration, Instant};

use keyfold_core::{EncoderIdentity, NoProgress, Vectors};
use keyfold_data::Passage;
use keyfold_search::candidates::fde::FdeOptions;
use keyfold_search::candidates::{CandidateOptions, MeaningTimings, Method, nearest};
use keyfold_search::codebook::Bits;
use keyfold_search::store::{
    FileRecord, FileState, Rows, Snapshot, Writer, WriterOptions, update_encodings,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const TYPES: usize = 30_000;
const RELATED: usize = 400;
const TOPICS: usize = 300;
const QUERIES: usize = 100;

/// A language without words.
struct Language {
    dim: usize,
    types: Vec<f32>,
    topics: Vec<f32>,
}

impl Language {
    fn new(dim: usize) -> Self {
        let mut rng = SmallRng::seed_from_u64(1);
        let groups = noise(&mut rng, RELATED * dim);
        let mut types = noise(&mut rng, TYPES * dim);
        for (t, row) in types.chunks_exact_mut(dim).enumerate() {
            let group = &groups[t % RELATED * dim..][..dim];
            row.iter_mut()
                .zip(group)
                .for_each(|(x, g)| *x = 0.8 * *x + 0.6 * g);
        }
        Self {
            dim,
            types,
            topics: noise(&mut rng, TOPICS * dim),
        }
    }

    /// The word types of a passage: half of all words, half of its topic's.
    fn words(&self, rng: &mut SmallRng, topic: usize, n: usize) -> Vec<usize> {
        let words = (0..n).map(|_| {
            if rng.random_bool(0.5) {
                zipf(rng, TYPES)
            } else {
                // The same words in another order of frequency.
                (zipf(rng, 2000) * 7919 + topic * 104_729) % TYPES
            }
        });
        words.collect()
    }

    /// An occurrence of every word, `[n, dim]`, of length 1.
    fn occurrences(&self, rng: &mut SmallRng, topic: usize, words: &[usize]) -> Vec<f32> {
        let mut rows = noise(rng, words.len() * self.dim);
        let topic = &self.topics[topic * self.dim..][..self.dim];
        for (row, &word) in rows.chunks_exact_mut(self.dim).zip(words) {
            let word = &self.types[word * self.dim..][..self.dim];
            for ((x, w), t) in row.iter_mut().zip(word).zip(topic) {
                *x = w + 0.3 * t + 0.4 * *x;
            }
        }
        keyfold_kernels::normalize_rows(&mut rows, self.dim);
        rows
    }
}

/// Numbers with mean 0 and variance 1.
fn noise(rng: &mut SmallRng, n: usize) -> Vec<f32> {
    let limit = 3f32.sqrt();
    (0..n).map(|_| rng.random_range(-limit..limit)).collect()
}

/// A number below `n`, about as often as a word of that rank.
fn zipf(rng: &mut SmallRng, n: usize) -> usize {
    let x = rng.random::<f64>() * ((n + 1) as f64).ln();
    (x.exp() as usize).clamp(1, n) - 1
}

fn passage(language: &Language, number: usize) -> (usize, Vec<usize>) {
    let mut rng = SmallRng::seed_from_u64(number as u64 + 1000);
    let topic = rng.random_range(0..TOPICS);
    let length = rng.random_range(90..170);
    let words = language.words(&mut rng, topic, length);
    (topic, words)
}

fn build(store: &Path, language: &Language, passages: usize, bits: Bits) {
    let start = Instant::now();
    let options = WriterOptions {
        bits: Some(bits),
        memory: 1 << 30,
        threads: 2,
        ..WriterOptions::default()
    };
    let identity = EncoderIdentity {
        name: "made up".into(),
        hash: "0".into(),
        dim: language.dim,
    };
    let mut writer = Writer::open(store, &identity, &options).unwrap();
    writer.expect_tokens(passages as u64 * 130);
    for first in (0..passages).step_by(100) {
        let key = format!("{first}");
        writer.begin_file(&key);
        let (mut texts, mut counts, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        for number in first..passages.min(first + 100) {
            let (topic, words) = passage(language, number);
            let mut rng = SmallRng::seed_from_u64(number as u64);
            rows.extend(language.occurrences(&mut rng, topic, &words));
            counts.push(words.len());
            texts.push(Passage {
                text: number.to_string(),
                headings: Vec::new(),
                lines: 0..0,
                part: None,
                bytes: 0..0,
            });
        }
        writer
            .add_passages("text", 0, &texts, &counts, Rows::Raw(&rows), &[])
            .unwrap();
        let record = FileRecord {
            key,
            size: 0,
            modified: 0,
            hash: None,
            state: FileState::Read("text".into()),
        };
        writer.end_file(record).unwrap();
    }
    writer.commit().unwrap();
    println!(
        "made {passages} passages in {:.1} s",
        start.elapsed().as_secs_f64()
    );
}

fn query(language: &Language, number: usize, passages: usize) -> Vectors {
    let mut rng = SmallRng::seed_from_u64(number as u64 + 5_000_000);
    let (topic, mut words) = passage(language, rng.random_range(0..passages));
    let rows = rng.random_range(5..=20);
    // Mostly the rarer ones.
    words.sort_unstable();
    words.dedup();
    let skipped = words.len().saturating_sub(3 * rows) / 2;
    let words: Vec<usize> = (0..rows)
        .map(|_| words[rng.random_range(skipped..words.len())])
        .collect();
    let mut rows = language.occurrences(&mut rng, topic, &words);
    for (row, &word) in rows.chunks_exact_mut(language.dim).zip(&words) {
        let rarity = ((word + 2) as f32).ln() / (TYPES as f32).ln();
        row.iter_mut().for_each(|x| *x *= rarity);
    }
    Vectors::new(language.dim, rows).unwrap()
}

fn milliseconds(all: &mut [Duration], share: f64) -> f64 {
    all.sort();
    let at = ((all.len() as f64 * share) as usize).min(all.len() - 1);
    all[at].as_secs_f64() * 1000.0
}

/// The best ten of every query.
fn exact(snapshot: &Snapshot, queries: &[Vectors]) -> Vec<Vec<u64>> {
    let options = CandidateOptions {
        exhaustive: true,
        threads: 2,
        ..CandidateOptions::default()
    };
    let start = Instant::now();
    let lists: Vec<Vec<u64>> = queries
        .iter()
        .map(|q| ids(snapshot, q, &options).0)
        .collect();
    let each = start.elapsed().as_secs_f64() * 1000.0 / queries.len() as f64;
    println!("exhaustive: {each:.1} ms a query, 2 threads");
    lists
}

fn ids(
    snapshot: &Snapshot,
    query: &Vectors,
    options: &CandidateOptions,
) -> (Vec<u64>, MeaningTimings) {
    let (ranked, timings) = nearest(snapshot.segments(), query, 10, None, options).unwrap();
    (ranked.into_iter().map(|r| r.passage).collect(), timings)
}

fn measure(
    snapshot: &Snapshot,
    queries: &[Vectors],
    truth: &[Vec<u64>],
    options: &CandidateOptions,
) {
    let mut times = Vec::new();
    let mut sum = MeaningTimings::default();
    let mut found = 0;
    for (query, truth) in queries.iter().zip(truth) {
        let (list, _) = ids(snapshot, query, options);
        found += truth.iter().filter(|id| list.contains(id)).count();
        // The machine may have other things to do: the best of some runs.
        let runs = (0..5).map(|_| {
            let start = Instant::now();
            let timings = ids(snapshot, query, options).1;
            (start.elapsed(), timings)
        });
        if let Some((time, timings)) = runs.min_by_key(|run| run.0) {
            times.push(time);
            sum.centroids += timings.centroids;
            sum.probing += timings.probing;
            sum.estimating += timings.estimating;
            sum.exact += timings.exact;
        }
    }
    let mean = |d: Duration| d.as_secs_f64() * 1000.0 / times.len() as f64;
    println!(
        "probes {:3} estimated {:5} exact {:4} threads {}: recall@10 {:.4}, p50 {:.2} ms, p95 {:.2} ms \
         (mean: centroids {:.2}, probing {:.2}, estimating {:.2}, exact {:.2})",
        options.probes,
        options.estimated,
        options.exact,
        options.threads,
        found as f64 / truth.iter().map(Vec::len).sum::<usize>() as f64,
        milliseconds(&mut times.clone(), 0.5),
        milliseconds(&mut times.clone(), 0.95),
        mean(sum.centroids),
        mean(sum.probing),
        mean(sum.estimating),
        mean(sum.exact),
    );
}

fn main() {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    let Some(store) = arguments.first() else {
        println!(
            "name a folder for the store, then the number of passages, the dimension and the bits"
        );
        return;
    };
    let number =
        |at: usize, default: usize| arguments.get(at).map_or(default, |a| a.parse().unwrap());
    let (passages, dim) = (number(1, 100_000), number(2, 96));
    let bits: Bits = number(3, 4).to_string().parse().unwrap();
    let language = Language::new(dim);
    let store = Path::new(store);
    if !store.join("manifest").exists() {
        build(store, &language, passages, bits);
    }
    let snapshot = Snapshot::open(store).unwrap();
    let segment = &snapshot.segments()[0];
    println!(
        "{} passages, {} rows, {} centroids, {} bits",
        snapshot.passage_count(),
        snapshot.token_count(),
        segment.codebook().count(),
        snapshot.bits()
    );
    let queries: Vec<Vectors> = (0..QUERIES)
        .map(|i| query(&language, i, passages))
        .collect();
    let truth = exact(&snapshot, &queries);
    let grid: Vec<(usize, usize, usize)> = match std::env::var("GRID") {
        Ok(grid) => grid
            .split(' ')
            .map(|one| {
                let n: Vec<usize> = one.split(',').map(|n| n.parse().unwrap()).collect();
                (n[0], n[1], n[2])
            })
            .collect(),
        Err(_) => vec![(16, 4096, 128)],
    };
    for (probes, estimated, exact) in grid {
        for threads in [1, 2] {
            let options = CandidateOptions {
                probes,
                estimated,
                exact,
                threads,
                ..CandidateOptions::default()
            };
            measure(&snapshot, &queries, &truth, &options);
        }
    }
    other_methods(store, snapshot, &language, &queries, &truth);
}

/// The same by other ways to find candidates; makes encodings if there are none.
fn other_methods(
    store: &Path,
    snapshot: Snapshot,
    language: &Language,
    queries: &[Vectors],
    truth: &[Vec<u64>],
) {
    let identity = snapshot.encoder().clone();
    drop(snapshot);
    let wanted: Option<FdeOptions> = std::env::var("FDE").ok().map(|s| s.parse().unwrap());
    let options = WriterOptions {
        threads: 2,
        memory: 1 << 30,
        ..WriterOptions::default()
    };
    let start = Instant::now();
    let wanted = wanted.unwrap_or_default();
    if update_encodings(store, &identity, Some(&wanted), &options, &NoProgress).unwrap() {
        println!(
            "encoded with {wanted} in {:.1} s, {} bytes each",
            start.elapsed().as_secs_f64(),
            wanted.bytes(language.dim)
        );
    }
    let snapshot = Snapshot::open(store).unwrap();
    for (method, encoded) in [
        (Method::Fde, 128),
        (Method::Fde, 256),
        (Method::Fde, 512),
        (Method::Fde, 1024),
        (Method::Fde, 2048),
        (Method::Plaid, 0),
        (Method::Warp, 0),
    ] {
        for threads in [1, 2] {
            let options = CandidateOptions {
                method,
                encoded,
                threads,
                ..CandidateOptions::default()
            };
            print!("{method:?} {encoded}: ");
            measure(&snapshot, queries, truth, &options);
        }
    }
}

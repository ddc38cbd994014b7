//! Search by learnt weights of terms: the time of a query with and without bounds of
//! blocks.
//!
//! `cargo bench -p keyfold-search --bench impacts --profile release -- PASSAGES`
//! measures on one thread; without PASSAGES it does nothing.
//!
//! The weights imitate those of SPLADE: about 120 terms in a passage and 30 in a
//! query, with Zipf frequencies, half of them those of its topic; rarer terms weigh
//! more. Passages of a topic lie together in files of 20, or in random order.

// A program for its own author: it prints, and ends where something is wrong.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::HashMap;
use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use keyfold_core::{EncodeError, EncoderIdentity, NoProgress, Role, SparseEncoder, SparseVector};
use keyfold_data::Passage;
use keyfold_kernels::top_k;
use keyfold_search::sparse::SparseRetriever;
use keyfold_search::store::{FileRecord, FileState, Rows, Snapshot, Writer, WriterOptions};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const TERMS: usize = 30_000;
const TOPICS: usize = 300;
const FILE: usize = 20;
const QUERIES: usize = 100;

/// Texts are numbers.
struct MadeUp {
    identity: EncoderIdentity,
    in_files: bool,
}

fn zipf(rng: &mut SmallRng, n: usize) -> usize {
    let x = rng.random::<f64>() * ((n + 1) as f64).ln();
    (x.exp() as usize).clamp(1, n) - 1
}

impl MadeUp {
    fn vector(&self, number: u64, role: Role) -> SparseVector {
        let mut rng = SmallRng::seed_from_u64(number + 1000);
        let topic = if self.in_files && role == Role::Document {
            (number as usize / FILE * 7919) % TOPICS
        } else {
            rng.random_range(0..TOPICS)
        };
        let n = if role == Role::Document { 120 } else { 30 };
        let mut draw = || {
            let rank = if rng.random_bool(0.5) {
                zipf(&mut rng, TERMS)
            } else {
                (zipf(&mut rng, 2000) * 7919 + topic * 104_729) % TERMS
            };
            let rarity = ((rank + 10) as f32).ln() / (TERMS as f32).ln();
            (rank as u32, 120.0 * rarity * rng.random::<f32>().powi(2))
        };
        SparseVector::new((0..n).map(|_| draw()), f32::max)
    }
}

impl SparseEncoder for MadeUp {
    fn identity(&self) -> &EncoderIdentity {
        &self.identity
    }

    fn encode(&self, texts: &[&str], role: Role) -> Result<Vec<SparseVector>, EncodeError> {
        let vector = |text: &&str| self.vector(text.parse().unwrap(), role);
        Ok(texts.iter().map(vector).collect())
    }

    fn term(&self, term: u32) -> String {
        term.to_string()
    }
}

fn build(store: &Path, passages: usize) {
    let identity = EncoderIdentity {
        name: "none".into(),
        hash: "0".into(),
        dim: 8,
    };
    let mut writer = Writer::open(store, &identity, &WriterOptions::default()).unwrap();
    let numbers: Vec<usize> = (0..passages).collect();
    for (file, numbers) in numbers.chunks(1000).enumerate() {
        let key = format!("{file}.txt");
        let passage = |n: &usize| Passage {
            text: n.to_string(),
            headings: Vec::new(),
            lines: 1..2,
            part: None,
            bytes: 0..1,
        };
        let passages: Vec<Passage> = numbers.iter().map(passage).collect();
        let rows: Vec<f32> = numbers
            .iter()
            .flat_map(|n| [(*n % 7) as f32, 1.0, 0., 0., 0., 0., 0., 0.])
            .collect();
        writer.begin_file(&key);
        writer
            .add_passages(
                "text",
                0,
                &passages,
                &vec![1; numbers.len()],
                Rows::Raw(&rows),
                &[],
            )
            .unwrap();
        let record = FileRecord {
            key,
            size: 1,
            modified: 0,
            hash: None,
            state: FileState::Read("text".to_owned()),
        };
        writer.end_file(record).unwrap();
    }
    writer.commit().unwrap();
}

/// What is compared with: the lists of the query's terms, added up for all passages.
struct Union {
    lists: HashMap<u32, Vec<(u32, u16)>>,
    passages: usize,
}

impl Union {
    fn best(&self, query: &SparseVector, k: usize) -> Vec<(f32, u32)> {
        let mut scores = vec![0.0; self.passages];
        for (term, weight) in query.entries() {
            for &(passage, impact) in self.lists.get(term).into_iter().flatten() {
                scores[passage as usize] += f32::from(*weight) * f32::from(impact);
            }
        }
        top_k(&scores, k)
    }
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|a| a != "--bench");
    let Some(passages) = arguments.next().and_then(|n| n.parse().ok()) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    build(folder.path(), passages);
    let snapshot = Snapshot::open(folder.path()).unwrap();
    for in_files in [true, false] {
        let identity = EncoderIdentity {
            name: "made up".into(),
            hash: format!("{}", u8::from(in_files)),
            dim: TERMS,
        };
        let encoder = MadeUp { identity, in_files };
        let open = || {
            SparseRetriever::open(&snapshot, &encoder, &NoProgress)
                .unwrap()
                .unwrap()
        };
        drop(open());
        let start = Instant::now();
        let retriever = open();
        println!(
            "{passages} passages {}, {} postings, opened in {:.0} ms",
            if in_files {
                "in files"
            } else {
                "in random order"
            },
            retriever.postings(),
            start.elapsed().as_secs_f64() * 1e3
        );
        let mut union = Union {
            lists: HashMap::new(),
            passages,
        };
        for passage in 0..passages {
            for &(term, impact) in encoder.vector(passage as u64, Role::Document).entries() {
                union
                    .lists
                    .entry(term)
                    .or_default()
                    .push((passage as u32, impact));
            }
        }
        let queries: Vec<SparseVector> = (0..QUERIES as u64)
            .map(|q| encoder.vector(1 << 40 | q, Role::Query))
            .collect();
        for k in [10, 100, 1000] {
            let (mut of_union, mut of_blocks) = (Vec::new(), Vec::new());
            for query in &queries {
                let start = Instant::now();
                let expected = black_box(union.best(query, k));
                of_union.push(start.elapsed().as_secs_f64() * 1e3);
                let start = Instant::now();
                let found = black_box(retriever.nearest(query, k, None));
                of_blocks.push(start.elapsed().as_secs_f64() * 1e3);
                let scores = found
                    .iter()
                    .map(|r| r.score)
                    .zip(expected.iter().map(|e| e.0));
                assert!(scores.into_iter().all(|(a, b)| a == b));
            }
            println!(
                "best {k}: union {:.3} ms, blocks {:.3} ms",
                median(of_union),
                median(of_blocks)
            );
        }
    }
}

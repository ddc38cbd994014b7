//! Token vectors to find.

use std::path::Path;

use keyfold_core::{Progress, Role, Vectors};
use keyfold_kernels::{add_assign, normalize_rows};
use rand::rngs::StdRng;
use rand::seq::index;
use rand::{Rng, SeedableRng};

use crate::random::normal;
use crate::{BenchError, BenchOptions, Scale, store};

/// Documents and queries as token vectors.
pub(in crate::experiments) struct Set {
    pub(in crate::experiments) name: String,
    pub(in crate::experiments) short: &'static str,
    pub(in crate::experiments) dim: usize,
    /// `[n, dim]` each, rows of length 1.
    pub(in crate::experiments) documents: Vec<Vec<f32>>,
    pub(in crate::experiments) queries: Vec<Vec<f32>>,
    /// How many of the first by MaxSim are to be found.
    pub(in crate::experiments) find: usize,
}

impl Set {
    /// Vectors of all documents.
    pub(in crate::experiments) fn tokens(&self) -> usize {
        self.documents.iter().map(|d| d.len() / self.dim).sum()
    }

    /// Mean of the documents' vectors.
    pub(in crate::experiments) fn mean(&self) -> Vec<f32> {
        let mut sum = vec![0.0; self.dim];
        let rows = self.documents.iter().flat_map(|d| d.chunks_exact(self.dim));
        rows.for_each(|row| add_assign(&mut sum, row));
        let scale = 1.0 / self.tokens().max(1) as f32;
        sum.iter_mut().for_each(|x| *x *= scale);
        sum
    }
}

/// Mean of rows.
pub(super) fn mean(rows: &[f32], dim: usize) -> Vec<f32> {
    let mut sum = vec![0.0; dim];
    rows.chunks_exact(dim)
        .for_each(|row| add_assign(&mut sum, row));
    let scale = dim as f32 / rows.len().max(1) as f32;
    sum.iter_mut().for_each(|x| *x *= scale);
    sum
}

pub(super) fn unit_rows(n: usize, dim: usize, seed: u64) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut rows: Vec<f32> = (0..n * dim).map(|_| normal(&mut rng)).collect();
    normalize_rows(&mut rows, dim);
    rows
}

/// `base`, scaled, plus noise, at length 1.
fn near(base: &[f32], scale: f32, noise: f32, rng: &mut StdRng) -> Vec<f32> {
    let noise = noise / (base.len() as f32).sqrt();
    let mut row: Vec<f32> = base
        .iter()
        .map(|b| scale * b + noise * normal(rng))
        .collect();
    normalize_rows(&mut row, base.len());
    row
}

/// Topics, concepts near them, and documents of the concepts of three topics each;
/// a query takes concepts of a document, and others of its topics, with more
/// noise. `common` times a fixed unit vector is added to all vectors.
pub(super) fn made_up(options: &BenchOptions, common: f32) -> Set {
    let (documents, queries) = match (options.scale, common > 0.0) {
        (Scale::Smoke, _) => (300, 20),
        (Scale::Small, false) => (3000, 100),
        (Scale::Small, true) => (1500, 100),
        (Scale::Full, _) => (20_000, 300),
    };
    let mut set = draw(options, documents, queries);
    if common > 0.0 {
        set.name = "made-up vectors with a common part".to_owned();
        set.short = "common part";
        let part: Vec<f32> = unit_rows(1, DIM, options.seed.wrapping_add(3))
            .iter()
            .map(|x| common * x)
            .collect();
        for rows in set.documents.iter_mut().chain(&mut set.queries) {
            rows.chunks_exact_mut(DIM)
                .for_each(|row| add_assign(row, &part));
            normalize_rows(rows, DIM);
        }
    }
    set
}

/// More of the same, for a store.
pub(super) fn many_made_up(options: &BenchOptions) -> Set {
    let (documents, queries) = match options.scale {
        Scale::Smoke => (500, 10),
        Scale::Small => (20_000, 100),
        Scale::Full => (100_000, 200),
    };
    draw(options, documents, queries)
}

/// Length of made-up vectors.
const DIM: usize = 64;

fn draw(options: &BenchOptions, documents: usize, queries: usize) -> Set {
    let mut rng = StdRng::seed_from_u64(options.seed.wrapping_add(1));
    let topics = unit_rows(60, DIM, options.seed.wrapping_add(2));
    let concepts: Vec<(usize, Vec<f32>)> = (0..1500)
        .map(|i| {
            let topic = i % 60;
            (
                topic,
                near(&topics[topic * DIM..][..DIM], 1.2, 1.0, &mut rng),
            )
        })
        .collect();
    let of_topic = |topic: usize, rng: &mut StdRng| topic + 60 * rng.random_range(0..25);
    let any_of = |topics: &[usize], rng: &mut StdRng| {
        let x: f32 = rng.random();
        of_topic(topics[usize::from(x > 0.6) + usize::from(x > 0.9)], rng)
    };
    let mut set = Set {
        name: "made-up vectors".to_owned(),
        short: "made up",
        dim: DIM,
        documents: Vec::new(),
        queries: Vec::new(),
        find: 1,
    };
    let mut contents = Vec::new();
    for _ in 0..documents {
        let topics: Vec<usize> = index::sample(&mut rng, 12, 3).into_vec();
        let count = rng.random_range(20..=60);
        let used: Vec<usize> = (0..count).map(|_| any_of(&topics, &mut rng)).collect();
        let rows = used
            .iter()
            .flat_map(|&c| near(&concepts[c].1, 1.0, 0.35, &mut rng));
        set.documents.push(rows.collect());
        contents.push((topics, used));
    }
    for _ in 0..queries {
        let (topics, used) = &contents[rng.random_range(0..documents)];
        let mut wanted: Vec<usize> = (0..10)
            .map(|_| used[rng.random_range(0..used.len())])
            .collect();
        wanted.extend((0..6).map(|_| any_of(topics, &mut rng)));
        let rows = wanted
            .iter()
            .flat_map(|&c| near(&concepts[c].1, 1.0, 1.3, &mut rng));
        set.queries.push(rows.collect());
    }
    set
}

/// The documents and queries of a collection in the vectors of the model.
pub(in crate::experiments) fn of_collection(
    options: &BenchOptions,
    progress: &dyn Progress,
) -> Result<Set, BenchError> {
    let (documents, queries) = match &options.data {
        Some(folder) => (
            texts(folder, "documents.jsonl")?,
            texts(folder, "queries.jsonl")?,
        ),
        None => (
            parse(
                Path::new("documents.jsonl"),
                include_str!("../../../fixtures/mini/documents.jsonl"),
            )?,
            parse(
                Path::new("queries.jsonl"),
                include_str!("../../../fixtures/mini/queries.jsonl"),
            )?,
        ),
    };
    let encoder = store::encoder(options)?;
    progress.start("encode", "documents", Some(documents.len() as u64));
    let encode = |texts: &[String], role| -> Result<Vec<Vec<f32>>, BenchError> {
        let mut all = Vec::new();
        for batch in texts.chunks(64) {
            if progress.cancelled() {
                return Err(BenchError::Cancelled);
            }
            let views: Vec<&str> = batch.iter().map(String::as_str).collect();
            all.extend(
                encoder
                    .encode(&views, role)?
                    .into_iter()
                    .map(Vectors::into_vec),
            );
            progress.advance(batch.len() as u64);
        }
        all.retain(|rows| !rows.is_empty());
        Ok(all)
    };
    let set = Set {
        name: match &options.data {
            Some(_) => "the collection".to_owned(),
            None => "the small collection of the project".to_owned(),
        },
        short: "collection",
        dim: encoder.identity().dim,
        documents: encode(&documents, Role::Document)?,
        queries: encode(&queries, Role::Query)?,
        find: 10,
    };
    progress.finish();
    Ok(set)
}

fn texts(folder: &Path, name: &str) -> Result<Vec<String>, BenchError> {
    let path = folder.join(name);
    let text = std::fs::read_to_string(&path).map_err(|e| {
        let what = format!("{e}; a collection is a folder with documents.jsonl and queries.jsonl");
        BenchError::data(&path, what)
    })?;
    parse(&path, &text)
}

#[derive(serde::Deserialize)]
struct Line {
    #[serde(default)]
    title: String,
    text: String,
}

fn parse(path: &Path, text: &str) -> Result<Vec<String>, BenchError> {
    let mut all = Vec::new();
    for (number, line) in (1..)
        .zip(text.lines())
        .filter(|(_, l)| !l.trim().is_empty())
    {
        let line: Line = serde_json::from_str(line)
            .map_err(|e| BenchError::data(path, format!("line {number}: {e}")))?;
        all.push(format!("{}\n{}", line.title, line.text).trim().to_owned());
    }
    if all.is_empty() {
        return Err(BenchError::data(path, "it is empty"));
    }
    Ok(all)
}

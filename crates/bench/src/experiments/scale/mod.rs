//! A large store: time to make it, its size, the memory of making and searching
//! it, the time of a query, and what the fast way to find neighbours misses.
//!
//! The passages are real sentences put together anew (see [`text`]).

pub(super) mod text;

use std::time::Instant;

use keyfold_core::{Encoder, Progress, Role};
use keyfold_search::candidates::CandidateOptions;
use keyfold_search::codebook::Bits;
use keyfold_search::engine::{Mode, SearchOptions, rank};
use keyfold_search::store::Snapshot;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::json;

use crate::quality::{mean, quantile};
use crate::report::{Report, Table, reached};
use crate::store::{self, Text};
use crate::{BenchError, BenchOptions, Experiment, Scale, memory, plot};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "scale",
    about: "100,000 passages: index time, bytes per token, memory, query latency and recall",
    run,
};

/// Tokens of a passage, about.
const PASSAGE: usize = 128;
/// Passages on which encoding alone is measured.
const ENCODED: usize = 2000;

fn run(options: &BenchOptions, progress: &dyn Progress) -> Result<Report, BenchError> {
    let (count, queries) = match options.scale {
        Scale::Smoke => (500, 20),
        Scale::Small => (100_000, 200),
        Scale::Full => (1_000_000, 500),
    };
    let sources = text::sources(options, progress)?;
    let mut rng = StdRng::seed_from_u64(options.seed);
    let texts: Vec<Text> = (0..count)
        .map(|_| text::passage(&sources, PASSAGE, &mut rng))
        .collect();
    let queries: Vec<String> = (0..queries)
        .map(|_| text::query(&sources, &mut rng))
        .collect();
    let encoder = store::encoder(options)?;
    let encoding = encoding_rate(&texts, options)?;

    let folder = tempfile::tempdir()?;
    let begun = Instant::now();
    let before = memory::held();
    let (written, most) = memory::most_during(|| {
        store::write(
            folder.path(),
            &texts,
            &*encoder,
            Bits::Four,
            options,
            progress,
        )
    });
    let tokens = written?;
    let index_seconds = begun.elapsed().as_secs_f64();
    drop(texts);
    let index_memory = most
        .zip(before)
        .map(|(most, before)| most.saturating_sub(before));
    let vectors = store::size_of(&folder.path().join("segments"))
        + store::size_of(&folder.path().join("codebooks"));
    let all = store::size_of(folder.path());

    let snapshot = Snapshot::open(folder.path())?;
    let search = |mode, exhaustive| way(mode, exhaustive, options);
    let ways = [
        ("lexical", search(Mode::Lexical, false)),
        ("meaning", search(Mode::Meaning, false)),
        ("both", search(Mode::Both, false)),
        ("meaning, exhaustive", search(Mode::Meaning, true)),
    ];
    let mut latency = Table::new("queries", &["mode", "p50, ms", "p95, ms"]);
    let mut bars = Vec::new();
    let mut found: Vec<Vec<Vec<u64>>> = Vec::new();
    let mut p50s = Vec::new();
    progress.start(
        "search",
        "queries",
        Some((ways.len() * queries.len()) as u64),
    );
    let before = memory::held();
    let (searched, most) = memory::most_during(|| -> Result<(), BenchError> {
        for (name, way) in &ways {
            let asked = ask(&snapshot, &queries, &*encoder, way, progress)?;
            let (p50, p95) = (quantile(&asked.times, 0.5), quantile(&asked.times, 0.95));
            latency.row([(*name).to_owned(), format!("{p50:.2}"), format!("{p95:.2}")]);
            bars.push((format!("{name}, p50"), p50));
            bars.push((format!("{name}, p95"), p95));
            p50s.push(json!({"mode": name, "p50_ms": p50, "p95_ms": p95}));
            found.push(asked.found);
        }
        Ok(())
    });
    searched?;
    progress.finish();
    // What the model and the process hold does not count, what searching adds does.
    let search_memory = most
        .zip(before)
        .map(|(most, before)| most.saturating_sub(before));
    let recall = recall_at_10(&found[1], &found[3]);

    let mut index = Table::new("index", &["what", "measured"]);
    let megabytes = |b: u64| format!("{:.1} MB", b as f64 / 1e6);
    let unknown = || "not told by this system".to_owned();
    index.row(["passages".into(), count.to_string()]);
    index.row(["tokens".into(), tokens.to_string()]);
    index.row(["time".into(), format!("{index_seconds:.1} s")]);
    index.row([
        "passages per second".into(),
        format!("{:.0}", count as f64 / index_seconds),
    ]);
    index.row([
        format!("passages of {PASSAGE} tokens per second, encoding alone, one thread"),
        format!("{encoding:.0}"),
    ]);
    index.row([
        "bytes per token, vectors".into(),
        format!("{:.1}", vectors as f64 / tokens as f64),
    ]);
    index.row([
        "bytes per token, whole store".into(),
        format!("{:.1}", all as f64 / tokens as f64),
    ]);
    index.row([
        "most memory while indexing".into(),
        index_memory.map_or_else(unknown, megabytes),
    ]);
    let process = most.map_or_else(unknown, megabytes);
    index.row(["most memory of the process while searching".into(), process]);
    index.row([
        "of it added by searching".into(),
        search_memory.map_or_else(unknown, megabytes),
    ]);

    let p50 = bars[2].1;
    let mut findings = vec![
        format!(
            "Encoding: {encoding:.0} passages of {PASSAGE} tokens a second and core; aim of the \
             built-in model: at least 1,000, {}.",
            reached(encoding >= 1000.0)
        ),
        format!(
            "Meaning: p50 {p50:.2} ms; aim: under 15 ms, {}.",
            reached(p50 < 15.0)
        ),
        format!(
            "Meaning: recall@10 against exhaustive MaxSim {recall:.4}; aim: at least 0.97, {}.",
            reached(recall >= 0.97)
        ),
    ];
    if let Some(most) = most {
        findings.push(format!(
            "The process held at most {} while searching, mapped files apart; aim: under 300 MB, {}.",
            megabytes(most),
            reached(most < 300_000_000)
        ));
    }
    Ok(Report {
        name: EXPERIMENT.name.to_owned(),
        tables: vec![index, latency],
        findings,
        values: json!({
            "passages": count, "tokens": tokens, "index_seconds": index_seconds,
            "encoded_per_second": encoding,
            "vector_bytes": vectors, "store_bytes": all,
            "index_memory_bytes": index_memory, "search_process_bytes": most,
            "search_memory_bytes": search_memory, "latency": p50s, "recall@10": recall,
            "threads": options.thread_count(),
        }),
        svg: plot::bars("Time of a query", "milliseconds", &bars[..6], Some(15.0))?,
    })
}

/// How the stores of experiments on size are searched.
pub(super) fn way(mode: Mode, exhaustive: bool, options: &BenchOptions) -> SearchOptions {
    SearchOptions {
        mode,
        candidates: CandidateOptions {
            exhaustive,
            threads: options.thread_count(),
            ..CandidateOptions::default()
        },
        ..SearchOptions::default()
    }
}

/// What some queries found, and how long each took, milliseconds.
pub(super) struct Asked {
    pub(super) found: Vec<Vec<u64>>,
    pub(super) times: Vec<f64>,
}

/// Asks all queries, one after the other.
pub(super) fn ask(
    snapshot: &Snapshot,
    queries: &[String],
    encoder: &dyn Encoder,
    way: &SearchOptions,
    progress: &dyn Progress,
) -> Result<Asked, BenchError> {
    let mut asked = Asked {
        found: Vec::new(),
        times: Vec::new(),
    };
    // The first query pays for opening files; it is asked once before.
    rank(snapshot, &queries[0], Some(encoder), way)?;
    for query in queries {
        if progress.cancelled() {
            return Err(BenchError::Cancelled);
        }
        let clock = Instant::now();
        let ranked = rank(snapshot, query, Some(encoder), way)?.ranked;
        asked.times.push(clock.elapsed().as_secs_f64() * 1e3);
        asked.found.push(ranked.iter().map(|p| p.passage).collect());
        progress.advance(1);
    }
    Ok(asked)
}

/// How many passages of [`PASSAGE`] tokens one thread encodes a second; only
/// tokens that become vectors count.
fn encoding_rate(texts: &[Text], options: &BenchOptions) -> Result<f64, BenchError> {
    let one = BenchOptions {
        threads: 1,
        ..options.clone()
    };
    let encoder = store::encoder(&one)?;
    let views: Vec<&str> = texts.iter().take(ENCODED).map(|t| &*t.body).collect();
    let mut best = 0.0f64;
    // The first round also pays for what is kept between calls.
    for _ in 0..3 {
        let clock = Instant::now();
        let mut tokens = 0;
        for batch in views.chunks(64) {
            let vectors = encoder.encode(batch, Role::Document)?;
            tokens += vectors.iter().map(|v| v.rows()).sum::<usize>();
        }
        let seconds = clock.elapsed().as_secs_f64().max(1e-9);
        best = best.max(tokens as f64 / PASSAGE as f64 / seconds);
    }
    Ok(best)
}

/// Share of the exact lists that was found.
pub(super) fn recall_at_10(found: &[Vec<u64>], exact: &[Vec<u64>]) -> f64 {
    let shares: Vec<f64> = found
        .iter()
        .zip(exact)
        .filter(|(_, exact)| !exact.is_empty())
        .map(|(found, exact)| {
            let both = exact.iter().filter(|p| found.contains(p)).count();
            both as f64 / exact.len() as f64
        })
        .collect();
    mean(&shares)
}

//! Ways to find candidates in a store, side by side: what they find of the best ten
//! and what a query takes.

use std::path::Path;
use std::time::Instant;

use keyfold_core::{EncoderIdentity, Progress, Vectors};
use keyfold_data::Passage;
use keyfold_search::candidates::fde::FdeOptions;
use keyfold_search::candidates::{CandidateOptions, Method, nearest};
use keyfold_search::store::{
    FileRecord, FileState, Rows, Snapshot, Writer, WriterOptions, update_encodings,
};
use serde_json::{Value, json};

use super::sets::Set;
use crate::quality::quantile;
use crate::report::Table;
use crate::{BenchError, BenchOptions, store};

/// Documents that are added at a time.
const BATCH: usize = 256;
const BEST: usize = 10;

/// Searches a store of the set's documents in every way.
pub(super) fn compare(
    set: &Set,
    options: &BenchOptions,
    progress: &dyn Progress,
) -> Result<(Table, Value), BenchError> {
    let folder = tempfile::tempdir()?;
    let writing = WriterOptions {
        seed: options.seed,
        threads: options.thread_count(),
        ..WriterOptions::default()
    };
    let identity = EncoderIdentity {
        name: "vectors of an experiment".to_owned(),
        hash: "0".to_owned(),
        dim: set.dim,
    };
    let clock = Instant::now();
    write(folder.path(), set, &identity, &writing, progress)?;
    let built = clock.elapsed().as_secs_f64();
    let before = store::size_of(folder.path());
    let clock = Instant::now();
    let wanted = FdeOptions::default();
    update_encodings(folder.path(), &identity, Some(&wanted), &writing, progress)?;
    let encoded = clock.elapsed().as_secs_f64();
    let bytes = store::size_of(folder.path()).saturating_sub(before);

    let title = format!(
        "{}: a store of {} documents (made in {built:.1} s; encodings take {encoded:.1} s and {:.0} bytes a document)",
        set.name,
        set.documents.len(),
        bytes as f64 / set.documents.len().max(1) as f64,
    );
    let mut table = Table::new(&title, &["candidates", "recall@10", "p50, ms", "p95, ms"]);
    let snapshot = Snapshot::open(folder.path())?;
    let queries: Vec<Vectors> = set
        .queries
        .iter()
        .filter_map(|rows| Vectors::new(set.dim, rows.clone()).ok())
        .collect();
    let mut truth: Vec<Vec<u64>> = Vec::new();
    let mut values = Vec::new();
    progress.start("search", "ways", None);
    for (method, encoded, name) in [
        (Method::Exhaustive, 0, "exhaustive"),
        (Method::Fde, 128, "fde, 128 candidates"),
        (Method::Fde, 512, "fde, 512 candidates"),
        (Method::Centroids, 0, "centroids"),
        (Method::Plaid, 0, "plaid"),
        (Method::Warp, 0, "warp"),
    ] {
        let way = CandidateOptions {
            method,
            encoded,
            threads: options.thread_count(),
            ..CandidateOptions::default()
        };
        let (mut times, mut found, mut all) = (Vec::new(), 0, 0);
        let mut lists = Vec::new();
        for (i, query) in queries.iter().enumerate() {
            if progress.cancelled() {
                return Err(BenchError::Cancelled);
            }
            let mut shortest = f64::INFINITY;
            let mut list: Vec<u64> = Vec::new();
            for _ in 0..2 {
                let clock = Instant::now();
                let ranked = nearest(snapshot.segments(), query, BEST, None, &way)?.0;
                shortest = shortest.min(clock.elapsed().as_secs_f64() * 1e3);
                list = ranked.into_iter().map(|r| r.passage).collect();
            }
            times.push(shortest);
            let best = truth.get(i).unwrap_or(&list);
            found += best.iter().filter(|b| list.contains(b)).count();
            all += best.len();
            lists.push(list);
        }
        if truth.is_empty() {
            truth = lists;
        }
        let recall = found as f64 / all.max(1) as f64;
        let (p50, p95) = (quantile(&times, 0.5), quantile(&times, 0.95));
        table.row([
            name.to_owned(),
            format!("{recall:.3}"),
            format!("{p50:.2}"),
            format!("{p95:.2}"),
        ]);
        values.push(json!({"way": name, "recall@10": recall, "p50_ms": p50, "p95_ms": p95}));
        progress.advance(1);
    }
    progress.finish();
    let values = json!({
        "set": set.name, "documents": set.documents.len(), "build_seconds": built,
        "encode_seconds": encoded, "bytes_per_document": bytes as f64 / set.documents.len().max(1) as f64,
        "ways": values,
    });
    Ok((table, values))
}

fn write(
    folder: &Path,
    set: &Set,
    identity: &EncoderIdentity,
    options: &WriterOptions,
    progress: &dyn Progress,
) -> Result<(), BenchError> {
    let mut writer = Writer::open(folder, identity, options)?;
    writer.expect_tokens(set.tokens() as u64);
    progress.start("index", "documents", Some(set.documents.len() as u64));
    for (number, batch) in set.documents.chunks(BATCH).enumerate() {
        if progress.cancelled() {
            return Err(BenchError::Cancelled);
        }
        let counts: Vec<usize> = batch.iter().map(|d| d.len() / set.dim).collect();
        let passage = |_| Passage {
            text: "-".to_owned(),
            headings: Vec::new(),
            lines: 0..0,
            part: None,
            bytes: 0..0,
        };
        let passages: Vec<Passage> = (0..batch.len()).map(passage).collect();
        let key = number.to_string();
        writer.begin_file(&key);
        writer.add_passages("text", 0, &passages, &counts, Rows::Raw(&batch.concat()))?;
        writer.end_file(FileRecord {
            key,
            size: 0,
            modified: 0,
            hash: None,
            state: FileState::Read("text".to_owned()),
        })?;
        progress.advance(batch.len() as u64);
    }
    writer.commit()?;
    writer.merge(progress)?;
    progress.finish();
    Ok(())
}

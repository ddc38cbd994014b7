//! Ways to find candidates in a store, side by side: what they find of the best ten
//! and what a query takes.

use std::time::Instant;

use keyfold_core::{EncoderIdentity, Progress, Vectors};
use keyfold_data::Passage;
use keyfold_search::candidates::fde::FdeOptions;
use keyfold_search::candidates::{CandidateOptions, Method, nearest};
use keyfold_search::store::{Snapshot, update_encodings};
use serde_json::{Value, json};

use super::sets::Set;
use crate::quality::quantile;
use crate::report::Table;
use crate::{BenchError, BenchOptions, store};

const BEST: usize = 10;

/// Searches a store of the set's documents in every way.
pub(super) fn compare(
    set: &Set,
    options: &BenchOptions,
    progress: &dyn Progress,
) -> Result<(Table, Value), BenchError> {
    let folder = tempfile::tempdir()?;
    let writing = store::writing(options);
    let identity = EncoderIdentity {
        name: "vectors of an experiment".to_owned(),
        hash: "0".to_owned(),
        dim: set.dim,
    };
    let clock = Instant::now();
    let documents = &set.documents;
    let prepare = |batch: &[Vec<f32>]| Ok(prepare(set, batch));
    store::write_items(
        folder.path(),
        &identity,
        documents,
        prepare,
        &writing,
        progress,
    )?;
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
    for (method, encoded, carving, name) in [
        (Method::Exhaustive, 0, None, "exhaustive"),
        (Method::Exhaustive, 0, Some(0.7), "exhaustive, balls carved"),
        (Method::Fde, 128, None, "fde, 128 candidates"),
        (Method::Fde, 512, None, "fde, 512 candidates"),
        (
            Method::Fde,
            512,
            Some(0.7),
            "fde, 512 candidates, balls carved",
        ),
        (Method::Centroids, 0, None, "centroids"),
        (Method::Plaid, 0, None, "plaid"),
        (Method::Warp, 0, None, "warp"),
    ] {
        let way = CandidateOptions {
            method,
            encoded,
            carving,
            // No more candidates than the way is named after.
            exact: 128,
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

/// Documents without text.
fn prepare(set: &Set, batch: &[Vec<f32>]) -> (Vec<Passage>, Vec<usize>, Vec<f32>) {
    let passage = |_| Passage {
        text: "-".to_owned(),
        headings: Vec::new(),
        lines: 0..0,
        part: None,
        bytes: 0..0,
    };
    let passages = batch.iter().map(passage).collect();
    let counts = batch.iter().map(|d| d.len() / set.dim).collect();
    (passages, counts, batch.concat())
}

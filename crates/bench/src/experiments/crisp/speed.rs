//! The time that folding takes, on one core.

use std::time::Instant;

use keyfold_core::{Progress, Role, Vectors};
use keyfold_search::fold::Fold;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::report::{Table, reached};
use crate::{BenchError, BenchOptions, Scale};

/// Passages of the collection that are folded.
const PASSAGES: usize = 300;
/// Rows and numbers of the passage for which a time is aimed at, and its clusters.
const LARGE: (usize, usize) = (512, 128);
/// Milliseconds.
const AIM: f64 = 1.0;

pub(super) struct Speed {
    pub(super) tables: Vec<Table>,
    pub(super) findings: Vec<String>,
    pub(super) values: Value,
}

pub(super) fn run(
    rows: &[Vectors],
    options: &BenchOptions,
    progress: &dyn Progress,
) -> Result<Speed, BenchError> {
    if progress.cancelled() {
        return Err(BenchError::Cancelled);
    }
    let passages = &rows[..rows.len().min(PASSAGES)];
    let dim = passages.first().map_or(1, Vectors::dim);
    let count: usize = passages.iter().map(Vectors::rows).sum();
    let large = clustered(LARGE, options.seed);
    let runs = if options.scale == Scale::Smoke { 1 } else { 5 };
    let title = format!(
        "folding, one core: milliseconds for a passage of the collection (mean {:.0} vectors of {dim}) and for one of {} vectors of {}",
        count as f64 / passages.len().max(1) as f64,
        LARGE.0,
        LARGE.1
    );
    let mut table = Table::new(&title, &["fold", "collection", "large"]);
    let mut values = Vec::new();
    let mut findings = Vec::new();
    for spec in ["c8x32", "c4x8", "c25", "c50", "ward:2", "ward:4"] {
        let Ok(fold) = spec.parse::<Fold>() else {
            continue;
        };
        let one = |rows: &[f32], dim| {
            let groups = fold.groups(rows, dim, Role::Document, 0);
            std::hint::black_box(groups.means(rows, dim));
        };
        let mean = shortest(runs, || {
            passages.iter().for_each(|p| one(p.as_slice(), dim));
        }) / passages.len().max(1) as f64;
        let of_large = shortest(4 * runs, || one(&large, LARGE.1));
        table.row([
            spec.to_owned(),
            format!("{mean:.3}"),
            format!("{of_large:.3}"),
        ]);
        values.push(json!({"fold": spec, "collection_ms": mean, "large_ms": of_large}));
        if spec == "c8x32" {
            findings.push(format!(
                "Folding {} vectors of {} to 32 clusters: {of_large:.2} ms on one core; aim: under {AIM} ms, {}.",
                LARGE.0,
                LARGE.1,
                reached(of_large < AIM)
            ));
        }
    }
    Ok(Speed {
        tables: vec![table],
        findings,
        values: json!(values),
    })
}

/// Rows around 40 directions, as tokens of a text lie around its words.
fn clustered((n, dim): (usize, usize), seed: u64) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    let words: Vec<f32> = (0..40 * dim).map(|_| rng.random_range(-1.0..1.0)).collect();
    let mut rows = Vec::with_capacity(n * dim);
    for word in words.chunks_exact(dim).cycle().take(n) {
        rows.extend(word.iter().map(|w| w + rng.random_range(-0.7..0.7)));
    }
    keyfold_kernels::normalize_rows(&mut rows, dim);
    rows
}

/// Milliseconds of the shortest of some runs.
fn shortest(runs: usize, mut work: impl FnMut()) -> f64 {
    let time = |_| {
        let clock = Instant::now();
        work();
        clock.elapsed().as_secs_f64() * 1e3
    };
    (0..runs).map(time).fold(f64::INFINITY, f64::min)
}

//! The time that folding takes, on one core.
//!
//! A peer that pools as PyLate does can be measured on the same vectors in the same
//! run (`--peer`, as parity/peers/pooling.py): `COMMAND fold ROWS ABOUT`, with the floats
//! of all rows in one file and a JSON object in the other (`dim`; `counts`, the rows of
//! each passage; `factors`; `runs`), prints for every factor a JSON line with `fold`,
//! `milliseconds` of a passage, and `rows`, how many are left of all.

use keyfold_core::{Progress, Vectors};
use keyfold_search::fold::Fold;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::super::peers::Engine;
use crate::report::{Table, reached};
use crate::timing::shortest;
use crate::{BenchError, BenchOptions, Scale};

/// Passages of the collection that are folded.
const PASSAGES: usize = 300;
/// Rows and numbers of the passage for which a time is aimed at, and its clusters.
const LARGE: (usize, usize) = (512, 128);
/// Milliseconds.
const AIM: f64 = 1.0;
/// Factors of pooling that peers are measured at.
const FACTORS: [usize; 2] = [2, 4];

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
    let mut pooling = Vec::new();
    for spec in ["c8x32", "c4x8", "c25", "c50", "ward:2", "ward:4"] {
        let Ok(fold) = spec.parse::<Fold>() else {
            continue;
        };
        let one = |rows: &[f32], dim| {
            let groups = fold.groups(rows, dim, false, 0);
            groups.means(rows, dim).len() / dim
        };
        let mut left = 0;
        let mean = shortest(runs, || {
            left = passages.iter().map(|p| one(p.as_slice(), dim)).sum();
        }) / passages.len().max(1) as f64;
        let of_large = shortest(4 * runs, || {
            std::hint::black_box(one(&large, LARGE.1));
        });
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
        pooling.push((spec, mean, left));
    }
    let mut peers = Vec::new();
    for peer in &options.peers {
        let engine = Engine::parse(peer)?;
        for line in ask(&engine, passages, dim, runs)? {
            let (spec, theirs) = (&line["fold"], line["milliseconds"].as_f64());
            let ours = pooling.iter().find(|p| *spec == p.0);
            let (Some(&(spec, ours, left)), Some(theirs)) = (ours, theirs) else {
                continue;
            };
            table.row([
                format!("{spec}, {}", engine.name),
                format!("{theirs:.3}"),
                String::new(),
            ]);
            findings.push(format!(
                "{spec}: {} takes {theirs:.2} ms for a passage and leaves {} vectors of {count}, we {ours:.2} ms, {:.1} times less, and {left}.",
                engine.name,
                line["rows"],
                theirs / ours
            ));
            peers.push(json!({"name": engine.name, "fold": spec, "collection_ms": theirs}));
        }
    }
    Ok(Speed {
        tables: vec![table],
        findings,
        values: json!({"ours": values, "peers": peers}),
    })
}

/// Has a peer fold some passages.
fn ask(
    engine: &Engine,
    passages: &[Vectors],
    dim: usize,
    runs: usize,
) -> Result<Vec<Value>, BenchError> {
    let folder = tempfile::tempdir()?;
    let (rows, about) = (folder.path().join("rows"), folder.path().join("about.json"));
    let numbers = passages.iter().flat_map(Vectors::as_slice);
    std::fs::write(
        &rows,
        numbers.flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>(),
    )?;
    let counts: Vec<usize> = passages.iter().map(Vectors::rows).collect();
    let task = json!({"dim": dim, "counts": counts, "factors": FACTORS, "runs": runs});
    std::fs::write(&about, task.to_string())?;
    engine.run("fold", &rows, &about)
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

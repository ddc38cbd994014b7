//! The made-up sets of several seeds beside the specification's numbers for them.
//!
//! Its numbers are of one draw of 100 queries, so each is uncertain by
//! `sqrt(p (1 - p) / 100)`, and ours by the deviation of the seeds' means.

use keyfold_kernels::MaxSim;
use keyfold_search::candidates::fde::{Choice, Fde, FdeConfig};
use serde_json::{Value, json};

use super::{Curve, Set, Way, exact, per_token, pooled, sets};
use crate::quality::{mean, pearson};
use crate::report::Table;
use crate::{BenchError, BenchOptions, Scale};

/// Queries of the specification's draw.
const QUERIES: f64 = 100.0;

/// What the specification found: a method, and recall at numbers of candidates.
struct Found {
    method: &'static str,
    recall: &'static [(usize, f64)],
}

const fn found(method: &'static str, recall: &'static [(usize, f64)]) -> Found {
    Found { method, recall }
}

/// On the set without a common part.
const PLAIN: [Found; 6] = [
    found(
        "(20,3,8) filled",
        &[(10, 0.50), (25, 0.72), (50, 0.90), (100, 0.94), (200, 0.98)],
    ),
    found(
        "(20,4,8) filled",
        &[(10, 0.50), (25, 0.81), (50, 0.92), (100, 0.95), (200, 1.0)],
    ),
    found(
        "(20,5,16) filled",
        &[(10, 0.62), (25, 0.85), (50, 0.94), (100, 0.98), (200, 1.0)],
    ),
    found(
        "(20,5,16)",
        &[(10, 0.75), (25, 0.92), (50, 0.97), (100, 0.99), (200, 1.0)],
    ),
    found(
        "mean vector",
        &[(10, 0.62), (25, 0.78), (50, 0.88), (100, 0.94), (200, 0.98)],
    ),
    found(
        "per-token heuristic",
        &[(146, 0.59), (323, 0.89), (542, 0.98)],
    ),
];

/// On the set with one.
const COMMON: [Found; 2] = [
    found(
        "(20,5,16) not centred filled",
        &[(10, 0.16), (50, 0.54), (100, 0.72)],
    ),
    found(
        "(20,5,16) centred filled",
        &[(10, 0.76), (50, 1.0), (100, 1.0)],
    ),
];

/// Correlation of the encodings' products with MaxSim that it found.
const CORRELATION: (f64, f64) = (0.87, 0.92);

/// Tables, what they say, and all for programs.
pub(super) fn beside(
    options: &BenchOptions,
) -> Result<(Vec<Table>, Vec<String>, Value), BenchError> {
    let seeds = if options.scale == Scale::Smoke { 2 } else { 5 };
    let mut tables = Vec::new();
    let mut findings = Vec::new();
    let mut values = Vec::new();
    for (common, wanted) in [(0.0, &PLAIN[..]), (2.0, &COMMON[..])] {
        let drawn: Vec<Set> = (0..seeds)
            .map(|seed| {
                let options = BenchOptions {
                    seed: options.seed.wrapping_add(100 * seed),
                    ..options.clone()
                };
                sets::made_up(&options, common)
            })
            .collect();
        let exact: Vec<_> = (drawn.iter())
            .map(|set| exact(set, options.thread_count()))
            .collect();
        let mut table = Table::new(
            &format!(
                "{}, {seeds} seeds: recall, in brackets the specification's",
                drawn[0].name
            ),
            &["method", "candidates: recall"],
        );
        let (mut within, mut all) = (0, 0);
        for found in wanted {
            let curves: Vec<Curve> = (drawn.iter().zip(&exact))
                .map(|(set, exact)| curve(found.method, set, exact, options))
                .collect::<Result<_, _>>()?;
            let mut cells = Vec::new();
            for &(n, specified) in found.recall {
                let ours: Vec<f64> = curves.iter().map(|c| c.between(n)).collect();
                let middle = mean(&ours);
                let variance = middle * (1.0 - middle) / QUERIES + uncertainty(&ours);
                // It was printed with two digits.
                let near = 2.0 * variance.sqrt() + 0.005;
                within += usize::from((middle - specified).abs() <= near);
                all += 1;
                cells.push(format!("{n}: {middle:.2} ({specified:.2})"));
                values.push(json!({
                    "set": drawn[0].name, "method": found.method, "candidates": n,
                    "recall": ours, "specification": specified,
                }));
            }
            table.row([found.method.to_owned(), cells.join("; ")]);
        }
        tables.push(table);
        findings.push(format!(
            "{}: {within} of {all} of the specification's numbers lie within two deviations of ours.",
            drawn[0].name
        ));
        if common == 0.0 {
            let (low, high) = correlations(&drawn)?;
            findings.push(format!(
                "Correlation of the products of encodings with MaxSim over all documents, between \
                 configurations and seeds: {low:.2} to {high:.2} ({} to {}).",
                CORRELATION.0, CORRELATION.1
            ));
            values.push(json!({"correlation": [low, high]}));
        }
    }
    Ok((tables, findings, json!(values)))
}

fn curve(
    method: &str,
    set: &Set,
    exact: &[Vec<usize>],
    options: &BenchOptions,
) -> Result<Curve, BenchError> {
    match method {
        "per-token heuristic" => Ok(per_token(set, exact)),
        "mean vector" => Ok(pooled(set, exact)),
        _ => {
            let way = encodings()
                .into_iter()
                .find(|way| way.name() == method)
                .ok_or_else(|| BenchError::data(method, "is no way to encode"))?;
            way.curve(set, exact, options)
        }
    }
}

/// All encodings that the specification has numbers of.
fn encodings() -> Vec<Way> {
    let mut all = Vec::new();
    for (k, p) in [(3, 8), (4, 8), (5, 16)] {
        for fill in [true, false] {
            for center in [Choice::Auto, Choice::Off, Choice::On] {
                all.push(Way {
                    config: config(k, p, fill),
                    center,
                    coded: None,
                });
            }
        }
    }
    all
}

fn config(k: usize, p: usize, fill: bool) -> FdeConfig {
    FdeConfig {
        num_repetitions: 20,
        num_simhash_projections: k,
        projection_dimension: p,
        fill_empty_partitions: fill,
        ..FdeConfig::default()
    }
}

/// The least and the greatest mean correlation, over configurations and seeds.
fn correlations(drawn: &[Set]) -> Result<(f64, f64), BenchError> {
    let (mut low, mut high) = (f64::MAX, f64::MIN);
    for set in drawn {
        let scores: Vec<Vec<f64>> = (set.queries.iter())
            .map(|query| {
                let mut scorer = MaxSim::new(query, set.dim);
                let scores = set.documents.iter().map(|d| f64::from(scorer.score(d)));
                scores.collect()
            })
            .collect();
        for (k, p) in [(3, 8), (4, 8), (5, 16)] {
            for fill in [true, false] {
                let failed =
                    |e: &dyn std::fmt::Display| BenchError::data(&*set.name, e.to_string());
                let fde = Fde::new(set.dim, config(k, p, fill), None).map_err(|e| failed(&e))?;
                let documents: Vec<Vec<f32>> = (set.documents.iter())
                    .map(|d| fde.document(d).map_err(|e| failed(&e)))
                    .collect::<Result<_, _>>()?;
                let mut sum = 0.0;
                for (query, exact) in set.queries.iter().zip(&scores) {
                    let query = fde.query(query).map_err(|e| failed(&e))?;
                    let products: Vec<f64> = (documents.iter())
                        .map(|d| f64::from(query.dot(d)))
                        .collect();
                    sum += pearson(&products, exact);
                }
                let middle = sum / set.queries.len().max(1) as f64;
                (low, high) = (low.min(middle), high.max(middle));
            }
        }
    }
    Ok((low, high))
}

/// The squared deviation of a mean of these.
fn uncertainty(values: &[f64]) -> f64 {
    let middle = mean(values);
    let squares: f64 = values.iter().map(|v| (v - middle).powi(2)).sum();
    let n = values.len() as f64;
    squares / (n * (n - 1.0)).max(1.0)
}

//! How time, memory and size grow with the number of passages.
//!
//! The same short passages (see [`super::scale::text`]) in stores of 10,000, 100,000
//! and 1,000,000. For each measure `y` the exponent `a` of `y = c n^a` is fitted by
//! least squares of the logarithms.

use std::time::Instant;

use keyfold_core::{Encoder, Progress};
use keyfold_search::engine::Mode;
use keyfold_search::store::Snapshot;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::json;

use super::scale::text::{self, Sources};
use super::scale::{Asked, ask, recall_at_10, way};
use crate::quality::quantile;
use crate::report::{Report, Table};
use crate::store::{self, Text};
use crate::{BenchError, BenchOptions, Experiment, Scale, memory, plot};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "growth",
    about: "10,000 to 1,000,000 short passages: how time, memory and size grow, with exponents",
    run,
};

/// Tokens of a passage, about.
const PASSAGE: usize = 12;
/// The names of what is measured of a store, in the order of [`Measured::values`].
const MEASURES: [&str; 9] = [
    "index time, s",
    "most memory while indexing, MB",
    "store, MB",
    "lexical p50, ms",
    "meaning p50, ms",
    "both p50, ms",
    "meaning p95, ms",
    "meaning exhaustive p50, ms",
    "memory that searching adds, MB",
];

/// A store of so many passages, measured.
struct Measured {
    passages: usize,
    tokens: u64,
    recall: f64,
    /// See [`MEASURES`]; none where the system does not tell.
    values: [Option<f64>; MEASURES.len()],
}

fn run(options: &BenchOptions, progress: &dyn Progress) -> Result<Report, BenchError> {
    let (sizes, queries): (&[usize], _) = match options.scale {
        Scale::Smoke => (&[200, 400, 800], 5),
        Scale::Small => (&[10_000, 100_000], 100),
        Scale::Full => (&[10_000, 100_000, 1_000_000], 100),
    };
    let sources = text::sources(options, progress)?;
    let mut rng = StdRng::seed_from_u64(options.seed);
    let queries: Vec<String> = (0..queries)
        .map(|_| text::query(&sources, &mut rng))
        .collect();
    let encoder = store::encoder(options)?;
    let mut all = Vec::new();
    for &size in sizes {
        all.push(measure(
            size, &sources, &queries, &*encoder, options, progress,
        )?);
    }
    report(&all, options)
}

/// Makes a store of `size` passages and searches it.
fn measure(
    size: usize,
    sources: &Sources,
    queries: &[String],
    encoder: &dyn Encoder,
    options: &BenchOptions,
    progress: &dyn Progress,
) -> Result<Measured, BenchError> {
    let folder = tempfile::tempdir()?;
    // Each passage by a seed of its own, so that a larger store has those of a smaller.
    let seeds: Vec<u64> = (0..size as u64).collect();
    let prepare = |batch: &[u64]| {
        let text = |&seed: &u64| {
            let mut rng = StdRng::seed_from_u64(options.seed.wrapping_add(seed << 20));
            text::passage(sources, PASSAGE, &mut rng)
        };
        let texts: Vec<Text> = batch.iter().map(text).collect();
        store::encoded(&texts, encoder)
    };
    let before = memory::held();
    let clock = Instant::now();
    let writing = store::writing(options);
    let (tokens, most) = memory::most_during(|| {
        store::write_items(
            folder.path(),
            encoder.identity(),
            &seeds,
            prepare,
            &writing,
            progress,
        )
    });
    let tokens = tokens?;
    let seconds = clock.elapsed().as_secs_f64();
    let added = |most: Option<u64>, before: Option<u64>| {
        most.zip(before)
            .map(|(most, before)| most.saturating_sub(before) as f64 / 1e6)
    };
    let indexing = added(most, before);

    let snapshot = Snapshot::open(folder.path())?;
    let before = memory::held();
    progress.start("search", "queries", Some(4 * queries.len() as u64));
    let (searched, most) = memory::most_during(|| -> Result<_, BenchError> {
        let ask = |mode, exhaustive| {
            let way = way(mode, exhaustive, options);
            ask(&snapshot, queries, encoder, &way, progress)
        };
        Ok([
            ask(Mode::Lexical, false)?,
            ask(Mode::Meaning, false)?,
            ask(Mode::Both, false)?,
            ask(Mode::Meaning, true)?,
        ])
    });
    progress.finish();
    let [lexical, meaning, both, exhaustive] = searched?;
    let p50 = |asked: &Asked| Some(quantile(&asked.times, 0.5));
    Ok(Measured {
        passages: size,
        tokens,
        recall: recall_at_10(&meaning.found, &exhaustive.found),
        values: [
            Some(seconds),
            indexing,
            Some(store::size_of(folder.path()) as f64 / 1e6),
            p50(&lexical),
            p50(&meaning),
            p50(&both),
            Some(quantile(&meaning.times, 0.95)),
            p50(&exhaustive),
            added(most, before),
        ],
    })
}

fn report(all: &[Measured], options: &BenchOptions) -> Result<Report, BenchError> {
    let passages = all.iter().map(|m| format!("{} passages", m.passages));
    let columns: Vec<String> = ["measure".to_owned()]
        .into_iter()
        .chain(passages)
        .chain(["exponent".to_owned()])
        .collect();
    let mut table = Table::new(
        "growth",
        &columns.iter().map(String::as_str).collect::<Vec<_>>(),
    );
    let mut lines = Vec::new();
    let mut exponents = serde_json::Map::new();
    let mut row = |name: &str, cell: &dyn Fn(&Measured) -> String, exponent: Option<f64>| {
        let mut row = vec![name.to_owned()];
        row.extend(all.iter().map(cell));
        row.push(exponent.map_or_else(String::new, |e| format!("{e:.2}")));
        table.rows.push(row);
    };
    row("tokens", &|m| m.tokens.to_string(), None);
    for (at, name) in MEASURES.iter().enumerate() {
        let points: Vec<(f64, f64)> = all
            .iter()
            .filter_map(|m| Some((m.passages as f64, m.values[at]?)))
            .collect();
        let exponent = exponent(&points);
        row(
            name,
            &|m| m.values[at].map_or("-".to_owned(), plot::shown),
            exponent,
        );
        exponents.insert((*name).to_owned(), json!(exponent));
        lines.push(((*name).to_owned(), points));
    }
    row("meaning, recall@10", &|m| format!("{:.3}", m.recall), None);
    let values: Vec<_> = all
        .iter()
        .map(|m| {
            let measures: serde_json::Map<_, _> =
                MEASURES.iter().zip(&m.values).map(|(name, v)| ((*name).to_owned(), json!(v))).collect();
            json!({"passages": m.passages, "tokens": m.tokens, "recall@10": m.recall, "measures": measures})
        })
        .collect();
    Ok(Report {
        name: EXPERIMENT.name.to_owned(),
        tables: vec![table],
        findings: Vec::new(),
        values: json!({"sizes": values, "exponents": exponents, "threads": options.thread_count()}),
        svg: plot::log_lines("Growth", "passages", "see the names of the lines", &lines)?,
    })
}

/// `a` of the `y = c x^a` nearest to the points, in logarithms; none of fewer than two.
fn exponent(points: &[(f64, f64)]) -> Option<f64> {
    let logs: Vec<(f64, f64)> = points
        .iter()
        .filter(|p| p.1 > 0.0)
        .map(|p| (p.0.ln(), p.1.ln()))
        .collect();
    let n = logs.len() as f64;
    let (x, y) = (
        logs.iter().map(|p| p.0).sum::<f64>() / n,
        logs.iter().map(|p| p.1).sum::<f64>() / n,
    );
    let spread: f64 = logs.iter().map(|p| (p.0 - x).powi(2)).sum();
    let together: f64 = logs.iter().map(|p| (p.0 - x) * (p.1 - y)).sum();
    (logs.len() > 1 && spread > 0.0).then(|| together / spread)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponents_are_those_of_power_laws() {
        let law = |a: f64| -> Vec<(f64, f64)> {
            [10.0, 100.0, 1000.0]
                .map(|x: f64| (x, 3.0 * x.powf(a)))
                .to_vec()
        };
        for a in [0.0, 0.5, 1.0] {
            assert!((exponent(&law(a)).unwrap() - a).abs() < 1e-9);
        }
        assert_eq!(exponent(&[(10.0, 1.0)]), None);
        assert_eq!(exponent(&[(10.0, 0.0), (20.0, 0.0)]), None);
    }
}

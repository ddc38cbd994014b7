//! A model of the user's, trained on her pairs: without folding, then from there as many
//! steps without and with each fold; all measured on the collection by exact MaxSim.

use keyfold_core::{Encoder, ModelFolder, Progress, Role, Vectors};
use keyfold_kernels::maxsim;
use keyfold_search::fold::{Fold, Folding};
use keyfold_text::crisp::{self, CrispConfig};
use keyfold_text::{LoadOptions, load};
use keyfold_train::gradient::OptimConfig;
use rayon::prelude::*;
use serde_json::{Value, json};

use super::super::search::Collection;
use super::quality;
use crate::plot::Line;
use crate::quality::{bootstrap, mean};
use crate::report::Table;
use crate::{BenchError, BenchOptions, Scale, trained};

/// Steps of the first stage, of the second, pairs in a batch.
fn size(scale: Scale) -> (u64, u64, usize) {
    match scale {
        Scale::Smoke => (4, 2, 8),
        Scale::Small => (500, 250, 64),
        // The publication's.
        Scale::Full => (20_000, 20_000, 128),
    }
}

const FOLDS: [&str; 4] = ["c4x8", "c8x32", "c25", "c50"];

/// nDCG@10 of one way.
struct Measured {
    /// The rows of a document and of a query, mean.
    rows: (f64, f64),
    of_queries: Vec<f64>,
}

impl Measured {
    fn points(&self) -> f64 {
        100.0 * mean(&self.of_queries)
    }
}

struct Way {
    fold: String,
    posthoc: Measured,
    trained: Measured,
}

/// What was measured.
pub(super) struct Real {
    model: String,
    pairs: usize,
    steps: (u64, u64),
    first: Measured,
    whole: Measured,
    ways: Vec<Way>,
    seed: u64,
}

/// Runs where the options name a model and pairs.
pub(super) fn run(
    collection: &Collection,
    options: &BenchOptions,
    progress: &dyn Progress,
) -> Result<Option<Real>, BenchError> {
    let (Some(model), Some(path)) = (&options.model, &options.pairs) else {
        return Ok(None);
    };
    let pairs = trained::pairs(path)?;
    let (first_steps, more_steps, batch_size) = size(options.scale);
    let folder = trained::find(model)?;
    let scratch = tempfile::tempdir()?;
    let trained = |from: &ModelFolder, fold: &str, steps: u64, rate: f64, name: &str| {
        let config = CrispConfig {
            fold: fold.into(),
            batch_size,
            seed: options.seed,
            optim: OptimConfig {
                learning_rate: rate,
                max_steps: steps,
                warmup_steps: steps / 10,
                ..OptimConfig::default()
            },
            run: trained::unwatched(),
            ..CrispConfig::default()
        };
        let out = scratch.path().join(name);
        trained::train(&out, progress, |place| {
            crisp::train(from, &pairs, &config, place)
        })
    };
    let measure = |folder: &ModelFolder, fold: Option<Fold>| {
        let loading = LoadOptions {
            threads: options.threads,
        };
        ranked(
            &*load(&folder.path.to_string_lossy(), &loading)?,
            collection,
            fold,
            progress,
        )
    };
    let first = trained(&folder, "none", first_steps, 3e-4, "first")?;
    let whole = trained(&first, "none", more_steps, 1e-4, "whole")?;
    let mut ways = Vec::new();
    for spec in FOLDS {
        let fold: Option<Fold> = spec.parse().ok();
        let made = trained(&first, spec, more_steps, 1e-4, spec)?;
        ways.push(Way {
            fold: spec.to_owned(),
            posthoc: measure(&whole, fold)?,
            trained: measure(&made, fold)?,
        });
    }
    Ok(Some(Real {
        model: folder.name.clone(),
        pairs: pairs.0.len(),
        steps: (first_steps, more_steps),
        first: measure(&first, None)?,
        whole: measure(&whole, None)?,
        ways,
        seed: options.seed,
    }))
}

/// nDCG@10 with rows of both sides folded.
fn ranked(
    encoder: &dyn Encoder,
    collection: &Collection,
    fold: Option<Fold>,
    progress: &dyn Progress,
) -> Result<Measured, BenchError> {
    let folding = Folding {
        fold,
        queries: true,
        raw: true,
    };
    let documents = trained::searchable(&collection.documents);
    let documents: Vec<&str> = documents.iter().map(String::as_str).collect();
    let queries: Vec<&str> = collection.queries.iter().map(String::as_str).collect();
    let total = (documents.len() + queries.len()) as u64;
    progress.start("encode", "texts", Some(total));
    let side = |texts: &[&str], role| -> Result<Vec<Vectors>, BenchError> {
        let mut all = Vec::new();
        for texts in texts.chunks(64) {
            if progress.cancelled() {
                return Err(BenchError::Cancelled);
            }
            let rows = encoder.encode(texts, role)?;
            all.extend(rows.into_iter().zip(texts).map(|(rows, text)| match role {
                Role::Query => folding.query(rows, text),
                Role::Document => folding.document(rows, text),
            }));
            progress.advance(texts.len() as u64);
        }
        Ok(all)
    };
    let documents = side(&documents, Role::Document)?;
    let queries = side(&queries, Role::Query)?;
    progress.finish();
    let lists: Vec<Vec<usize>> = queries
        .par_iter()
        .map(|query| {
            let score = |d: &Vectors| maxsim(query.as_slice(), d.as_slice(), query.dim());
            let mut scored: Vec<(f32, usize)> = documents.iter().map(score).zip(0..).collect();
            scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            scored.into_iter().take(10).map(|(_, d)| d).collect()
        })
        .collect();
    let rows = |all: &[Vectors]| {
        all.iter().map(Vectors::rows).sum::<usize>() as f64 / all.len().max(1) as f64
    };
    Ok(Measured {
        rows: (rows(&documents), rows(&queries)),
        of_queries: quality(&lists, collection),
    })
}

impl Real {
    pub(super) fn table(&self) -> Table {
        let title = format!(
            "{} trained on {} pairs: {} steps, then {} more",
            self.model, self.pairs, self.steps.0, self.steps.1
        );
        let columns = [
            "fold of both sides",
            "vectors of a document",
            "of a query",
            "folded afterwards, nDCG@10",
            "trained so, nDCG@10",
        ];
        let mut table = Table::new(&title, &columns);
        let number = |x: f64| format!("{x:.1}");
        let (documents, queries) = self.whole.rows;
        for (name, measured) in [
            ("none, first stage", &self.first),
            ("none, both stages", &self.whole),
        ] {
            table.row([
                name.to_owned(),
                number(documents),
                number(queries),
                String::new(),
                number(measured.points()),
            ]);
        }
        for way in &self.ways {
            table.row([
                way.fold.clone(),
                number(way.trained.rows.0),
                number(way.trained.rows.1),
                number(way.posthoc.points()),
                number(way.trained.points()),
            ]);
        }
        table
    }

    pub(super) fn findings(&self) -> Vec<String> {
        let of_way = |way: &Way| {
            let gain = bootstrap(&way.trained.of_queries, &way.posthoc.of_queries, self.seed);
            format!(
                "{} on real pairs: {:.1} times fewer vectors; trained so {:+.1} points of nDCG@10 \
                 against folded afterwards (p = {:.2}), {:+.1} against all vectors (publication: \
                 -0.2 at 2.9 times fewer, -2.0 at 11 times fewer)",
                way.fold,
                self.whole.rows.0 / way.trained.rows.0.max(1e-9),
                100.0 * gain.mean,
                gain.p,
                way.trained.points() - self.whole.points(),
            )
        };
        self.ways.iter().map(of_way).collect()
    }

    pub(super) fn lines(&self) -> Vec<Line> {
        let line = |name: &str, of: &dyn Fn(&Way) -> f64| {
            let mut points: Vec<(f64, f64)> = self
                .ways
                .iter()
                .map(|way| (way.trained.rows.0, of(way)))
                .collect();
            points.push((self.whole.rows.0, self.whole.points()));
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            (name.to_owned(), points)
        };
        vec![
            line("folded afterwards", &|way| way.posthoc.points()),
            line("trained so", &|way| way.trained.points()),
        ]
    }

    pub(super) fn values(&self) -> Value {
        let measured = |m: &Measured| json!({"ndcg_10": m.points() / 100.0, "document_rows": m.rows.0, "query_rows": m.rows.1});
        json!({
            "model": self.model,
            "pairs": self.pairs,
            "steps": [self.steps.0, self.steps.1],
            "first": measured(&self.first),
            "whole": measured(&self.whole),
            "ways": self.ways.iter().map(|way| json!({
                "fold": way.fold,
                "post_hoc": measured(&way.posthoc),
                "trained": measured(&way.trained),
            })).collect::<Vec<_>>(),
        })
    }
}

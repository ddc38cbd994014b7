//! A model of the user's, trained on her pairs in the stages of the publication: whole
//! texts, then a vector for each token or for each whole word, then gates.

use keyfold_core::{Encoder, ModelFolder, Progress, Role};
use keyfold_text::colberter::train::{ColberterConfig, train};
use keyfold_text::{BagOfWords, ColberterEncoder, ColberterOptions, LoadOptions, SentenceEncoder};
use keyfold_train::Decay;
use keyfold_train::gradient::{OptimConfig, OptimizerKind};
use rayon::prelude::*;
use serde_json::{Value, json};

use super::super::search::Collection;
use crate::plot::Line;
use crate::quality::{mean, ndcg};
use crate::report::Table;
use crate::{BenchError, BenchOptions, Scale, trained};

/// Steps of a stage, and queries in a batch.
fn size(scale: Scale) -> (u64, usize) {
    match scale {
        Scale::Smoke => (2, 4),
        Scale::Small => (200, 32),
        Scale::Full => (20_000, 32),
    }
}

/// A trained model on the collection.
struct Way {
    name: &'static str,
    /// Vectors of words or tokens of a document.
    vectors: f64,
    /// Bytes of a document: a byte for each number.
    bytes: f64,
    ndcg: f64,
}

/// What was measured.
pub(super) struct Real {
    model: String,
    pairs: usize,
    steps: u64,
    ways: Vec<Way>,
}

/// Runs where the options name a model, pairs and a teacher.
pub(super) fn run(
    collection: &Collection,
    options: &BenchOptions,
    progress: &dyn Progress,
) -> Result<Option<Real>, BenchError> {
    let (Some(model), Some(path), Some(teacher)) =
        (&options.model, &options.pairs, &options.teacher)
    else {
        return Ok(None);
    };
    let pairs = trained::pairs(path)?;
    let loading = LoadOptions {
        threads: options.threads,
    };
    let teacher = SentenceEncoder::load(&trained::find(teacher)?, &loading)?;
    let teachers: [&dyn Encoder; 1] = [&teacher];
    let (steps, batch_size) = size(options.scale);
    let scratch = tempfile::tempdir()?;
    let stage = |from: &ModelFolder, name: &str, stage: u8, whole_words: bool, sparsity: f64| {
        let config = ColberterConfig {
            stage,
            aggregate_unique_ids: whole_words,
            sparsity,
            batch_size,
            seed: options.seed,
            optim: OptimConfig {
                optimizer: OptimizerKind::Adam,
                learning_rate: 3e-4,
                weight_decay: 0.0,
                max_steps: steps,
                warmup_steps: steps / 10,
                decay: Decay::Linear,
                ..OptimConfig::default()
            },
            run: trained::unwatched(),
            ..ColberterConfig::default()
        };
        let out = scratch.path().join(name);
        trained::train(&out, progress, |place| {
            train(from, &teachers, &pairs, &config, place)
        })
    };
    let base = trained::find(model)?;
    let texts = stage(&base, "texts", 1, true, 0.0)?;
    let tokens = stage(&texts, "tokens", 2, false, 0.0)?;
    let words = stage(&texts, "words", 2, true, 0.0)?;
    let gates = stage(&words, "gates", 3, true, 1.0)?;
    let mut ways = Vec::new();
    for (name, folder) in [
        ("a vector for each token", &tokens),
        ("for each whole word", &words),
        ("for each word that its gate leaves", &gates),
    ] {
        let model = ColberterEncoder::load(folder, CUT, &loading)?;
        ways.push(measure(name, &model, collection, progress)?);
    }
    Ok(Some(Real {
        model: base.name,
        pairs: pairs.0.len(),
        steps,
        ways,
    }))
}

/// Long texts are cut.
const CUT: ColberterOptions = ColberterOptions {
    words: None,
    keep_stopwords: false,
    truncate: true,
};

fn measure(
    name: &'static str,
    model: &ColberterEncoder,
    collection: &Collection,
    progress: &dyn Progress,
) -> Result<Way, BenchError> {
    let documents = trained::searchable(&collection.documents);
    progress.start("encode", "texts", Some(documents.len() as u64));
    let mut bags: Vec<BagOfWords> = Vec::new();
    for texts in documents.chunks(64) {
        if progress.cancelled() {
            return Err(BenchError::Cancelled);
        }
        let views: Vec<&str> = texts.iter().map(String::as_str).collect();
        let made = model.bags(&views, Role::Document)?;
        bags.extend(made.into_iter().map(BagOfWords::without_removed));
        progress.advance(texts.len() as u64);
    }
    progress.finish();
    let queries: Vec<&str> = collection.queries.iter().map(String::as_str).collect();
    let queries = model.bags(&queries, Role::Query)?;
    let of_queries: Vec<f64> = queries
        .par_iter()
        .zip(&collection.relevant)
        .map(|(query, relevant)| {
            let score = |d: &BagOfWords| model.score(query, d, false).total;
            let mut scored: Vec<(f32, usize)> = bags.iter().map(score).zip(0..).collect();
            scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            let best: Vec<usize> = scored.into_iter().take(10).map(|(_, d)| d).collect();
            ndcg(&best, relevant, 10)
        })
        .collect();
    let words: usize = bags.iter().map(|bag| bag.words.len()).sum();
    let vectors = words as f64 / bags.len().max(1) as f64;
    let whole = bags.first().map_or(0, |bag| bag.whole.len());
    Ok(Way {
        name,
        vectors,
        bytes: whole as f64 + vectors * model.word_dim() as f64,
        ndcg: mean(&of_queries),
    })
}

impl Real {
    pub(super) fn table(&self) -> Table {
        let title = format!(
            "{} trained on {} pairs, {} steps a stage",
            self.model, self.pairs, self.steps
        );
        let mut table = Table::new(&title, &["vectors", "of a document", "bytes", "nDCG@10"]);
        for way in &self.ways {
            table.row([
                way.name.to_owned(),
                format!("{:.1}", way.vectors),
                format!("{:.0}", way.bytes),
                format!("{:.4}", way.ndcg),
            ]);
        }
        table
    }

    pub(super) fn finding(&self) -> String {
        let [tokens, words, gates] = &self.ways[..] else {
            return String::new();
        };
        format!(
            "trained on real pairs: {:.2} times fewer bytes by whole words ({:+.1} points of \
             nDCG@10 against tokens), {:.2} times with gates, which remove {:.0} % of the words \
             ({:+.1} points); publication: up to 2.5 times at equal effectiveness, 29 % removed",
            tokens.bytes / words.bytes,
            100.0 * (words.ndcg - tokens.ndcg),
            tokens.bytes / gates.bytes,
            100.0 * (1.0 - gates.vectors / words.vectors.max(1e-9)),
            100.0 * (gates.ndcg - tokens.ndcg),
        )
    }

    pub(super) fn lines(&self) -> Vec<Line> {
        let mut points: Vec<(f64, f64)> = self.ways.iter().map(|w| (w.bytes, w.ndcg)).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        vec![("trained on pairs".to_owned(), points)]
    }

    pub(super) fn values(&self) -> Value {
        json!({
            "model": self.model,
            "pairs": self.pairs,
            "steps": self.steps,
            "ways": self.ways.iter().map(|way| json!({
                "vectors": way.name,
                "of_a_document": way.vectors,
                "bytes": way.bytes,
                "ndcg_10": way.ndcg,
            })).collect::<Vec<_>>(),
        })
    }
}

//! Training with folded vectors, with the toy encoder.

use keyfold_core::Progress;
use keyfold_search::fold::Fold;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::super::search::Collection;
use super::quality;
use crate::quality::mean;
use crate::report::{Table, reached};
use crate::toy::{Groups, Reduce, TokenTower, TrainOptions, World, train};
use crate::{BenchError, BenchOptions, Scale};

/// Length of a row of the toy encoder.
const DIM: usize = 64;

struct Size {
    steps: usize,
    /// Steps from there with folding, or without.
    more: usize,
    batch: usize,
    seeds: u64,
    folds: &'static [&'static str],
}

fn size(scale: Scale) -> Size {
    const ALL: &[&str] = &[
        "c8x32",
        "c4x8",
        "c50",
        "c25",
        "tail:8x32",
        "tail:4x8",
        "space:2",
        "space:4",
    ];
    let small = Size {
        steps: 2000,
        more: 500,
        batch: 64,
        seeds: 3,
        folds: ALL,
    };
    match scale {
        Scale::Smoke => Size {
            steps: 20,
            more: 10,
            batch: 16,
            seeds: 2,
            folds: &["c4x8", "tail:4x8"],
        },
        Scale::Small => small,
        // The paper's steps and batch, with each variant.
        Scale::Full => Size {
            steps: 20_000,
            more: 20_000,
            batch: 128,
            ..small
        },
    }
}

/// Results, in points of nDCG@10; the numbers of each way are those of the seeds.
pub(super) struct Trained {
    size: Size,
    words: usize,
    /// Before the further steps.
    start: Vec<f64>,
    /// After the further steps, with all vectors.
    whole: Vec<f64>,
    /// Vectors of a document and of a query.
    vectors: (f64, f64),
    ways: Vec<Way>,
}

struct Way {
    fold: Fold,
    vectors: (f64, f64),
    /// Folded after training without.
    posthoc: Vec<f64>,
    /// Trained with it.
    trained: Vec<f64>,
}

pub(super) fn run(
    collection: &Collection,
    options: &BenchOptions,
    progress: &dyn Progress,
) -> Result<Trained, BenchError> {
    let size = size(options.scale);
    let world = World::new(&collection.documents, &collection.queries, options.seed);
    let folds = size.folds.iter().filter_map(|f| f.parse::<Fold>().ok());
    let way = |fold| Way {
        fold,
        vectors: (0.0, 0.0),
        posthoc: Vec::new(),
        trained: Vec::new(),
    };
    let mut result = Trained {
        words: world.lexicon.len(),
        start: Vec::new(),
        whole: Vec::new(),
        vectors: (0.0, 0.0),
        ways: folds.map(way).collect(),
        size,
    };
    let of_seed = result.size.steps + result.size.more * (1 + result.ways.len());
    let all = of_seed as u64 * result.size.seeds;
    progress.start("train", "steps", Some(all));
    for seed in 0..result.size.seeds {
        result.seed(&world, collection, options, options.seed + seed, progress)?;
    }
    progress.finish();
    Ok(result)
}

impl Trained {
    /// One seed: the start, then every way from there on the same batches.
    fn seed(
        &mut self,
        world: &World,
        collection: &Collection,
        options: &BenchOptions,
        seed: u64,
        progress: &dyn Progress,
    ) -> Result<(), BenchError> {
        let threads = options.thread_count();
        let go_on = |tower: &mut TokenTower, steps: usize, seed: u64| -> Result<(), BenchError> {
            let mut rng = StdRng::seed_from_u64(seed);
            let training = TrainOptions {
                steps,
                threads,
                ..TrainOptions::default()
            };
            let batch = || world.batch(self.size.batch, &mut rng);
            train(tower, batch, &training, progress).map(|_| ())
        };
        let measure = |tower: &TokenTower| {
            let ranked = world.rank(tower, 10, threads);
            let points = 100.0 * mean(&quality(&ranked.lists, collection));
            (points, (ranked.document_rows, ranked.query_rows))
        };
        let mut start = TokenTower::new(DIM, seed);
        go_on(&mut start, self.size.steps, seed)?;
        self.start.push(measure(&start).0);
        let mut whole = start.clone();
        go_on(&mut whole, self.size.more, !seed)?;
        let (points, vectors) = measure(&whole);
        self.whole.push(points);
        self.vectors = vectors;
        for way in &mut self.ways {
            let fold = way.fold;
            let reduce: Box<Reduce> = Box::new(move |rows: &[f32], dim: usize, role| {
                Groups::new(
                    fold.groups(rows, dim, role == keyfold_core::Role::Query, 0)
                        .of_rows(),
                )
            });
            let (points, vectors) = measure(&whole.with(Some(&*reduce)));
            way.posthoc.push(points);
            way.vectors = vectors;
            let mut tower = start.with(Some(&*reduce));
            go_on(&mut tower, self.size.more, !seed)?;
            way.trained.push(measure(&tower).0);
        }
        Ok(())
    }

    pub(super) fn table(&self) -> Table {
        let title = format!(
            "toy encoder ({} words, {DIM} numbers a vector), {} steps of {} pairs with all vectors, then {}: vectors of a document and of a query, points of nDCG@10 over {} seeds",
            self.words, self.size.steps, self.size.batch, self.size.more, self.size.seeds
        );
        let columns = [
            "vectors folded",
            "of a document",
            "of a query",
            "after training",
            "in training",
            "gain",
        ];
        let mut table = Table::new(&title, &columns);
        table.row([
            "none".to_owned(),
            format!("{:.1}", self.vectors.0),
            format!("{:.1}", self.vectors.1),
            with_spread(&self.whole),
            String::new(),
            String::new(),
        ]);
        for way in &self.ways {
            table.row([
                way.fold.to_string(),
                format!("{:.1}", way.vectors.0),
                format!("{:.1}", way.vectors.1),
                with_spread(&way.posthoc),
                with_spread(&way.trained),
                with_spread(&way.gains()),
            ]);
        }
        table
    }

    pub(super) fn findings(&self) -> Vec<String> {
        let mut findings = vec![format!(
            "Toy encoder: {} after the first {} steps, {} after {} more, with all vectors.",
            with_spread(&self.start),
            self.size.steps,
            with_spread(&self.whole),
            self.size.more
        )];
        let way = |spec: &str| self.ways.iter().find(|w| w.fold.to_string() == spec);
        if let Some(way) = way("c8x32") {
            let lost = mean(&way.trained) - mean(&self.whole);
            findings.push(format!(
                "Trained with c8x32: {lost:+.1} points against all vectors. Paper, on BEIR: 54.5 against 54.3, so about level (within 1 point), {}.",
                reached(lost.abs() <= 1.0)
            ));
        }
        if let Some(way) = way("c4x8") {
            let gain = mean(&way.gains());
            findings.push(format!(
                "Trained with c4x8 against folded afterwards: {gain:+.1} points; expected 1 to 5, {}. Paper, on BEIR: 52.3 trained with c4x8, 54.3 with all vectors; here {:.1} and {:.1}.",
                reached((1.0..=5.0).contains(&gain)),
                mean(&way.trained),
                mean(&self.whole),
            ));
        }
        if let (Some(tail), Some(clusters)) = (way("tail:4x8"), way("c4x8")) {
            let lost = mean(&tail.trained) - mean(&clusters.trained);
            findings.push(format!(
                "Trained with tail:4x8: {lost:+.1} points against c4x8. Paper: 23.0 against 52.3, so far below (5 points or more), {}.",
                reached(lost <= -5.0)
            ));
        }
        findings
    }

    pub(super) fn values(&self) -> Value {
        let way = |w: &Way| {
            json!({
                "fold": w.fold.to_string(),
                "document_vectors": w.vectors.0,
                "query_vectors": w.vectors.1,
                "post_hoc": w.posthoc,
                "trained": w.trained,
            })
        };
        json!({
            "start": self.start,
            "whole": self.whole,
            "ways": self.ways.iter().map(way).collect::<Vec<_>>(),
        })
    }
}

impl Way {
    /// What training adds, by seed.
    fn gains(&self) -> Vec<f64> {
        let pairs = self.trained.iter().zip(&self.posthoc);
        pairs.map(|(t, p)| t - p).collect()
    }
}

/// Mean and standard deviation.
fn with_spread(values: &[f64]) -> String {
    let m = mean(values);
    let squares: f64 = values.iter().map(|v| (v - m).powi(2)).sum();
    let spread = (squares / (values.len() as f64 - 1.0).max(1.0)).sqrt();
    format!("{m:.1} ± {spread:.1}")
}

//! Recall of a dear scorer's best items against the number of items that it scores:
//! Efficient Nearest Neighbor Search for Cross-Encoder Models using Matrix
//! Factorization (ANNCUR, Yadav et al., EMNLP 2022), and its adaptive successor.
//!
//! Synthetic items, where the scorer's best are known: queries `u` and items `v` of
//! 32 numbers with scales `0.9^j`, `s(u, v) = u v + 6 w tanh(2 (u A + v B))`, and a
//! dual encoder that sees both with noise of 0.25. Then a judged collection, where
//! the scorer is MaxSim of the default encoder as a black box, or a cross-encoder
//! (`--cross-encoder`, with fewer queries), beside rerank-the-top of BM25, of TF-IDF
//! and of single vectors (`--teacher`, or latent semantic analysis).

mod world;

use keyfold_core::{Encoder, PairScorer, Progress};
use keyfold_search::candidates::Method;
use keyfold_search::codebook::Bits;
use keyfold_search::engine::{Mode, SearchOptions, rank_all};
use keyfold_search::rerank::cur::Inverse;
use keyfold_search::store::Snapshot;
use keyfold_text::CrossEncoder;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use serde_json::{Value, json};

use super::search::{Collection, fixture, read};
use crate::lsa::{self, Lsa};
use crate::quality::mean;
use crate::report::{Report, Table};
use crate::store;
use crate::trained::searchable;
use crate::{BenchError, BenchOptions, Experiment, Scale, plot};
use world::{Sizes, World, anchor_scores, drawn, relative_error, synthetic};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "anncur",
    about: "recall of a cross-encoder's best against its calls: ANNCUR and ADACUR beside \
            rerank-the-top",
    run,
};

/// What the specification's own run gave: the method, its anchors, its calls, the
/// length of the list, and the recall.
const REFERENCE: [(&str, usize, usize, usize, f64); 13] = [
    (DUAL, 0, 100, 10, 0.28),
    (DUAL, 0, 200, 10, 0.37),
    (DUAL, 0, 500, 10, 0.51),
    (RANDOM, 0, 100, 10, 0.02),
    (RANDOM, 0, 200, 10, 0.04),
    (RANDOM, 0, 500, 10, 0.10),
    (CUR, 50, 100, 10, 1.0),
    (CUR, 50, 200, 10, 1.0),
    (CUR, 50, 500, 10, 1.0),
    (DUAL, 0, 200, 100, 0.24),
    (CUR, 50, 200, 100, 0.98),
    (DUAL, 0, 100, 100, 0.16),
    (CUR, 25, 100, 100, 0.68),
];
/// As [`REFERENCE`], for the dual encoder where the scorer is linear.
const LINEAR_REFERENCE: [(usize, f64); 3] = [(100, 0.83), (200, 0.91), (500, 0.96)];
/// The reference's relative error by the number of anchor queries, with 100 anchors.
const CONDITION_REFERENCE: [(usize, f64); 4] =
    [(50, 0.107), (100, 1.72), (200, 0.053), (500, 0.042)];
const DUAL: &str = "dual encoder";
const RANDOM: &str = "random";
const CUR: &str = "ANNCUR";
const ADAPTIVE: &str = "ADACUR";
const MAXSIM: &str = "MaxSim";

/// Anchor queries and held-out queries that a cross-encoder reads with every document:
/// twice as many as there are anchors, and enough to tell methods apart.
const READ: (usize, usize) = (100, 25);

fn run(options: &BenchOptions, progress: &dyn Progress) -> Result<Report, BenchError> {
    let sizes = match options.scale {
        Scale::Smoke => Sizes {
            items: 400,
            train: 120,
            test: 20,
            seeds: 1,
        },
        Scale::Small => Sizes {
            items: 5000,
            train: 500,
            test: 200,
            seeds: 3,
        },
        Scale::Full => Sizes {
            items: 10_000,
            train: 500,
            test: 500,
            seeds: 5,
        },
    };
    progress.start("synthetic items", "worlds", Some(2 * sizes.seeds));
    let mut worlds = Vec::new();
    let mut linear = Vec::new();
    for seed in 0..sizes.seeds {
        for (worlds, bent) in [(&mut worlds, true), (&mut linear, false)] {
            if progress.cancelled() {
                return Err(BenchError::Cancelled);
            }
            worlds.push(synthetic(&sizes, options.seed + seed, bent)?);
            progress.advance(1);
        }
    }
    progress.finish();
    let comparable = options.scale == Scale::Small;
    let (synthetic, synthetic_values) = synthetic_table(&worlds, &linear, options.seed, comparable);
    let (condition, condition_values) = condition_table(&worlds[0], options.seed, comparable);
    let collection = match &options.data {
        Some(folder) => read(folder)?,
        None => fixture()?,
    };
    let real = real(&collection, options, progress)?;
    report(
        vec![synthetic, condition],
        json!([synthetic_values, condition_values]),
        &real,
        options,
    )
}

/// `comparable`: whether the sizes are those of the reference.
fn synthetic_table(
    worlds: &[World],
    linear: &[World],
    seed: u64,
    comparable: bool,
) -> (Table, Value) {
    let columns = ["method", "anchors", "calls", "best", "recall", "reference"];
    let mut table = Table::new("synthetic items: recall of the scorer's best", &columns);
    let mut values = Vec::new();
    let mut row = |name: String,
                   anchors: usize,
                   calls: usize,
                   k: usize,
                   recall: f64,
                   reference: Option<f64>| {
        let reference = reference.filter(|_| comparable);
        let reference_cell = reference.map_or(String::new(), |r| format!("{r:.2}"));
        let anchors_cell = if anchors > 0 {
            anchors.to_string()
        } else {
            String::new()
        };
        values.push(json!({
            "method": name, "anchors": anchors, "calls": calls, "best": k, "recall": recall,
            "reference": reference,
        }));
        table.row([
            name,
            anchors_cell,
            calls.to_string(),
            k.to_string(),
            format!("{recall:.2}"),
            reference_cell,
        ]);
    };
    let over = |worlds: &[World], f: &dyn Fn(&World) -> f64| {
        mean(&worlds.iter().map(f).collect::<Vec<_>>())
    };
    for (name, anchors, calls, k, reference) in REFERENCE {
        let recall = over(worlds, &|w| match name {
            DUAL => w.top_of(&w.cheap[0].1, calls, k),
            RANDOM => w.random(calls, k, seed),
            _ => w.cur(anchors, calls, k, seed),
        });
        row(name.to_owned(), anchors, calls, k, recall, Some(reference));
    }
    for (calls, k) in [(100, 10), (100, 100), (200, 100)] {
        let recall = over(worlds, &|w| w.adaptive(&w.cheap[0].1, calls, k));
        row(ADAPTIVE.to_owned(), 0, calls, k, recall, None);
    }
    for (calls, reference) in LINEAR_REFERENCE {
        let recall = over(linear, &|w| w.top_of(&w.cheap[0].1, calls, 10));
        row(
            format!("linear scorer: {DUAL}"),
            0,
            calls,
            10,
            recall,
            Some(reference),
        );
    }
    (table, json!({ "synthetic": values }))
}

/// How far estimates are from the truth, by the number of anchor queries.
fn condition_table(world: &World, seed: u64, comparable: bool) -> (Table, Value) {
    const ANCHORS: usize = 100;
    let columns = ["anchor queries", "pseudo-inverse", "reference", "ridge"];
    let title = format!("synthetic items: relative error of estimates from {ANCHORS} anchors");
    let mut table = Table::new(&title, &columns);
    let mut values = Vec::new();
    let anchors = drawn(world.items(), ANCHORS, seed);
    for (queries, reference) in CONDITION_REFERENCE {
        let Some(index) = world.index.first_queries(queries) else {
            continue;
        };
        let [pseudo, ridge] = [Inverse::Pseudo, Inverse::default()]
            .map(|inverse| relative_error(world, &index, &anchors, inverse));
        table.row([
            queries.to_string(),
            format!("{pseudo:.3}"),
            if comparable {
                format!("{reference:.3}")
            } else {
                String::new()
            },
            format!("{ridge:.3}"),
        ]);
        values.push(json!({
            "queries": queries, "pseudo": pseudo, "ridge": ridge, "reference": reference,
        }));
    }
    (table, json!({ "condition": values }))
}

/// The collection as a world: MaxSim of the default encoder or a cross-encoder is the
/// scorer, and some of the queries are anchors.
fn real(
    collection: &Collection,
    options: &BenchOptions,
    progress: &dyn Progress,
) -> Result<World, BenchError> {
    let n = collection.documents.len();
    let mut queries: Vec<&str> = collection.queries.iter().map(String::as_str).collect();
    queries.shuffle(&mut StdRng::seed_from_u64(options.seed));
    let mut held_out = queries.split_off(queries.len() * 2 / 3);
    let scorer = options.cross_encoder.as_deref();
    let scorer = scorer.map(|name| CrossEncoder::load(name, &store::load_options(options)));
    let scorer = scorer.transpose()?;
    if scorer.is_some() {
        queries.truncate(READ.0);
        held_out.truncate(READ.1);
    }
    let encoder = store::encoder(options)?;
    let (anchors, truth) = {
        let folder = tempfile::tempdir()?;
        store::write(
            folder.path(),
            &collection.documents,
            &*encoder,
            Bits::Four,
            options,
            progress,
        )?;
        let snapshot = Snapshot::open(folder.path())?;
        let all = |queries: &[&str], mode| {
            all_scores(&snapshot, queries, &*encoder, mode, n, options, progress)
        };
        let truth = all(&held_out, Mode::Meaning)?;
        let anchors = match scorer {
            Some(_) => Vec::new(),
            None => all(&queries, Mode::Meaning)?,
        };
        (anchors, (truth, all(&held_out, Mode::Lexical)?))
    };
    let texts: Vec<String> = (collection.documents.iter())
        .map(|d| format!("{}\n{}", d.heading, d.body))
        .collect();
    let mut cheap = vec![
        ("BM25", truth.1),
        ("TF-IDF", lsa::tf_idf(&texts, &held_out)),
    ];
    let dual: Option<Box<dyn Encoder>> = match &options.teacher {
        Some(teacher) => Some(keyfold_text::load(teacher, &store::load_options(options))?),
        None if n <= lsa::MOST_TEXTS => {
            let lsa = Lsa::learn(&texts, 150, options.seed, options.thread_count());
            Some(Box::new(lsa))
        }
        None => None,
    };
    if let Some(dual) = dual {
        let folder = tempfile::tempdir()?;
        store::write(
            folder.path(),
            &collection.documents,
            &*dual,
            Bits::Eight,
            options,
            progress,
        )?;
        let snapshot = Snapshot::open(folder.path())?;
        let scores = all_scores(
            &snapshot,
            &held_out,
            &*dual,
            Mode::Meaning,
            n,
            options,
            progress,
        )?;
        cheap.push((DUAL, scores));
    }
    let (anchors, truth) = match scorer {
        None => (anchors, truth.0),
        Some(scorer) => {
            // The store's own search is then one of the cheap ones.
            cheap.insert(2, (MAXSIM, truth.0));
            let texts = searchable(&collection.documents);
            let read = |queries: &[&str]| read_all(&scorer, queries, &texts, progress);
            (read(&queries)?, read(&held_out)?)
        }
    };
    Ok(World {
        index: anchor_scores(&anchors.concat(), n)?,
        truth,
        cheap,
    })
}

/// The scores of a cross-encoder for every query with every document.
fn read_all(
    scorer: &dyn PairScorer,
    queries: &[&str],
    texts: &[String],
    progress: &dyn Progress,
) -> Result<Vec<Vec<f32>>, BenchError> {
    let mut all = Vec::with_capacity(queries.len());
    let pairs = (queries.len() * texts.len()) as u64;
    progress.start("cross-encoder reads", "pairs", Some(pairs));
    for query in queries {
        let mut scores = Vec::with_capacity(texts.len());
        for batch in texts.chunks(32) {
            if progress.cancelled() {
                return Err(BenchError::Cancelled);
            }
            let pairs: Vec<(&str, &str)> = batch.iter().map(|t| (*query, t.as_str())).collect();
            scores.extend(scorer.score(&pairs)?);
            progress.advance(batch.len() as u64);
        }
        all.push(scores);
    }
    progress.finish();
    Ok(all)
}

/// The scores of all documents for every query; those that are not found have less
/// than all others.
fn all_scores(
    snapshot: &Snapshot,
    queries: &[&str],
    encoder: &dyn Encoder,
    mode: Mode,
    n: usize,
    options: &BenchOptions,
    progress: &dyn Progress,
) -> Result<Vec<Vec<f32>>, BenchError> {
    let mut search = SearchOptions {
        k: n,
        mode,
        ..SearchOptions::default()
    };
    search.candidates.method = Method::Exhaustive;
    search.candidates.threads = options.thread_count();
    let mut all = Vec::with_capacity(queries.len());
    progress.start("scores", "queries", Some(queries.len() as u64));
    for batch in queries.chunks(8) {
        if progress.cancelled() {
            return Err(BenchError::Cancelled);
        }
        for ranked in rank_all(snapshot, batch, Some(encoder), &search)? {
            let least = ranked.ranked.last().map_or(0.0, |r| r.score) - 1.0;
            let mut scores = vec![least; n];
            ranked
                .ranked
                .iter()
                .for_each(|r| scores[r.passage as usize] = r.score);
            all.push(scores);
        }
        progress.advance(batch.len() as u64);
    }
    progress.finish();
    Ok(all)
}

fn report(
    mut tables: Vec<Table>,
    synthetic: Value,
    real: &World,
    options: &BenchOptions,
) -> Result<Report, BenchError> {
    let columns = ["method", "calls", "recall@1", "recall@10", "recall@100"];
    let title = format!(
        "{} documents, {} anchor queries, {} others: recall of {}'s best",
        real.items(),
        real.index.queries(),
        real.truth.len(),
        match &options.cross_encoder {
            Some(_) => "the cross-encoder",
            None => MAXSIM,
        }
    );
    let mut table = Table::new(&title, &columns);
    let mut values = Vec::new();
    let mut lines: Vec<plot::Line> = Vec::new();
    let mut wins = Vec::new();
    // 50, 100, 200 and 400 of Cranfield's 1400 documents.
    let shares = [1, 2, 4, 8].map(|n| real.items() * n / 28);
    let budgets: Vec<usize> = shares.into_iter().filter(|&calls| calls > 1).collect();
    for &calls in &budgets {
        let mut row = |name: String, recall: [f64; 3]| {
            values.push(json!({"method": name, "calls": calls, "recall": recall}));
            let line = name.split(',').next().unwrap_or(&name).to_owned();
            let point = (calls as f64, recall[1]);
            match lines.iter_mut().find(|l| l.0 == line) {
                Some(known) => known.1.push(point),
                None => lines.push((line, vec![point])),
            }
            let [a, b, c] = recall.map(|r| format!("{r:.3}"));
            table.row([name, calls.to_string(), a, b, c]);
        };
        let ks = [1, 10, 100];
        let mut best = 0.0f64;
        for (name, scores) in &real.cheap {
            let recall = ks.map(|k| real.top_of(scores, calls, k));
            best = best.max(recall[1]);
            row((*name).to_owned(), recall);
        }
        let anchors = (calls / 2).min(50);
        let cur = ks.map(|k| real.cur(anchors, calls, k, options.seed));
        row(format!("{CUR}, {anchors} anchors"), cur);
        let first = real.cheap.last().map_or(&real.truth, |c| &c.1);
        let adapted = ks.map(|k| real.adaptive(first, calls, k));
        row(ADAPTIVE.to_owned(), adapted);
        wins.push((calls, cur[1], adapted[1], best));
    }
    let mut findings = vec![
        "Paper: for more than 10 wanted items ANNCUR recalls more for each call than \
         rerank-the-top of a dual encoder or of TF-IDF; for the one best item a dual encoder is \
         a match."
            .to_owned(),
    ];
    findings.extend(wins.into_iter().map(|(calls, cur, adapted, best)| {
        format!(
            "{calls} calls, best 10: ANNCUR {cur:.3}, ADACUR {adapted:.3}, the best \
             rerank-the-top {best:.3}."
        )
    }));
    tables.push(table);
    Ok(Report {
        name: EXPERIMENT.name.to_owned(),
        tables,
        findings,
        values: json!({ "synthetic": synthetic, "real": values }),
        svg: plot::lines(
            "Recall of the scorer's best 10",
            "calls",
            "recall@10",
            &lines,
        )?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cross_encoder_is_the_scorer_of_few_queries() {
        let model = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../text/tests/fixtures-scorers/cross-bert");
        let options = BenchOptions {
            scale: Scale::Smoke,
            cross_encoder: Some(model.to_string_lossy().into_owned()),
            ..BenchOptions::default()
        };
        let collection = fixture().unwrap();
        let world = real(&collection, &options, &keyfold_core::NoProgress).unwrap();
        assert_eq!(world.items(), collection.documents.len());
        assert_eq!(
            world.truth.len(),
            collection.queries.len().div_ceil(3).min(READ.1)
        );
        // MaxSim finds documents for it, and its own scores are others.
        let (_, maxsim) = world.cheap.iter().find(|c| c.0 == MAXSIM).unwrap();
        assert_eq!(maxsim.len(), world.truth.len());
        assert_ne!(*maxsim, world.truth);
        // With every document read, its own best are found.
        assert_eq!(world.top_of(maxsim, world.items(), 3), 1.0);
    }
}

//! Reranking by a dear scorer, from end to end.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use keyfold_core::{EncodeError, EncoderIdentity, NoProgress, PairScorer, Progress};
use keyfold_search::SearchError;
use keyfold_search::engine::{Models, SearchOptions, search_with};
use keyfold_search::filter::Filters;
use keyfold_search::rerank::cur::{AnchorScores, Inverse};
use keyfold_search::rerank::{Anchors, RerankBy, RerankOptions, Reranker};
use keyfold_search::store::check;

use crate::world::{World, file};

/// Two words with numbers far apart score low: `-(a - b)^2 / 1000`, which is of rank
/// three.
struct Distance {
    identity: EncoderIdentity,
    read: Mutex<Vec<(String, String)>>,
}

impl Distance {
    fn new() -> Self {
        Self {
            identity: EncoderIdentity {
                name: "distance".to_owned(),
                hash: "0123456789abcdef".to_owned(),
                dim: 1,
            },
            read: Mutex::default(),
        }
    }

    fn calls(&self) -> Vec<(String, String)> {
        std::mem::take(&mut self.read.lock().unwrap())
    }
}

fn number(text: &str) -> f32 {
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(0.0)
}

impl PairScorer for Distance {
    fn identity(&self) -> &EncoderIdentity {
        &self.identity
    }

    fn score(&self, pairs: &[(&str, &str)]) -> Result<Vec<f32>, EncodeError> {
        let mut read = self.read.lock().unwrap();
        read.extend(
            pairs
                .iter()
                .map(|(q, p)| ((*q).to_owned(), (*p).to_owned())),
        );
        let score = |(q, p): &(&str, &str)| -(number(q) - number(p)).powi(2) / 1000.0;
        Ok(pairs.iter().map(score).collect())
    }
}

fn numbers() -> World {
    let passages: Vec<String> = (0..200).map(|i| format!("item{i}")).collect();
    let views: Vec<&str> = passages.iter().map(String::as_str).collect();
    World::new(&[
        file("low.md", &views[..100]),
        file("high.md", &views[100..]),
    ])
}

fn queries() -> Vec<String> {
    (0..20).map(|i| format!("query {}", i * 11)).collect()
}

fn options(by: RerankBy, calls: usize) -> RerankOptions {
    RerankOptions {
        by,
        calls,
        anchors: 6,
        rounds: 4,
        ..RerankOptions::default()
    }
}

/// The texts of the best passages for a query that shares no word with any.
fn find(world: &World, scorer: &Distance, how: RerankOptions, filters: Filters) -> Vec<String> {
    let snapshot = world.snapshot();
    let anchors = match how.by {
        RerankBy::All => None,
        _ => Anchors::open(&snapshot, scorer, Some(&queries()), None, &NoProgress).unwrap(),
    };
    scorer.calls();
    let reranker = Reranker::new(scorer, anchors, how).unwrap();
    let models = Models {
        encoder: Some(&world.model),
        reranker: Some(&reranker),
        ..Models::default()
    };
    let options = SearchOptions {
        k: 3,
        filters,
        ..SearchOptions::default()
    };
    let found = search_with(&snapshot, "query 42", &models, &options).unwrap();
    found.hits.into_iter().map(|h| h.text).collect()
}

#[test]
fn few_calls_find_the_best_of_the_scorer() {
    let (world, scorer) = (numbers(), Distance::new());
    for by in [RerankBy::Cur, RerankBy::AdaCur] {
        let found = find(&world, &scorer, options(by, 20), Filters::default());
        assert_eq!(found, ["item42", "item41", "item43"], "{by:?}");
        let calls = scorer.calls();
        assert_eq!(calls.len(), 20, "{by:?}");
        assert!(calls.iter().all(|(q, _)| q == "query 42"));
    }
    // Of all passages, the best of the search are no better than any others here.
    let found = find(
        &world,
        &scorer,
        options(RerankBy::All, 200),
        Filters::default(),
    );
    assert_eq!(found, ["item42", "item41", "item43"]);
    assert_eq!(scorer.calls().len(), 200);
}

#[test]
fn filters_hold_and_anchors_outside_do_not_come_back() {
    let (world, scorer) = (numbers(), Distance::new());
    let filters = || Filters {
        globs: vec!["high.md".to_owned()],
        ..Filters::default()
    };
    for by in [RerankBy::All, RerankBy::Cur, RerankBy::AdaCur] {
        let found = find(&world, &scorer, options(by, 100), filters());
        assert_eq!(found, ["item100", "item101", "item102"], "{by:?}");
    }
}

#[test]
fn scores_of_anchors_follow_the_store() {
    let (world, scorer) = (numbers(), Distance::new());
    let open = |queries: Option<&[String]>| {
        scorer.calls();
        let anchors = Anchors::open(&world.snapshot(), &scorer, queries, None, &NoProgress)
            .unwrap()
            .unwrap();
        (anchors, scorer.calls().len())
    };
    let missing = Anchors::open(&world.snapshot(), &scorer, None, None, &NoProgress)
        .err()
        .unwrap();
    assert!(
        missing.to_string().contains("--anchor-queries"),
        "{missing}"
    );
    let (anchors, calls) = open(Some(&queries()));
    assert_eq!((anchors.ids().len(), calls), (200, 4000));
    assert_eq!(open(None).1, 0);
    // Ten come, a hundred go.
    let passages: Vec<String> = (300..310).map(|i| format!("item{i}")).collect();
    let views: Vec<&str> = passages.iter().map(String::as_str).collect();
    world.change(&[file("new.md", &views)], &["low.md"]);
    let (anchors, calls) = open(None);
    assert_eq!((anchors.ids().len(), calls), (110, 200));
    assert_eq!(anchors.queries(), queries());
    assert_eq!(anchors.scores().items(), 110);
    // Other queries begin anew.
    assert_eq!(open(Some(&queries()[..5])).1, 550);
    let none = Anchors::open(&world.snapshot(), &scorer, Some(&[]), None, &NoProgress);
    assert!(none.err().unwrap().to_string().contains("no anchor query"));
}

#[test]
fn passages_that_come_later_are_scored_by_a_few_queries() {
    let (world, scorer) = (numbers(), Distance::new());
    let open = |queries: Option<&[String]>, few| {
        scorer.calls();
        let anchors = Anchors::open(&world.snapshot(), &scorer, queries, few, &NoProgress);
        (anchors.unwrap().unwrap(), scorer.calls().len())
    };
    // At first all queries score all passages, whatever is asked.
    let (anchors, calls) = open(Some(&queries()), Some(6));
    assert_eq!((anchors.estimated(), calls), (0, 4000));
    let passages: Vec<String> = (300..310).map(|i| format!("item{i}")).collect();
    let views: Vec<&str> = passages.iter().map(String::as_str).collect();
    world.change(&[file("new.md", &views)], &[]);
    let (anchors, calls) = open(None, Some(6));
    assert_eq!((anchors.estimated(), calls), (10, 60));
    // The scores are of rank three, so six tell all.
    let snapshot = world.snapshot();
    let mut checked = 0;
    for (i, &id) in anchors.ids().iter().enumerate() {
        let text = snapshot.passage(id).unwrap().unwrap().passage.text;
        let pairs: Vec<(&str, &str)> = anchors.queries().iter().map(|q| (&**q, &*text)).collect();
        let truth = scorer.score(&pairs).unwrap();
        for (a, b) in anchors.scores().item(i).iter().zip(&truth) {
            assert!((a - b).abs() < 0.05, "{text}: {a}, not {b}");
        }
        checked += usize::from(number(&text) >= 300.0);
    }
    assert_eq!(checked, 10);
    // What is estimated stays, is told from the rest, and goes with its file.
    let (anchors, calls) = open(None, None);
    assert_eq!((anchors.estimated(), calls), (10, 0));
    world.change(&[], &["new.md"]);
    assert_eq!(open(None, None).0.estimated(), 0);
}

/// Fails after some pairs.
struct Faulty(Distance, AtomicUsize);

impl PairScorer for Faulty {
    fn identity(&self) -> &EncoderIdentity {
        self.0.identity()
    }

    fn score(&self, pairs: &[(&str, &str)]) -> Result<Vec<f32>, EncodeError> {
        if self.1.fetch_add(pairs.len(), Ordering::Relaxed) > 1000 {
            return Err(EncodeError::Program {
                program: "faulty".to_owned(),
                what: "stopped".to_owned(),
            });
        }
        self.0.score(pairs)
    }
}

#[test]
fn what_was_scored_before_a_failure_is_kept() {
    let world = numbers();
    let faulty = Faulty(Distance::new(), AtomicUsize::new(0));
    let open = || {
        Anchors::open(
            &world.snapshot(),
            &faulty,
            Some(&queries()),
            None,
            &NoProgress,
        )
    };
    let error = open().err().unwrap().to_string();
    assert!(error.contains("faulty"), "{error}");
    let before = faulty.0.calls().len();
    assert!(before > 900, "{before}");
    faulty.1.store(0, Ordering::Relaxed);
    // The rest, in as many runs as it takes.
    while open().is_err() {
        faulty.1.store(0, Ordering::Relaxed);
    }
    assert_eq!(before + faulty.0.calls().len(), 4000);
}

/// Asks to stop after some advances.
struct Impatient(AtomicUsize);

impl Progress for Impatient {
    fn start(&self, _: &str, _: &str, _: Option<u64>) {}
    fn advance(&self, _: u64) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
    fn set_total(&self, _: u64) {}
    fn finish(&self) {}
    fn note(&self, _: &str) {}
    fn cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }
}

#[test]
fn a_stopped_run_keeps_what_is_done() {
    let (world, scorer) = (numbers(), Distance::new());
    let stop = Impatient(AtomicUsize::new(5));
    let stopped = Anchors::open(&world.snapshot(), &scorer, Some(&queries()), None, &stop).unwrap();
    assert!(stopped.is_none());
    let before = scorer.calls().len();
    assert!(before > 0 && before < 4000);
    let anchors = Anchors::open(&world.snapshot(), &scorer, None, None, &NoProgress).unwrap();
    assert_eq!(anchors.unwrap().ids().len(), 200);
    assert_eq!(before + scorer.calls().len(), 4000);
}

#[test]
fn damaged_anchors_are_named_by_check_and_made_anew() {
    let (world, scorer) = (numbers(), Distance::new());
    let open =
        |queries| Anchors::open(&world.snapshot(), &scorer, queries, None, &NoProgress).unwrap();
    let asked = queries();
    open(Some(&asked)).unwrap();
    let store = world.snapshot().store().to_owned();
    assert!(check(&store, &NoProgress).unwrap().is_sound());

    let path = store.join("anchors/0123456789abcdef.kfx");
    let right = std::fs::read(&path).unwrap();
    for at in (0..right.len()).step_by(right.len() / 20) {
        let mut wrong = right.clone();
        wrong[at] ^= 1;
        std::fs::write(&path, wrong).unwrap();
        let damaged = check(&store, &NoProgress).unwrap().damaged;
        assert_eq!(damaged.len(), 1, "byte {at}");
        assert_eq!(damaged[0].path, path);
    }
    scorer.calls();
    open(Some(&asked)).unwrap();
    assert_eq!(scorer.calls().len(), 4000);
    assert!(check(&store, &NoProgress).unwrap().is_sound());
}

#[test]
fn budgets_that_mean_nothing_are_refused() {
    let (world, scorer) = (numbers(), Distance::new());
    let anchors = || {
        Anchors::open(
            &world.snapshot(),
            &scorer,
            Some(&queries()),
            None,
            &NoProgress,
        )
        .unwrap()
    };
    let refused = |anchors, how| match Reranker::new(&scorer, anchors, how) {
        Err(SearchError::Rerank { what }) => what,
        _ => panic!("not refused"),
    };
    assert!(refused(None, options(RerankBy::All, 0)).contains("--calls"));
    assert!(refused(None, options(RerankBy::Cur, 9)).contains("--anchor-queries"));
    assert!(refused(anchors(), options(RerankBy::Cur, 6)).contains("--anchors"));
    // 20 anchor queries are enough for 10 anchors without ridge, and for 11 with it.
    let with = |anchors, inverse| RerankOptions {
        anchors,
        inverse,
        ..options(RerankBy::Cur, 30)
    };
    let said = refused(anchors(), with(11, Inverse::Pseudo));
    for part in [
        "20 anchor queries",
        "at least 22",
        "at most 10 --anchors",
        "--ridge none",
    ] {
        assert!(said.contains(part), "{said}");
    }
    for sound in [with(10, Inverse::Pseudo), with(11, Inverse::default())] {
        assert!(Reranker::new(&scorer, anchors(), sound).is_ok());
    }
}

/// What the authors' code gave (parity/cur.py).
#[derive(serde::Deserialize)]
struct Reference {
    anchors: Vec<usize>,
    /// `[queries][items]`.
    scores: Vec<Vec<f32>>,
    /// `[anchors][queries]`.
    inverse: Vec<Vec<f64>>,
    /// Of held-out queries with the anchors, and what follows for all items.
    queries: Vec<Vec<f32>>,
    estimates: Vec<Vec<f32>>,
    new: ReferenceNew,
}

/// New items: their scores by some queries, and what follows for all queries.
#[derive(serde::Deserialize)]
struct ReferenceNew {
    queries: Vec<usize>,
    items: Vec<usize>,
    given: Vec<Vec<f32>>,
    complete: Vec<Vec<f32>>,
}

#[test]
fn estimates_are_those_of_the_authors_code() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cur.json");
    let reference: Reference = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let items = 0..reference.scores[0].len();
    let by_item = items.flat_map(|i| reference.scores.iter().map(move |row| row[i]));
    let index = AnchorScores::new(by_item.collect(), reference.scores.len()).unwrap();
    let factor = index.factor(&reference.anchors, Inverse::Pseudo);
    let theirs = reference.inverse.concat();
    let largest = theirs.iter().copied().fold(0.0, |m: f64, x| m.max(x.abs()));
    assert_eq!(factor.as_slice().len(), theirs.len());
    for (a, b) in factor.as_slice().iter().zip(&theirs) {
        assert!((a - b).abs() < 1e-8 * largest, "{a} {b}");
    }
    for (scores, expected) in reference.queries.iter().zip(&reference.estimates) {
        let ridge = index.estimate(&reference.anchors, scores, Inverse::default());
        for (found, tolerance) in [(index.estimate_with(&factor, scores), 2e-5), (ridge, 1e-3)] {
            for (a, b) in found.iter().zip(expected) {
                assert!((a - b).abs() < tolerance, "{a} {b}");
            }
        }
    }
    let new = reference.new;
    let by_few = index.for_new_items(&new.queries, &new.items, Inverse::Pseudo);
    for (given, complete) in new.given.iter().zip(&new.complete) {
        for (a, b) in by_few.estimate(given).iter().zip(complete) {
            assert!((a - b).abs() < 2e-5, "{a} {b}");
        }
    }
}

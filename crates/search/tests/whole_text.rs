//! Stores of models with a vector of each whole text and one of each of its words.
#![allow(clippy::unwrap_used)]

mod common;

use std::ops::Range;
use std::path::Path;

use common::{text, write_old};
use keyfold_core::{EncodeError, Encoder, EncoderIdentity, NoProgress, Role, Vectors};
use keyfold_search::SearchError;
use keyfold_search::candidates::tune::{TuneOptions, tune};
use keyfold_search::candidates::{Access, Method};
use keyfold_search::codebook::Bits;
use keyfold_search::engine::{Mode, SearchOptions, search};
use keyfold_search::explain::Retriever;
use keyfold_search::feedback::VectorFeedback;
use keyfold_search::fuse::Fuse;
use keyfold_search::index::{IndexOptions, update};
use keyfold_search::store::Snapshot;
use proptest::prelude::*;

const WORD: usize = 8;
const HEADS: usize = 2;
/// A text in which the model finds no word.
const SILENT: &str = "hush";

/// Two rows of the whole text, then a row of each different word; words with an even
/// id are left out of documents.
struct Bags {
    identity: EncoderIdentity,
    exact: bool,
}

impl Bags {
    fn new() -> Self {
        Self {
            identity: EncoderIdentity {
                name: "bags".to_owned(),
                hash: "1".to_owned(),
                dim: WORD,
            },
            exact: false,
        }
    }

    fn one(&self, text: &str, role: Role) -> Vectors {
        self.encode(&[text], role).unwrap().remove(0)
    }
}

fn id(word: &str) -> u32 {
    word.bytes()
        .fold(17u32, |h, b| h.wrapping_mul(31) ^ u32::from(b))
        % 100_000
        + 1
}

fn random(seed: u32, n: usize) -> Vec<f32> {
    let mut state = u64::from(seed) * 2 + 1;
    (0..n)
        .map(|_| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1u32 << 22) as f32 - 2.0
        })
        .collect()
}

/// Different words in the order in which they come.
fn words(text: &str) -> Vec<(Range<usize>, u32)> {
    let mut all: Vec<(Range<usize>, u32)> = Vec::new();
    for word in text.split_whitespace() {
        let start = word.as_ptr() as usize - text.as_ptr() as usize;
        if word != SILENT && all.iter().all(|w| w.1 != id(word)) {
            all.push((start..start + word.len(), id(word)));
        }
    }
    all
}

impl Encoder for Bags {
    fn identity(&self) -> &EncoderIdentity {
        &self.identity
    }

    fn encode(&self, texts: &[&str], role: Role) -> Result<Vec<Vectors>, EncodeError> {
        let one = |text: &&str| {
            let words = words(text);
            let mut whole = vec![0.0; HEADS * WORD];
            for (_, id) in &words {
                let of_word = random(id + 7, HEADS * WORD);
                whole
                    .iter_mut()
                    .zip(of_word)
                    .for_each(|(w, x)| *w += 0.2 * x);
            }
            let (mut rows, mut ids) = (whole, vec![0; HEADS]);
            for (_, id) in words {
                if role == Role::Query || id % 2 == 1 {
                    rows.extend(random(id, WORD));
                    ids.push(id);
                }
            }
            Vectors::new(WORD, rows).unwrap().with_ids(ids)
        };
        Ok(texts.iter().map(one).collect())
    }

    fn spans(&self, text: &str, _: Role) -> Result<Vec<Option<Range<usize>>>, EncodeError> {
        let words = words(text).into_iter().map(|w| Some(w.0));
        Ok(std::iter::repeat_n(None, HEADS).chain(words).collect())
    }

    fn whole_text_rows(&self) -> usize {
        HEADS
    }

    fn exact_match(&self) -> bool {
        self.exact
    }

    fn spans_of_ids(
        &self,
        text: &str,
        _: Role,
        ids: &[u32],
    ) -> Result<Vec<Option<Range<usize>>>, EncodeError> {
        let words = words(text);
        let span = |id: &u32| words.iter().find(|w| w.1 == *id).map(|w| w.0.clone());
        Ok(ids.iter().map(span).collect())
    }
}

/// The score by its definition, and how far eight bits may be from it.
fn score(query: &Vectors, passage: &Vectors, exact: bool) -> (f32, f32) {
    let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
    let norm = |a: &[f32]| product(a, a).sqrt();
    let mut sum: f32 = (0..HEADS)
        .map(|i| product(query.row(i), passage.row(i)))
        .sum();
    for i in HEADS..query.rows() {
        let products = (HEADS..passage.rows()).map(|j| {
            let same = query.ids().unwrap()[i] == passage.ids().unwrap()[j];
            if exact && !same {
                0.0
            } else {
                product(query.row(i), passage.row(j))
            }
        });
        sum += products.reduce(f32::max).unwrap_or(0.0);
    }
    let longest = passage.iter().map(norm).fold(0.0, f32::max);
    (sum, query.iter().map(norm).sum::<f32>() * longest * 0.02)
}

fn index(folder: &Path, model: &Bags, options: &IndexOptions) -> Result<Snapshot, SearchError> {
    let store = folder.join(".keyfold");
    update(&store, &[folder.to_owned()], model, options, &NoProgress)?;
    Snapshot::open(&store)
}

fn meaning() -> SearchOptions {
    SearchOptions {
        k: 1000,
        mode: Mode::Meaning,
        explain: true,
        ..SearchOptions::default()
    }
}

#[track_caller]
fn assert_scores(snapshot: &Snapshot, model: &Bags, query: &str, options: &SearchOptions) -> usize {
    let exact = options.candidates.exact_match.unwrap_or(model.exact);
    let found = search(snapshot, query, Some(model), options).unwrap();
    let q = model.one(query, Role::Query);
    for hit in &found.hits {
        let (expected, near) = score(&q, &model.one(&hit.text, Role::Document), exact);
        assert!(
            (hit.score - expected).abs() <= near,
            "{} {expected}",
            hit.score
        );
        // What is said to add up does.
        let pairs = hit.explanation.as_ref().unwrap();
        let pairs: Vec<_> = pairs
            .iter()
            .filter(|p| p.retriever == Retriever::Meaning)
            .collect();
        let sum: f32 = pairs.iter().map(|p| p.score).sum();
        assert!(
            (sum - hit.score).abs() <= 1e-3 * (1.0 + sum.abs()),
            "{sum} {}",
            hit.score
        );
        assert_eq!((&pairs[0].query, &pairs[0].passage), (&None, &None));
        for pair in &pairs[1..] {
            assert!(query.contains(pair.query.as_deref().unwrap()));
            if let Some(word) = &pair.passage {
                assert!(hit.text.contains(word.as_str()));
                // "word12." is shown as the word in it.
                assert!(!exact || pair.score == 0.0 || query.contains(word.as_str()));
            }
        }
    }
    assert!(found.hits.windows(2).all(|w| w[0].score >= w[1].score));
    found.hits.len()
}

#[test]
fn scores_are_those_of_whole_texts_and_words_through_every_change_of_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = Bags::new();
    let (first, more) = (text(1, 40), text(2, 30));
    let queries = [&first[..60], &more[..40], "word1 nothing word2"];
    for n in 0..7 {
        // Every run a commit of its own, so that segments are merged.
        for i in 0..=n {
            let path = dir.path().join(format!("{n}-{i}.txt"));
            write_old(&path, &text(n * 10 + i, 60 + 20 * i), 100);
        }
        if n == 4 {
            std::fs::remove_file(dir.path().join("2-1.txt")).unwrap();
        }
        let snapshot = index(dir.path(), &model, &IndexOptions::default()).unwrap();
        assert_eq!(
            (snapshot.bits(), snapshot.whole_text_rows()),
            (Bits::Eight, HEADS)
        );
        for query in queries {
            for exact in [None, Some(true)] {
                let mut options = meaning();
                options.candidates.exact_match = exact;
                for (method, access) in [
                    (Method::Auto, Access::Mapped),
                    (Method::Cls, Access::Read),
                    (Method::Exhaustive, Access::Read),
                    (Method::Exhaustive, Access::Mapped),
                ] {
                    options.candidates.method = method;
                    options.candidates.access = access;
                    let found = assert_scores(&snapshot, &model, query, &options);
                    assert_eq!(found as u64, snapshot.passage_count());
                }
            }
        }
    }
    // What the model wants counts where the user does not say.
    model.exact = true;
    let snapshot = index(dir.path(), &model, &IndexOptions::default()).unwrap();
    assert_scores(&snapshot, &model, queries[0], &meaning());
    assert!(snapshot.segments().len() < 7, "nothing was merged");
    let report = keyfold_search::store::check(snapshot.store(), &NoProgress).unwrap();
    assert!(report.is_sound());
}

#[test]
fn passages_far_as_a_whole_are_not_compared_by_words() {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..400 {
        write_old(&dir.path().join(format!("{n}.txt")), &text(n, 20), 100);
    }
    let model = Bags::new();
    let snapshot = index(dir.path(), &model, &IndexOptions::default()).unwrap();
    let query = text(3, 20);
    let q = model.one(&query, Role::Query);
    let mut options = SearchOptions { k: 10, ..meaning() };
    options.candidates.cls = 1;
    options.candidates.exact = 10;
    let found = search(&snapshot, &query, Some(&model), &options)
        .unwrap()
        .hits;
    let whole = |text: &str| {
        let d = model.one(text, Role::Document);
        let product = |i: usize| {
            q.row(i)
                .iter()
                .zip(d.row(i))
                .map(|(a, b)| a * b)
                .sum::<f32>()
        };
        (0..HEADS).map(product).sum::<f32>()
    };
    let mut all: Vec<f32> = (0..400).map(|n| whole(&text(n, 20))).collect();
    all.sort_by(f32::total_cmp);
    // Twice as many as are wanted are compared by words.
    let least = all[400 - 20];
    assert_eq!(found.len(), 10);
    for hit in found {
        assert!(whole(&hit.text) >= least - 0.5, "{}", hit.text);
    }
}

#[test]
fn passages_that_words_find_are_compared_too() {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..400 {
        write_old(&dir.path().join(format!("{n}.txt")), &text(n, 20), 100);
    }
    let model = Bags::new();
    let snapshot = index(dir.path(), &model, &IndexOptions::default()).unwrap();
    let mut options = SearchOptions { k: 1, ..meaning() };
    options.candidates.cls = 1;
    options.candidates.exact = 1;
    options.fusion.fuse = Fuse::None;
    let mut gained = 0;
    for n in 0..20 {
        let query = text(1000 + n, 3);
        let mut best = |mode| {
            options.mode = mode;
            search(&snapshot, &query, Some(&model), &options)
                .unwrap()
                .hits
                .pop()
        };
        let (whole, words) = (best(Mode::Meaning).unwrap(), best(Mode::Lexical));
        let both = best(Mode::Both).unwrap();
        let mut expected = whole.score;
        if let Some(words) = words {
            let q = model.one(&query, Role::Query);
            let (score, near) = score(&q, &model.one(&words.text, Role::Document), false);
            gained += usize::from(score > expected + near);
            expected = expected.max(score);
        }
        assert!(
            (both.score - expected).abs() < 1.0,
            "{} {expected}",
            both.score
        );
        assert!(both.score >= whole.score);
    }
    assert!(gained > 0);
}

#[test]
fn what_does_not_go_with_such_a_store_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    write_old(&dir.path().join("a.txt"), &text(1, 50), 100);
    let model = Bags::new();
    let four = IndexOptions {
        bits: Some(Bits::Four),
        ..IndexOptions::default()
    };
    let error = index(dir.path(), &model, &four).unwrap_err().to_string();
    assert!(
        error.contains("'bags'") && error.contains("--bits 8"),
        "{error}"
    );
    assert!(Snapshot::open(&dir.path().join(".keyfold")).is_err());

    let snapshot = index(dir.path(), &model, &IndexOptions::default()).unwrap();
    let error = |options: &SearchOptions| {
        let found = search(&snapshot, "word1", Some(&model), options);
        found.unwrap_err().to_string()
    };
    for method in [Method::Fde, Method::Centroids, Method::Plaid, Method::Warp] {
        let mut options = meaning();
        options.candidates.method = method;
        assert!(error(&options).contains("--candidates cls or exhaustive"));
    }
    let mut options = meaning();
    options.feedback.vector = Some(VectorFeedback::average());
    assert!(error(&options).contains("--feedback rm3"));
    let error = tune(&snapshot, &model, &TuneOptions::default(), &NoProgress).unwrap_err();
    assert!(error.to_string().contains("--cls-candidates"), "{error}");
    // A query in which the model finds no word is compared as a whole, and that is said.
    let found = search(&snapshot, SILENT, Some(&model), &meaning()).unwrap();
    assert!(found.note.unwrap().contains("as a whole"));
    assert_eq!(found.hits.len() as u64, snapshot.passage_count());
    let found = search(&snapshot, "word1", Some(&model), &meaning()).unwrap();
    assert_eq!(found.note, None);

    let plain = common::Words::new();
    let other = tempfile::tempdir().unwrap();
    write_old(&other.path().join("a.txt"), "word1 word2", 100);
    let store = other.path().join(".keyfold");
    update(
        &store,
        &[other.path().to_owned()],
        &plain,
        &IndexOptions::default(),
        &NoProgress,
    )
    .unwrap();
    let snapshot = Snapshot::open(&store).unwrap();
    let mut options = meaning();
    options.candidates.method = Method::Cls;
    let error = search(&snapshot, "word1", Some(&plain), &options).unwrap_err();
    assert!(error.to_string().contains("leave it out"), "{error}");
    options.candidates.method = Method::Auto;
    options.candidates.exact_match = Some(true);
    let error = search(&snapshot, "word1", Some(&plain), &options).unwrap_err();
    assert!(error.to_string().contains("ColBERTer"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Few different words, so that passages of no, one and many kept words come.
    #[test]
    fn any_passages_have_their_score(
        passages in prop::collection::vec("[abc]( [abcde]){0,5}", 1..6),
        query in "[abcdef]( [abcdef]){0,3}",
        exact: bool,
    ) {
        let dir = tempfile::tempdir().unwrap();
        for (n, passage) in passages.iter().enumerate() {
            write_old(&dir.path().join(format!("{n}.txt")), passage, 100);
        }
        let model = Bags::new();
        let snapshot = index(dir.path(), &model, &IndexOptions::default()).unwrap();
        let mut options = meaning();
        options.candidates.exact_match = Some(exact);
        assert_scores(&snapshot, &model, &query, &options);
    }
}

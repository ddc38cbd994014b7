//! Feedback, learnt sparse weights and interpolation, from end to end.

use keyfold_core::{
    EncodeError, EncoderIdentity, NoProgress, Role, SparseEncoder, SparseVector, Vectors,
};
use keyfold_search::bm25::Bm25;
use keyfold_search::engine::{Mode, Models, Rankings, SearchOptions, rank, rank_with, search_with};
use keyfold_search::explain::{Retriever, WordMatch};
use keyfold_search::feedback::{Feedback, Rm3, Rocchio, TokenRows, VectorFeedback, VectorKind};
use keyfold_search::fuse::{self, Fuse, Interpolation, Scale};
use keyfold_search::sparse::SparseRetriever;
use keyfold_search::store::Snapshot;
use unicode_segmentation::UnicodeSegmentation;

use crate::world::{World, file};

const NONE: Feedback = Feedback {
    rm3: None,
    vector: None,
};

fn rm3(how: Rm3) -> Feedback {
    Feedback {
        rm3: Some(how),
        ..NONE
    }
}

fn vector(how: VectorFeedback) -> Feedback {
    Feedback {
        vector: Some(how),
        ..NONE
    }
}

/// Boats are sailed in wind: those passages share words that the query lacks.
fn harbour() -> World {
    let mut passages: Vec<String> = (0..30)
        .map(|i| format!("filler{i} text number{i}"))
        .collect();
    passages.push("boat sails wind".to_owned());
    passages.push("boat sails wind harbour".to_owned());
    passages.push("sails wind storm".to_owned());
    let views: Vec<&str> = passages.iter().map(String::as_str).collect();
    World::new(&[file("harbour.md", &views)])
}

fn texts(snapshot: &Snapshot, list: &[fuse::Ranked]) -> Vec<String> {
    let text = |r: &fuse::Ranked| snapshot.passage(r.passage).unwrap().unwrap().passage.text;
    list.iter().map(text).collect()
}

fn ranked(world: &World, query: &str, options: &SearchOptions) -> Rankings {
    rank(&world.snapshot(), query, Some(&world.model), options).unwrap()
}

#[test]
fn rm3_finds_passages_without_any_word_of_the_query() {
    let world = harbour();
    let snapshot = world.snapshot();
    let find = |feedback| {
        let options = SearchOptions {
            mode: Mode::Lexical,
            feedback,
            ..SearchOptions::default()
        };
        texts(&snapshot, &ranked(&world, "boat", &options).ranked)
    };
    assert_eq!(find(NONE).len(), 2);
    let with = find(rm3(Rm3::default()));
    assert!(with.contains(&"sails wind storm".to_owned()), "{with:?}");
    // With the whole weight on the query, nothing is learned.
    let only = find(rm3(Rm3 {
        weight: 1.0,
        ..Rm3::default()
    }));
    assert_eq!(only[..2], find(NONE));
}

#[test]
fn feedback_of_vectors_changes_the_order_by_meaning() {
    let world = harbour();
    let snapshot = world.snapshot();
    let place = |feedback| {
        let options = SearchOptions {
            mode: Mode::Meaning,
            k: 40,
            feedback,
            ..SearchOptions::default()
        };
        let found = texts(&snapshot, &ranked(&world, "boat", &options).ranked);
        found.iter().position(|t| t == "sails wind storm").unwrap()
    };
    let learned = |rows| {
        vector(VectorFeedback {
            k: 2,
            rows,
            ..VectorFeedback::average()
        })
    };
    assert_eq!(place(learned(TokenRows::Added)), 2);
    assert!(place(NONE) > 2);
    // All weight on the query: the same list again.
    let nothing = VectorKind::Rocchio(Rocchio {
        alpha: 1.0,
        beta: 0.0,
        ..Rocchio::default()
    });
    let nothing = vector(VectorFeedback {
        kind: nothing,
        ..VectorFeedback::rocchio()
    });
    assert_eq!(place(nothing), place(NONE));
}

#[test]
fn interpolation_mixes_where_it_is_told_to() {
    let world = harbour();
    let options = |fuse, feedback| {
        let mut options = SearchOptions {
            k: 40,
            feedback,
            ..SearchOptions::default()
        };
        options.fusion.fuse = fuse;
        options
    };
    let feedback = vector(VectorFeedback::average());
    let query = "boat storm";
    let none = ranked(&world, query, &options(Fuse::None, NONE));
    assert_eq!(none.ranked, none.meaning);
    let after = ranked(&world, query, &options(Fuse::After, NONE));
    let how = options(Fuse::After, NONE).fusion.interpolation;
    let mut expected = fuse::interpolate(&after.lexical, &after.meaning, &how);
    expected.truncate(40);
    assert_eq!(after.ranked, expected);
    assert_ne!(after.ranked, none.ranked);
    // Before: what the feedback learns from changes, and the list stands alone.
    let plain = ranked(&world, query, &options(Fuse::None, feedback));
    let before = ranked(&world, query, &options(Fuse::Before, feedback));
    assert_eq!(before.ranked, before.meaning);
    assert_ne!(plain.meaning, none.meaning);
    let both = ranked(&world, query, &options(Fuse::Both, feedback));
    assert_eq!(both.meaning, before.meaning);
    let mut expected = fuse::interpolate(&both.lexical, &both.meaning, &how);
    expected.truncate(40);
    assert_eq!(both.ranked, expected);
}

#[test]
fn bm25_takes_parameters_of_its_own() {
    let world = World::new(&[file(
        "a.md",
        &[
            "storm storm storm storm",
            "storm calm calm calm calm calm calm calm calm",
            "storm",
            "calm wind",
        ],
    )]);
    let scores = |bm25: Bm25| -> Vec<f32> {
        let options = SearchOptions {
            mode: Mode::Lexical,
            bm25,
            ..SearchOptions::default()
        };
        let mut list = ranked(&world, "storm", &options).ranked;
        list.sort_by_key(|r| r.passage);
        list.iter().map(|r| r.score).collect()
    };
    // By hand: N 4, df 3, lengths 4, 9, 1, 2, mean 4.
    let idf = (1.0f32 + 1.5 / 3.5).ln();
    let term = |tf: f32, length: f32| idf * tf / (tf + 0.9 * (1.0 - 0.4 + 0.4 * length / 4.0));
    let expected = [term(4.0, 4.0), term(1.0, 9.0), term(1.0, 1.0)];
    for (found, expected) in scores(Bm25::anserini()).iter().zip(expected) {
        assert!((found - expected).abs() < 1e-6, "{found} {expected}");
    }
    // The index's own parameters, scored by it and by us: the factor k1 + 1 apart.
    let own = scores(Bm25 {
        b: 0.75 + 1e-6,
        ..Bm25::default()
    });
    for (index, own) in scores(Bm25::default()).iter().zip(own) {
        assert!((index / 2.2 - own).abs() < 1e-5, "{index} {own}");
    }
}

#[test]
fn explanations_add_up_to_the_score_by_words() {
    let world = harbour();
    let snapshot = world.snapshot();
    let encoder = ByLength::new("abc2");
    let learnt = SparseRetriever::open(&snapshot, &encoder, &NoProgress).unwrap();
    for (bm25, feedback, sparse) in [
        (Bm25::default(), NONE, None),
        (Bm25::anserini(), NONE, None),
        (Bm25::default(), rm3(Rm3::default()), None),
        (Bm25::anserini(), rm3(Rm3::default()), None),
        (Bm25::default(), NONE, learnt.as_ref()),
    ] {
        let options = SearchOptions {
            mode: Mode::Lexical,
            bm25,
            feedback,
            explain: true,
            ..SearchOptions::default()
        };
        let models = Models {
            encoder: Some(&world.model),
            sparse,
            ..Models::default()
        };
        let hits = search_with(&snapshot, "boat", &models, &options)
            .unwrap()
            .hits;
        assert!(hits.len() >= 2);
        for hit in &hits {
            let words = hit.explanation.as_ref().unwrap().iter();
            let words: Vec<_> = words
                .filter(|w| w.retriever == Retriever::Lexical)
                .collect();
            let sum: f32 = words.iter().map(|w| w.score).sum();
            assert!(
                (sum / hit.score - 1.0).abs() < 1e-4,
                "{bm25:?}: {sum} {hit:?}"
            );
        }
        if feedback != NONE || sparse.is_some() {
            // What was added is named, and where it stands.
            let storm = hits.iter().find(|h| h.text == "sails wind storm").unwrap();
            let words = storm.explanation.as_ref().unwrap().iter();
            let added = if sparse.is_some() { "storm" } else { "wind" };
            let named = |w: &&WordMatch| w.query.as_deref() == Some(added);
            let found = words.clone().find(named).unwrap();
            assert_eq!(found.passage.as_deref(), Some(added));
        }
    }
}

/// Weighs words by their length; queries also ask for what goes with boats.
struct ByLength(EncoderIdentity);

impl ByLength {
    fn new(hash: &str) -> Self {
        Self(EncoderIdentity {
            name: "by length".to_owned(),
            hash: hash.to_owned(),
            dim: 1 << 20,
        })
    }
}

fn term(word: &str) -> u32 {
    let hash = word
        .bytes()
        .fold(5381u32, |h, b| h.wrapping_mul(33) ^ u32::from(b));
    hash % (1 << 20)
}

impl SparseEncoder for ByLength {
    fn identity(&self) -> &EncoderIdentity {
        &self.0
    }

    fn term(&self, sought: u32) -> String {
        let known = ["boat", "storm"].into_iter().find(|w| term(w) == sought);
        known.unwrap_or("another").to_owned()
    }

    fn encode(&self, texts: &[&str], role: Role) -> Result<Vec<SparseVector>, EncodeError> {
        let one = |text: &&str| {
            let mut words: Vec<&str> = text.unicode_words().collect();
            if role == Role::Query && words.contains(&"boat") {
                words.push("storm");
            }
            let weights = words.into_iter().map(|w| (term(w), w.len() as f32));
            SparseVector::new(weights, f32::max)
        };
        Ok(texts.iter().map(one).collect())
    }
}

#[test]
fn learnt_weights_stand_for_words_and_follow_the_store() {
    let world = harbour();
    let encoder = ByLength::new("abc1");
    let search = |world: &World| {
        let snapshot = world.snapshot();
        let sparse = SparseRetriever::open(&snapshot, &encoder, &NoProgress)
            .unwrap()
            .unwrap();
        let models = Models {
            encoder: Some(&world.model),
            sparse: Some(&sparse),
            ..Models::default()
        };
        let options = SearchOptions {
            mode: Mode::Lexical,
            ..SearchOptions::default()
        };
        let found = rank_with(&snapshot, "boat", &models, &options).unwrap();
        (texts(&snapshot, &found.ranked), sparse.len())
    };
    let (found, passages) = search(&world);
    assert_eq!(found[0], "sails wind storm");
    assert_eq!(found.len(), 3);
    assert_eq!(passages, 33);
    // A file comes and another goes.
    world.change(
        &[file("new.md", &["boat storm", "nothing"])],
        &["harbour.md"],
    );
    let (found, passages) = search(&world);
    assert_eq!(found, ["boat storm"]);
    assert_eq!(passages, 2);
    // A damaged file is made anew.
    let folder = world.snapshot().store().join("impacts");
    let path = std::fs::read_dir(&folder)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, &bytes[..]).unwrap();
    assert_eq!(search(&world).0, ["boat storm"]);
    assert_ne!(std::fs::read(&path).unwrap(), bytes);
    for cut in [0, 8, 17, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..cut]).unwrap();
        assert_eq!(search(&world).0, ["boat storm"]);
    }
}

/// What Anserini and Pyserini gave (parity/feedback.py).
#[derive(serde::Deserialize)]
struct Reference {
    documents: Vec<String>,
    queries: Vec<String>,
    bm25: Vec<Vec<(u64, f32)>>,
    rm3: Vec<Vec<(u64, f32)>>,
    vectors: ReferenceVectors,
    hybrid: ReferenceHybrid,
}

#[derive(serde::Deserialize)]
struct ReferenceVectors {
    query: Vec<f32>,
    passages: Vec<Vec<f32>>,
    average: Vec<f32>,
    rocchio: Vec<f32>,
}

#[derive(serde::Deserialize)]
struct ReferenceHybrid {
    sparse: Vec<(u64, f32)>,
    dense: Vec<(u64, f32)>,
    alpha: f32,
    centre: Vec<(u64, f32)>,
    raw: Vec<(u64, f32)>,
}

fn reference() -> Reference {
    let path =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/feedback.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn bm25_and_rm3_are_those_of_anserini() {
    let reference = reference();
    let views: Vec<&str> = reference.documents.iter().map(String::as_str).collect();
    let world = World::new(&[file("all.md", &views)]);
    for (feedback, expected) in [
        (NONE, &reference.bm25),
        (rm3(Rm3::default()), &reference.rm3),
    ] {
        for (query, expected) in reference.queries.iter().zip(expected) {
            let options = SearchOptions {
                mode: Mode::Lexical,
                k: 150,
                bm25: Bm25::anserini(),
                feedback,
                ..SearchOptions::default()
            };
            let found = ranked(&world, query, &options).ranked;
            assert!(!expected.is_empty());
            for (i, &(id, score)) in expected.iter().enumerate() {
                // It prints four digits, and takes a little off equal scores.
                let close = |r: &fuse::Ranked| (r.score - score).abs() < 3e-4;
                assert!(close(&found[i]), "{query} {i}: {:?}, not {score}", found[i]);
                let ours = found.iter().find(|r| r.passage == id);
                assert!(ours.is_some_and(close), "{query}: {ours:?}, not {score}");
            }
        }
    }
}

#[test]
fn vector_feedback_is_that_of_pyserini() {
    let ReferenceVectors {
        query,
        passages,
        average,
        rocchio,
    } = reference().vectors;
    let one = |v: &Vec<f32>| Vectors::new(v.len(), v.clone()).unwrap();
    let passages: Vec<Vectors> = passages.iter().map(one).collect();
    let new = VectorFeedback::average().apply(&one(&query), &passages, &[]);
    let how = VectorFeedback {
        kind: VectorKind::Rocchio(Rocchio {
            gamma: 0.1,
            bottom: 2,
            ..Rocchio::default()
        }),
        ..VectorFeedback::rocchio()
    };
    let taken_away = how.apply(&one(&query), &passages, &passages[6..]);
    for (ours, theirs) in [(new, average), (taken_away, rocchio)] {
        for (a, b) in ours.as_slice().iter().zip(&theirs) {
            assert!((a - b).abs() < 1e-6, "{ours:?} {theirs:?}");
        }
    }
}

#[test]
fn interpolated_scores_are_those_of_pyserini() {
    let ReferenceHybrid {
        sparse,
        dense,
        alpha,
        centre,
        raw,
    } = reference().hybrid;
    let list = |pairs: &[(u64, f32)]| -> Vec<fuse::Ranked> {
        let ranked = |&(passage, score): &(u64, f32)| fuse::Ranked { passage, score };
        pairs.iter().map(ranked).collect()
    };
    for (scale, theirs) in [(Scale::Centre, centre), (Scale::Raw, raw)] {
        // There the dense list counts 1 and the sparse one alpha.
        let how = Interpolation {
            weight: alpha / (1.0 + alpha),
            scale,
            depth: 100,
        };
        let ours = fuse::interpolate(&list(&sparse), &list(&dense), &how);
        assert_eq!(ours.len(), theirs.len());
        for (a, b) in ours.iter().zip(theirs) {
            // Single precision of sums near 80.
            assert!((a.score * (1.0 + alpha) - b.1).abs() < 5e-5, "{a:?} {b:?}");
        }
    }
}

//! Feedback, learnt sparse weights and interpolation, from end to end.

use keyfold_core::{EncodeError, EncoderIdentity, NoProgress, Role, SparseEncoder, SparseVector};
use keyfold_search::bm25::Bm25;
use keyfold_search::engine::{Mode, Models, Rankings, SearchOptions, rank, rank_with};
use keyfold_search::feedback::{Feedback, Rm3, Rocchio, TokenRows, VectorFeedback, VectorKind};
use keyfold_search::fuse::{self, Fuse};
use keyfold_search::sparse::SparseRetriever;
use keyfold_search::store::Snapshot;
use unicode_segmentation::UnicodeSegmentation;

use crate::world::{World, file};

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
    assert_eq!(find(Feedback::None).len(), 2);
    let with = find(Feedback::Rm3(Rm3::default()));
    assert!(with.contains(&"sails wind storm".to_owned()), "{with:?}");
    // With the whole weight on the query, nothing is learned.
    let only = find(Feedback::Rm3(Rm3 {
        weight: 1.0,
        ..Rm3::default()
    }));
    assert_eq!(only[..2], find(Feedback::None));
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
        Feedback::Vector(VectorFeedback {
            k: 2,
            rows,
            ..VectorFeedback::average()
        })
    };
    assert_eq!(place(learned(TokenRows::Added)), 2);
    assert!(place(Feedback::None) > 2);
    // All weight on the query: the same list again.
    let nothing = VectorKind::Rocchio(Rocchio {
        alpha: 1.0,
        beta: 0.0,
        ..Rocchio::default()
    });
    let nothing = Feedback::Vector(VectorFeedback {
        kind: nothing,
        ..VectorFeedback::rocchio()
    });
    assert_eq!(place(nothing), place(Feedback::None));
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
    let feedback = Feedback::Vector(VectorFeedback::average());
    let query = "boat storm";
    let none = ranked(&world, query, &options(Fuse::None, Feedback::None));
    assert_eq!(none.ranked, none.meaning);
    let after = ranked(&world, query, &options(Fuse::After, Feedback::None));
    let how = options(Fuse::After, Feedback::None).fusion.interpolation;
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

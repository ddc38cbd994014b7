//! Searching with a ColBERTer model, from the command line: a tiny random one, so that
//! what is found means nothing and how it is found does.

mod common;

use std::path::Path;

use common::Notes;
use serde_json::Value;

fn model(name: &str) -> String {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../text/tests/fixtures-colberter");
    fixtures.join(name).to_string_lossy().into_owned()
}

/// Its texts are cut at 96 tokens of one letter each.
fn indexed(more: &[&str]) -> Notes {
    let notes = Notes::new();
    let model = model("colberter");
    let args = ["index", ".", "--model", &model, "--truncate"];
    notes.run(&[&args[..], more].concat()).ok();
    notes
}

fn search(notes: &Notes, more: &[&str]) -> Value {
    let args = [
        "search",
        "the sail and the wind",
        "--mode",
        "meaning",
        "--json",
    ];
    notes.run(&[&args[..], more].concat()).json()
}

#[test]
fn hits_say_which_words_met_and_what_the_whole_texts_add() {
    let notes = indexed(&[]);
    let found = search(&notes, &["--explain"]);
    let hits = found["hits"].as_array().unwrap();
    assert!(hits.len() >= 3);
    for hit in hits {
        let pairs = hit["explanation"].as_array().unwrap();
        let sum: f64 = pairs.iter().map(|p| p["score"].as_f64().unwrap()).sum();
        assert!((sum - hit["score"].as_f64().unwrap()).abs() < 1e-2, "{sum}");
        assert!(pairs[0]["query"].is_null() && pairs[0]["passage"].is_null());
        let words: Vec<&str> = pairs[1..]
            .iter()
            .map(|p| p["query"].as_str().unwrap())
            .collect();
        assert_eq!(words, ["the", "sail", "and", "wind"]);
    }
    let text = notes
        .run(&["search", "sail", "--mode", "meaning", "--explain"])
        .ok();
    assert!(
        text.contains("whole query = whole passage") && text.contains("sail"),
        "{text}"
    );
    // All ways find the same in so small a store.
    for more in [
        &["--candidates", "cls"][..],
        &["--exhaustive"],
        &["--cls-candidates", "5"],
    ] {
        assert_eq!(
            search(&notes, &[&["--explain"][..], more].concat())["hits"],
            found["hits"]
        );
    }
}

#[test]
fn exact_matches_meet_the_same_word_only() {
    let notes = indexed(&[]);
    let found = search(&notes, &["--exact-match", "--explain"]);
    let mut met = 0;
    for hit in found["hits"].as_array().unwrap() {
        for pair in &hit["explanation"].as_array().unwrap()[1..] {
            if let Some(word) = pair["passage"].as_str() {
                let asked = pair["query"].as_str().unwrap();
                assert_eq!(word.to_lowercase(), asked.to_lowercase());
                met += 1;
            } else {
                assert_eq!(pair["score"].as_f64(), Some(0.0));
            }
        }
    }
    assert!(met > 0);
}

#[test]
fn options_of_words_stay_with_the_store() {
    let notes = indexed(&[]);
    let count = |notes: &Notes| -> u64 {
        let report = notes.run(&["index", ".", "--json"]).json();
        assert_eq!(report["bits"], 8);
        report["tokens"].as_u64().unwrap()
    };
    let removed = count(&notes);
    notes
        .run(&["index", ".", "--keep-stopwords"])
        .fails(1, &["#keep-stopwords", "--rebuild"]);
    notes
        .run(&["index", ".", "--keep-stopwords", "--rebuild"])
        .ok();
    let kept = count(&notes);
    assert!(removed < kept, "{removed} {kept}");
    notes
        .run(&["index", ".", "--words", "stem", "--rebuild"])
        .ok();
    let stems = count(&notes);
    assert!(stems < kept, "{stems} {kept}");
    search(&notes, &[]);
    notes.run(&["check"]).ok();
    notes
        .run(&["index", ".", "--words", "verb"])
        .fails(2, &["lower", "stem"]);
}

#[test]
fn the_built_in_model_can_keep_a_vector_for_each_word() {
    let rows = |words: &[&str]| -> (u64, Vec<String>) {
        let notes = Notes::new();
        let report = notes
            .run(&[&["index", ".", "--json"], words].concat())
            .json();
        let found = notes.find("boat in the wind", &["--mode", "meaning", "--explain"][..2]);
        notes
            .run(&["search", "boat", "--explain", "--mode", "meaning"])
            .ok();
        (report["tokens"].as_u64().unwrap(), found)
    };
    let (all, found) = rows(&[]);
    let (words, found_by_words) = rows(&["--words", "lower"]);
    let (stems, _) = rows(&["--words", "stem"]);
    assert!(all > words && words > stems, "{all} {words} {stems}");
    assert_eq!(found[0], found_by_words[0]);
}

#[test]
fn what_does_not_go_with_the_model_is_said() {
    let notes = Notes::new();
    let model = model("colberter");
    notes
        .run(&["index", ".", "--model", &model, "--bits", "4"])
        .fails(1, &["--bits 8"]);
    notes
        .run(&["index", ".", "--truncate"])
        .fails(1, &["builtin", "only ColBERTer models"]);
    let report = notes
        .run(&["index", ".", "--model", &model, "--list-skipped"])
        .ok();
    assert!(
        report.contains("--truncate") && report.contains("takes 96"),
        "{report}"
    );
    let notes = indexed(&[]);
    notes
        .run(&["search", "sail", "--candidates", "warp"])
        .fails(1, &["--candidates cls"]);
    notes
        .run(&["search", "sail", "--feedback", "vector"])
        .fails(1, &["--feedback rm3"]);
    notes
        .run(&["index", ".", "--fde"])
        .fails(1, &["whole texts"]);
    notes.run(&["tune", "."]).fails(1, &["--cls-candidates"]);
    notes
        .run(&["search", "sail", "--sparse", &model])
        .fails(1, &["8 numbers", "--model"]);
    let plain = Notes::new();
    plain
        .run(&["search", "sail", "--exact-match"])
        .fails(1, &["ColBERTer"]);
}

#[test]
fn a_model_of_one_number_a_word_finds_by_postings_and_by_whole_texts() {
    let notes = Notes::new();
    let uni = model("uni");
    let name = format!("{uni}#truncate");
    notes.run(&["index", ".", "--model", &name]).ok();
    let found = |more: &[&str]| {
        let args = [
            "search",
            "the sail and the wind",
            "--json",
            "--sparse",
            &name,
        ];
        notes.run(&[&args[..], more].concat()).json()
    };
    let shown = notes.run(&["model", "show", &uni, "--json"]).json();
    let told = &shown["colberter"];
    assert_eq!(
        (told["word_dim"].as_u64(), told["exact_match"].as_bool()),
        (Some(1), Some(true))
    );
    let weight = told["whole_text_weight"].as_f64().unwrap();
    let words = format!("{}", 1.0 - weight);
    let mixed = found(&[
        "--fuse",
        "after",
        "--scale",
        "raw",
        "--sparse-weight",
        &words,
    ]);
    let hits = mixed["hits"].as_array().unwrap();
    assert!(!hits.is_empty());
    for hit in hits {
        let part = |name: &str| hit[name]["score"].as_f64();
        let (Some(s), Some(d)) = (part("lexical"), part("meaning")) else {
            continue;
        };
        let sum = (1.0 - weight) * s + weight * d;
        assert!((sum - hit["score"].as_f64().unwrap()).abs() < 1e-3, "{hit}");
    }
    assert!(hits.iter().any(|hit| !hit["lexical"].is_null()), "{mixed}");
}

//! Folding of vectors, from the command line.

mod common;

use common::{Notes, contents};
use serde_json::Value;

/// A note that is longer than what folds leave of it.
const LONG: &str = "\
# Harbour

The harbour master counts the boats every evening and writes their names into a book. When the
wind turns to the north, small boats are pulled up to the beach and tied to the wall with long
ropes. Fishermen mend their nets on the pier and sell herring, cod and crabs in the morning.
";

fn notes() -> Notes {
    let notes = Notes::new();
    notes.write("harbour.md", LONG);
    notes
}

fn index(notes: &Notes, args: &[&str]) -> Value {
    notes
        .run(&[&["index", ".", "--json"], args].concat())
        .json()
}

#[test]
fn a_folded_store_is_smaller_finds_the_same_and_stays_folded() {
    let notes = notes();
    let store = |name: &str| notes.file(name).to_string_lossy().into_owned();
    let whole = index(&notes, &["--store", &store("whole")]);
    assert_eq!(whole["fold"], Value::Null);
    for spec in ["c4x8", "c25", "ward:3", "space:3", "tail:4x20"] {
        let folded = index(&notes, &["--store", &store(spec), "--fold", spec]);
        assert_eq!(folded["fold"], *spec);
        let tokens = |report: &Value| report["tokens"].as_u64().unwrap();
        assert!(tokens(&folded) < tokens(&whole), "{spec}");
        let found = notes.find(
            "yellow leaves of tomatoes",
            &["--store", &store(spec), "--mode", "meaning"],
        );
        assert_eq!(
            found.first().map(String::as_str),
            Some("garden.md"),
            "{spec}"
        );
        notes.run(&["check", "--store", &store(spec)]).ok();
    }
    // Later runs and searches fold what is new as the store says.
    let store = store("c4x8");
    let before = index(&notes, &["--store", &store]);
    notes.write("second.md", &LONG.replace("Harbour", "Second harbour"));
    let after = index(&notes, &["--store", &store]);
    let passages = |report: &Value| report["passages"].as_u64().unwrap();
    assert_eq!(passages(&after), passages(&before) + 1);
    let added = after["tokens"].as_u64().unwrap() - before["tokens"].as_u64().unwrap();
    assert_eq!((added, &after["fold"]), (8, &"c4x8".into()));
}

#[test]
fn hits_are_explained_by_words_though_rows_were_folded() {
    let notes = notes();
    index(&notes, &["--fold", "c4x8", "--fold-queries"]);
    let search = [
        "search",
        "fishermen mend their nets",
        "--mode",
        "meaning",
        "--explain",
        "--json",
    ];
    let hits = notes.run(&search).json();
    let hit = &hits["hits"][0];
    assert_eq!(hit["path"], "harbour.md");
    let pairs = hit["explanation"].as_array().unwrap();
    let met = |query: &str| {
        let pair = pairs.iter().find(|p| p["query"] == query);
        pair.and_then(|p| p["passage"].as_str()).unwrap_or_default()
    };
    assert_eq!((met("fishermen"), met("nets")), ("Fishermen", "nets"));
}

#[test]
fn the_same_texts_fold_to_the_same_store() {
    let notes = notes();
    let vectors = |name: &str| {
        let store = notes.file(name);
        index(
            &notes,
            &["--store", &store.to_string_lossy(), "--fold", "c4x8"],
        );
        let files = contents(&store.join("segments"));
        files
            .into_iter()
            .map(|(_, bytes)| bytes)
            .collect::<Vec<_>>()
    };
    assert_eq!(vectors("one"), vectors("two"));
}

#[test]
fn folded_stores_are_tuned_and_encoded() {
    let notes = notes();
    index(
        &notes,
        &[
            "--fold",
            "c8x32",
            "--fold-queries",
            "--fde=reps=4,simhash=3,proj=8",
        ],
    );
    notes.run(&["tune", ".", "--queries", "5"]).ok();
    for way in ["fde", "centroids", "exhaustive"] {
        let found = notes.find(
            "yellow leaves of tomatoes",
            &["--mode", "meaning", "--candidates", way],
        );
        assert_eq!(found.first().map(String::as_str), Some("garden.md"));
    }
    notes.run(&["check"]).ok();
}

#[test]
fn another_folding_than_the_store_s_is_refused_until_it_is_made_anew() {
    let notes = notes();
    let folded = index(&notes, &["--fold", "c4x8"]);
    notes
        .run(&["index", ".", "--fold", "c8x32"])
        .fails(1, &["--fold c4x8", "not c8x32", "--rebuild --fold c8x32"]);
    notes
        .run(&["index", ".", "--fold", "c4x8", "--fold-queries"])
        .fails(1, &["c4x8 --fold-queries"]);
    index(&notes, &["--fold", "c4x8"]);
    let whole = index(&notes, &["--rebuild", "--fold", "none"]);
    assert_eq!(whole["fold"], Value::Null);
    assert!(whole["tokens"].as_u64() > folded["tokens"].as_u64());
    notes
        .run(&["index", ".", "--fold", "c4x8"])
        .fails(1, &["--fold none"]);
}

#[test]
fn what_means_nothing_is_refused_before_anything_is_made() {
    let notes = notes();
    for bad in ["c0x8", "c100", "ward:1", "tail:4", "8x32", ""] {
        notes
            .run(&["index", ".", "--fold", bad])
            .fails(2, &["c4x8"]);
    }
    notes
        .run(&["index", ".", "--fold-queries"])
        .fails(2, &["--fold"]);
    notes
        .run(&["index", ".", "--fold", "none", "--raw-centroids"])
        .fails(2, &["--raw-centroids"]);
    notes
        .run(&["index", ".", "--fold", "c4x8", "--raw-centroids"])
        .fails(1, &["--bits 8"]);
    assert!(!notes.file(".keyfold").exists());
    let raw = index(
        &notes,
        &["--fold", "c4x8", "--raw-centroids", "--bits", "8"],
    );
    assert_eq!(raw["fold"], "c4x8 --raw-centroids");
    let found = notes.find("yellow leaves of tomatoes", &["--mode", "meaning"]);
    assert_eq!(found.first().map(String::as_str), Some("garden.md"));
}

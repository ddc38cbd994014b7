//! Token vectors of the user in the place of a model's, from the command line.

// A helper that cannot do its work fails the test that calls it.
#![allow(clippy::unwrap_used)]

mod common;

use common::Notes;
use keyfold_data::rows::write_npy;
use serde_json::Value;

/// The unit vectors along these axes of sixteen, as a `.npy` file.
fn write(notes: &Notes, name: &str, axes: &[usize]) {
    let rows = axes
        .iter()
        .flat_map(|&a| (0..16).map(move |i| f32::from(u8::from(i == a))));
    write_rows(notes, name, &rows.collect::<Vec<_>>(), 16);
}

fn write_rows(notes: &Notes, name: &str, numbers: &[f32], width: usize) {
    let path = notes.file(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    write_npy(&path, numbers, width).unwrap();
}

/// Three documents and a query that meets them with 2, 1 and 0 of its vectors.
fn vectors() -> Notes {
    let notes = Notes::new();
    write(&notes, "vectors/none.npy", &[2, 3]);
    write(&notes, "vectors/one.npy", &[1, 2, 3]);
    write(&notes, "vectors/both.npy", &[0, 1]);
    write(&notes, "query.npy", &[0, 1]);
    notes
}

const QUERY: [&str; 4] = ["search", "--query-vectors", "query.npy", "vectors"];

fn found(notes: &Notes, more: &[&str]) -> Vec<(String, f64)> {
    let found = notes.run(&[&QUERY[..], &["--json"], more].concat()).json();
    let hit = |h: &Value| {
        (
            h["text"].as_str().unwrap().to_owned(),
            h["score"].as_f64().unwrap(),
        )
    };
    found["hits"].as_array().unwrap().iter().map(hit).collect()
}

#[test]
fn documents_and_queries_are_files_of_vectors() {
    let notes = vectors();
    let index = notes.run(&[
        "index",
        "vectors",
        "--token-vectors",
        "--bits",
        "8",
        "--json",
    ]);
    let report = index.json();
    assert_eq!((&report["read"], &report["tokens"]), (&3.into(), &7.into()));
    assert_eq!(report["model"], "token-vectors:16");
    for way in [
        &[][..],
        &["--exhaustive"],
        &["--candidates", "fde"],
        &["--explain"],
    ] {
        let hits = found(&notes, way);
        let names: Vec<&str> = hits.iter().map(|h| &*h.0).collect();
        assert_eq!(names, ["both", "one", "none"], "{way:?}");
        for ((_, score), expected) in hits.iter().zip([2.0, 1.0, 0.0]) {
            assert!((score - expected).abs() < 0.05, "{way:?}: {score}");
        }
    }
    // A new file and a changed one are read by the next search; others than .npy are left.
    write(&notes, "vectors/later.npy", &[0, 1, 2]);
    write(&notes, "vectors/both.npy", &[3]);
    notes.write("vectors/readme.md", "two words");
    assert_eq!(found(&notes, &[])[0].0, "later");
    let skipped = notes.run(&["index", "vectors", "--list-skipped"]).ok();
    assert!(skipped.contains("no .npy file"), "{skipped}");
    notes.run(&["check", "vectors"]).ok();
    // Words are those of names.
    let named = notes.run(&["search", "later", "vectors", "--mode", "lexical", "-l"]);
    assert!(named.ok().contains("later.npy"));
    let both = [
        "search",
        "one",
        "vectors",
        "--query-vectors",
        "query.npy",
        "-l",
    ];
    assert!(notes.run(&both).ok().contains("one.npy"));
}

#[test]
fn folded_and_encoded_stores_take_them_too() {
    let notes = vectors();
    let args = [
        "index",
        "vectors",
        "--token-vectors",
        "--fold",
        "tail:4x1",
        "--json",
    ];
    assert_eq!(notes.run(&args).json()["tokens"], 3);
    // Of `both` the second vector stays, of the others the last.
    assert_eq!(found(&notes, &["--explain"])[0].0, "both");
}

#[test]
fn files_that_are_none_are_named_and_the_others_read() {
    let notes = vectors();
    write_rows(&notes, "vectors/wide.npy", &[1.0; 10], 5);
    write_rows(&notes, "vectors/wrong.npy", &[f32::NAN; 16], 16);
    let whole = std::fs::read(notes.file("vectors/one.npy")).unwrap();
    std::fs::write(notes.file("vectors/cut.npy"), &whole[..whole.len() - 3]).unwrap();
    notes.write("vectors/empty.npy", "");
    let args = ["index", "vectors", "--token-vectors", "--list-skipped"];
    let listed = notes.run(&args).ok();
    for part in [
        "wide.npy: failed: has vectors of 5 numbers, and the store has vectors of 16",
        "wrong.npy: failed: row 1, column 1 is NaN",
        "cut off",
        "empty.npy: skipped",
        "read 3, skipped 1, failed 3",
    ] {
        assert!(listed.contains(part), "{part}: {listed}");
    }
    assert_eq!(found(&notes, &[]).len(), 3);
}

#[test]
fn what_does_not_fit_is_refused() {
    let notes = vectors();
    notes
        .run(&["index", "trips", "--token-vectors"])
        .fails(2, &["no .npy file", "float16"]);
    notes
        .run(&["index", "vectors", "--token-vectors", "--model", "builtin"])
        .fails(2, &["--model"]);
    // A store of a model does not become one of vectors, nor the other way.
    notes.run(&["index", "trips"]).ok();
    notes
        .run(&["search", "trips", "--query-vectors", "query.npy"])
        .fails(2, &["--token-vectors", "builtin"]);
    write(&notes, "trips/a.npy", &[1]);
    notes
        .run(&["index", "trips", "--token-vectors"])
        .fails(1, &["builtin", "--rebuild"]);
    notes.run(&["index", "vectors", "--token-vectors"]).ok();
    notes
        .run(&["search", "boat", "vectors"])
        .fails(2, &["--query-vectors FILE.npy"]);
    write_rows(&notes, "wide.npy", &[1.0; 5], 5);
    write(&notes, "long.npy", &[0; 513]);
    notes.run(&["tune", "vectors"]).fails(2, &["token vectors"]);
    for (file, code, said) in [
        ("wide.npy", 2, "vectors of 5 numbers"),
        ("long.npy", 2, "at most 512"),
        ("garden.md", 1, "garden.md"),
        ("none.npy", 1, "none.npy"),
    ] {
        notes
            .run(&["search", "--query-vectors", file, "vectors"])
            .fails(code, &[said]);
    }
}

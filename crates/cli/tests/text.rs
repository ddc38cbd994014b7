//! `keyfold text`: codes of texts into a file, and the nearest of them.
#![allow(clippy::unwrap_used)]

mod common;

use common::Notes;

/// Two kinds of texts, and a small model of them in `codes`.
fn notes() -> Notes {
    let notes = Notes::new();
    let mut lines = String::new();
    for i in 0..40 {
        let (id, text) = match i % 2 {
            0 => ("sea", "the sail and the mast of a boat in the wind"),
            _ => ("farm", "a tomato and a cabbage grow in the garden"),
        };
        lines.push_str(&format!("{{\"id\": \"{id}-{i}\", \"text\": \"{text}\"}}\n"));
    }
    notes.write("texts.jsonl", &lines);
    let args = [
        "train",
        "binary-paragraph-vector",
        "--data",
        "texts.jsonl",
        "--out",
        "codes",
        "--set",
        "bits=64",
        "--set",
        "min_count=1",
        "--set",
        "epochs=30",
        // A dozen words are too few to leave some out, or to draw 64 others from.
        "--set",
        "subsample=0",
        "--set",
        "negatives=5",
    ];
    notes.run(&args).ok();
    notes
}

#[test]
fn the_nearest_codes_are_those_of_texts_alike() {
    let notes = notes();
    let embed = ["text", "embed", "texts.jsonl", "--model", "codes"];
    notes
        .run(&[&embed[..], &["--out", "all.safetensors"]].concat())
        .ok();
    let shown = notes.run(&[&embed[..], &["--json"]].concat()).json();
    assert_eq!(shown.as_array().unwrap().len(), 40);
    assert_eq!(shown[0]["name"], "sea-0");
    let code = shown[0]["code"].as_str().unwrap();
    assert_eq!(code.len(), 16, "64 bits in hexadecimal: {code}");
    let nearest = ["text", "nearest", "a sail in the wind", "--model", "codes"];
    let nearest = [&nearest[..], &["--codes", "all.safetensors", "--json"]].concat();
    let hits = notes.run(&nearest).json();
    let names: Vec<&str> = hits
        .as_array()
        .unwrap()
        .iter()
        .map(|h| h["name"].as_str().unwrap())
        .collect();
    let sea = names
        .iter()
        .take(5)
        .filter(|n| n.starts_with("sea"))
        .count();
    assert!(sea >= 4, "{names:?}");

    // A file that is cut off, and one of another kind.
    let path = notes.file("all.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    for damaged in [&bytes[..bytes.len() - 3], &bytes[..5], b"no codes"] {
        std::fs::write(&path, damaged).unwrap();
        notes
            .run(&nearest)
            .fails(1, &["all.safetensors", "no whole file of codes"]);
    }
}

#[test]
fn a_text_without_known_words_has_no_code() {
    let notes = notes();
    let args = ["text", "embed", "quuxity", "--model", "codes"];
    notes.run(&args).fails(1, &["quuxity"]);
    let args = ["text", "senses", "sail", "--model", "codes"];
    notes.run(&args).fails(1, &["codes"]);
}

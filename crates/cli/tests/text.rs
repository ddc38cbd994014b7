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

#[test]
fn a_store_of_codes_keeps_bits_and_finds_by_their_distance() {
    let notes = notes();
    let words = "sail mast boat wind tomato cabbage grow garden";
    let words: Vec<&str> = words.split(' ').collect();
    for i in 0..25 {
        let word = |j: usize| words[(i + j * (1 + i % 5)) % words.len()];
        let text: Vec<&str> = (0..5).map(word).collect();
        notes.write(&format!("docs/n{i}.txt"), &text.join(" "));
    }
    let store = notes.file("bits").to_string_lossy().into_owned();
    let index = ["index", "docs", "--model", "codes", "--json", "--store"];
    let report = notes.run(&[&index[..], &[&store]].concat()).json();
    assert_eq!(
        (&report["bits"], &report["tokens"]),
        (&1.into(), &25.into())
    );
    notes.run(&["check", "--store", &store]).ok();

    // The order by meaning is that of the distances of the codes.
    let code = |text: &str| -> Vec<u8> {
        let args = ["text", "embed", text, "--model", "codes", "--json"];
        let shown = notes.run(&args).json();
        let hexadecimal = shown[0]["code"].as_str().unwrap().to_owned();
        let byte = |i: usize| u8::from_str_radix(&hexadecimal[2 * i..2 * i + 2], 16).unwrap();
        (0..hexadecimal.len() / 2).map(byte).collect()
    };
    let query = "the mast of a boat";
    let mine = code(query);
    let distance = |name: &str| -> u32 {
        let text = std::fs::read_to_string(notes.file(name)).unwrap();
        let bits = code(&text).into_iter().zip(&mine).map(|(a, b)| a ^ b);
        bits.map(u8::count_ones).sum()
    };
    let by_meaning = ["--store", &store, "--mode", "meaning", "-k", "25"];
    let found = notes.find(query, &by_meaning);
    let distances: Vec<u32> = found.iter().map(|name| distance(name)).collect();
    assert_eq!(distances.len(), 25);
    assert!(distances.is_sorted(), "{distances:?}");
    assert!(distances[0] < distances[24], "{distances:?}");

    // What goes with vectors of tokens is refused, and bits with vectors that are no codes.
    let candidates = [
        &["search", query][..],
        &by_meaning,
        &["--candidates", "plaid"],
    ]
    .concat();
    notes.run(&candidates).fails(1, &["binary codes"]);
    let builtin = notes.file("builtin").to_string_lossy().into_owned();
    let args = ["index", "docs", "--bits", "1", "--store", &builtin];
    notes.run(&args).fails(1, &["no binary codes"]);

    // A store that was made before there was one bit is read and kept up to date as it is.
    let four = notes.file("four").to_string_lossy().into_owned();
    let report = [&index[..], &[&four, "--bits", "4"]].concat();
    assert_eq!(notes.run(&report).json()["bits"], 4);
    notes.write("docs/new.txt", "boat boat mast");
    let report = notes.run(&[&index[..], &[&four]].concat()).json();
    assert_eq!(
        (&report["bits"], &report["passages"]),
        (&4.into(), &26.into())
    );
    let found = notes.find(query, &["--store", &four, "--mode", "meaning"]);
    assert!(!found.is_empty());
}

//! `keyfold lab route` and `recall`, `keyfold train pointer-networks` and `keyfold model share`.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::Notes;
use serde_json::{Value, json};

const PLACES: &str = "\
x,y
0,0
10,0
10,8
0,8
5,9
4,1
";

#[test]
fn a_tour_is_told_beside_the_shortest_and_drawn() {
    let notes = Notes::new();
    notes.write("places.csv", PLACES);
    let found = notes
        .run(&["lab", "route", "places.csv", "--svg", "tour.svg", "--json"])
        .json();
    let mut visited: Vec<u64> = serde_json::from_value(found["answer"].clone()).unwrap();
    visited.sort_unstable();
    assert_eq!(visited, [1, 2, 3, 4, 5, 6], "rows count from 1");
    // The rectangle, over the point above it and by the one inside it.
    let best = 26f64.sqrt() * 2.0 + 17f64.sqrt() + 37f64.sqrt() + 16.0;
    assert!((found["best_known_length"].as_f64().unwrap() - best).abs() < 1e-6);
    assert_eq!(found["best_known_is_shortest"], true);
    let length = found["length"].as_f64().unwrap();
    assert!(length >= best - 1e-9 && length < 1.6 * best, "{length}");
    let share = found["longer_by"].as_f64().unwrap();
    assert!((length / best - 1.0 - share).abs() < 1e-9);
    let svg = std::fs::read_to_string(notes.file("tour.svg")).unwrap();
    assert_eq!(svg.matches("<circle").count(), 6);
    assert_eq!(svg.matches("<line").count(), 12, "both tours");
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    let told = notes.run(&["lab", "route", "places.csv"]).ok();
    assert!(told.contains("shortest") && told.contains("LKH"), "{told}");
}

#[test]
fn hulls_and_triangles_stand_beside_the_exact_ones() {
    let notes = Notes::new();
    notes.write("places.csv", PLACES);
    let hull = notes
        .run(&["lab", "route", "places.csv", "--task", "hull", "--json"])
        .json();
    assert_eq!(hull["best_known"], json!([1, 2, 3, 5, 4]));
    assert_eq!(hull["learned_from"][0], 5);
    let told = notes
        .run(&["lab", "route", "places.csv", "--task", "hull"])
        .ok();
    assert!(told.contains("exact: 1 2 3 5 4"), "{told}");
    let args = [
        "lab",
        "route",
        "places.csv",
        "--task",
        "delaunay",
        "--json",
        "--beam",
        "1",
    ];
    let triangles = notes.run(&args).json();
    assert_eq!(
        triangles["best_known"].as_array().unwrap().len(),
        5,
        "2 n - 2 - corners"
    );
    let written = triangles["answer"].as_array().unwrap();
    for triangle in written {
        assert_eq!(triangle.as_array().unwrap().len(), 3);
    }
    // Shown once each, however often the network wrote them.
    let args = [
        "lab",
        "route",
        "places.csv",
        "--task",
        "delaunay",
        "--beam",
        "1",
    ];
    let told = notes.run(&args).ok();
    let mut shown: Vec<&str> = told
        .lines()
        .filter(|line| line.chars().all(|c| c.is_ascii_digit() || c == ' '))
        .collect();
    let lines = shown.len();
    shown.sort_unstable();
    shown.dedup();
    assert!(lines > 0 && shown.len() == lines, "{told}");
    let mut distinct = written.clone();
    distinct.sort_by_key(Value::to_string);
    distinct.dedup();
    assert_eq!(lines, distinct.len());
}

#[test]
fn points_that_make_no_sense_are_refused_by_name() {
    let notes = Notes::new();
    let route = |text: &str, more: &[&str]| {
        notes.write("p.csv", text);
        notes.run(&[&["lab", "route", "p.csv"], more].concat())
    };
    route("1,2\n3,4\n", &[]).fails(1, &["p.csv", "three"]);
    route("1,2\n1,2\n3,4\n", &["--task", "hull"]).fails(1, &["2 distinct points"]);
    route("1,1\n2,2\n3,3\n4,4\n", &["--task", "delaunay"]).fails(1, &["one line"]);
    route("1,2\n3,nan\n5,6\n", &[]).fails(1, &["row 2"]);
    route("1,2,3\n4,5,6\n7,8,0\n", &[]).fails(2, &["two numbers", "--ignore"]);
    route("1,2,3\n4,5,6\n7,8,0\n", &["--ignore", "3"]).ok();
    // On a line there is a tour, and a point that is there twice is visited with its twin.
    let line = route("1,1\n2,2\n3,3\n2,2\n", &["--json"]).json();
    assert_eq!(line["coinciding"], 1);
    assert_eq!(line["answer"].as_array().unwrap().len(), 4);
    route("1,2\n3,4\n0,9\n", &["--model", "nowhere"]).fails(1, &["nowhere"]);
    route("1,2\n3,4\n0,9\n", &["--beam", "0"]).fails(2, &["--beam"]);
}

#[test]
fn a_network_that_is_trained_here_answers() {
    let notes = Notes::new();
    notes.write("places.csv", PLACES);
    let train = [
        "train",
        "pointer-networks",
        "--out",
        "net",
        "--json",
        "--set",
        "task=hull",
        "--set",
        "points=[4,6]",
        "--set",
        "hidden_size=8",
        "--set",
        "batch_size=16",
        "--set",
        "steps=4",
        "--set",
        "run.validate_every=2",
        "--set",
        "optimizer=adam",
        "--set",
        "learning_rate=0.01",
    ];
    let report = notes.run(&train).json();
    assert_eq!(report["steps"], 4);
    let metrics = std::fs::read_to_string(notes.file("net/metrics.jsonl")).unwrap();
    assert!(
        metrics.contains("\"right\"") && metrics.contains("\"area\""),
        "{metrics}"
    );
    let found = notes
        .run(&["lab", "route", "places.csv", "--model", "net", "--json"])
        .json();
    assert_eq!(
        (&found["task"], &found["learned_from"]),
        (&json!("hull"), &json!([4, 6]))
    );
    notes
        .run(&[
            "lab",
            "route",
            "places.csv",
            "--model",
            "net",
            "--task",
            "tour",
        ])
        .fails(2, &["trained for hull"]);
    notes
        .run(&[
            "train",
            "pointer-networks",
            "--out",
            "other",
            "--set",
            "task=knapsack",
        ])
        .fails(1, &["hull, delaunay, tour, sort or custom"]);
}

/// A training of a few steps.
fn train(notes: &Notes, task: &str, out: &str, more: &[&str]) -> common::Run {
    let task = format!("task={task}");
    let args = [
        "train",
        "pointer-networks",
        "--out",
        out,
        "--set",
        &task,
        "--set",
        "hidden_size=8",
        "--set",
        "batch_size=8",
        "--set",
        "steps=3",
    ];
    notes.run(&[&args[..], more].concat())
}

#[test]
fn numbers_are_sorted_and_examples_learned() {
    let notes = Notes::new();
    train(&notes, "sort", "sorts", &["--set", "points=[2,5]"]).ok();
    notes.write("numbers.csv", "7\n-3\n12.5\n0\n");
    let route = |file: &str, model: &str, more: &[&str]| {
        notes.run(&[&["lab", "route", file, "--model", model], more].concat())
    };
    let found = route("numbers.csv", "sorts", &["--json"]).json();
    assert_eq!(found["best_known"], json!([2, 4, 1, 3]));
    let mut answer: Vec<u64> = serde_json::from_value(found["answer"].clone()).unwrap();
    answer.sort_unstable();
    assert_eq!(answer, [1, 2, 3, 4], "every number once");
    let told = route("numbers.csv", "sorts", &[]).ok();
    assert!(told.contains("exact: 2 4 1 3"), "{told}");
    notes.write("places.csv", PLACES);
    route("places.csv", "sorts", &[]).fails(2, &["one number"]);
    route("numbers.csv", "sorts", &["--svg", "x.svg"]).fails(2, &["--svg"]);
    notes
        .run(&["lab", "route", "numbers.csv", "--task", "sort"])
        .fails(1, &["no network for the task sort", "train"]);

    let line = r#"{"points": [[0.1, 0.7, 1], [0.4, 0.2, 0]], "target": [2]}"#;
    let three = r#"{"points": [[0, 0, 0], [1, 1, 1], [2, 2, 2]], "target": [3, 1]}"#;
    let lines = format!("{line}\n{three}\n").repeat(6);
    notes.write("own.jsonl", &lines);
    let report = train(&notes, "custom", "own", &["--data", "own.jsonl"]);
    report.ok();
    notes.write("rows.csv", "0.3,0.5,1\n0.9,0.8,0\n");
    let found = route("rows.csv", "own", &["--json"]).json();
    assert_eq!(
        (&found["task"], &found["learned_from"]),
        (&json!("custom"), &json!([2, 3]))
    );
    assert!(found["best_known"].is_null() && found["answer"].is_array());

    let bad = |text: String, what: &[&str]| {
        notes.write("bad.jsonl", &text);
        train(&notes, "custom", "bad", &["--data", "bad.jsonl"]).fails(1, what);
    };
    bad(line.to_owned(), &["1 examples"]);
    bad(
        lines.replace("[2]", "[3]"),
        &["line 1", "point 3", "1 to 2"],
    );
    bad(lines.replace("[2]", "[0]"), &["line 1", "point 0"]);
    bad(
        lines.replace("0.7, 1]", "0.7]"),
        &["line 1", "point 2 has 3"],
    );
    bad(lines.replace("0.7", "1e99"), &["line 1", "finite"]);
    bad(lines.replace("target", "answer"), &["line 1", "no example"]);
    train(&notes, "custom", "bad", &[]).fails(1, &["examples"]);
    train(&notes, "sort", "bad", &["--data", "own.jsonl"]).fails(1, &["custom"]);
}

#[test]
fn texts_to_recall_from_are_drawn_by_a_seed() {
    let notes = Notes::new();
    let recall = |more: &[&str]| notes.run(&[&["lab", "recall"], more].concat());
    let joint = [
        "--contexts",
        "3",
        "--keys",
        "2",
        "--least",
        "2",
        "--texts",
        "4",
    ];
    let told = recall(&joint).ok();
    assert_eq!(told, recall(&joint).ok());
    recall(&[&joint[..], &["--out", "texts.jsonl"]].concat()).ok();
    assert_eq!(
        std::fs::read_to_string(notes.file("texts.jsonl")).unwrap(),
        told
    );
    assert_ne!(told, recall(&[&joint[..], &["--seed", "9"]].concat()).ok());
    let lines: Vec<Value> = told
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert_eq!(lines.len(), 4);
    for line in &lines {
        let tokens: Vec<u32> = serde_json::from_value(line["tokens"].clone()).unwrap();
        let asked: Vec<(usize, u32)> = serde_json::from_value(line["asked"].clone()).unwrap();
        assert!(asked.len() >= 4 && tokens[0] == 1);
        let told: Vec<usize> = serde_json::from_value(line["told"].clone()).unwrap();
        assert_eq!(told.len(), asked.len());
        for ((at, answer), told) in asked.into_iter().zip(told) {
            assert_eq!(tokens[at + 1], answer, "the answer follows the question");
            assert_eq!(tokens[told], answer, "and was told before");
            assert!(told < at);
        }
    }
    let queries = ["--task", "multi-query", "--pairs", "3", "--length", "32"];
    let line: Value = serde_json::from_str(&recall(&queries).ok()).unwrap();
    assert_eq!(line["tokens"].as_array().map(Vec::len), Some(32));
    assert_eq!(line["asked"].as_array().map(Vec::len), Some(3));
    let blank = recall(&[&queries[..], &["--blank"]].concat()).ok();
    let line: Value = serde_json::from_str(&blank).unwrap();
    let tokens: Vec<u32> = serde_json::from_value(line["tokens"].clone()).unwrap();
    assert_eq!(tokens.iter().filter(|t| **t != 0).count(), 3 * 2 + 3);
    recall(&["--least", "9", "--keys", "8"]).fails(1, &["9 to 8 keys"]);
    recall(&[&queries[..], &["--vocabulary", "16"]].concat()).fails(1, &["vocab_size 16"]);
}

/// Copies a fixture, beside which nothing may be written.
fn model(notes: &Notes, name: &str) {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lm/tests/fixtures");
    std::fs::create_dir(notes.file("m")).unwrap();
    for file in std::fs::read_dir(fixtures.join(name)).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), notes.file("m").join(file.file_name())).unwrap();
    }
}

#[test]
fn a_model_whose_layers_share_opens_as_every_model() {
    for name in ["llama", "gguf-llama-f16"] {
        let notes = Notes::new();
        model(&notes, name);
        notes.write("book.txt", &"Water the tomatoes every morning. ".repeat(60));
        let share = |more: &[&str]| {
            let args = [
                "model", "share", "m", "--method", "masa", "--text", "book.txt", "--groups", "1",
            ];
            notes.run(&[&args[..], more].concat())
        };
        let nats = |model: &str| {
            let args = [
                "lm",
                "perplexity",
                "book.txt",
                "--model",
                model,
                "--context",
                "64",
                "--windows",
                "2",
                "--json",
            ];
            notes.run(&args).json()["nats_per_token"].as_f64().unwrap()
        };
        let made: Value = share(&["--keep", "0.9", "--out", "most", "--json"]).json();
        let kept = made["numbers"].as_f64().unwrap() / made["numbers_before"].as_f64().unwrap();
        assert!(kept <= 0.9 && kept > 0.7, "{kept}");
        let measured = ["--measure", "book.txt", "--context", "64"];
        let less = ["--keep", "0.6", "--types", "qkvo", "--out", "less"];
        let told = share(&[&less[..], &measured].concat()).ok();
        assert!(
            told.contains("perplexity") && told.contains("before"),
            "{told}"
        );
        share(&[&less[..], &["--measure", "none.txt"]].concat()).fails(2, &["none.txt"]);
        assert!(
            told.contains("self_attn.o_proj") && told.contains("stay"),
            "{told}"
        );
        let dense = nats("m");
        assert!(
            (nats("most") - dense).abs() < 0.5,
            "{} {dense}",
            nats("most")
        );
        assert!(nats("less").is_finite());
        share(&["--keep", "1.5", "--out", "x"]).fails(2, &["--keep"]);
        share(&["--keep", "0.5", "--atoms", "9", "--out", "x"]).fails(1, &["9 atoms for a group"]);
        let no_text = ["model", "share", "m", "--method", "masa", "--out", "x"];
        notes.run(&no_text).fails(2, &["--text"]);
        let alone = [
            "model",
            "share",
            "m",
            "--method",
            "masa",
            "--no-residual",
            "--groups",
            "1",
            "--keep",
            "1/2",
            "--out",
            "atoms",
        ];
        notes.run(&alone).ok();
        assert!(nats("atoms").is_finite());
    }
}

//! A model is trained and then used.

mod common;

use common::{Notes, contents};

/// A random BERT with 32 numbers per token.
const TEACHER: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../text/tests/fixtures/st-bert-mean"
);
const SMALL: [&str; 14] = [
    "--set",
    "hidden_size=16",
    "--set",
    "intermediate_size=8",
    "--set",
    "output_size=8",
    "--set",
    "num_blocks=1",
    "--set",
    "steps=20",
    "--set",
    "batch_tokens=64",
    "--set",
    "warmup_steps=2",
];

#[test]
fn a_distilled_model_can_be_searched_with() {
    let notes = Notes::new();
    let data = r#"{"text": "the store keeps the words of the passages"}"#;
    notes.write("corpus.jsonl", &format!("{data}\n").repeat(60));
    let train = |more: &[&str]| {
        let args = ["train", "builtin", "--teacher", TEACHER];
        notes.run(&[&args[..], &SMALL, more].concat())
    };
    let report = train(&["--data", "corpus.jsonl", "--out", "model", "--json"]).json();
    assert_eq!(report["texts"], 60);
    assert!(
        report["held_out_cosine"].as_f64().unwrap() > 0.0,
        "{report}"
    );

    let shown = notes.run(&["model", "show", "model", "--json"]).json();
    assert_eq!(shown["dim"], 8);
    let found = notes.find("tomatoes", &["--model", "model", "-k", "1"]);
    assert_eq!(found, ["garden.md"]);
    // The store knows its model from any folder.
    let deep = common::keyfold(&notes.file("trips"), &["search", "sail", "-k", "1", "-l"]);
    assert_eq!(deep.ok(), "ship.md\n");
    // Another model's vectors do not compare.
    notes
        .run(&["search", "x", "--model", "builtin"])
        .fails(1, &["model", "--rebuild"]);

    // Files and folders serve as data, too.
    let report = train(&[
        "--data",
        "trips",
        "--data",
        "garden.md",
        "--out",
        "other",
        "--json",
    ]);
    assert!(report.json()["texts"].as_u64().unwrap() >= 2);
}

#[test]
fn pairs_teach_a_distilled_model_to_rank() {
    let notes = Notes::new();
    let mut pairs = String::new();
    for i in 0..60 {
        let words = ["store", "words", "ship", "garden", "sail", "bread"];
        let (a, b) = (words[i % 6], words[i / 6 % 6]);
        pairs += &format!(
            "{{\"query\": \"the {a} and {b} {i}\", \"positive\": \"{b} with a {a}, number {i}\"}}\n"
        );
    }
    notes.write("pairs.jsonl", &pairs);
    let ranking = [
        "--set",
        "ranking.steps=3",
        "--set",
        "ranking.fold=c2x4",
        "--pairs",
        "pairs.jsonl",
    ];
    let train = |more: &[&str]| {
        let args = ["train", "builtin", "--teacher", TEACHER];
        notes.run(&[&args[..], &SMALL, &ranking, more].concat())
    };
    let both = train(&["--data", "trips", "--out", "model", "--json"]).json();
    assert_eq!(both["pairs"], 59);
    assert!(both["texts"].as_u64().unwrap() > 0, "{both}");
    for name in ["before", "after", "teacher"] {
        let found = both[name].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&found), "{both}");
    }
    // It goes on from a model, whose teacher has been heard, and changes it.
    let before = std::fs::read(notes.file("model/model.safetensors")).unwrap();
    let on = train(&["--start", "model", "--out", "model"]);
    assert!(on.stderr.contains("teacher's vectors in"), "{}", on.stderr);
    assert!(on.ok().contains("pairs"));
    assert_ne!(
        std::fs::read(notes.file("model/model.safetensors")).unwrap(),
        before
    );
    notes.run(&["search", "sail", "--model", "model"]).ok();

    train(&["--start", "no-such-model", "--out", "x"]).fails(1, &["no-such-model"]);
    train(&["--start", "model", "--data", "trips", "--out", "x"]).fails(2, &["--start"]);
    train(&["--set", "ranking.fold=heap", "--out", "x"]).fails(1, &["heap"]);
    train(&["--set", "ranking.stepz=1", "--out", "x"]).fails(2, &["stepz", "pool"]);
    let alone = ["train", "builtin", "--teacher", TEACHER, "--out", "x"];
    notes.run(&alone).fails(2, &["--data"]);
}

#[test]
fn bad_input_is_named_and_nothing_is_written() {
    let notes = Notes::new();
    notes.write("rows.jsonl", "{\"title\": \"x\"}\n");
    let before = contents(notes.path());
    let train = |teacher: &str, data: &str, more: &[&str]| {
        let args = [
            "train",
            "builtin",
            "--teacher",
            teacher,
            "--data",
            data,
            "--out",
            "model",
        ];
        notes.run(&[&args[..], more].concat())
    };
    train("no-such-model", ".", &[]).fails(1, &["no-such-model"]);
    train(TEACHER, "no/such", &[]).fails(2, &["no/such", "check the spelling"]);
    train(TEACHER, ".", &["--set", "stepz=3"]).fails(2, &["stepz", "steps"]);
    train(TEACHER, ".", &["--set", "steps=many"]).fails(2, &["steps=many"]);
    train(TEACHER, "rows.jsonl", &[]).fails(1, &["rows.jsonl line 1", "'text'"]);
    assert_eq!(contents(notes.path()), before);
}

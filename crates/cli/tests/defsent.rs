//! A sentence encoder is trained on a dictionary and used.

mod common;

use common::{Notes, contents};

/// A random BERT with 8 numbers per token.
const MODEL: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../text/tests/fixtures-defsent/bert"
);
const WORDS: &str = "boat\ta small vessel on water<|list_more_def|>it carries people over a lake\n\
                     cold war\trivalry between countries without fighting\n\
                     rain\twater that falls from clouds\nmoon\tthe body that goes round the earth\n\
                     dog\tan animal that barks and lives with people\nsnow\tfrozen white rain\n";
const SMALL: [&str; 8] = [
    "--set",
    "batch_size=3",
    "--set",
    "optim.max_steps=2",
    "--set",
    "max_length=30",
    "--set",
    "optim.learning_rate=1e-3",
];

fn train(notes: &Notes, more: &[&str]) -> common::Run {
    let args = [
        "train",
        "defsent-plus",
        "--model",
        MODEL,
        "--data",
        "words.tsv",
    ];
    notes.run(&[&args[..], &SMALL, more].concat())
}

#[test]
fn three_rounds_make_an_encoder_that_searches_embeds_and_defines() {
    let notes = Notes::new();
    notes.write("words.tsv", WORDS);
    let report = train(
        &notes,
        &["--out", "new", "--set", "use_pool=prompt", "--json"],
    )
    .json();
    assert_eq!(report["ended"], "finished");
    assert_eq!(report["steps"], 6);
    for round in ["1", "2", "3"] {
        let folder = notes.file("new/rounds").join(round);
        assert!(folder.join("metrics.jsonl").is_file());
        assert!(folder.join("model/model.safetensors").is_file());
    }
    // The same command again, and a resumed one that has nothing left to do.
    train(&notes, &["--out", "new"]).fails(1, &["new", "--resume"]);
    let before = std::fs::read(notes.file("new/model.safetensors")).unwrap();
    let resumed = [
        "--out",
        "new",
        "--set",
        "use_pool=prompt",
        "--resume",
        "--json",
    ];
    assert_eq!(train(&notes, &resumed).json()["steps"], 0);
    assert_eq!(
        std::fs::read(notes.file("new/model.safetensors")).unwrap(),
        before
    );
    train(&notes, &["--out", "new", "--resume", "--set", "pool=cls"]).fails(1, &["pool was"]);

    // The folder pools as it was told, and otherwise when asked.
    let vector = |more: &[&str]| {
        let args = [
            "text",
            "embed",
            "a dog on a boat",
            "--model",
            "new",
            "--json",
        ];
        notes.run(&[&args[..], more].concat()).json()[0]["real"].clone()
    };
    let own = vector(&[]);
    assert_eq!(own.as_array().unwrap().len(), 8);
    assert_eq!(own, vector(&["--pool", "prompt"]));
    assert_ne!(own, vector(&["--pool", "mean"]));
    let found = notes.find("tomatoes", &["--model", "new", "-k", "9"]);
    assert!(!found.is_empty());

    let define = |more: &[&str]| {
        let words = "rivalry between countries without fighting";
        let args = [
            "text",
            "define",
            words,
            "--model",
            "new",
            "--dictionary",
            "words.tsv",
        ];
        notes.run(&[&args[..], more].concat())
    };
    let all = define(&["--json", "-k", "3"]).json();
    assert_eq!(all.as_array().unwrap().len(), 3);
    assert_eq!(all[0]["entry"], "cold war");
    assert!(all[0]["cosine"].as_f64().unwrap() > 0.999);
    // Vectors of the entries are kept beside the model, and made again when damaged.
    let kept = contents(&notes.file("new"));
    let (path, bytes) = kept
        .iter()
        .find(|(p, _)| {
            p.file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with("entries-")
        })
        .unwrap();
    std::fs::write(path, &bytes[..bytes.len() - 3]).unwrap();
    assert_eq!(define(&["--json", "-k", "3"]).json(), all);
    assert_eq!(std::fs::read(path).unwrap().len(), bytes.len());
}

#[test]
fn a_stopped_training_goes_on_to_the_same_weights() {
    let notes = Notes::new();
    notes.write("words.tsv", WORDS);
    train(&notes, &["--out", "whole"]).ok();
    train(&notes, &["--out", "cut", "--set", "run.checkpoint_every=1"]).ok();
    // As if it was killed in the second round.
    std::fs::remove_dir_all(notes.file("cut/rounds/3")).unwrap();
    std::fs::remove_dir_all(notes.file("cut/rounds/2/model")).unwrap();
    std::fs::remove_dir_all(notes.file("cut/rounds/2/checkpoints/2")).unwrap();
    std::fs::remove_file(notes.file("cut/model.safetensors")).unwrap();
    let args = [
        "--out",
        "cut",
        "--set",
        "run.checkpoint_every=1",
        "--resume",
    ];
    train(&notes, &args).ok();
    let weights = |name: &str| std::fs::read(notes.file(name).join("model.safetensors")).unwrap();
    assert_eq!(weights("cut"), weights("whole"));
}

#[test]
fn bad_input_is_named_and_nothing_is_written() {
    let notes = Notes::new();
    notes.write("words.tsv", WORDS);
    notes.write("broken.tsv", "rain\twater\nno definition here\n");
    notes.write("one.tsv", "rain\twater\n");
    let before = contents(notes.path());
    let args = |data: &str| {
        [
            "train",
            "defsent-plus",
            "--model",
            MODEL,
            "--out",
            "new",
            "--data",
            data,
        ]
        .map(str::to_owned)
    };
    let run = |args: &[String]| notes.run(&args.iter().map(String::as_str).collect::<Vec<_>>());
    run(&args("broken.tsv")).fails(1, &["broken.tsv line 2", "TAB"]);
    run(&args("none.tsv")).fails(2, &["none.tsv"]);
    run(&args("trips")).fails(1, &["trips", "data.noun"]);
    train(&notes, &["--out", "new", "--set", "rounds=4"]).fails(1, &["rounds is 4", "1, 2 or 3"]);
    train(&notes, &["--out", "new", "--set", "pool=prompt"]).fails(1, &["cls or mean"]);
    train(&notes, &["--out", "new", "--set", "pol=cls"]).fails(2, &["pol", "pool"]);
    train(&notes, &["--out", "new", "--resume"]).fails(1, &["no training to resume"]);
    let define = |words: &str, dictionary: &str| {
        let args = [
            "text",
            "define",
            words,
            "--model",
            MODEL,
            "--dictionary",
            dictionary,
        ];
        notes.run(&args)
    };
    define("...", "words.tsv").fails(2, &["no words"]);
    define("water", "broken.tsv").fails(1, &["line 2"]);
    define("water", "one.tsv").fails(1, &["1 entries", "at least 2"]);
    assert_eq!(contents(notes.path()), before);
}

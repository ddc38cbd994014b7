//! `keyfold lm` with Mamba models, and `keyfold lab tensor-attention`.

// A fixture that cannot be read fails the test.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};

use common::Notes;
use serde_json::Value;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../lm/tests")
}

/// A tiny model with the tokenizer of another.
fn model(notes: &Notes, name: &str) -> String {
    let folder = notes.path().join(name);
    std::fs::create_dir(&folder).unwrap();
    let from = fixtures().join("fixtures-mamba").join(name);
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
    }
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(
            fixtures().join("fixtures/llama").join(file),
            folder.join(file),
        )
        .unwrap();
    }
    folder.to_string_lossy().into_owned()
}

const PROMPT: &str = "the boat on the river and the boat by the wall";

const GREEDY: [&str; 6] = ["--decode", "greedy", "--ignore-end", "--json", "-n", "12"];

fn generate(notes: &Notes, model: &str, prompt: &str, more: &[&str]) -> Value {
    let args = ["lm", "generate", prompt, "--model", model];
    notes.run(&[&args[..], &GREEDY, more].concat()).json()
}

#[test]
fn mamba_models_write_and_keep_one_state() {
    let notes = Notes::new();
    for name in ["mamba", "mamba-authors", "mamba2"] {
        let model = model(&notes, name);
        let short = generate(&notes, &model, PROMPT, &[]);
        let long = generate(&notes, &model, &PROMPT.repeat(9), &[]);
        assert_eq!(short["tokens"].as_array().map(Vec::len), Some(12));
        let state = &short["report"]["cache_bytes"];
        assert!(state.as_u64() > Some(0));
        assert_eq!(state, &long["report"]["cache_bytes"]);

        let file = notes.path().join(format!("{name}.state"));
        let file = file.to_string_lossy();
        let saved = ["--prompt-cache", &file];
        let first = generate(&notes, &model, PROMPT, &saved);
        let again = generate(&notes, &model, PROMPT, &saved);
        assert_eq!(first["tokens"], short["tokens"]);
        assert_eq!(again["tokens"], short["tokens"]);
        assert_eq!(again["report"]["prompt_tokens"], 0);
    }
}

#[test]
fn mamba_models_measure_texts() {
    let notes = Notes::new();
    let model = model(&notes, "mamba2");
    let text = notes.path().join("text.txt");
    std::fs::write(&text, PROMPT.repeat(40)).unwrap();
    let text = text.to_string_lossy();
    let args = [
        "lm",
        "perplexity",
        &text,
        "--model",
        &model,
        "--context",
        "128",
        "--json",
    ];
    let read = notes.run(&args).json();
    assert!(read["perplexity"].as_f64().unwrap() > 1.0);
    let decoded = notes
        .run(&[&args[..], &["--decoded", "63"]].concat())
        .json();
    let half = |v: &Value| v["perplexity"].as_f64().unwrap();
    assert!((half(&read) / half(&decoded) - 1.0).abs() < 1e-3);

    let scored = notes.run(&["lm", "score", "the boat", "--model", &model, "--json"]);
    assert!(scored.json()["log_probability"].as_f64().unwrap() < 0.0);
}

#[test]
fn long_prompts_are_calibrated_and_read() {
    let notes = Notes::new();
    let model = model(&notes, "mamba2");
    let text = notes.path().join("text.txt");
    std::fs::write(&text, PROMPT.repeat(40)).unwrap();
    let (text, out) = (text.to_string_lossy(), notes.path().join("long.json"));
    let out = out.to_string_lossy();
    let made = notes.run(&[
        "lm",
        "calibrate",
        "--long",
        "--text",
        &text,
        "--model",
        &model,
        "--out",
        &out,
        "--trained",
        "128",
        "--theta",
        "0",
        "--json",
    ]);
    let made = made.json();
    assert_eq!(made["layers"].as_array().map(Vec::len), Some(2));
    // Heads that keep more than nothing that single precision can say.
    assert!(made["layers"][0]["global"].as_u64() >= Some(4));
    // Heads one by one, fewer windows of another kind, and a text that is too short for as many.
    let calibrate = |more: &[&str]| {
        let out = notes.path().join("other.json");
        let out = out.to_string_lossy().into_owned();
        let args = [
            "lm",
            "calibrate",
            "--long",
            "--text",
            &text,
            "--model",
            &model,
        ];
        notes.run(&[&args[..], &["--out", &out], more].concat())
    };
    let some = ["--trained", "128", "--heads"];
    let told = calibrate(&[&some[..], &["--windows", "2", "--agg", "max"]].concat()).ok();
    assert_eq!(told.lines().count(), 1 + 12, "{told}");
    assert!(told.contains("local") || told.contains("global"), "{told}");
    let listed = calibrate(&[&some[..], &["--windows", "1", "--json"]].concat()).json();
    assert_eq!(
        listed["layers"][1]["kept"].as_array().map(Vec::len),
        Some(6)
    );
    calibrate(&["--trained", "128", "--windows", "900"]).fails(1, &["900 windows of 128"]);
    // Thresholds for up to 192 tokens, which are taken for half as many more.
    calibrate(&["--trained", "2", "--windows", "1"]).ok();
    let other = format!(
        "--long={}",
        notes.path().join("other.json").to_string_lossy()
    );
    let args = [
        "lm",
        "generate",
        &PROMPT.repeat(30),
        "--model",
        &model,
        "-n",
        "2",
        &other,
    ];
    notes.run(&args).fails(1, &["up to 288", "--extrapolate"]);
    notes.run(&[&args[..], &["--extrapolate"]].concat()).ok();
    let prompt = PROMPT.repeat(30);
    let plain = generate(&notes, &model, &prompt, &[]);
    let long = generate(&notes, &model, &prompt, &[&format!("--long={out}")]);
    assert_eq!(plain["prompt_tokens"], long["prompt_tokens"]);
    // Steps that are passed over change what is foreseen.
    let foreseen = |more: &[&str]| {
        let args = ["lm", "perplexity", &text, "--model", &model, "--json"];
        let context = ["--context", "200"];
        let found = notes.run(&[&args[..], &context, more].concat()).json();
        found["perplexity"].as_f64().unwrap()
    };
    let given = format!("--long={out}");
    assert_ne!(foreseen(&[]), foreseen(&[&given]));
    assert_ne!(
        foreseen(&[&given]),
        foreseen(&[&given, "--long-method", "norm"])
    );
    let args = ["lm", "perplexity", &text, "--model", &model, &given];
    notes
        .run(&[&args[..], &["--long-method", "middle"]].concat())
        .fails(2, &["middle", "all_topk"]);
    let own = notes.run(&[
        "lm",
        "generate",
        &prompt,
        "--model",
        &model,
        "-n",
        "2",
        "--long",
        "--trained",
        "128",
        "--theta",
        "0",
    ]);
    assert!(
        own.stderr.contains("of 12 heads are global"),
        "{}",
        own.stderr
    );
    let short = notes.run(&[
        "lm", "generate", PROMPT, "--model", &model, "-n", "2", "--long",
    ]);
    assert!(
        short.stderr.contains("from 3000 tokens on"),
        "{}",
        short.stderr
    );
}

#[test]
fn what_mamba_models_cannot_do_is_refused() {
    let notes = Notes::new();
    let model = model(&notes, "mamba2");
    for (args, what) in [
        (
            &["lm", "generate", "a", "--select", "tidal"][..],
            "keeps one state and no cache",
        ),
        (
            &["lm", "generate", "a", "--decode", "contrastive"],
            "contrastive",
        ),
        (&["lm", "chat"], "Mamba"),
        (
            &["lm", "calibrate", "--text", "garden.md", "--out", "x"],
            "--long",
        ),
    ] {
        let run = notes.run(&[args, &["--model", &model]].concat());
        assert!(run.code == 1 || run.code == 2, "{args:?}");
        assert!(run.stderr.contains(what), "{}", run.stderr);
    }
    let llama = fixtures().join("fixtures/llama");
    let run = notes.run(&[
        "lm",
        "generate",
        "a",
        "--long",
        "--model",
        &llama.to_string_lossy(),
    ]);
    assert!(
        run.code == 2 && run.stderr.contains("--select act-qkv"),
        "{}",
        run.stderr
    );
    std::fs::remove_file(Path::new(&model).join("tokenizer.json")).unwrap();
    let run = notes.run(&["lm", "generate", "a", "--model", &model]);
    assert!(run.stderr.contains("gpt-neox-20b"), "{}", run.stderr);
}

#[test]
fn attention_over_pairs_tells_its_error_and_the_strongest_triples() {
    let notes = Notes::new();
    let small = notes
        .run(&["lab", "tensor-attention", "--positions", "24", "--json"])
        .json();
    let error = small["output_error"].as_f64().unwrap();
    assert!(error < 1e-4 && error <= small["output_error_allowed"].as_f64().unwrap());
    assert_eq!(small["monomials"], 495);
    let refused = notes.run(&["lab", "tensor-attention", "--bound", "3"]);
    assert!(
        refused.code == 1 && refused.stderr.contains("force"),
        "{}",
        refused.stderr
    );
    std::fs::write(notes.path().join("rows.csv"), "0,0.1\n3,3\n0.1,0\n").unwrap();
    let found = notes
        .run(&[
            "lab",
            "tensor-attention",
            "rows.csv",
            "--top",
            "2",
            "--json",
        ])
        .json();
    assert_eq!(found["triples"][0]["query"], 1);
    assert_eq!(found["triples"][0]["pair"], serde_json::json!([1, 1]));
}

//! `keyfold train`: from a user's files to a model that is searched with, and what it
//! says when something is wrong.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use assert_cmd::Command;

fn keyfold() -> Command {
    Command::cargo_bin("keyfold").unwrap()
}

fn base() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../text/tests/fixtures/st-bert-mean")
}

/// Pairs that share words.
fn pairs(folder: &Path) -> PathBuf {
    let mut text = String::new();
    for a in ["store", "crash", "words", "vector", "token", "model"] {
        for b in ["text", "query", "search", "index"] {
            text.push_str(&format!(
                "{{\"query\": \"{a} {b}\", \"positive\": \"the {b} of a {a}\"}}\n"
            ));
        }
    }
    let path = folder.join("pairs.jsonl");
    std::fs::write(&path, text).unwrap();
    path
}

/// `train crisp` on them with a few small steps.
fn train(folder: &Path, more: &[&str]) -> Command {
    let mut command = keyfold();
    command.args(["train", "crisp", "--quiet", "--model"]);
    command.arg(base()).arg("--data").arg(pairs(folder));
    command.arg("--out").arg(folder.join("out")).args(more);
    command
}

const SMALL: [&str; 14] = [
    "--set",
    "fold=none",
    "--set",
    "batch_size=4",
    "--set",
    "optim.max_steps=6",
    "--set",
    "late.query_prefix=",
    "--set",
    "late.document_prefix=",
    "--set",
    "late.dim=8",
    "--set",
    "run.checkpoint_every=2",
];

fn told(command: &mut Command, code: i32) -> String {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{text}");
    text
}

#[test]
fn a_model_is_trained_reported_resumed_and_searched_with() {
    let dir = tempfile::tempdir().unwrap();
    let output = train(dir.path(), &SMALL).arg("--json").output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["steps"], 6);
    assert_eq!(report["ended"], "finished");
    for file in [
        "run.json",
        "metrics.jsonl",
        "curves.svg",
        "model.safetensors",
    ] {
        assert!(dir.path().join("out").join(file).is_file(), "{file}");
    }
    // Resumed without naming its settings again, it has nothing left to do.
    let output = train(dir.path(), &["--resume"])
        .arg("--json")
        .output()
        .unwrap();
    let again: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(again["steps"], 6);
    let notes = dir.path().join("notes");
    std::fs::create_dir(&notes).unwrap();
    std::fs::write(notes.join("a.txt"), "The crash of a store.").unwrap();
    let output = keyfold()
        .args(["search", "store crash", "--quiet", "--json", "--model"])
        .arg(dir.path().join("out"))
        .arg(&notes)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(String::from_utf8_lossy(&output.stdout).contains("a.txt"));
}

#[test]
fn a_store_folds_as_its_model_learnt_to_be_folded() {
    let dir = tempfile::tempdir().unwrap();
    let folded: Vec<&str> = SMALL
        .iter()
        .map(|s| if *s == "fold=none" { "fold=c2x4" } else { s })
        .collect();
    told(&mut train(dir.path(), &folded), 0);
    let notes = dir.path().join("notes");
    std::fs::create_dir(&notes).unwrap();
    std::fs::write(notes.join("a.txt"), "The crash of a store.").unwrap();
    let run = |command: &str, store: &str, more: &[&str], code| {
        let mut run = keyfold();
        run.args(["--quiet", command]);
        if command == "search" {
            run.arg("store crash");
        }
        run.arg(&notes).arg("--store").arg(dir.path().join(store));
        run.arg("--model").arg(dir.path().join("out")).args(more);
        told(&mut run, code)
    };
    let refused = [
        run("index", "one", &[], 1),
        run("index", "one", &["--fold", "c4x8", "--fold-queries"], 1),
        run("index", "one", &["--fold", "c2x4"], 1),
        run("search", "one", &[], 1),
    ];
    for text in refused {
        assert!(text.contains("--fold c2x4 --fold-queries"), "{text}");
        assert!(text.contains("--force"), "{text}");
    }
    // As it learnt, and afterwards without being told again.
    run("index", "one", &["--fold", "c2x4", "--fold-queries"], 0);
    run("index", "one", &[], 0);
    run("search", "one", &[], 0);
    // Otherwise where the user insists; what is there is then searched as it is.
    run("index", "two", &["--fold", "ward:2", "--force"], 0);
    run("search", "two", &[], 0);
}

#[test]
fn mistakes_are_told_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let text = told(&mut train(dir.path(), &["--set", "speed=1"]), 2);
    assert!(
        text.contains("no field 'speed'") && text.contains("temperature"),
        "{text}"
    );
    let text = told(&mut train(dir.path(), &["--resume"]), 1);
    assert!(text.contains("holds no training to resume"), "{text}");
    let text = told(
        &mut train(dir.path(), &["--set", "late.query_prefix=[nowhere]"]),
        1,
    );
    assert!(
        text.contains("query_prefix '[nowhere]' is not a token"),
        "{text}"
    );
    let bad = dir.path().join("bad.jsonl");
    std::fs::write(&bad, "{\"query\": 1}\n").unwrap();
    let text = told(train(dir.path(), &SMALL).arg("--data").arg(&bad), 1);
    assert!(text.contains("bad.jsonl line 1"), "{text}");
}

#[test]
fn every_recipe_is_one_of_its_method() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let slug = name.strip_suffix("-small").unwrap_or(&name);
        let mut command = keyfold();
        command.args(["train", slug, "--out", "x", "--show-settings"]);
        // Problems of points are made up.
        if slug != "pointer-networks" {
            command.args(["--data", "x"]);
        }
        match slug {
            "crisp" | "defsent-plus" | "matryoshka-kv" => command.args(["--model", "x"]),
            "colberter" => command.args(["--model", "x", "--teacher", "x"]),
            // Methods whose command takes the shared arguments alone.
            _ => &mut command,
        };
        let output = command.arg("--recipe").arg(&path).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{name}: {text}");
        let shown: toml::Table = String::from_utf8(output.stdout).unwrap().parse().unwrap();
        let file: toml::Table = std::fs::read_to_string(&path).unwrap().parse().unwrap();
        assert!(holds(&shown, &file), "{name}: {file} is not in {shown}");
        seen += 1;
    }
    assert!(seen >= 4);
}

/// A model of bytes, trained for a moment in `folder/out`.
fn language_model(folder: &Path, more: &[&str]) -> Command {
    let text = folder.join("text.txt");
    std::fs::write(&text, "the cat sat on the mat. ".repeat(200)).unwrap();
    let mut command = keyfold();
    command.args(["train", "language-model", "--quiet", "--data"]);
    command.arg(text).arg("--out").arg(folder.join("out"));
    for set in [
        "model.hidden_size=32",
        "model.intermediate_size=64",
        "model.num_hidden_layers=2",
        "model.num_attention_heads=2",
        "model.num_key_value_heads=1",
        "model.head_dim=16",
        "start=random",
        "length=64",
        "long_length=128",
        "batch_tokens=256",
        "optim.max_steps=160",
        "optim.warmup_steps=4",
        "optim.learning_rate=1e-2",
    ] {
        command.args(["--set", set]);
    }
    command.args(more);
    command
}

#[test]
fn a_language_model_of_bytes_is_trained_and_read_by_lm() {
    let folder = tempfile::tempdir().unwrap();
    language_model(folder.path(), &["--set", "attention=blocks"])
        .assert()
        .success();
    let mut command = keyfold();
    command.args(["lm", "perplexity", "--quiet", "--json", "--context", "128"]);
    command.arg(folder.path().join("text.txt"));
    command.arg("--model").arg(folder.path().join("out"));
    command.args(["--prefill", "power"]);
    let output = command.output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{told}");
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let perplexity = found["perplexity"].as_f64().unwrap();
    // Eleven characters by chance would be 11.
    assert!((1.0..5.0).contains(&perplexity), "{perplexity}");
}

#[test]
fn layers_that_share_while_they_learn_become_a_model_as_every_other() {
    let folder = tempfile::tempdir().unwrap();
    let shared = ["--set", "sharing.method=masa", "--set", "sharing.count=1"];
    language_model(folder.path(), &shared).assert().success();
    let mut command = keyfold();
    command.args(["lm", "perplexity", "--quiet", "--json", "--context", "128"]);
    command.arg(folder.path().join("text.txt"));
    command.arg("--model").arg(folder.path().join("out"));
    let output = command.output().unwrap();
    assert!(output.status.success());
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let perplexity = found["perplexity"].as_f64().unwrap();
    assert!((1.0..6.0).contains(&perplexity), "{perplexity}");
}

#[test]
fn settings_of_a_language_model_that_cannot_be_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = language_model(folder.path(), &["--set", "model.num_key_value_heads=3"]);
    assert!(told(&mut command, 1).contains("num_key_value_heads"));
    let shared = ["--set", "sharing.method=masa"];
    let mut command = language_model(folder.path(), &shared);
    command.args(["--set", "start=look-back"]);
    assert!(told(&mut command, 1).contains("look-back"));
    let mut command = language_model(folder.path(), &shared);
    command.args(["--set", "sharing.count=9"]);
    assert!(told(&mut command, 1).contains("share from 1 to"));
    let mut command = language_model(folder.path(), &["--set", "mask.window=0"]);
    command.args(["--set", "attention=blocks"]);
    assert!(told(&mut command, 1).contains("window = 0"));
}

#[test]
fn an_encoder_of_bytes_is_trained_and_embeds() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.txt");
    std::fs::write(&text, "the cat sat on the mat. ".repeat(200)).unwrap();
    let train = |mixer: &str, out: &str| {
        let mut command = keyfold();
        command.args(["train", "hydra", "--quiet", "--json", "--data"]);
        command.arg(&text).arg("--out").arg(folder.path().join(out));
        for set in [
            &format!("model.matrix_mixer_type={mixer}"),
            "model.hidden_size=16",
            "model.num_hidden_layers=1",
            "model.d_state=4",
            "model.headdim=8",
            "length=32",
            "batch_size=4",
            "optim.max_steps=20",
            "run.validate_every=20",
        ] {
            command.args(["--set", set]);
        }
        command
    };
    let output = train("hydra", "sides").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["steps"], 20);
    let embed = |model: &str| {
        let mut command = keyfold();
        command.args(["text", "embed", "a cat", "--json", "--model"]);
        command.arg(folder.path().join(model));
        command
    };
    let output = embed("sides").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("0."));
    let mixing = |more: &[&str]| {
        let mut command = keyfold();
        command.args(["text", "mixing", "a cat", "--json", "--model"]);
        command.arg(folder.path().join("sides")).args(more);
        command
    };
    let output = mixing(&["--head", "1"]).output().unwrap();
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = found["matrix"].as_array().unwrap();
    let tokens = found["tokens"].as_array().unwrap().len();
    assert!(rows.len() == tokens && tokens >= 5, "{found}");
    let number = |i: usize, j: usize| rows[i][j].as_f64().unwrap();
    assert!(number(0, tokens - 1) != 0.0 && number(tokens - 1, 0) != 0.0);
    assert!(told(&mut mixing(&["--layer", "1"]), 1).contains("no layer 1"));
    assert!(told(&mut mixing(&["--head", "9"]), 1).contains("heads"));
    // The others are for comparison.
    train("low_rank", "products").assert().success();
    assert!(told(&mut embed("products"), 1).contains("low_rank"));
    assert!(told(train("hydra", "x").args(["--set", "model.d_conv=4"]), 1).contains("d_conv"));
}

#[test]
fn mamba_models_with_few_keys_are_trained_and_alone_read_by_lm() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.txt");
    std::fs::write(&text, "the cat sat on the mat. ".repeat(200)).unwrap();
    let train = |sets: &[&str]| {
        let mut command = keyfold();
        command.args(["train", "hax", "--quiet", "--out"]);
        command.arg(folder.path().join("out"));
        let small = ["model.hidden_size=16", "model.state_size=8", "batch_size=4"];
        let short = ["optim.max_steps=30", "optim.warmup_steps=4", "length=64"];
        for set in small.iter().chain(&short).chain(sets) {
            command.args(["--set", set]);
        }
        command
    };
    let sizes = [
        "joint_recall.least=1",
        "joint_recall.max_n_context=2",
        "joint_recall.max_n_key=2",
    ];
    train(&sizes).assert().success();

    // What it looks at: two sources of 32 keys each, told where answers were.
    let sparsity = |more: &[&str]| {
        let mut command = keyfold();
        command.args(["lab", "sparsity", "--quiet", "--json"]);
        command.arg(folder.path().join("out")).args(more);
        command
    };
    let looked = |more: &[&str]| -> serde_json::Value {
        let output = sparsity(more).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let drawing = folder.path().join("keys.svg");
    let found = looked(&["--texts", "7", "--svg", drawing.to_str().unwrap()]);
    assert_eq!(found["texts"], 7);
    let layers = found["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 2);
    for layer in layers {
        assert_eq!(layer["sources"][1]["source"], "key_selection");
        // Texts are shorter than the keys that a position may have: selection takes all.
        let answers = &layer["answers"];
        assert!(answers["asked"].as_u64().unwrap() >= 7, "{answers}");
        assert_eq!(answers["found"], 1.0);
        assert_eq!(layer["density"], 1.0);
    }
    let drawn = std::fs::read_to_string(&drawing).unwrap();
    assert!(drawn.contains("layer 1") && drawn.contains("<circle"));
    let lines = folder.path().join("texts.jsonl");
    let mut recall = keyfold();
    recall.args(["lab", "recall", "--texts", "3", "--least", "1"]);
    recall.args(["--contexts", "2", "--keys", "2", "--out"]);
    recall.arg(&lines).assert().success();
    let data = ["--data", lines.to_str().unwrap()];
    assert_eq!(looked(&data)["texts"], 3);
    std::fs::write(&lines, r#"{"tokens": [1, 4000]}"#).unwrap();
    assert!(told(&mut sparsity(&data), 1).contains("4000"));
    std::fs::write(&lines, "{").unwrap();
    assert!(told(&mut sparsity(&data), 1).contains("line 1"));

    std::fs::remove_dir_all(folder.path().join("out")).unwrap();
    let alone = [
        "task=language",
        "model.sparse.sparse_arch=[]",
        "optim.learning_rate=1e-2",
    ];
    assert!(told(&mut train(&alone), 2).contains("--data"));
    train(&alone).arg("--data").arg(&text).assert().success();
    assert!(told(&mut sparsity(&[]), 1).contains("--data"));
    let data = ["--data", text.to_str().unwrap()];
    assert!(told(&mut sparsity(&data), 2).contains("no attention"));
    let mut command = keyfold();
    command.args(["lm", "perplexity", "--quiet", "--json", "--context", "64"]);
    command
        .arg(&text)
        .arg("--model")
        .arg(folder.path().join("out"));
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let perplexity = found["perplexity"].as_f64().unwrap();
    assert!((1.0..12.0).contains(&perplexity), "{perplexity}");
}

/// Whether all that a recipe says is among the settings.
fn holds(settings: &toml::Table, recipe: &toml::Table) -> bool {
    recipe
        .iter()
        .all(|(key, value)| match (settings.get(key), value) {
            (Some(toml::Value::Table(a)), toml::Value::Table(b)) => holds(a, b),
            (Some(toml::Value::Float(a)), toml::Value::Integer(b)) => *a == *b as f64,
            (found, value) => found == Some(value),
        })
}

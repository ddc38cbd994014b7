//! `keyfold lm` and `keyfold ask`, on a tiny random model: what is written means nothing,
//! but how it comes about can be seen.

// A fixture that cannot be read fails the test.
#![allow(clippy::unwrap_used)]

mod common;

use common::Notes;
use common::lm::{PROMPT, generate, model};
use serde_json::Value;

#[test]
fn the_same_seed_writes_the_same_and_another_something_else() {
    let notes = Notes::new();
    let ignore = ["--ignore-end", "--temperature", "1"];
    let of = |seed: &str| generate(&notes, &[&ignore[..], &["--seed", seed]].concat());
    let (first, again, other) = (of("1"), of("1"), of("2"));
    assert_eq!(first["tokens"], again["tokens"]);
    assert_ne!(first["tokens"], other["tokens"]);
    assert_eq!(first["tokens"].as_array().map(Vec::len), Some(24));
    assert_eq!(first["ended"], "length");
    assert!(first["report"]["cache_bytes"].as_u64() > Some(0));
}

#[test]
fn methods_that_read_everything_write_what_reading_everything_writes() {
    let notes = Notes::new();
    let greedy = ["--decode", "greedy", "--ignore-end", "--cache", "f32"];
    let of = |more: &[&str]| generate(&notes, &[&greedy[..], more].concat())["tokens"].clone();
    let dense = of(&[]);
    for all in [
        &[
            "--select",
            "double-sparse",
            "--tokens",
            "500",
            "--channels",
            "4",
            "--dense-layers",
            "0",
        ][..],
        &["--select", "power", "--block", "64", "--prefill", "power"],
        &["--prefill", "hyper"],
        &["--decode", "contrastive", "-k", "1"],
        &["--decode", "contrastive", "-k", "4", "--alpha", "0"],
    ] {
        let mut args = greedy.to_vec();
        if all[0] == "--decode" {
            args.drain(..2);
        }
        let found = generate(&notes, &[&args[..], all].concat())["tokens"].clone();
        assert_eq!(found, dense, "{all:?}");
    }
    // Reading less does change it.
    let few = of(&[
        "--select",
        "double-sparse",
        "--tokens",
        "2",
        "--channels",
        "4",
        "--dense-layers",
        "0",
    ]);
    assert_ne!(few, dense);
}

#[test]
fn a_kept_prompt_is_not_read_again() {
    let notes = Notes::new();
    let greedy = [
        "--decode",
        "greedy",
        "--ignore-end",
        "--prompt-cache",
        "state",
    ];
    let first = generate(&notes, &greedy);
    let second = generate(&notes, &greedy);
    assert_eq!(first["tokens"], second["tokens"]);
    assert!(first["report"]["prompt_tokens"].as_u64() > Some(5));
    assert_eq!(second["report"]["prompt_tokens"], 1);
    // Rows are kept, and a selector chooses among them as if it had seen them come.
    for select in ["double-sparse", "tidal", "power"] {
        let few: &[&str] = match select {
            "double-sparse" => &["--tokens", "4", "--channels", "4", "--dense-layers", "0"],
            "tidal" => &["--tokens", "4", "--dense-layers", "0", "--reselect", "1"],
            _ => &["--block", "64"],
        };
        let way = [&greedy[..3], &["--select", select], few].concat();
        let read = generate(&notes, &way);
        let kept = generate(&notes, &[&greedy[..], &way[3..]].concat());
        assert_eq!(kept["tokens"], read["tokens"], "{select}");
        assert_eq!(kept["report"]["prompt_tokens"], 1, "{select}");
    }
    std::fs::write(notes.file("state"), b"KFPROMPT and nothing else").unwrap();
    let llama = model("llama");
    let args = [
        "lm",
        "generate",
        PROMPT,
        "--model",
        &llama,
        "--prompt-cache",
        "state",
    ];
    notes.run(&args).fails(1, &["state", "saved prompt"]);
}

#[test]
fn a_talk_goes_on_line_by_line_under_every_method() {
    let notes = Notes::new();
    let llama = model("llama");
    let talk = |more: &[&str]| {
        let args = [
            "lm",
            "chat",
            "--model",
            &llama,
            "-n",
            "6",
            "--json",
            "--ignore-end",
        ];
        let output = common::command(notes.path(), &[&args[..], more].concat())
            .write_stdin("the boat\n\nby the wall\n")
            .output()
            .unwrap();
        assert!(output.status.success(), "{more:?}: {output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let answers: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(answers.len(), 2, "{more:?}: {text}");
        answers
    };
    let same = talk(&[]);
    assert_eq!(talk(&[]), same);
    for more in [
        &["--select", "tidal", "--tokens", "8"][..],
        &[
            "--select", "act-qkv", "--local", "16", "--chunk", "8", "--block", "4",
        ],
        &["--decode", "contrastive"],
        &["--cache", "f32"],
    ] {
        talk(more);
    }
}

#[test]
fn texts_are_scored_and_files_measured() {
    let notes = Notes::new();
    let llama = model("llama");
    let scored = notes
        .run(&[
            "lm",
            "score",
            "--given",
            "the boat",
            " by the wall",
            "--model",
            &llama,
            "--json",
        ])
        .json();
    let tokens = scored["tokens"].as_array().unwrap();
    let sum: f64 = tokens
        .iter()
        .map(|t| t["log_probability"].as_f64().unwrap())
        .sum();
    assert!((sum - scored["log_probability"].as_f64().unwrap()).abs() < 1e-6);
    assert!(!tokens.is_empty() && sum < 0.0);
    std::fs::write(notes.file("book.txt"), PROMPT.repeat(40)).unwrap();
    let args = [
        "lm",
        "perplexity",
        "book.txt",
        "--model",
        &llama,
        "--context",
        "64",
        "--json",
    ];
    let prompt = notes.run(&args).json();
    let decoded = notes
        .run(&[&args[..], &["--decoded", "32"]].concat())
        .json();
    // Two ways of reading the same: the halves of the windows differ by one token.
    let of = |v: &Value| v["nats_per_token"].as_f64().unwrap();
    assert!(
        (of(&prompt) - of(&decoded)).abs() < 0.3,
        "{prompt} {decoded}"
    );
    assert!(of(&prompt) > 0.0);
}

#[test]
fn a_seed_says_which_keys_hyper_attention_draws() {
    let notes = Notes::new();
    let llama = model("llama");
    std::fs::write(notes.file("book.txt"), PROMPT.repeat(40)).unwrap();
    let args = [
        "lm",
        "perplexity",
        "book.txt",
        "--model",
        &llama,
        "--context",
        "128",
        "--prefill",
        "hyper",
        "--block",
        "8",
        "--sample",
        "8",
        "--min-len",
        "16",
        "--json",
    ];
    let of = |seed: &str| {
        let told = notes.run(&[&args[..], &["--seed", seed]].concat()).json();
        told["nats_per_token"].as_f64().unwrap()
    };
    let (first, again, other) = (of("1"), of("1"), of("2"));
    assert_eq!(first.to_bits(), again.to_bits());
    assert_ne!(first.to_bits(), other.to_bits());
}

#[test]
fn calibration_writes_the_published_layout_and_is_read_again() {
    let notes = Notes::new();
    let llama = model("llama");
    std::fs::write(notes.file("book.txt"), PROMPT.repeat(20)).unwrap();
    notes
        .run(&[
            "lm",
            "calibrate",
            "--text",
            "book.txt",
            "--model",
            &llama,
            "--out",
            "channels.json",
        ])
        .ok();
    let file: Value =
        serde_json::from_slice(&std::fs::read(notes.file("channels.json")).unwrap()).unwrap();
    let ranks = file["model.layers.1.self_attn.qk_proj"][0]
        .as_array()
        .unwrap();
    let mut ranks: Vec<u64> = ranks.iter().map(|r| r.as_u64().unwrap()).collect();
    ranks.sort_unstable();
    assert_eq!(ranks, (0..ranks.len() as u64).collect::<Vec<_>>());
    generate(
        &notes,
        &[
            "--select",
            "double-sparse",
            "--calib",
            "channels.json",
            "--tokens",
            "8",
            "--channels",
            "4",
        ],
    );
    std::fs::write(notes.file("channels.json"), b"{}").unwrap();
    let args = [
        "lm",
        "generate",
        "x",
        "--model",
        &llama,
        "--select",
        "double-sparse",
        "--calib",
        "channels.json",
        "--channels",
        "4",
        "--dense-layers",
        "0",
    ];
    notes.run(&args).fails(1, &["channels.json"]);
}

#[test]
fn what_does_not_go_together_is_refused_by_name() {
    let notes = Notes::new();
    let llama = model("llama");
    let with = |more: &[&str]| {
        let mut args = vec!["lm", "generate", "x", "--model", &llama];
        args.extend(more);
        notes.run(&args)
    };
    with(&["--select", "act-qkv", "--prefill", "power"]).fails(2, &["--prefill"]);
    with(&["--prefill", "act-qkv"]).fails(2, &["--select act-qkv"]);
    with(&["--decode", "contrastive", "--alpha", "1.5"]).fails(1, &["alpha", "1.5"]);
    with(&["--temperature=-1"]).fails(1, &["temperature"]);
    with(&["--select", "tidal", "--tokens", "0"]).fails(2, &["token"]);
    // Settings that would do nothing.
    with(&["--select", "power", "--tokens", "64"]).fails(2, &["--tokens", "--select"]);
    with(&["--select", "tidal", "--topk", "4"]).fails(2, &["--topk"]);
    with(&["--sample", "64"]).fails(2, &["--sample", "--prefill"]);
    with(&["--decode", "contrastive", "--temperature", "0.9"])
        .fails(2, &["--temperature", "contrastive"]);
    with(&["--decode", "greedy", "--alpha", "0.5"]).fails(2, &["--alpha", "greedy"]);
    with(&["--cache", "q8_0"]).fails(1, &["--cache"]);
    notes
        .run(&["lm", "generate", "", "--model", &model("gguf-llama-f16")])
        .fails(2, &["empty"]);
    let windowed = model("mistral");
    notes
        .run(&["lm", "bench", "--model", &windowed, "--prefill", "hyper"])
        .fails(2, &["sliding window"]);
    notes
        .run(&["lm", "chat", "--model", &model("qwen3")])
        .fails(2, &["chat template", "generate"]);
    notes
        .run(&["lm", "generate", "x", "--model", "no/such.gguf"])
        .fails(1, &["no/such.gguf"]);
}

#[test]
fn a_question_is_answered_with_places_or_not_at_all() {
    let notes = Notes::new();
    notes.run(&["index", "."]).ok();
    let llama = model("llama");
    let args = [
        "ask",
        "When should the big sail come down?",
        "--model",
        &llama,
        "-n",
        "8",
    ];
    let more = ["--min-relevance", "0.1", "--passages", "1", "--json"];
    let answer = notes.run(&[&args[..], &more].concat()).json();
    let source = &answer["sources"][0];
    assert_eq!(source["number"], 1);
    assert!(
        source["path"].as_str().is_some_and(|p| p.ends_with(".md")),
        "{source}"
    );
    assert!(source["lines"].is_array());
    assert!(answer["answer"].is_string());
    let none = notes.run(&[&args[..], &["--min-relevance", "1"]].concat());
    none.fails(1, &["nothing in the store"]);
    notes
        .run(&["ask", " ", "--model", &llama])
        .fails(2, &["question is empty"]);
}

#[test]
fn weights_are_made_sparse_and_written_with() {
    let notes = Notes::new();
    std::fs::create_dir(notes.file("m")).unwrap();
    for file in std::fs::read_dir(model("llama")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), notes.file("m").join(file.file_name())).unwrap();
    }
    std::fs::write(notes.file("book.txt"), PROMPT.repeat(40)).unwrap();
    let sparsify = |more: &[&str]| {
        let args = [
            "model", "sparsify", "m", "--method", "r-sparse", "--text", "book.txt", "--json",
        ];
        notes.run(&[&args[..], more].concat())
    };
    let perplexity = |weights: &str| {
        let args = [
            "lm",
            "perplexity",
            "book.txt",
            "--model",
            "m",
            "--context",
            "64",
            "--windows",
            "2",
            "--decoded",
            "32",
            "--json",
            "--weights",
            weights,
        ];
        notes.run(&args)
    };
    perplexity("r-sparse").fails(2, &["model.r-sparse", "keyfold model sparsify"]);
    let made = sparsify(&[]).json();
    let rho = made["mean_rho"].as_f64().unwrap();
    assert!((rho - 0.95).abs() < 1e-9, "{rho}");
    let of = |v: Value| v["nats_per_token"].as_f64().unwrap();
    let (dense, half) = (
        of(perplexity("dense").json()),
        of(perplexity("r-sparse").json()),
    );
    assert!(
        dense != half && (dense - half).abs() < 1.0,
        "{dense} {half}"
    );
    // Everything read is the dense text again.
    sparsify(&["--sparsity", "0", "--rho", "1", "--out", "all.r-sparse"]).ok();
    let all = of(perplexity("r-sparse:all.r-sparse").json());
    assert!((all - dense).abs() < 1e-3, "{dense} {all}");
    // The authors' layout, for the 14 maps of two layers or not.
    let layers = made["matrices"].as_u64().unwrap() as usize;
    std::fs::write(
        notes.file("splits.npy"),
        "9.0e-01\n5.0e-01\n".repeat(layers),
    )
    .unwrap();
    let read = sparsify(&["--rho", "splits.npy", "--out", "."]).json();
    assert!((read["mean_rho"].as_f64().unwrap() - 0.9).abs() < 1e-9);
    std::fs::write(notes.file("splits.npy"), "0.9 0.5 ".repeat(3)).unwrap();
    sparsify(&["--rho", "splits.npy"]).fails(1, &["another model"]);
    sparsify(&["--sparsity", "1"]).fails(1, &["sparsity"]);
    sparsify(&["--rho", "1.5"]).fails(1, &["rho"]);
    let searched = sparsify(&[
        "--rho",
        "search",
        "--population",
        "4",
        "--generations",
        "1",
        "--search-tokens",
        "64",
    ]);
    let searched = &searched.json()["search"];
    assert!(searched["loss"].as_f64() <= searched["uniform_loss"].as_f64());
}

//! `keyfold lm` and `keyfold ask`, on a tiny random model: what is written means nothing,
//! but how it comes about can be seen.

// A fixture that cannot be read fails the test.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::Notes;
use serde_json::Value;

fn model(name: &str) -> String {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lm/tests/fixtures");
    fixtures.join(name).to_string_lossy().into_owned()
}

const PROMPT: &str = "the boat on the river and the boat by the wall";

fn generate(notes: &Notes, more: &[&str]) -> Value {
    let llama = model("llama");
    let mut args = vec![
        "lm", "generate", PROMPT, "--model", &llama, "-n", "24", "--json",
    ];
    args.extend(more);
    notes.run(&args).json()
}

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
fn blocks_that_were_looked_up_are_told() {
    let notes = Notes::new();
    std::fs::write(notes.file("book.txt"), PROMPT.repeat(30)).unwrap();
    let llama = model("llama");
    let mut args = vec![
        "lm",
        "generate",
        "--prompt-file",
        "book.txt",
        "--model",
        &llama,
    ];
    args.extend([
        "--decode",
        "greedy",
        "--ignore-end",
        "-n",
        "4",
        "--json",
        "--select",
    ]);
    args.extend([
        "act-qkv", "--init", "4", "--local", "32", "--chunk", "16", "--block", "8",
    ]);
    args.extend(["--topk", "3", "--question-span"]);
    let told = notes.run(&[&args[..], &["300:320"]].concat()).json();
    let prompt = told["prompt_tokens"].as_u64().unwrap();
    let found = told["looked_up"].as_array().unwrap();
    assert!(!found.is_empty(), "{told}");
    for block in found {
        let of = |name: &str| block[name].as_u64().unwrap();
        assert!(
            of("to") == of("from") + 8 && of("to") <= prompt - 32 + 4,
            "{block}"
        );
        assert!(
            of("layers") > 0 && !block["text"].as_str().unwrap().is_empty(),
            "{block}"
        );
    }
    notes
        .run(&[&args[..], &["300:99999"]].concat())
        .fails(2, &["300:99999", "prompt"]);
    notes
        .run(&[&args[..], &["20:20"]].concat())
        .fails(2, &["120:140"]);
    let dense = [
        "lm",
        "generate",
        "x",
        "--model",
        &llama,
        "--question-span",
        "0:1",
    ];
    notes.run(&dense).fails(2, &["--select act-qkv"]);
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
fn a_cache_in_few_bits_is_calibrated_used_and_bound_to_its_model() {
    let notes = Notes::new();
    let llama = model("llama");
    std::fs::write(notes.file("book.txt"), PROMPT.repeat(60)).unwrap();
    let calibrate = [
        "lm",
        "calibrate",
        "--cache",
        "kvquant",
        "--text",
        "book.txt",
        "--model",
        &llama,
        "--out",
        "cache.safetensors",
    ];
    notes.run(&calibrate).ok();
    // With gradients numbers weigh otherwise.
    let mut fisher = calibrate.to_vec();
    fisher.extend(["--fisher", "--blocks", "1"]);
    for argument in fisher.iter_mut().filter(|a| **a == "cache.safetensors") {
        *argument = "fisher.safetensors";
    }
    notes.run(&fisher).ok();
    let [plain, weighed] = ["cache", "fisher"]
        .map(|name| std::fs::read(notes.file(&format!("{name}.safetensors"))).unwrap());
    assert_ne!(plain, weighed);
    let write = |cache: &str, more: &[&str]| {
        let mut args = vec![
            "lm",
            "generate",
            PROMPT,
            "--model",
            &llama,
            "-n",
            "16",
            "--json",
            "--decode",
            "greedy",
            "--ignore-end",
            "--cache",
            cache,
        ];
        args.extend(more);
        notes.run(&args).json()
    };
    let file = ["--cache-calib", "cache.safetensors"];
    let bytes = |cache: &str, more: &[&str]| {
        write(cache, more)["report"]["cache_bytes"]
            .as_u64()
            .unwrap()
    };
    let (plain, three, two) = (
        bytes("f16", &[]),
        bytes("kvquant:3", &file),
        bytes("kvquant:2", &file),
    );
    assert!(two < three && three < plain, "{two} {three} {plain}");
    // All of them first tokens: all are kept in 16 bits.
    assert_eq!(
        bytes(
            "kvquant:2",
            &[&file[..], &["--cache-sink", "1000"]].concat()
        ),
        plain
    );
    // Selectors read from it, and a prompt is kept.
    let tidal = ["--select", "tidal", "--tokens", "8"];
    write("kvquant:4", &[&file[..], &tidal].concat());
    let kept = [&file[..], &["--prompt-cache", "state"]].concat();
    assert_eq!(
        write("kvquant:3", &kept)["tokens"],
        write("kvquant:3", &kept)["tokens"]
    );
    let args = |more: &[&'static str]| {
        let mut args = vec![
            "lm".to_owned(),
            "generate".into(),
            "x".into(),
            "--model".into(),
        ];
        args.push(llama.clone());
        args.extend(more.iter().map(|s| (*s).to_owned()));
        args
    };
    let fails = |more: &[&'static str], code: i32, says: &[&str]| {
        let args = args(more);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        notes.run(&args).fails(code, says);
    };
    fails(&["--cache", "kvquant:5"], 2, &["2, 3 or 4"]);
    fails(&["--cache", "f8"], 2, &["kvquant:3"]);
    fails(
        &[
            "--cache",
            "kvquant",
            "--cache-calib",
            "cache.safetensors",
            "--outliers",
            "0.05",
        ],
        1,
        &["outliers", "calibrate"],
    );
    fails(
        &["--cache", "kvquant", "--cache-calib", "book.txt"],
        1,
        &["book.txt", "calibrate"],
    );
    // The authors' file is read, and is of another model.
    let pickle = model("../fixtures-long-context/quantizers.pickle");
    notes
        .run(&[
            "lm",
            "calibrate",
            "--cache",
            "kvquant",
            "--convert",
            &pickle,
            "--model",
            &llama,
            "--out",
            "taken.safetensors",
        ])
        .fails(1, &["1 layers", "64 channels"]);
    let other = model("llama-rope-linear");
    notes
        .run(&[
            "lm",
            "bench",
            "--context",
            "16",
            "--model",
            &other,
            "--cache",
            "kvquant",
            "--cache-calib",
            "cache.safetensors",
        ])
        .fails(1, &["another model"]);
}

#[test]
fn prompts_are_thinned_and_spans_are_checked() {
    let notes = Notes::new();
    let llama = model("llama");
    let long = PROMPT.repeat(8);
    let write = |more: &[&str]| {
        let mut args = vec![
            "lm",
            "generate",
            &long,
            "--model",
            &llama,
            "-n",
            "4",
            "--json",
            "--ignore-end",
        ];
        args.extend(more);
        notes.run(&args)
    };
    let bytes = |more: &[&str]| {
        write(more).json()["report"]["cache_bytes"]
            .as_u64()
            .unwrap()
    };
    let all = bytes(&[]);
    for method in ["h2o", "look-m"] {
        assert!(bytes(&["--evict", method]) < all / 2, "{method}");
        assert!(
            bytes(&[
                "--evict",
                method,
                "--keep-important",
                "1",
                "--keep-recent",
                "0"
            ]) == all
        );
    }
    std::fs::write(notes.file("spans"), "4,40\n").unwrap();
    let spans = ["--evict", "look-m", "--spans", "spans"];
    // Text stays: little goes but the image.
    assert!(bytes(&spans) < all && bytes(&spans) > bytes(&["--evict", "look-m"]));
    bytes(
        &[
            &spans[..],
            &["--merge", "average", "--merge-mass", "--select", "tidal"],
        ]
        .concat(),
    );
    std::fs::write(notes.file("spans"), "4,40\n20,30\n").unwrap();
    write(&spans).fails(1, &["overlaps"]);
    std::fs::write(notes.file("spans"), "4,4000\n").unwrap();
    write(&spans).fails(1, &["not within"]);
    std::fs::write(notes.file("spans"), "4 40\n").unwrap();
    write(&spans).fails(2, &["start,length"]);
    write(&["--evict", "h2o", "--keep-important", "0.95"]).fails(1, &["at most 1"]);
    write(&["--evict", "look-m", "--merge", "glue"]).fails(2, &["pivotal"]);
    write(&["--evict", "h2o", "--select", "act-qkv"]).fails(2, &["--evict"]);
    std::fs::write(notes.file("book.txt"), &long).unwrap();
    notes
        .run(&[
            "lm",
            "perplexity",
            "book.txt",
            "--model",
            &llama,
            "--context",
            "64",
            "--evict",
            "h2o",
        ])
        .fails(2, &["--decoded"]);
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

#[test]
fn caches_of_fewer_numbers_are_calibrated_and_read() {
    let notes = Notes::new();
    let llama = model("llama");
    std::fs::write(notes.file("book.txt"), PROMPT.repeat(40)).unwrap();
    let calibrate = |more: &[&str]| {
        let args = [
            "lm",
            "calibrate",
            "--cache",
            "matryoshka",
            "--text",
            "book.txt",
            "--model",
            &llama,
            "--out",
            "bases.safetensors",
            "--json",
        ];
        notes.run(&[&args[..], more].concat())
    };
    let whole = calibrate(&["--ranks", "uniform", "--cache-keep", "1"]).json();
    assert_eq!(whole["kept"], 1.0);
    let greedy = &["--decode", "greedy", "--ignore-end"];
    let of = |more: &[&str]| generate(&notes, &[&greedy[..], more].concat());
    let dense = of(&[]);
    let cache = ["--cache", "matryoshka:bases.safetensors"];
    let same = of(&cache);
    assert_eq!(same["tokens"], dense["tokens"]);
    // Half of the numbers: half of the bytes of rows, by greedy ranks or by the option.
    let bytes = |v: &Value| v["report"]["cache_bytes"].as_f64().unwrap();
    let by_option = of(&[&cache[..], &["--cache-keep", "0.5"]].concat());
    let found = calibrate(&["--cache-keep", "0.5", "--search-tokens", "24"]).json();
    assert_eq!(found["kept"], 0.5);
    let by_ranks = of(&cache);
    for half in [&by_option, &by_ranks] {
        let share = bytes(half) / bytes(&dense);
        assert!((0.45..0.65).contains(&share), "{share}");
    }
    // Its leading numbers are labels; contrastive search tries what is not stored.
    of(&[
        &cache[..],
        &[
            "--select",
            "double-sparse",
            "--tokens",
            "8",
            "--channels",
            "4",
        ],
    ]
    .concat());
    let contrastive = ["--decode", "contrastive", "-k", "1", "--ignore-end"];
    let all = &[&cache[..], &["--cache-keep", "1"], &contrastive].concat();
    assert_eq!(generate(&notes, all)["tokens"], dense["tokens"]);

    let with = |more: &[&str]| {
        let args = ["lm", "generate", "x", "--model", &llama];
        notes.run(&[&args[..], more].concat())
    };
    with(&["--cache", "matryoshka"]).fails(2, &["matryoshka:FILE", "calibrate"]);
    with(&["--cache", "matryoshka:none"]).fails(1, &["none"]);
    with(&[&cache[..], &["--cache-keep", "0"]].concat()).fails(2, &["--cache-keep"]);
    let qwen = model("qwen3");
    let args = ["lm", "generate", "x", "--model", &qwen];
    notes
        .run(&[&args[..], &cache].concat())
        .fails(1, &["bases.safetensors"]);
    calibrate(&["--cache-keep", "0.1", "--interval", "8"]).fails(1, &["interval"]);
}

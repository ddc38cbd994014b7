//! `keyfold lm` with long contexts made small: caches in few bits and of few numbers, prompts
//! that are thinned, blocks that are looked up. The model is tiny and random.

// A fixture that cannot be read fails the test.
#![allow(clippy::unwrap_used)]

mod common;

use common::Notes;
use common::lm::{PROMPT, generate, model};
use serde_json::Value;

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
    let act = [
        "--select", "act-qkv", "--init", "4", "--local", "32", "--chunk", "16", "--block", "8",
    ];
    let act = |cache: &str| {
        let told = write(
            cache,
            &[&act[..], if cache == "f16" { &[] } else { &file }].concat(),
        );
        assert!(!told["looked_up"].as_array().unwrap().is_empty(), "{told}");
        told["report"]["cache_bytes"].as_u64().unwrap()
    };
    assert!(act("kvquant:3") < act("f16"));
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

    // As the authors have it; the cache then holds what query heads share once for each.
    calibrate(&[
        "--per-query-head",
        "--ranks",
        "uniform",
        "--cache-keep",
        "1",
    ])
    .json();
    let each = of(&cache);
    assert_eq!(each["tokens"], dense["tokens"]);
    assert!(bytes(&each) > 1.9 * bytes(&dense), "{}", bytes(&each));
}

//! A real model that answers: SmolLM2-135M-Instruct (docs/language-models.md says where it comes
//! from). `KEYFOLD_SMOLLM2` names its file; without it these tests say so and pass.

// A model that cannot be read fails the test, and one that is absent is told of.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod common;

use common::Notes;

/// The model's path, if there is one.
fn model() -> Option<String> {
    let path = std::env::var("KEYFOLD_SMOLLM2").ok();
    if path.is_none() {
        eprintln!("skipped: set KEYFOLD_SMOLLM2 to SmolLM2-135M-Instruct.Q4_1.gguf");
    }
    path
}

/// What the model answers to a question, without the system's turn of its own template (with
/// it, this model speaks French, here and in llama.cpp).
fn answer(notes: &Notes, model: &str, question: &str, more: &[&str]) -> String {
    let prompt = format!("<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n");
    let args = [
        "lm",
        "generate",
        &prompt,
        "--special",
        "--model",
        model,
        "-n",
        "24",
        "--json",
        "--decode",
        "greedy",
    ];
    let told = notes.run(&[&args[..], more].concat()).json();
    told["text"].as_str().unwrap().to_owned()
}

#[test]
fn it_knows_a_capital_whatever_it_reads_with() {
    let Some(model) = model() else { return };
    let notes = Notes::new();
    for more in [
        &[][..],
        &["--cache", "q8_0"],
        &[
            "--select",
            "double-sparse",
            "--tokens",
            "16",
            "--channels",
            "16",
        ],
        &["--select", "tidal", "--tokens", "16"],
        &["--select", "act-qkv"],
        &["--select", "act-qkv", "--cache", "q8_0"],
        &["--select", "power", "--prefill", "power"],
        &["--prefill", "hyper"],
    ] {
        let said = answer(&notes, &model, "What is the capital of France?", more);
        assert!(said.contains("Paris"), "{more:?}: {said}");
    }
}

#[test]
fn it_reads_english_better_than_shuffled_english() {
    let Some(model) = model() else { return };
    let notes = Notes::new();
    let text = std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../ARCHITECTURE.md"
    ));
    let text = text.unwrap();
    let words: Vec<&str> = text.split_whitespace().collect();
    let n = words.len();
    // Every place once: 7919 is prime.
    let shuffled: Vec<&str> = (0..n).map(|i| words[i * 7919 % n]).collect();
    let perplexity = |text: &str| {
        notes.write("text", text);
        let args = [
            "lm",
            "perplexity",
            "text",
            "--model",
            &model,
            "--context",
            "256",
            "--windows",
            "2",
            "--json",
        ];
        notes.run(&args).json()["perplexity"].as_f64().unwrap()
    };
    let (plain, mixed) = (
        perplexity(&words.join(" ")),
        perplexity(&shuffled.join(" ")),
    );
    assert!(plain < 200.0 && mixed > 3.0 * plain, "{plain} {mixed}");
}

#[test]
fn it_answers_from_a_store_with_the_place() {
    let Some(model) = model() else { return };
    let notes = Notes::new();
    notes.run(&["index", "."]).ok();
    let args = [
        "ask",
        "When should I water the tomatoes?",
        "--model",
        &model,
        "-n",
        "40",
        "--decode",
        "greedy",
        "--json",
    ];
    let told = notes.run(&args).json();
    let said = told["answer"].as_str().unwrap();
    assert!(said.contains("morning"), "{told}");
    let source = &told["sources"][0];
    assert!(
        source["path"].as_str().unwrap().ends_with("garden.md"),
        "{told}"
    );
    assert!(source["lines"].is_array(), "{told}");
}

#[test]
fn contrastive_search_does_not_go_round_in_circles() {
    let Some(model) = model() else { return };
    let notes = Notes::new();
    let write = |decode: &str| {
        let args = [
            "lm",
            "generate",
            "The wing of an aircraft",
            "--model",
            &model,
            "-n",
            "120",
            "--decode",
            decode,
            "--ignore-end",
            "--json",
        ];
        notes.run(&args).json()["text"].as_str().unwrap().to_owned()
    };
    let different = |text: &str| {
        let words: Vec<&str> = text.split_whitespace().collect();
        let pairs: std::collections::HashSet<&[&str]> = words.windows(2).collect();
        pairs.len() as f64 / words.len() as f64
    };
    let (greedy, contrastive) = (
        different(&write("greedy")),
        different(&write("contrastive")),
    );
    assert!(
        contrastive > greedy && contrastive > 0.7,
        "{contrastive} {greedy}"
    );
}

//! `keyfold model compare`, `model inspect` and `lab`.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::Notes;

fn fixture(name: &str) -> String {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lm/tests/fixtures");
    fixtures.join(name).to_string_lossy().into_owned()
}

/// Two networks of 4 units; the units of the second are those of the first in another order, the
/// last stands still.
fn activations(notes: &Notes) {
    let (mut a, mut b) = (String::new(), String::new());
    for i in 0..60u32 {
        let x = |k: u32| f64::from(i * (2 * k + 3) % (7 + 4 * k)) / 3.0;
        a += &format!("{},{},{},{}\n", x(0), x(1), x(2), x(3));
        b += &format!("{},{},{},5\n", x(2), x(0), 2.0 * x(3) + 1.0);
    }
    notes.write("a.csv", &a);
    notes.write("b.csv", &b);
}

#[test]
fn units_are_matched_drawn_and_written() {
    let notes = Notes::new();
    activations(&notes);
    let found = notes
        .run(&[
            "model",
            "compare",
            "a.csv",
            "b.csv",
            "--lasso",
            "0.001",
            "--clusters",
            "4",
            "--information",
            "--out",
            "pairs.svg",
            "--permutation",
            "order.json",
            "--json",
        ])
        .json();
    assert_eq!(found["dead"]["b"], serde_json::json!([3]));
    let pairs = found["matching"].as_array().unwrap();
    let of = |a: u64| {
        pairs
            .iter()
            .find(|p| p["a"] == a)
            .map(|p| p["b"].as_u64().unwrap())
    };
    assert_eq!((of(0), of(2), of(3)), (Some(1), Some(0), Some(2)));
    assert!(found["one_to_one"]["matching"].as_f64().unwrap() > 0.999);
    assert!(found["by_chance"]["matching"].as_f64().unwrap() < 0.6);
    assert_eq!(found["few_to_one"].as_array().unwrap().len(), 2);
    assert_eq!(found["clusters"].as_array().unwrap().len(), 4);
    assert!(
        std::fs::read_to_string(notes.path().join("pairs.svg"))
            .unwrap()
            .starts_with("<svg")
    );
    let order = std::fs::read_to_string(notes.path().join("order.json")).unwrap();
    assert!(
        order.contains("[0,1]") && order.contains("[2,0]"),
        "{order}"
    );
    let text = notes.run(&["model", "compare", "a.csv", "b.csv"]).ok();
    assert!(
        text.contains("1 units of B never change") && text.contains("by chance"),
        "{text}"
    );
}

#[test]
fn places_of_language_models_are_compared() {
    let notes = Notes::new();
    notes.write("texts.txt", "some words\nand others\n\nonce more\n");
    let llama = fixture("llama");
    let run = |more: &[&str]| {
        let all = [&["model", "compare"][..], more, &["--data", "texts.txt"]].concat();
        notes.run(&all)
    };
    let hook = ["--hook", "blocks.1.hook_resid_post"];
    let same = run(&[&[llama.as_str(), &llama][..], &hook, &["--json"]].concat()).json();
    assert!(same["one_to_one"]["same"].as_f64().unwrap() > 0.99);
    // A state and what was added to it share more than chance.
    let next = [
        "--hook",
        "blocks.0.hook_resid_post",
        "--hook-b",
        "blocks.1.hook_resid_mid",
        "--json",
    ];
    let next = run(&[&[llama.as_str(), &llama][..], &next].concat()).json();
    let of = |name: &str| next[name]["matching"].as_f64().unwrap();
    assert!(of("one_to_one") > of("by_chance"));
    // One head is a part of the whole.
    let head =
        |hook: &str| run(&[&[llama.as_str(), &llama][..], &["--hook", hook, "--json"]].concat());
    let one = head("blocks.1.attn.hook_q:1").json();
    let all = head("blocks.1.attn.hook_q").json();
    let pairs = |found: &serde_json::Value| found["matching"].as_array().unwrap().len();
    assert!(pairs(&one) > 0 && pairs(&one) < pairs(&all), "{one} {all}");
    head("blocks.1.attn.hook_k:9").fails(2, &["heads"]);
    head("blocks.1.hook_mlp_out:0").fails(2, &["have heads"]);
    // Four texts of which one is empty: three samples.
    let pooled = run(&[
        &[llama.as_str(), &llama][..],
        &hook,
        &["--pool", "mean", "--json"],
    ]
    .concat());
    assert_eq!(pooled.json()["samples"], 3);
    run(&[llama.as_str(), &llama, "--hook", "blocks.7.hook_resid_post"]).fails(2, &["2 layers"]);
    run(&[llama.as_str(), &llama, "--hook", "blocks.1.hook_foo"]).fails(2, &["hook_resid_post"]);
    notes
        .run(&["model", "compare", &llama, &llama])
        .fails(2, &["--data", "--hook"]);
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let notes = Notes::new();
    activations(&notes);
    notes.write("short.csv", "1,2\n2,1\n3,5\n4,4\n");
    notes.write("bad.csv", "1,2\n2,nan\n3,1\n");
    notes
        .run(&["model", "compare", "a.csv", "short.csv"])
        .fails(1, &["60 against 4"]);
    notes
        .run(&["model", "compare", "a.csv", "bad.csv"])
        .fails(1, &["row 2, column 2"]);
    notes
        .run(&["model", "compare", "a.csv", "b.csv", "--clusters", "0"])
        .fails(2, &["--clusters"]);
}

/// A task of letters: who is named twice.
fn task(notes: &Notes) {
    let mut lines = String::new();
    for i in 0..60 {
        let name = |k: usize| ["A", "B", "C", "D"][k % 4];
        let (io, s, new) = (name(i), name(i + 1 + i % 3), name(i + 1 + (i + 1) % 3));
        let line = serde_json::json!({
            "prompt": format!("{io} and {s}, {s} to"), "answer": io, "wrong": s,
            "attributes": {"io": io, "s": s},
            "counterfactuals": {"io": {"prompt": format!("{new} and {s}, {s} to"), "answer": new, "value": new}},
        });
        lines += &format!("{line}\n");
    }
    notes.write("task.jsonl", &lines);
}

/// Fits an autoencoder, `sae`, to the activations that were kept in rows.npy.
fn fit_sae(notes: &Notes, more: &[&str]) {
    let fit = ["dictionary", "fit", "rows.npy", "--method", "sae"];
    notes
        .run(&[&fit[..], more, &["--out", "sae"]].concat())
        .ok();
}

#[test]
fn a_dictionary_is_scored_on_a_task() {
    let notes = Notes::new();
    task(&notes);
    let model = fixture("llama");
    let base = [
        "model",
        "inspect",
        &model,
        "--task",
        "task.jsonl",
        "--site",
        "blocks.1.hook_resid_post",
    ];
    let run = |more: &[&str]| notes.run(&[&base[..], more].concat());
    let found = run(&["--activations", "rows.npy", "--json"]).json();
    assert_eq!(found["prompts"]["tested"], 12);
    let patch = &found["edits"][0];
    // What stands at the last place after the last layer alone makes the answer.
    assert_eq!(
        (patch["way"].as_str(), patch["as_patch"].as_f64()),
        (Some("patch"), Some(1.0))
    );
    let supervised = &found["dictionaries"][0];
    assert!(
        supervised["unexplained"].as_f64().unwrap() < 1.0,
        "{supervised}"
    );
    let set = ["--set", "batch_size=32", "--set", "k=8"];
    fit_sae(
        &notes,
        &[["--components", "64", "--epochs", "20"], set].concat(),
    );
    let with = run(&["--dict", "sae", "--edits", "1,8", "--json"]).json();
    let autoencoder = &with["dictionaries"][1];
    assert_eq!(autoencoder["dictionary"], "autoencoder");
    assert!(autoencoder["active"].as_f64().unwrap() <= 8.0);
    let weights: Vec<f64> = with["edits"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|e| e["weight"].as_f64())
        .collect();
    assert_eq!(
        weights.len(),
        4,
        "two ways by two numbers of features: {with}"
    );
    assert!(weights[0] <= weights[1] + 1e-9, "more features weigh more");
    run(&["--dict", "sae,sae"]).fails(2, &["one for each"]);
    // Queries and values of single heads, the value two tokens before the last.
    let places = ["--site", "blocks.0.attn.hook_q:1,blocks.1.attn.hook_v:0@2"];
    let several = notes
        .run(&[&base[..5], &places, &["--json"]].concat())
        .json();
    assert_eq!(several["sites"][1], "blocks.1.attn.hook_v:0@2");
    assert_eq!(several["edits"][0]["way"], "patch");
    let text = run(&["--dict", "sae"]).ok();
    assert!(
        text.contains("features stand for io") && text.contains("supervised"),
        "{text}"
    );
}

#[test]
fn a_model_of_the_indirect_object_is_trained_kept_and_looked_into() {
    let notes = Notes::new();
    let train = |more: &[&str]| {
        let set = |what: &'static str| ["--set", what];
        let mut args = vec!["train", "indirect-object", "--out", "names", "--json"];
        args.extend(set("d_model=16"));
        args.extend(set("heads=2"));
        args.extend(set("batch_size=16"));
        args.extend(set("steps=6"));
        args.extend(set("prompts=600"));
        args.extend(set("run.validate_every=3"));
        notes.run(&[&args[..], more].concat())
    };
    assert_eq!(train(&[]).json()["steps"], 6);
    let metrics = std::fs::read_to_string(notes.file("names/metrics.jsonl")).unwrap();
    assert!(metrics.contains("\"logit_difference\""), "{metrics}");
    let site = "blocks.1.attn.hook_z";
    let look = |more: &[&str]| {
        let args = ["model", "inspect", "names", "--task", "names/task.jsonl"];
        notes.run(&[&args[..], more].concat())
    };
    let found = look(&["--site", site, "--activations", "rows.npy", "--json"]).json();
    assert_eq!(found["prompts"]["tokens"], 16);
    assert_eq!(found["prompts"]["tested"], 120);
    // The true patch and the edit from the attributes, of each of the three.
    assert_eq!(found["edits"].as_array().unwrap().len(), 6);
    fit_sae(&notes, &["--epochs", "1"]);
    let scored = look(&["--site", site, "--dict", "sae", "--edits", "2", "--json"]).json();
    assert_eq!(scored["dictionaries"].as_array().unwrap().len(), 2);
    // Two places at once, each with its autoencoder: what both heads of the last layer get is what
    // the whole layer gets.
    let both = "blocks.1.attn.hook_z:0,blocks.1.attn.hook_z:1";
    let parts = look(&["--site", both, "--json"]).json();
    assert_eq!(parts["sites"].as_array().unwrap().len(), 2);
    let patch = |found: &serde_json::Value, i: usize| found["edits"][i]["as_patch"].clone();
    for (place, edit) in found["edits"].as_array().unwrap().iter().enumerate() {
        if edit["way"] == "patch" {
            assert_eq!(edit, &parts["edits"][place]);
            assert_eq!(patch(&parts, place), 1.0);
        }
    }
    let layers = "blocks.0.attn.hook_z,blocks.1.attn.hook_z";
    let args = [
        "--site", layers, "--dict", "sae,sae", "--edits", "2", "--json",
    ];
    let scored = look(&args).json();
    // Two attributes of two places.
    let explained = &scored["dictionaries"][1]["explained"];
    assert_eq!(explained.as_array().unwrap().len(), 6, "{explained}");
    // Features that matter to the answer.
    let args = [
        "--site",
        site,
        "--activations",
        "a.npy",
        "--gradients",
        "g.npy",
        "--json",
    ];
    look(&args).ok();
    let fit = [
        "dictionary",
        "fit",
        "a.npy",
        "--method",
        "sae",
        "--gradients",
        "g.npy",
        "--out",
        "att",
    ];
    let set = [
        "--set",
        "batch_size=64",
        "--set",
        "attribution_sparsity_penalty=1",
    ];
    notes.run(&[&fit[..], &set].concat()).ok();
    look(&["--site", site, "--dict", "att", "--edits", "2"]).ok();
    look(&["--site", both, "--gradients", "g.npy"]).fails(2, &["one place"]);
    look(&["--site", site, "--from-end", "1", "--gradients", "g.npy"]).fails(2, &["last token"]);
    look(&["--site", "blocks.1.hook_resid_post"]).fails(2, &["blocks.1.attn.hook_z"]);
    look(&["--site", "blocks.2.attn.hook_z"]).fails(2, &["2 layers"]);
    train(&["--set", "learning_rate=0"]).fails(1, &["learning_rate"]);
}

#[test]
fn tasks_without_sense_are_refused_by_line() {
    let notes = Notes::new();
    let model = fixture("llama");
    let line = |prompt: &str, answer: &str| {
        format!(
            "{{\"prompt\":\"{prompt}\",\"answer\":\"{answer}\",\"wrong\":\"B\",\"attributes\":{{\"io\":\"{answer}\"}}}}\n"
        )
    };
    let run = |more: &[&str]| {
        let base = [
            "model",
            "inspect",
            &model,
            "--task",
            "t.jsonl",
            "--site",
            "blocks.0.hook_resid_post",
        ];
        notes.run(&[&base[..], more].concat())
    };
    notes.write("t.jsonl", &(line("A to", "A") + &line("AA to", "A")));
    run(&[]).fails(2, &["line 2", "must have as many"]);
    notes.write("t.jsonl", &(line("A to", "A") + &line("A to", "AB")));
    run(&[]).fails(2, &["line 2", "2 tokens"]);
    notes.write("t.jsonl", "{\"prompt\": 1}\n");
    run(&[]).fails(2, &["line 1"]);
    notes.write(
        "t.jsonl",
        &(line("A to", "A").repeat(9) + &line("A to", "C")),
    );
    run(&["--seed", "3", "--from-end", "40"]).fails(2, &[]);
    notes.write("t.jsonl", &line("A to", "A").repeat(10));
    run(&["--from-end", "40"]).fails(2, &["--from-end"]);
    run(&["--from-end", &usize::MAX.to_string()]).fails(2, &["--from-end"]);
    run(&["--edits", "0"]).fails(2, &["at least one feature"]);
}

#[test]
fn a_transformer_is_trained_and_compared() {
    let notes = Notes::new();
    let found = notes
        .run(&[
            "lab",
            "in-context",
            "--d",
            "2",
            "--n",
            "5",
            "--layers",
            "1",
            "--hidden",
            "16",
            "--steps",
            "80",
            "--predictors",
            "ols,ridge:0.5,knn:2",
            "--out",
            "table.csv",
            "--json",
        ])
        .json();
    let predictors = found["comparison"]["predictors"].as_array().unwrap();
    assert_eq!(predictors.len(), 3);
    let ols = predictors.iter().find(|p| p["name"] == "ols").unwrap();
    assert!(
        ols["mse"][3].as_f64().unwrap() < 1e-9,
        "exact once pairs suffice"
    );
    assert_eq!(found["probes"].as_array().unwrap().len(), 2);
    let table = std::fs::read_to_string(notes.path().join("table.csv")).unwrap();
    assert!(
        table.starts_with("pairs,model mse,") && table.lines().count() == 6,
        "{table}"
    );
    // A model is kept, and tested elsewhere.
    let lab = |more: &[&str]| notes.run(&[&["lab", "in-context"][..], more].concat());
    let sizes = [
        "--d", "2", "--n", "5", "--layers", "1", "--hidden", "16", "--steps", "20",
    ];
    let plain = lab(&[&sizes[..], &["--save", "m.safetensors", "--json"]].concat()).json();
    let again = lab(&["--load", "m.safetensors", "--json"]).json();
    assert_eq!(plain["comparison"]["model"], again["comparison"]["model"]);
    let shift = ["--w", "normal*1+2.5", "--x", "uniform*2+-1,normal*1+0"];
    let shifted = lab(&[&["--load", "m.safetensors", "--json"][..], &shift].concat()).json();
    assert_eq!(shifted["task"]["w"], "normal*1+2.5");
    let variance = |found: &serde_json::Value| found["comparison"]["variance"].as_f64().unwrap();
    assert!(variance(&shifted) > 1.5 * variance(&plain), "{shifted}");
    let mamba = [
        &sizes[..],
        &["--model", "mamba", "--save", "s6.safetensors"],
    ]
    .concat();
    let mamba = lab(&[&mamba[..], &["--json"]].concat()).json();
    assert_ne!(mamba["weights"], plain["weights"]);
    assert_eq!(
        (&plain["model"], &mamba["model"]),
        (&"transformer".into(), &"mamba".into())
    );
    let again = lab(&["--load", "s6.safetensors", "--json"]).json();
    assert_eq!(mamba["comparison"]["model"], again["comparison"]["model"]);
    let heads = [
        "--heads",
        "2",
        "--d",
        "2",
        "--length",
        "6",
        "--lengths",
        "6",
    ];
    let stack = [&heads[..], &["--stack", "2", "--compat"]].concat();
    let more = ["--steps", "30", "--save", "s.safetensors", "--json"];
    let trained = lab(&[&stack[..], &more].concat()).json();
    assert_eq!(trained["circuits"].as_array().unwrap().len(), 2);
    let again = lab(&[&stack[..], &["--load", "s.safetensors", "--json"]].concat()).json();
    assert_eq!(trained["errors"], again["errors"]);
    let once = [
        &heads[..],
        &["--stack", "2", "--load", "s.safetensors", "--json"],
    ]
    .concat();
    assert_ne!(trained["errors"], lab(&once).json()["errors"]);
    let text = lab(&[&stack[..], &["--load", "s.safetensors"]].concat()).ok();
    assert!(text.contains("2.1 "), "{text}");
    lab(&[&heads[..], &["--tied"]].concat()).fails(2, &["--stack"]);
    let start = [
        &heads[..],
        &["--steps", "2", "--init", "small_id_qk", "--json"],
    ]
    .concat();
    let start = lab(&start).json();
    assert_eq!(start["settings"]["init"], "small_id_qk");
    assert!(start["circuits"][0]["omega"].as_f64().unwrap().abs() < 1e-3);
    lab(&[&stack[..], &["--init", "small_id"]].concat()).fails(2, &["init"]);
    lab(&["--load", "m.safetensors", "--d", "3"]).fails(2, &["2 numbers"]);
    lab(&["--load", "m.safetensors", "--layers", "2"]).fails(2, &["--layers"]);
    lab(&["--load", "m.safetensors", "--model", "mamba"]).fails(2, &["--model"]);
    lab(&["--w", "even*1+0"]).fails(2, &["no distribution"]);
    notes
        .run(&["lab", "in-context", "--predictors", "svm"])
        .fails(2, &["no predictor"]);
    notes
        .run(&["lab", "in-context", "--hidden", "40"])
        .fails(2, &["n_heads"]);
}

#[test]
fn heads_are_trained_kept_and_read() {
    let notes = Notes::new();
    let text = notes
        .run(&[
            "lab",
            "in-context",
            "--heads",
            "2",
            "--steps",
            "50",
            "--lengths",
            "10",
            "--save",
            "h.safetensors",
        ])
        .ok();
    assert!(
        text.contains("omega") && text.contains("centred descent"),
        "{text}"
    );
    let found = notes
        .run(&[
            "lab",
            "in-context",
            "--heads",
            "2",
            "--load",
            "h.safetensors",
            "--lengths",
            "10",
            "--json",
        ])
        .json();
    assert_eq!(found["circuits"].as_array().unwrap().len(), 2);
    assert_eq!(found["settings"]["d"], 5);
    notes
        .run(&["lab", "in-context", "--length", "10"])
        .fails(2, &["--heads"]);
    notes
        .run(&["lab", "in-context", "--heads", "2", "--sigma2=-1"])
        .fails(2, &["sigma2"]);
}

#[test]
fn a_function_of_a_set_is_learned_and_told() {
    let notes = Notes::new();
    let mut lines = String::new();
    for i in 0..120 {
        let x = |k: usize| ((i * 7 + k * 5 + i * k) % 13) as f64 / 13.0 - 0.5;
        let set = [[x(1), x(2)], [x(3), x(4)], [x(5), x(6)]];
        let y = set.iter().map(|v| v[0] * v[0]).sum::<f64>() / 3.0;
        lines += &format!(
            "{}\n",
            serde_json::json!({"q": [x(7), x(8)], "set": set, "y": y})
        );
    }
    notes.write("sets.jsonl", &lines);
    let base = ["lab", "random-features", "sets.jsonl", "--heads", "40"];
    let found = notes
        .run(&[&base[..], &["--save", "p.safetensors", "--json"]].concat())
        .json();
    let models = found["models"].as_array().unwrap();
    assert_eq!(models.len(), 3);
    assert!(models[0]["error"].as_f64().unwrap() < 0.2, "{found}");
    let told = notes
        .run(&[
            "lab",
            "random-features",
            "sets.jsonl",
            "--predict",
            "p.safetensors",
        ])
        .ok();
    assert_eq!(told.lines().count(), 120);
    assert!(told.lines().all(|y| y.parse::<f64>().is_ok()));
    notes.write(
        "bad.jsonl",
        "{\"q\": [1], \"set\": [], \"y\": 0}\n".repeat(9).as_str(),
    );
    notes
        .run(&["lab", "random-features", "bad.jsonl"])
        .fails(1, &["empty set"]);
    notes.write("worse.jsonl", "nonsense\n");
    notes
        .run(&["lab", "random-features", "worse.jsonl"])
        .fails(2, &["line 1"]);
}

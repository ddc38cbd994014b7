//! `keyfold lm bench --grid`: methods of several roles together.
#![allow(clippy::unwrap_used)]

mod common;

use common::Notes;

#[test]
fn methods_are_measured_alone_and_two_by_two() {
    let notes = Notes::new();
    let args = [
        "lm",
        "bench",
        "--grid",
        "--context",
        "128",
        "--texts",
        "2",
        "--tokens",
        "16",
        "--threads",
        "1",
        "--json",
    ];
    let told = notes.run(&args).json();
    let rows = told["rows"].as_array().unwrap();
    let find = |cache: &str, select: &str, evict: &str, weights: &str| {
        let found = rows.iter().find(|row| {
            let is = |role: &str, name: &str| row[role] == name;
            is("cache", cache)
                && is("select", select)
                && is("evict", evict)
                && is("weights", weights)
        });
        found.unwrap_or_else(|| panic!("no {cache} {select} {evict} {weights} in {told:#}"))
    };
    let plain = find("f16", "none", "none", "dense");
    assert_eq!(plain["recall"], 1.0);
    let bytes = |row: &serde_json::Value| row["cache_bytes"].as_u64().unwrap();
    let read = |row: &serde_json::Value| row["bytes_read_per_token"].as_u64().unwrap();
    assert!(bytes(find("q8_0", "none", "none", "dense")) < bytes(plain));
    assert!(bytes(find("matryoshka", "tidal", "none", "dense")) < bytes(plain));
    let turned = &find("matryoshka", "none", "none", "dense")["recall"];
    assert!(turned.as_f64().unwrap() >= 0.5, "{turned}");
    assert!(bytes(find("f16", "none", "h2o", "dense")) < bytes(plain));
    assert!(read(find("f16", "none", "none", "r-sparse")) < read(plain));
    find("q4_0", "double-sparse", "none", "dense");
    find("kvquant:3", "none", "look-m", "dense");
    // Blocks of old tokens lie in any cache, but for one whose bases are of rotated keys.
    find("q8_0", "act-qkv", "none", "dense");
    find("kvquant:3", "act-qkv", "none", "dense");
    let refused = told["refused"].as_array().unwrap();
    let why = |cache: &str, evict: &str| {
        let reason = refused
            .iter()
            .find(|r| r["cache"] == cache && r["select"] == "act-qkv" && r["evict"] == evict);
        reason.unwrap()["why"].as_str().unwrap().to_owned()
    };
    assert!(why("matryoshka", "none").contains("rotated"));
    assert!(why("f16", "h2o").contains("--evict"));
}

#[test]
fn a_model_of_the_users_needs_a_text() {
    let notes = Notes::new();
    let model = format!("{}/../lm/tests/fixtures/llama", env!("CARGO_MANIFEST_DIR"));
    notes
        .run(&["lm", "bench", "--grid", "--model", &model])
        .fails(2, &["--text"]);
    notes.run(&["lm", "bench"]).fails(2, &["--model"]);
    notes
        .run(&["lm", "bench", "--model", &model, "--text", "x"])
        .fails(2, &["--grid"]);
}

//! Models that weigh terms and cross-encoders against the reference libraries, on
//! tiny random models (made by parity/scorers.py).
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use keyfold_core::{PairScorer, Role, SparseEncoder};
use keyfold_text::{CrossEncoder, LoadOptions, SparseTextEncoder};
use serde_json::Value;

const TOLERANCE: f64 = 2e-5;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures-scorers")
}

fn folder(name: &str) -> String {
    fixtures().join(name).to_str().unwrap().to_owned()
}

fn texts() -> HashMap<String, Vec<String>> {
    serde_json::from_slice(&fs::read(fixtures().join("texts.json")).unwrap()).unwrap()
}

fn expected(name: &str) -> Value {
    serde_json::from_slice(&fs::read(fixtures().join(name).join("expected.json")).unwrap()).unwrap()
}

fn sparse(name: &str, threads: usize) -> SparseTextEncoder {
    SparseTextEncoder::load(&folder(name), &LoadOptions { threads }).unwrap()
}

fn cross(name: &str, threads: usize) -> CrossEncoder {
    CrossEncoder::load(&folder(name), &LoadOptions { threads }).unwrap()
}

const SIDES: [(&str, Role); 2] = [("query", Role::Query), ("document", Role::Document)];

fn check_splade(name: &str) {
    let (encoder, expected) = (sparse(name, 2), expected(name));
    for (side, role) in SIDES {
        let texts = &texts()[side];
        let views: Vec<&str> = texts.iter().map(String::as_str).collect();
        let found = encoder.weights(&views, role).unwrap();
        let rounded = encoder.encode(&views, role).unwrap();
        assert_eq!(found.len(), texts.len());
        for (i, (found, rounded)) in found.iter().zip(rounded).enumerate() {
            // Weights near 0 may be above it on one side only.
            let near = |w: f64| w < TOLERANCE;
            let theirs: HashMap<u64, f64> = expected[side][i]
                .as_array()
                .unwrap()
                .iter()
                .map(|e| (e[0].as_u64().unwrap(), e[1].as_f64().unwrap()))
                .collect();
            let ours: HashMap<u64, f64> = (found.iter())
                .map(|&(t, w)| (u64::from(t), f64::from(w)))
                .collect();
            assert!(!theirs.is_empty());
            for term in theirs.keys().chain(ours.keys()) {
                let of = |side: &HashMap<u64, f64>| side.get(term).copied().unwrap_or(0.0);
                let (a, b) = (of(&ours), of(&theirs));
                assert!(
                    (a - b).abs() <= TOLERANCE || near(a) && near(b),
                    "{name} {side} {i}: term {term} weighs {a}, not {b}"
                );
            }
            for &(term, weight) in rounded.entries() {
                let exact = ours[&u64::from(term)] * 51.2;
                assert!((f64::from(weight) - exact).abs() <= 0.501);
            }
        }
    }
}

#[test]
fn splade_of_bert() {
    check_splade("splade-bert");
}

#[test]
fn splade_of_distilbert_with_sums() {
    check_splade("splade-distilbert-sum");
}

#[test]
fn splade_of_roberta() {
    check_splade("splade-roberta");
}

#[test]
fn unicoil_sums_in_queries_and_takes_the_largest_in_documents() {
    let (encoder, expected) = (sparse("unicoil", 2), expected("unicoil"));
    for (side, role) in SIDES {
        let texts = &texts()[side];
        let views: Vec<&str> = texts.iter().map(String::as_str).collect();
        for (i, vector) in encoder.encode(&views, role).unwrap().iter().enumerate() {
            let theirs: Vec<(u64, i64)> = expected[side][i]
                .as_array()
                .unwrap()
                .iter()
                .map(|e| (e[0].as_u64().unwrap(), e[1].as_i64().unwrap()))
                .collect();
            let ours = vector.entries().iter();
            let ours: Vec<(u64, i64)> = ours.map(|&(t, w)| (t.into(), w.into())).collect();
            assert_eq!(ours.len(), theirs.len(), "{side} {i}");
            for (a, b) in ours.iter().zip(&theirs) {
                // A half may be rounded either way.
                assert!(
                    a.0 == b.0 && (a.1 - b.1).abs() <= 1,
                    "{side} {i}: {a:?} {b:?}"
                );
            }
        }
    }
}

fn check_cross(name: &str) {
    let texts = texts();
    let pairs: Vec<(&str, &str)> = (texts["query"].iter())
        .flat_map(|q| {
            texts["document"]
                .iter()
                .map(move |d| (q.as_str(), d.as_str()))
        })
        .collect();
    let expected = expected(name);
    let theirs = expected["scores"].as_array().unwrap();
    let ours = cross(name, 2).score(&pairs).unwrap();
    assert_eq!(ours.len(), theirs.len());
    for (i, (a, b)) in ours.iter().zip(theirs).enumerate() {
        let off = (f64::from(*a) - b.as_f64().unwrap()).abs();
        assert!(off <= TOLERANCE, "{name} {:?}: {a}, not {b}", pairs[i]);
    }
    // A pair has the same score alone and in any batch.
    let one = cross(name, 1);
    for i in [0, 7, pairs.len() - 1] {
        let alone = one.score(&pairs[i..=i]).unwrap()[0];
        assert!((alone - ours[i]).abs() < 1e-5, "{alone} {}", ours[i]);
    }
}

/// Mentions and entities, as parity/anncur_special.py made them.
fn check_entities(name: &str) {
    let expected = expected(name);
    let texts = |key: &str| -> Vec<String> {
        let all = expected[key].as_array().unwrap().iter();
        all.map(|t| t.as_str().unwrap().to_owned()).collect()
    };
    let (queries, documents) = (texts("queries"), texts("documents"));
    let pairs: Vec<(&str, &str)> = (queries.iter())
        .flat_map(|q| documents.iter().map(move |d| (q.as_str(), d.as_str())))
        .collect();
    let ours = cross(name, 2).score(&pairs).unwrap();
    let theirs = expected["scores"].as_array().unwrap();
    assert_eq!(ours.len(), theirs.len());
    let largest = theirs
        .iter()
        .map(|s| s.as_f64().unwrap().abs())
        .fold(1.0, f64::max);
    for (i, (a, b)) in ours.iter().zip(theirs).enumerate() {
        let off = (f64::from(*a) - b.as_f64().unwrap()).abs();
        assert!(off <= TOLERANCE * largest, "{name} {i}: {a}, not {b}");
    }
    // Any text can be scored.
    let odd = ["", "[unused1] [unused0]", "a\nb", &"word ".repeat(500)];
    let odd: Vec<(&str, &str)> = odd
        .iter()
        .flat_map(|q| odd.iter().map(move |d| (*q, *d)))
        .collect();
    assert_eq!(cross(name, 1).score(&odd).unwrap().len(), 16);
}

#[test]
fn cross_encoder_that_compares_marks() {
    check_entities("anncur-emb");
}

#[test]
fn cross_encoder_of_mentions_by_the_first_token() {
    check_entities("anncur-cls");
}

#[test]
fn cross_encoder_of_bert_with_token_types() {
    check_cross("cross-bert");
}

#[test]
fn cross_encoder_of_distilbert_with_two_labels() {
    check_cross("cross-distilbert-two");
}

#[test]
fn cross_encoder_of_roberta() {
    check_cross("cross-roberta");
}

#[test]
fn cross_encoder_of_mpnet() {
    check_cross("cross-mpnet");
}

#[test]
fn models_of_another_kind_are_named() {
    let options = LoadOptions { threads: 1 };
    let bare = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/st-bert-mean");
    let bare = bare.to_str().unwrap();
    let error = CrossEncoder::load(bare, &options)
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("model.safetensors") && error.contains("--rerank"),
        "{error}"
    );
    let error = SparseTextEncoder::load(bare, &options)
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("model.safetensors") && error.contains("--sparse"),
        "{error}"
    );
    for error in [
        CrossEncoder::load("no/model", &options)
            .err()
            .unwrap()
            .to_string(),
        SparseTextEncoder::load("no/model", &options)
            .err()
            .unwrap()
            .to_string(),
    ] {
        assert!(error.contains("no/model"), "{error}");
    }
}

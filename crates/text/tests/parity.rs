//! Every row against the reference libraries, on tiny random models in the
//! published layouts (made by parity/text_encoders.py).
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use keyfold_core::{Encoder, Role};
use keyfold_text::{LoadOptions, load};
use safetensors::SafeTensors;

const TOLERANCE: f32 = 1e-5;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn encoder(name: &str, threads: usize) -> Box<dyn Encoder> {
    let folder = fixtures().join(name);
    load(folder.to_str().unwrap(), &LoadOptions { threads }).unwrap()
}

fn texts() -> HashMap<String, Vec<String>> {
    serde_json::from_slice(&std::fs::read(fixtures().join("texts.json")).unwrap()).unwrap()
}

fn sides() -> Vec<(&'static str, Role, Vec<String>)> {
    let texts = texts();
    [("query", Role::Query), ("document", Role::Document)]
        .map(|(side, role)| (side, role, texts[side].clone()))
        .to_vec()
}

/// The expected rows of a text.
fn expected(file: &SafeTensors, name: &str) -> Vec<Vec<f32>> {
    let tensor = file.tensor(name).unwrap();
    let dim = tensor.shape()[1];
    let (numbers, _) = tensor.data().as_chunks::<4>();
    let numbers: Vec<f32> = numbers.iter().map(|b| f32::from_le_bytes(*b)).collect();
    numbers.chunks(dim).map(<[f32]>::to_vec).collect()
}

fn check(name: &str) {
    let bytes = std::fs::read(fixtures().join(name).join("expected.safetensors")).unwrap();
    let reference = SafeTensors::deserialize(&bytes).unwrap();
    let encoder = encoder(name, 2);
    for (side, role, texts) in sides() {
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let encoded = encoder.encode(&texts, role).unwrap();
        assert_eq!(encoded.len(), texts.len());
        for (i, vectors) in encoded.iter().enumerate() {
            let expected = expected(&reference, &format!("{side}.{i}"));
            assert_eq!(vectors.rows(), expected.len(), "{name} {side} {i}: rows");
            assert_eq!(vectors.dim(), encoder.identity().dim);
            for (row, (ours, theirs)) in vectors.iter().zip(&expected).enumerate() {
                let worst = ours
                    .iter()
                    .zip(theirs)
                    .map(|(a, b)| (a - b).abs())
                    .fold(0.0, f32::max);
                assert!(
                    worst <= TOLERANCE,
                    "{name} {side} {i} row {row}: off by {worst}"
                );
            }
            // One span per row, and each within the text.
            let spans = encoder.spans(texts[i], role).unwrap();
            assert_eq!(spans.len(), vectors.rows(), "{name} {side} {i}: spans");
            for span in spans.into_iter().flatten() {
                assert!(texts[i].get(span.clone()).is_some(), "{span:?}");
            }
        }
    }
}

macro_rules! parity {
    ($($test:ident: $name:literal,)*) => {
        $(
            #[test]
            fn $test() {
                check($name);
            }
        )*

        /// A fixture that no test reads would prove nothing.
        #[test]
        fn every_fixture_is_checked() {
            let mut checked = vec![$($name),*];
            checked.sort();
            let mut there: Vec<String> = std::fs::read_dir(fixtures())
                .unwrap()
                .map(|e| e.unwrap())
                .filter(|e| e.path().is_dir())
                .map(|e| e.file_name().into_string().unwrap())
                .collect();
            there.sort();
            assert_eq!(checked, there);
        }
    };
}

parity! {
    bert_mean: "st-bert-mean",
    distilbert_first_token_and_dense: "st-distilbert-cls-dense",
    roberta_two_poolings_and_prompts: "st-roberta-max-mean",
    xlm_roberta_rare_poolings_lowercase_shards: "st-xlmr-rare",
    mpnet_without_the_prompt: "st-mpnet-prompt",
    bare_modernbert: "bare-modernbert",
    t5_in_pytorch_files: "st-t5-bin",
    pylate_defaults: "pylate-bert",
    pylate_missing_fields: "pylate-missing-fields",
    pylate_visible_expansion_and_chain_of_heads: "pylate-roberta-attend",
    pylate_without_expansion: "pylate-modernbert",
    pylate_expansion_in_local_attention: "pylate-modernbert-expand",
    stanford: "stanford-bert",
    xtr: "xtr-t5",
}

#[test]
fn a_text_has_the_same_vectors_alone_and_in_any_batch() {
    for name in ["st-bert-mean", "pylate-roberta-attend", "xtr-t5"] {
        let (one, many) = (encoder(name, 1), encoder(name, 3));
        for (_, role, texts) in sides() {
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            let backwards: Vec<&str> = texts.iter().rev().copied().collect();
            let batch = one.encode(&texts, role).unwrap();
            let mut reversed = many.encode(&backwards, role).unwrap();
            reversed.reverse();
            for (i, text) in texts.iter().enumerate() {
                let alone = &one.encode(&[text], role).unwrap()[0];
                for other in [&batch[i], &reversed[i]] {
                    assert_eq!(alone.rows(), other.rows());
                    let pairs = alone.as_slice().iter().zip(other.as_slice());
                    let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                    assert!(worst < 1e-6, "{name} {text:?}: off by {worst}");
                }
            }
        }
    }
}

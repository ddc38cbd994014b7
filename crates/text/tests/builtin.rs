//! The built-in encoder, and distilling one like it.

// Helpers of tests are not inside a test function, where the lint is off.
#![allow(clippy::unwrap_used)]

use keyfold_core::{Encoder, ModelFolder, NoProgress, Role};
use keyfold_kernels as kernels;
use keyfold_text::builtin::{self, TokenMixerEncoder};
use keyfold_text::distill::{DistillConfig, distill};
use keyfold_text::{LoadOptions, SentenceEncoder, load};

const TEXTS: [&str; 6] = [
    "What does a reader see while someone writes?",
    "",
    "?!... --",
    "Ünïcode, 漢字 and naïve café \u{1f600} in one line; \u{0}\u{7} too",
    "one",
    "a much longer text, so that the batch is not even: the dough rises because yeast eats sugar \
     and gives off gas, which the elastic gluten keeps in small bubbles until it is baked",
];

#[test]
fn keys_are_unit_rows_with_the_words_they_stand_for() {
    let encoder = builtin::load(1).unwrap();
    let encoded = encoder.encode(&TEXTS, Role::Document).unwrap();
    for (text, vectors) in TEXTS.iter().zip(&encoded) {
        let spans = encoder.spans(text, Role::Document).unwrap();
        assert_eq!(spans.len(), vectors.rows(), "{text:?}");
        for span in spans.into_iter().flatten() {
            assert!(text[span].chars().any(char::is_alphanumeric));
        }
        for row in vectors.iter() {
            assert!((kernels::norm(row) - 1.0).abs() < 1e-5);
        }
    }
    assert!(encoded[1].is_empty() && encoded[2].is_empty());
    assert_eq!(encoded[4].rows(), 1);
}

#[test]
fn a_text_has_the_same_keys_alone_in_a_batch_and_on_more_threads() {
    let one = builtin::load(1).unwrap();
    let more = builtin::load(3).unwrap();
    let batch = one.encode(&TEXTS, Role::Document).unwrap();
    assert_eq!(one.identity(), more.identity());
    let shared = more.encode(&TEXTS, Role::Document).unwrap();
    for ((text, batch), shared) in TEXTS.iter().zip(&batch).zip(&shared) {
        let alone = one.encode(&[text], Role::Document).unwrap();
        for other in [&alone[0], shared] {
            assert_eq!(other.rows(), batch.rows());
            for (a, b) in other.as_slice().iter().zip(batch.as_slice()) {
                assert!((a - b).abs() < 1e-5, "{text:?}");
            }
        }
    }
}

#[test]
fn rare_words_weigh_more_in_a_query() {
    let encoder = builtin::load(1).unwrap();
    let text = "the noise of the turbine";
    let queries = encoder.encode(&[text], Role::Query).unwrap();
    let documents = encoder.encode(&[text], Role::Document).unwrap();
    let lengths: Vec<f32> = queries[0].iter().map(kernels::norm).collect();
    let [the, noise, of, again, turbine] = lengths[..] else {
        panic!("{lengths:?}");
    };
    assert!((the - again).abs() < 1e-5, "{lengths:?}");
    assert!(turbine > noise && noise > 2.0 * of.max(the), "{lengths:?}");
    assert!(turbine <= 1.0 && of.min(the) > 0.0, "{lengths:?}");
    // Only the lengths differ.
    for (query, document) in queries[0].iter().zip(documents[0].iter()) {
        let cosine = kernels::dot(query, document) / kernels::norm(query);
        assert!((cosine - 1.0).abs() < 1e-5, "{cosine}");
    }
}

#[test]
fn a_query_is_nearest_to_the_text_that_means_the_same() {
    let encoder = load("builtin", &LoadOptions { threads: 1 }).unwrap();
    let texts = [
        "The dog sleeps on the sofa in the living room.",
        "Interest rates were raised by the central bank.",
        "Bake the bread for forty minutes in a hot oven.",
        "The database writes every change to a log before it answers.",
    ];
    let documents = encoder.encode(&texts, Role::Document).unwrap();
    let queries = [
        "a puppy resting on the couch",
        "monetary policy of banks and money",
        "cooking a loaf",
        "how software keeps its data safe",
    ];
    let dim = encoder.identity().dim;
    for (i, query) in encoder
        .encode(&queries, Role::Query)
        .unwrap()
        .iter()
        .enumerate()
    {
        let scores: Vec<f32> = documents
            .iter()
            .map(|d| kernels::maxsim(query.as_slice(), d.as_slice(), dim))
            .collect();
        let best = kernels::top_k(&scores, 1)[0].1;
        assert_eq!(best as usize, i, "{}: {scores:?}", queries[i]);
    }
}

#[test]
fn very_long_texts_are_cut_and_do_not_fail() {
    let encoder = builtin::load(1).unwrap();
    let long = "word ".repeat(50_000);
    let vectors = encoder.encode(&[&long], Role::Document).unwrap();
    assert!((1..=1024).contains(&vectors[0].rows()));
    assert_eq!(
        encoder.spans(&long, Role::Document).unwrap().len(),
        vectors[0].rows()
    );
}

fn teacher() -> (ModelFolder, SentenceEncoder) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/st-bert-mean");
    let folder = ModelFolder::find(path).unwrap();
    let encoder = SentenceEncoder::load(&folder, &LoadOptions { threads: 1 }).unwrap();
    (folder, encoder)
}

fn small(steps: usize) -> DistillConfig {
    DistillConfig {
        hidden_size: 16,
        num_blocks: 1,
        kernel_size: 3,
        intermediate_size: 16,
        output_size: 8,
        max_length: 64,
        steps,
        batch_tokens: 128,
        warmup_steps: 5,
        threads: 2,
        ..DistillConfig::default()
    }
}

/// Texts of the words that the little teacher knows best: letters.
fn texts() -> Vec<String> {
    let words = [
        "the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "far",
    ];
    (0..120)
        .map(|i| {
            let pick = |j: usize| words[(i * 7 + j * j * 3 + j) % words.len()];
            (0..12).map(pick).collect::<Vec<_>>().join(" ")
        })
        .collect()
}

#[test]
fn distilling_comes_nearer_to_the_teacher_and_gives_a_model_that_loads() {
    let (folder, teacher) = teacher();
    let out = tempfile::tempdir().unwrap();
    let learn = |steps, name: &str| {
        let out = out.path().join(name);
        distill(
            &teacher,
            &folder,
            &texts(),
            &small(steps),
            &out,
            &NoProgress,
        )
        .unwrap()
    };
    let little = learn(1, "little");
    let much = learn(200, "much");
    assert!(
        much.held_out_cosine > little.held_out_cosine + 0.5 && much.held_out_cosine > 0.5,
        "{} then {}",
        little.held_out_cosine,
        much.held_out_cosine
    );

    // The same seed gives the same model, also from the states that were kept.
    let model = std::fs::read(out.path().join("much/model.safetensors")).unwrap();
    learn(200, "much");
    assert_eq!(
        model,
        std::fs::read(out.path().join("much/model.safetensors")).unwrap()
    );

    let name = out.path().join("much");
    let encoder = load(name.to_str().unwrap(), &LoadOptions { threads: 1 }).unwrap();
    assert_eq!(encoder.identity().dim, 8);
    let vectors = encoder.encode(&["the cat ran"], Role::Query).unwrap();
    assert!(vectors[0].rows() >= 3);
}

#[test]
fn damaged_models_are_refused_with_the_name_of_the_file() {
    let (folder, teacher) = teacher();
    let out = tempfile::tempdir().unwrap();
    distill(
        &teacher,
        &folder,
        &texts(),
        &small(1),
        out.path(),
        &NoProgress,
    )
    .unwrap();
    let refused = |file: &str, content: &[u8]| {
        let path = out.path().join(file);
        let sound = std::fs::read(&path).unwrap();
        std::fs::write(&path, content).unwrap();
        let folder = ModelFolder::find(out.path().to_str().unwrap()).unwrap();
        let error = TokenMixerEncoder::load(&folder, 1)
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains(file), "{error}");
        std::fs::write(&path, sound).unwrap();
        error
    };
    let weights = std::fs::read(out.path().join("model.safetensors")).unwrap();
    refused("model.safetensors", &weights[..weights.len() / 2]);
    refused("model.safetensors", b"");
    refused("tokenizer.json", b"{}");
    refused("config.json", b"[");
    let config = std::fs::read_to_string(out.path().join("config.json")).unwrap();
    let wrong = config.replace("\"hidden_size\": 16", "\"hidden_size\": 24");
    let error = TokenMixerEncoder::load(
        &{
            std::fs::write(out.path().join("config.json"), &wrong).unwrap();
            ModelFolder::find(out.path().to_str().unwrap()).unwrap()
        },
        1,
    );
    let error = error.err().unwrap().to_string();
    assert!(error.contains("embeddings.weight"), "{error}");
    let absurd = config.replace("\"hidden_size\": 16", "\"hidden_size\": 99999999999");
    let error = refused("config.json", absurd.as_bytes());
    assert!(error.contains("hidden_size"), "{error}");
}

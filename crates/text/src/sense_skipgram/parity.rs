//! Losses and gradients beside those of PyTorch (`parity/word_models.py`).

use std::collections::HashMap;

use serde::Deserialize;

use super::config::Config;
use super::params::{Batch, Bounds, Params, Stage};
use crate::sampled::testing::{Words, near, scattered};
use crate::sampled::{Rate, Table, Threads};

const CASES: &str = include_str!("../../tests/fixtures-words/sense_skipgram.json");

#[derive(Deserialize)]
struct Case {
    name: String,
    entropy: Option<f32>,
    temperature: Option<f32>,
    senses: usize,
    dim: usize,
    window: usize,
    shared: bool,
    centres: Vec<u32>,
    around: Vec<Vec<u32>>,
    noise: Vec<f32>,
    #[serde(flatten)]
    words: Words,
    result: f64,
    tensors: HashMap<String, Vec<f32>>,
    gradients: HashMap<String, Vec<f32>>,
}

#[test]
fn losses_and_gradients_are_those_of_pytorch() {
    let cases: Vec<Case> = serde_json::from_str(CASES).unwrap();
    assert_eq!(cases.len(), 3);
    for case in cases {
        let config = Config {
            senses: case.senses,
            dim: case.dim,
            window: case.window,
            ..Config::default()
        };
        let width = case.senses * case.dim;
        let table = |name: &str, dim: usize| Table::new(dim, case.tensors[name].clone());
        let mut params = Params::new(0, &config);
        params.senses = table("senses", width);
        params.layer.weights = table("weights", case.dim);
        params.layer.bias = table("bias", 1);
        params.classifier = table("classifier", width);
        params.classifier_bias = table("classifier_bias", case.senses);
        params.slots = match case.shared {
            true => vec![0; 11],
            false => (0..11).collect(),
        };
        let stage = match (case.entropy, case.temperature) {
            (Some(entropy), _) => Stage::Soft { entropy },
            (None, temperature) => Stage::Sampled {
                temperature: temperature.unwrap(),
            },
        };
        let around: Vec<u32> = case.around.concat();
        let mut batch = Batch::default();
        batch.words = case.words.batch(case.centres.len());
        batch.centres = case.centres.clone();
        batch.noise = case.noise.clone();

        params.backward(&mut batch, &around, stage, &config);
        assert!(
            (batch.loss - case.result).abs() < 1e-6,
            "{}: {} {}",
            case.name,
            batch.loss,
            case.result
        );
        // What a descent with rate 1 takes away is the gradient.
        let rate = Rate {
            learning_rate: 1.0,
            descent: crate::sampled::Descent::Momentum(0.9),
        };
        let mut moved = params.clone();
        let threads = Threads::one();
        let bounds = Bounds::new(&[1; 11], &threads);
        moved.descend(&[batch], rate, &threads, &bounds);
        let tables = [
            ("senses", &params.senses, &moved.senses),
            ("weights", &params.layer.weights, &moved.layer.weights),
            ("bias", &params.layer.bias, &moved.layer.bias),
            ("classifier", &params.classifier, &moved.classifier),
            (
                "classifier_bias",
                &params.classifier_bias,
                &moved.classifier_bias,
            ),
        ];
        for (name, before, after) in tables {
            let gradient = scattered(before, after, 1.0);
            near(
                &gradient,
                &case.gradients[name],
                &format!("{}: {name}", case.name),
            );
        }
    }
}

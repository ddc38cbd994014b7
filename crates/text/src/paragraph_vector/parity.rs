//! Losses and gradients beside those of PyTorch (`parity/word_models.py`).

use std::collections::HashMap;

use serde::Deserialize;

use super::config::{Architecture, Code, Config, Join};
use super::pack;
use super::params::{Batch, NONE, Params};
use crate::sampled::testing::{Words, near, scattered};
use crate::sampled::{Table, Threads};

const CASES: &str = include_str!("../../tests/fixtures-words/paragraph_vector.json");

#[derive(Deserialize)]
struct Case {
    name: String,
    code: Code,
    real_dim: usize,
    context: Option<Join>,
    #[serde(default)]
    around: Vec<Vec<i64>>,
    documents_of_rows: Vec<u32>,
    #[serde(flatten)]
    words: Words,
    result: f64,
    codes: Vec<Vec<u8>>,
    tensors: HashMap<String, Vec<f32>>,
    gradients: HashMap<String, Vec<f32>>,
}

#[test]
fn losses_gradients_and_codes_are_those_of_pytorch() {
    let cases: Vec<Case> = serde_json::from_str(CASES).unwrap();
    assert_eq!(cases.len(), 10);
    for case in cases {
        let architecture = match case.context {
            Some(_) => Architecture::PvDm,
            None => Architecture::PvDbow,
        };
        let config = Config {
            architecture,
            code: case.code,
            bits: 8,
            real_dim: case.real_dim,
            context: case.context.unwrap_or(Join::Sum),
            window: 2,
            loss: case.words.loss,
            ..Config::default()
        };
        let table = |name: &str, dim: usize| Table::new(dim, case.tensors[name].clone());
        let mut params = Params::new(0, 0, &config);
        params.layer.weights = table("weights", config.hidden());
        params.layer.bias = table("bias", 1);
        if let Some(context) = &mut params.context {
            *context = table("around_vectors", 8);
        }
        if let Some(projection) = &mut params.projection {
            *projection = table("projection", case.real_dim);
        }
        let documents = table("documents", config.row());
        let number = |w: &i64| u32::try_from(*w).unwrap_or(NONE);
        let mut batch = Batch::default();
        batch.documents = case.documents_of_rows.clone();
        batch.around = case.around.iter().flatten().map(number).collect();
        batch.words = case.words.batch(case.documents_of_rows.len());

        params.backward(&documents, &mut batch, &config);
        assert!(
            (batch.words.loss - case.result).abs() < 1e-5,
            "{}: {} {}",
            case.name,
            batch.words.loss,
            case.result
        );
        for (row, codes) in case.codes.iter().enumerate() {
            let sums = params.sums(documents.row(row as u32), &config);
            let want: Vec<f32> = codes.iter().map(|c| f32::from(*c)).collect();
            assert_eq!(pack(&sums), pack(&want), "{}", case.name);
        }

        // What a descent with rate 1 takes away is the gradient.
        let rate = crate::sampled::Rate {
            learning_rate: 1.0,
            descent: crate::sampled::Descent::Plain,
        };
        let mut moved = params.clone();
        let mut moved_documents = documents.clone();
        let rows = batch.documents.len() as f32;
        let bounds = super::params::Bounds::new(&[1; 11], 4, &Threads::one());
        moved.descend(
            &mut moved_documents,
            std::slice::from_ref(&batch),
            rate,
            &Threads::one(),
            &bounds,
            &config,
        );
        let check = |name: &str, before: &Table, after: &Table, scale: f32| {
            let gradient = scattered(before, after, scale);
            near(
                &gradient,
                &case.gradients[name],
                &format!("{}: {name}", case.name),
            );
        };
        check("documents", &documents, &moved_documents, 1.0);
        check("weights", &params.layer.weights, &moved.layer.weights, 1.0);
        check("bias", &params.layer.bias, &moved.layer.bias, 1.0);
        if let (Some(before), Some(after)) = (&params.context, &moved.context) {
            // Each goes a share of the way.
            check("around_vectors", before, after, 4.0);
        }
        if let (Some(before), Some(after)) = (&params.projection, &moved.projection) {
            // It follows the mean over the rows.
            check("projection", before, after, rows);
        }
    }
}

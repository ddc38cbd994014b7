//! Against the authors' programs, on tiny random encoders (made by parity/defsent.py).

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Gradients, Tensor, TensorData};
use keyfold_core::{ModelFolder, NoProgress};
use keyfold_nn::checkpoint::numbers;
use keyfold_nn::ops;
use keyfold_train::Learner;
use keyfold_train::gradient::{GradientLearner, OptimConfig};
use safetensors::SafeTensors;

use super::task::{Definitions, Example, of_entries};
use super::{DefSentConfig, DefSentModel, Dictionary, PoolerKind, ReverseDictionary, embed};
use crate::{LoadOptions, Pool, SentenceEncoder};

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures-defsent")
        .join(name)
}

fn folder(name: &str) -> ModelFolder {
    ModelFolder {
        name: name.to_owned(),
        path: path(name),
    }
}

fn encoder(name: &str, pool: Pool) -> SentenceEncoder {
    let encoder = SentenceEncoder::load(&folder(name), &LoadOptions { threads: 1 });
    encoder.unwrap().with_pool(pool).unwrap()
}

fn dictionary() -> Dictionary {
    Dictionary::read(&[path("dictionary.tsv")]).unwrap()
}

struct Expected(HashMap<String, Vec<f32>>);

impl Expected {
    fn read(name: &str) -> Self {
        let bytes = std::fs::read(path(name).join("expected.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensors = file.tensors().into_iter().map(|(name, tensor)| {
            let (words, _) = tensor.data().as_chunks::<4>();
            (name, words.iter().map(|b| f32::from_le_bytes(*b)).collect())
        });
        Self(tensors.collect())
    }

    fn assert_close(&self, name: &str, ours: &[f32]) {
        let theirs = &self.0[name];
        assert_eq!(ours.len(), theirs.len(), "{name}");
        let largest = theirs.iter().fold(1.0f32, |m, x| m.max(x.abs()));
        for (i, (a, b)) in ours.iter().zip(theirs).enumerate() {
            assert!(
                (a - b).abs() / largest < 1e-5,
                "{name}[{i}]: {a} instead of {b}"
            );
        }
    }
}

#[test]
fn vectors_of_entries_and_of_prompts_are_those_of_the_authors() {
    for name in ["bert", "roberta"] {
        let expected = Expected::read(name);
        let embed = |pool| embed(&encoder(name, pool), &dictionary(), &NoProgress).unwrap();
        expected.assert_close("ac", &embed(Pool::Cls));
        expected.assert_close("amp", &embed(Pool::Mean));
        let dictionary = dictionary();
        let definitions = dictionary.entries().iter().flat_map(|e| &e.definitions);
        let texts: Vec<&str> = definitions.map(String::as_str).collect();
        let prompted = encoder(name, Pool::Prompt).pooled(&texts).unwrap();
        expected.assert_close("prompt", &prompted);
    }
}

/// The definitions of the reference's batch, and the vectors of entries.
fn batch(name: &str) -> (Vec<Example>, Vec<f32>) {
    let all = of_entries(&encoder(name, Pool::Mean), &dictionary()).unwrap();
    let chosen = [1, 2, 5, 3].map(|i: usize| all[i].clone());
    let vectors = embed(&encoder(name, Pool::Cls), &dictionary(), &NoProgress).unwrap();
    (chosen.to_vec(), vectors)
}

fn device() -> Device {
    Device::flex().autodiff()
}

/// Puts the gradients where the weights were; zeros where there is none.
struct IntoGradients(Gradients);

impl ModuleMapper for IntoGradients {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let gradient = param.val().grad(&self.0);
        param.map(|x| gradient.unwrap_or_else(|| x.without_autodiff().zeros_like()))
    }
}

#[test]
fn logits_loss_and_gradients_are_those_of_pytorch() {
    for (name, kind) in [
        ("bert", PoolerKind::Own),
        ("roberta", PoolerKind::MaskedWords),
    ] {
        let expected = Expected::read(name);
        let model = DefSentModel::load(&folder(name), 0, &device()).unwrap();
        assert_eq!(model.kind(), kind);
        let (examples, vectors) = batch(name);
        let ids: Vec<&[u32]> = examples.iter().map(|e| e.ids.as_slice()).collect();
        let targets: Vec<u32> = examples.iter().map(|e| e.class).collect();
        let packed = model.bert().pack(&ids).unwrap();
        for (pool, label) in [(Pool::Cls, "cls"), (Pool::Mean, "mean")] {
            let classes = TensorData::new(vectors.clone(), [3, model.bert().hidden()]);
            let classes = Tensor::<2>::from_data(classes, &device());
            let r = model.represent(&packed, pool, None);
            let logits = r.clone().matmul(classes.clone().transpose());
            expected.assert_close(&format!("{label}.logits"), &numbers(&logits));
            let loss = ops::cross_entropy(r, classes, &targets);
            expected.assert_close(&format!("{label}.loss"), &numbers(&loss));
            let gradients = model.clone().map(&mut IntoGradients(loss.backward()));
            for tensor in gradients.bert().tensors() {
                let key = format!("{label}.gradient.{}", tensor.name);
                expected.assert_close(&key, &tensor.numbers);
            }
        }
    }
}

#[test]
fn one_step_of_adamw_leads_to_the_same_weights() {
    for name in ["bert", "roberta"] {
        let expected = Expected::read(name);
        let model = DefSentModel::load(&folder(name), 0, &device()).unwrap();
        let (examples, vectors) = batch(name);
        let classes = TensorData::new(vectors, [3, model.bert().hidden()]);
        let classes = Tensor::from_data(classes, &device());
        let config = DefSentConfig {
            batch_size: examples.len(),
            dropout: false,
            ..DefSentConfig::default()
        };
        let optim = OptimConfig {
            learning_rate: 1e-3,
            ..config.optim.clone()
        };
        let task = Definitions::new(examples, classes, model.clone(), &config);
        let mut learner = GradientLearner::new(task, model, &optim, &device(), "x").unwrap();
        let step = learner.step(1).unwrap();
        expected.assert_close("mean.loss", &[step.loss as f32]);
        for tensor in learner.model().bert().tensors() {
            expected.assert_close(&format!("step.{}", tensor.name), &tensor.numbers);
        }
    }
}

#[test]
fn a_definition_finds_its_entry() {
    let encoder = encoder("bert", Pool::Mean);
    let dictionary = dictionary();
    let vectors = embed(&encoder, &dictionary, &NoProgress).unwrap();
    let reverse = ReverseDictionary::new(encoder, dictionary, vectors);
    let found = reverse.define("a query without an answer", 2).unwrap();
    assert_eq!(found.len(), 2);
    assert_eq!(found[0].0, "cold war");
    assert!((found[0].1 - 1.0).abs() < 1e-5 && found[1].1 < found[0].1);
}

//! Hidden states and gradients against transformers, on tiny random models (made by
//! parity/bert_training.py); what was saved; dropout.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::path::Path;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Gradients, Tensor, TensorData};
use keyfold_core::ModelFolder;
use keyfold_nn::checkpoint::numbers;
use keyfold_nn::{Bert, BertConfig, ModelError, Packed};
use safetensors::SafeTensors;

const TOLERANCE: f32 = 1e-5;

fn fixture(name: &str) -> ModelFolder {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name);
    ModelFolder {
        name: name.to_owned(),
        path,
    }
}

fn load(name: &str) -> Bert {
    Bert::load(&fixture(name), &Device::flex().autodiff()).unwrap()
}

/// What the reference wrote, by name.
struct Expected(HashMap<String, Vec<f32>>);

impl Expected {
    fn read(name: &str) -> Self {
        let bytes = std::fs::read(fixture(name).file("expected.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensors = file.tensors().into_iter().map(|(name, tensor)| {
            let (numbers, _) = tensor.data().as_chunks::<4>();
            (
                name,
                numbers.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            )
        });
        Self(tensors.collect())
    }

    fn batch(&self, bert: &Bert) -> Packed {
        let whole = |name: &str| self.0[name].iter().map(|&x| x as usize);
        let ids: Vec<u32> = whole("ids").map(|x| x as u32).collect();
        let starts: Vec<usize> = whole("starts").collect();
        let texts: Vec<&[u32]> = starts.windows(2).map(|t| &ids[t[0]..t[1]]).collect();
        let mut batch = bert.pack(&texts).unwrap();
        if self.0.contains_key("types") {
            batch.types = whole("types").map(|x| x as u32).collect();
        }
        batch
    }

    fn assert_close(&self, name: &str, ours: &[f32]) {
        let theirs = &self.0[name];
        assert_eq!(ours.len(), theirs.len(), "{name}");
        let largest = theirs.iter().fold(1.0f32, |m, x| m.max(x.abs()));
        for (i, (a, b)) in ours.iter().zip(theirs).enumerate() {
            let error = (a - b).abs() / largest;
            assert!(error < TOLERANCE, "{name}[{i}]: {a} instead of {b}");
        }
    }
}

/// The loss of the fixture: states times factors, and the pooled states squared.
fn loss(bert: &Bert, batch: &Packed, expected: &Expected) -> Tensor<1> {
    let states = bert.forward(batch, None);
    let shape = states.dims();
    let factors = TensorData::new(expected.0["factors"].clone(), shape);
    let loss = (states.clone() * Tensor::from_data(factors, &states.device())).sum();
    match bert.pooled(states, batch) {
        Some(pooled) => loss + pooled.square().sum(),
        None => loss,
    }
}

/// Puts the gradients where the weights were.
struct IntoGradients(Gradients);

impl burn::module::ModuleMapper for IntoGradients {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let gradient = param.val().grad(&self.0);
        param.map(|x| gradient.unwrap_or_else(|| x.without_autodiff().zeros_like()))
    }
}

fn check(name: &str) {
    let (bert, expected) = (load(name), Expected::read(name));
    let batch = expected.batch(&bert);
    for (i, states) in bert.forward_all(&batch, None).iter().enumerate() {
        expected.assert_close(&format!("states.{i}"), &numbers(states));
    }
    let loss = loss(&bert, &batch, &expected);
    expected.assert_close("loss", &numbers(&loss));
    let gradients = bert.map(&mut IntoGradients(loss.backward()));
    let named = gradients.tensors();
    for tensor in &named {
        expected.assert_close(&format!("gradient.{}", tensor.name), &tensor.numbers);
    }
    let known = expected.0.keys().filter(|k| k.starts_with("gradient."));
    assert_eq!(named.len(), known.count());
}

#[test]
fn bert_is_that_of_transformers() {
    check("bert");
}

#[test]
fn roberta_is_that_of_transformers() {
    check("roberta");
}

#[test]
fn distilbert_is_that_of_transformers() {
    check("distilbert");
}

/// Counts parameters, and those without a gradient.
struct Untrained<'a> {
    gradients: &'a Gradients,
    all: usize,
    without: usize,
}

impl ModuleVisitor for Untrained<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.all += 1;
        let gradient = param.val().grad(self.gradients);
        let reached = gradient.is_some_and(|g| numbers(&g).iter().any(|&x| x != 0.0));
        self.without += usize::from(!reached);
    }
}

#[test]
fn every_parameter_gets_a_gradient_also_with_dropout() {
    for name in ["bert", "roberta", "distilbert"] {
        let (bert, expected) = (load(name), Expected::read(name));
        let batch = expected.batch(&bert);
        let states = bert.forward(&batch, Some(3));
        let mut loss = states.clone().powf_scalar(3.0).sum();
        if let Some(pooled) = bert.pooled(states, &batch) {
            loss = loss + pooled.sum();
        }
        let gradients = loss.backward();
        let mut seen = Untrained {
            gradients: &gradients,
            all: 0,
            without: 0,
        };
        bert.visit(&mut seen);
        assert!(seen.all >= 26, "{}", seen.all);
        assert_eq!(seen.without, 0, "{name}");
    }
}

#[test]
fn what_is_saved_loads_again_with_the_same_states() {
    for name in ["bert", "roberta", "distilbert"] {
        let (bert, expected) = (load(name), Expected::read(name));
        let out = tempfile::tempdir().unwrap();
        let path = out.path().join("model");
        bert.save(&path).unwrap();
        let folder = ModelFolder {
            name: name.to_owned(),
            path: path.clone(),
        };
        let again = Bert::load(&folder, &Device::flex()).unwrap();
        assert_eq!(again.tensors(), bert.tensors());
        let batch = expected.batch(&again);
        let last = numbers(&again.forward(&batch, None));
        expected.assert_close("states.2", &last);
        let config = |folder: &Path| std::fs::read(folder.join("config.json")).unwrap();
        assert_eq!(config(&path), config(&fixture(name).path));
    }
}

fn small() -> BertConfig {
    let text = r#"{"model_type": "bert", "vocab_size": 50, "hidden_size": 16,
        "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
        "max_position_embeddings": 9}"#;
    serde_json::from_str(text).unwrap()
}

#[test]
fn dropout_follows_from_its_seed_and_is_off_without() {
    let bert = Bert::init(small(), 1, &Device::flex()).unwrap();
    let batch = bert.pack(&[vec![1, 2, 3, 4], vec![5, 6]]).unwrap();
    let states = |seed| numbers(&bert.forward(&batch, seed));
    assert_eq!(states(None), states(None));
    assert_eq!(states(Some(7)), states(Some(7)));
    assert_ne!(states(Some(7)), states(Some(8)));
    assert_ne!(states(Some(7)), states(None));
}

#[test]
fn a_text_is_read_alike_alone_and_among_others() {
    let bert = Bert::init(small(), 1, &Device::flex()).unwrap();
    let texts = [vec![9, 8, 7], vec![], vec![1], vec![2, 3, 4, 5, 6]];
    let together = numbers(&bert.forward(&bert.pack(&texts).unwrap(), None));
    let apart: Vec<f32> = texts
        .iter()
        .flat_map(|t| numbers(&bert.forward(&bert.pack(&[t]).unwrap(), None)))
        .collect();
    assert_eq!(together.len(), apart.len());
    for (a, b) in together.iter().zip(&apart) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
}

#[test]
fn errors_name_the_text_or_the_file_and_what_to_do() {
    let bert = Bert::init(small(), 1, &Device::flex()).unwrap();
    let error = |e: ModelError| e.to_string();
    let long = error(bert.pack(&[vec![1], vec![1; 10]]).unwrap_err());
    assert!(long.contains("text 1") && long.contains("reads 9") && long.contains("cut"));
    let foreign = error(bert.pack(&[vec![50]]).unwrap_err());
    assert!(foreign.contains("50") && foreign.contains("tokenizer"));

    let out = tempfile::tempdir().unwrap();
    bert.save(out.path()).unwrap();
    let folder = ModelFolder {
        name: "x".to_owned(),
        path: out.path().to_owned(),
    };
    let config = out.path().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let device = Device::flex();
    let with = |from: &str, to: &str| {
        assert!(text.contains(from));
        std::fs::write(&config, text.replace(from, to)).unwrap();
        let e = Bert::load(&folder, &device).unwrap_err().to_string();
        assert!(e.contains(out.path().to_str().unwrap()), "{e}");
        e
    };
    assert!(with("\"bert\"", "\"t5\"").contains("roberta"));
    assert!(with("\"gelu\"", "\"relu\"").contains("gelu"));
    assert!(with(": 16,", ": 15,").contains("divide"));
    assert!(with(": 16,", ": 32,").contains("[50, 16]"));
    assert!(with(": 24,", ": 0,").contains("between 1"));
    assert!(
        with(
            "\"hidden_dropout_prob\": 0.1",
            "\"hidden_dropout_prob\": 1.0"
        )
        .contains("dropout")
    );
    let cut = std::fs::read(out.path().join("model.safetensors")).unwrap();
    std::fs::write(out.path().join("model.safetensors"), &cut[..cut.len() / 2]).unwrap();
    assert!(with("\"bert\"", "\"bert\"").contains("cut off"));
}

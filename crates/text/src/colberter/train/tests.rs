use std::collections::HashMap;

use burn::module::Param;
use keyfold_nn::{Bert, BertConfig, Linear, Packed};

use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct Losses {
    colberter: Vec<Case>,
}

/// Losses and gradients of a small PyTorch graph, by parity/training_losses.py.
#[derive(Deserialize)]
struct Case {
    exact: bool,
    sizes: Sizes,
    words: Sides<Vec<Named>>,
    states: Sides<Vec<Vec<f32>>>,
    parameters: HashMap<String, Vec<f32>>,
    teacher: Vec<f32>,
    weights: HashMap<String, f64>,
    parts: HashMap<String, f64>,
    loss: f64,
    gradients: HashMap<String, Vec<f32>>,
    state_gradients: Sides<Vec<Vec<f32>>>,
}

#[derive(Deserialize)]
struct Sides<T> {
    queries: T,
    documents: T,
}

#[derive(Deserialize)]
struct Sizes {
    hidden: usize,
    token: usize,
    whole: usize,
    second: usize,
}

#[derive(Deserialize)]
struct Named {
    of: Vec<Option<u32>>,
    ids: Vec<u32>,
}

fn device() -> Device {
    Device::flex().autodiff()
}

fn tensor(numbers: &[f32], width: usize) -> Tensor<2> {
    let data = TensorData::new(numbers.to_vec(), [numbers.len() / width, width]);
    Tensor::from_data(data, &device()).require_grad()
}

fn linear(case: &Case, name: &str, inputs: usize) -> Linear {
    let numbers = |part: &str| &case.parameters[&format!("{name}.{part}")];
    let bias = Tensor::<1>::from_data(numbers("bias").as_slice(), &device()).require_grad();
    Linear {
        weight: Param::from_tensor(tensor(numbers("weight"), inputs)),
        bias: Some(Param::from_tensor(bias)),
    }
}

fn model(case: &Case) -> ColberterModel {
    let config: BertConfig = serde_json::from_value(serde_json::json!({
        "model_type": "bert", "vocab_size": 8, "hidden_size": case.sizes.hidden,
        "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 4,
    }))
    .unwrap();
    let merger = case.parameters["score_merger"].as_slice();
    let merger = Tensor::<1>::from_data(merger, &device()).require_grad();
    let Sizes { hidden, token, .. } = case.sizes;
    ColberterModel {
        bert_model: Bert::init(config, 1, &device()).unwrap(),
        compressor_retrieval: linear(case, "compressor_retrieval", hidden),
        compressor: linear(case, "compressor", hidden),
        stop_word_reducer: Some(linear(case, "stop_word_reducer", token)),
        mini_compressor: Some(linear(case, "mini_compressor", token)),
        score_merger: Param::from_tensor(merger),
    }
}

fn batch(texts: &[Named]) -> WordBatch {
    let mut batch = WordBatch {
        packed: Packed::default(),
        groups: Groups {
            of_rows: Vec::new(),
            starts: vec![0],
            ids: Vec::new(),
        },
    };
    batch.packed.starts.push(0);
    for text in texts {
        batch.add(&WordText {
            ids: vec![1; text.of.len()],
            word_of: text.of.clone(),
            words: text.ids.clone(),
        });
        let tokens = batch.groups.of_rows.len();
        batch.packed.starts.push(tokens);
    }
    batch
}

#[track_caller]
fn assert_near(ours: &[f32], theirs: &[f32], what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    let most = theirs.iter().fold(1.0f32, |m, x| m.max(x.abs()));
    for (a, b) in ours.iter().zip(theirs) {
        assert!((a - b).abs() <= 2e-5 * most, "{what}: {a} for {b}");
    }
}

#[test]
fn losses_and_gradients_are_those_of_the_same_graph_in_pytorch() {
    let text = include_str!("../../../tests/fixtures-training/losses.json");
    let losses: Losses = serde_json::from_str(text).unwrap();
    for case in &losses.colberter {
        let model = model(case);
        let hidden = case.sizes.hidden;
        let states = |texts: &[Vec<f32>]| tensor(&texts.concat(), hidden);
        let (q_states, d_states) = (states(&case.states.queries), states(&case.states.documents));
        let queries = batch(&case.words.queries);
        let documents = batch(&case.words.documents);
        let q = model.heads(q_states.clone(), &queries, true);
        let d = model.heads(d_states.clone(), &documents, false);
        assert_eq!(q.whole.dims()[1], case.sizes.whole);
        assert_eq!(q.words.rows.dims()[1], case.sizes.second);
        let objective = Objective {
            pair: case.weights["pair"],
            cls: case.weights["cls"],
            in_batch: case.weights["in_batch"],
            sparsity: case.weights["sparsity"],
            words: true,
            exact: case.exact,
        };
        let loss = mixed_loss(&model, &q, d, &case.teacher, objective);
        let number = |x: &Tensor<1>| f64::from(x.clone().into_scalar::<f32>());
        let parts: HashMap<&str, f64> = loss.parts.iter().map(|(n, x)| (*n, number(x))).collect();
        for (theirs, ours) in [
            ("cls", "cls"),
            ("in_batch", "in_batch"),
            ("pair", "pair"),
            ("sparsity", "gates"),
        ] {
            assert_near(&[parts[ours] as f32], &[case.parts[theirs] as f32], ours);
        }
        assert_near(&[number(&loss.total) as f32], &[case.loss as f32], "loss");
        let grads = loss.total.backward();
        let of = |x: &Tensor<2>| numbers(&x.grad(&grads).unwrap());
        assert_near(
            &of(&q_states),
            &case.state_gradients.queries.concat(),
            "queries",
        );
        assert_near(
            &of(&d_states),
            &case.state_gradients.documents.concat(),
            "documents",
        );
        let reducer = model.stop_word_reducer.as_ref().unwrap();
        let mini = model.mini_compressor.as_ref().unwrap();
        for (name, head) in [
            ("compressor_retrieval", &model.compressor_retrieval),
            ("compressor", &model.compressor),
            ("stop_word_reducer", reducer),
            ("mini_compressor", mini),
        ] {
            let theirs = &case.gradients[&format!("{name}.weight")];
            assert_near(&of(&head.weight.val()), theirs, name);
            let bias = head.bias.as_ref().unwrap().val().grad(&grads).unwrap();
            let theirs = &case.gradients[&format!("{name}.bias")];
            assert_near(&numbers(&bias), theirs, name);
        }
        let merger = model.score_merger.val().grad(&grads).unwrap();
        assert_near(
            &numbers(&merger),
            &case.gradients["score_merger"],
            "score_merger",
        );
    }
}

#[test]
fn small_and_large_margins_come_equally_often() {
    // Nine texts are alike, one is far off.
    let mut candidates: Vec<(usize, f32)> = (0..9).map(|i| (i, 0.1 + 0.001 * i as f32)).collect();
    candidates.push((9, 5.0));
    let mut rng = step_rng(1, 1);
    let far = (0..2000)
        .filter(|_| balanced(&candidates, &mut rng) == 9)
        .count();
    assert!((900..1100).contains(&far), "{far}");
    assert_eq!(balanced(&[(4, 0.5)], &mut rng), 4);
    assert_eq!(balanced(&[(4, 0.5), (4, 0.5)], &mut rng), 4);
}

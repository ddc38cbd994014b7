//! Attention to pairs against the framework's own functions, and the layer made of it.
#![allow(clippy::unwrap_used)]

mod support;

use burn::tensor::{Tensor, TensorData, activation};
use keyfold_nn::checkpoint::numbers;
use keyfold_nn::mixers::{TensorAttention, TensorAttentionConfig};
use keyfold_nn::ops::{self, PairHeads, PairInputs};
use proptest::prelude::*;
use support::{agree, device, starts, tensor};

/// Every pair of rows of two matrices multiplied, `[n², width]`.
fn pairs(a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    let [n, width] = a.dims();
    let (a, b) = (a.unsqueeze_dim::<3>(1), b.unsqueeze_dim::<3>(0));
    (a * b).reshape([n * n, width])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn attention_to_pairs_is_attention_to_products_of_keys(
        lengths in prop::collection::vec(0usize..7, 1..4), count in 1usize..3, dim in 1usize..4, causal: bool,
    ) {
        let at = starts(&lengths);
        let rows = at[at.len() - 1];
        prop_assume!(rows > 0);
        let keys = |seed| tensor(seed, [rows, count * dim]);
        let heads = PairHeads { count, scale: 0.7, causal, degree: None };
        agree(
            [keys(1), keys(2), keys(3), tensor(4, [rows, count * 2]), tensor(5, [rows, count * 2])],
            |[q, k1, k2, v1, v2]| {
                ops::tensor_attention(PairInputs { q, k: [k1, k2], v: [v1, v2] }, &at, heads).unwrap()
            },
            |[q, k1, k2, v1, v2]| {
                let texts = at.windows(2).filter(|t| t[0] < t[1]).map(|t| {
                    let n = t[1] - t[0];
                    let mask: Vec<f32> = (0..n * n * n)
                        .map(|i| if causal && (i / n % n).max(i % n) > i / n / n { -1e9 } else { 0.0 })
                        .collect();
                    let mask = Tensor::<2>::from_data(TensorData::new(mask, [n, n * n]), &device());
                    let heads = (0..count).map(|head| {
                        let part = |x: &Tensor<2>, own: usize| x.clone().narrow(0, t[0], n).narrow(1, head * own, own);
                        let scores = part(&q, dim).matmul(pairs(part(&k1, dim), part(&k2, dim)).transpose()) * 0.7;
                        activation::softmax(scores + mask.clone(), 1).matmul(pairs(part(&v1, 2), part(&v2, 2)))
                    });
                    Tensor::cat(heads.collect(), 1)
                });
                Tensor::cat(texts.collect(), 0)
            },
        )?;
    }
}

fn config() -> TensorAttentionConfig {
    TensorAttentionConfig {
        d_model: 6,
        heads: 2,
        headdim: 3,
        ..TensorAttentionConfig::default()
    }
}

#[test]
fn small_entries_let_a_polynomial_stand_in_for_exp_with_its_gradients() {
    let of = |degree, causal| {
        let config = TensorAttentionConfig {
            bound: 0.9,
            degree,
            causal,
            ..config()
        };
        let layer = TensorAttention::init(&config, 0.5, 4, &device()).unwrap();
        let u = tensor(7, [11, 6]);
        let out = layer.forward(u.clone(), &[0, 7, 11]).unwrap();
        let gradients = out.clone().powf_scalar(2.0).sum().backward();
        let mut all = numbers(&out);
        all.extend(numbers(&u.grad(&gradients).unwrap()));
        all
    };
    for causal in [false, true] {
        let (exact, near) = (of(0, causal), of(4, causal));
        let far = exact.iter().zip(&near).map(|(a, b)| (a - b).abs());
        let far = far.fold(0.0f32, f32::max);
        assert!(far > 0.0 && far < 2e-3, "{causal}: {far}");
    }
}

#[test]
fn a_layer_names_its_tensors_and_refuses_what_makes_no_sense() {
    let layer = TensorAttention::init(&config(), 0.5, 4, &device()).unwrap();
    let tensors = layer.tensors("a");
    assert_eq!(tensors.len(), 11);
    assert!(
        tensors
            .iter()
            .any(|t| t.name == "a.k2_proj.weight" && t.shape == [6, 6])
    );
    let refused = |change: &dyn Fn(&mut TensorAttentionConfig)| {
        let mut config = config();
        change(&mut config);
        let made = TensorAttention::init(&config, 0.5, 4, &device());
        made.err().unwrap().to_string()
    };
    assert!(refused(&|c| c.heads = 0).contains("heads"));
    assert!(refused(&|c| c.degree = 4).contains("bound"));
    assert!(
        refused(&|c| {
            c.degree = 4;
            c.bound = 2.0;
        })
        .contains("score")
    );
    let u = tensor::<2>(1, [2, 6]) * f32::NAN;
    let e = layer.forward(u, &[0, 2]).unwrap_err().to_string();
    assert!(e.contains("NaN"), "{e}");
}

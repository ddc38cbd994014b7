//! Mixing by matrices and attention to chosen keys against the framework's own functions, text by
//! text and head by head.
#![allow(clippy::unwrap_used)]

mod support;

use burn::tensor::{Tensor, TensorData, activation};
use keyfold_nn::checkpoint::numbers;
use keyfold_nn::mixers::{Hax, HaxBase, HaxLayerConfig, Mamba2Config, MambaConfig, Sparse};
use keyfold_nn::ops::{self, MixNumbers};
use keyfold_sequence::hax::{HaxConfig, Source, select};
use proptest::prelude::*;
use support::{agree, device, starts, tensor};

/// The longest text that the mixers are made for.
const LONGEST: usize = 9;

/// `scale · M v + v` with `M` of each text and head.
fn plain(
    v: &Tensor<2>,
    at: &[usize],
    heads: usize,
    matrix: &dyn Fn(usize, usize, usize) -> Tensor<2>,
    scale: f64,
) -> Tensor<2> {
    let own = v.dims()[1] / heads;
    let texts = at.windows(2).filter(|t| t[0] < t[1]).map(|t| {
        let len = t[1] - t[0];
        let parts = (0..heads).map(|head| {
            let v = v.clone().narrow(0, t[0], len).narrow(1, head * own, own);
            matrix(t[0], len, head).matmul(v.clone()) * scale + v
        });
        Tensor::cat(parts.collect(), 1)
    });
    Tensor::cat(texts.collect(), 0)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn matrices_of_queries_and_keys_agree(
        lengths in prop::collection::vec(0usize..=LONGEST, 1..4), heads in 1usize..3, dim in 1usize..4, softmax: bool,
    ) {
        let at = starts(&lengths);
        let rows = at[at.len() - 1];
        prop_assume!(rows > 0);
        let given = [tensor(1, [rows, heads * 2]), tensor(2, [rows, heads * dim]), tensor(3, [rows, heads * dim])];
        agree(
            given,
            |[v, q, k]| {
                let numbers = if softmax { MixNumbers::Attention(q, k) } else { MixNumbers::LowRank(q, k) };
                ops::matrix_mix(v, numbers, &at, heads, LONGEST)
            },
            |[v, q, k]| {
                let products = |first: usize, len: usize, head: usize| {
                    let part = |x: &Tensor<2>| x.clone().narrow(0, first, len).narrow(1, head * dim, dim);
                    let scores = part(&q).matmul(part(&k).transpose());
                    if softmax { activation::softmax(scores / (dim as f64).sqrt(), 1) } else { scores }
                };
                let scale = if softmax { 1.0 } else { 1.0 / ((LONGEST * dim) as f64).sqrt() };
                plain(&v, &at, heads, &products, scale)
            },
        )?;
    }

    #[test]
    fn dense_matrices_agree(lengths in prop::collection::vec(0usize..=LONGEST, 1..4), heads in 1usize..3) {
        let at = starts(&lengths);
        let rows = at[at.len() - 1];
        prop_assume!(rows > 0);
        let given = [tensor(1, [rows, heads * 2]), tensor(2, [heads * LONGEST, LONGEST])];
        agree(
            given,
            |[v, m]| ops::matrix_mix(v, MixNumbers::Dense(m), &at, heads, LONGEST),
            |[v, m]| {
                let corner = |_: usize, len: usize, head: usize| {
                    m.clone().narrow(0, head * LONGEST, len).narrow(1, 0, len)
                };
                plain(&v, &at, heads, &corner, 1.0 / (LONGEST as f64).sqrt())
            },
        )?;
    }

    #[test]
    fn attention_to_all_earlier_keys_is_causal_attention(lengths in prop::collection::vec(0usize..9, 1..4)) {
        let at = starts(&lengths);
        let rows = at[at.len() - 1];
        prop_assume!(rows > 0);
        let (dim, full) = (3, HaxConfig { sparse_arch: vec![Source::Full], ..HaxConfig::default() });
        agree(
            [tensor(1, [rows, dim]), tensor(2, [rows, dim]), tensor(3, [rows, 2])],
            |[q, k, v]| {
                let chosen = lengths.iter().map(|&len| {
                    let zeros = vec![0.0; len * dim];
                    select(&full, &zeros, &zeros, dim, &[], &[]).unwrap_or_default()
                });
                ops::sparse_attention(q, k, v, &at, chosen.collect())
            },
            |[q, k, v]| {
                let texts = at.windows(2).filter(|t| t[0] < t[1]).map(|t| {
                    let len = t[1] - t[0];
                    let part = |x: &Tensor<2>| x.clone().narrow(0, t[0], len);
                    let mask: Vec<f32> = (0..len * len).map(|i| if i % len > i / len { -1e9 } else { 0.0 }).collect();
                    let mask = Tensor::<2>::from_data(TensorData::new(mask, [len, len]), &device());
                    activation::softmax(part(&q).matmul(part(&k).transpose()) + mask, 1).matmul(part(&v))
                });
                Tensor::cat(texts.collect(), 0)
            },
        )?;
    }
}

/// A text's results are those that it has alone, and its past does not know its future.
#[test]
fn a_layer_of_hax_sees_its_own_past_alone() {
    let sparse = Some(HaxConfig {
        sparse_keys: 6,
        num_hash: 2,
        ..HaxConfig::default()
    });
    let mamba = MambaConfig {
        d_model: 8,
        d_state: 4,
        ..MambaConfig::default()
    };
    let mamba2 = Mamba2Config {
        d_model: 8,
        d_state: 4,
        headdim: 4,
        ..Mamba2Config::default()
    };
    for base in [HaxBase::Mamba(mamba), HaxBase::Mamba2(mamba2)] {
        let config = HaxLayerConfig {
            base,
            sparse: sparse.clone(),
        };
        let layer = Hax::init(&config, 0.4, 3, &device()).unwrap();
        let u = tensor(4, [31, 8]);
        let run = |from: usize, len: usize, starts: &[usize]| {
            let sparse = Sparse {
                hashes: 9,
                ranking: Some(1),
            };
            let (out, ranking) = layer.forward(u.clone().narrow(0, from, len), starts, sparse);
            let ranking = ranking.unwrap().into_scalar::<f32>();
            // Scores of untrained layers are near each other.
            assert!((0.3..1.2).contains(&ranking), "{ranking}");
            numbers(&out)
        };
        let all = run(0, 31, &[0, 11, 11, 31]);
        for (from, len) in [(0, 11), (11, 20), (11, 13)] {
            let alone = run(from, len, &[0, len]);
            let packed = &all[from * 8..(from + len) * 8];
            for (a, b) in packed.iter().zip(&alone) {
                assert!((a - b).abs() < 1e-5, "{a} {b}");
            }
        }
    }
}

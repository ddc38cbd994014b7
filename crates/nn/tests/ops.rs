//! Every operator and its gradients against the framework's own functions, and results that
//! do not depend on the number of threads.
#![allow(clippy::unwrap_used)]

mod support;

use burn::tensor::{Device, Int, Tensor, TensorData, activation};
use keyfold_core::block_mask::BlockMask;
use keyfold_kernels::attention::Rotation;
use keyfold_nn::checkpoint::numbers;
use keyfold_nn::ops::{self, Angles, Groups, Heads, SharedHeads, Side};
use keyfold_nn::random;
use proptest::prelude::*;
use support::{agree, device, row, starts, tensor};

/// Rows of a matrix.
fn pick(x: &Tensor<2>, dim: usize, places: &[usize]) -> Tensor<2> {
    let places: Vec<i64> = places.iter().map(|&i| i as i64).collect();
    let shape = [places.len()];
    let places = Tensor::<1, Int>::from_data(TensorData::new(places, shape), &x.device());
    x.clone().select(dim, places)
}

/// Attention by the framework's functions, text by text.
fn plain_attention(qkv: Tensor<2>, starts: &[usize], count: usize, size: usize) -> Tensor<2> {
    let texts = starts.windows(2).filter(|t| t[0] < t[1]).map(|t| {
        let len = t[1] - t[0];
        let text = qkv.clone().narrow(0, t[0], len);
        let part = |i: usize| {
            let part = text.clone().narrow(1, i * count * size, count * size);
            part.reshape([len, count, size]).swap_dims(0, 1)
        };
        let scores = part(0).matmul(part(1).transpose()) / (size as f64).sqrt();
        let out = activation::softmax(scores, 2).matmul(part(2));
        out.swap_dims(0, 1).reshape([len, count * size])
    });
    Tensor::cat(texts.collect(), 0)
}

/// Chamfer by the framework's functions; products of rows with different ids are 0.
fn plain_chamfer(
    [q, d]: [Tensor<2>; 2],
    q_starts: &[usize],
    d_starts: &[usize],
    ids: Option<(&[u32], &[u32])>,
) -> Tensor<2> {
    let exact = ids.is_some();
    let allowed = |i: usize, j: usize| ids.is_none_or(|(q, d)| q[i] == d[j]);
    let scores = q.matmul(d.transpose());
    let mut all = Vec::new();
    for query in q_starts.windows(2) {
        for document in d_starts.windows(2) {
            let mut sum = Tensor::<1>::zeros([1], &scores.device());
            for i in query[0]..query[1] {
                let places = (document[0]..document[1]).filter(|&j| allowed(i, j));
                let places: Vec<usize> = places.collect();
                if !places.is_empty() {
                    let row = pick(&scores.clone().narrow(0, i, 1), 1, &places);
                    let best = row.max_dim(1).reshape([1]);
                    let alone = document[1] - document[0] == 1;
                    sum = sum
                        + if alone || !exact {
                            best
                        } else {
                            activation::relu(best)
                        };
                }
            }
            all.push(sum);
        }
    }
    Tensor::cat(all, 0).reshape([q_starts.len() - 1, d_starts.len() - 1])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn linear_layers_agree(rows in 1usize..70, inputs in 1usize..20, outputs in 1usize..40, gelu: bool) {
        let given = [tensor(1, [rows, inputs]), tensor(2, [outputs, inputs]), tensor(3, [1, outputs])];
        agree(
            given,
            |[x, w, b]| match gelu {
                true => ops::linear_gelu(x, w, row(b)),
                false => ops::linear(x, w, Some(row(b))),
            },
            |[x, w, b]| {
                let y = x.matmul(w.transpose()) + b;
                if gelu { activation::gelu(y) } else { y }
            },
        )?;
        agree(
            [tensor(1, [rows, inputs]), tensor(2, [outputs, inputs])],
            |[x, w]| ops::linear(x, w, None),
            |[x, w]| x.matmul(w.transpose()),
        )?;
    }

    #[test]
    fn norms_agree(rows in 1usize..70, width in 2usize..50) {
        let norm = |x: Tensor<2>, w: Tensor<2>, b: Tensor<2>| {
            let (variance, mean) = x.clone().var_mean_bias(1);
            (x - mean) / (variance + 1e-2).sqrt() * w + b
        };
        let [x, y] = [1, 2].map(|seed| tensor(seed, [rows, width]));
        let [w, b] = [3, 4].map(|seed| tensor(seed, [1, width]));
        agree(
            [x.clone(), w.clone(), b.clone()],
            |[x, w, b]| ops::layer_norm(x, row(w), row(b), 1e-2),
            |[x, w, b]| norm(x, w, b),
        )?;
        agree(
            [x.clone(), y.clone(), w.clone(), b.clone()],
            |[x, y, w, b]| ops::add_norm(x, y, None, row(w), row(b), 1e-2),
            |[x, y, w, b]| norm(x + y, w, b),
        )?;
        // The same dropout, drawn apart.
        agree(
            [x, y, w, b],
            |[x, y, w, b]| ops::add_norm(x, y, Some((0.3, 5)), row(w), row(b), 1e-2),
            |[x, y, w, b]| norm(x + ops::dropout(y, 0.3, 5), w, b),
        )?;
    }

    #[test]
    fn dropout_is_a_factor_that_both_passes_share(rows in 1usize..70, width in 1usize..30, seed: u64) {
        let ones = tensor(1, [rows, width]).ones_like().detach();
        let factors = ops::dropout(ones, 0.4, seed);
        agree(
            [tensor(1, [rows, width])],
            |[x]| ops::dropout(x, 0.4, seed),
            |[x]| x * factors.clone(),
        )?;
    }

    #[test]
    fn attention_agrees(
        lengths in prop::collection::vec(0usize..9, 1..5),
        count in 1usize..4,
        size in 1usize..9,
    ) {
        let starts = starts(&lengths);
        let rows = starts[lengths.len()];
        prop_assume!(rows > 0);
        let heads = Heads { count, size, dropout: None };
        agree(
            [tensor(1, [rows, 3 * count * size])],
            |[x]| ops::attention(x, &starts, heads),
            |[x]| plain_attention(x, &starts, count, size),
        )?;
    }

    #[test]
    fn means_agree(
        lengths in prop::collection::vec(0usize..9, 1..5),
        ids in prop::collection::vec(prop::option::of(0u32..4), 40),
        width in 1usize..9,
    ) {
        let starts = starts(&lengths);
        let rows = starts[lengths.len()];
        let ids = &ids[..rows];
        // The rows of every group, found anew.
        let mut members: Vec<Vec<usize>> = Vec::new();
        for text in starts.windows(2) {
            let mut seen = Vec::new();
            for i in (text[0]..text[1]).filter(|&i| ids[i].is_some()) {
                if !seen.contains(&ids[i]) {
                    seen.push(ids[i]);
                    members.push((i..text[1]).filter(|&j| ids[j] == ids[i]).collect());
                }
            }
        }
        prop_assume!(!members.is_empty());
        let mean = |x: &Tensor<2>, rows: &[usize]| match rows.is_empty() {
            true => Tensor::zeros([1, width], &device()),
            false => pick(x, 0, rows).mean_dim(0),
        };
        agree(
            [tensor(1, [rows, width])],
            |[x]| ops::segment_mean_by(x, &starts, ids).0,
            |[x]| Tensor::cat(members.iter().map(|rows| mean(&x, rows)).collect(), 0),
        )?;
        agree(
            [tensor(1, [rows, width])],
            |[x]| ops::segment_mean(x, &starts),
            |[x]| {
                let texts = starts.windows(2).map(|t| (t[0]..t[1]).collect::<Vec<_>>());
                Tensor::cat(texts.map(|rows| mean(&x, &rows)).collect(), 0)
            },
        )?;
        let groups = Groups::by_id(ids, &starts);
        prop_assert_eq!(groups.count(), members.len());
        prop_assert_eq!(groups.starts.len(), starts.len());
        for (id, rows) in groups.ids.iter().zip(&members) {
            prop_assert!(rows.iter().all(|&i| ids[i] == Some(*id)));
        }
    }

    #[test]
    fn cross_entropy_agrees(rows in 1usize..6, width in 1usize..5, spread in 0usize..3) {
        // Less than a chunk of classes, one, and more.
        let count = [7, 4096, 5000][spread];
        let targets: Vec<u32> = (0..rows).map(|i| (i * 4999 % count) as u32).collect();
        agree(
            [tensor(1, [rows, width]), tensor(2, [count, width])],
            |[x, c]| ops::cross_entropy(x, c, &targets),
            |[x, c]| {
                let scores = activation::log_softmax(x.matmul(c.transpose()), 1);
                let places = targets.iter().map(|&t| i64::from(t)).collect::<Vec<_>>();
                let places = TensorData::new(places, [rows, 1]);
                -scores.gather(1, Tensor::<2, Int>::from_data(places, &device())).mean()
            },
        )?;
    }

    #[test]
    fn chamfer_agrees(
        q_lengths in prop::collection::vec(0usize..5, 1..4),
        d_lengths in prop::collection::vec(0usize..40, 1..4),
        width in 1usize..20,
        words in 1u32..9,
    ) {
        let (q_starts, d_starts) = (starts(&q_lengths), starts(&d_lengths));
        let (q_rows, d_rows) = (q_starts[q_lengths.len()], d_starts[d_lengths.len()]);
        prop_assume!(q_rows > 0 && d_rows > 0);
        let sides = |[q, d]: [Tensor<2>; 2]| (
            Side { rows: q, starts: &q_starts },
            Side { rows: d, starts: &d_starts },
        );
        let given = [tensor(1, [q_rows, width]), tensor(2, [d_rows, width])];
        agree(
            given.clone(),
            |given| {
                let (q, d) = sides(given);
                ops::chamfer(q, d)
            },
            |given| plain_chamfer(given, &q_starts, &d_starts, None),
        )?;
        let ids = |rows: usize, salt: u64| -> Vec<u32> {
            (0..rows as u64).map(|i| (random::derive(salt, i) % u64::from(words)) as u32).collect()
        };
        let (q_ids, d_ids) = (ids(q_rows, 1), ids(d_rows, 2));
        agree(
            given,
            |given| {
                let (q, d) = sides(given);
                ops::chamfer_equal(q, &q_ids, d, &d_ids)
            },
            |given| plain_chamfer(given, &q_starts, &d_starts, Some((&q_ids, &d_ids))),
        )?;
    }
}

#[test]
fn dropout_of_attention_is_the_same_in_both_passes() {
    let starts = [0, 5, 6, 13];
    let heads = Heads {
        count: 2,
        size: 4,
        dropout: Some((0.3, 11)),
    };
    let x = tensor::<2>(1, [13, 24]);
    let factors = tensor(2, [13, 8]).detach();
    let sum = (ops::attention(x.clone(), &starts, heads) * factors.clone()).sum();
    let gradient = numbers(&x.grad(&sum.backward()).unwrap());
    let values = numbers(&x);
    // Linear in the values: the gradient by them, times them, is the sum.
    let through = (0..13 * 24).filter(|i| i % 24 >= 16);
    let again: f32 = through.map(|i| gradient[i] * values[i]).sum();
    let sum = numbers(&sum)[0];
    assert!(
        (again - sum).abs() < 1e-4 * sum.abs().max(1.0),
        "{again} {sum}"
    );
    // By queries and keys: along a direction, against a difference.
    let direction = random::normal(5, 13 * 24, 1.0);
    let at = |step: f32| {
        let moved = values.iter().zip(&direction).map(|(x, d)| x + step * d);
        let moved = TensorData::new(moved.collect::<Vec<f32>>(), [13, 24]);
        let x = Tensor::<2>::from_data(moved, &Device::flex());
        let out = ops::attention(x, &starts, heads) * factors.clone().inner();
        f64::from(numbers(&out.sum())[0])
    };
    let slope = (at(1e-2) - at(-1e-2)) / 2e-2;
    let want: f32 = gradient.iter().zip(&direction).map(|(g, d)| g * d).sum();
    assert!(
        (slope - f64::from(want)).abs() < 1e-2 * slope.abs().max(1.0),
        "{slope} {want}"
    );
}

#[test]
fn a_row_without_an_equal_word_adds_nothing_and_learns_nothing() {
    let q = tensor::<2>(1, [2, 3]);
    // Turned, so that the equal words are alike.
    let d = (-tensor::<2>(2, [2, 3])).detach().require_grad();
    let side = |rows: &Tensor<2>| Side {
        rows: rows.clone(),
        starts: &[0, 2],
    };
    let score = ops::chamfer_equal(side(&q), &[1, 2], side(&d), &[2, 3]);
    let (rows_q, rows_d) = (numbers(&q), numbers(&d));
    let want: f32 = (0..3).map(|i| rows_q[3 + i] * rows_d[i]).sum();
    assert!(want > 0.0, "{want}");
    assert!((numbers(&score)[0] - want).abs() < 1e-6);
    let gradients = score.sum().backward();
    let q = numbers(&q.grad(&gradients).unwrap());
    let d = numbers(&d.grad(&gradients).unwrap());
    assert_eq!(q[..3], [0.0; 3]);
    assert_eq!(q[3..], rows_d[..3]);
    assert_eq!(d[3..], [0.0; 3]);
}

#[test]
fn a_frozen_table_gets_no_gradient_and_the_rest_does() {
    let classes = tensor::<2>(2, [9, 3]).set_require_grad(false);
    let x = tensor::<2>(1, [2, 3]);
    let gradients = ops::cross_entropy(x.clone(), classes.clone(), &[4, 8]).backward();
    assert!(x.grad(&gradients).is_some());
    assert!(classes.grad(&gradients).is_none());
    // Also when the table knows nothing of gradients.
    let plain = classes.inner();
    let gradients = ops::cross_entropy(x.clone(), plain, &[4, 8]).backward();
    assert!(x.grad(&gradients).is_some());
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build().unwrap().install(|| {
            let starts = starts(&[70, 3, 90, 41]);
            let rows = 204;
            let (x, w) = (tensor::<2>(1, [rows, 64]), tensor::<2>(2, [192, 64]));
            let (b, n) = (tensor::<1>(3, [192]), tensor::<1>(4, [64]));
            let heads = Heads {
                count: 4,
                size: 16,
                dropout: Some((0.1, 3)),
            };
            let qkv = ops::linear_gelu(x.clone(), w.clone(), b.clone());
            let y = ops::attention(qkv, &starts, heads);
            let y = ops::add_norm(x.clone(), y, Some((0.1, 4)), n.clone(), n.clone(), 1e-5);
            let side = Side {
                rows: y.clone(),
                starts: &starts,
            };
            let loss = ops::chamfer(side.clone(), side).sum()
                + ops::cross_entropy(y, w.clone(), &vec![7; rows]);
            let gradients = loss.backward();
            let mut all = numbers(&loss);
            all.extend(numbers(&x.grad(&gradients).unwrap()));
            all.extend(numbers(&w.grad(&gradients).unwrap()));
            all.extend(numbers(&b.grad(&gradients).unwrap()));
            all.extend(numbers(&n.grad(&gradients).unwrap()));
            all
        })
    };
    let one = run(1);
    assert!(one.iter().all(|x| x.is_finite()));
    assert!(one == run(2) && one == run(5));
}

#[test]
fn adamw_makes_the_steps_of_the_framework() {
    use burn::module::Param;
    use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};

    let run = |mut optimizer: ModuleOptimizer| {
        let mut model = keyfold_nn::Linear {
            weight: Param::from_tensor(tensor(1, [5, 7])),
            bias: Some(Param::from_tensor(tensor(2, [5]))),
        };
        let x = tensor::<2>(3, [4, 7]).set_require_grad(false);
        for _ in 0..5 {
            let gradients = model.forward(x.clone()).square().sum().backward();
            let gradients = GradientsParams::from_grads(gradients, &model);
            model = optimizer.step(0.05, model, gradients);
        }
        let mut all = numbers(&model.weight.val());
        all.extend(numbers(&model.bias.unwrap().val()));
        all
    };
    let ours = keyfold_nn::AdamW {
        epsilon: 1e-6,
        weight_decay: 0.3,
        ..Default::default()
    };
    let theirs = AdamWConfig::new().with_epsilon(1e-6).with_weight_decay(0.3);
    let before = numbers(&tensor::<2>(1, [5, 7]));
    let (ours, theirs) = (run(ours.init()), run(theirs.init()));
    for (i, (a, b)) in ours.iter().zip(&theirs).enumerate() {
        assert!((a - b).abs() < 1e-5, "{i}: {a} {b}");
        assert!(i >= before.len() || (a - before[i]).abs() > 1e-3);
    }
}

/// Causal attention by the framework's functions, text by text and head by head.
fn plain_causal(
    [q, k, v]: [Tensor<2>; 3],
    starts: &[usize],
    heads: SharedHeads,
    mask: Option<&BlockMask>,
) -> Tensor<2> {
    let hidden = |query: usize, key: usize| {
        let apart = |mask: &BlockMask| !mask.sees(query / mask.block, key / mask.block);
        key > query || mask.is_some_and(apart)
    };
    let texts = starts.windows(2).filter(|t| t[0] < t[1]).map(|t| {
        let len = t[1] - t[0];
        let outs = (0..heads.count).map(|head| {
            let part = |x: &Tensor<2>, head: usize| {
                x.clone()
                    .narrow(0, t[0], len)
                    .narrow(1, head * heads.size, heads.size)
            };
            let kv = head / (heads.count / heads.kv);
            let scores = part(&q, head).matmul(part(&k, kv).transpose());
            let mask: Vec<f32> = (0..len * len)
                .map(|i| if hidden(i / len, i % len) { -1e9 } else { 0.0 })
                .collect();
            let mask = Tensor::<2>::from_data(TensorData::new(mask, [len, len]), &q.device());
            let scores = scores.div_scalar((heads.size as f64).sqrt()) + mask;
            activation::softmax(scores, 1).matmul(part(&v, kv))
        });
        Tensor::cat(outs.collect(), 1)
    });
    Tensor::cat(texts.collect(), 0)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn causal_attention_with_shared_heads(
        lengths in prop::collection::vec(0usize..150, 1..4),
        kv in 1usize..3,
        group in 1usize..4,
        size in 1usize..9,
        block in prop::option::of(1usize..20),
    ) {
        let starts = starts(&lengths);
        let rows = starts[starts.len() - 1];
        prop_assume!(rows > 0);
        let mask = block.map(|block| BlockMask { block, window: 2, ..BlockMask::default() });
        let mask = mask.as_ref();
        let heads = SharedHeads { count: kv * group, kv, size };
        let inputs = [
            tensor(1, [rows, heads.count * size]),
            tensor(2, [rows, kv * size]),
            tensor(3, [rows, kv * size]),
        ];
        agree(
            inputs,
            |[q, k, v]| ops::causal_attention(q, k, v, &starts, heads, mask),
            |qkv| plain_causal(qkv, &starts, heads, mask),
        )?;
    }

    #[test]
    fn rms_norm_of_heads(rows in 1usize..70, heads in 1usize..4, size in 1usize..20) {
        agree(
            [tensor(1, [rows, heads * size]), tensor(2, [1, size])],
            |[x, weight]| ops::rms_norm(x, row(weight), 1e-5),
            |[x, weight]| {
                let parts = x.reshape([rows * heads, size]);
                let square = parts.clone().powi_scalar(2).mean_dim(1).add_scalar(1e-5);
                (parts / square.sqrt() * weight).reshape([rows, heads * size])
            },
        )?;
    }

    #[test]
    fn gated_unit(rows in 1usize..40, width in 1usize..50) {
        agree(
            [tensor(1, [rows, width]), tensor(2, [rows, width])],
            |[gate, up]| ops::silu_mul(gate, up),
            |[gate, up]| activation::silu(gate) * up,
        )?;
    }

    #[test]
    fn rotary_positions(rows in 1usize..70, heads in 1usize..4, half in 1usize..9) {
        let frequencies: Vec<f32> = (0..half).map(|i| 100f32.powf(-(i as f32) / half as f32)).collect();
        let positions: Vec<u32> = (0..rows as u32).map(|p| 3 * p + 1).collect();
        let angles = Angles::new(&positions, &frequencies, 0.9, Rotation::Half);
        let table = |f: fn(f32) -> f32| {
            let numbers = positions.iter().flat_map(|&p| {
                (0..heads).flat_map(|_| frequencies.iter().map(move |&w| 0.9 * f(p as f32 * w))).collect::<Vec<_>>()
            });
            let shape = [rows * heads, half];
            Tensor::<2>::from_data(TensorData::new(numbers.collect::<Vec<_>>(), shape), &device())
        };
        agree(
            [tensor(1, [rows, heads * 2 * half])],
            |[x]| ops::rotary(x, &angles, 2 * half),
            |[x]| {
                let x = x.reshape([rows * heads, 2 * half]);
                let (a, b) = (x.clone().narrow(1, 0, half), x.narrow(1, half, half));
                let (cos, sin) = (table(f32::cos), table(f32::sin));
                let turned = [
                    a.clone() * cos.clone() - b.clone() * sin.clone(),
                    b * cos + a * sin,
                ];
                Tensor::cat(turned.to_vec(), 1).reshape([rows, heads * 2 * half])
            },
        )?;
    }
}

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::test_store::{Fixture, assert_near, dims, normal, numbers, softmax};

fn rotary(dim: usize) -> Rotary {
    let frequency = |i: usize| 10000f32.powf(-2.0 * i as f32 / dim as f32);
    Rotary {
        inv_freq: (0..dim / 2).map(frequency).collect(),
        scale: 1.0,
        interleaved: false,
    }
}

fn small() -> ActQkvConfig {
    ActQkvConfig {
        block_size: 8,
        n_init: 4,
        n_local: 32,
        topk: 4,
        repr_topk: 2,
        exc_block_size: 16,
        ..ActQkvConfig::default()
    }
}

/// Queries, keys and values of one layer, `[tokens, ...]`.
struct Stream {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Stream {
    fn random(dims: &Dims, tokens: usize, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let narrow = tokens * dims.kv_heads * dims.head_dim;
        Self {
            q: normal(&mut rng, tokens * dims.heads * dims.head_dim),
            k: normal(&mut rng, narrow),
            v: normal(&mut rng, narrow),
        }
    }

    /// Feeds the tokens `[from, to)`.
    fn feed(
        &self,
        act: &mut ActQkv,
        layer: usize,
        from: usize,
        to: usize,
        decoding: bool,
    ) -> Vec<f32> {
        let dims = act.dims;
        let wide = dims.heads * dims.head_dim;
        let narrow = dims.kv_heads * dims.head_dim;
        let positions: Vec<u32> = (from as u32..to as u32).collect();
        let mut out = vec![0.0; (to - from) * wide];
        let team = Team::new(2);
        act.attend(
            layer,
            &self.q[from * wide..to * wide],
            &self.k[from * narrow..to * narrow],
            &self.v[from * narrow..to * narrow],
            &positions,
            decoding,
            &team,
            &mut out,
        );
        out
    }
}

/// The input of `parity/long_context.py`.
fn parity_stream(layer: u64) -> Stream {
    let (total, heads, kv_heads, dim) = (640, 4, 2, 16);
    let base = numbers(9000 + layer, heads * dim);
    let drift = |t: usize, i: usize| base[i] * (t / 64) as f32 * 0.25;
    let mut q = numbers(6000 + layer, total * heads * dim);
    let mut k = numbers(7000 + layer, total * kv_heads * dim);
    for (t, row) in q.chunks_mut(heads * dim).enumerate() {
        let loud = if t % 13 == 0 { 3.0 } else { 1.0 };
        for (i, x) in row.iter_mut().enumerate() {
            *x = *x * loud + drift(t, i) + 1.0;
        }
    }
    for (t, row) in k.chunks_mut(kv_heads * dim).enumerate() {
        let kind = if t / 40 % 2 == 0 { 1.0 } else { -1.0 } * (2 - layer) as f32 * 2.0;
        for (i, x) in row.iter_mut().enumerate() {
            *x = *x * 2.0 + drift(t, i) + kind;
        }
    }
    let v = numbers(8000 + layer, total * kv_heads * dim);
    Stream { q, k, v }
}

#[test]
fn the_authors_manager_gives_the_same_blocks_and_numbers() {
    let dims = dims(3, 4, 2, 16);
    let config = ActQkvConfig {
        topk: 40,
        h_upper: 20,
        history: 12,
        compat: true,
        ..small()
    };
    let mut act = ActQkv::new(config, dims, rotary(16)).unwrap();
    act.set_question(20, 30, 600).unwrap();
    let streams: Vec<Stream> = (0..3).map(parity_stream).collect();
    let mut outs = vec![Vec::new(); 3];
    let calls = [(0, 600)].into_iter().chain((600..640).map(|t| (t, t + 1)));
    for (from, to) in calls {
        for (layer, stream) in streams.iter().enumerate() {
            outs[layer].extend(stream.feed(&mut act, layer, from, to, from > 0));
        }
    }
    let expected: Vec<Vec<Vec<u32>>> =
        serde_json::from_str(Fixture::open("act_qkv.json").text()).unwrap();
    for (layer, (state, expected)) in act.layers.iter().zip(&expected).enumerate() {
        for (chunk, (got, expected)) in state.log.iter().zip(expected).enumerate() {
            assert_eq!(got, expected, "layer {layer}, chunk {chunk}");
        }
        assert_eq!(state.log.len(), expected.len());
    }
    let fixture = Fixture::open("act_qkv.safetensors");
    for (layer, out) in outs.iter().enumerate() {
        let rows = out.chunks(64).enumerate();
        let kept = rows.filter(|(t, _)| *t >= 600 || t % 5 == 0);
        let kept: Vec<f32> = kept.flat_map(|(_, row)| row).copied().collect();
        let expected = fixture.floats(&format!("out.{layer}"));
        assert_near(&kept, &expected, 1e-4, &format!("layer {layer}"));
    }
}

/// Causal attention with rotary embedding, as written.
fn exact(dims: &Dims, stream: &Stream, tokens: usize) -> Vec<f32> {
    let (dim, wide, narrow) = (
        dims.head_dim,
        dims.heads * dims.head_dim,
        dims.kv_heads * dims.head_dim,
    );
    let turned = |rows: &[f32], wide: usize| {
        let mut rows = rows.to_vec();
        let mut angles = Angles::new(rotary(dim), 0);
        angles.prepare(&(0..tokens as u32).collect::<Vec<_>>());
        angles.rotate(&mut rows, wide, 0, dim);
        rows
    };
    let (q, k) = (turned(&stream.q, wide), turned(&stream.k, narrow));
    let mut out = vec![0.0; tokens * wide];
    for t in 0..tokens {
        for head in 0..dims.heads {
            let at = head / dims.group() * dim;
            let query = &q[t * wide + head * dim..][..dim];
            let mut weights: Vec<f32> = (0..=t)
                .map(|j| dot(query, &k[j * narrow + at..][..dim]))
                .collect();
            softmax(&mut weights, (dim as f32).sqrt().recip());
            for (j, weight) in weights.iter().enumerate() {
                let value = &stream.v[j * narrow + at..][..dim];
                axpy(&mut out[t * wide + head * dim..][..dim], *weight, value);
            }
        }
    }
    out
}

#[test]
fn within_the_window_attention_is_exact() {
    let dims = dims(1, 4, 2, 16);
    let stream = Stream::random(&dims, 32, 1);
    // Rows are kept as they are, or in 16 bits.
    for (kind, tolerance) in [(CacheType::F32, 1e-5), (CacheType::F16, 1e-3)] {
        let store = Box::new(DenseStore::new(dims, kind, 0).unwrap());
        let mut act = ActQkv::with_store(small(), dims, rotary(16), store).unwrap();
        let mut got = stream.feed(&mut act, 0, 0, 20, false);
        for t in 20..32 {
            got.extend(stream.feed(&mut act, 0, t, t + 1, true));
        }
        assert_near(&got, &exact(&dims, &stream, 32), tolerance, "window");
        assert_eq!(act.blocks(0), 0);
    }
}

#[test]
fn it_does_not_matter_in_which_calls_a_prompt_comes() {
    let dims = dims(2, 4, 2, 16);
    let streams = [Stream::random(&dims, 320, 1), Stream::random(&dims, 320, 2)];
    let run = |calls: &[usize]| {
        let mut act = ActQkv::new(small(), dims, rotary(16)).unwrap();
        let mut outs = [Vec::new(), Vec::new()];
        for pair in calls.windows(2) {
            for (layer, stream) in streams.iter().enumerate() {
                outs[layer].extend(stream.feed(&mut act, layer, pair[0], pair[1], false));
            }
        }
        outs
    };
    let whole = run(&[0, 320]);
    let parts = run(&[0, 16, 64, 80, 256, 320]);
    for (whole, parts) in whole.iter().zip(&parts) {
        assert_near(whole, parts, 1e-4, "calls");
    }
}

/// A prompt in which tokens 100 to 107 have keys along one channel, and its decoded query.
fn needle(dims: &Dims) -> Stream {
    let mut stream = Stream::random(dims, 400, 3);
    let narrow = dims.kv_heads * dims.head_dim;
    // Channels at the end turn little, so they mean the same near and far.
    for row in stream.k[100 * narrow..108 * narrow].chunks_mut(narrow) {
        row.chunks_mut(16).for_each(|head| head[15] = 12.0);
    }
    for row in stream.q[399 * dims.heads * 16..].chunks_mut(16) {
        row.fill(0.0);
        row[15] = 8.0;
    }
    stream
}

#[test]
fn the_block_that_the_query_means_is_retrieved_and_named() {
    let dims = dims(1, 4, 2, 16);
    let stream = needle(&dims);
    let mut act = ActQkv::new(small(), dims, rotary(16)).unwrap();
    stream.feed(&mut act, 0, 0, 399, false);
    let out = stream.feed(&mut act, 0, 399, 400, true);
    // 400 tokens less the initial ones and the window are whole blocks of 8, but for a rest.
    assert_eq!(act.blocks(0), (400 - 4 - 32) / 8);
    let retrieved = act.retrieved(0);
    assert!(retrieved.len() >= 4, "{retrieved:?}");
    assert!(
        retrieved.windows(2).all(|w| w[0].end <= w[1].start),
        "{retrieved:?}"
    );
    assert!(retrieved.contains(&(100..108)), "{retrieved:?}");
    // The answer is the mean of the block's values.
    let values = &stream.v[100 * 32..108 * 32];
    let mean: f32 = values.iter().step_by(32).sum::<f32>() / 8.0;
    assert!((out[0] - mean).abs() < 0.15, "{} {mean}", out[0]);
    // 45 blocks as 16-bit floats and 40 tokens as 32-bit floats, and little else.
    assert!(act.bytes() < 4 * 400 * 64 * 4, "{}", act.bytes());
}

#[test]
fn the_question_guides_retrieval_while_the_prompt_is_read() {
    let dims = dims(1, 4, 2, 16);
    let mut stream = needle(&dims);
    // The question's queries, and only they, mean the block at token 100.
    let question = stream.q[399 * 64..].to_vec();
    stream.q[392 * 64..393 * 64].copy_from_slice(&question);
    let asked = |ask: bool| {
        let mut act = ActQkv::new(small(), dims, rotary(16)).unwrap();
        if ask {
            act.set_question(392, 393, 400).unwrap();
        }
        stream.feed(&mut act, 0, 0, 399, false);
        let retrieved = act.layers[0].log.iter().skip(12);
        retrieved.filter(|blocks| blocks.contains(&12)).count()
    };
    let (with, without) = (asked(true), asked(false));
    assert!(with == 13 && without < 10, "{with} {without}");
}

#[test]
fn unfit_settings_are_refused_by_name() {
    let dims = dims(1, 2, 1, 16);
    let refused = |config: ActQkvConfig, says: &str| {
        let error = ActQkv::new(config, dims, rotary(16))
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains(says), "{error}");
    };
    let default = ActQkvConfig::default;
    refused(
        ActQkvConfig {
            block_size: 0,
            ..default()
        },
        "block_size",
    );
    refused(
        ActQkvConfig {
            exc_block_size: 513,
            ..default()
        },
        "n_local = 512",
    );
    refused(
        ActQkvConfig {
            topk: 0,
            ..default()
        },
        "topk",
    );
    refused(
        ActQkvConfig {
            repr_topk: 33,
            ..default()
        },
        "repr_topk = 33",
    );
    refused(
        ActQkvConfig {
            topk: 8,
            compat: true,
            ..default()
        },
        "min_blocks = 32",
    );
    let bare = Rotary {
        inv_freq: Vec::new(),
        scale: 1.0,
        interleaved: false,
    };
    assert!(ActQkv::new(default(), dims, bare).is_err());
    assert!(ActQkv::new(default(), dims, rotary(32)).is_err());
    let mut act = ActQkv::new(default(), dims, rotary(16)).unwrap();
    for (from, to) in [(5, 5), (6, 5), (90, 101)] {
        let error = act.set_question(from, to, 100).unwrap_err().to_string();
        assert!(error.contains("100 tokens"), "{error}");
    }
}

#[test]
fn interleaved_pairs_turn_as_halves_do() {
    let dim = 8;
    let half = rotary(dim);
    let pairs = Rotary {
        interleaved: true,
        ..half.clone()
    };
    let head: Vec<f32> = (0..dim).map(|i| i as f32 - 3.0).collect();
    // Number `i` of the halves is number `2i` of the pairs.
    let place = |i: usize| {
        if i < dim / 2 {
            2 * i
        } else {
            2 * (i - dim / 2) + 1
        }
    };
    let mut other = vec![0.0; dim];
    (0..dim).for_each(|i| other[place(i)] = head[i]);
    let turned = |rotary: Rotary, head: &[f32]| {
        let mut angles = super::rotary::Angles::new(rotary, 5);
        angles.prepare(&[7]);
        let mut rows = head.to_vec();
        angles.rotate(&mut rows, dim, 0, dim);
        rows
    };
    let (a, b) = (turned(half, &head), turned(pairs, &other));
    (0..dim).for_each(|i| assert!((a[i] - b[place(i)]).abs() < 1e-6));
}

//! Which keys HAX looks at and what it reads of them, beside the released layer (parity/hax.py) and
//! by construction.
#![allow(clippy::unwrap_used)]

use keyfold_sequence::hax::{
    HaxConfig, Mode, Source, attend, attend_backward, importances, score_inputs, select,
};
use keyfold_sequence::recall::JointRecall;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

fn draw(seed: u64, n: usize) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(-1.0f32..1.0)).collect()
}

/// Numbers of a normal distribution, nearly.
fn hashes(seed: u64, n: usize) -> Vec<f32> {
    let parts: Vec<Vec<f32>> = (0..12).map(|i| draw(seed + 1000 * i, n)).collect();
    (0..n).map(|i| parts.iter().map(|p| p[i]).sum()).collect()
}

fn config(sources: &[Source], keys: usize, mode: Mode) -> HaxConfig {
    HaxConfig {
        sparse_arch: sources.to_vec(),
        sparse_keys: keys,
        num_hash: 3,
        data_max_length: 64,
        mode,
    }
}

#[test]
fn keys_results_and_score_inputs_are_those_of_the_released_layer() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/hax.json");
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let of = |name: &str| -> Vec<f32> { serde_json::from_value(json[name].clone()).unwrap() };
    let (q, k, v) = (of("q"), of("k"), of("v"));
    for (name, sources) in [
        ("sign_bin_lsh", &[Source::SignBinLsh][..]),
        ("key_selection", &[Source::KeySelection]),
        ("both", &[Source::SignBinLsh, Source::KeySelection]),
    ] {
        let config = config(sources, 8, Mode::Compat);
        let found = select(&config, &q, &k, 8, &of("hashes"), &of("scores")).unwrap();
        let want: Vec<Vec<u32>> =
            serde_json::from_value(json[format!("keys_{name}")].clone()).unwrap();
        for (t, want) in want.iter().enumerate() {
            assert_eq!(found.of(t), want, "{name}, position {t}");
        }
        let out = attend(&q, &k, &v, 8, &found).unwrap();
        for (a, b) in out.iter().zip(of(&format!("out_{name}"))) {
            assert!((a - b).abs() < 1e-5, "{name}: {a} {b}");
        }
    }
    let inputs = score_inputs(&q, &k, 8, Mode::Compat).unwrap();
    for (a, b) in inputs.iter().zip(of("score_inputs")) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
    let all: Vec<u32> = (0..50).collect();
    for (a, b) in importances(&q, &k, 8, &all).iter().zip(of("importances")) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }
}

#[test]
fn gradients_are_those_of_finite_differences() {
    for (sources, mode) in [
        (
            &[Source::SignBinLsh, Source::SlidingWindow][..],
            Mode::Causal,
        ),
        (&[Source::SignBinLsh], Mode::Compat),
    ] {
        let (t, dim, width) = (9, 3, 2);
        let config = config(sources, 4, mode);
        let mut parts = [draw(1, t * dim), draw(2, t * dim), draw(3, t * width)];
        let g = draw(4, t * width);
        let [q, k, v] = &parts;
        // The choice of keys has no gradient.
        let chosen = select(&config, q, k, dim, &hashes(5, dim * 3), &[]).unwrap();
        let found = attend_backward(q, k, v, dim, &chosen, &g).unwrap();
        let loss = |[q, k, v]: &[Vec<f32>; 3]| -> f64 {
            let out = attend(q, k, v, dim, &chosen).unwrap();
            out.iter().zip(&g).map(|(y, g)| f64::from(y * g)).sum()
        };
        for part in 0..3 {
            for i in 0..parts[part].len() {
                let before = parts[part][i];
                let mut at = |x: f32| {
                    parts[part][i] = x;
                    loss(&parts)
                };
                let slope = (at(before + 1e-2) - at(before - 1e-2)) / 2e-2;
                at(before);
                let ours = f64::from(found[part][i]);
                assert!((ours - slope).abs() < 1e-3, "{part}, {i}: {ours} {slope}");
            }
        }
    }
}

proptest! {
    #[test]
    fn the_past_does_not_depend_on_what_comes(t in 2usize..40, seed in 0u64..1000) {
        let sources = [Source::SignBinLsh, Source::KeySelection];
        let config = config(&sources, 6, Mode::Causal);
        let (q, k) = (draw(seed, t * 4), draw(seed + 1, t * 4));
        let (hashes, scores) = (hashes(seed + 2, 12), draw(seed + 3, t));
        let all = select(&config, &q, &k, 4, &hashes, &scores).unwrap();
        let half = t / 2 + 1;
        let some = select(&config, &q[..half * 4], &k[..half * 4], 4, &hashes, &scores[..half]).unwrap();
        for position in 0..half {
            prop_assert_eq!(all.of(position), some.of(position));
        }
        let inputs = |len: usize| score_inputs(&q[..len * 4], &k[..len * 4], 4, Mode::Causal).unwrap();
        prop_assert_eq!(&inputs(t)[..half * 8], &inputs(half)[..]);
        for position in 0..t {
            let keys = all.of(position);
            prop_assert!(keys.len() <= 6 && keys.windows(2).all(|w| w[0] < w[1]));
            prop_assert!(keys.iter().all(|&key| key as usize <= position));
            // One of the best so far is always there.
            prop_assert!(!keys.is_empty());
        }
    }
}

#[test]
fn fixed_patterns_are_what_they_say() {
    let none = [0.0f32; 40];
    let keys = |source: Source, position: usize| -> Vec<u32> {
        let config = config(&[source], 4, Mode::Causal);
        let found = select(&config, &none, &none, 1, &[], &[]).unwrap();
        found.of(position).to_vec()
    };
    assert_eq!(keys(Source::SlidingWindow, 20), [17, 18, 19, 20]);
    assert_eq!(keys(Source::SlidingWindow, 1), [0, 1]);
    assert_eq!(keys(Source::Sink, 20), [0, 1, 2, 3]);
    assert_eq!(keys(Source::Full, 3), [0, 1, 2, 3]);
    assert_eq!(keys(Source::Dilated, 32), [15, 31]);
    assert!(keys(Source::Dilated, 14).is_empty());
}

/// Without training: vectors that name key and context, and every question is answered.
#[test]
fn hashed_attention_recalls_jointly_by_construction() {
    let task = JointRecall {
        least: 4,
        max_n_context: 6,
        max_n_key: 6,
        n_value: 16,
    };
    let text = task.text(11).unwrap();
    let t = text.tokens.len();
    let (keys_from, contexts_from) = (10 + 16, 10 + 16 + 6);
    let (dim, width) = (36, 16);
    let [mut q, mut k] = [vec![0.0; t * dim], vec![0.0; t * dim]];
    let mut v = vec![0.0; t * width];
    let mut context = 0;
    for at in 0..t - 1 {
        let (token, next) = (text.tokens[at] as usize, text.tokens[at + 1] as usize);
        if token >= contexts_from {
            context = token - contexts_from;
        } else if token >= keys_from {
            let name = context * 6 + token - keys_from;
            if at < t / 2 {
                k[(at + 1) * dim + name] = 30.0;
                v[(at + 1) * width + next - 10] = 1.0;
            } else {
                q[at * dim + name] = 30.0;
            }
        }
    }
    // Each name is once a key and once a query, so that both are centred alike.
    let config = HaxConfig {
        sparse_arch: vec![Source::SignBinLsh],
        sparse_keys: 32,
        mode: Mode::Compat,
        ..HaxConfig::default()
    };
    let chosen = select(&config, &q, &k, dim, &hashes(2, dim * 8), &[]).unwrap();
    assert!(chosen.count() < t * 33);
    let out = attend(&q, &k, &v, dim, &chosen).unwrap();
    assert!(text.asked.len() >= 16);
    for &(at, answer) in &text.asked {
        let row = &out[at as usize * width..][..width];
        assert!(row[answer as usize - 10] > 0.99, "{at}: {row:?}");
    }
}

#[test]
fn choices_that_make_no_sense_are_refused_by_name() {
    let with = |change: &dyn Fn(&mut HaxConfig)| {
        let mut config = HaxConfig::default();
        change(&mut config);
        config.check().unwrap_err().to_string()
    };
    assert!(with(&|c| c.sparse_arch.clear()).contains("sparse_arch"));
    assert!(with(&|c| c.sparse_arch.push(Source::SignBinLsh)).contains("twice"));
    assert!(with(&|c| c.sparse_arch.push(Source::Full)).contains("full"));
    assert!(with(&|c| c.sparse_keys = 63).contains("63 keys"));
    assert!(with(&|c| c.num_hash = 63).contains("num_hash is 63"));
    assert!(
        with(&|c| {
            c.sparse_arch = vec![Source::Dilated];
            c.data_max_length = 63;
        })
        .contains("data_max_length 63")
    );
    let config = HaxConfig::default();
    assert!(select(&config, &[1.0; 4], &[1.0; 6], 2, &[0.0; 16], &[0.0; 2]).is_err());
    assert!(select(&config, &[1.0; 4], &[1.0; 4], 2, &[0.0; 15], &[0.0; 2]).is_err());
    assert!(select(&config, &[1.0; 4], &[1.0; 4], 2, &[0.0; 16], &[]).is_err());
}

//! Mamba models beside transformers, on tiny random checkpoints (parity/mamba.py).

// A fixture that cannot be read fails the test.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use keyfold_core::NoProgress;
use keyfold_kernels::Team;
use keyfold_lm::Reading;
use keyfold_lm::decoding::argmax;
use keyfold_lm::mamba::long_mamba::{Aggregate, LongMamba, LongMambaConfig, Method, StepRecorder};
use keyfold_lm::mamba::{MambaFile, MambaLm, MambaSession, StepFilter};
use safetensors::SafeTensors;

const NAMES: [&str; 4] = ["mamba", "mamba-authors", "mamba2", "mamba2-groups"];

/// After how many tokens of the prompt there are logits.
const PLACES: [usize; 9] = [1, 2, 3, 4, 5, 6, 64, 65, 257];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures-mamba")
        .join(name)
}

fn words(name: &str, file: &str, tensor: &str) -> Vec<[u8; 4]> {
    let bytes = std::fs::read(folder(name).join(file)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let data = file.tensor(tensor).unwrap().data().to_vec();
    data.chunks_exact(4)
        .map(|c| c.try_into().unwrap())
        .collect()
}

fn floats(name: &str, file: &str, tensor: &str) -> Vec<f32> {
    let words = words(name, file, tensor).into_iter();
    words.map(f32::from_le_bytes).collect()
}

fn ids(name: &str, tensor: &str) -> Vec<u32> {
    ids_of(name, "expected.safetensors", tensor)
}

fn ids_of(name: &str, file: &str, tensor: &str) -> Vec<u32> {
    let words = words(name, file, tensor).into_iter();
    words.map(u32::from_le_bytes).collect()
}

fn model(name: &str) -> Arc<MambaLm> {
    let path = folder(name);
    assert!(MambaFile::is_mamba(&path));
    Arc::new(MambaFile::open(&path).unwrap().load().unwrap())
}

fn session(lm: &Arc<MambaLm>) -> MambaSession {
    MambaSession::new(Arc::clone(lm), Arc::new(Team::new(2)))
}

/// The greatest difference.
fn difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let far = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
    far.fold(0.0, f32::max)
}

#[test]
fn logits_are_those_of_transformers_at_once_and_step_by_step() {
    for name in NAMES {
        let lm = model(name);
        let prompt = ids(name, "prompt");
        let expected = floats(name, "expected.safetensors", "logits");
        let mut found = Vec::new();
        session(&lm)
            .score(&prompt, &NoProgress, &mut |at, logits| {
                if PLACES.contains(&(at + 1)) {
                    found.extend_from_slice(logits);
                }
            })
            .unwrap();
        let far = difference(&found, &expected);
        assert!(far < 1e-4, "{name}: {far}");
        let mut steps = session(&lm);
        let mut found = Vec::new();
        for (at, &token) in prompt.iter().enumerate() {
            steps.step(token).unwrap();
            if PLACES.contains(&(at + 1)) {
                found.extend_from_slice(steps.logits());
            }
        }
        let far = difference(&found, &expected);
        assert!(far < 1e-4, "{name}, step by step: {far}");
    }
}

#[test]
fn gguf_files_of_the_same_weights_give_the_same_logits() {
    for name in ["mamba", "mamba2", "mamba2-groups"] {
        let lm = model(&format!("gguf-{name}"));
        let mut text = session(&lm);
        text.prefill(&ids(name, "prompt"), &NoProgress).unwrap();
        let expected = floats(name, "expected.safetensors", "logits");
        let last = &expected[expected.len() - text.vocab()..];
        let far = difference(text.logits(), last);
        assert!(far < 1e-4, "{name}: {far}");
    }
}

#[test]
fn greedy_decoding_picks_what_transformers_picks() {
    for name in NAMES {
        let lm = model(name);
        let mut text = session(&lm);
        text.prefill(&ids(name, "prompt"), &NoProgress).unwrap();
        let expected = floats(name, "expected.safetensors", "greedy_logits");
        let greedy = ids(name, "greedy");
        for (&id, logits) in greedy.iter().zip(expected.chunks_exact(text.vocab())) {
            let far = difference(text.logits(), logits);
            assert!(far < 1e-4, "{name}: {far}");
            assert_eq!(argmax(text.logits()), id);
            text.step(id).unwrap();
        }
    }
}

#[test]
fn a_calibration_is_what_the_same_arithmetic_gives_in_pytorch() {
    for name in ["mamba2", "mamba2-groups"] {
        let lm = model(name);
        let prompt = ids(name, "prompt");
        let mut record = StepRecorder::default();
        session(&lm)
            .observe(&prompt, &NoProgress, &mut record)
            .unwrap();
        let steps = floats(name, "expected.safetensors", "steps");
        assert!(difference(&record.layers()[0], &steps) < 1e-4);

        // On the very same steps.
        let mut same = StepRecorder::default();
        same.steps(0, &mut steps.clone());
        same.steps(1, &mut steps.clone());
        let config = LongMambaConfig {
            length: 256,
            windows: 1,
            theta: 1e-30,
            clamp: 5.0,
            agg: Aggregate::Avg,
        };
        let long = LongMamba::from_steps(&lm, config, &[same]);
        let layer = &long.layers()[0];
        let expected = |tensor: &str| floats(name, "long.safetensors", tensor);
        let near = |a: &[f32], b: &[f32]| {
            let far = a.iter().zip(b).map(|(a, b)| (a - b).abs() / b.abs());
            far.fold(0.0, f32::max) < 2e-6
        };
        assert!(near(&layer.decay, &expected("decay")));
        let kept = expected("kept");
        assert!(
            layer
                .kept
                .iter()
                .zip(&kept)
                .all(|(a, b)| (a - b).abs() < 1e-5 * b.max(1e-3))
        );
        // 384, 1,024 and 2,048 of 128 k tokens.
        let thresholds = expected("thresholds");
        for (place, row) in [(2, 0), (7, 1), (11, 2)].map(|(i, r)| (i, &thresholds[r * 6..][..6])) {
            assert!(
                near(&layer.thresholds[place], row),
                "{:?} {row:?}",
                layer.thresholds[place]
            );
        }
        let shares = expected("shares");
        for (place, row) in [(2, 0), (7, 1), (11, 2)].map(|(i, r)| (i, &shares[r * 6..][..6])) {
            assert_eq!(layer.shares[place], row);
        }
        ways_of_the_program(name, &steps, &long);
    }
}

/// parity/mamba.py: steps of a longer prompt, and what the released program's other ways keep.
fn ways_of_the_program(name: &str, steps: &[f32], long: &LongMamba) {
    let heads = 6;
    let rows = steps.len() / heads;
    let longer: Vec<f32> = (0..1000 * heads)
        .map(|i| {
            let (row, head) = (i / heads, i % heads);
            let factor = 0.5 + (row * 37 % 101) as f32 / 101.0;
            steps[row % rows * heads + head] * factor
        })
        .collect();
    let global: Vec<usize> = (0..heads).filter(|h| long.is_global(0, *h)).collect();
    assert!(!global.is_empty() && global.len() < heads);
    for (method, tensor) in [
        (Method::Alpha, "alpha"),
        (Method::Offline, "offline"),
        (Method::Bound, "bound"),
        (Method::ChannelwiseTopk, "channelwise_topk"),
        (Method::AllTopk, "all_topk"),
        (Method::Norm, "norm"),
    ] {
        let mut found = longer.clone();
        let long = long.clone().with_method(method);
        long.filter(1000).steps(0, &mut found);
        let pairs = |head: usize| {
            let of = |all: &[f32]| -> Vec<f32> {
                all.iter().skip(head).step_by(heads).copied().collect()
            };
            of(&found).into_iter().zip(of(&longer)).enumerate()
        };
        for head in 0..heads {
            if !global.contains(&head) {
                assert!(pairs(head).all(|(_, (a, b))| a == b), "{tensor} {head}");
            } else if method == Method::Norm {
                let factor = floats(name, "long.safetensors", tensor)[head];
                assert!(pairs(head).all(|(_, (a, b))| (a - b * factor).abs() < 1e-5 * b));
            } else {
                let want = ids_of(name, "long.safetensors", tensor);
                let kept = pairs(head).filter(|(_, (a, _))| *a > 0.0);
                let kept: Vec<usize> = kept.map(|(i, _)| i).collect();
                let told = [kept.len(), kept.iter().sum()];
                let want = [want[head], want[heads + head]].map(|x| x as usize);
                assert_eq!(told, want, "{tensor}, head {head}");
            }
        }
    }
}

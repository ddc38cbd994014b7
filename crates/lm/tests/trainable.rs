//! The decoder that has gradients beside the one that writes, and beside transformers
//! (parity/llama_gradients.py).
#![cfg(feature = "train")]
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use keyfold_lm::{ModelFile, trainable};
use keyfold_nn::NoHook;
use keyfold_nn::checkpoint::numbers;
use safetensors::SafeTensors;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

fn open(name: &str) -> ModelFile {
    let gguf = folder(name).join("model.gguf");
    ModelFile::open(if gguf.exists() { &gguf } else { Path::new("") })
        .or_else(|_| ModelFile::open(&folder(name)))
        .unwrap()
}

fn words(file: &SafeTensors, name: &str) -> Vec<u32> {
    let data = file.tensor(name).unwrap().data().to_vec();
    data.chunks_exact(4)
        .map(|c| u32::from_le_bytes(c.try_into().unwrap()))
        .collect()
}

fn floats(file: &SafeTensors, name: &str) -> Vec<f32> {
    words(file, name).into_iter().map(f32::from_bits).collect()
}

fn spread(x: &[f32]) -> f32 {
    let of = |f: fn(f32, f32) -> f32| x.iter().copied().reduce(f).unwrap();
    of(f32::max) - of(f32::min)
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |m, (a, b)| m.max((a - b).abs()))
}

#[test]
fn logits_are_those_of_transformers() {
    for name in [
        "llama",
        "llama-rope-llama3",
        "gguf-qwen2-yarn",
        "qwen3",
        "smollm3",
        "gguf-llama-f16",
        "gguf-llama3",
        // Packed weights too: here they are expanded, and no input is rounded.
        "gguf-llama-q4_0",
        "gguf-llama-q8_0",
        "gguf-qwen3",
        "gguf-smollm3",
    ] {
        let bytes = std::fs::read(folder(name).join("expected.safetensors")).unwrap();
        let expected = SafeTensors::deserialize(&bytes).unwrap();
        let (prompt, logits) = (words(&expected, "prompt"), floats(&expected, "logits"));
        let file = open(name);
        let device = plain_device();
        let model = trainable::load(&file, prompt.len(), &device).unwrap();
        let states = model.states(&prompt, &[0, prompt.len()], &mut NoHook);
        let all = numbers(&model.logits(states));
        let found = &all[all.len() - logits.len()..];
        let off = largest_difference(found, &logits) / spread(&logits);
        assert!(off < 2e-4, "{name}: {off}");
    }
}

fn plain_device() -> burn::tensor::Device {
    burn::tensor::Device::flex()
}

#[test]
fn gradients_of_what_a_cache_keeps_are_those_of_transformers() {
    for name in ["llama", "qwen3"] {
        let bytes = std::fs::read(folder(name).join("gradients.safetensors")).unwrap();
        let expected = SafeTensors::deserialize(&bytes).unwrap();
        let bytes = std::fs::read(folder(name).join("expected.safetensors")).unwrap();
        let prompt = words(&SafeTensors::deserialize(&bytes).unwrap(), "prompt");
        let file = open(name);
        let model = trainable::load(&file, 40, &trainable::device()).unwrap();
        let layers = trainable::cache_gradients(&model, &prompt[..40]);
        assert_eq!(layers.len(), file.config().dims.layers);
        for (number, layer) in layers.iter().enumerate() {
            for (part, found) in [
                ("keys", &layer.keys),
                ("values", &layer.values),
                ("gradient.keys", &layer.key_gradients),
                ("gradient.values", &layer.value_gradients),
            ] {
                let want = floats(&expected, &format!("{part}.{number}"));
                let off = largest_difference(found, &want) / spread(&want);
                assert!(off < 1e-4, "{name} {part} {number}: {off}");
            }
        }
    }
}

#[test]
fn what_has_no_gradients_here_is_refused() {
    let refused = |name: &str, says: &str| {
        let error = trainable::load(&open(name), 60, &trainable::device()).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    };
    refused("gpt2", "learned positions");
    refused("mistral", "sliding windows");
}

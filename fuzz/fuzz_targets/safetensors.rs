//! Any bytes as `config.json`, a zero byte, and a safetensors file.

#![no_main]

mod common;

use keyfold_lm::ModelFile;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let cut = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    let (config, weights) = bytes.split_at(cut);
    let weights = weights.get(1..).unwrap_or_default().to_vec();
    if let Ok(file) = ModelFile::from_safetensors_bytes("fuzz/model.safetensors", config, weights) {
        common::use_all(&file);
    }
});

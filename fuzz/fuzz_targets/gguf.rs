//! Any bytes as a GGUF file: refused, or a model of which everything can be used.

#![no_main]

mod common;

use keyfold_lm::ModelFile;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(file) = ModelFile::from_gguf_bytes("fuzz.gguf", bytes.to_vec()) {
        common::use_all(&file);
    }
});

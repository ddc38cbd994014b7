//! Any bytes as a GGUF file: refused, or a model of which everything can be read.

#![no_main]

use keyfold_lm::{ModelFile, SpecialTokens};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = ModelFile::from_gguf_bytes("fuzz.gguf", bytes.to_vec()) else {
        return;
    };
    for name in file.names() {
        file.tensor(name).expect("it was checked").to_f32();
    }
    let _ = file.check_finite();
    if let Ok(tokenizer) = file.tokenizer() {
        let ids = tokenizer.encode("Some text, <|end|> 123.", SpecialTokens::Parse);
        tokenizer.decode(&ids.unwrap_or_default());
    }
});

//! Damaged and malicious model files: errors by name, no panic, no memory beyond the file's size.

#![allow(clippy::unwrap_used)]

#[path = "../../../fuzz/fuzz_targets/common.rs"]
mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use keyfold_lm::{Gguf, LmError, ModelFile};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

fn bytes(name: &str) -> Vec<u8> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    std::fs::read(fixtures.join(name)).unwrap()
}

/// Writes GGUF files by hand.
struct Writer(Vec<u8>);

impl Writer {
    fn new(tensors: u64, entries: u64) -> Self {
        let mut writer = Self(b"GGUF".to_vec());
        writer.0.extend(3u32.to_le_bytes());
        writer.u64(tensors).u64(entries)
    }

    fn u32(mut self, x: u32) -> Self {
        self.0.extend(x.to_le_bytes());
        self
    }

    fn u64(mut self, x: u64) -> Self {
        self.0.extend(x.to_le_bytes());
        self
    }

    fn text(self, text: &str) -> Self {
        let mut this = self.u64(text.len() as u64);
        this.0.extend(text.as_bytes());
        this
    }

    fn tensor(self, name: &str, shape: &[u64], kind: u32, offset: u64) -> Self {
        let mut this = self.text(name).u32(shape.len() as u32);
        for &size in shape {
            this = this.u64(size);
        }
        this.u32(kind).u64(offset)
    }

    fn data(mut self, len: usize) -> Self {
        // What follows the header begins at a multiple of 32.
        let padded = self.0.len().next_multiple_of(32) + len;
        self.0.resize(padded, 0);
        self
    }

    fn error(self) -> String {
        match Gguf::from_bytes(Path::new("x.gguf"), self.0) {
            Ok(_) => panic!("it was read"),
            Err(e) => e.to_string(),
        }
    }
}

#[test]
fn counts_and_lengths_beyond_the_file_are_refused() {
    for (tensors, entries) in [
        (u64::MAX, 0),
        (0, u64::MAX),
        (1 << 40, 1 << 40),
        (1, 0),
        (0, 1),
    ] {
        let message = Writer::new(tensors, entries).error();
        assert!(message.contains("more than it has room for"), "{message}");
    }
    // A key, a text and a list that are longer than the file.
    let filled = |mut writer: Writer| {
        writer.0.extend([0; 64]);
        writer.error()
    };
    assert!(filled(Writer::new(0, 1).u64(1 << 60)).contains("metadata key"));
    let message = filled(Writer::new(0, 1).text("general.name").u32(8).u64(u64::MAX));
    assert!(message.contains("'general.name'"), "{message}");
    let list = Writer::new(0, 1).text("tokenizer.ggml.tokens").u32(9);
    let message = filled(list.u32(8).u64(1 << 50));
    assert!(
        message.contains("entries of 'tokenizer.ggml.tokens'"),
        "{message}"
    );
}

#[test]
fn odd_metadata_is_refused_by_name() {
    let nested = Writer::new(0, 1).text("a.b").u32(9).u32(9).u64(0).data(64);
    assert!(nested.error().contains("'a.b' is a list of lists"));
    let unknown = Writer::new(0, 1).text("a.b").u32(77).data(64);
    assert!(unknown.error().contains("unknown type 77"));
    let twice = Writer::new(0, 2)
        .text("a.b")
        .u32(4)
        .u32(1)
        .text("a.b")
        .u32(4)
        .u32(1);
    assert!(twice.data(64).error().contains("'a.b' is there twice"));
    for alignment in [0, 3, 48, u32::MAX] {
        let writer = Writer::new(0, 1)
            .text("general.alignment")
            .u32(4)
            .u32(alignment);
        assert!(
            writer.data(64).error().contains("general.alignment"),
            "{alignment}"
        );
    }
    let mut old = Writer::new(0, 0).0;
    old[4] = 1;
    let message = Gguf::from_bytes(Path::new("x.gguf"), old.clone())
        .unwrap_err()
        .to_string();
    assert!(message.contains("version 1"), "{message}");
    old[4..8].copy_from_slice(&3u32.to_be_bytes());
    let message = Gguf::from_bytes(Path::new("x.gguf"), old)
        .unwrap_err()
        .to_string();
    assert!(message.contains("big-endian"), "{message}");
}

#[test]
fn odd_tensors_are_refused_by_name() {
    let one = |shape: &[u64], kind, offset| {
        Writer::new(1, 0)
            .tensor("blk.0.w", shape, kind, offset)
            .data(256)
            .error()
    };
    assert!(one(&[32, 32], 0, 0).contains("'blk.0.w' ends at byte"));
    assert!(one(&[8], 0, 1 << 40).contains("cut off"));
    assert!(one(&[8], 0, u64::MAX).contains("outside"));
    assert!(one(&[0, 8], 0, 0).contains("size 0"));
    assert!(one(&[1 << 40, 1 << 40], 0, 0).contains("'blk.0.w' has the shape"));
    assert!(one(&[1 << 62, 4, 4, 4], 1, 0).contains("'blk.0.w'"));
    assert!(one(&[33], 8, 0).contains("no whole number of blocks of 32"));
    assert!(one(&[256], 10, 0).contains("of type Q2_K"));
    assert!(one(&[256], 4_000, 0).contains("unknown type 4000"));
    assert!(one(&[1; 5], 0, 0).contains("5 dimensions"));
    assert!(one(&[], 0, 0).contains("0 dimensions"));

    let two = |name: &str, offset| {
        let writer = Writer::new(2, 0)
            .tensor("a", &[8], 0, 0)
            .tensor(name, &[8], 0, offset);
        writer.data(256).error()
    };
    assert!(two("b", 16).contains("'b' begins inside of another tensor"));
    assert!(two("a", 32).contains("'a' is there twice"));
}

fn safetensors(header: &str, data: usize) -> Result<ModelFile, LmError> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    ModelFile::from_safetensors_bytes(
        "x/model.safetensors",
        &self::bytes("llama/config.json"),
        bytes,
    )
}

#[test]
fn odd_safetensors_are_refused_by_name() {
    let message = |header: &str, data| safetensors(header, data).unwrap_err().to_string();
    let twice = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
                    "a":{"dtype":"F16","shape":[4],"data_offsets":[0,8]}}"#;
    assert!(message(twice, 8).contains("'a' is there twice"));
    let kind = r#"{"a":{"dtype":"I32","shape":[2],"data_offsets":[0,8]}}"#;
    assert!(message(kind, 8).contains("'a' is of type I32"));
    let scalar = r#"{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#;
    assert!(message(scalar, 4).contains("'a'"));
    let overlap = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
                      "b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
    assert!(message(overlap, 12).contains("x/model.safetensors"));
    let huge = r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}}"#;
    assert!(message(huge, 8).contains("x/model.safetensors"));
    assert!(message("not json", 0).contains("x/model.safetensors"));
}

/// What a config claims must not be allocated.
#[test]
fn a_config_of_a_giant_is_an_error_and_no_allocation() {
    let config = String::from_utf8(bytes("llama/config.json")).unwrap();
    let config = config
        .replace("\"vocab_size\": 260", "\"vocab_size\": 60000000")
        .replace(
            "\"intermediate_size\": 96",
            "\"intermediate_size\": 16000000",
        );
    let weights = bytes("llama/model.safetensors");
    let result = ModelFile::from_safetensors_bytes("m.safetensors", config.as_bytes(), weights);
    assert!(
        result
            .unwrap_err()
            .to_string()
            .contains("model.embed_tokens.weight")
    );
}

/// What a damaged file may do: be refused, or open; then everything in it can be used.
fn use_all(file: Result<ModelFile, LmError>) {
    if let Ok(file) = file {
        common::use_all(&file);
    }
}

/// Where the header of a fixture ends, about: most damage is done there.
const HEADER: usize = 6_000;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn flipped_bytes_of_gguf_never_panic(
        flips in prop::collection::vec((0..HEADER, any::<u8>()), 1..4),
        cut in prop::option::weighted(0.2, 0usize..60_000),
    ) {
        let mut file = bytes("gguf-llama-q8_0/model.gguf");
        for (at, byte) in flips {
            file[at] = byte;
        }
        file.truncate(cut.unwrap_or(usize::MAX));
        use_all(ModelFile::from_gguf_bytes("x.gguf", file));
    }

    #[test]
    fn flipped_bytes_of_safetensors_never_panic(
        flips in prop::collection::vec((0..2_500usize, any::<u8>()), 1..4),
        cut in prop::option::weighted(0.2, 0usize..60_000),
    ) {
        let mut file = bytes("gpt2/model.safetensors");
        for (at, byte) in flips {
            file[at] = byte;
        }
        file.truncate(cut.unwrap_or(usize::MAX));
        use_all(ModelFile::from_safetensors_bytes("x/model.safetensors", &bytes("gpt2/config.json"), file));
    }

    #[test]
    fn flipped_bytes_of_configs_never_panic(
        name in prop::sample::select(vec!["smollm3", "qwen2", "gpt2", "llama-rope-yarn"]),
        flips in prop::collection::vec((0..800usize, "[0-9a-z{}\\[\\],\":.e-]"), 1..4),
    ) {
        let mut config = bytes(&format!("{name}/config.json"));
        for (at, byte) in flips {
            let at = at % config.len();
            config[at] = byte.as_bytes()[0];
        }
        let weights = bytes(&format!("{name}/model.safetensors"));
        use_all(ModelFile::from_safetensors_bytes("x/model.safetensors", &config, weights));
    }
}

/// What fuzz/ does, without its compiler: bytes are set, copied, cut and put in, most of them in
/// the header, for as long as `KEYFOLD_FUZZ_SECONDS` says (2).
#[test]
fn files_that_were_changed_in_many_places_never_panic() {
    let seconds = std::env::var("KEYFOLD_FUZZ_SECONDS").ok();
    let seconds = seconds.and_then(|s| s.parse().ok()).unwrap_or(2);
    let end = Instant::now() + Duration::from_secs(seconds);
    let ggufs = [
        "llama-q8_0",
        "llama-q4_0",
        "gpt2",
        "qwen3",
        "smollm3",
        "llama3",
    ]
    .map(|name| bytes(&format!("gguf-{name}/model.gguf")));
    let texts = ["gpt-2", "qwen2", "smollm", "llama-bpe", "pieces"]
        .map(|name| bytes(&format!("../fixtures-text/{name}.gguf")));
    let ggufs = [&ggufs[..], &texts].concat();
    let folders = ["gpt2", "qwen2", "llama", "smollm3"];
    let mut rng = StdRng::seed_from_u64(7);
    let (mut files, mut opened) = (0, 0);
    while Instant::now() < end {
        let result = if rng.random_bool(0.6) {
            let mut file = ggufs[rng.random_range(0..ggufs.len())].clone();
            damage(&mut file, &mut rng);
            ModelFile::from_gguf_bytes("x.gguf", file)
        } else {
            let name = folders[rng.random_range(0..folders.len())];
            let mut config = bytes(&format!("{name}/config.json"));
            let mut weights = bytes(&format!("{name}/model.safetensors"));
            match rng.random_bool(0.5) {
                true => damage(&mut config, &mut rng),
                false => damage(&mut weights, &mut rng),
            }
            ModelFile::from_safetensors_bytes("x/model.safetensors", &config, weights)
        };
        files += 1;
        opened += usize::from(result.is_ok());
        use_all(result);
    }
    assert!(files > 0);
    println!("{files} files, of which {opened} opened");
}

/// Changes a file in one to eight places.
fn damage(file: &mut Vec<u8>, rng: &mut StdRng) {
    for _ in 0..rng.random_range(1..=8) {
        let within = if rng.random_bool(0.8) {
            HEADER
        } else {
            usize::MAX
        };
        let len = file.len().min(within);
        if len < 16 {
            return;
        }
        let at = rng.random_range(0..len - 8);
        match rng.random_range(0..6) {
            0 => file[at] = rng.random(),
            1 => file[at] ^= 1 << rng.random_range(0..8),
            2 => {
                let edge = [0u64, 1, 1 << 31, 1 << 32, 1 << 40, 1 << 63, u64::MAX];
                let edge = edge[rng.random_range(0..edge.len())];
                file[at..at + 8].copy_from_slice(&edge.to_le_bytes());
            }
            3 => {
                let from = rng.random_range(0..len - 8);
                file.copy_within(from..from + 8, at);
            }
            4 => drop(file.drain(at..at + rng.random_range(1..8))),
            _ => {
                let from = rng.random_range(0..len - 8);
                let some = file[from..from + 8].to_vec();
                file.splice(at..at, some);
            }
        }
    }
    if rng.random_bool(0.1) {
        file.truncate(rng.random_range(0..=file.len()));
    }
}

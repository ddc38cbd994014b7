//! Model files that transformers and the `gguf` package wrote (parity/lm_checkpoints.py):
//! the right configuration, the right tensors, whatever the file is.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use keyfold_lm::config::{Activation, Architecture, Norm, RopeScaling, rope_frequencies};
use keyfold_lm::{LmError, ModelFile};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

fn open(name: &str) -> ModelFile {
    ModelFile::open(&fixture(name)).unwrap()
}

/// A copy of a fixture that a test may damage.
fn copy(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture(name)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

fn replace(path: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{from} is not in {}", path.display());
    std::fs::write(path, text.replace(from, to)).unwrap();
}

fn error(path: &Path) -> String {
    ModelFile::open(path).unwrap_err().to_string()
}

#[test]
fn every_fixture_opens_and_is_finite() {
    let mut seen = 0;
    for entry in std::fs::read_dir(fixture("")).unwrap() {
        let path = entry.unwrap().path();
        let file = ModelFile::open(&path).unwrap();
        file.check_finite().unwrap();
        assert!(file.notes().is_empty(), "{:?}", file.notes());
        let (dims, expected) = (file.config().dims, file.config().tensors());
        assert_eq!(
            (dims.vocab, dims.hidden, dims.heads),
            (260, 32, 4),
            "{}",
            path.display()
        );
        assert_eq!(file.names().count(), expected.len());
        for (name, shape) in expected {
            let tensor = file.expect(&name, &shape).unwrap();
            assert_eq!(
                (tensor.rows() * tensor.row_len(), tensor.shape()),
                (shape.iter().product(), &shape[..])
            );
        }
        seen += 1;
    }
    assert!(seen >= 19, "{seen}");
}

#[test]
fn architectures_differ_where_they_should() {
    let llama = open("llama");
    let config = llama.config();
    assert_eq!(config.architecture, Architecture::Llama);
    assert_eq!(
        (config.norm, config.norm_eps, config.hidden_act),
        (Norm::Rms, 1e-5, Activation::Silu)
    );
    assert_eq!(
        (
            config.dims.kv_heads,
            config.dims.head_dim,
            config.intermediate_size
        ),
        (2, 8, 96)
    );
    assert_eq!(
        (config.bos_token_id, &config.eos_token_ids[..]),
        (Some(256), &[257][..])
    );
    assert!(!config.tie_word_embeddings && !config.qkv_bias && !config.qk_norm && config.gated_mlp);
    assert_eq!(config.context_limit(), Some(512));

    let bias = open("llama-bias-shards");
    assert!(bias.config().qkv_bias && bias.config().output_bias && bias.config().mlp_bias);
    assert!(bias.has("model.layers.1.self_attn.o_proj.bias"));

    let mistral = open("mistral");
    assert_eq!(mistral.config().sliding_window, [Some(16); 2]);
    assert_eq!(mistral.config().dims.head_dim, 16);

    let qwen2 = open("qwen2");
    assert_eq!(qwen2.config().sliding_window, [None, Some(16)]);
    assert!(qwen2.config().qkv_bias && !qwen2.config().output_bias);

    assert!(open("qwen3").config().qk_norm);
    let smollm3 = open("smollm3");
    let rope = smollm3.config().rope().unwrap();
    assert_eq!(
        (rope.theta, &rope.layers[..]),
        (2e6, &[true, true, true, false][..])
    );

    let gpt2 = open("gpt2");
    let config = gpt2.config();
    assert_eq!(
        (config.norm, config.hidden_act),
        (Norm::Layer, Activation::GeluTanh)
    );
    assert!(config.rope().is_none() && config.tie_word_embeddings && !config.gated_mlp);
    assert_eq!(
        (config.intermediate_size, config.context_limit()),
        (128, Some(128))
    );
}

#[test]
fn a_gguf_file_says_the_same_as_a_folder() {
    for (folder, gguf) in [
        ("llama", "gguf-llama-q8_0"),
        ("qwen3", "gguf-qwen3"),
        ("smollm3", "gguf-smollm3"),
        ("gpt2", "gguf-gpt2"),
    ] {
        let (folder, gguf) = (open(folder), open(gguf));
        let mut expected = folder.config().clone();
        if let keyfold_lm::config::Positions::Rope(rope) = &mut expected.positions {
            // Only the rows of q and k of these are in another order.
            rope.interleaved = folder.config().architecture != Architecture::Qwen3;
        }
        assert_eq!(gguf.config(), &expected);
        assert!(folder.names().eq(gguf.names()));
    }
    let rope = open("gguf-qwen2-yarn")
        .config()
        .rope()
        .unwrap()
        .scaling
        .clone();
    assert!(
        matches!(
            rope,
            RopeScaling::Yarn {
                factor: 4.0,
                original: 64,
                ..
            }
        ),
        "{rope:?}"
    );
}

#[test]
fn gpt2_weights_are_split_and_turned() {
    let folder = open("gpt2");
    let path = fixture("gpt2").join("model.safetensors");
    let bytes = std::fs::read(path).unwrap();
    let stored = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let numbers = |name: &str| -> Vec<f32> {
        let name = format!("transformer.h.1.{name}");
        let data = stored.tensor(&name).unwrap().data().to_vec();
        data.chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect()
    };
    let (fused, bias) = (numbers("attn.c_attn.weight"), numbers("attn.c_attn.bias"));
    for (part, role) in ["q", "k", "v"].iter().enumerate() {
        let name = format!("model.layers.1.self_attn.{role}_proj");
        let weight = folder.tensor(&format!("{name}.weight")).unwrap().to_f32();
        for (row, column) in [(0, 0), (3, 7), (31, 30)] {
            assert_eq!(
                weight[row * 32 + column],
                fused[column * 96 + part * 32 + row]
            );
        }
        let part = &bias[part * 32..][..32];
        assert_eq!(
            folder.tensor(&format!("{name}.bias")).unwrap().to_f32(),
            part
        );
    }
    let down = folder
        .tensor("model.layers.1.mlp.down_proj.weight")
        .unwrap();
    let stored = numbers("mlp.c_proj.weight");
    assert_eq!(down.shape(), [32, 128]);
    assert_eq!(down.to_f32()[5 * 128 + 9], stored[9 * 32 + 5]);
}

#[test]
fn gguf_gpt2_splits_its_fused_rows() {
    let file = open("gguf-gpt2");
    let gguf = keyfold_lm::Gguf::open(&fixture("gguf-gpt2").join("model.gguf")).unwrap();
    let fused = gguf.tensor("blk.0.attn_qkv.weight").unwrap().to_f32();
    let value = file
        .tensor("model.layers.0.self_attn.v_proj.weight")
        .unwrap();
    assert_eq!(value.to_f32(), fused[64 * 32..]);
}

/// `rope_freqs.weight` and the rule of Llama 3 are the same frequencies.
#[test]
fn divisors_of_a_gguf_file_are_the_rule_of_llama3() {
    let (gguf, folder) = (open("gguf-llama3"), open("llama-rope-llama3"));
    assert!(matches!(
        gguf.config().rope().unwrap().scaling,
        RopeScaling::Divisors(_)
    ));
    let (one, _) = rope_frequencies(gguf.config(), 1);
    let (other, _) = rope_frequencies(folder.config(), 1);
    for (a, b) in one.iter().zip(&other) {
        assert!((a - b).abs() <= 1e-6 * b, "{one:?} {other:?}");
    }
    assert_eq!(one.len(), 4);
}

#[test]
fn a_single_file_and_its_folder_are_the_same_model() {
    let by_file = ModelFile::open(&fixture("llama").join("model.safetensors")).unwrap();
    assert_eq!(by_file.config(), open("llama").config());
    let by_folder = open("gguf-qwen3");
    let by_file = ModelFile::open(&fixture("gguf-qwen3").join("model.gguf")).unwrap();
    assert_eq!(by_file.config(), by_folder.config());
}

#[test]
fn missing_and_unknown_tensors_are_named() {
    let folder = copy("llama");
    let config = folder.path().join("config.json");
    replace(
        &config,
        "\"num_hidden_layers\": 2",
        "\"num_hidden_layers\": 3",
    );
    let message = error(folder.path());
    assert!(
        message.contains("lacks 'model.layers.2.self_attn.q_proj.weight'"),
        "{message}"
    );
    assert!(message.contains("4 more"), "{message}");
    replace(
        &config,
        "\"num_hidden_layers\": 3",
        "\"num_hidden_layers\": 1",
    );
    let message = error(folder.path());
    assert!(
        message.contains("unknown 'model.layers.1.input_layernorm.weight'"),
        "{message}"
    );
}

#[test]
fn wrong_shapes_are_named_with_both() {
    let folder = copy("llama");
    let config = folder.path().join("config.json");
    replace(
        &config,
        "\"intermediate_size\": 96",
        "\"intermediate_size\": 97",
    );
    let message = error(folder.path());
    assert!(
        message.contains("'model.layers.0.mlp.gate_proj.weight' is [96, 32]"),
        "{message}"
    );
    assert!(message.contains("[97, 32]"), "{message}");
}

#[test]
fn a_tied_model_with_another_output_matrix_gets_a_note() {
    let folder = copy("llama");
    let config = folder.path().join("config.json");
    replace(
        &config,
        "\"tie_word_embeddings\": false",
        "\"tie_word_embeddings\": true",
    );
    let file = ModelFile::open(folder.path()).unwrap();
    assert!(!file.has("lm_head.weight"));
    assert!(
        file.notes()[0].contains("different lm_head.weight"),
        "{:?}",
        file.notes()
    );
}

#[test]
fn shards_that_are_missing_or_lie_are_named() {
    let folder = copy("llama-bias-shards");
    let index = folder.path().join("model.safetensors.index.json");
    let shard = folder.path().join("model-00002-of-00003.safetensors");
    std::fs::rename(&shard, folder.path().join("kept")).unwrap();
    assert!(error(folder.path()).contains("model-00002-of-00003.safetensors"));
    std::fs::rename(folder.path().join("kept"), &shard).unwrap();
    ModelFile::open(folder.path()).unwrap();
    replace(&index, "\"model.norm.weight\"", "\"model.norm.bias\"");
    assert!(error(folder.path()).contains("model.norm."));
    replace(&index, "model-00002-of-00003", "../model-00002-of-00003");
    assert!(error(folder.path()).contains("no plain file name"));
}

#[test]
fn cut_files_say_so() {
    for (name, file) in [
        ("llama", "model.safetensors"),
        ("gguf-llama-q8_0", "model.gguf"),
    ] {
        let folder = copy(name);
        let path = folder.path().join(file);
        let bytes = std::fs::read(&path).unwrap();
        for len in [0, 3, 20, 200, bytes.len() / 2, bytes.len() - 40] {
            std::fs::write(&path, &bytes[..len]).unwrap();
            let message = error(folder.path());
            assert!(message.contains(file), "{len}: {message}");
        }
    }
}

#[test]
fn weights_that_are_no_numbers_are_found() {
    let folder = copy("llama-rope-linear");
    let path = folder.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 2..].copy_from_slice(&half::f16::NAN.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let file = ModelFile::open(folder.path()).unwrap();
    let message = file.check_finite().unwrap_err().to_string();
    assert!(message.contains("holds NaN"), "{message}");
}

#[test]
fn folders_without_a_model_say_what_a_model_is() {
    let folder = tempfile::tempdir().unwrap();
    assert!(error(folder.path()).contains("neither model.safetensors nor a GGUF file"));
    let missing = folder.path().join("nothing.gguf");
    assert!(matches!(ModelFile::open(&missing), Err(LmError::Io { .. })));
    let text = folder.path().join("model.txt");
    std::fs::write(&text, "x").unwrap();
    assert!(error(&text).contains("GGUF"));
    for name in ["a.gguf", "b.gguf"] {
        std::fs::copy(
            fixture("gguf-qwen3").join("model.gguf"),
            folder.path().join(name),
        )
        .unwrap();
    }
    assert!(error(folder.path()).contains("name one"));
}

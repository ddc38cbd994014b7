//! Folders with something missing, damaged, absurd or hostile: an error that
//! names the file, never a panic.

use std::fs;

use keyfold_core::Role;
use proptest::prelude::*;
use serde_json::json;

use crate::support::{assert_error, copy, edit, error, open, rows};

#[test]
fn missing_files_are_named() {
    for (name, file) in [
        ("st-bert-mean", "config.json"),
        ("st-bert-mean", "tokenizer.json"),
        ("st-bert-mean", "model.safetensors"),
        ("st-distilbert-cls-dense", "2_Dense/config.json"),
        ("st-xlmr-rare", "model-00002-of-00002.safetensors"),
        ("pylate-bert", "1_Dense/model.safetensors"),
        ("pylate-bert", "modules.json"),
        ("stanford-bert", "pytorch_model.bin"),
    ] {
        let dir = copy(name);
        fs::remove_file(dir.path().join(file)).unwrap();
        let error = error(dir.path());
        let short = file.rsplit('/').next().unwrap();
        // Without a .bin the name that is asked for is the newer one.
        let newer = "model.safetensors";
        assert!(
            error.contains(short) || (short.ends_with(".bin") && error.contains(newer)),
            "{file}: {error}"
        );
    }
    let dir = copy("pylate-bert");
    edit(dir.path(), "modules.json", |m| {
        m.as_array_mut().unwrap().pop();
    });
    assert_error(dir.path(), &["1_Dense", "linear head"]);
}

#[test]
fn files_that_are_not_json_are_named() {
    for (name, file) in [
        ("st-bert-mean", "config.json"),
        ("st-bert-mean", "modules.json"),
        ("st-bert-mean", "1_Pooling/config.json"),
        ("st-bert-mean", "tokenizer.json"),
        ("st-bert-mean", "tokenizer_config.json"),
        ("st-bert-mean", "sentence_bert_config.json"),
        ("pylate-bert", "config_sentence_transformers.json"),
        ("pylate-bert", "1_Dense/config.json"),
        ("stanford-bert", "artifact.metadata"),
        ("st-xlmr-rare", "model.safetensors.index.json"),
    ] {
        for content in ["", "{", "[1, 2]", "\u{0}", "{\"version\": \"1.0\"}"] {
            let dir = copy(name);
            fs::write(dir.path().join(file), content).unwrap();
            // Some of these mean "no fields" in some files; none may panic.
            if let Err(e) = open(dir.path()) {
                let short = file.rsplit('/').next().unwrap();
                let e = e.to_string();
                let second = e.contains("artifact") || e.contains("model");
                assert!(e.contains(short) || second, "{file}: {e}");
            }
        }
    }
}

#[test]
fn absurd_sizes_are_refused() {
    let cases = [
        ("hidden_size", json!(0)),
        ("hidden_size", json!(u64::MAX)),
        ("hidden_size", json!(33)),
        ("hidden_size", json!("many")),
        ("num_attention_heads", json!(0)),
        ("num_attention_heads", json!(5)),
        ("num_hidden_layers", json!(0)),
        ("num_hidden_layers", json!(1_000_000_000)),
        ("num_hidden_layers", json!(3)),
        ("intermediate_size", json!(0)),
        ("intermediate_size", json!(1u64 << 60)),
        ("hidden_act", json!("mystery")),
        ("position_embedding_type", json!("relative_key")),
    ];
    for (field, value) in cases {
        let dir = copy("st-bert-mean");
        edit(dir.path(), "config.json", |c| c[field] = value.clone());
        let error = error(dir.path());
        let named = ["config.json", "model.safetensors"];
        assert!(
            named.iter().any(|n| error.contains(n)),
            "{field} = {value}: {error}"
        );
    }
    for (field, value) in [
        ("relative_attention_num_buckets", json!(0)),
        ("relative_attention_num_buckets", json!(3)),
        ("relative_attention_max_distance", json!(1)),
        ("relative_attention_max_distance", json!(1u64 << 60)),
        ("d_kv", json!(0)),
        ("num_heads", json!(0)),
    ] {
        let dir = copy("xtr-t5");
        edit(dir.path(), "config.json", |c| c[field] = value.clone());
        assert_error(dir.path(), &["config.json"]);
    }
    for (field, value) in [
        ("local_attention", json!(0)),
        ("max_position_embeddings", json!(0)),
        ("global_attn_every_n_layers", json!(0)),
    ] {
        let dir = copy("bare-modernbert");
        edit(dir.path(), "config.json", |c| c[field] = value.clone());
        if let Ok(encoder) = open(dir.path()) {
            encoder.encode(&["a few words"], Role::Query).unwrap();
        }
    }
    for length in [0, 3] {
        let dir = copy("pylate-bert");
        edit(dir.path(), "config_sentence_transformers.json", |c| {
            c["query_length"] = json!(length);
        });
        assert_error(
            dir.path(),
            &["config_sentence_transformers.json", "at least 4"],
        );
    }
    // Longer than the position table: what fits is used.
    let dir = copy("pylate-bert");
    edit(dir.path(), "config_sentence_transformers.json", |c| {
        c["query_length"] = json!(1_000_000_000u64);
    });
    let encoder = open(dir.path()).unwrap();
    assert_eq!(rows(&*encoder, "crash", Role::Query), 192);
}

#[test]
fn parts_that_do_not_fit_are_named() {
    let dir = copy("st-bert-mean");
    edit(dir.path(), "config.json", |c| {
        c["model_type"] = json!("llama")
    });
    assert_error(
        dir.path(),
        &["config.json", "llama", "known are", "modernbert"],
    );

    let dir = copy("st-bert-mean");
    edit(dir.path(), "config.json", |c| {
        c["intermediate_size"] = json!(47)
    });
    assert_error(
        dir.path(),
        &[
            "model.safetensors",
            "intermediate.dense.weight",
            "[48, 32]",
            "[47, 32]",
        ],
    );

    let dir = copy("st-bert-mean");
    edit(dir.path(), "config.json", |c| {
        c["num_hidden_layers"] = json!(3)
    });
    assert_error(
        dir.path(),
        &[
            "model.safetensors",
            "encoder.layer.2.attention.self.query.weight",
        ],
    );

    let dir = copy("pylate-bert");
    edit(dir.path(), "config_sentence_transformers.json", |c| {
        c["document_prefix"] = json!("[Doc] ");
    });
    assert_error(dir.path(), &["tokenizer.json", "[Doc] "]);

    let dir = copy("pylate-bert");
    edit(dir.path(), "1_Dense/config.json", |c| {
        c["in_features"] = json!(31)
    });
    assert_error(dir.path(), &["1_Dense", "in_features", "31", "32"]);

    let dir = copy("pylate-bert");
    edit(dir.path(), "1_Dense/config.json", |c| {
        c["out_features"] = json!(0)
    });
    assert_error(dir.path(), &["1_Dense", "out_features"]);

    let dir = copy("pylate-bert");
    edit(dir.path(), "1_Dense/config.json", |c| {
        c["activation_function"] = json!("os.system");
    });
    assert_error(dir.path(), &["1_Dense", "os.system"]);

    let dir = copy("st-bert-mean");
    edit(dir.path(), "modules.json", |m| {
        m[1]["path"] = json!("../../etc")
    });
    assert_error(dir.path(), &["modules.json", "../../etc"]);

    let dir = copy("st-bert-mean");
    edit(dir.path(), "modules.json", |m| {
        m[2]["type"] = json!("my.module.WordWeights")
    });
    assert_error(dir.path(), &["modules.json", "WordWeights", "known are"]);

    // A tokenizer with more tokens than the table has vectors.
    let dir = copy("st-bert-mean");
    edit(dir.path(), "tokenizer.json", |t| {
        t["model"]["vocab"]["extra"] = json!(100_000);
    });
    assert_error(dir.path(), &["tokenizer.json", "100001"]);
}

#[test]
fn damaged_weights_are_errors() {
    // Cut off anywhere.
    for (name, file) in [
        ("st-bert-mean", "model.safetensors"),
        ("st-t5-bin", "pytorch_model.bin"),
        ("stanford-bert", "pytorch_model.bin"),
        ("xtr-t5", "2_Dense/pytorch_model.bin"),
    ] {
        let dir = copy(name);
        let path = dir.path().join(file);
        let whole = fs::read(&path).unwrap();
        for len in [0, 1, 7, 8, 9, 20, 100, whole.len() / 2, whole.len() - 1] {
            fs::write(&path, &whole[..len]).unwrap();
            assert_error(dir.path(), &[file.rsplit('/').next().unwrap()]);
        }
    }
    // NaN.
    let dir = copy("st-bert-mean");
    let path = dir.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let at = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    assert_error(dir.path(), &["model.safetensors", "NaN", "tensor '"]);
    // A Git LFS pointer.
    fs::write(
        &path,
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    )
    .unwrap();
    assert_error(dir.path(), &["model.safetensors", "LFS"]);
    // A header with absurd places and shapes.
    for header in [
        r#"{"a":{"dtype":"F32","shape":[18446744073709551615,2],"data_offsets":[0,8]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[8,4]}}"#,
        r#"{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,18446744073709551615]}}"#,
        r#"{"a":{"dtype":"Q9","shape":[1],"data_offsets":[0,4]}}"#,
    ] {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(&[0; 8]);
        fs::write(&path, bytes).unwrap();
        assert_error(dir.path(), &["model.safetensors"]);
    }
    // Weights so large that the states overflow are found when they are used.
    let dir = copy("pylate-bert");
    let path = dir.path().join("1_Dense/model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.len() - 16 * 32 * 4;
    for number in bytes[at..].chunks_exact_mut(4) {
        number.copy_from_slice(&f32::MAX.to_le_bytes());
    }
    fs::write(&path, bytes).unwrap();
    let encoder = open(dir.path()).unwrap();
    let e = encoder
        .encode(&["crash"], Role::Query)
        .unwrap_err()
        .to_string();
    assert!(e.contains("weights may be damaged"), "{e}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Any byte of any file may be wrong: an error or other vectors, never a panic.
    #[test]
    fn no_flipped_byte_makes_it_panic(
        which in 0usize..12,
        place in any::<prop::sample::Index>(),
        bits in 1u8..,
    ) {
        let files = [
            ("st-t5-bin", "pytorch_model.bin"),
            ("st-t5-bin", "2_Dense/pytorch_model.bin"),
            ("st-t5-bin", "tokenizer.json"),
            ("st-t5-bin", "config.json"),
            ("stanford-bert", "pytorch_model.bin"),
            ("stanford-bert", "artifact.metadata"),
            ("pylate-roberta-attend", "model.safetensors"),
            ("pylate-roberta-attend", "tokenizer.json"),
            ("pylate-roberta-attend", "1_Dense/config.json"),
            ("bare-modernbert", "config.json"),
            ("bare-modernbert", "tokenizer.json"),
            ("st-xlmr-rare", "model.safetensors.index.json"),
        ];
        let (name, file) = files[which];
        let dir = copy(name);
        let path = dir.path().join(file);
        let mut bytes = fs::read(&path).unwrap();
        // The beginning holds the headers and most of what can go wrong.
        let reach = if bits % 2 == 0 { bytes.len() } else { bytes.len().min(2000) };
        let at = place.index(reach);
        bytes[at] ^= bits;
        fs::write(&path, bytes).unwrap();
        if let Ok(encoder) = open(dir.path()) {
            let _ = encoder.encode(&["the store, a crash", ""], Role::Query);
            let _ = encoder.spans("the store", Role::Document);
        }
    }
}

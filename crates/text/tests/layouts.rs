//! What the loader makes of a folder: kinds, identity, spans, and errors that
//! say which file is wrong and how.

use std::fs;
use std::path::{Path, PathBuf};

use keyfold_core::{Encoder, ModelFolder, Role};
use keyfold_text::{LateInteractionEncoder, LoadError, LoadOptions, SentenceEncoder, load};
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

fn open(folder: &Path) -> Result<Box<dyn Encoder>, LoadError> {
    load(folder.to_str().unwrap(), &LoadOptions { threads: 1 })
}

/// A copy of a fixture that a test may damage.
fn copy(name: &str) -> TempDir {
    fn copy_into(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let target = to.join(entry.file_name());
            if entry.path().is_dir() {
                copy_into(&entry.path(), &target);
            } else {
                fs::copy(entry.path(), target).unwrap();
            }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    copy_into(&fixture(name), dir.path());
    dir
}

fn edit(folder: &Path, file: &str, change: impl FnOnce(&mut Value)) {
    let path = folder.join(file);
    let mut value: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

/// The error of a folder that must not load.
#[track_caller]
fn error(folder: &Path) -> String {
    match open(folder) {
        Ok(_) => panic!("{} loads", folder.display()),
        Err(e) => e.to_string(),
    }
}

#[track_caller]
fn assert_error(folder: &Path, parts: &[&str]) {
    let error = error(folder);
    for part in parts {
        assert!(error.contains(part), "'{part}' is not in: {error}");
    }
}

fn rows(encoder: &dyn Encoder, text: &str, role: Role) -> usize {
    encoder.encode(&[text], role).unwrap()[0].rows()
}

#[test]
fn the_kind_follows_from_the_folder() {
    let options = LoadOptions { threads: 1 };
    for (name, late) in [
        ("st-bert-mean", false),
        ("st-t5-bin", false),
        ("bare-modernbert", false),
        ("pylate-bert", true),
        ("stanford-bert", true),
        ("xtr-t5", true),
    ] {
        let folder = ModelFolder::find(fixture(name).to_str().unwrap()).unwrap();
        assert_eq!(
            LateInteractionEncoder::load(&folder, &options).is_ok(),
            late,
            "{name}"
        );
    }
    // Heads without pooling work on tokens, whatever else the files leave out.
    let dir = copy("pylate-missing-fields");
    fs::remove_file(dir.path().join("config_sentence_transformers.json")).unwrap();
    let encoder = open(dir.path()).unwrap();
    assert_eq!(rows(&*encoder, "one", Role::Query), 32);
}

#[test]
fn identity_changes_with_what_changes_the_vectors() {
    let dir = copy("pylate-bert");
    let hash = || open(dir.path()).unwrap().identity().hash.clone();
    let first = hash();
    assert_eq!(first.len(), 64);
    assert_eq!(hash(), first);
    fs::write(dir.path().join("README.md"), "words").unwrap();
    assert_eq!(hash(), first, "a file that is not read");

    let mut seen = vec![first];
    edit(dir.path(), "config_sentence_transformers.json", |c| {
        c["query_length"] = json!(31);
    });
    seen.push(hash());
    edit(dir.path(), "1_Dense/config.json", |c| {
        c["activation_function"] = json!("torch.nn.modules.activation.Tanh");
    });
    seen.push(hash());
    for file in ["model.safetensors", "1_Dense/model.safetensors"] {
        let path = dir.path().join(file);
        let mut bytes = fs::read(&path).unwrap();
        // The lowest bit of a number's fraction.
        let at = bytes.len() - 4;
        bytes[at] ^= 1;
        fs::write(path, bytes).unwrap();
        seen.push(hash());
    }
    let mut distinct = seen.clone();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), seen.len());
}

#[test]
fn spans_name_the_words_that_rows_stand_for() {
    let encoder = open(&fixture("pylate-bert")).unwrap();
    let text = "  The CRASH, a store\u{2603}!";
    let words = |role| -> Vec<Option<&str>> {
        let spans = encoder.spans(text, role).unwrap();
        spans.into_iter().map(|s| s.map(|s| &text[s])).collect()
    };
    // First token, marker, words without punctuation, last token.
    let document = words(Role::Document);
    assert_eq!(document[..2], [None, None]);
    assert_eq!(
        document[2..6],
        [Some("The"), Some("CRASH"), Some("a"), Some("store\u{2603}")]
    );
    assert_eq!(document[6..], [None]);
    // In a query the punctuation stays, and expansion fills up.
    let query = words(Role::Query);
    assert_eq!(query[4..6], [Some(","), Some("a")]);
    assert_eq!(query.len(), 32);
    assert!(query[9..].iter().all(Option::is_none));

    // Lower-casing may change lengths: \u{130} becomes two characters.
    let encoder = open(&fixture("xtr-t5")).unwrap();
    let text = "\u{130}\u{130} Store";
    let spans = encoder.spans(text, Role::Document).unwrap();
    let last = spans.into_iter().flatten().next_back().unwrap();
    assert_eq!(text[last].trim(), "Store");

    // A whole text has one row that stands for no word.
    let encoder = open(&fixture("st-bert-mean")).unwrap();
    assert_eq!(encoder.spans("some words", Role::Query).unwrap(), [None]);
}

#[test]
fn token_states_have_a_row_per_token() {
    let folder = ModelFolder::find(fixture("st-bert-mean").to_str().unwrap()).unwrap();
    let encoder = SentenceEncoder::load(&folder, &LoadOptions::default()).unwrap();
    let texts = ["the store", "", "a much longer text of many words"];
    let states = encoder.token_states(&texts).unwrap();
    // [CLS] and [SEP] at least.
    assert_eq!(states[1].0.len(), 2);
    for (ids, rows) in &states {
        assert_eq!(ids.len(), rows.rows());
        assert_eq!(rows.dim(), 32);
        assert_eq!(
            (ids[0], ids[ids.len() - 1]),
            (states[1].0[0], states[1].0[1])
        );
    }
    // Their normalised mean is the vector of the text.
    let encoded = encoder.encode(&texts, Role::Document).unwrap();
    for ((_, rows), vector) in states.iter().zip(&encoded) {
        let mut mean = vec![0.0; 32];
        for row in rows.iter() {
            mean.iter_mut().zip(row).for_each(|(m, x)| *m += x);
        }
        let norm = mean.iter().map(|x| x * x).sum::<f32>().sqrt();
        for (m, x) in mean.iter().zip(vector.row(0)) {
            assert!((m / norm - x).abs() < 1e-6);
        }
    }
}

#[test]
fn a_missing_field_does_not_switch_expansion_on_for_modernbert() {
    let dir = copy("pylate-modernbert");
    edit(dir.path(), "config_sentence_transformers.json", |c| {
        c.as_object_mut().unwrap().remove("do_query_expansion");
    });
    let encoder = open(dir.path()).unwrap();
    assert!(rows(&*encoder, "crash", Role::Query) < 32);
    // Elsewhere a missing field means expansion.
    let dir = copy("pylate-bert");
    edit(dir.path(), "config_sentence_transformers.json", |c| {
        c.as_object_mut().unwrap().remove("do_query_expansion");
    });
    let encoder = open(dir.path()).unwrap();
    assert_eq!(rows(&*encoder, "crash", Role::Query), 32);
}

#[test]
fn unknown_tokens_of_documents_go_with_a_skipped_word_that_is_unknown() {
    let encoder = open(&fixture("pylate-missing-fields")).unwrap();
    // '!' is not in this vocabulary, so it stands for [UNK], as the snowman does.
    let plain = rows(&*encoder, "crash", Role::Document);
    assert_eq!(rows(&*encoder, "crash \u{2603}", Role::Document), plain);
    // In queries they stay (and expansion hides it), in a full vocabulary too.
    let full = open(&fixture("pylate-bert")).unwrap();
    let plain = rows(&*full, "crash", Role::Document);
    assert_eq!(rows(&*full, "crash \u{2603}", Role::Document), plain + 1);
}

#[test]
fn hostile_texts_are_encoded() {
    let huge = "store crash ".repeat(90_000);
    let one_word = "x".repeat(1 << 20);
    let controls: String = (0u8..32).chain([127]).map(char::from).collect();
    let texts = [
        "",
        " ",
        huge.as_str(),
        one_word.as_str(),
        controls.as_str(),
        "\u{0}\u{feff}\u{202e}\u{fffd}",
        "[CLS] [SEP] [MASK] <s> </s> <pad> [Q] [D] ",
        "e\u{301}\u{301}\u{301} \u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467}",
    ];
    for name in [
        "st-bert-mean",
        "pylate-roberta-attend",
        "xtr-t5",
        "pylate-modernbert",
    ] {
        let encoder = open(&fixture(name)).unwrap();
        for role in [Role::Query, Role::Document] {
            let encoded = encoder.encode(&texts, role).unwrap();
            for (text, vectors) in texts.iter().zip(encoded) {
                let spans = encoder.spans(text, role).unwrap();
                assert_eq!(spans.len(), vectors.rows(), "{name}");
                assert!(spans.into_iter().flatten().all(|s| text.get(s).is_some()));
            }
        }
        assert!(encoder.encode(&[], Role::Query).unwrap().is_empty());
    }
}

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
        let mut lengths = vec![0, 1, 7, 8, 9, 20, 100, whole.len() / 2, whole.len() - 1];
        lengths.retain(|l| *l < whole.len());
        for len in lengths {
            fs::write(&path, &whole[..len]).unwrap();
            println!("{name}/{file} cut to {len} of {}", whole.len());
            assert_error(dir.path(), &[file.rsplit('/').next().unwrap()]);
        }
    }
    // NaN.
    let dir = copy("st-bert-mean");
    let path = dir.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.len() - 4;
    bytes[at..].copy_from_slice(&f32::NAN.to_le_bytes());
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

    /// Any text: as many spans as rows, all inside the text, rows of length one.
    #[test]
    fn any_text_is_encoded(text in "\\PC{0,40}|[ -~\\n\\t\\u{130}\\u{df}]{0,60}", which in 0usize..4) {
        let names = ["pylate-bert", "pylate-roberta-attend", "xtr-t5", "st-xlmr-rare"];
        let encoder = open(&fixture(names[which])).unwrap();
        for role in [Role::Query, Role::Document] {
            let vectors = &encoder.encode(&[&text], role).unwrap()[0];
            let spans = encoder.spans(&text, role).unwrap();
            prop_assert_eq!(spans.len(), vectors.rows());
            prop_assert!(spans.into_iter().flatten().all(|s| text.get(s).is_some()));
            for row in vectors.iter() {
                let norm = row.iter().map(|x| x * x).sum::<f32>();
                prop_assert!((norm - 1.0).abs() < 1e-4);
            }
        }
    }
}

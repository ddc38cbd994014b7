//! What the loader makes of a folder: kinds, identity, spans, any text, and (in
//! `errors`) what it says of folders that are not as they should be.
#![allow(clippy::unwrap_used)]

mod errors;
mod support;

use std::fs;

use keyfold_core::{Encoder, ModelFolder, Role};
use keyfold_text::{LateInteractionEncoder, LoadOptions, SentenceEncoder};
use proptest::prelude::*;
use serde_json::json;
use support::{copy, edit, fixture, open, rows};

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
    assert_eq!(&text[last], "Store");

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
        let mut mean = [0.0; 32];
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
    let controls: String = (0u8..32).chain([127]).map(char::from).collect();
    let texts = [
        "",
        " ",
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
fn a_megabyte_of_text_is_cut_to_what_the_model_takes() {
    let words = "store crash ".repeat(90_000);
    let one_word = "x".repeat(1 << 20);
    // One with word pieces, one with byte pairs, one with sentence pieces.
    for (name, most) in [
        ("pylate-bert", 180),
        ("pylate-roberta-attend", 40),
        ("xtr-t5", 512),
    ] {
        let encoder = open(&fixture(name)).unwrap();
        let encoded = encoder
            .encode(&[&words, &one_word], Role::Document)
            .unwrap();
        assert_eq!(encoded[0].rows(), most, "{name}");
        assert!((1..=most).contains(&encoded[1].rows()), "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

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

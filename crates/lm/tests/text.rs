//! Tokenizers and chat templates beside the reference libraries (parity/lm_text.py).

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use keyfold_core::ModelFolder;
use keyfold_lm::{ChatTemplate, Gguf, Message, ModelFile, SpecialTokens, Tokenizer};
use proptest::prelude::*;
use serde_json::Value as Json;

const BYTE_LEVEL: [&str; 4] = ["gpt-2", "smollm", "llama-bpe", "qwen2"];
const PIECES: [&str; 2] = ["pieces", "pieces-no-prefix"];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures-text")
        .join(name)
}

fn json(name: &str) -> Json {
    serde_json::from_slice(&std::fs::read(fixture(name)).unwrap()).unwrap()
}

fn from_gguf(name: &str) -> Tokenizer {
    let file = Gguf::open(&fixture(&format!("{name}.gguf"))).unwrap();
    Tokenizer::from_gguf(&file).unwrap()
}

fn from_json(name: &str) -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    let there = folder.path().join("tokenizer.json");
    std::fs::copy(fixture(&format!("{name}.json")), there).unwrap();
    let folder = ModelFolder {
        name: name.to_owned(),
        path: folder.path().to_owned(),
    };
    Tokenizer::from_folder(&folder).unwrap()
}

fn ids(value: &Json) -> Vec<u32> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|id| id.as_u64().unwrap() as u32)
        .collect()
}

fn strings(value: &Json) -> Vec<String> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s.as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn every_kind_gives_the_ids_of_its_reference() {
    let all = json("tokenizers.json");
    let texts = strings(&all["texts"]);
    for case in all["tokenizers"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let mut tokenizers = vec![("gguf", from_gguf(name))];
        if BYTE_LEVEL.contains(&name) {
            tokenizers.push(("json", from_json(name)));
        }
        for (kind, tokenizer) in tokenizers {
            let special = [
                ("plain", SpecialTokens::Plain),
                ("parsed", SpecialTokens::Parse),
            ];
            for (key, special) in special {
                let Some(expected) = case[key].as_array() else {
                    continue;
                };
                for (text, expected) in texts.iter().zip(expected) {
                    let found = tokenizer.encode(text, special).unwrap();
                    assert_eq!(found, ids(expected), "{name} {kind} {key} {text:?}");
                }
            }
            // What was decoded is what was parsed, or plain where nothing is parsed.
            let encoded = case["parsed"]
                .as_array()
                .or(case["plain"].as_array())
                .unwrap();
            for (encoded, decoded) in encoded.iter().zip(strings(&case["decoded"])) {
                assert_eq!(tokenizer.decode(&ids(encoded)), decoded, "{name} {kind}");
            }
        }
    }
}

#[test]
fn special_tokens_in_what_a_user_wrote_stay_characters() {
    let text = "<|end|> and <|turn|>";
    for name in BYTE_LEVEL {
        for tokenizer in [from_gguf(name), from_json(name)] {
            let [end, turn] = ["<|end|>", "<|turn|>"].map(|t| tokenizer.id(t).unwrap());
            let plain = tokenizer.encode(text, SpecialTokens::Plain).unwrap();
            assert!(!plain.contains(&end) && !plain.contains(&turn), "{name}");
            assert_eq!(tokenizer.decode(&plain), text);
            let parsed = tokenizer.encode(text, SpecialTokens::Parse).unwrap();
            assert!(parsed.contains(&end) && parsed.contains(&turn), "{name}");
            assert_eq!(tokenizer.decode(&parsed), " and ");
        }
    }
}

#[test]
fn what_is_around_a_text_is_known() {
    let tokenizer = from_gguf("llama-bpe");
    let begin = tokenizer.id("<|begin|>").unwrap();
    assert_eq!(
        (tokenizer.prefix(), tokenizer.bos()),
        (&[begin][..], Some(begin))
    );
    assert_eq!(tokenizer.eos(), [tokenizer.id("<|end|>").unwrap()]);
    assert_eq!(from_json("llama-bpe").prefix(), [begin]);
    assert!(from_gguf("qwen2").prefix().is_empty());
    assert!(from_json("qwen2").prefix().is_empty());
    assert_eq!(from_gguf("pieces").prefix(), [1]);

    // The same vocabulary in a folder and in a GGUF file of the models.
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    for name in ["llama", "gguf-llama-f16"] {
        let tokenizer = ModelFile::open(&models.join(name))
            .unwrap()
            .tokenizer()
            .unwrap();
        assert_eq!(
            (tokenizer.prefix(), tokenizer.eos()),
            (&[256][..], &[257][..]),
            "{name}"
        );
        assert_eq!(tokenizer.vocab_size(), 260);
        assert_eq!(tokenizer.token(256).unwrap(), "<|begin|>");
        assert_eq!(
            tokenizer.encode("é", SpecialTokens::Plain).unwrap(),
            [0xC3, 0xA9]
        );
    }
}

#[test]
fn odd_vocabularies_are_refused_by_name() {
    let refused = |name: &str, from: &[u8], to: &[u8]| {
        let mut bytes = std::fs::read(fixture(name)).unwrap();
        let at = bytes.windows(from.len()).position(|w| w == from).unwrap();
        bytes[at..at + from.len()].copy_from_slice(to);
        let file = Gguf::from_bytes(Path::new("x.gguf"), bytes).unwrap();
        Tokenizer::from_gguf(&file).unwrap_err().to_string()
    };
    let message = refused("smollm.gguf", b"smollm\x15", b"smollo\x15");
    assert!(
        message.contains("'tokenizer.ggml.pre' is 'smollo'"),
        "{message}"
    );
    let message = refused(
        "gpt-2.gguf",
        b"tokenizer.ggml.merges",
        b"tokenizer.ggml.merger",
    );
    assert!(
        message.contains("'tokenizer.ggml.merges' is missing"),
        "{message}"
    );
    let message = refused(
        "gpt-2.gguf",
        b"tokenizer.ggml.tokens",
        b"tokenizer.ggml.tokenz",
    );
    assert!(message.contains("no vocabulary"), "{message}");
    let message = refused(
        "pieces.gguf",
        b"tokenizer.ggml.scores",
        b"tokenizer.ggml.scorez",
    );
    assert!(
        message.contains("'tokenizer.ggml.scores' is missing"),
        "{message}"
    );
}

/// Tokenizers that give back every text (Qwen2 composes its characters).
fn every_kind() -> &'static [(&'static str, Tokenizer)] {
    static KINDS: OnceLock<Vec<(&str, Tokenizer)>> = OnceLock::new();
    let names = BYTE_LEVEL
        .iter()
        .chain(&PIECES)
        .filter(|name| **name != "qwen2");
    KINDS.get_or_init(|| names.map(|name| (*name, from_gguf(name))).collect())
}

/// All that is shown, and whether any of it was a broken character.
fn streamed(tokenizer: &Tokenizer, context: &[u32], ids: &[u32]) -> (String, bool) {
    let mut stream = tokenizer.stream(context);
    let parts: Vec<String> = ids.iter().map(|&id| stream.push(id)).collect();
    let broken = parts.iter().any(|part| part.contains('\u{FFFD}'));
    (parts.concat() + &stream.finish(), broken)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn streaming_shows_the_text_in_whole_characters(text in "[ -~\\n]{0,8}\\PC{0,12}(你|😀|é|a ){0,6}") {
        prop_assume!(!text.contains('\u{FFFD}'));
        for (name, tokenizer) in every_kind() {
            let ids = tokenizer.encode(&text, SpecialTokens::Plain).unwrap();
            let (shown, broken) = streamed(tokenizer, &[], &ids);
            prop_assert_eq!(&shown, &text, "{}", name);
            prop_assert!(!broken);
            // The rest of a text after its beginning.
            let cut = ids.len() / 2;
            let begun = tokenizer.decode(&ids[..cut]);
            if !begun.contains('\u{FFFD}') {
                let (rest, _) = streamed(tokenizer, &ids[..cut], &ids[cut..]);
                prop_assert_eq!(begun + &rest, text.clone(), "{}", name);
            }
        }
    }

    #[test]
    fn streaming_of_any_ids_ends_with_all_of_their_text(ids in prop::collection::vec(0u32..450, 0..40)) {
        let (_, tokenizer) = &every_kind()[0];
        let (shown, _) = streamed(tokenizer, &[], &ids);
        prop_assert_eq!(shown, tokenizer.decode(&ids));
    }
}

#[test]
fn templates_write_what_jinja_writes() {
    let all = json("chat.json");
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(all["now"].as_u64().unwrap());
    let cases = all["cases"].as_array().unwrap();
    assert!(cases.len() > 50);
    for case in cases {
        let name = case["template"].as_str().unwrap();
        let source = all["templates"][name].as_str().unwrap();
        let template = ChatTemplate::new(source, "<|begin|>", "<|end|>").unwrap();
        let messages: Vec<Message> = case["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(message)
            .collect();
        let text = template.render(&messages, case["prompt"].as_bool().unwrap(), now);
        match case["refused"].as_str() {
            None => assert_eq!(
                text.unwrap(),
                case["text"].as_str().unwrap(),
                "{name} {messages:?}"
            ),
            Some(why) => {
                let message = text.unwrap_err().to_string();
                assert!(message.contains(why), "{message}");
            }
        }
    }
}

#[test]
fn a_long_conversation_is_not_too_many_steps() {
    let all = json("chat.json");
    let turn = |i: usize| Message {
        role: ["user", "assistant"][i % 2].to_owned(),
        content: "word ".repeat(1_000),
    };
    let messages: Vec<Message> = (0..300).map(turn).collect();
    for (name, source) in all["templates"].as_object().unwrap() {
        let template = ChatTemplate::new(source.as_str().unwrap(), "", "").unwrap();
        let text = template
            .render(&messages, true, SystemTime::UNIX_EPOCH)
            .unwrap();
        assert!(text.len() > 300 * 4_900, "{name}");
    }
}

fn message(json: &Json) -> Message {
    let text = |key: &str| json[key].as_str().unwrap().to_owned();
    Message {
        role: text("role"),
        content: text("content"),
    }
}

#[test]
fn endless_and_broken_templates_are_errors() {
    let render = |source: &str| {
        let template = ChatTemplate::new(source, "", "")?;
        template.render(&[], false, SystemTime::UNIX_EPOCH)
    };
    let error = |source: &str| render(source).unwrap_err().to_string();
    let loops = "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}";
    assert!(error(loops).contains("too many steps"), "{}", error(loops));
    let grows = "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(99) %}\
                 {% set ns.x = ns.x ~ ns.x %}{% endfor %}";
    assert!(error(grows).contains("too many steps"), "{}", error(grows));
    let itself = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}";
    assert!(error(itself).contains("template"), "{}", error(itself));
    assert!(error("{% if %}").contains("template"));
    assert!(error("{% include '/etc/passwd' %}").contains("template"));
    assert!(error("{{ strftime_now('%Q') }}").contains("template"));
    assert_eq!(
        render("{{ strftime_now('%Y-%m-%d %H:%M') }}").unwrap(),
        "1970-01-01 00:00"
    );
}

#[test]
fn templates_are_found_where_models_have_them() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let messages = [Message {
        role: "user".to_owned(),
        content: " Hi ".to_owned(),
    }];
    let expected = "<|turn|>user\nHi<|end|>\n<|turn|>assistant\n";
    for name in ["llama", "gguf-qwen3"] {
        let file = ModelFile::open(&models.join(name)).unwrap();
        let template = file.chat_template().unwrap().unwrap();
        let text = template
            .render(&messages, true, SystemTime::UNIX_EPOCH)
            .unwrap();
        assert_eq!(text, expected, "{name}");
    }
    let without = ModelFile::open(&models.join("qwen2")).unwrap();
    assert!(without.chat_template().unwrap().is_none());

    let folder = tempfile::tempdir().unwrap();
    let found = ModelFolder {
        name: "x".to_owned(),
        path: folder.path().to_owned(),
    };
    let list = r#"{"chat_template": [{"name": "tools", "template": "no"}, {"name": "default", "template": "yes"}]}"#;
    std::fs::write(folder.path().join("tokenizer_config.json"), list).unwrap();
    let render = || {
        let template = ChatTemplate::from_folder(&found).unwrap().unwrap();
        template
            .render(&messages, true, SystemTime::UNIX_EPOCH)
            .unwrap()
    };
    assert_eq!(render(), "yes");
    std::fs::write(
        folder.path().join("chat_template.jinja"),
        "a file of its own",
    )
    .unwrap();
    assert_eq!(render(), "a file of its own");
}

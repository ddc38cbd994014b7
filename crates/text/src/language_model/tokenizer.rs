//! tokenizer.json of a model of bytes: byte-level, without merges.

use std::path::Path;

use keyfold_core::atomic;
use keyfold_train::LearnError;
use serde_json::{Map, Value, json};

/// What follows the 256 bytes: begin, end, separator, padding, and the mask of models that
/// guess what it hides.
pub(crate) const SPECIAL: [&str; 5] = ["<bos>", "<eos>", "<sep>", "<pad>", "<mask>"];

/// The bytes and the first four of [`SPECIAL`].
pub(crate) const TOKENS: usize = 260;

/// The character by which byte-level tokenizers (Radford et al. 2019) write each byte: its own
/// where it is printable, else the next one from 256 on.
fn characters() -> Vec<char> {
    let printable = |b: u32| {
        (0x21..=0x7e).contains(&b) || (0xa1..=0xac).contains(&b) || (0xae..=0xff).contains(&b)
    };
    let mut next = 256;
    let mut of_byte = |b: u32| {
        let code = if printable(b) {
            b
        } else {
            next += 1;
            next - 1
        };
        char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
    };
    (0..256).map(&mut of_byte).collect()
}

/// Writes `tokenizer.json` and `tokenizer_config.json` with `tokens` tokens, which are the bytes
/// and some of [`SPECIAL`]; ids are bytes.
pub(crate) fn write(folder: &Path, tokens: usize) -> Result<(), LearnError> {
    let mut vocab: Map<String, Value> = characters()
        .into_iter()
        .enumerate()
        .map(|(id, c)| (c.to_string(), id.into()))
        .collect();
    let added: Vec<Value> = SPECIAL
        .iter()
        .zip(256..tokens)
        .map(|(content, id)| {
            vocab.insert((*content).to_owned(), id.into());
            json!({
                "id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true
            })
        })
        .collect();
    let bytes = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false
    });
    let begin = json!({ "SpecialToken": { "id": "<bos>", "type_id": 0 } });
    let text = |id: &str, type_id: u8| json!({ "Sequence": { "id": id, "type_id": type_id } });
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": bytes,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, text("A", 0)],
            "pair": [begin, text("A", 0), text("B", 1)],
            "special_tokens": { "<bos>": { "id": "<bos>", "ids": [256], "tokens": ["<bos>"] } }
        },
        "decoder": bytes,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": false, "vocab": vocab, "merges": []
        }
    });
    let mut config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<bos>", "eos_token": "<eos>",
        "sep_token": "<sep>", "pad_token": "<pad>", "add_bos_token": true,
        "clean_up_tokenization_spaces": false
    });
    if tokens > TOKENS {
        config["mask_token"] = SPECIAL[4].into();
    }
    for (name, value) in [
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", config),
    ] {
        let path = folder.join(name);
        let text = serde_json::to_string_pretty(&value).unwrap_or_default();
        atomic::write(&path, text.as_bytes()).map_err(LearnError::io(&path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_becomes_its_bytes_and_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), TOKENS).unwrap();
        let tokenizer =
            tokenizers::Tokenizer::from_file(folder.path().join("tokenizer.json")).unwrap();
        let text = "key=12;\n\tNaïve – 日本 \u{0}\u{7f}";
        let encoded = tokenizer.encode(text, true).unwrap();
        let bytes: Vec<u32> = text.bytes().map(u32::from).collect();
        assert_eq!(encoded.get_ids()[0], 256);
        assert_eq!(encoded.get_ids()[1..], bytes);
        assert_eq!(tokenizer.decode(encoded.get_ids(), true).unwrap(), text);
    }
}

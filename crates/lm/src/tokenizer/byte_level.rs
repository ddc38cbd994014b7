//! Byte-level BPE (Radford and others, 2019, Language Models are Unsupervised Multitask
//! Learners) from GGUF metadata.
//!
//! A text is first cut into words by regular expressions, which the files only name
//! (`tokenizer.ggml.pre`); the bytes of a word, written as printable characters, are then
//! joined by the list of merges.

use std::collections::HashSet;

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior};

use super::library::{Library, quietly};
use super::{Vocabulary, token_kind};
use crate::config::Fields;
use crate::error::LmError;
use crate::file::Gguf;

/// How words are cut, and what else a name of a pre-tokeniser stands for.
struct Words {
    names: &'static [&'static str],
    /// Applied in turn, each to the parts that the one before left.
    patterns: &'static [&'static str],
    /// A word that is in the vocabulary is not cut, whatever the merges are.
    ignore_merges: bool,
    /// A text begins with a token of its own, unless the file says otherwise.
    add_bos: bool,
    /// Characters are composed (Unicode's form C) first.
    nfc: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const WORDS: [Words; 8] = [
    Words {
        names: &["default"],
        patterns: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
        ignore_merges: false,
        add_bos: false,
        nfc: false,
    },
    Words {
        names: &["gpt-2", "mpt", "olmo", "phi-2", "jais", "trillion"],
        patterns: &[GPT2],
        ignore_merges: false,
        add_bos: false,
        nfc: false,
    },
    Words {
        names: &[
            "smollm",
            "starcoder",
            "refact",
            "command-r",
            "codeshell",
            "exaone",
            "minerva-7b",
        ],
        patterns: &[r"\p{N}", GPT2],
        ignore_merges: false,
        add_bos: false,
        nfc: false,
    },
    Words {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "pixtral",
            "lfm2",
        ],
        patterns: &[LLAMA3],
        ignore_merges: true,
        add_bos: true,
        nfc: false,
    },
    Words {
        names: &["smaug-bpe", "dbrx"],
        patterns: &[LLAMA3],
        ignore_merges: false,
        add_bos: false,
        nfc: false,
    },
    Words {
        names: &["qwen2", "deepseek-r1-qwen", "megrez"],
        patterns: &[QWEN2],
        ignore_merges: false,
        add_bos: false,
        nfc: true,
    },
    Words {
        names: &["stablelm2", "hunyuan"],
        patterns: &[QWEN2],
        ignore_merges: false,
        add_bos: false,
        nfc: false,
    },
    Words {
        names: &["tekken"],
        patterns: &[TEKKEN],
        ignore_merges: true,
        add_bos: true,
        nfc: false,
    },
];

/// The tokenizer, and whether a text begins with a token of its own.
pub(super) fn read(
    file: &Gguf,
    fields: &Fields,
    vocabulary: &Vocabulary,
) -> Result<(Library, bool), LmError> {
    const PRE: &str = "tokenizer.ggml.pre";
    let pre = fields.text(PRE)?.unwrap_or_else(|| "default".to_owned());
    let words = WORDS
        .iter()
        .find(|words| words.names.contains(&&*pre))
        .ok_or_else(|| {
            let known: Vec<&str> = WORDS
                .iter()
                .flat_map(|words| words.names)
                .copied()
                .collect();
            fields.wrong(PRE, format!("is '{pre}'; known are {}", known.join(", ")))
        })?;
    let merges = merges(file, fields, vocabulary)?;
    let tokenizer =
        quietly(|| build(vocabulary, merges, words)).map_err(|what| LmError::Tokenizer {
            path: vocabulary.path.to_owned(),
            what,
        })?;
    Ok((Library::new(tokenizer), words.add_bos))
}

/// Pairs of tokens in the order in which they are joined. Pairs that the vocabulary has no
/// token for are left out, as they join to nothing.
fn merges(
    file: &Gguf,
    fields: &Fields,
    vocabulary: &Vocabulary,
) -> Result<Vec<(String, String)>, LmError> {
    const MERGES: &str = "tokenizer.ggml.merges";
    let missing = || fields.wrong(MERGES, "is missing");
    let known: HashSet<&str> = vocabulary.tokens.iter().copied().collect();
    let mut merges = Vec::new();
    for pair in file.texts(MERGES)?.ok_or_else(missing)? {
        // The first token may itself begin with a blank in odd vocabularies.
        let cut = pair.char_indices().skip(1).find(|&(_, c)| c == ' ');
        let Some((at, _)) = cut else {
            return Err(fields.wrong(MERGES, format!("holds '{pair}', which is no pair")));
        };
        let (left, right) = (&pair[..at], &pair[at + 1..]);
        let joined = [left, right].concat();
        if [left, right, &joined]
            .iter()
            .all(|token| known.contains(token))
        {
            merges.push((left.to_owned(), right.to_owned()));
        }
    }
    Ok(merges)
}

fn build(
    vocabulary: &Vocabulary,
    merges: Vec<(String, String)>,
    words: &Words,
) -> tokenizers::Result<tokenizers::Tokenizer> {
    let mut vocab = Vocab::default();
    for (id, token, _) in vocabulary.iter() {
        if let Some(other) = vocab.insert(token.to_owned(), id) {
            return Err(format!("token '{token}' is there twice, as {other} and {id}").into());
        }
    }
    let bpe = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .ignore_merges(words.ignore_merges)
        .build()?;
    let mut steps = Vec::new();
    for pattern in words.patterns {
        let pattern = SplitPattern::Regex((*pattern).to_owned());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?;
        steps.push(PreTokenizerWrapper::Split(split));
    }
    let bytes = ByteLevel::new(false, false, false);
    steps.push(PreTokenizerWrapper::ByteLevel(bytes));
    let mut tokenizer = tokenizers::Tokenizer::new(bpe);
    tokenizer.with_pre_tokenizer(Some(Sequence::new(steps)));
    tokenizer.with_decoder(Some(bytes));
    if words.nfc {
        tokenizer.with_normalizer(Some(NFC))?;
    }

    let marked = |wanted: i32, special: bool| {
        let all = vocabulary
            .iter()
            .filter(move |&(_, token, kind)| kind == wanted && !token.is_empty());
        all.map(move |(_, token, _)| AddedToken::from(token, special).normalized(false))
    };
    tokenizer.add_special_tokens(marked(token_kind::CONTROL, true).collect::<Vec<_>>())?;
    tokenizer.add_tokens(marked(token_kind::USER_DEFINED, false).collect::<Vec<_>>())?;
    Ok(tokenizer)
}

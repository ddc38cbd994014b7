//! Text to token ids and back.
//!
//! Three kinds: `tokenizer.json` (by the `tokenizers` crate), and from GGUF metadata
//! byte-level BPE and SentencePiece pieces with scores.
//!
//! What a user types is [plain](SpecialTokens::Plain): `<|im_end|>` in it is six
//! characters and more, not the end of a turn. Only a prompt that a chat template wrote
//! is [parsed](SpecialTokens::Parse).

mod byte_level;
mod library;
mod pieces;
mod stream;

use std::path::Path;

use keyfold_core::ModelFolder;
use serde_json::Value as Json;

use crate::config::Fields;
use crate::error::{LmError, field};
use crate::file::Gguf;

use library::Library;
use pieces::Pieces;
pub use stream::TextStream;

/// What special tokens that are written out in a text become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialTokens {
    /// Characters like all others: for what people wrote.
    Plain,
    /// Special tokens: for what a chat template wrote.
    Parse,
}

/// A model's vocabulary and how text is cut into it.
#[derive(Debug)]
pub struct Tokenizer {
    kind: Kind,
    vocab_size: usize,
    bos: Option<u32>,
    eos: Vec<u32>,
    prefix: Vec<u32>,
}

#[derive(Debug)]
enum Kind {
    Library(Box<Library>),
    Pieces(Box<Pieces>),
}

/// Tokens that end a turn in files that only name the end of a text.
const ENDS: [&str; 6] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|end_of_turn|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|eom_id|>",
];

impl Tokenizer {
    /// Reads `tokenizer.json` of a model's folder, and what `tokenizer_config.json` says of
    /// the tokens around a text.
    pub fn from_folder(folder: &ModelFolder) -> Result<Self, LmError> {
        let path = folder.file("tokenizer.json");
        let json = folder.read("tokenizer.json", "it holds the vocabulary")?;
        let library = Library::from_json(&path, &json)?;
        let config: Option<Json> = folder.json_optional("tokenizer_config.json")?;
        let named = |name: &str| library.id(&token_text(config.as_ref()?, name)?);
        let (bos, eos) = (named("bos_token"), named("eos_token"));
        let add_bos = config
            .as_ref()
            .and_then(|c| c.get("add_bos_token")?.as_bool());
        let prefix = match (add_bos, bos) {
            (Some(true), Some(bos)) => vec![bos],
            (Some(false), _) => Vec::new(),
            _ => library.prefix(&path)?,
        };
        Ok(Self {
            vocab_size: library.vocab_size(),
            bos,
            eos: eos.into_iter().collect(),
            prefix,
            kind: Kind::Library(Box::new(library)),
        })
    }

    /// Makes the tokenizer that GGUF metadata describes.
    pub fn from_gguf(file: &Gguf) -> Result<Self, LmError> {
        const MODEL: &str = "tokenizer.ggml.model";
        let fields = Fields::gguf(file);
        let vocabulary = Vocabulary::read(file, &fields)?;
        let (kind, begins, default_bos, default_eos) = match fields.text(MODEL)?.as_deref() {
            Some("gpt2") => {
                let (library, begins) = byte_level::read(file, &fields, &vocabulary)?;
                (Kind::Library(Box::new(library)), begins, None, None)
            }
            Some("llama") => {
                let pieces = Pieces::read(file, &fields, &vocabulary)?;
                (Kind::Pieces(Box::new(pieces)), true, Some(1), Some(2))
            }
            Some(other) => {
                let what = format!(
                    "is '{other}'; gpt2 (byte-level BPE) and llama (pieces with scores) are read"
                );
                return Err(fields.wrong(MODEL, what));
            }
            None => return Err(fields.wrong(MODEL, "is missing; the file has no tokenizer")),
        };
        let token = |name: &str| -> Result<Option<u32>, LmError> {
            let key = format!("tokenizer.ggml.{name}_token_id");
            match fields.token(&key)? {
                Some(id) if id as usize >= vocabulary.tokens.len() => {
                    Err(fields.wrong(&key, format!("is {id}, outside of the vocabulary")))
                }
                id => Ok(id),
            }
        };
        let bos = token("bos")?.or(default_bos);
        let mut eos: Vec<u32> = token("eos")?.or(default_eos).into_iter().collect();
        let named = |end: &&str| vocabulary.control(end);
        for id in [token("eot")?, token("eom")?]
            .into_iter()
            .flatten()
            .chain(ENDS.iter().filter_map(named))
        {
            if !eos.contains(&id) {
                eos.push(id);
            }
        }
        let begins = fields
            .flag("tokenizer.ggml.add_bos_token")?
            .unwrap_or(begins);
        Ok(Self {
            kind,
            vocab_size: vocabulary.tokens.len(),
            bos,
            eos,
            prefix: bos.filter(|_| begins).into_iter().collect(),
        })
    }

    /// The ids of a text, without what begins a text ([`Tokenizer::prefix`]).
    pub fn encode(&self, text: &str, special: SpecialTokens) -> Result<Vec<u32>, LmError> {
        match &self.kind {
            Kind::Library(library) => library.encode(text, special),
            Kind::Pieces(pieces) => Ok(pieces.encode(text, special)),
        }
    }

    /// What a text that no chat template wrote begins with: one token or none.
    pub fn prefix(&self) -> &[u32] {
        &self.prefix
    }

    /// The text of ids, special tokens left out. What is no whole character becomes U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        match &self.kind {
            Kind::Library(library) => library.decode(ids),
            Kind::Pieces(pieces) => pieces.decode(ids),
        }
    }

    /// Text of ids that come one by one, after those of `context` (a prompt, or nothing).
    pub fn stream<'a>(&'a self, context: &[u32]) -> TextStream<'a> {
        TextStream::new(self, context)
    }

    /// Number of ids.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// A token as the vocabulary writes it.
    pub fn token(&self, id: u32) -> Option<String> {
        match &self.kind {
            Kind::Library(library) => library.token(id),
            Kind::Pieces(pieces) => pieces.token(id),
        }
    }

    /// The id of a token as the vocabulary writes it.
    pub fn id(&self, token: &str) -> Option<u32> {
        match &self.kind {
            Kind::Library(library) => library.id(token),
            Kind::Pieces(pieces) => pieces.id(token),
        }
    }

    /// What begins a text, whether or not it must.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// What ends a text or a turn, by the tokenizer's files; the model's
    /// [configuration](crate::config::Config::eos_token_ids) may name more.
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }
}

/// A token that `tokenizer_config.json` names, as a text or as an object with one.
pub(crate) fn token_text(config: &Json, name: &str) -> Option<String> {
    let value = config.get(name)?;
    let text = value.as_str().or_else(|| value.get("content")?.as_str())?;
    Some(text.to_owned())
}

/// Kinds of tokens in GGUF.
mod token_kind {
    pub(super) const UNKNOWN: i32 = 2;
    pub(super) const CONTROL: i32 = 3;
    pub(super) const USER_DEFINED: i32 = 4;
    pub(super) const BYTE: i32 = 6;
}

/// The tokens of a GGUF file.
struct Vocabulary<'a> {
    path: &'a Path,
    tokens: Vec<&'a str>,
    kinds: Vec<i32>,
}

impl<'a> Vocabulary<'a> {
    fn read(file: &'a Gguf, fields: &Fields) -> Result<Self, LmError> {
        const TOKENS: &str = "tokenizer.ggml.tokens";
        const KINDS: &str = "tokenizer.ggml.token_type";
        let missing = || fields.wrong(TOKENS, "is missing; the file has no vocabulary");
        let tokens = file.texts(TOKENS)?.ok_or_else(missing)?;
        if tokens.is_empty() {
            return Err(fields.wrong(TOKENS, "is empty"));
        }
        let kinds = match file.numbers(KINDS)? {
            Some(kinds) if kinds.len() == tokens.len() => kinds.iter().map(|&k| k as i32).collect(),
            Some(kinds) => {
                let what = format!("has {} entries for {} tokens", kinds.len(), tokens.len());
                return Err(field(file.path(), KINDS, what));
            }
            None => vec![1; tokens.len()],
        };
        let path = file.path();
        Ok(Self {
            path,
            tokens,
            kinds,
        })
    }

    /// Ids with their texts and kinds.
    fn iter(&self) -> impl Iterator<Item = (u32, &'a str, i32)> + '_ {
        let both = self.tokens.iter().zip(&self.kinds);
        (0..)
            .zip(both)
            .map(|(id, (&token, &kind))| (id, token, kind))
    }

    /// The id of a control token.
    fn control(&self, token: &str) -> Option<u32> {
        let mut all = self.iter();
        let found = all.find(|&(_, t, kind)| t == token && kind == token_kind::CONTROL);
        found.map(|(id, ..)| id)
    }
}

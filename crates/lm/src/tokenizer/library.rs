//! Tokenizers of the `tokenizers` crate.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::OnceLock;

use super::SpecialTokens;
use crate::error::LmError;

/// A tokenizer that takes special tokens for characters, and one that knows them; the
/// second is made when it is first asked for.
#[derive(Debug)]
pub(super) struct Library {
    plain: tokenizers::Tokenizer,
    parsing: OnceLock<tokenizers::Tokenizer>,
}

impl Library {
    pub(super) fn new(mut tokenizer: tokenizers::Tokenizer) -> Self {
        tokenizer.set_encode_special_tokens(true);
        Self {
            plain: tokenizer,
            parsing: OnceLock::new(),
        }
    }

    pub(super) fn from_json(path: &Path, json: &[u8]) -> Result<Self, LmError> {
        let tokenizer = quietly(|| {
            let mut tokenizer = tokenizers::Tokenizer::from_bytes(json)?;
            tokenizer.with_truncation(None)?;
            tokenizer.with_padding(None);
            Ok(tokenizer)
        });
        tokenizer.map(Self::new).map_err(|what| LmError::Tokenizer {
            path: path.to_owned(),
            what,
        })
    }

    fn parsing(&self) -> &tokenizers::Tokenizer {
        self.parsing.get_or_init(|| {
            let mut tokenizer = self.plain.clone();
            tokenizer.set_encode_special_tokens(false);
            tokenizer
        })
    }

    pub(super) fn encode(&self, text: &str, special: SpecialTokens) -> Result<Vec<u32>, LmError> {
        let tokenizer = match special {
            SpecialTokens::Plain => &self.plain,
            SpecialTokens::Parse => self.parsing(),
        };
        match quietly(|| tokenizer.encode_fast(text, false)) {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(what) => Err(LmError::Input {
                what: format!("the text cannot be cut into tokens: {what}"),
            }),
        }
    }

    /// What the post-processor puts before a text.
    pub(super) fn prefix(&self, path: &Path) -> Result<Vec<u32>, LmError> {
        let encoding = quietly(|| self.plain.encode("a", true)).map_err(|what| {
            let path = path.to_owned();
            LmError::Tokenizer { path, what }
        })?;
        let special = encoding.get_special_tokens_mask().iter();
        let special = special.take_while(|&&special| special == 1).count();
        Ok(encoding.get_ids()[..special].to_vec())
    }

    pub(super) fn decode(&self, ids: &[u32]) -> String {
        // Only decoders of other kinds of models can fail.
        quietly(|| self.plain.decode(ids, true)).unwrap_or_default()
    }

    pub(super) fn vocab_size(&self) -> usize {
        self.plain.get_vocab_size(true)
    }

    pub(super) fn token(&self, id: u32) -> Option<String> {
        self.plain.id_to_token(id)
    }

    pub(super) fn id(&self, token: &str) -> Option<u32> {
        self.plain.token_to_id(token)
    }
}

/// Runs code of the tokenizers crate; a panic in it becomes an error.
pub(super) fn quietly<T>(run: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => Err("the tokenizer stopped with an internal error".to_owned()),
    }
}

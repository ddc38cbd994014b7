//! From text to token ids, as the `transformers` library does it: blanks at
//! both ends are stripped, the text is lower-cased where the model asks for it,
//! special tokens are added, and what is too long is cut from the end, inside
//! the special tokens.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use keyfold_core::{EncodeError, ModelFolder};
use serde_json::Value;
use tokenizers::{Tokenizer, TruncationParams, TruncationStrategy};

use crate::backbone::Backbone;
use crate::error::{LoadError, invalid};
use keyfold_core::weights::{Weights, join};

const TOKENIZER: &str = "tokenizer.json";

/// A tokenizer with what a model's configuration says of it.
pub(crate) struct TextTokenizer {
    inner: Tokenizer,
    /// Name of the model, for errors.
    model: String,
    path: PathBuf,
    lowercase: bool,
    /// Special tokens by role (`mask_token`, `unk_token`, ...).
    roles: HashMap<String, String>,
    /// Longest input that the tokenizer's configuration allows.
    longest: Option<usize>,
    /// The files read, relative to the model's folder.
    names: Vec<String>,
}

/// The tokens of one text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tokens {
    pub(crate) ids: Vec<u32>,
    /// Bytes of the prepared text; `None` for the special tokens that were added.
    pub(crate) spans: Vec<Option<Range<usize>>>,
}

impl TextTokenizer {
    /// Reads the tokenizer in `subfolder` of a model.
    pub(crate) fn load(
        folder: &ModelFolder,
        subfolder: &str,
        lowercase: bool,
    ) -> Result<Self, LoadError> {
        let name = join(subfolder, TOKENIZER);
        let path = folder.file(&name);
        let bytes = folder.read(
            &name,
            "it turns text into tokens; save the model's tokenizer with a 'fast' tokenizer \
             class to make one",
        )?;
        let mut inner = quietly(|| Tokenizer::from_bytes(&bytes))
            .map_err(|reason| invalid(&path, format!("it is not a tokenizer: {reason}")))?;
        // Both are done here, since their limits come from the model's files.
        inner
            .with_truncation(None)
            .map_err(|e| invalid(&path, e.to_string()))?
            .with_padding(None);

        let mut names = vec![name];
        let mut roles = HashMap::new();
        let mut longest = None;
        for file in ["special_tokens_map.json", "tokenizer_config.json"] {
            let file = join(subfolder, file);
            let Some(Value::Object(fields)) = folder.json_optional::<Value>(&file)? else {
                continue;
            };
            for (key, value) in &fields {
                if key.ends_with("_token")
                    && let Some(content) = token_content(value)
                {
                    roles.insert(key.clone(), content.to_owned());
                }
            }
            if let Some(n) = fields.get("model_max_length").and_then(Value::as_f64)
                && (1.0..1e9).contains(&n)
            {
                longest = Some(n as usize);
            }
            names.push(file);
        }
        Ok(Self {
            inner,
            model: folder.name.clone(),
            path,
            lowercase,
            roles,
            longest,
            names,
        })
    }

    /// The files read, relative to the model's folder.
    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    /// The file that errors name.
    pub(crate) fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// `model_max_length` of the tokenizer's configuration, if it is a real limit.
    pub(crate) fn longest(&self) -> Option<usize> {
        self.longest
    }

    /// One more than the largest id that can come out.
    pub(crate) fn ids_end(&self) -> usize {
        let largest = self.inner.get_vocab(true).into_values().max();
        largest.map_or(0, |id| id as usize + 1)
    }

    /// Refuses weights without a vector for every token.
    pub(crate) fn require(&self, backbone: &Backbone, weights: &Weights) -> Result<(), LoadError> {
        let (known, vectors) = (self.ids_end(), backbone.vocabulary());
        if known > vectors {
            return Err(invalid(
                &self.path,
                format!(
                    "it knows {known} tokens, but {} has vectors for {vectors}; they do not belong \
                     together",
                    weights.path().display()
                ),
            ));
        }
        Ok(())
    }

    /// The text of every token, by id; empty where an id is not used.
    pub(crate) fn vocabulary(&self) -> Vec<String> {
        let mut all = vec![String::new(); self.ids_end()];
        for (text, id) in self.inner.get_vocab(true) {
            all[id as usize] = text;
        }
        all
    }

    /// The exact text of a token.
    pub(crate) fn text(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Id of a token by its exact text.
    pub(crate) fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Id of the special token with a role (`mask_token`), else of the first of
    /// the usual spellings that the vocabulary has.
    pub(crate) fn role_id(&self, role: &str, usual: &[&str]) -> Option<u32> {
        let named = self.roles.get(role).and_then(|token| self.id(token));
        named.or_else(|| usual.iter().find_map(|token| self.id(token)))
    }

    /// Tokenises `prompt + text` into at most `limit` tokens, special tokens included.
    pub(crate) fn tokens(
        &self,
        prompt: &str,
        text: &str,
        limit: usize,
    ) -> Result<Tokens, EncodeError> {
        self.run(&self.prepare(prompt, text), limit, false)
    }

    /// [`TextTokenizer::tokens`] with the bytes of `text` that each token stands
    /// for; `None` for special tokens and for the prompt's.
    pub(crate) fn tokens_with_spans(
        &self,
        prompt: &str,
        text: &str,
        limit: usize,
    ) -> Result<Tokens, EncodeError> {
        let mut tokens = self.run(&self.prepare(prompt, text), limit, true)?;
        let origins = self.origins(prompt, text);
        for span in &mut tokens.spans {
            *span = span
                .take()
                .and_then(|s| original_span(&origins, s, prompt.len(), text));
        }
        Ok(tokens)
    }

    /// The ids of a text between two others, in at most `limit` tokens: what is too much
    /// is cut from the end of the text, what stands around it stays.
    pub(crate) fn between(
        &self,
        before: &str,
        text: &str,
        after: &str,
        limit: usize,
    ) -> Result<Vec<u32>, EncodeError> {
        let inner = self.prepare("", text);
        let mut all = self.run(&format!("{before}{inner}{after}"), usize::MAX, true)?;
        let too_many = all.ids.len().saturating_sub(limit);
        if too_many > 0 {
            let special = all.spans.iter().rev().take_while(|s| s.is_none()).count();
            let end = self.bare(after)?.len() + special;
            let end = all.ids.len().saturating_sub(end);
            all.ids.drain(end.saturating_sub(too_many)..end);
        }
        Ok(all.ids)
    }

    /// Tokenises a text as it is, without stripping or lower-casing it first, with
    /// the bytes that each token stands for; only their number where there are more
    /// than `limit` and they shall not be `cut`.
    pub(crate) fn raw_tokens(
        &self,
        text: &str,
        limit: usize,
        cut: bool,
    ) -> Result<Result<Tokens, usize>, EncodeError> {
        let all = self.run(text, usize::MAX, true)?;
        match all.ids.len() {
            n if n <= limit => Ok(Ok(all)),
            _ if cut => self.run(text, limit, true).map(Ok),
            n => Ok(Err(n)),
        }
    }

    /// Cuts pairs of texts to `limit` tokens from now on: of the longer text first,
    /// as the cross-encoders' libraries do it.
    pub(crate) fn limit_pairs(&mut self, limit: usize) -> Result<(), LoadError> {
        let truncation = TruncationParams {
            max_length: limit,
            strategy: TruncationStrategy::LongestFirst,
            ..TruncationParams::default()
        };
        let done = self.inner.with_truncation(Some(truncation));
        done.map(|_| ())
            .map_err(|e| invalid(&self.path, e.to_string()))
    }

    /// The ids of two texts that are read together, and where the second begins.
    pub(crate) fn pair(&self, first: &str, second: &str) -> Result<(Vec<u32>, usize), EncodeError> {
        // Unlike encoders' libraries, those of cross-encoders leave blanks where they are.
        let encoding = quietly(|| self.inner.encode_fast((first, second), true));
        let encoding = encoding.map_err(|reason| EncodeError::Tokenizer {
            model: self.model.clone(),
            reason,
        })?;
        let types = encoding.get_type_ids();
        let second = types.iter().position(|&t| t == 1).unwrap_or(types.len());
        Ok((encoding.get_ids().to_vec(), second))
    }

    /// The ids of a text without any special token.
    pub(crate) fn bare(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        let encoding = quietly(|| self.inner.encode_fast(text, false));
        let encoding = encoding.map_err(|reason| EncodeError::Tokenizer {
            model: self.model.clone(),
            reason,
        })?;
        Ok(encoding.get_ids().to_vec())
    }

    fn prepare<'a>(&self, prompt: &str, text: &'a str) -> Cow<'a, str> {
        let joined: Cow<'a, str> = if prompt.is_empty() {
            Cow::Borrowed(text)
        } else {
            Cow::Owned(format!("{prompt}{text}"))
        };
        let stripped = match joined {
            Cow::Borrowed(s) => Cow::Borrowed(s.trim_matches(is_blank)),
            Cow::Owned(s) => Cow::Owned(s.trim_matches(is_blank).to_owned()),
        };
        if self.lowercase {
            Cow::Owned(stripped.to_lowercase())
        } else {
            stripped
        }
    }

    /// For every byte of the prepared text (and its end) the byte of
    /// `prompt + text` that it came from.
    fn origins(&self, prompt: &str, text: &str) -> Vec<usize> {
        let joined = format!("{prompt}{text}");
        let start = joined.len() - joined.trim_start_matches(is_blank).len();
        let stripped = joined.trim_matches(is_blank);
        let mut origins = Vec::with_capacity(stripped.len() + 1);
        for (at, c) in stripped.char_indices() {
            let len = if self.lowercase {
                c.to_lowercase().map(char::len_utf8).sum()
            } else {
                c.len_utf8()
            };
            origins.resize(origins.len() + len, start + at);
        }
        origins.push(start + stripped.len());
        origins
    }

    fn run(&self, prepared: &str, limit: usize, spans: bool) -> Result<Tokens, EncodeError> {
        let encoding = quietly(|| {
            if spans {
                self.inner.encode(prepared, true)
            } else {
                self.inner.encode_fast(prepared, true)
            }
        })
        .map_err(|reason| EncodeError::Tokenizer {
            model: self.model.clone(),
            reason,
        })?;
        let ids = encoding.get_ids();
        let added: Vec<bool> = encoding
            .get_special_tokens_mask()
            .iter()
            .map(|&m| m == 1)
            .collect();
        let keep = kept(&added, limit);
        Ok(Tokens {
            ids: keep.clone().map(|i| ids[i]).collect(),
            spans: keep
                .map(|i| {
                    let (from, to) = encoding.get_offsets()[i];
                    (spans && !added[i]).then_some(from..to)
                })
                .collect(),
        })
    }
}

/// Which tokens stay when at most `limit` may: the special ones at both ends and
/// the first of the rest.
fn kept(added: &[bool], limit: usize) -> impl Iterator<Item = usize> + Clone + use<> {
    let n = added.len();
    let front = added.iter().take_while(|&&a| a).count();
    let back = added[front..].iter().rev().take_while(|&&a| a).count();
    let content = n - front - back;
    let content_kept = content.min(limit.saturating_sub(front + back));
    (0..front + content_kept).chain(n - back..n).take(limit)
}

/// What Python's `str.strip` strips: Unicode blanks and four control characters.
fn is_blank(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

fn token_content(value: &Value) -> Option<&str> {
    value
        .as_str()
        .or_else(|| value.get("content").and_then(Value::as_str))
}

/// Maps a span of the prepared text back to whole characters of `text`; `None`
/// when it lies in the prompt.
fn original_span(
    origins: &[usize],
    span: Range<usize>,
    prompt_len: usize,
    text: &str,
) -> Option<Range<usize>> {
    let from = *origins.get(span.start)?;
    // The byte after the last character that the span touches: a span may end
    // inside a character, and lower-casing may have made two characters of one.
    let to = match span.end.checked_sub(1) {
        Some(last) if span.end > span.start => {
            let last = *origins.get(last)?;
            *origins[span.end..].iter().find(|&&o| o > last)?
        }
        _ => from,
    };
    if to < prompt_len || (to == prompt_len && prompt_len > 0) {
        return None;
    }
    let (from, to) = (from.saturating_sub(prompt_len), to - prompt_len);
    // Some vocabularies count the blank before a word as part of its token.
    let word = text.get(from..to)?;
    let from = from + (word.len() - word.trim_start().len());
    Some(from..from + word.trim().len())
}

/// Runs code of the tokenizers crate; a panic in it becomes an error.
pub(crate) fn quietly<T>(run: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => Err("the tokenizer stopped with an internal error".to_owned()),
    }
}

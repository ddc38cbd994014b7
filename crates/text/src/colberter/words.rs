//! Whole words and their ids (the BOW2 tokenizer of the authors).
//!
//! The raw text is split at blanks and around punctuation as BERT does it before its
//! word pieces; each part is lower-cased (and stemmed, if so chosen), and its id is
//! the first four bytes of the SHA-256 of that string, little-endian, 1 instead of
//! 0. A token belongs to the first word whose characters hold all of the token's.
//! Words that are the same string are one; words of which truncation left no token
//! are none.

use std::collections::HashMap;
use std::ops::Range;

use keyfold_core::EncodeError;
use sha2::{Digest, Sha256};
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

use super::porter;

/// When two words are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Words {
    /// When they are, in lower case. The released checkpoints were trained so.
    #[default]
    Lower,
    /// When their stems are (Porter's, as NLTK has them).
    Stem,
}

impl std::str::FromStr for Words {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "lower" => Ok(Self::Lower),
            "stem" => Ok(Self::Stem),
            _ => Err(format!(
                "'{s}' does not say when two words are the same: choose lower or stem"
            )),
        }
    }
}

/// A word of a text with the tokens that it is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Word {
    /// Lower-cased or stemmed.
    pub(crate) text: String,
    pub(crate) id: u32,
    /// Where it stands first, in bytes.
    pub(crate) span: Range<usize>,
    /// Rows of the tokens of all its places.
    pub(crate) tokens: Vec<usize>,
}

/// The id of a word.
pub(super) fn id(word: &str) -> u32 {
    let hash = Sha256::digest(word.as_bytes());
    u32::from_le_bytes([hash[0], hash[1], hash[2], hash[3]]).max(1)
}

/// A word of a text with all its places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextWord {
    /// Lower-cased or stemmed.
    pub text: String,
    /// Hash of the text.
    pub id: u32,
    /// Where it stands, in bytes of the text, ascending.
    pub spans: Vec<Range<usize>>,
}

/// The different words of a text, punctuation marks among them, in the order in which
/// they come (see [`crate::ColberterEncoder`]).
///
/// # Errors
/// When the text cannot be split.
pub fn whole_words(text: &str, words: Words) -> Result<Vec<TextWord>, EncodeError> {
    let mut split = PreTokenizedString::from(text);
    BertPreTokenizer
        .pre_tokenize(&mut split)
        .map_err(|e| EncodeError::Tokenizer {
            model: "BERT's words".to_owned(),
            reason: e.to_string(),
        })?;
    let mut all: Vec<TextWord> = Vec::new();
    let mut known = HashMap::new();
    for (part, (from, to), _) in split.get_splits(OffsetReferential::Original, OffsetType::Byte) {
        let lower = part.to_lowercase();
        let text = match words {
            Words::Lower => lower,
            Words::Stem => porter::stem(&lower),
        };
        let place = *known.entry(text).or_insert_with_key(|text| {
            all.push(TextWord {
                id: id(text),
                text: text.clone(),
                spans: Vec::new(),
            });
            all.len() - 1
        });
        all[place].spans.push(from..to);
    }
    Ok(all)
}

/// The words of a text, of the tokens with these bytes of it.
pub(crate) fn words(
    text: &str,
    spans: &[Option<Range<usize>>],
    words: Words,
) -> Result<Vec<Word>, EncodeError> {
    let found = whole_words(text, words)?;
    // The word of each part of the text, parts in order.
    let mut parts: Vec<(&Range<usize>, usize)> = Vec::new();
    for (place, word) in found.iter().enumerate() {
        parts.extend(word.spans.iter().map(|span| (span, place)));
    }
    parts.sort_unstable_by_key(|(span, _)| span.start);
    let mut tokens = vec![Vec::new(); found.len()];
    for (row, span) in spans.iter().enumerate() {
        let Some(span) = span else { continue };
        let at = parts.partition_point(|(part, _)| part.end < span.end);
        if let Some((part, place)) = parts.get(at)
            && part.start <= span.start
        {
            tokens[*place].push(row);
        }
    }
    let words = found.into_iter().zip(tokens);
    let words = words.filter(|(_, tokens)| !tokens.is_empty());
    Ok(words
        .map(|(word, tokens)| Word {
            span: word.spans[0].clone(),
            text: word.text,
            id: word.id,
            tokens,
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str, spans: &[Option<Range<usize>>], how: Words) -> Vec<(String, Vec<usize>)> {
        let found = words(text, spans, how).unwrap();
        found.into_iter().map(|w| (w.text, w.tokens)).collect()
    }

    #[test]
    fn ids_are_the_first_bytes_of_the_hash() {
        // hashlib.sha256(b"the").digest()[:4] = b9776d7d
        assert_eq!(id("the"), 0x7d6d_77b9);
    }

    #[test]
    fn tokens_find_their_word_and_a_word_without_tokens_is_none() {
        let text = "Flows, flow far flows";
        // "Fl" "ows" "," "flow" are left of it after truncation; the last is odd:
        // it reaches over two words.
        let spans = [
            None,
            Some(0..2),
            Some(2..5),
            Some(5..6),
            Some(7..11),
            Some(5..11),
            None,
        ];
        assert_eq!(
            texts(text, &spans, Words::Lower),
            [
                ("flows".to_owned(), vec![1, 2]),
                (",".to_owned(), vec![3]),
                ("flow".to_owned(), vec![4]),
            ]
        );
        assert_eq!(
            texts(text, &spans, Words::Stem),
            [
                ("flow".to_owned(), vec![1, 2, 4]),
                (",".to_owned(), vec![3])
            ]
        );
        assert!(texts("", &[None, None], Words::Lower).is_empty());
    }
}

//! The token ids of texts, with those of words seen before kept.
//!
//! A BERT tokenizer reads what stands between two blanks by itself, and few
//! different words make up most of any text: looking a word up is several times
//! faster than cutting it into pieces again.

use std::collections::HashMap;

use tokenizers::Tokenizer;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;

use crate::tokenize::quietly;

/// Words that are kept, at most; some 3 MB.
const WORDS: usize = 1 << 15;
/// Longer words are not kept, bytes.
const LONGEST: usize = 32;

/// Whether `tokenizer` reads every word between blanks by itself.
pub(super) fn reads_words_alone(tokenizer: &Tokenizer) -> bool {
    let bert = matches!(
        (tokenizer.get_normalizer(), tokenizer.get_pre_tokenizer()),
        (
            Some(NormalizerWrapper::BertNormalizer(_)),
            Some(PreTokenizerWrapper::BertPreTokenizer(_))
        )
    );
    let added = tokenizer.get_added_tokens_decoder();
    bert && !added
        .values()
        .any(|t| t.content.contains(char::is_whitespace))
}

/// Words and their token ids.
#[derive(Default)]
pub(super) struct Kept {
    /// Where the ids of a word stand in `ids`.
    places: HashMap<Box<str>, (u32, u32)>,
    ids: Vec<u32>,
}

impl Kept {
    /// The first `limit` ids of a text. `tokenizer` is always the same, and one
    /// that [`reads_words_alone`].
    pub(super) fn ids(
        &mut self,
        tokenizer: &Tokenizer,
        text: &str,
        limit: usize,
    ) -> Result<Vec<u32>, String> {
        let mut ids = Vec::with_capacity((text.len() / 4).min(limit));
        for word in text.split([' ', '\n', '\t', '\r']) {
            if ids.len() >= limit {
                break;
            }
            if word.is_empty() {
                continue;
            }
            if let Some(&(from, to)) = self.places.get(word) {
                ids.extend_from_slice(&self.ids[from as usize..to as usize]);
                continue;
            }
            let found = pieces(tokenizer, word)?;
            if word.len() <= LONGEST && self.places.len() < WORDS {
                let from = self.ids.len() as u32;
                self.ids.extend_from_slice(&found);
                let place = (from, self.ids.len() as u32);
                self.places.insert(word.into(), place);
            }
            ids.extend(found);
        }
        ids.truncate(limit);
        Ok(ids)
    }
}

/// The token ids of a text, without special tokens.
pub(crate) fn pieces(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>, String> {
    let encoding = quietly(|| tokenizer.encode_fast(text, false))?;
    Ok(encoding.get_ids().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tokenizer() -> Tokenizer {
        let bytes = include_bytes!("../../model/tokenizer.json");
        super::super::read_tokenizer(bytes).unwrap()
    }

    #[test]
    fn only_tokenizers_of_words_are_read_word_by_word() {
        let mut tokenizer = tokenizer();
        assert!(reads_words_alone(&tokenizer));
        let two = tokenizers::AddedToken::from("two words", true);
        tokenizer.add_special_tokens([two]).unwrap();
        assert!(!reads_words_alone(&tokenizer));
    }

    #[test]
    fn a_limit_cuts_within_a_word() {
        let (tokenizer, mut kept) = (tokenizer(), Kept::default());
        let all = pieces(&tokenizer, "unbelievably hypersonic airfoils").unwrap();
        for limit in 0..all.len() + 2 {
            let found = kept.ids(&tokenizer, "unbelievably hypersonic airfoils", limit);
            assert_eq!(found.unwrap(), all[..limit.min(all.len())], "{limit}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Word by word, the first time and again, as in one go.
        #[test]
        fn equals_reading_the_whole_text(
            texts in proptest::collection::vec(
                "([a-zA-Z]{1,9}|[\\[\\]A-Z]{1,7}|\\[MASK\\]|\\PC{1,4}|[ \t\r\n\u{0b}\u{85}\u{a0}\u{2028}\u{3000}\u{200d}\u{0}]{1,3}|[一-三éßİ\u{301}]){0,12}",
                1..4,
            ),
        ) {
            let (tokenizer, mut kept) = (tokenizer(), Kept::default());
            for text in texts.iter().chain(&texts) {
                let found = kept.ids(&tokenizer, text, usize::MAX).unwrap();
                prop_assert_eq!(found, pieces(&tokenizer, text).unwrap(), "{:?}", text);
            }
        }
    }
}

//! Words with their numbers and how often they occur.

use std::collections::HashMap;
use std::path::Path;

use crate::error::{LoadError, invalid};

/// Words, the most frequent first; a word's place is its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vocabulary {
    words: Vec<String>,
    counts: Vec<u64>,
    numbers: HashMap<String, u32>,
}

impl Vocabulary {
    /// Words by falling count; equally frequent ones by spelling.
    pub(crate) fn new(counts: impl IntoIterator<Item = (String, u64)>) -> Self {
        let mut pairs: Vec<(String, u64)> = counts.into_iter().collect();
        pairs.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        Self::in_order(pairs)
    }

    /// Words in the order given.
    pub(crate) fn in_order(pairs: Vec<(String, u64)>) -> Self {
        let (words, counts): (Vec<String>, Vec<u64>) = pairs.into_iter().unzip();
        let numbers = (0..).zip(&words).map(|(i, w)| (w.clone(), i)).collect();
        Self {
            words,
            counts,
            numbers,
        }
    }

    /// How many words.
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// The number of a word.
    pub fn number(&self, word: &str) -> Option<u32> {
        self.numbers.get(word).copied()
    }

    /// The word of a number; panics past the end, as slices do.
    pub fn word(&self, number: u32) -> &str {
        &self.words[number as usize]
    }

    /// How often the words occur, by number.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// One line for each word: the word, a tab, its count.
    pub(crate) fn to_text(&self) -> String {
        let lines = self.words.iter().zip(&self.counts);
        lines.map(|(w, c)| format!("{w}\t{c}\n")).collect()
    }

    /// Reads [`Vocabulary::to_text`].
    pub(crate) fn parse(path: &Path, text: &str) -> Result<Self, LoadError> {
        let mut pairs = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let pair = line
                .split_once('\t')
                .and_then(|(word, count)| Some((word.to_owned(), count.parse().ok()?)));
            pairs.push(pair.ok_or_else(|| {
                invalid(
                    path,
                    format!("line {number} is no word, tab and count; train the model again"),
                )
            })?);
        }
        Ok(Self::in_order(pairs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_numbered_by_frequency_and_survive_a_file() {
        let counts = [("b", 2), ("c", 7), ("a", 2)].map(|(w, c)| (w.to_owned(), c));
        let words = Vocabulary::new(counts);
        assert_eq!(words.number("c"), Some(0));
        assert_eq!(words.word(1), "a");
        assert_eq!(words.number("x"), None);
        let path = Path::new("vocabulary.tsv");
        assert_eq!(Vocabulary::parse(path, &words.to_text()).unwrap(), words);
        let error = Vocabulary::parse(path, "a\t1\nb 2\n").unwrap_err();
        assert!(error.to_string().contains("line 2"), "{error}");
    }
}

//! From text to sentences of plain words, as the authors prepare theirs.

use std::collections::HashMap;

use super::config::Config;
use crate::sampled::Vocabulary;

/// Stands for words that are not known, and around sentences.
pub(super) const UNKNOWN: &str = "UNKNOWN";
/// Stands for numbers.
const NUMBER: &str = "NUMBER";
/// Sentences of fewer words or characters are passed over.
const LEAST_WORDS: usize = 2;
const LEAST_CHARACTERS: usize = 10;

/// English words without a meaning of their own.
const STOP_WORDS: &[&str] = &[
    "about",
    "above",
    "after",
    "again",
    "against",
    "ain",
    "all",
    "am",
    "an",
    "and",
    "any",
    "are",
    "aren",
    "as",
    "at",
    "be",
    "because",
    "been",
    "before",
    "being",
    "below",
    "between",
    "both",
    "but",
    "by",
    "can",
    "couldn",
    "did",
    "didn",
    "do",
    "does",
    "doesn",
    "doing",
    "don",
    "down",
    "during",
    "each",
    "few",
    "for",
    "from",
    "further",
    "had",
    "hadn",
    "has",
    "hasn",
    "have",
    "haven",
    "having",
    "he",
    "her",
    "here",
    "hers",
    "herself",
    "him",
    "himself",
    "his",
    "how",
    "if",
    "in",
    "into",
    "is",
    "isn",
    "it",
    "its",
    "itself",
    "just",
    "ll",
    "ma",
    "me",
    "mightn",
    "more",
    "most",
    "mustn",
    "my",
    "myself",
    "needn",
    "no",
    "nor",
    "not",
    "now",
    "of",
    "off",
    "on",
    "once",
    "only",
    "or",
    "other",
    "our",
    "ours",
    "ourselves",
    "out",
    "over",
    "own",
    "re",
    "same",
    "shan",
    "she",
    "should",
    "shouldn",
    "so",
    "some",
    "such",
    "than",
    "that",
    "the",
    "their",
    "theirs",
    "them",
    "themselves",
    "then",
    "there",
    "these",
    "they",
    "this",
    "those",
    "through",
    "to",
    "too",
    "under",
    "until",
    "up",
    "ve",
    "very",
    "was",
    "wasn",
    "we",
    "were",
    "weren",
    "what",
    "when",
    "where",
    "which",
    "while",
    "who",
    "whom",
    "why",
    "will",
    "with",
    "won",
    "wouldn",
    "you",
    "your",
    "yours",
    "yourself",
    "yourselves",
];

/// The sentences of a text: they end at `.`, `!` or `?` before a space, and at empty lines.
fn sentences(text: &str) -> impl Iterator<Item = &str> {
    text.split("\n\n").flat_map(|paragraph| {
        let mut rest = paragraph;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let mut after = rest.char_indices().peekable();
            while let Some((_, c)) = after.next() {
                let end = after.peek().copied();
                if let ('.' | '!' | '?', Some((at, next))) = (c, end)
                    && next.is_whitespace()
                {
                    let (sentence, more) = rest.split_at(at);
                    rest = more;
                    return Some(sentence);
                }
            }
            Some(std::mem::take(&mut rest))
        })
    })
}

/// The words of a sentence.
pub(super) fn words(sentence: &str, stop_words: bool) -> impl Iterator<Item = String> {
    let joined = |c: char| c.is_alphanumeric() || c == '.' || c == '\'';
    let tokens = sentence.split(move |c| !joined(c));
    tokens.flat_map(move |token| {
        let plain = |t: &str| t.trim_matches(['.', '\'']).to_owned();
        let parts = match token {
            "IT" => vec!["information".to_owned(), "technology".to_owned()],
            _ => {
                let token = plain(token).to_lowercase();
                let token = token.split('\'').next().unwrap_or("").to_owned();
                vec![token]
            }
        };
        parts.into_iter().filter_map(move |token| {
            let few = token.chars().count() < 2;
            let number = token.contains(|c: char| c.is_ascii_digit())
                && token.chars().all(|c| c.is_ascii_digit() || c == '.');
            match () {
                () if few && !number => None,
                () if stop_words && STOP_WORDS.binary_search(&&*token).is_ok() => None,
                () if number => Some(NUMBER.to_owned()),
                () if token.chars().all(|c| c.is_ascii_lowercase()) => Some(token),
                () => Some(UNKNOWN.to_owned()),
            }
        })
    })
}

/// Text as numbers of words, 0 for unknown ones.
#[derive(Debug, Clone)]
pub(super) struct Corpus {
    pub(super) words: Vocabulary,
    /// Sentences one after another, with a window of unknown words before and after each.
    pub(super) numbers: Vec<u32>,
    /// Where the known words are.
    pub(super) places: Vec<u32>,
}

impl Corpus {
    /// Reads texts; too little of them is an error that says so.
    pub(super) fn read(texts: &[&str], config: &Config) -> Result<Self, String> {
        let sentences = || {
            let all = texts.iter().flat_map(|text| sentences(text));
            all.filter(|s| s.trim().chars().count() >= LEAST_CHARACTERS)
        };
        let words = |s: &str| words(s, config.stop_words).collect::<Vec<String>>();
        let mut counts: HashMap<String, u64> = HashMap::new();
        for word in sentences()
            .map(words)
            .filter(|w| w.len() >= LEAST_WORDS)
            .flatten()
        {
            *counts.entry(word).or_default() += 1;
        }
        counts.remove(UNKNOWN);
        let (seen, most) = (counts.len(), counts.values().copied().max().unwrap_or(0));
        let all: u64 = counts.values().sum();
        counts.retain(|_, count| *count >= config.min_count);
        if counts.len() < 2 {
            return Err(format!(
                "fewer than 2 words occur {} times: the text has {seen} different words, the \
                 most frequent {most} times; give more text or a lower min_count",
                config.min_count
            ));
        }
        let unknown = all - counts.values().sum::<u64>();
        let known = Vocabulary::new(counts);
        let entries =
            (0..known.len()).map(|i| (known.word(i as u32).to_owned(), known.counts()[i]));
        let vocabulary = Vocabulary::in_order(
            std::iter::once((UNKNOWN.to_owned(), unknown))
                .chain(entries)
                .collect(),
        );
        let mut numbers = vec![0; config.window];
        let mut places = Vec::new();
        for sentence in sentences().map(words).filter(|w| w.len() >= LEAST_WORDS) {
            for word in sentence {
                let number = vocabulary.number(&word).unwrap_or(0);
                if number > 0 {
                    places.push(u32::try_from(numbers.len()).map_err(|_| {
                        "there are more than 4 billion words; give less text".to_owned()
                    })?);
                }
                numbers.push(number);
            }
            numbers.resize(numbers.len() + config.window, 0);
        }
        Ok(Self {
            words: vocabulary,
            numbers,
            places,
        })
    }

    /// The words around a place, before and after.
    pub(super) fn around(&self, place: u32, window: usize) -> impl Iterator<Item = u32> {
        let place = place as usize;
        let (before, after) = (place - window..place, place + 1..place + 1 + window);
        before.chain(after).map(|i| self.numbers[i])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_end_where_they_should() {
        let found: Vec<&str> = sentences("Pi is 3.14. Is it? Yes\n\nNew part").collect();
        assert_eq!(found, ["Pi is 3.14.", " Is it?", " Yes", "New part"]);
    }

    #[test]
    fn words_are_prepared_as_the_authors_do() {
        let found = |text: &str| words(text, true).collect::<Vec<String>>().join(" ");
        assert_eq!(
            found("The IT-department's well/known 3 boats, \"naïve\" x86!"),
            "information technology department well known NUMBER boats UNKNOWN UNKNOWN"
        );
        assert_eq!(found("a I . ''"), "");
        assert_eq!(words("the boat", false).count(), 2);
        assert!(STOP_WORDS.is_sorted());
    }

    #[test]
    fn sentences_are_parted_by_unknown_words() {
        let config = Config {
            window: 2,
            min_count: 2,
            ..Config::default()
        };
        let text = "Boats sail quickly. Boats sail home. Go boats. New boats.";
        let corpus = Corpus::read(&[text], &config).unwrap();
        assert_eq!(corpus.words.len(), 3);
        assert_eq!(
            corpus.numbers,
            [0, 0, 1, 2, 0, 0, 0, 1, 2, 0, 0, 0, 0, 1, 0, 0],
            "one sentence is too short"
        );
        assert_eq!(corpus.places, [2, 3, 7, 8, 13]);
        assert_eq!(corpus.around(2, 2).collect::<Vec<u32>>(), [0, 0, 2, 0]);
        let error = Corpus::read(&["one two"], &config).unwrap_err();
        assert!(error.contains("min_count"), "{error}");
    }
}

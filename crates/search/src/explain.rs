//! Why a passage was found: which word of the query met which word of it.
//!
//! MaxSim pairs every query row with one row of the passage. The rows stand for
//! pieces of words; pairs are shown between whole words, each with the sum of
//! what its pieces add.

use std::ops::Range;

use keyfold_core::{Encoder, Role, Vectors};
use keyfold_kernels::{maxsim_alignment, norm};
use unicode_segmentation::UnicodeSegmentation;

use crate::error::SearchError;
use crate::whole_text::WholeTextQuery;

/// How near a pair must be, in cosine, for its word to be shown as a match.
const NEAR: f32 = 0.4;
/// And how near in proportion to the nearest pair of the passage.
const AS_NEAR: f32 = 0.6;
/// Words that carry no meaning of their own; showing where they stand helps nobody.
const FUNCTION_WORDS: &str = " a about all also an and any are as at be been being but by can could \
    did do does doing for from had has have having he her his how i if in into is it its like may me \
    more most my no not of on or our out over she should so some such than that the their them then \
    there these they this those to under up us was we were what when where which while who whom whose \
    why will with would you your ";
/// Words that weigh less than this share of the heaviest word of the query are
/// not shown as matches.
const HEAVY: f32 = 0.3;

/// A retriever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Retriever {
    /// Search by words (BM25).
    Lexical,
    /// Search by meaning (MaxSim).
    Meaning,
}

/// Whether a word says something by itself.
pub(crate) fn is_telling(word: &str) -> bool {
    !FUNCTION_WORDS.contains(&format!(" {} ", word.to_lowercase()))
}

/// A word of the query and what it met in a passage.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct WordMatch {
    /// The word of the query, or one that feedback added, as the index knows it, or
    /// a term of learnt weights; none for rows of the model that stand for no word.
    pub query: Option<String>,
    /// The word of the passage or of its headings; none where it met a row that
    /// stands for no word.
    pub passage: Option<String>,
    /// What the pair adds to the retriever's score.
    pub score: f32,
    /// Whose pair it is.
    pub retriever: Retriever,
}

/// A pair of words by meaning.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Pair {
    /// The word in the query.
    pub(crate) query: Option<Range<usize>>,
    /// The word in what was encoded of the passage.
    pub(crate) passage: Option<Range<usize>>,
    /// What it adds to MaxSim.
    pub(crate) score: f32,
    /// The score if the rows pointed the same way: the summed products of their
    /// lengths.
    pub(crate) most: f32,
}

/// The rows of a query with the words that they stand for.
pub(crate) struct QueryRows {
    pub(crate) rows: Vectors,
    /// The word of each row.
    words: Vec<Option<Range<usize>>>,
}

impl QueryRows {
    /// `rows` are those of `text`, or the first of them.
    pub(crate) fn new(
        encoder: &dyn Encoder,
        text: &str,
        rows: Vectors,
    ) -> Result<Self, SearchError> {
        let words = words_of(&encoder.spans(text, Role::Query)?, text, rows.rows());
        Ok(Self { rows, words })
    }

    /// Pairs the query with a passage: the rows `[n, dim]` of `text`, and their ids.
    /// One pair for every word of the query, in its order, and one for all rows that
    /// stand for no word, if there are such.
    pub(crate) fn pairs(
        &self,
        encoder: &dyn Encoder,
        text: &str,
        passage: &PassageRows,
    ) -> Result<Vec<Pair>, SearchError> {
        let dim = self.rows.dim();
        let spans = match &passage.ids[..] {
            [] => encoder.spans(text, Role::Document)?,
            ids => encoder.spans_of_ids(text, Role::Document, ids)?,
        };
        let words = words_of(&spans, text, passage.rows.len() / dim);
        if let Some(query) = &passage.compared {
            return Ok(self.whole_text_pairs(query, passage, &words));
        }
        let alignment = maxsim_alignment(self.rows.as_slice(), &passage.rows, dim);
        let met = alignment.into_iter().map(|(row, score)| (Some(row), score));
        let lengths = self.rows.iter().map(norm).collect();
        Ok(self.by_word(0, met, lengths, &words))
    }

    /// [`QueryRows::pairs`] where whole texts are compared too: one pair for these,
    /// and one for every word of the query.
    fn whole_text_pairs(
        &self,
        query: &WholeTextQuery,
        passage: &PassageRows,
        words: &[Option<Range<usize>>],
    ) -> Vec<Pair> {
        let (heads, dim) = (query.heads(), self.rows.dim());
        let (whole, met) = query.explain(&passage.rows, &passage.ids);
        // Rows have any length here, those of passages too.
        let length_of_met = |row: usize| {
            let row = passage.rows.get(row * dim..(row + 1) * dim);
            row.map_or(0.0, norm)
        };
        let met: Vec<(Option<usize>, f32)> = met
            .into_iter()
            .map(|(row, score)| (row.map(|row| row + heads), score))
            .collect();
        let rows = self.rows.iter().skip(heads).zip(&met);
        let most = rows.map(|(q, (row, _))| norm(q) * row.map_or(0.0, length_of_met));
        let most = most.collect();
        let mut pairs = vec![Pair {
            query: None,
            passage: None,
            score: whole,
            most: 0.0,
        }];
        pairs.extend(self.by_word(heads, met, most, words));
        pairs
    }

    /// Puts together what the query's rows from `first` on met, by words of the
    /// query: the row of the passage and what it adds, and what it could add.
    fn by_word(
        &self,
        first: usize,
        met: impl IntoIterator<Item = (Option<usize>, f32)>,
        most: Vec<f32>,
        words: &[Option<Range<usize>>],
    ) -> Vec<Pair> {
        let mut pairs: Vec<(Pair, f32)> = Vec::new();
        for ((query, most), (met, score)) in self.words[first..].iter().zip(most).zip(met) {
            let known = pairs.iter().position(|(p, _)| p.query == *query);
            let known = known.unwrap_or_else(|| {
                let new = Pair {
                    query: query.clone(),
                    passage: None,
                    score: 0.0,
                    most: 0.0,
                };
                pairs.push((new, f32::NEG_INFINITY));
                pairs.len() - 1
            });
            let (pair, best) = &mut pairs[known];
            pair.score += score;
            pair.most += most;
            // The piece that adds most says what the word met.
            if score > *best {
                *best = score;
                pair.passage = met.and_then(|met| words.get(met).cloned().flatten());
            }
        }
        pairs.into_iter().map(|(pair, _)| pair).collect()
    }
}

/// The rows of a passage, as they are stored.
pub(crate) struct PassageRows {
    /// `[rows, dim]`.
    pub(crate) rows: Vec<f32>,
    /// Their ids; empty where rows have none.
    pub(crate) ids: Vec<u32>,
    /// How the query compares with them, where whole texts are compared too.
    pub(crate) compared: Option<WholeTextQuery>,
}

/// The words of a passage that matched `query`, of all pairs with it.
pub(crate) fn matched(query: &str, pairs: &[Pair]) -> Vec<Range<usize>> {
    let nearness = |p: &Pair| p.score / p.most.max(f32::MIN_POSITIVE);
    let is_telling = |p: &&Pair| p.query.clone().is_some_and(|word| is_telling(&query[word]));
    let mut words: Vec<&Pair> = pairs.iter().filter(is_telling).collect();
    if words.is_empty() {
        words = pairs.iter().filter(|p| p.query.is_some()).collect();
    }
    let nearest = words.iter().map(|p| nearness(p)).fold(0.0, f32::max);
    let heaviest = words.iter().map(|p| p.most).fold(0.0, f32::max);
    words
        .into_iter()
        .filter(|p| p.most >= HEAVY * heaviest)
        .filter(|p| nearness(p) >= NEAR.max(AS_NEAR * nearest))
        .filter_map(|p| p.passage.clone())
        .collect()
}

/// Sorted ranges that do not overlap, of any ranges.
pub(crate) fn merged(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.sort_by_key(|r| (r.start, r.end));
    let mut all: Vec<Range<usize>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match all.last_mut() {
            Some(last) if range.start < last.end => last.end = last.end.max(range.end),
            _ => all.push(range),
        }
    }
    all
}

/// The whole word around the span of each row; `rows` entries. Rows whose span
/// is not known stand for no word.
fn words_of(spans: &[Option<Range<usize>>], text: &str, rows: usize) -> Vec<Option<Range<usize>>> {
    let words: Vec<Range<usize>> = words(text);
    let mut all: Vec<_> = spans
        .iter()
        .map(|span| {
            span.as_ref()
                .and_then(|span| word_around(span, &words, text))
        })
        .collect();
    all.resize(rows, None);
    all
}

/// The words of a text, by the rules of Unicode; names that are joined by dots or
/// colons, as in code, are words each.
fn words(text: &str) -> Vec<Range<usize>> {
    let mut all = Vec::new();
    for (mut start, word) in text.unicode_word_indices() {
        let end = start + word.len();
        for (at, mark) in word.match_indices(['.', ':']) {
            let at = at + end - word.len();
            let after = text[at + mark.len()..end].chars().next();
            if after.is_some_and(char::is_alphabetic) {
                all.push(start..at);
                start = at + mark.len();
            }
        }
        all.push(start..end);
    }
    all
}

/// The word that holds the start of a span, or the span itself if none does
/// (punctuation); none for a span that is not of this text.
fn word_around(span: &Range<usize>, words: &[Range<usize>], text: &str) -> Option<Range<usize>> {
    text.get(span.clone()).filter(|piece| !piece.is_empty())?;
    let after = words.partition_point(|w| w.start <= span.start);
    match after.checked_sub(1).map(|i| &words[i]) {
        Some(word) if word.end > span.start => Some(word.clone()),
        _ => Some(span.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_grow_to_whole_words() {
        let text = "Over-fitting naïve_models, 東京!";
        let at = |piece: &str| {
            let start = text.find(piece).unwrap();
            Some(start..start + piece.len())
        };
        let spans = [
            at("Over"),
            at("fit"),
            at("ting"),
            at("models"),
            at("京"),
            at("!"),
            None,
            Some(90..95),
        ];
        let words = words_of(&spans, text, 9);
        let texts: Vec<Option<&str>> = words.into_iter().map(|w| w.map(|w| &text[w])).collect();
        let expected = ["Over", "fitting", "fitting", "naïve_models", "京", "!"];
        assert_eq!(texts[..6], expected.map(Some));
        assert_eq!(texts[6..], [None, None, None]);
    }

    #[test]
    fn names_in_code_are_words_and_numbers_stay_whole() {
        let text = "self.delete_term(3.14) std::io Ann's a.b.c";
        let found: Vec<&str> = words(text).into_iter().map(|w| &text[w]).collect();
        let expected = [
            "self",
            "delete_term",
            "3.14",
            "std",
            "io",
            "Ann's",
            "a",
            "b",
            "c",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn ranges_merge_where_they_overlap() {
        assert_eq!(merged(vec![5..8, 0..3, 2..4, 4..5]), [0..4, 4..5, 5..8]);
        assert!(merged(Vec::new()).is_empty());
    }

    #[test]
    fn light_and_far_words_are_no_matches() {
        let pair = |at: usize, score, most| Pair {
            query: Some(at..at + 1),
            passage: Some(at..at + 1),
            score,
            most,
        };
        let pairs = [
            pair(0, 0.9, 1.0),
            pair(1, 0.3, 1.0),
            pair(2, 0.1, 0.1),
            pair(3, 0.7, 1.0),
        ];
        assert_eq!(matched("klmn", &pairs), [0..1, 3..4]);
        assert!(matched("", &[]).is_empty());
        // Of function words only where there is nothing else.
        assert_eq!(matched("aaaa", &pairs), [0..1, 3..4]);
        assert_eq!(matched("aklm", &pairs).first(), Some(&(3..4)));
    }
}

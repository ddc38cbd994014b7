//! What counts as a word in the lexical index.
//!
//! Words are runs of letters, digits and underscores. An identifier gives its
//! parts and itself, `readFile_fast` the words `read`, `file`, `fast` and
//! `readfile_fast` (at the position of `read`), so that it is found by its parts
//! and exactly. Chinese and Japanese, which write no spaces, give a word for
//! every character. Then words are put in lower case, lose their accents, and
//! are stemmed by Snowball's English rules; words longer than 64 bytes are left
//! out.

use std::ops::Range;

use tantivy::tokenizer::{
    AsciiFoldingFilter, Language, LowerCaser, RemoveLongFilter, Stemmer, TextAnalyzer, Token,
    TokenStream, Tokenizer,
};

/// Name under which the analyzer is registered with the lexical index.
pub(crate) const WORDS: &str = "words";
const LONGEST: usize = 64;

/// The analyzer of all text fields, for passages and queries.
pub(crate) fn analyzer() -> TextAnalyzer {
    TextAnalyzer::builder(Words)
        .filter(RemoveLongFilter::limit(LONGEST + 1))
        .filter(LowerCaser)
        .filter(AsciiFoldingFilter)
        .filter(Stemmer::new(Language::English))
        .build()
}

/// Splits text into words and identifiers.
#[derive(Clone)]
struct Words;

impl Tokenizer for Words {
    type TokenStream<'a> = Stream<'a>;

    fn token_stream<'a>(&'a mut self, text: &'a str) -> Stream<'a> {
        Stream {
            text,
            scanned: 0,
            position: 0,
            ready: Vec::new(),
            token: Token::default(),
        }
    }
}

struct Stream<'a> {
    text: &'a str,
    /// Where the next run is looked for.
    scanned: usize,
    /// Position of the next word.
    position: usize,
    /// Words of the last run, last one first.
    ready: Vec<(Range<usize>, usize)>,
    token: Token,
}

impl Stream<'_> {
    /// Finds the next run and makes its words ready; false at the end of the text.
    fn scan(&mut self) -> bool {
        let rest = &self.text[self.scanned..];
        let Some(start) = rest.find(|c: char| c.is_alphanumeric()) else {
            return false;
        };
        let start = self.scanned + start;
        let run = &self.text[start..];
        let first = run.chars().next().map_or(0, char::len_utf8);
        let end = match run.chars().next() {
            Some(c) if stands_alone(c) => start + first,
            _ => run
                .find(|c: char| !(c.is_alphanumeric() || c == '_') || stands_alone(c))
                .map_or(self.text.len(), |n| start + n),
        };
        self.scanned = end;
        let end = start + self.text[start..end].trim_end_matches('_').len();
        let parts = parts(&self.text[start..end]);
        if parts.len() > 1 {
            self.ready.push((start..end, self.position));
        }
        for part in parts {
            self.ready
                .push((start + part.start..start + part.end, self.position));
            self.position += 1;
        }
        self.ready.reverse();
        true
    }
}

impl TokenStream for Stream<'_> {
    fn advance(&mut self) -> bool {
        while self.ready.is_empty() {
            if !self.scan() {
                return false;
            }
        }
        let Some((range, position)) = self.ready.pop() else {
            return false;
        };
        self.token.text.clear();
        self.token.text.push_str(&self.text[range.clone()]);
        self.token.offset_from = range.start;
        self.token.offset_to = range.end;
        self.token.position = position;
        true
    }

    fn token(&self) -> &Token {
        &self.token
    }

    fn token_mut(&mut self) -> &mut Token {
        &mut self.token
    }
}

/// The parts of a run: split at underscores, before a capital that follows a
/// small letter or digit, and before the last of several capitals (`HTTPServer`).
fn parts(run: &str) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    let mut start = 0;
    let mut chars = run.char_indices().peekable();
    let mut before: Option<char> = None;
    while let Some((at, c)) = chars.next() {
        let next_is_small = chars.peek().is_some_and(|&(_, n)| n.is_lowercase());
        let border = match before {
            Some(b) if c.is_uppercase() => !b.is_uppercase() || next_is_small,
            _ => false,
        };
        if c == '_' || border {
            if start < at {
                parts.push(start..at);
            }
            start = if c == '_' { at + 1 } else { at };
        }
        before = if c == '_' { None } else { Some(c) };
    }
    if start < run.len() {
        parts.push(start..run.len());
    }
    parts
}

/// Whether a character is a word of its own: ideographs and kana.
fn stands_alone(c: char) -> bool {
    matches!(c, '\u{3041}'..='\u{30ff}' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}'
        | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{323af}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words(text: &str) -> Vec<(String, usize)> {
        let mut analyzer = analyzer();
        let mut stream = analyzer.token_stream(text);
        let mut out = Vec::new();
        while let Some(t) = stream.next() {
            out.push((t.text.clone(), t.position));
        }
        out
    }

    fn texts(text: &str) -> Vec<String> {
        words(text).into_iter().map(|(t, _)| t).collect()
    }

    #[test]
    fn identifiers_are_found_by_their_parts_and_whole() {
        assert_eq!(
            words("call readFile_fast now"),
            [
                ("call".into(), 0),
                ("readfile_fast".into(), 1),
                ("read".into(), 1),
                ("file".into(), 2),
                ("fast".into(), 3),
                ("now".into(), 4)
            ]
        );
        assert_eq!(texts("HTTPServer"), ["httpserver", "http", "server"]);
        assert_eq!(texts("__init__ utf8 A"), ["init", "utf8", "a"]);
        assert_eq!(texts("parseX2Y"), ["parsex2i", "pars", "x2", "y"]);
    }

    #[test]
    fn prose_is_stemmed_and_folded() {
        assert_eq!(
            texts("The stores' CRASHES, café"),
            ["the", "store", "crash", "cafe"]
        );
        assert_eq!(texts("東京 tower"), ["東", "京", "tower"]);
        assert!(texts(&"x".repeat(65)).is_empty());
        assert_eq!(texts(&"x".repeat(64)).len(), 1);
    }

    proptest! {
        #[test]
        fn any_text_gives_words_in_order_within_it(text in "\\PC{0,60}") {
            let mut analyzer = analyzer();
            let mut stream = analyzer.token_stream(&text);
            let mut last = 0;
            while let Some(t) = stream.next() {
                prop_assert!(t.offset_from < t.offset_to);
                prop_assert!(text.get(t.offset_from..t.offset_to).is_some());
                prop_assert!(t.position >= last);
                last = t.position;
            }
        }
    }
}

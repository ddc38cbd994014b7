//! How large a passage may be, and where text is cut to get there.
//!
//! Text is cut at the coarsest place that helps: blank lines, then sentences or
//! lines (sentences in prose, lines in code and logs), then words, and at last
//! between two characters.

use std::ops::Range;

use unicode_segmentation::UnicodeSegmentation;

/// The size of passages, in tokens as [`estimate_tokens`] counts them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkOptions {
    /// Small neighbours are joined up to about this size. Default 180.
    pub target_tokens: usize,
    /// No passage's text is larger. Default 230, which leaves an encoder of 256
    /// positions room for the heading trail.
    pub max_tokens: usize,
}

impl Default for ChunkOptions {
    fn default() -> Self {
        Self {
            target_tokens: 180,
            max_tokens: 230,
        }
    }
}

/// About how many word pieces BERT's English WordPiece vocabulary makes of the text,
/// without running it.
///
/// A word costs by its length: 1 token up to 6 letters, 1.5 at 11, 2.6 at 15, then 0.4
/// a letter, and 0.8 more for each hump of camelCase. A number costs 1 and 0.45 for
/// each digit past the third, other ASCII signs 1.1 to 1.3 (they stand in unusual
/// company), a CJK character 1, a Hangul syllable 2. Fitted to encyclopaedic, scientific, legal and
/// theatrical English, to documentation and to code: over stretches of 900 characters
/// the mean is 0.95 to 1.05 of the tokenizer's count for each of them, and nine
/// stretches in ten lie within 0.88 to 1.09.
pub fn estimate_tokens(text: &str) -> usize {
    to_tokens(cost(text))
}

/// Tenths of a token, so that the costs of parts add up to the cost of the whole
/// (where the cut is not inside a word).
pub(crate) type Cost = usize;

pub(crate) fn to_tokens(cost: Cost) -> usize {
    cost.div_ceil(10)
}

/// Cost of a run of 0 to 15 Latin letters.
const LETTERS: [Cost; 16] = [
    0, 10, 10, 10, 10, 10, 10, 11, 12, 13, 14, 15, 17, 19, 22, 26,
];
/// An upper-case letter after a lower-case one, as in camelCase.
const HUMP: Cost = 8;

fn letters_cost(length: usize) -> Cost {
    match LETTERS.get(length) {
        Some(cost) => *cost,
        None => LETTERS[15] + (length - 15) * 4,
    }
}

fn digits_cost(length: usize) -> Cost {
    match length {
        0 => 0,
        1..=3 => 10,
        _ => 10 + (length - 3) * 9 / 2,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Lower,
    Upper,
    Digit,
    /// Costs by itself, whatever stands beside it.
    Single(Cost),
}

fn class(c: char) -> Class {
    match c {
        'a'..='z' => Class::Lower,
        'A'..='Z' => Class::Upper,
        '0'..='9' => Class::Digit,
        '\0'..=' ' | '\x7f'..='\u{a0}' => Class::Single(0),
        '_' | '/' | '{' | '}' => Class::Single(13),
        '!'..='~' => Class::Single(11),
        // Latin letters with marks: the vocabulary strips the marks.
        '\u{c0}'..='\u{24f}' | '\u{1e00}'..='\u{1eff}' => Class::Lower,
        // Combining marks are stripped.
        '\u{300}'..='\u{36f}' => Class::Single(0),
        '\u{ac00}'..='\u{d7a3}' => Class::Single(20),
        c if c.is_whitespace() => Class::Single(0),
        _ => Class::Single(10),
    }
}

pub(crate) fn cost(text: &str) -> Cost {
    let mut meter = Meter::default();
    for c in text.chars() {
        meter.push(c);
    }
    meter.cost()
}

/// Counts while the text comes in.
#[derive(Default)]
struct Meter {
    done: Cost,
    letters: usize,
    digits: usize,
    after_lower: bool,
}

impl Meter {
    fn push(&mut self, c: char) {
        let class = class(c);
        let is_letter = matches!(class, Class::Lower | Class::Upper);
        if !is_letter && self.letters > 0 {
            self.done += letters_cost(self.letters);
            self.letters = 0;
        }
        if class != Class::Digit && self.digits > 0 {
            self.done += digits_cost(self.digits);
            self.digits = 0;
        }
        match class {
            Class::Lower => self.letters += 1,
            Class::Upper => {
                self.letters += 1;
                self.done += if self.after_lower { HUMP } else { 0 };
            }
            Class::Digit => self.digits += 1,
            Class::Single(cost) => self.done += cost,
        }
        self.after_lower = class == Class::Lower;
    }

    fn cost(&self) -> Cost {
        self.done + letters_cost(self.letters) + digits_cost(self.digits)
    }
}

/// What kind of text a block is, and so where it is best cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Sentences; line ends are mere wrapping.
    Prose,
    /// Lines are units: code, logs, verse, tables.
    Lines,
}

impl Kind {
    /// Wrapped prose goes on in lower case after most line ends; logs, verse and
    /// lists of names do not.
    pub(crate) fn of_plain_text(text: &str) -> Kind {
        let (mut lower, mut all) = (0, 0);
        for line in text.lines().skip(1).take(200) {
            if let Some(first) = line.trim_start().chars().next() {
                all += 1;
                lower += usize::from(first.is_lowercase());
            }
        }
        if lower * 10 >= all * 3 {
            Kind::Prose
        } else {
            Kind::Lines
        }
    }

    fn cuts(self) -> &'static [Cut] {
        match self {
            Kind::Prose => &[Cut::BlankLines, Cut::Sentences, Cut::Lines, Cut::Words],
            Kind::Lines => &[Cut::BlankLines, Cut::Lines, Cut::Sentences, Cut::Words],
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Cut {
    BlankLines,
    Sentences,
    Lines,
    Words,
}

impl Cut {
    /// Ends of the segments, the last one being the end of the text.
    fn ends(self, text: &str) -> Box<dyn Iterator<Item = usize> + '_> {
        match self {
            Cut::BlankLines => Box::new(blank_line_ends(text)),
            Cut::Lines => Box::new(line_ends(text)),
            Cut::Sentences => Box::new(sentence_ends(text)),
            Cut::Words => Box::new(word_ends(text)),
        }
    }
}

/// Ends of lines (`\n`, `\r\n`, lone `\r`), each end past the line's break.
pub(crate) fn line_ends(text: &str) -> impl Iterator<Item = usize> + '_ {
    let bytes = text.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        if at == bytes.len() {
            return None;
        }
        let rest = &bytes[at..];
        at += match rest.iter().position(|b| matches!(b, b'\n' | b'\r')) {
            None => rest.len(),
            Some(i) if rest[i] == b'\r' && rest.get(i + 1) == Some(&b'\n') => i + 2,
            Some(i) => i + 1,
        };
        Some(at)
    })
}

/// Ends of paragraphs, each with the blank lines that follow it.
pub(crate) fn blank_line_ends(text: &str) -> impl Iterator<Item = usize> + '_ {
    let mut lines = line_ends(text);
    let mut start = 0;
    let mut after_blank = false;
    let mut next = move || {
        for end in lines.by_ref() {
            let line = start;
            start = end;
            let blank = text[line..end].trim().is_empty();
            let boundary = after_blank && !blank;
            after_blank = blank;
            if boundary {
                return Some(line);
            }
        }
        None
    };
    let mut done = false;
    std::iter::from_fn(move || {
        if done {
            return None;
        }
        let boundary = next();
        done = boundary.is_none();
        Some(boundary.unwrap_or(text.len()))
    })
}

fn word_ends(text: &str) -> impl Iterator<Item = usize> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = &text[at..];
        if rest.is_empty() {
            return None;
        }
        let word = rest.find(char::is_whitespace).unwrap_or(rest.len());
        let space = rest[word..]
            .find(|c: char| !c.is_whitespace())
            .unwrap_or(rest.len() - word);
        at += word + space;
        Some(at)
    })
}

/// Text handed to the sentence rules at once; their look-ahead has no bound of its own.
const SENTENCE_WINDOW: usize = 16 << 10;

fn sentence_ends(text: &str) -> impl Iterator<Item = usize> + '_ {
    let mut from = 0;
    let windows = std::iter::from_fn(move || {
        if from == text.len() {
            return None;
        }
        let start = from;
        from = window_end(text, start);
        Some(start..from)
    });
    windows.flat_map(move |window| {
        // The rules take a line end for a sentence's end; here it is wrapping.
        let unwrapped = text[window.clone()].replace(['\n', '\r'], " ");
        let ends: Vec<usize> = unwrapped
            .split_sentence_bound_indices()
            .map(|(at, sentence)| window.start + at + sentence.len())
            .collect();
        ends
    })
}

/// The end of the last word that begins within the window, or a cut inside a word
/// that is longer than the window.
fn window_end(text: &str, start: usize) -> usize {
    let limit = floor_char_boundary(text, start + SENTENCE_WINDOW);
    if limit == text.len() {
        return limit;
    }
    match text[start..limit].rfind(char::is_whitespace) {
        Some(space) if space > 0 => start + space,
        _ => limit,
    }
}

pub(crate) fn floor_char_boundary(text: &str, at: usize) -> usize {
    if at >= text.len() {
        return text.len();
    }
    let mut at = at;
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// Cuts a block into trimmed, non-empty ranges of at most `max_tokens` each. Only
/// white space lies between them.
pub(crate) fn split(text: &str, kind: Kind, options: &ChunkOptions) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    let splitter = Splitter {
        text,
        // A passage of no tokens cannot be.
        max: options.max_tokens.max(1) * 10,
        target: options.target_tokens.clamp(1, options.max_tokens.max(1)) * 10,
    };
    splitter.split(0..text.len(), kind.cuts(), &mut parts);
    parts
}

struct Splitter<'t> {
    text: &'t str,
    max: Cost,
    target: Cost,
}

impl Splitter<'_> {
    fn split(&self, range: Range<usize>, cuts: &[Cut], parts: &mut Vec<Range<usize>>) {
        let range = trim(self.text, range);
        let total = cost(&self.text[range.clone()]);
        if range.is_empty() {
            return;
        }
        if total <= self.max {
            parts.push(range);
            return;
        }
        let Some((cut, finer)) = cuts.split_first() else {
            self.split_characters(range, parts);
            return;
        };
        // Fill evenly: 400 tokens become 134 three times, not 180, 180 and 40.
        let aim_for = |rest: Cost| rest.div_ceil(rest.div_ceil(self.target).max(1));
        let mut rest = total;
        let mut open = range.start..range.start;
        let mut open_cost = 0;
        for end in cut.ends(&self.text[range.clone()]) {
            let segment = open.end..range.start + end;
            let segment_cost = cost(&self.text[segment.clone()]);
            let joined = open_cost + segment_cost;
            let aim = aim_for(rest);
            if joined > self.max || joined.abs_diff(aim) > aim.abs_diff(open_cost) {
                self.close(open, parts);
                rest = rest.saturating_sub(open_cost);
                open = segment.start..segment.start;
                open_cost = 0;
            }
            open.end = segment.end;
            if segment_cost > self.max {
                self.split(segment.clone(), finer, parts);
                rest = rest.saturating_sub(segment_cost);
                open.start = segment.end;
            } else {
                open_cost += segment_cost;
            }
        }
        self.close(open, parts);
    }

    fn close(&self, range: Range<usize>, parts: &mut Vec<Range<usize>>) {
        let range = trim(self.text, range);
        if !range.is_empty() {
            parts.push(range);
        }
    }

    /// A word too long for a passage.
    fn split_characters(&self, range: Range<usize>, parts: &mut Vec<Range<usize>>) {
        let mut start = range.start;
        let mut meter = Meter::default();
        for (at, c) in self.text[range.clone()].char_indices() {
            let at = range.start + at;
            meter.push(c);
            if meter.cost() > self.max && at > start {
                parts.push(start..at);
                start = at;
                meter = Meter::default();
                meter.push(c);
            }
        }
        parts.push(start..range.end);
    }
}

/// Without white space at the ends, but with the indentation of the first line.
pub(crate) fn trim(text: &str, range: Range<usize>) -> Range<usize> {
    let inner = &text[range.clone()];
    let end = range.start + inner.trim_end().len();
    let content = inner.len() - inner.trim_start().len();
    if end <= range.start + content {
        return end..end;
    }
    let at_line_start = range.start == 0 || text[..range.start].ends_with(['\n', '\r']);
    let indentation = match inner[..content].rfind(['\n', '\r']) {
        Some(line_break) => line_break + 1,
        None if at_line_start => 0,
        None => content,
    };
    range.start + indentation..end
}

#[cfg(test)]
#[path = "chunk_tests.rs"]
mod tests;

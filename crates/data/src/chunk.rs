//! How large a passage may be, and where text is cut to get there.
//!
//! Text is cut at the coarsest place that helps: blank lines, then sentences or
//! lines (sentences in prose, lines in code and logs), then words, and at last
//! between two characters.

use std::ops::Range;

use unicode_segmentation::UnicodeSegmentation;

use crate::tokens::{Cost, cost};

/// The size of passages, in tokens as [`estimate_tokens`](crate::estimate_tokens) counts them.
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

/// A part of a block, without white space around it, and its cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) range: Range<usize>,
    pub(crate) cost: Cost,
}

/// Cuts a block into non-empty parts of at most `max_tokens` each. Only white space
/// lies between them.
pub(crate) fn split(text: &str, kind: Kind, options: &ChunkOptions) -> Vec<Part> {
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
    fn split(&self, range: Range<usize>, cuts: &[Cut], parts: &mut Vec<Part>) {
        let range = trim(self.text, range);
        let total = cost(&self.text[range.clone()]);
        if range.is_empty() {
            return;
        }
        if total <= self.max {
            parts.push(Part { range, cost: total });
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
                self.close(open, open_cost, parts);
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
        self.close(open, open_cost, parts);
    }

    fn close(&self, range: Range<usize>, cost: Cost, parts: &mut Vec<Part>) {
        // White space costs nothing.
        let range = trim(self.text, range);
        if !range.is_empty() {
            parts.push(Part { range, cost });
        }
    }

    /// A word too long for a passage.
    fn split_characters(&self, range: Range<usize>, parts: &mut Vec<Part>) {
        let mut start = range.start;
        while start < range.end {
            let end = start + self.fitting(&self.text[start..range.end]);
            let cost = cost(&self.text[start..end]);
            parts.push(Part {
                range: start..end,
                cost,
            });
            start = end;
        }
    }

    /// Bytes of the longest beginning that fits a passage, one character at least.
    fn fitting(&self, text: &str) -> usize {
        let first = text.chars().next().map_or(0, char::len_utf8);
        let cut = |bytes: usize| floor_char_boundary(text, bytes).max(first);
        let fits = |bytes: usize| cost(&text[..cut(bytes)]) <= self.max;
        let mut large = first;
        while large < text.len() && fits(large) {
            large *= 2;
        }
        let mut small = large / 2;
        while small + 1 < large {
            let middle = small.midpoint(large);
            if fits(middle) {
                small = middle;
            } else {
                large = middle;
            }
        }
        if fits(large) { cut(large) } else { cut(small) }
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

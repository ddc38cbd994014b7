//! reStructuredText: headings show by the line of signs under (and over) them; what
//! signs mean which level is by the order in which they first appear. All other text
//! is taken as it stands, paragraph by paragraph.

use std::ops::Range;

use crate::chunk::{Kind, blank_line_ends, line_ends};
use crate::error::Problem;
use crate::flow::{Block, Flow};

pub(super) fn read(text: &str, flow: &mut Flow) -> Result<(), Problem> {
    let mut reader = Reader {
        text,
        styles: Vec::new(),
        flow,
    };
    let mut lines = Lines::new(text);
    // What stands between two headings.
    let mut body = 0;
    let mut after_blank = true;
    while let Some(line) = lines.next() {
        let begins = std::mem::replace(&mut after_blank, text[line.clone()].trim().is_empty());
        let Some(heading) = Heading::at(text, line, &lines).filter(|_| begins) else {
            continue;
        };
        after_blank = true;
        reader.body(body..heading.range.start)?;
        reader.heading(&heading)?;
        body = heading.range.end;
        while lines.at < body {
            lines.next();
        }
    }
    reader.body(body..text.len())
}

/// The ranges of the lines.
#[derive(Clone)]
struct Lines<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Lines<'t> {
    fn new(text: &'t str) -> Self {
        Self { text, at: 0 }
    }
}

impl Iterator for Lines<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        let length = line_ends(&self.text[self.at..]).next()?;
        let start = self.at;
        self.at += length;
        Some(start..self.at)
    }
}

struct Heading<'t> {
    title: &'t str,
    /// The sign, and whether it also stands above.
    style: (u8, bool),
    range: Range<usize>,
}

impl<'t> Heading<'t> {
    /// A heading whose first line this is.
    fn at(text: &'t str, first: Range<usize>, below: &Lines) -> Option<Self> {
        let mut below = below.clone();
        let above = rule(&text[first.clone()]);
        let title = if above.is_some() {
            below.next()?
        } else {
            first.clone()
        };
        let under = below.next()?;
        let sign = rule(&text[under.clone()])?;
        let words = text[title].trim();
        let length = text[under.clone()].trim_end().chars().count();
        let is_title = !words.is_empty() && rule(words).is_none();
        let matches = above.is_none_or(|above| above == sign);
        (is_title && matches && length >= words.chars().count().min(4)).then(|| Heading {
            title: words,
            style: (sign, above.is_some()),
            range: first.start..under.end,
        })
    }
}

/// The sign of which the line consists.
fn rule(line: &str) -> Option<u8> {
    let line = line.trim_end().as_bytes();
    let sign = *line.first()?;
    let all_same = line.iter().all(|b| *b == sign);
    (line.len() >= 2 && sign.is_ascii_punctuation() && all_same).then_some(sign)
}

struct Reader<'t, 'f, 's> {
    text: &'t str,
    /// Styles of headings, from the highest level down.
    styles: Vec<(u8, bool)>,
    flow: &'f mut Flow<'s>,
}

impl Reader<'_, '_, '_> {
    fn heading(&mut self, heading: &Heading) -> Result<(), Problem> {
        let known = self.styles.iter().position(|s| *s == heading.style);
        let level = known.unwrap_or_else(|| {
            self.styles.push(heading.style);
            self.styles.len() - 1
        });
        let level = u32::try_from(level).unwrap_or(u32::MAX);
        self.flow
            .heading(level, heading.title, heading.range.clone())
    }

    fn body(&mut self, range: Range<usize>) -> Result<(), Problem> {
        let mut start = range.start;
        for end in blank_line_ends(&self.text[range.clone()]) {
            let paragraph = start..range.start + end;
            let text = &self.text[paragraph.clone()];
            // Indented text is code, a table or the like.
            let kind = if text
                .trim_start_matches(['\n', '\r'])
                .starts_with([' ', '\t'])
            {
                Kind::Lines
            } else {
                Kind::of_plain_text(text.trim())
            };
            start = paragraph.end;
            self.flow
                .block(&Block::verbatim(self.text, paragraph, kind))?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "rst_tests.rs"]
mod tests;

//! Blocks of text and where in the source they come from.

use std::ops::Range;

use super::Flow;
use crate::chunk::Kind;
use crate::error::Problem;

/// A piece of the document that belongs together: a paragraph, a function, a row.
pub(crate) struct Block<'t> {
    pub(crate) text: &'t str,
    pub(crate) origin: Origin<'t>,
    pub(crate) kind: Kind,
    /// Only a line break, not a blank line, parts it from the block before (list
    /// items, table rows).
    pub(crate) tight: bool,
}

impl<'t> Block<'t> {
    /// The range of the source as it stands there.
    pub(crate) fn verbatim(source: &'t str, range: Range<usize>, kind: Kind) -> Self {
        Block {
            text: &source[range.clone()],
            origin: Origin::Verbatim(range.start),
            kind,
            tight: false,
        }
    }
}

/// Where in the source a block's text comes from.
#[derive(Clone)]
pub(crate) enum Origin<'m> {
    /// From here on, character by character.
    Verbatim(usize),
    /// Piece by piece.
    Mapped(&'m [Segment]),
    /// From somewhere in this range.
    Within(Range<usize>),
}

/// A stretch of a block's text that came from a stretch of the source.
#[derive(Debug, Clone)]
pub(crate) struct Segment {
    pub(crate) text: Range<usize>,
    pub(crate) source: Range<usize>,
}

impl Segment {
    /// Where a place in the text is in the source: exactly, if the text stands
    /// there unchanged.
    fn source_of(&self, at: usize) -> Option<usize> {
        let unchanged = self.text.len() == self.source.len();
        (unchanged && self.text.contains(&at)).then(|| self.source.start + (at - self.text.start))
    }
}

impl Origin<'_> {
    /// Where a part of the block's text comes from.
    pub(super) fn of(&self, part: &Range<usize>) -> Range<usize> {
        match self {
            Origin::Verbatim(start) => start + part.start..start + part.end,
            Origin::Within(range) => range.clone(),
            Origin::Mapped(segments) => mapped(segments, part),
        }
    }
}

/// The smallest stretch of the source that holds what a part of the text came from.
fn mapped(segments: &[Segment], part: &Range<usize>) -> Range<usize> {
    let first = segments.partition_point(|segment| segment.text.end <= part.start);
    let past = segments.partition_point(|segment| segment.text.start < part.end);
    let Some(touched) = segments.get(first..past.max(first + 1)) else {
        // Made-up text behind the last segment.
        return segments.last().map_or(0..0, |last| last.source.clone());
    };
    let (first, last) = (&touched[0], &touched[touched.len() - 1]);
    let start = first.source_of(part.start).unwrap_or(first.source.start);
    let end = match last.source_of(part.end - 1) {
        Some(last_byte) => last_byte + 1,
        None => last.source.end,
    };
    start..end.max(start)
}

/// Builds the text of a block out of stretches of the source.
#[derive(Default)]
pub(crate) struct Builder {
    pub(crate) text: String,
    segments: Vec<Segment>,
}

impl Builder {
    /// Text that the source holds in this range, in these or other characters.
    pub(crate) fn push(&mut self, text: &str, source: Range<usize>) {
        if text.is_empty() {
            return;
        }
        let start = self.text.len();
        self.text.push_str(text);
        if let Some(last) = self.segments.last_mut() {
            let unchanged = last.text.len() == last.source.len() && text.len() == source.len();
            if unchanged && last.text.end == start && last.source.end == source.start {
                last.text.end = self.text.len();
                last.source.end = source.end;
                return;
            }
        }
        self.segments.push(Segment {
            text: start..self.text.len(),
            source,
        });
    }

    /// Text that is not in the source: a separator, a list mark.
    pub(crate) fn push_mark(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// Nothing of the source is in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    pub(crate) fn range(&self) -> Range<usize> {
        match (self.segments.first(), self.segments.last()) {
            (Some(first), Some(last)) => first.source.start..last.source.end,
            _ => 0..0,
        }
    }

    /// Hands the block over and starts anew. Marks alone are no block.
    pub(crate) fn emit(&mut self, flow: &mut Flow, kind: Kind, tight: bool) -> Result<(), Problem> {
        let built = std::mem::take(self);
        if built.is_empty() {
            return Ok(());
        }
        flow.block(&Block {
            text: &built.text,
            origin: Origin::Mapped(&built.segments),
            kind,
            tight,
        })
    }
}

//! Readers pour headings and blocks in; passages of the right size come out.
//!
//! Blocks that are too large are cut ([`crate::chunk`]); small neighbours under the
//! same heading are joined up to the target. A heading goes into the trail of what
//! follows it; only where nothing stands under it, it becomes text of its parent.

use std::ops::Range;

use crate::chunk::{Cost, Kind, cost, split};
use crate::decode::Source;
use crate::error::Problem;
use crate::{Passage, ReadOptions};

/// A longer heading is cut in the trail and kept as text, or a huge one would be
/// repeated in every passage.
const MAX_TITLE: usize = 160;
/// Deeper headings are treated as text.
const MAX_DEPTH: usize = 8;
/// White space in the file between two blocks that may be taken into a passage.
const MAX_GAP: usize = 64;

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
    fn of(&self, part: &Range<usize>) -> Range<usize> {
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

struct Heading {
    level: u32,
    title: String,
    /// Tells two headings of the same words apart.
    id: usize,
    /// Something stands under it.
    used: bool,
    range: Range<usize>,
}

/// A passage that may still grow.
struct Open {
    text: String,
    cost: Cost,
    range: Range<usize>,
    verbatim: bool,
    headings: Vec<String>,
    heading_id: usize,
}

pub(crate) struct Flow<'s> {
    options: &'s ReadOptions,
    /// None where the format has no lines or bytes to point at.
    source: Option<&'s Source<'s>>,
    /// While a part of another format is read, where in the source it lies.
    within: Option<Range<usize>>,
    part: Option<u32>,
    headings: Vec<Heading>,
    heading_ids: usize,
    open: Option<Open>,
    passages: Vec<Passage>,
    text_bytes: u64,
    warnings: Vec<String>,
}

impl<'s> Flow<'s> {
    pub(crate) fn new(source: Option<&'s Source<'s>>, options: &'s ReadOptions) -> Self {
        Self {
            options,
            source,
            within: None,
            part: None,
            headings: Vec::new(),
            heading_ids: 0,
            open: None,
            passages: Vec::new(),
            text_bytes: 0,
            warnings: Vec::new(),
        }
    }

    pub(crate) fn options(&self) -> &'s ReadOptions {
        self.options
    }

    /// Sets page, chapter, row or message of what follows.
    pub(crate) fn set_part(&mut self, part: Option<u32>) -> Result<(), Problem> {
        self.flush()?;
        self.part = part;
        Ok(())
    }

    /// Reads a part of another format, all of which comes from this range of the source.
    pub(crate) fn within(
        &mut self,
        range: Range<usize>,
        read: impl FnOnce(&mut Self) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        let outer = self.within.replace(range);
        let result = read(self);
        self.within = outer;
        result
    }

    /// Opens a section. Smaller levels are further out; 0 is the document's title.
    pub(crate) fn heading(
        &mut self,
        level: u32,
        title: &str,
        range: Range<usize>,
    ) -> Result<(), Problem> {
        let title = collapse(title);
        if title.is_empty() {
            return Ok(());
        }
        self.close_headings(level)?;
        let range = self.within.clone().unwrap_or(range);
        if self.headings.len() == MAX_DEPTH {
            return self.push(&title, range, false, true);
        }
        // <title> and <h1> often say the same.
        if self.headings.last().is_some_and(|h| h.title == title) {
            return Ok(());
        }
        self.heading_ids += 1;
        let short = clip(&title, MAX_TITLE);
        let cut = short != title;
        self.headings.push(Heading {
            level,
            title: short,
            id: self.heading_ids,
            used: false,
            range: range.clone(),
        });
        if cut {
            self.push_cut(&title, &range)?;
        }
        Ok(())
    }

    /// Ends all sections of this level and deeper.
    pub(crate) fn close_headings(&mut self, level: u32) -> Result<(), Problem> {
        while self.headings.last().is_some_and(|h| h.level >= level) {
            if let Some(heading) = self.headings.pop()
                && !heading.used
            {
                self.push(&heading.title, heading.range, false, true)?;
            }
        }
        Ok(())
    }

    /// Text that may be joined with its neighbours.
    pub(crate) fn block(&mut self, block: &Block) -> Result<(), Problem> {
        let verbatim = matches!(block.origin, Origin::Verbatim(_)) && self.within.is_none();
        for part in split(block.text, block.kind, &self.options.chunk) {
            let range = match &self.within {
                Some(range) => range.clone(),
                None => block.origin.of(&part),
            };
            self.push(&block.text[part], range, verbatim, block.tight)?;
        }
        Ok(())
    }

    /// Text that is a passage by itself: a row.
    pub(crate) fn alone(&mut self, block: &Block) -> Result<(), Problem> {
        self.flush()?;
        self.block(block)?;
        self.flush()
    }

    fn push_cut(&mut self, text: &str, range: &Range<usize>) -> Result<(), Problem> {
        for part in split(text, Kind::Prose, &self.options.chunk) {
            self.push(&text[part], range.clone(), false, false)?;
        }
        Ok(())
    }

    fn push(
        &mut self,
        text: &str,
        range: Range<usize>,
        verbatim: bool,
        tight: bool,
    ) -> Result<(), Problem> {
        let cost = cost(text);
        for heading in self.headings.iter_mut().rev() {
            if std::mem::replace(&mut heading.used, true) {
                break;
            }
        }
        let gap = self.gap(&range, cost, verbatim, tight);
        let (Some(gap), Some(open)) = (gap, &mut self.open) else {
            self.flush()?;
            self.open = Some(Open {
                text: text.to_string(),
                cost,
                range,
                verbatim,
                headings: self.headings.iter().map(|h| h.title.clone()).collect(),
                heading_id: self.headings.last().map_or(0, |h| h.id),
            });
            return Ok(());
        };
        open.text.push_str(gap);
        open.text.push_str(text);
        open.cost += cost;
        open.range = open.range.start.min(range.start)..open.range.end.max(range.end);
        Ok(())
    }

    /// What parts the open passage from a new piece if the two are to be joined.
    fn gap(
        &self,
        range: &Range<usize>,
        cost: Cost,
        verbatim: bool,
        tight: bool,
    ) -> Option<&'s str> {
        let open = self.open.as_ref()?;
        let heading_id = self.headings.last().map_or(0, |h| h.id);
        let chunk = &self.options.chunk;
        let (target, max) = (chunk.target_tokens * 10, chunk.max_tokens * 10);
        let joined = open.cost + cost;
        // A scrap may make a passage somewhat larger than the target.
        let scrap = open.cost.min(cost) < target / 4;
        let fits = joined <= target || (scrap && joined <= max);
        if open.heading_id != heading_id || !fits {
            return None;
        }
        let Some(source) = self.source.filter(|_| verbatim && open.verbatim) else {
            return Some(if tight { "\n" } else { "\n\n" });
        };
        let gap = source.text.get(open.range.end..range.start)?;
        (gap.len() <= MAX_GAP && gap.trim().is_empty()).then_some(gap)
    }

    /// Ends the open passage.
    pub(crate) fn flush(&mut self) -> Result<(), Problem> {
        let Some(open) = self.open.take() else {
            return Ok(());
        };
        let options = self.options;
        if self.passages.len() >= options.max_passages_per_file {
            return Err(Problem::fail(
                format!("has more than {} passages", options.max_passages_per_file),
                "raise --max-passages-per-file",
            ));
        }
        let text = clean(open.text);
        let trail: usize = open.headings.iter().map(String::len).sum();
        self.text_bytes += (text.len() + trail) as u64;
        if self.text_bytes > options.max_unpacked_size {
            return Err(unpacks_to_more_than(options));
        }
        let (lines, bytes) = match self.source {
            Some(source) => (source.lines(&open.range), source.bytes(&open.range)),
            None => (0..0, 0..0),
        };
        self.passages.push(Passage {
            text,
            headings: open.headings,
            lines,
            part: self.part,
            bytes,
        });
        Ok(())
    }

    /// Notes a part of the file that could not be read.
    pub(crate) fn warn(&mut self, warning: String) {
        self.warnings.push(warning);
    }

    /// All passages in the order of the document, and the warnings.
    pub(crate) fn finish(mut self) -> Result<(Vec<Passage>, Vec<String>), Problem> {
        self.close_headings(0)?;
        self.flush()?;
        Ok((self.passages, self.warnings))
    }
}

pub(crate) fn unpacks_to_more_than(options: &ReadOptions) -> Problem {
    Problem::fail(
        format!("unpacks to more than {} bytes", options.max_unpacked_size),
        "raise --max-unpacked-size if you trust it",
    )
}

/// White space collapsed to single spaces.
pub(crate) fn collapse(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    line
}

/// The text, or its beginning with an ellipsis.
pub(crate) fn clip(text: &str, max_bytes: usize) -> String {
    if text.len() <= max_bytes {
        return text.to_string();
    }
    let cut = crate::chunk::floor_char_boundary(text, max_bytes);
    format!("{}…", text[..cut].trim_end())
}

/// Line ends become `\n`; control characters, which would act on a terminal, blanks.
fn clean(text: String) -> String {
    let odd = |c: char| c.is_control() && c != '\n' && c != '\t';
    if !text.contains(odd) {
        return text;
    }
    let unix = text.replace("\r\n", "\n").replace('\r', "\n");
    unix.chars().map(|c| if odd(c) { ' ' } else { c }).collect()
}

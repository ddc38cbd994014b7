//! Readers pour headings and blocks in; passages of the right size come out.
//!
//! Blocks that are too large are cut ([`crate::chunk`]); small neighbours under the
//! same heading are joined up to the target. A heading goes into the trail of what
//! follows it; only where nothing stands under it, it becomes text of its parent.
//!
//! A section of a few words makes a poor passage, so it is joined with the next one if
//! that is beside, above or below it: the trail then ends where the two part, and their
//! own headings stand in the text.

mod block;

use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;

pub(crate) use block::{Block, Builder, Origin};

use crate::chunk::{Kind, Part, split};
use crate::decode::Source;
use crate::error::Problem;
use crate::tokens::{Cost, cost};
use crate::{Passage, ReadOptions};

/// A longer heading is cut in the trail and kept as text, or a huge one would be
/// repeated in every passage.
const MAX_TITLE: usize = 160;
/// Deeper headings are treated as text.
const MAX_DEPTH: usize = 8;
/// White space in the file between two blocks that may be taken into a passage.
const MAX_GAP: usize = 64;

struct Heading {
    level: u32,
    title: String,
    range: Range<usize>,
    /// Something stands under it.
    used: Cell<bool>,
}

type Trail = Vec<Rc<Heading>>;

/// How many headings two trails share from the top.
fn shared(a: &Trail, b: &Trail) -> usize {
    let same = |(a, b): &(&Rc<Heading>, &Rc<Heading>)| Rc::ptr_eq(a, b);
    a.iter().zip(b).take_while(same).count()
}

/// Text no larger than a passage, on its way into one.
struct Piece<'t> {
    text: &'t str,
    cost: Cost,
    range: Range<usize>,
    /// The text is what stands in the range.
    verbatim: bool,
    /// It is code or the like, into which no heading is written.
    code: bool,
    tight: bool,
}

impl<'t> Piece<'t> {
    fn title(text: &'t str, cost: Cost, range: Range<usize>) -> Self {
        Piece {
            text,
            cost,
            range,
            verbatim: false,
            code: false,
            tight: true,
        }
    }
}

/// A passage that may still grow.
struct Open {
    text: String,
    cost: Cost,
    range: Range<usize>,
    verbatim: bool,
    code: bool,
    /// The headings above all of it.
    trail: Trail,
    /// The headings above its last piece; those not above all of it are in the text.
    last: Trail,
}

impl Open {
    /// Shortens the trail; what is cut off becomes the beginning of the text.
    fn move_headings_into_text(&mut self, keep: usize) {
        let mut moved = self.trail.split_off(keep);
        while let Some(heading) = moved.pop() {
            self.text = format!("{}\n{}", heading.title, self.text);
            self.cost += cost(&heading.title);
            self.range.start = self.range.start.min(heading.range.start);
            self.verbatim = false;
        }
    }

    fn append(&mut self, separator: &str, text: &str, cost: Cost, range: &Range<usize>) {
        self.text.push_str(separator);
        self.text.push_str(text);
        self.cost += cost;
        self.range = self.range.start.min(range.start)..self.range.end.max(range.end);
    }
}

pub(crate) struct Flow<'s> {
    options: &'s ReadOptions,
    /// None where the format has no lines or bytes to point at.
    source: Option<&'s Source<'s>>,
    /// While a part of another format is read, where in the source it lies.
    within: Option<Range<usize>>,
    part: Option<u32>,
    trail: Trail,
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
            trail: Trail::new(),
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
        let title = clean(collapse(title));
        if title.is_empty() {
            return Ok(());
        }
        self.close_headings(level)?;
        let range = self.within.clone().unwrap_or(range);
        if self.trail.len() == MAX_DEPTH {
            return self.push_title(&title, &range);
        }
        // <title> and <h1> often say the same.
        if self.trail.last().is_some_and(|above| above.title == title) {
            return Ok(());
        }
        let short = clip(&title, MAX_TITLE);
        let cut = short != title;
        self.trail.push(Rc::new(Heading {
            level,
            title: short,
            range: range.clone(),
            used: Cell::new(false),
        }));
        if cut {
            self.push_title(&title, &range)?;
        }
        Ok(())
    }

    /// Ends all sections of this level and deeper.
    pub(crate) fn close_headings(&mut self, level: u32) -> Result<(), Problem> {
        while self.trail.last().is_some_and(|h| h.level >= level) {
            if let Some(heading) = self.trail.pop()
                && !heading.used.get()
            {
                self.push_title(&heading.title, &heading.range)?;
            }
        }
        Ok(())
    }

    /// Text that may be joined with its neighbours.
    pub(crate) fn block(&mut self, block: &Block) -> Result<(), Problem> {
        let in_place = matches!(block.origin, Origin::Verbatim(_));
        for Part { range: part, cost } in split(block.text, block.kind, &self.options.chunk) {
            let range = match &self.within {
                Some(range) => range.clone(),
                None => block.origin.of(&part),
            };
            self.push(Piece {
                text: &block.text[part],
                cost,
                range,
                verbatim: in_place && self.within.is_none(),
                code: in_place && block.kind == Kind::Lines,
                tight: block.tight,
            })?;
        }
        Ok(())
    }

    /// Text that is a passage by itself: a row.
    pub(crate) fn alone(&mut self, block: &Block) -> Result<(), Problem> {
        self.flush()?;
        self.block(block)?;
        self.flush()
    }

    /// A heading as text.
    fn push_title(&mut self, title: &str, range: &Range<usize>) -> Result<(), Problem> {
        for part in split(title, Kind::Prose, &self.options.chunk) {
            let text = &title[part.range];
            self.push(Piece::title(text, part.cost, range.clone()))?;
        }
        Ok(())
    }

    fn push(&mut self, piece: Piece) -> Result<(), Problem> {
        for heading in self.trail.iter().rev() {
            if heading.used.replace(true) {
                break;
            }
        }
        if self.join(&piece) {
            return Ok(());
        }
        self.flush()?;
        self.open = Some(Open {
            text: piece.text.to_string(),
            cost: piece.cost,
            range: piece.range,
            verbatim: piece.verbatim,
            code: piece.code,
            trail: self.trail.clone(),
            last: self.trail.clone(),
        });
        Ok(())
    }

    /// Joins a piece with the open passage if that is right; says whether it was.
    fn join(&mut self, piece: &Piece) -> bool {
        let Some(open) = &mut self.open else {
            return false;
        };
        let chunk = &self.options.chunk;
        let (target, max) = (chunk.target_tokens * 10, chunk.max_tokens * 10);
        let same_section = open.last.len() == self.trail.len()
            && shared(&open.last, &self.trail) == self.trail.len();
        if same_section {
            let joined = open.cost + piece.cost;
            // A scrap may make a passage somewhat larger than the target.
            let scrap = open.cost.min(piece.cost) < target / 4;
            if joined > if scrap { max } else { target } {
                return false;
            }
            let Some(gap) = gap(self.source, open, piece) else {
                return false;
            };
            open.append(gap, piece.text, piece.cost, &piece.range);
            return true;
        }
        let keep = shared(&open.trail, &self.trail);
        let (moved, added) = (&open.trail[keep..], &self.trail[keep..]);
        let titles: Cost = moved.iter().chain(added).map(|h| cost(&h.title)).sum();
        // The sections that end here are a scrap, and the one that begins is near.
        let near = moved.len() <= 1 && added.len() <= 1;
        let fits = open.cost < target / 4 && open.cost + piece.cost + titles <= target;
        if !near || !fits || open.code || piece.code {
            return false;
        }
        open.move_headings_into_text(keep);
        open.verbatim = false;
        let mut separator = "\n\n";
        for heading in added {
            open.append(
                separator,
                &heading.title,
                cost(&heading.title),
                &heading.range,
            );
            separator = "\n";
        }
        open.append(separator, piece.text, piece.cost, &piece.range);
        open.last.clone_from(&self.trail);
        true
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
        let headings: Vec<String> = open.trail.iter().map(|h| h.title.clone()).collect();
        let trail: usize = headings.iter().map(String::len).sum();
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
            headings,
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

/// What parts the open passage from a piece of the same section; None if they must stay
/// apart since more than white space lies between them in the file.
fn gap<'s>(source: Option<&'s Source>, open: &Open, piece: &Piece) -> Option<&'s str> {
    let Some(source) = source.filter(|_| piece.verbatim && open.verbatim) else {
        return Some(if piece.tight { "\n" } else { "\n\n" });
    };
    let gap = source.text.get(open.range.end..piece.range.start)?;
    (gap.len() <= MAX_GAP && gap.trim().is_empty()).then_some(gap)
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

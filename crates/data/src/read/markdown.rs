//! Markdown (CommonMark with GitHub's tables, footnotes and task lists), by
//! pulldown-cmark. The text is what a reader of the rendered page sees, without link
//! targets and marks of emphasis; code, list marks and line ends stay.

use std::ops::Range;

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

use crate::chunk::{Kind, floor_char_boundary, line_ends};
use crate::error::Problem;
use crate::flow::{Builder, Flow};

/// Lines that open more quotes or lists at once are read as plain text: every line
/// below would be checked against all of them.
const MAX_NESTING: usize = 64;

/// A larger document is parsed in sections of about this size, since the parser takes
/// up to 70 bytes of memory for one of text. Only links and footnotes that are defined
/// in another section notice.
const SECTION: usize = 1 << 20;

pub(super) fn read(text: &str, flow: &mut Flow) -> Result<(), Problem> {
    if text.lines().any(|line| nesting(line) > MAX_NESTING) {
        return super::text::read(text, flow);
    }
    let mut start = 0;
    while start < text.len() {
        let end = start + section_end(&text[start..]);
        read_section(text, start..end, flow)?;
        start = end;
    }
    Ok(())
}

/// Where a section may end: behind a blank line outside of code blocks once it is large
/// enough, at the latest when it is twice that large.
fn section_end(text: &str) -> usize {
    let (mut start, mut in_code) = (0, false);
    for end in line_ends(text) {
        let line = text[start..end].trim_start();
        in_code ^= line.starts_with("```") || line.starts_with("~~~");
        let blank = line.is_empty();
        if end > 2 * SECTION {
            return floor_char_boundary(text, if start > SECTION { start } else { 2 * SECTION });
        }
        if end > SECTION && blank && !in_code {
            return end;
        }
        start = end;
    }
    text.len()
}

fn read_section(text: &str, section: Range<usize>, flow: &mut Flow) -> Result<(), Problem> {
    let options = Options::ENABLE_TABLES
        | Options::ENABLE_FOOTNOTES
        | Options::ENABLE_STRIKETHROUGH
        | Options::ENABLE_TASKLISTS
        | Options::ENABLE_GFM
        | Options::ENABLE_YAML_STYLE_METADATA_BLOCKS
        | Options::ENABLE_PLUSES_DELIMITED_METADATA_BLOCKS;
    let mut reader = Reader {
        source: text,
        flow,
        block: Builder::default(),
        lists: Vec::new(),
        place: Place::Text,
    };
    let parser = Parser::new_ext(&text[section.clone()], options);
    for (event, range) in parser.into_offset_iter() {
        reader.event(
            event,
            section.start + range.start..section.start + range.end,
        )?;
    }
    reader.emit()
}

/// How many quotes and list items the line may open.
fn nesting(line: &str) -> usize {
    line.bytes()
        .take_while(|b| {
            matches!(
                b,
                b'>' | b'-' | b'*' | b'+' | b' ' | b'\t' | b'.' | b')' | b'0'..=b'9'
            )
        })
        .filter(|b| matches!(b, b'>' | b'-' | b'*' | b'+' | b'.' | b')'))
        .count()
}

/// What the text that comes in belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Text,
    Code,
    Row,
    Html,
    Metadata,
}

struct Reader<'t, 'f, 's> {
    source: &'t str,
    flow: &'f mut Flow<'s>,
    block: Builder,
    /// The next number of each open list; None for bullets.
    lists: Vec<Option<u64>>,
    place: Place,
}

impl Reader<'_, '_, '_> {
    fn event(&mut self, event: Event, range: Range<usize>) -> Result<(), Problem> {
        match event {
            Event::Start(tag) => return self.start(tag),
            Event::End(tag) => return self.end(tag, range),
            Event::Text(text)
            | Event::Code(text)
            | Event::InlineMath(text)
            | Event::DisplayMath(text) => match self.place {
                Place::Html => {}
                _ => self.block.push(&text, range),
            },
            Event::FootnoteReference(label) => self.block.push(&format!("[{label}]"), range),
            Event::SoftBreak | Event::HardBreak => self.block.push("\n", range),
            Event::InlineHtml(tag) if tag.starts_with("<br") => self.block.push("\n", range),
            Event::TaskListMarker(true) => self.block.push_mark("[x] "),
            Event::TaskListMarker(false) => self.block.push_mark("[ ] "),
            Event::Rule => return self.emit(),
            Event::Html(_) | Event::InlineHtml(_) => {}
        }
        Ok(())
    }

    fn start(&mut self, tag: Tag) -> Result<(), Problem> {
        match tag {
            Tag::Item => {
                self.emit()?;
                self.start_item();
            }
            Tag::List(first) => {
                self.emit()?;
                self.lists.push(first);
            }
            // The first paragraph of an item or note stands behind its mark.
            Tag::Paragraph if self.block.is_empty() => {}
            Tag::Paragraph | Tag::Heading { .. } | Tag::BlockQuote(_) | Tag::Table(_) => {
                self.emit()?;
            }
            Tag::CodeBlock(_) => self.start_place(Place::Code)?,
            Tag::HtmlBlock => self.start_place(Place::Html)?,
            Tag::MetadataBlock(_) => self.start_place(Place::Metadata)?,
            Tag::TableHead | Tag::TableRow => self.start_place(Place::Row)?,
            Tag::TableCell if !self.block.text.is_empty() => self.block.push_mark(" | "),
            Tag::FootnoteDefinition(label) => {
                self.emit()?;
                self.block.push_mark(&format!("[{label}]: "));
            }
            _ => {}
        }
        Ok(())
    }

    fn start_place(&mut self, place: Place) -> Result<(), Problem> {
        self.emit()?;
        self.place = place;
        Ok(())
    }

    fn start_item(&mut self) {
        let indentation = "  ".repeat(self.lists.len().saturating_sub(1).min(8));
        self.block.push_mark(&indentation);
        match self.lists.last_mut() {
            Some(Some(number)) => {
                self.block.push_mark(&format!("{number}. "));
                *number = number.saturating_add(1);
            }
            _ => self.block.push_mark("- "),
        }
    }

    fn end(&mut self, tag: TagEnd, range: Range<usize>) -> Result<(), Problem> {
        match tag {
            TagEnd::Heading(level) => {
                let title = std::mem::take(&mut self.block);
                self.flow.heading(level as u32, &title.text, range)
            }
            TagEnd::List(_) => {
                self.emit()?;
                self.lists.pop();
                Ok(())
            }
            TagEnd::HtmlBlock => {
                self.block = Builder::default();
                self.place = Place::Text;
                super::html::read(&self.source[range.clone()], range.start, 0, self.flow)
            }
            TagEnd::MetadataBlock(_) => {
                if let Some(title) = front_matter_title(&self.block.text) {
                    self.flow.heading(0, &title, self.block.range())?;
                }
                self.emit()
            }
            TagEnd::Paragraph
            | TagEnd::Item
            | TagEnd::CodeBlock
            | TagEnd::TableHead
            | TagEnd::TableRow
            | TagEnd::FootnoteDefinition => self.emit(),
            _ => Ok(()),
        }
    }

    fn emit(&mut self) -> Result<(), Problem> {
        let place = std::mem::replace(&mut self.place, Place::Text);
        let kind = match place {
            Place::Text => Kind::Prose,
            _ => Kind::Lines,
        };
        let tight = place == Place::Row || !self.lists.is_empty();
        self.block.emit(self.flow, kind, tight)
    }
}

/// The value of `title:` (YAML) or `title =` (TOML).
fn front_matter_title(text: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with("title"))?;
    let value = line["title".len()..]
        .trim_start()
        .strip_prefix([':', '='])?;
    Some(value.trim().trim_matches(['"', '\'']).to_string())
}

#[cfg(test)]
#[path = "markdown_tests.rs"]
mod tests;

//! Documents that are zip archives of XML: DOCX, ODT, EPUB.

pub(super) mod docx;
pub(super) mod epub;
pub(super) mod odt;

use quick_xml::Reader;
use quick_xml::events::{BytesRef, BytesStart, Event};

use crate::chunk::Kind;
use crate::decode::Source;
use crate::error::Problem;
use crate::flow::{Block, Flow, Origin, collapse};

/// The text of an XML member.
fn decode<'m>(member: &'m [u8], name: &str) -> Result<Source<'m>, Problem> {
    let declared = super::html::declared_encoding(member);
    Source::decode(member, declared).map_err(|_| {
        Problem::fail(
            format!("{name} inside is no text"),
            "it may be encrypted or damaged",
        )
    })
}

/// Goes through the events of an XML text. Elements are not matched up, entities of the
/// document's own are not expanded: neither depth nor expansion costs anything.
fn each_event(
    xml: &str,
    name: &str,
    mut call: impl FnMut(Event) -> Result<(), Problem>,
) -> Result<(), Problem> {
    let mut reader = Reader::from_str(xml);
    let config = reader.config_mut();
    config.check_end_names = false;
    config.allow_unmatched_ends = true;
    config.allow_dangling_amp = true;
    loop {
        match reader.read_event() {
            Ok(Event::Eof) => return Ok(()),
            Ok(event) => call(event)?,
            Err(error) => {
                return Err(Problem::fail(
                    format!("{name} inside is damaged XML: {error}"),
                    "save it again",
                ));
            }
        }
    }
}

/// The value of an attribute by its name without prefix.
fn attribute(element: &BytesStart, name: &str) -> Option<String> {
    element
        .attributes()
        .with_checks(false)
        .flatten()
        .find(|attribute| attribute.key.local_name().as_ref() == name)
        .map(|attribute| {
            let value = quick_xml::escape::unescape(&attribute.value);
            value.map_or_else(|_| attribute.value.to_string(), |value| value.into_owned())
        })
}

/// The character of a predefined or numeric entity; others are left out.
fn entity(entity: &BytesRef) -> Option<char> {
    match &**entity {
        "amp" => Some('&'),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        _ => entity.resolve_char_ref().ok().flatten(),
    }
}

/// Puts paragraphs, headings and table rows together.
struct Body<'f, 's> {
    flow: &'f mut Flow<'s>,
    text: String,
    /// Open paragraphs (a text box or footnote lies within another).
    paragraphs: usize,
    heading: Option<u32>,
    in_list: bool,
    /// Open table rows, and the cells of the outermost.
    rows: usize,
    cells: Vec<String>,
}

impl<'f, 's> Body<'f, 's> {
    fn new(flow: &'f mut Flow<'s>) -> Self {
        Self {
            flow,
            text: String::new(),
            paragraphs: 0,
            heading: None,
            in_list: false,
            rows: 0,
            cells: Vec::new(),
        }
    }

    fn push(&mut self, c: char) {
        self.text.push(c);
    }

    fn start_paragraph(&mut self) {
        self.paragraphs += 1;
        if self.paragraphs > 1 && !self.text.is_empty() {
            self.text.push('\n');
        }
    }

    fn end_paragraph(&mut self) -> Result<(), Problem> {
        self.paragraphs = self.paragraphs.saturating_sub(1);
        if self.paragraphs > 0 {
            return Ok(());
        }
        let heading = self.heading.take();
        if self.rows > 0 {
            // A paragraph of a cell.
            self.text.push(' ');
            return Ok(());
        }
        let text = std::mem::take(&mut self.text);
        let in_list = std::mem::take(&mut self.in_list);
        match heading {
            Some(level) => self.flow.heading(level, &text, 0..0),
            None if in_list => self.block(&format!("- {}", text.trim()), Kind::Prose, true),
            None => self.block(&text, Kind::Prose, false),
        }
    }

    fn start_row(&mut self) {
        self.rows += 1;
    }

    fn end_cell(&mut self) {
        if self.rows == 1 {
            let cell = collapse(&std::mem::take(&mut self.text));
            self.cells.push(cell);
        }
    }

    fn end_row(&mut self) -> Result<(), Problem> {
        self.rows = self.rows.saturating_sub(1);
        if self.rows > 0 {
            return Ok(());
        }
        let cells = std::mem::take(&mut self.cells);
        if cells.iter().all(String::is_empty) {
            return Ok(());
        }
        self.block(&cells.join(" | "), Kind::Lines, true)
    }

    fn block(&mut self, text: &str, kind: Kind, tight: bool) -> Result<(), Problem> {
        self.flow.block(&Block {
            text,
            origin: Origin::Within(0..0),
            kind,
            tight,
        })
    }

    /// Ends whatever a torn document left open.
    fn finish(mut self) -> Result<(), Problem> {
        let mut text = std::mem::take(&mut self.text);
        if !self.cells.is_empty() {
            self.cells.push(text);
            text = self.cells.join(" | ");
        }
        self.block(&text, Kind::Prose, false)
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;

//! JSON and JSON Lines: an object of a list is a passage of `name: value` lines, the
//! names of nested values joined by dots. So is each entry of an object of objects,
//! and a single object if it is small; a large one is cut at its entries, which become
//! headings.
//!
//! The outer levels are walked as raw text ([`RawValue`]), so that it is known which
//! bytes a passage came from and memory stays within the file's size.

mod flatten;

use std::ops::Range;

use serde_json::value::RawValue;

use crate::chunk::{Kind, line_ends};
use crate::error::Problem;
use crate::flow::{Block, Flow, Origin};
use crate::languages;
use crate::tokens::cost;

/// Levels of a large object that become headings.
const MAX_HEADINGS: u32 = 4;

pub(super) fn read(text: &str, flow: &mut Flow) -> Result<(), Problem> {
    let raw: &RawValue = match serde_json::from_str(text) {
        Ok(raw) => raw,
        Err(error) => return read_faulty(text, &error, flow),
    };
    Reader { text, flow }.value(raw, 1)
}

/// JSON with comments, and JSON Lines under another name.
fn read_faulty(text: &str, error: &serde_json::Error, flow: &mut Flow) -> Result<(), Problem> {
    if error.is_syntax() && error.to_string().starts_with("trailing characters") {
        return read_lines(text, flow);
    }
    match languages::by_name("JSON with comments") {
        Some(language) if text.contains("//") || text.contains("/*") => {
            super::code::read(text, language, flow)
        }
        _ => Err(problem(error)),
    }
}

pub(super) fn problem(error: &serde_json::Error) -> Problem {
    let what = error.to_string();
    if what.starts_with("recursion limit") {
        return Problem::fail("nests deeper than 128 levels", "");
    }
    Problem::fail(
        format!("is no valid JSON: {what}"),
        "mend it, or rename it to .txt to have it read as text",
    )
}

/// A line that does not parse is taken as it stands.
pub(super) fn read_lines(text: &str, flow: &mut Flow) -> Result<(), Problem> {
    let limit = flow.options().max_unpacked_size;
    let mut start = 0;
    for (i, end) in line_ends(text).enumerate() {
        let range = start..end;
        start = end;
        let line = text[range.clone()].trim();
        if line.is_empty() {
            continue;
        }
        flow.set_part(Some(u32::try_from(i + 1).unwrap_or(u32::MAX)))?;
        match flatten::flatten(line, limit) {
            Ok(flat) => flow.alone(&row(&flat, range))?,
            Err(error) if error.is_syntax() && !is_too_deep(&error) => {
                flow.block(&Block::verbatim(text, range, Kind::Lines))?;
            }
            Err(error) if error.is_eof() => {
                flow.block(&Block::verbatim(text, range, Kind::Lines))?;
            }
            Err(error) => return Err(problem(&error)),
        }
    }
    Ok(())
}

fn is_too_deep(error: &serde_json::Error) -> bool {
    error.to_string().starts_with("recursion limit")
}

fn row(text: &str, range: Range<usize>) -> Block<'_> {
    Block {
        text,
        origin: Origin::Within(range),
        kind: Kind::Lines,
        tight: true,
    }
}

struct Reader<'t, 'f, 's> {
    text: &'t str,
    flow: &'f mut Flow<'s>,
}

impl<'t> Reader<'t, '_, '_> {
    /// Where a value stands in the file.
    fn range(&self, raw: &RawValue) -> Range<usize> {
        let start = raw.get().as_ptr() as usize - self.text.as_ptr() as usize;
        start..start + raw.get().len()
    }

    fn value(&mut self, raw: &'t RawValue, depth: u32) -> Result<(), Problem> {
        match raw.get().as_bytes().first() {
            Some(b'[') => self.list(raw),
            Some(b'{') => self.object(raw, depth),
            _ => self.flat("", raw, false),
        }
    }

    fn list(&mut self, raw: &'t RawValue) -> Result<(), Problem> {
        let mut index = 0;
        flatten::each_element(raw, &mut |element: &'t RawValue| {
            index += 1;
            if is_container(element) {
                self.flow.set_part(Some(index))?;
                self.flat("", element, true)
            } else {
                self.flat("", element, false)
            }
        })?;
        self.flow.set_part(None)
    }

    fn object(&mut self, raw: &'t RawValue, depth: u32) -> Result<(), Problem> {
        let (mut entries, mut objects) = (0, 0);
        flatten::each_entry(raw, &mut |_, value| {
            entries += 1;
            objects += usize::from(value.get().starts_with('{'));
            Ok(())
        })?;
        let of_objects = entries > 1 && objects == entries;
        if !of_objects && self.is_small(raw)? {
            return self.flat("", raw, false);
        }
        flatten::each_entry(raw, &mut |name, value| {
            if !is_container(value) {
                return self.flat(name, value, false);
            }
            if depth > MAX_HEADINGS {
                return self.flat(name, value, true);
            }
            let range = self.range(value);
            self.flow.heading(depth, name, range)?;
            if of_objects && self.is_small(value)? {
                self.flat("", value, true)?;
            } else {
                self.value(value, depth + 1)?;
            }
            self.flow.close_headings(depth)
        })
    }

    /// One passage holds it.
    fn is_small(&self, raw: &RawValue) -> Result<bool, Problem> {
        let options = self.flow.options();
        // Even short names and numbers cost a token for a few bytes.
        if raw.get().len() > options.chunk.max_tokens * 40 {
            return Ok(false);
        }
        let flat = flatten::flatten(raw.get(), options.max_unpacked_size);
        let flat = flat.map_err(|error| problem(&error))?;
        Ok(cost(&flat) <= options.chunk.max_tokens * 10)
    }

    fn flat(&mut self, name: &str, raw: &RawValue, alone: bool) -> Result<(), Problem> {
        let limit = self.flow.options().max_unpacked_size;
        let flat = flatten::flatten_named(name, raw.get(), limit);
        let flat = flat.map_err(|error| problem(&error))?;
        let block = row(&flat, self.range(raw));
        if alone {
            self.flow.alone(&block)
        } else {
            self.flow.block(&block)
        }
    }
}

fn is_container(raw: &RawValue) -> bool {
    raw.get().starts_with(['{', '['])
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;

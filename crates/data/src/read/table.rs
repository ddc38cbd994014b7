//! CSV and TSV: a row is a passage of `name: value` lines. The first row gives the
//! names if it looks like names; rows may be of unequal length.

use csv::{ReaderBuilder, StringRecord};

use crate::chunk::Kind;
use crate::error::Problem;
use crate::flow::{Block, Flow, Origin, clip, collapse};

/// Column names are cut to this many bytes: they are repeated in every row.
const MAX_NAME: usize = 80;
/// Wider tables have no names.
const MAX_NAMES: usize = 1 << 14;

/// The delimiter that the first line has most of.
pub(super) fn delimiter(text: &str) -> u8 {
    let line = text.trim_start().lines().next().unwrap_or_default();
    // Every other piece is inside quotes.
    let outside: String = line.split('"').step_by(2).collect();
    let count = |delimiter: &u8| outside.bytes().filter(|b| b == delimiter).count();
    // The last of equals wins.
    let known = [b'|', b'\t', b';', b','];
    known.into_iter().max_by_key(count).unwrap_or(b',')
}

pub(super) fn read(text: &str, delimiter: u8, flow: &mut Flow) -> Result<(), Problem> {
    let mut reader = ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .delimiter(delimiter)
        .from_reader(text.as_bytes());
    let mut record = StringRecord::new();
    let mut names: Vec<String> = Vec::new();
    let mut is_first = true;
    let mut rows = 0;
    while reader
        .read_record(&mut record)
        .map_err(|error| Problem::fail(format!("is no valid table: {error}"), "save it again"))?
    {
        let start = record
            .position()
            .map_or(0, |position| position.byte() as usize);
        let end = reader.position().byte() as usize;
        // The reader counts line ends to the row that follows them.
        let raw = &text[start..end];
        let start = start + (raw.len() - raw.trim_start_matches(['\n', '\r']).len());
        if std::mem::take(&mut is_first) && end < text.trim_end().len() && are_names(&record) {
            let name = |field| clip(&collapse(field), MAX_NAME);
            names = record.iter().map(name).collect();
            continue;
        }
        rows += 1;
        flow.set_part(Some(rows))?;
        flow.alone(&Block {
            text: &row(&record, &names),
            origin: Origin::Within(start..end),
            kind: Kind::Lines,
            tight: false,
        })?;
    }
    Ok(())
}

/// All fields are filled, differ, and none is a number.
fn are_names(record: &StringRecord) -> bool {
    if record.len() > MAX_NAMES {
        return false;
    }
    let mut fields: Vec<&str> = record.iter().map(str::trim).collect();
    let named = |field: &&str| !field.is_empty() && field.parse::<f64>().is_err();
    if !fields.iter().all(named) {
        return false;
    }
    let all = fields.len();
    fields.sort_unstable();
    fields.dedup();
    fields.len() == all
}

fn row(record: &StringRecord, names: &[String]) -> String {
    let mut text = String::new();
    for (i, value) in record.iter().enumerate() {
        let value = collapse(value);
        if value.is_empty() {
            continue;
        }
        if !text.is_empty() {
            text.push('\n');
        }
        match names.get(i) {
            Some(name) => text.push_str(name),
            None => text.push_str(&format!("column {}", i + 1)),
        }
        text.push_str(": ");
        text.push_str(&value);
    }
    text
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;

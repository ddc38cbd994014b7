//! Jupyter notebooks (format 3 and 4): Markdown cells, code cells, and the text of
//! their outputs. Each passage points at the cell's bytes in the file.

use std::ops::Range;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::json::problem;
use crate::error::Problem;
use crate::flow::Flow;
use crate::languages::{self, Language};

#[derive(Deserialize)]
struct Notebook<'t> {
    #[serde(borrow, default)]
    cells: Vec<&'t RawValue>,
    /// Format 3.
    #[serde(borrow, default)]
    worksheets: Vec<Worksheet<'t>>,
    #[serde(default)]
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Worksheet<'t> {
    #[serde(borrow, default)]
    cells: Vec<&'t RawValue>,
}

#[derive(Deserialize, Default)]
struct Metadata {
    #[serde(default)]
    language_info: Option<Named>,
    #[serde(default)]
    kernelspec: Option<Kernel>,
}

#[derive(Deserialize)]
struct Named {
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
struct Kernel {
    #[serde(default)]
    language: String,
}

#[derive(Deserialize)]
struct Cell {
    cell_type: String,
    #[serde(default, alias = "input")]
    source: Text,
    #[serde(default)]
    outputs: Vec<Output>,
    /// Of a heading cell of format 3.
    #[serde(default)]
    level: Option<u32>,
}

#[derive(Deserialize)]
struct Output {
    /// Of a stream.
    #[serde(default)]
    text: Text,
    /// Of a result, by type.
    #[serde(default)]
    data: Option<Data>,
    /// Name and message of an error.
    #[serde(default)]
    ename: String,
    #[serde(default)]
    evalue: String,
}

#[derive(Deserialize)]
struct Data {
    #[serde(default, rename = "text/plain")]
    plain: Text,
}

/// A string, or a list of strings that are to be joined.
#[derive(Deserialize)]
#[serde(untagged)]
enum Text {
    One(String),
    Lines(Vec<String>),
}

impl Default for Text {
    fn default() -> Self {
        Text::One(String::new())
    }
}

impl Text {
    fn join(self) -> String {
        match self {
            Text::One(text) => text,
            Text::Lines(lines) => lines.concat(),
        }
    }
}

pub(super) fn read(text: &str, flow: &mut Flow) -> Result<(), Problem> {
    let notebook: Notebook = serde_json::from_str(text).map_err(|error| problem(&error))?;
    let language = language(&notebook.metadata);
    let older = notebook.worksheets.iter().flat_map(|sheet| &sheet.cells);
    for raw in notebook.cells.iter().chain(older) {
        let start = raw.get().as_ptr() as usize - text.as_ptr() as usize;
        let range = start..start + raw.get().len();
        let cell: Cell = serde_json::from_str(raw.get()).map_err(|error| problem(&error))?;
        flow.within(range.clone(), |flow| read_cell(cell, range, language, flow))?;
    }
    Ok(())
}

fn language(metadata: &Metadata) -> Option<&'static Language> {
    let info = metadata.language_info.as_ref().map(|info| &info.name);
    let kernel = metadata.kernelspec.as_ref().map(|kernel| &kernel.language);
    let known = |name: &String| languages::by_name(name);
    info.and_then(known)
        .or_else(|| kernel.and_then(known))
        .or_else(|| languages::by_name("Python"))
}

fn read_cell(
    cell: Cell,
    range: Range<usize>,
    language: Option<&Language>,
    flow: &mut Flow,
) -> Result<(), Problem> {
    let source = cell.source.join();
    match (cell.cell_type.as_str(), language) {
        ("markdown", _) => super::markdown::read(&source, flow)?,
        ("heading", _) => flow.heading(cell.level.unwrap_or(1), &source, range)?,
        ("code", Some(language)) => super::code::read(&source, language, flow)?,
        _ => super::text::read(&source, flow)?,
    }
    for output in cell.outputs {
        super::text::read(&output.text.join(), flow)?;
        if let Some(data) = output.data {
            super::text::read(&data.plain.join(), flow)?;
        }
        if !output.ename.is_empty() {
            super::text::read(&format!("{}: {}", output.ename, output.evalue), flow)?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "notebook_tests.rs"]
mod tests;

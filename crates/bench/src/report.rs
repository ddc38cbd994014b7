//! What an experiment gives: a table for people, values for programs, a plot.

use serde::Serialize;
use serde_json::Value;

/// The result of an experiment. Every number in it was measured in this run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The experiment.
    pub name: String,
    /// Results for people.
    pub tables: Vec<Table>,
    /// Sentences that compare what was aimed at with what was measured.
    pub findings: Vec<String>,
    /// The same and more, for programs.
    pub values: Value,
    /// The plot, as SVG text.
    #[serde(skip)]
    pub svg: String,
}

/// A table for people; the first column holds names.
#[derive(Debug, Clone, Serialize)]
pub struct Table {
    /// What it shows.
    pub title: String,
    /// Heads of the columns.
    pub columns: Vec<String>,
    /// Rows of as many cells.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(title: &str, columns: &[&str]) -> Self {
        Self {
            title: title.to_owned(),
            columns: columns.iter().map(|c| (*c).to_owned()).collect(),
            rows: Vec::new(),
        }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }
}

/// "reached" or "missed", for a finding.
pub(crate) fn reached(yes: bool) -> &'static str {
    if yes { "reached" } else { "missed" }
}

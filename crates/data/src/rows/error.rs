//! Why rows could not be read.

use std::io;

/// Why rows could not be read or written; `name` is the file or `standard input`.
#[derive(Debug, thiserror::Error)]
pub enum RowsError {
    /// The file or stream could not be used.
    #[error("{name}: {source}")]
    Io {
        /// The input.
        name: String,
        /// What the system says.
        source: io::Error,
    },
    /// The bytes are not what their format asks for, or the choice of what to read is open.
    #[error("{name}: {what}")]
    Format {
        /// The input.
        name: String,
        /// What is wrong, and what to do.
        what: String,
    },
    /// A number is NaN or infinite, or a cell is empty.
    #[error(
        "{name}: row {row}, column {column} is {found}, no finite number; mend the row, or have \
         such rows skipped"
    )]
    NotFinite {
        /// The input.
        name: String,
        /// The row, from 1, without a header.
        row: u64,
        /// Name of the column, else its number from 1.
        column: String,
        /// What stands there.
        found: String,
    },
    /// A cell of a table is no number.
    #[error(
        "{name}: row {row}, column {column} is '{found}', no number; leave the column out, or name \
         it as the label"
    )]
    NoNumber {
        /// The input.
        name: String,
        /// The row, from 1, without a header.
        row: u64,
        /// Name of the column, else its number from 1.
        column: String,
        /// What stands there.
        found: String,
    },
    /// A row is longer or shorter than the first.
    #[error("{name}: row {row} has {found} columns, but the rows before it have {expected}")]
    Width {
        /// The input.
        name: String,
        /// The row, from 1, without a header.
        row: u64,
        /// Columns of the first row.
        expected: usize,
        /// Columns of this row.
        found: usize,
    },
    /// There is no row.
    #[error("{name}: it holds no rows")]
    Empty {
        /// The input.
        name: String,
    },
}

impl RowsError {
    pub(super) fn io(name: &str, source: io::Error) -> Self {
        Self::Io {
            name: name.to_owned(),
            source,
        }
    }

    pub(super) fn format(name: &str, what: impl Into<String>) -> Self {
        Self::Format {
            name: name.to_owned(),
            what: what.into(),
        }
    }
}

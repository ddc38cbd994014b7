//! Why a dictionary could not be learned, used, read or written.

use std::path::{Path, PathBuf};

/// What went wrong, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum DictionaryError {
    /// Rows of another width than the dictionary.
    #[error("rows have {found} columns, but the dictionary was learned from rows of {expected}")]
    Width {
        /// Numbers of an atom.
        expected: usize,
        /// Numbers of a row.
        found: usize,
    },
    /// Numbers that are no whole rows.
    #[error("{found} numbers are no whole rows of {expected}")]
    Part {
        /// Numbers of a row.
        expected: usize,
        /// Numbers that were given.
        found: usize,
    },
    /// There is no row.
    #[error("there are no rows to learn from")]
    Empty,
    /// A number is NaN or infinite.
    #[error("row {row}, column {column} (from 1) is {found}, no finite number")]
    NotFinite {
        /// The row, from 1.
        row: usize,
        /// The column, from 1.
        column: usize,
        /// What stands there.
        found: f32,
    },
    /// A negative number where a method needs none.
    #[error(
        "row {row}, column {column} (from 1) is {found}; non-negative factorisation takes no \
         negative numbers"
    )]
    Negative {
        /// The row, from 1.
        row: usize,
        /// The column, from 1.
        column: usize,
        /// What stands there.
        found: f32,
    },
    /// Settings that make no sense.
    #[error("{0}")]
    Settings(String),
    /// A decomposition found no end.
    #[error("the {0} of a matrix did not converge; look for numbers of very different size")]
    Numeric(&'static str),
    /// A file that is damaged, of another kind, or of a later version.
    #[error("{path}: {what}")]
    Format {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong, and what to do.
        what: String,
    },
    /// A file could not be used.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
}

impl DictionaryError {
    pub(crate) fn format(path: &Path, what: impl Into<String>) -> Self {
        Self::Format {
            path: path.to_owned(),
            what: what.into(),
        }
    }

    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn settings(what: impl Into<String>) -> Self {
        Self::Settings(what.into())
    }
}

/// Refuses what is no whole number of finite rows, or none.
pub(crate) fn check_rows(rows: &[f32], width: usize) -> Result<usize, DictionaryError> {
    if width == 0 || !rows.len().is_multiple_of(width) {
        return Err(DictionaryError::Part {
            expected: width,
            found: rows.len(),
        });
    }
    if rows.is_empty() {
        return Err(DictionaryError::Empty);
    }
    match rows.iter().position(|x| !x.is_finite()) {
        None => Ok(rows.len() / width),
        Some(at) => Err(DictionaryError::NotFinite {
            row: at / width + 1,
            column: at % width + 1,
            found: rows[at],
        }),
    }
}

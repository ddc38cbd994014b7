//! Why a model could not be looked into.

use std::path::{Path, PathBuf};

use keyfold_dictionary::DictionaryError;

/// What went wrong, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// There is nothing to look at.
    #[error("{what}: there are no rows")]
    Empty {
        /// Which input.
        what: String,
    },
    /// A number is NaN or infinite.
    #[error("{what}: row {row}, column {column} (from 1) is {found}, no finite number")]
    NotFinite {
        /// Which input.
        what: String,
        /// The row, from 1.
        row: usize,
        /// The column, from 1.
        column: usize,
        /// What stands there.
        found: f32,
    },
    /// Two inputs that must agree do not.
    #[error("{what}: {left} against {right}")]
    Disagree {
        /// What differs, and what to do.
        what: String,
        /// The first number.
        left: usize,
        /// The second number.
        right: usize,
    },
    /// Settings or input that make no sense.
    #[error("{0}")]
    Settings(String),
    /// A decomposition found no end.
    #[error("the {0} of a matrix did not converge; look for numbers of very different size")]
    Numeric(&'static str),
    /// A dictionary could not be used.
    #[error(transparent)]
    Dictionary(#[from] DictionaryError),
    /// A file that is damaged, of another kind, or of a later version.
    #[error("{path}: {what}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        what: String,
    },
    /// A file could not be used.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The user asked to stop.
    #[error("stopped before the end, so there is no result")]
    Cancelled,
}

impl InspectError {
    pub(crate) fn settings(what: impl Into<String>) -> Self {
        Self::Settings(what.into())
    }

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
}

/// Number of rows; refuses none, a part of a row, and numbers that are not finite.
pub(crate) fn check_rows(what: &str, rows: &[f32], width: usize) -> Result<usize, InspectError> {
    if rows.is_empty() || width == 0 {
        return Err(InspectError::Empty {
            what: what.to_owned(),
        });
    }
    if !rows.len().is_multiple_of(width) {
        return Err(InspectError::settings(format!(
            "{what}: {} numbers are no whole rows of {width}",
            rows.len()
        )));
    }
    match rows.iter().position(|x| !x.is_finite()) {
        Some(at) => Err(InspectError::NotFinite {
            what: what.to_owned(),
            row: at / width + 1,
            column: at % width + 1,
            found: rows[at],
        }),
        None => Ok(rows.len() / width),
    }
}

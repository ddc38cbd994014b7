//! Why a series cannot be read or forecast.

use std::path::PathBuf;

use keyfold_nn::ModelError;

/// Why a series cannot be read or forecast.
#[derive(Debug, thiserror::Error)]
pub enum SignalError {
    /// The file could not be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A cell holds no number.
    #[error(
        "{path}: row {row}, column '{column}': {found}; --fill takes the number above it, or leave \
         the column out"
    )]
    Cell {
        /// The file.
        path: PathBuf,
        /// Row from 1, the header not counted.
        row: usize,
        /// The column's name.
        column: String,
        /// What stands there.
        found: String,
    },
    /// The table is not as it should be.
    #[error("{path}: {what}")]
    Table {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        what: String,
    },
    /// Data or settings that make no sense together.
    #[error("{0}")]
    Unfit(String),
    /// A model cannot be made, loaded or saved.
    #[error(transparent)]
    Model(#[from] ModelError),
}

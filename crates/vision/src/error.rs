//! Why a picture cannot be read or told.

use std::path::PathBuf;

use keyfold_nn::ModelError;

/// Why a picture cannot be read or told.
#[derive(Debug, thiserror::Error)]
pub enum VisionError {
    /// A file or folder could not be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is no picture that can be read.
    #[error("{path} is no picture that can be read: {what}; PNG and JPEG are")]
    Picture {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Data or settings that make no sense together.
    #[error("{0}")]
    Unfit(String),
    /// A model cannot be made, loaded or saved.
    #[error(transparent)]
    Model(#[from] ModelError),
}

//! Why a model cannot be loaded, saved or used.

use std::path::{Path, PathBuf};

use keyfold_core::ModelFolderError;
use keyfold_core::weights::WeightsError;

/// Why a model cannot be loaded, saved or used.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The folder or its weights are missing or not usable.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A file could not be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A text that the model cannot read.
    #[error("text {text} of the batch cannot be read: {what}")]
    Text {
        /// Which one, from 0.
        text: usize,
        /// What is wrong and what to do.
        what: String,
    },
}

impl From<ModelFolderError> for ModelError {
    fn from(e: ModelFolderError) -> Self {
        Self::Weights(e.into())
    }
}

/// A file that does not hold what it should; `what` says what is wrong and what to do.
pub(crate) fn invalid(path: &Path, what: impl Into<String>) -> ModelError {
    ModelFolderError::Invalid {
        path: path.to_owned(),
        what: what.into(),
    }
    .into()
}

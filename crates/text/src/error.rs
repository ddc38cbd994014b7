//! Why a model could not be loaded.

use std::path::{Path, PathBuf};

use keyfold_core::ModelFolderError;
use keyfold_core::weights::WeightsError;

/// Why a text encoder could not be loaded from its folder.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The folder or one of its files is missing or not usable.
    #[error(transparent)]
    Folder(#[from] ModelFolderError),
    /// The backbone is of a kind that is not known here.
    #[error("{path} names the architecture '{found}', which is not known; known are: {known}")]
    UnknownArchitecture {
        /// The configuration file.
        path: PathBuf,
        /// What it says.
        found: String,
        /// The architectures that load.
        known: &'static str,
    },
    /// The numbers of the checkpoint could not be read, or are not those of the model.
    #[error(transparent)]
    Weights(#[from] WeightsError),
}

/// A file that does not hold what it should; `what` says what is wrong and what to do.
pub(crate) fn invalid(path: &Path, what: impl Into<String>) -> LoadError {
    LoadError::Folder(ModelFolderError::Invalid {
        path: path.to_owned(),
        what: what.into(),
    })
}

/// A file that could not be read.
pub(crate) fn io(path: &Path, source: std::io::Error) -> LoadError {
    LoadError::Folder(ModelFolderError::Io {
        path: path.to_owned(),
        source,
    })
}

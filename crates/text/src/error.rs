//! Why a model could not be loaded.

use std::path::{Path, PathBuf};

use keyfold_core::ModelFolderError;

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
    /// A tensor that the model needs is not in its weights.
    #[error("{path} has no tensor '{name}'; the file is incomplete or of another architecture")]
    MissingTensor {
        /// The file (or index of files) with the weights.
        path: PathBuf,
        /// The tensor's name, without the prefix of the checkpoint.
        name: String,
    },
    /// A tensor has another shape than the configuration says.
    #[error(
        "tensor '{name}' of {path} has the shape {found:?}, but the configuration asks for \
         {expected:?}; the weights and config.json do not belong together"
    )]
    WrongShape {
        /// The file with the weights.
        path: PathBuf,
        /// The tensor's name.
        name: String,
        /// What the configuration asks for.
        expected: Vec<usize>,
        /// What the file holds.
        found: Vec<usize>,
    },
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

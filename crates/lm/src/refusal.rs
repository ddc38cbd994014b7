//! Why a setting of a method is refused.

use std::path::PathBuf;

/// A setting that does not fit the model or itself, or a file that does not hold what it should.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// A setting is out of range or does not fit the model.
    #[error("{method}: {what}")]
    Setting {
        /// The method whose setting it is.
        method: &'static str,
        /// What is wrong, and what would be right.
        what: String,
    },
    /// A file could be read but says something unfit.
    #[error("{}: {what}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        what: String,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
}

impl Refusal {
    /// A refused setting of `method`.
    pub(crate) fn setting(method: &'static str, what: impl Into<String>) -> Self {
        Self::Setting {
            method,
            what: what.into(),
        }
    }
}

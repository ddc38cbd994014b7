//! Why a training did not end with a model.

use std::path::{Path, PathBuf};

/// Why a learner could not go on.
#[derive(Debug, thiserror::Error)]
pub enum LearnError {
    /// The data or the settings make no sense; says what and what to do.
    #[error("{0}")]
    Data(String),
    /// A file could not be written or read.
    #[error("cannot use {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The user stopped what comes before the first step.
    #[error("stopped before the first step")]
    Stopped,
    /// A file of a checkpoint does not fit the learner.
    #[error("{path} does not fit this training: {what}")]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

impl LearnError {
    /// For `map_err`: an error of the system about `path`.
    pub fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}

/// Why a run ended without its last step.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The learner gave up.
    #[error(transparent)]
    Learn(#[from] LearnError),
    /// The loss stopped being a number.
    #[error(
        "the {what} is not a number in step {step}; {kept}. A lower learning_rate, or clipping \
         (max_grad_norm), may help"
    )]
    NotFinite {
        /// Which loss.
        what: String,
        /// The step.
        step: u64,
        /// What is kept of the run.
        kept: Kept,
    },
    /// A file of the run could not be written or read.
    #[error("cannot use {path}: {source}; {kept}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
        /// What is kept of the run.
        kept: Kept,
    },
    /// The folder holds a run, and the caller did not ask to go on with it.
    #[error(
        "{} holds a training already: --resume goes on with it, or give another folder",
        folder.display()
    )]
    Occupied {
        /// The folder.
        folder: PathBuf,
    },
    /// There is nothing to go on with.
    #[error("{} holds no training to resume; leave --resume out to start one", folder.display())]
    NothingToResume {
        /// The folder.
        folder: PathBuf,
    },
    /// The run was started with other settings.
    #[error(
        "{} was started with other settings ({differences}); use those, or another folder",
        file.display()
    )]
    OtherSettings {
        /// The file with the settings.
        file: PathBuf,
        /// What differs, as in `batch_size was 8, is 16`.
        differences: String,
    },
    /// A file of the run is damaged.
    #[error("{} is damaged: {what}", file.display())]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The settings cannot be.
    #[error("{0}")]
    Config(String),
    /// A plot could not be drawn.
    #[error("cannot draw the curves: {0}")]
    Plot(String),
}

/// What a failed run leaves behind, for the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept(pub Option<u64>);

impl std::fmt::Display for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(step) => write!(
                f,
                "the checkpoint of step {step} is kept, --resume starts there"
            ),
            None => write!(f, "there was no checkpoint yet"),
        }
    }
}

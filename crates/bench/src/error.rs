//! Why an experiment did not finish.

use std::path::PathBuf;

use keyfold_core::EncodeError;
use keyfold_search::SearchError;
use keyfold_text::LoadError;

/// Why an experiment did not finish.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// Its data is not there or not as it should be.
    #[error("{path}: {what}")]
    Data {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong, and what to do.
        what: String,
    },
    /// A store could not be written or searched.
    #[error(transparent)]
    Search(#[from] SearchError),
    /// A model could not be loaded.
    #[error(transparent)]
    Model(#[from] LoadError),
    /// A model failed.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// A training failed.
    #[error(transparent)]
    Train(#[from] keyfold_train::TrainError),
    /// Data to learn from could not be read.
    #[error(transparent)]
    Learn(#[from] keyfold_train::LearnError),
    /// A predictor could not be fitted.
    #[error(transparent)]
    Predict(#[from] keyfold_predict::PredictError),
    /// A model could not be looked into.
    #[error(transparent)]
    Inspect(keyfold_inspect::InspectError),
    /// A file of the experiment's own could not be written.
    #[error("cannot make room for the experiment: {0}")]
    Temporary(#[from] std::io::Error),
    /// The plot could not be drawn.
    #[error("cannot draw the plot: {0}")]
    Plot(String),
    /// The user asked to stop.
    #[error("stopped before the end, so there is no result")]
    Cancelled,
}

impl From<keyfold_inspect::InspectError> for BenchError {
    fn from(error: keyfold_inspect::InspectError) -> Self {
        match error {
            keyfold_inspect::InspectError::Cancelled => Self::Cancelled,
            other => Self::Inspect(other),
        }
    }
}

impl BenchError {
    pub(crate) fn data(path: impl Into<PathBuf>, what: impl Into<String>) -> Self {
        Self::Data {
            path: path.into(),
            what: what.into(),
        }
    }
}

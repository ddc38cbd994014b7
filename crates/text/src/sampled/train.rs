//! Training both kinds of word models from texts.

use std::path::Path;

use keyfold_train::{LearnError, Learner, Report, RunConfig, TrainError};
use serde::Serialize;
use serde_json::json;

use crate::LoadError;
use crate::training::Place;

/// Trains `learner` and, unless the user stopped it, writes the model.
pub(crate) fn train<L: Learner>(
    learner: &mut L,
    slug: &str,
    (config, run): (&impl Serialize, &RunConfig),
    texts: &[&str],
    place: Place<'_>,
    save: impl FnOnce(&L, &Path) -> Result<(), LoadError>,
) -> Result<Report, TrainError> {
    let mut hash = blake3::Hasher::new();
    for text in texts {
        hash.update(&(text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    }
    let data = json!({"texts": texts.len(), "blake3": hash.finalize().to_hex().as_str()});
    let settings = place.settings(slug, config, run, data, None)?;
    place.train(learner, &settings, |learner, out| {
        save(learner, out).map_err(|e| LearnError::Data(e.to_string()))
    })
}

/// An error about the state in a checkpoint.
pub(crate) fn state(path: &Path, error: &LoadError) -> LearnError {
    LearnError::State {
        path: path.to_owned(),
        what: error.to_string(),
    }
}

//! Training both kinds of word models from texts.

use std::path::Path;

use keyfold_core::Progress;
use keyfold_train::{Ended, LearnError, Learner, Line, Report, RunConfig, Settings, TrainError};
use serde::Serialize;
use serde_json::json;

use crate::LoadError;

/// Where a training of a word model stands.
pub struct Place<'a> {
    /// Folder of the run; the model comes to lie in it.
    pub out: &'a Path,
    /// How the run is kept.
    pub run: &'a RunConfig,
    /// Go on with the run that is there.
    pub resume: bool,
    /// Threads; 0 means all of the machine's. Any number gives the same weights.
    pub threads: usize,
    /// Told how far it is.
    pub progress: &'a dyn Progress,
    /// Sees every line of measurements.
    pub watch: &'a mut dyn FnMut(&Line),
}

/// Trains `learner` and, unless the user stopped it, writes the model.
pub(crate) fn train<L: Learner>(
    learner: &mut L,
    slug: &str,
    config: &impl Serialize,
    texts: &[&str],
    place: Place<'_>,
    save: impl FnOnce(&L, &Path) -> Result<(), LoadError>,
) -> Result<Report, TrainError> {
    let mut values = serde_json::to_value(config)
        .map_err(|e| TrainError::Config(format!("the settings cannot be written: {e}")))?;
    let mut hash = blake3::Hasher::new();
    for text in texts {
        hash.update(&(text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    }
    values["data"] = json!({"texts": texts.len(), "blake3": hash.finalize().to_hex().as_str()});
    let settings = Settings {
        slug: slug.to_owned(),
        config: values,
        run: place.run.clone(),
        resume: place.resume,
    };
    let report = keyfold_train::run(learner, &settings, place.out, place.progress, place.watch)?;
    if report.ended != Ended::Stopped {
        save(learner, place.out).map_err(|e| LearnError::Data(e.to_string()))?;
    }
    Ok(report)
}

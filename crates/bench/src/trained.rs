//! What experiments that train a model share.

use std::path::Path;

use keyfold_core::{ModelFolder, Progress};
use keyfold_text::training::{Pairs, Place};
use keyfold_train::{Ended, Report, RunConfig, TrainError};

use crate::BenchError;
use crate::store::{self, Text};

/// The pairs of a file of JSON Lines.
pub(crate) fn pairs(path: &Path) -> Result<Pairs, BenchError> {
    let mut pairs = Pairs::default();
    pairs.read_json_lines(path)?;
    pairs.clean();
    Ok(pairs)
}

/// A model by folder or hub name.
pub(crate) fn find(name: &str) -> Result<ModelFolder, BenchError> {
    ModelFolder::find(name).map_err(|e| BenchError::data(name, e.to_string()))
}

/// Neither validation nor checkpoints but the last: an experiment starts anew.
pub(crate) fn unwatched() -> RunConfig {
    RunConfig {
        checkpoint_every: 0,
        validate_every: 0,
        ..RunConfig::default()
    }
}

/// Trains into the folder `out` and gives the model that is there then.
pub(crate) fn train(
    out: &Path,
    progress: &dyn Progress,
    train: impl FnOnce(Place<'_>) -> Result<Report, TrainError>,
) -> Result<ModelFolder, BenchError> {
    let place = Place {
        out,
        resume: false,
        progress,
        watch: &mut |_| {},
    };
    match train(place)?.ended {
        Ended::Stopped => Err(BenchError::Cancelled),
        Ended::Finished | Ended::Early => find(&out.to_string_lossy()),
    }
}

/// The texts of documents as an index gives them to a model.
pub(crate) fn searchable(documents: &[Text]) -> Vec<String> {
    let texts = documents.iter();
    texts
        .map(|text| store::passage(text).searchable().0)
        .collect()
}

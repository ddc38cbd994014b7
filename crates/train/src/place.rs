//! Where a run stands among its folders and watchers.

use std::path::Path;

use keyfold_core::{ModelFolder, Progress};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{Ended, LearnError, Learner, Line, Report, RunConfig, Settings, TrainError, run};

/// Where a run stands among its folders and watchers.
pub struct Place<'a> {
    /// Folder of the run; the model comes to lie in it.
    pub out: &'a Path,
    /// Go on with the run that is there.
    pub resume: bool,
    /// Told how far it is.
    pub progress: &'a dyn Progress,
    /// Sees every line of measurements.
    pub watch: &'a mut dyn FnMut(&Line),
}

impl Place<'_> {
    /// What a run of `slug` is about: `config` (of which `run` changes no weight), the
    /// data and the model that it starts from, if it does.
    ///
    /// # Errors
    /// When the configuration cannot be written as JSON.
    pub fn settings(
        &self,
        slug: &str,
        config: &impl Serialize,
        run: &RunConfig,
        data: Value,
        model: Option<&ModelFolder>,
    ) -> Result<Settings, TrainError> {
        let mut settings = serde_json::to_value(config)
            .map_err(|e| TrainError::Config(format!("the settings cannot be written: {e}")))?;
        if let Some(fields) = settings.as_object_mut() {
            fields.remove("run");
        }
        settings["data"] = data;
        if let Some(model) = model {
            settings["model"] = json!(model.name);
        }
        Ok(Settings {
            slug: slug.to_owned(),
            config: settings,
            run: run.clone(),
            resume: self.resume,
        })
    }

    /// Trains `learner` and, unless the user stopped it, writes the model.
    ///
    /// # Errors
    /// Those of [`run`], and of `save`.
    pub fn train<L: Learner>(
        self,
        learner: &mut L,
        settings: &Settings,
        save: impl FnOnce(&L, &Path) -> Result<(), LearnError>,
    ) -> Result<Report, TrainError> {
        let report = run(learner, settings, self.out, self.progress, self.watch)?;
        if report.ended != Ended::Stopped {
            save(learner, self.out)?;
        }
        Ok(report)
    }
}

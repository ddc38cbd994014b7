//! The loop.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use keyfold_core::{Progress, atomic};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::checkpoint::{Checkpoints, State};
use crate::error::Kept;
use crate::metrics::{Line, Means, Measured, Metrics, file_of};
use crate::{LearnError, Learner, Step, TrainError, curves};

/// How a run is kept and watched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunConfig {
    /// Steps between checkpoints; 0 keeps one at the end and where the run was stopped.
    pub checkpoint_every: u64,
    /// Newest checkpoints that stay, beside the best.
    pub keep: usize,
    /// Steps between validations; 0 for none.
    pub validate_every: u64,
    /// Validations without a better one after which training ends; 0 for never.
    pub patience: u64,
    /// Steps between lines of measurements.
    pub log_every: u64,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            checkpoint_every: 500,
            keep: 2,
            validate_every: 500,
            patience: 0,
            log_every: 50,
        }
    }
}

/// What a run is about.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The method's name.
    pub slug: String,
    /// All that the weights depend on: the method's configuration, its seed, the data's
    /// size and checksum. A resumed run must have the same.
    pub config: Value,
    /// How the run is kept and watched.
    pub run: RunConfig,
    /// Go on with the run in the folder.
    pub resume: bool,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// All steps were made.
    Finished,
    /// The validation did not get better for long enough.
    Early,
    /// The user stopped it; a resumed run goes on.
    Stopped,
}

/// What a run did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// How it ended.
    pub ended: Ended,
    /// Steps made, over all runs in the folder.
    pub steps: u64,
    /// Seconds of training, over all runs.
    pub seconds: f64,
    /// Loss of the last step.
    pub loss: f64,
    /// The step whose weights the learner has now, and its validation, where there was one.
    pub best: Option<(u64, f64)>,
}

/// Trains `learner` in `folder` until its last step, early stopping or the user ends it.
/// `watch` sees every line of measurements (a dashboard).
///
/// Afterwards the learner has the weights of the best validation, or the last ones where
/// nothing was validated, or those at which the user stopped.
///
/// # Errors
/// When the learner fails, the loss is not a number, files cannot be written, or the
/// folder holds a run that does not fit. The last good checkpoint stays.
pub fn run(
    learner: &mut dyn Learner,
    settings: &Settings,
    folder: &Path,
    progress: &dyn Progress,
    watch: &mut dyn FnMut(&Line),
) -> Result<Report, TrainError> {
    let mut run = Run::open(learner, settings, folder, progress)?;
    for line in run.metrics.lines() {
        watch(line);
    }
    let made = run.go(watch);
    progress.finish();
    let drawn = run.draw();
    let report = made?;
    drawn?;
    Ok(report)
}

struct Run<'a> {
    learner: &'a mut dyn Learner,
    settings: &'a Settings,
    folder: &'a Path,
    progress: &'a dyn Progress,
    checkpoints: Checkpoints,
    metrics: Metrics,
    state: State,
    /// The step of the newest whole checkpoint.
    kept: Option<u64>,
    started: Instant,
}

impl<'a> Run<'a> {
    fn open(
        learner: &'a mut dyn Learner,
        settings: &'a Settings,
        folder: &'a Path,
        progress: &'a dyn Progress,
    ) -> Result<Self, TrainError> {
        fs::create_dir_all(folder).map_err(|source| io(folder, source, None))?;
        agree(settings, folder)?;
        let checkpoints = Checkpoints::of(folder);
        let state = newest(&checkpoints, learner, progress)?;
        let kept = (state.step > 0).then_some(state.step);
        let path = file_of(folder);
        let metrics =
            Metrics::open(path.clone(), state.step).map_err(|source| io(&path, source, kept))?;
        Ok(Self {
            learner,
            settings,
            folder,
            progress,
            checkpoints,
            metrics,
            state,
            kept,
            started: Instant::now(),
        })
    }

    fn go(&mut self, watch: &mut dyn FnMut(&Line)) -> Result<Report, TrainError> {
        let steps = self.learner.steps();
        if steps == 0 {
            return Err(
                LearnError::Data("there is no step to make: no data, or no epochs".into()).into(),
            );
        }
        let stage = match self.state.step {
            0 => "training".to_owned(),
            step => format!("training from step {step}"),
        };
        self.progress
            .start(&stage, "steps", Some(steps.saturating_sub(self.state.step)));
        let before = self.state.seconds;
        let mut means = Means::default();
        let mut logged = Instant::now();
        while self.state.step < steps && !self.state.ended_early {
            if self.progress.cancelled() {
                return self.stop();
            }
            let number = self.state.step + 1;
            let step = self.learner.step(number)?;
            self.check(&step, number)?;
            means.add(&step);
            self.state.step = number;
            self.state.loss = step.loss;
            self.state.seconds = before + self.started.elapsed().as_secs_f64();
            self.progress.status(&format!("loss {:.4}", step.loss));
            self.progress.advance(1);
            let run = &self.settings.run;
            if due(number, run.log_every) || number == steps {
                if let Some(what) = means.take(logged.elapsed().as_secs_f64()) {
                    self.log(what, watch)?;
                }
                logged = Instant::now();
            }
            let better = (due(number, run.validate_every)
                || self.is_last_validation(number, steps))
                && self.validate(watch)?;
            if better || due(number, run.checkpoint_every) || number == steps {
                self.keep()?;
            }
        }
        if self.state.ended_early {
            self.keep()?;
        }
        self.end()
    }

    fn is_last_validation(&self, number: u64, steps: u64) -> bool {
        self.settings.run.validate_every > 0 && number == steps
    }

    /// A loss that is not a number ends the run before it is kept.
    fn check(&self, step: &Step, number: u64) -> Result<(), TrainError> {
        let named = step.parts.iter().map(|(name, value)| (*name, *value));
        for (name, value) in named.chain([("loss", step.loss)]) {
            if !value.is_finite() {
                return Err(TrainError::NotFinite {
                    what: match name {
                        "loss" => "loss".to_owned(),
                        part => format!("loss '{part}'"),
                    },
                    step: number,
                    kept: Kept(self.kept),
                });
            }
        }
        Ok(())
    }

    fn log(&mut self, what: Measured, watch: &mut dyn FnMut(&Line)) -> Result<(), TrainError> {
        let line = Line {
            step: self.state.step,
            seconds: self.state.seconds,
            what,
        };
        watch(&line);
        let path = self.metrics.path.clone();
        let kept = self.kept;
        self.metrics
            .push(line)
            .map_err(|source| io(&path, source, kept))
    }

    /// Validates; true when it was the best so far.
    fn validate(&mut self, watch: &mut dyn FnMut(&Line)) -> Result<bool, TrainError> {
        let Some(validation) = self.learner.validate()? else {
            return Ok(false);
        };
        if !validation.loss.is_finite() {
            return Err(TrainError::NotFinite {
                what: "validation".into(),
                step: self.state.step,
                kept: Kept(self.kept),
            });
        }
        self.log((&validation).into(), watch)?;
        let better = self
            .state
            .best
            .is_none_or(|(_, best)| validation.loss < best);
        if better {
            self.state.best = Some((self.state.step, validation.loss));
            self.state.worse = 0;
        } else {
            self.state.worse += 1;
            let patience = self.settings.run.patience;
            self.state.ended_early = patience > 0 && self.state.worse >= patience;
        }
        Ok(better)
    }

    /// Writes a checkpoint, then removes old ones and draws the curves.
    fn keep(&mut self) -> Result<(), TrainError> {
        self.checkpoints
            .write(self.learner, &self.state)
            .map_err(|e| match e {
                LearnError::Io { path, source } => io(&path, source, self.kept),
                other => other.into(),
            })?;
        self.kept = Some(self.state.step);
        let best = self.state.best.map(|(step, _)| step);
        let folder = self.checkpoints.folder.clone();
        self.checkpoints
            .prune(self.settings.run.keep, best)
            .map_err(|source| io(&folder, source, self.kept))?;
        self.draw()
    }

    fn stop(&mut self) -> Result<Report, TrainError> {
        if self.state.step > 0 {
            self.keep()?;
        }
        Ok(self.report(Ended::Stopped, None))
    }

    /// Takes up the best weights.
    fn end(&mut self) -> Result<Report, TrainError> {
        let ended = match self.state.ended_early {
            true => Ended::Early,
            false => Ended::Finished,
        };
        if let Some((step, _)) = self.state.best
            && step != self.state.step
        {
            self.checkpoints
                .read(step)
                .map_err(|(file, what)| TrainError::Damaged { file, what })?;
            self.learner.load(&self.checkpoints.path(step))?;
        }
        Ok(self.report(ended, self.state.best))
    }

    fn report(&self, ended: Ended, best: Option<(u64, f64)>) -> Report {
        Report {
            ended,
            steps: self.state.step,
            seconds: self.state.seconds,
            loss: self.state.loss,
            best,
        }
    }

    fn draw(&self) -> Result<(), TrainError> {
        if self.metrics.lines().is_empty() {
            return Ok(());
        }
        let svg = curves::draw(&self.settings.slug, self.metrics.lines())
            .map_err(|e| TrainError::Plot(e.to_string()))?;
        let path = self.folder.join("curves.svg");
        atomic::write(&path, svg.as_bytes()).map_err(|source| io(&path, source, self.kept))
    }
}

fn due(number: u64, every: u64) -> bool {
    every > 0 && number.is_multiple_of(every)
}

fn io(path: &Path, source: std::io::Error, kept: Option<u64>) -> TrainError {
    TrainError::Io {
        path: path.to_owned(),
        source,
        kept: Kept(kept),
    }
}

/// The newest whole checkpoint, taken up by the learner; damaged ones are told and passed over.
fn newest(
    checkpoints: &Checkpoints,
    learner: &mut dyn Learner,
    progress: &dyn Progress,
) -> Result<State, TrainError> {
    let mut damage: Option<(PathBuf, String)> = None;
    for step in checkpoints.steps() {
        match checkpoints.read(step) {
            Ok(state) => {
                if let Some((file, what)) = &damage {
                    progress.note(&format!(
                        "{} is damaged ({what}); going on from step {step}",
                        file.display()
                    ));
                }
                learner.load(&checkpoints.path(step))?;
                // What was made after it is made again, under the same name.
                for later in checkpoints.steps().into_iter().filter(|s| *s > step) {
                    let path = checkpoints.path(later);
                    fs::remove_dir_all(&path).map_err(|source| io(&path, source, Some(step)))?;
                }
                return Ok(state);
            }
            Err(found) => damage = damage.or(Some(found)),
        }
    }
    match damage {
        None => Ok(State::default()),
        Some((file, what)) => Err(TrainError::Damaged { file, what }),
    }
}

/// Writes the settings of a new run, or compares them with those it was started with.
/// [`run`] does so first; a caller that finds a run finished asks here alone.
///
/// # Errors
/// When the folder holds a run that is not to be resumed or has other settings, or there
/// is none to resume, or a file cannot be used.
pub fn agree(settings: &Settings, folder: &Path) -> Result<(), TrainError> {
    let path = folder.join("run.json");
    let now = serde_json::json!({
        "version": 1,
        "slug": settings.slug,
        "config": settings.config,
    });
    match fs::read(&path) {
        Ok(_) if !settings.resume => Err(TrainError::Occupied {
            folder: folder.to_owned(),
        }),
        Ok(bytes) => {
            let then: Value = serde_json::from_slice(&bytes).map_err(|e| TrainError::Damaged {
                file: path.clone(),
                what: e.to_string(),
            })?;
            let mut found = Vec::new();
            differences(&then, &now, "", &mut found);
            match found.is_empty() {
                true => Ok(()),
                false => Err(TrainError::OtherSettings {
                    file: path,
                    differences: found.join("; "),
                }),
            }
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            if settings.resume {
                return Err(TrainError::NothingToResume {
                    folder: folder.to_owned(),
                });
            }
            let text = format!("{now:#}\n");
            atomic::write(&path, text.as_bytes()).map_err(|source| io(&path, source, None))
        }
        Err(source) => Err(io(&path, source, None)),
    }
}

/// What differs between two settings, as `name was 1, is 2`.
fn differences(then: &Value, now: &Value, path: &str, found: &mut Vec<String>) {
    match (then, now) {
        (Value::Object(a), Value::Object(b)) => {
            let mut keys: Vec<&String> = a.keys().chain(b.keys()).collect();
            keys.sort_unstable();
            keys.dedup();
            for key in keys {
                let name = match path {
                    "" | "config" => key.clone(),
                    _ => format!("{path}.{key}"),
                };
                differences(&then[key.as_str()], &now[key.as_str()], &name, found);
            }
        }
        _ if then == now => {}
        _ => found.push(format!("{path} was {then}, is {now}")),
    }
}

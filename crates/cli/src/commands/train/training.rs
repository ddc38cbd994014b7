//! What every training on the command line shares.

use std::io::Write;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

use anyhow::{Context, anyhow};
use keyfold_core::Progress;
use keyfold_text::training::Place;
use keyfold_train::gradient::{Dashboard, Stop};
use keyfold_train::{Ended, LearnError, Line, Report, TrainError, recipe};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::args::Globals;
use crate::failure::{Outcome, wrong_use};
use crate::place;
use crate::progress::StderrProgress;

/// Notes of reading and training that are shown.
pub(super) const NOTES: usize = 20;

/// Where a training is and how it is set.
#[derive(Debug, clap::Args)]
pub(super) struct TrainingArgs {
    /// Folder for the run and, at its end, the model
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Settings as a TOML file, as in recipes/ (default: the publication's values)
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    /// Another value for a setting, as in optim.learning_rate=1e-4 (repeatable); it stands above
    /// the recipe
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Go on with the run in the folder, with its settings
    #[arg(long)]
    resume: bool,
    /// Draw curves on the whole terminal instead of a bar
    #[arg(long)]
    dashboard: bool,
    /// Print all settings as a recipe, and train nothing
    #[arg(long)]
    show_settings: bool,
}

impl TrainingArgs {
    /// The settings, for data that is there: defaults, those of the run that is resumed on
    /// top, the recipe on top, single values on top. None when they were only to be shown.
    pub(super) fn settings<C: Serialize + DeserializeOwned>(
        &self,
        defaults: &C,
        data: &[PathBuf],
    ) -> anyhow::Result<Option<C>> {
        let before = self.before(defaults)?;
        let base = before.as_ref().unwrap_or(defaults);
        let settings = recipe::settings(base, self.recipe.as_deref(), &self.set);
        let settings: C = settings.map_err(|e| match e {
            TrainError::Config(what) => wrong_use(what),
            other => other.into(),
        })?;
        if self.show_settings {
            write!(anstream::stdout(), "{}", toml::to_string(&settings)?)?;
            return Ok(None);
        }
        for path in data {
            place::canonical(path)?;
        }
        Ok(Some(settings))
    }

    /// The settings with which the run that is resumed was started.
    fn before<C: Serialize + DeserializeOwned>(&self, defaults: &C) -> anyhow::Result<Option<C>> {
        // A training in rounds keeps a run for each.
        let places = ["run.json", "rounds/1/run.json"].map(|file| self.out.join(file));
        let found = places.iter().find(|path| path.is_file());
        let Some(path) = found.filter(|_| self.resume) else {
            return Ok(None);
        };
        let damaged = || format!("{} is damaged", path.display());
        let text = std::fs::read(path).with_context(damaged)?;
        let run: Value = serde_json::from_slice(&text).with_context(damaged)?;
        let mut settings = serde_json::to_value(defaults)?;
        if let Some(fields) = settings.as_object_mut() {
            for (name, value) in fields {
                // What is not there (how the run is watched) changes no weight.
                if let Some(then) = run["config"].get(name) {
                    *value = then.clone();
                }
            }
        }
        Ok(Some(
            serde_json::from_value(settings).with_context(damaged)?,
        ))
    }

    /// Runs `train` with progress on stderr or the dashboard, and prints what it reports.
    pub(super) fn watch(
        &self,
        globals: &Globals,
        slug: &str,
        train: impl FnOnce(Place<'_>) -> Result<Report, TrainError>,
    ) -> anyhow::Result<Outcome> {
        let progress = StderrProgress::new(globals.quiet || self.dashboard, NOTES);
        let made = if self.dashboard {
            let dashboard = Mutex::new(Dashboard::new(slug));
            let drawn = Drawn {
                stop: locked(&dashboard).stop(),
                progress: &progress,
                dashboard: &dashboard,
            };
            let made = train(self.place(&drawn, &mut |line| locked(&dashboard).line(line)));
            // It gives the terminal back before anything is printed.
            drop(dashboard);
            made
        } else {
            train(self.place(&progress, &mut |_| {}))
        };
        let report = match made {
            Err(TrainError::Learn(e @ LearnError::Stopped)) => {
                progress.say(&e.to_string());
                return Ok(Outcome::Interrupted);
            }
            made => made?,
        };
        self.print(globals, &report)?;
        if report.ended == Ended::Stopped {
            progress.say(&format!(
                "stopped after step {}; the same command with --resume goes on",
                report.steps
            ));
            return Ok(Outcome::Interrupted);
        }
        Ok(Outcome::Done)
    }

    fn place<'a>(
        &'a self,
        progress: &'a dyn Progress,
        watch: &'a mut dyn FnMut(&Line),
    ) -> Place<'a> {
        Place {
            out: &self.out,
            resume: self.resume,
            progress,
            watch,
        }
    }

    fn print(&self, globals: &Globals, report: &Report) -> anyhow::Result<()> {
        let mut out = anstream::stdout().lock();
        if globals.json {
            let mut value = serde_json::to_value(report)?;
            let fields = value
                .as_object_mut()
                .ok_or_else(|| anyhow!("a report is an object"))?;
            fields.insert("out".into(), self.out.display().to_string().into());
            writeln!(out, "{value:#}")?;
            return Ok(());
        }
        let ended = match report.ended {
            Ended::Finished => "all steps",
            Ended::Early => "early, since the validation did not get better",
            Ended::Stopped => "stopped",
        };
        writeln!(out, "ended       {ended}")?;
        writeln!(out, "steps       {}", report.steps)?;
        writeln!(out, "seconds     {:.1}", report.seconds)?;
        writeln!(out, "loss        {:.4}", report.loss)?;
        if let Some((step, loss)) = report.best {
            writeln!(
                out,
                "validation  {loss:.4} (step {step}, whose weights are kept)"
            )?;
        }
        writeln!(out, "folder      {}", self.out.display())?;
        Ok(())
    }
}

/// Progress on the dashboard.
struct Drawn<'a> {
    progress: &'a StderrProgress,
    dashboard: &'a Mutex<Dashboard>,
    stop: Stop,
}

fn locked(dashboard: &Mutex<Dashboard>) -> MutexGuard<'_, Dashboard> {
    // A panic elsewhere leaves the picture usable.
    dashboard.lock().unwrap_or_else(|e| e.into_inner())
}

impl Progress for Drawn<'_> {
    fn start(&self, _stage: &str, _unit: &str, total: Option<u64>) {
        locked(self.dashboard).start(total.unwrap_or(0));
    }
    fn advance(&self, n: u64) {
        locked(self.dashboard).advance(n);
    }
    fn set_total(&self, _total: u64) {}
    fn finish(&self) {}
    fn note(&self, line: &str) {
        self.progress.note(line);
    }
    fn cancelled(&self) -> bool {
        self.progress.cancelled() || self.stop.asked()
    }
}

//! What every training gets from the loop: the same weights after a kill, early
//! stopping, the last good checkpoint after every error.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use keyfold_core::{NoProgress, StopAfter};
use keyfold_train::order::step_rng;
use keyfold_train::{
    Ended, LearnError, Learner, RunConfig, Settings, Step, TrainError, Validation, run,
};
use rand::Rng;

/// Learns the number 3 by noisy steps with momentum.
struct Toy {
    weight: f64,
    momentum: f64,
    steps: u64,
    /// In this step the loss is not a number.
    broken: u64,
    /// From this step on the validation gets worse.
    overfits: u64,
    last: u64,
}

impl Toy {
    fn new() -> Self {
        Self {
            weight: 0.0,
            momentum: 0.0,
            steps: 40,
            broken: u64::MAX,
            overfits: u64::MAX,
            last: 0,
        }
    }
}

impl Learner for Toy {
    fn steps(&self) -> u64 {
        self.steps
    }
    fn unit(&self) -> &'static str {
        "numbers"
    }
    fn step(&mut self, number: u64) -> Result<Step, LearnError> {
        let noise: f64 = step_rng(5, number).random();
        let error = self.weight - 3.0 + 0.1 * (noise - 0.5);
        self.momentum = 0.5 * self.momentum + error;
        self.weight -= 0.1 * self.momentum;
        self.last = number;
        let loss = if number == self.broken {
            f64::NAN
        } else {
            error * error
        };
        Ok(Step {
            loss,
            parts: vec![("square", loss)],
            items: 2,
            learning_rate: 0.1,
        })
    }
    fn validate(&mut self) -> Result<Option<Validation>, LearnError> {
        let worse = self.last.saturating_sub(self.overfits) as f64;
        let loss = (self.weight - 3.0).abs() + worse;
        Ok(Some(Validation {
            loss,
            measures: vec![("weight", self.weight)],
        }))
    }
    fn save(&self, folder: &Path) -> Result<(), LearnError> {
        let path = folder.join("weight");
        let text = format!(
            "{:x} {:x} {}",
            self.weight.to_bits(),
            self.momentum.to_bits(),
            self.last
        );
        std::fs::write(&path, text).map_err(LearnError::io(&path))
    }
    fn load(&mut self, folder: &Path) -> Result<(), LearnError> {
        let path = folder.join("weight");
        let text = std::fs::read_to_string(&path).map_err(LearnError::io(&path))?;
        let mut words = text.split(' ');
        let mut bits = || u64::from_str_radix(words.next().unwrap(), 16).unwrap();
        self.weight = f64::from_bits(bits());
        self.momentum = f64::from_bits(bits());
        self.last = words.next().unwrap().parse().unwrap();
        Ok(())
    }
}

fn settings(resume: bool) -> Settings {
    Settings {
        slug: "toy".into(),
        config: serde_json::json!({"learning_rate": 0.1, "data": {"examples": 2}}),
        run: RunConfig {
            checkpoint_every: 5,
            keep: 2,
            validate_every: 10,
            patience: 0,
            log_every: 4,
        },
        resume,
    }
}

fn train(
    toy: &mut Toy,
    settings: &Settings,
    folder: &Path,
) -> Result<keyfold_train::Report, TrainError> {
    run(toy, settings, folder, &NoProgress, &mut |_| {})
}

#[test]
fn a_stopped_and_a_killed_run_end_at_the_weights_of_one_that_ran_through() {
    let whole = tempfile::tempdir().unwrap();
    let mut through = Toy::new();
    let report = train(&mut through, &settings(false), whole.path()).unwrap();
    assert_eq!((report.ended, report.steps), (Ended::Finished, 40));

    let parts = tempfile::tempdir().unwrap();
    let folder = parts.path();
    let stop = StopAfter::new(7);
    let report = run(
        &mut Toy::new(),
        &settings(false),
        folder,
        &stop,
        &mut |_| {},
    )
    .unwrap();
    assert_eq!((report.ended, report.steps), (Ended::Stopped, 7));
    // A kill in the middle of step 13 leaves the checkpoint of step 10 and half of another.
    let stop = StopAfter::new(3);
    run(&mut Toy::new(), &settings(true), folder, &stop, &mut |_| {}).unwrap();
    std::fs::create_dir(folder.join("checkpoints/unfinished-13")).unwrap();
    std::fs::write(folder.join("checkpoints/unfinished-13/weight"), "5").unwrap();
    let mut resumed = Toy::new();
    let report = train(&mut resumed, &settings(true), folder).unwrap();
    assert_eq!(report.steps, 40);
    assert_eq!(resumed.weight.to_bits(), through.weight.to_bits());
    assert!(!folder.join("checkpoints/unfinished-13").exists());
    let steps = |folder: &Path| -> Vec<(u64, String)> {
        let text = std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
        let lines = text
            .lines()
            .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
        lines
            .filter(|l| l["validation"].is_number())
            .map(|l| (l["step"].as_u64().unwrap(), l["validation"].to_string()))
            .collect()
    };
    assert_eq!(steps(folder), steps(whole.path()));
    assert!(
        std::fs::read_to_string(folder.join("curves.svg"))
            .unwrap()
            .contains("validation")
    );
    // Once more: everything is done already, and the weights are the same.
    let mut again = Toy::new();
    train(&mut again, &settings(true), folder).unwrap();
    assert_eq!(again.weight.to_bits(), through.weight.to_bits());
}

#[test]
fn early_stopping_takes_the_weights_of_the_best_validation() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = settings(false);
    settings.run.patience = 2;
    let mut toy = Toy::new();
    toy.steps = 100;
    toy.overfits = 20;
    let report = train(&mut toy, &settings, folder.path()).unwrap();
    assert_eq!((report.ended, report.steps), (Ended::Early, 40));
    assert_eq!(report.best.unwrap().0, 20);
    assert_eq!(toy.last, 20);
    // It does not go on when asked again.
    settings.resume = true;
    let report = train(
        &mut Toy {
            steps: 100,
            overfits: 20,
            ..Toy::new()
        },
        &settings,
        folder.path(),
    )
    .unwrap();
    assert_eq!((report.ended, report.steps), (Ended::Early, 40));
}

#[test]
fn a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_good_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let mut toy = Toy::new();
    toy.broken = 13;
    let error = train(&mut toy, &settings(false), folder.path()).unwrap_err();
    let told = error.to_string();
    assert!(
        told.contains("'square' is not a number in step 13"),
        "{told}"
    );
    assert!(told.contains("the checkpoint of step 10 is kept"), "{told}");
    let mut toy = Toy::new();
    assert_eq!(
        train(&mut toy, &settings(true), folder.path())
            .unwrap()
            .steps,
        40
    );
}

#[test]
fn a_damaged_checkpoint_is_passed_over_and_one_left_alone_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let stop = StopAfter::new(12);
    run(
        &mut Toy::new(),
        &settings(false),
        folder.path(),
        &stop,
        &mut |_| {},
    )
    .unwrap();
    let whole = tempfile::tempdir().unwrap();
    let mut through = Toy::new();
    train(&mut through, &settings(false), whole.path()).unwrap();
    std::fs::write(folder.path().join("checkpoints/12/weight"), "0 0 12").unwrap();
    let mut toy = Toy::new();
    train(&mut toy, &settings(true), folder.path()).unwrap();
    assert_eq!(toy.weight.to_bits(), through.weight.to_bits());

    // The newest, the one before, and the best.
    for step in ["40", "35", "30"] {
        let state = folder.path().join(format!("checkpoints/{step}/state.json"));
        let text = std::fs::read_to_string(&state).unwrap();
        std::fs::write(&state, text.replace("\"step\":", "\"step\": ")).unwrap();
    }
    let told = match train(&mut Toy::new(), &settings(true), folder.path()) {
        Ok(report) => format!("{report:?}"),
        Err(e) => e.to_string(),
    };
    assert!(
        told.contains("state.json is damaged: its checksum does not fit"),
        "{told}"
    );
}

#[test]
fn runs_are_not_mixed() {
    let folder = tempfile::tempdir().unwrap();
    let told = train(&mut Toy::new(), &settings(true), folder.path())
        .unwrap_err()
        .to_string();
    assert!(told.contains("holds no training to resume"), "{told}");
    train(&mut Toy::new(), &settings(false), folder.path()).unwrap();
    let told = train(&mut Toy::new(), &settings(false), folder.path())
        .unwrap_err()
        .to_string();
    assert!(told.contains("--resume goes on with it"), "{told}");
    let mut other = settings(true);
    other.config["learning_rate"] = 0.2.into();
    let told = train(&mut Toy::new(), &other, folder.path())
        .unwrap_err()
        .to_string();
    assert!(told.contains("learning_rate was 0.1, is 0.2"), "{told}");
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let told = train(&mut Toy::new(), &settings(false), &file.join("out"))
        .unwrap_err()
        .to_string();
    assert!(told.contains("file/out"), "{told}");
}

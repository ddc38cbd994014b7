//! Running the program and reading what it says.

// Every test file uses its own part of this.
#![allow(dead_code)]
// A helper that cannot do its work fails the test that calls it.
#![allow(clippy::unwrap_used)]

pub(crate) mod lm;

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use serde_json::Value;

/// What a run gave.
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    /// The run must have succeeded; gives stdout.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(
            self.code, 0,
            "stdout: {}\nstderr: {}",
            self.stdout, self.stderr
        );
        self.stdout
    }

    /// The run must have succeeded; gives stdout as JSON.
    #[track_caller]
    pub(crate) fn json(self) -> Value {
        let text = self.ok();
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
    }

    /// The run must have failed with `code`, printed no result, and said all of
    /// `parts` on stderr.
    #[track_caller]
    pub(crate) fn fails(self, code: i32, parts: &[&str]) {
        assert_eq!(
            self.code, code,
            "stdout: {}\nstderr: {}",
            self.stdout, self.stderr
        );
        assert_eq!(self.stdout, "", "a failure prints no result");
        for part in parts {
            assert!(
                self.stderr.contains(part),
                "no '{part}' in: {}",
                self.stderr
            );
        }
    }
}

/// Runs `keyfold` with `args` in `folder`, far from the user's own settings.
#[track_caller]
pub(crate) fn keyfold(folder: &Path, args: &[&str]) -> Run {
    let output = command(folder, args).output().unwrap();
    Run {
        code: output.status.code().expect("it was killed"),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// The command that [`keyfold`] runs.
pub(crate) fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = assert_cmd::cargo::cargo_bin_cmd!("keyfold");
    command
        .current_dir(folder)
        .args(args)
        .env_remove("NO_COLOR")
        .env_remove("CLICOLOR_FORCE")
        .env("RAYON_NUM_THREADS", "1");
    command
}

/// A temporary folder with a few notes in it.
pub(crate) struct Notes {
    folder: tempfile::TempDir,
}

pub(crate) const GARDEN: &str = "\
# Garden

## Tomatoes

Water the tomatoes every morning before the sun is high. Yellow leaves mean
that the roots stand in water.

## Winter

Cover the roses with straw when the first frost is near.
";

pub(crate) const SHIP: &str = "\
# Sailing

## In a storm

Take the big sail down early. A small sail keeps the boat steady when the wind
is strong, and the crew stays tied to the deck.
";

pub(crate) const BANK: &str = "\
def interest(balance, rate):
    \"\"\"The money that a savings account earns in a year.\"\"\"
    return balance * rate
";

impl Notes {
    pub(crate) fn new() -> Self {
        let notes = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        notes.write("garden.md", GARDEN);
        notes.write("trips/ship.md", SHIP);
        notes.write("code/bank.py", BANK);
        notes
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.file(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// Runs `keyfold` in the folder.
    #[track_caller]
    pub(crate) fn run(&self, args: &[&str]) -> Run {
        keyfold(self.path(), args)
    }

    /// The paths that a search finds, best first.
    #[track_caller]
    pub(crate) fn find(&self, query: &str, more: &[&str]) -> Vec<String> {
        let args: Vec<&str> = ["search", query, "--files-with-matches"]
            .iter()
            .chain(more)
            .copied()
            .collect();
        let run = self.run(&args);
        assert!(run.code <= 1, "{}", run.stderr);
        run.stdout.lines().map(str::to_owned).collect()
    }
}

/// Every file below `folder` with its content, to see that nothing changed.
pub(crate) fn contents(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let bytes = std::fs::read(&path).unwrap();
                all.push((path, bytes));
            }
        }
    }
    all.sort();
    all
}

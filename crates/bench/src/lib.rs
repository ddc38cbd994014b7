//! Experiments: each runs a method beside its baseline and reports what it
//! measured, good or bad. One file per experiment, in `experiments/`.

mod error;
mod experiments;
mod lsa;
mod memory;
mod pictures;
mod plot;
mod quality;
mod random;
mod report;
mod samples;
mod store;
mod sts;
mod subspace;
mod timing;
mod toy;
mod trained;

use std::path::PathBuf;
use std::str::FromStr;

use keyfold_core::Progress;

pub use error::BenchError;
pub use experiments::peers::peer;
pub use report::{Report, Table};

/// How much to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scale {
    /// Seconds, on data that is part of the project: shows that it runs.
    Smoke,
    /// Minutes on two cores: the documented result.
    #[default]
    Small,
    /// The sizes of the publication.
    Full,
}

impl FromStr for Scale {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "smoke" => Ok(Self::Smoke),
            "small" => Ok(Self::Small),
            "full" => Ok(Self::Full),
            _ => Err(format!("'{s}' is no scale: choose smoke, small or full")),
        }
    }
}

/// What an experiment is run with.
#[derive(Debug, Clone, Default)]
pub struct BenchOptions {
    /// How much to run.
    pub scale: Scale,
    /// The user's data, where the experiment takes some.
    pub data: Option<PathBuf>,
    /// A model to compare with: a folder or a hub name.
    pub teacher: Option<String>,
    /// The model to measure; none is the built-in one.
    pub model: Option<String>,
    /// A model that weighs terms, to measure beside words: a folder or a hub name.
    pub sparse: Option<String>,
    /// A model that reads pairs, as the dear scorer: a folder or a hub name.
    pub cross_encoder: Option<String>,
    /// Pairs of texts to train on, as JSON Lines, where the experiment trains.
    pub pairs: Option<PathBuf>,
    /// Other engines to measure beside ours, as `NAME=COMMAND`.
    pub peers: Vec<String>,
    /// Look for the best options, where the experiment can.
    pub sweep: bool,
    /// Seed of everything random.
    pub seed: u64,
    /// Threads; 0 means all of the machine's.
    pub threads: usize,
}

impl BenchOptions {
    /// Threads as a number.
    pub(crate) fn thread_count(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        }
    }
}

/// An experiment that can be run by name.
pub struct Experiment {
    /// Its name for `keyfold bench`.
    pub name: &'static str,
    /// What it shows, in one line.
    pub about: &'static str,
    /// Runs it.
    pub run: fn(&BenchOptions, &dyn Progress) -> Result<Report, BenchError>,
}

/// All experiments.
pub fn experiments() -> &'static [Experiment] {
    experiments::ALL
}

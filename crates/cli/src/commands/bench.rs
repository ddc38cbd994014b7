//! `keyfold bench`.

use crate::args::Globals;
use crate::failure::{Outcome, wrong_use};

/// Run an experiment and print its results
#[derive(Debug, clap::Args)]
pub(crate) struct BenchArgs {
    /// The experiment; without it, all are listed
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

/// The names of all experiments.
pub(crate) fn names() -> Vec<&'static str> {
    Vec::new()
}

pub(crate) fn run(args: &BenchArgs, _globals: &Globals) -> anyhow::Result<Outcome> {
    Err(wrong_use(format!("no experiment {:?}", args.name)))
}

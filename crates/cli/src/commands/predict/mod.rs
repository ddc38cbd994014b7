//! `keyfold predict`: one file per command.

mod apply;
mod curve;
mod fit;
mod input;
mod methods;
mod score;

use clap::Subcommand;
use keyfold_predict::PredictError;

use crate::args::Globals;
use crate::failure::{Outcome, wrong_use};

/// Tell classes and numbers from rows of features, or classes of texts
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  keyfold predict fit flowers.csv --label species --method logistic --out flowers
  keyfold predict apply flowers new.csv
  keyfold predict score flowers held-out.csv --label species
  keyfold predict fit mail/ --method naive-bayes --out mail-model   # mail/work/*, mail/home/*
  keyfold predict fit houses.csv --label price --method cs-bottleneck --out houses
  keyfold predict fit rows.npy --labels names.npy --method auto --budgets 10,30,100 --out best")]
pub(crate) struct PredictArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Fit(fit::FitArgs),
    Apply(apply::ApplyArgs),
    Score(score::ScoreArgs),
}

pub(crate) fn run(args: &PredictArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let done = match &args.action {
        Action::Fit(args) => fit::run(args, globals),
        Action::Apply(args) => apply::run(args, globals),
        Action::Score(args) => score::run(args, globals),
    };
    match done {
        Err(error) => match error.downcast::<PredictError>() {
            Ok(PredictError::Cancelled) => Ok(Outcome::Interrupted),
            // A setting that does not go with the rows is for the user to change.
            Ok(error @ PredictError::Setting { .. }) => Err(wrong_use(error.to_string())),
            Ok(error) => Err(error.into()),
            Err(error) => Err(error),
        },
        done => done,
    }
}

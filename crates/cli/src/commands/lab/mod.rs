//! `keyfold lab`: one file per laboratory.

mod in_context;
mod random_features;
mod recall;
mod route;
mod sparsity;
mod tensor_attention;

use clap::Subcommand;
use keyfold_inspect::InspectError;

use crate::args::Globals;
use crate::failure::Outcome;

/// Small models that are trained or computed here to be looked into
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  keyfold lab in-context --layers 2 --steps 3000
  keyfold lab in-context --heads 2
  keyfold lab random-features examples.jsonl --save predictor.safetensors
  keyfold lab recall --texts 10000 --out recall.jsonl
  keyfold lab route places.csv --svg tour.svg
  keyfold lab sparsity recall --svg keys.svg
  keyfold lab tensor-attention rows.csv --top 20")]
pub(crate) struct LabArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    InContext(in_context::InContextArgs),
    RandomFeatures(random_features::RandomFeaturesArgs),
    Recall(recall::RecallArgs),
    Route(route::RouteArgs),
    Sparsity(sparsity::SparsityArgs),
    TensorAttention(tensor_attention::TensorAttentionArgs),
}

pub(crate) fn run(args: &LabArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let result = match &args.action {
        Action::InContext(args) => in_context::run(args, globals),
        Action::RandomFeatures(args) => random_features::run(args, globals),
        Action::Recall(args) => recall::run(args, globals),
        Action::Route(args) => route::run(args, globals),
        Action::Sparsity(args) => sparsity::run(args, globals),
        Action::TensorAttention(args) => tensor_attention::run(args, globals),
    };
    match result {
        Err(e) if matches!(e.downcast_ref(), Some(InspectError::Cancelled)) => {
            Ok(Outcome::Interrupted)
        }
        other => other,
    }
}

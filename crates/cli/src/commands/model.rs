//! `keyfold model`.

use std::io::Write;

use clap::Subcommand;
use serde::Serialize;

use crate::args::Globals;
use crate::failure::Outcome;
use crate::model;
use crate::output::terminal::BOLD;

/// Look at the models that turn text into vectors
#[derive(Debug, clap::Args)]
pub(crate) struct ModelArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Say what a model is
    Show {
        /// The model: `builtin`, a folder, or a hub name (`org/model`) in the hub's local cache
        #[arg(default_value = model::BUILTIN)]
        name: String,
    },
}

/// What is told of a model.
#[derive(Serialize)]
struct Shown<'a> {
    name: &'a str,
    dim: usize,
    hash: &'a str,
}

pub(crate) fn run(args: &ModelArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let Action::Show { name } = &args.action;
    let encoder = model::load(name, globals)?;
    let identity = encoder.identity();
    let shown = Shown {
        name: &identity.name,
        dim: identity.dim,
        hash: &identity.hash,
    };
    let mut out = anstream::stdout().lock();
    if globals.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&shown)?)?;
    } else {
        writeln!(out, "{BOLD}{}{BOLD:#}", shown.name)?;
        writeln!(out, "  numbers per vector  {}", shown.dim)?;
        writeln!(out, "  hash                {}", shown.hash)?;
    }
    Ok(Outcome::Done)
}

//! `keyfold model`.

mod activations;
mod compare;
mod inspect;
mod place;
mod share;
mod sparsify;

use std::io::Write;

use clap::Subcommand;
use keyfold_core::Encoder;
use keyfold_text::ColberterEncoder;
use serde::Serialize;

use crate::args::Globals;
use crate::commands::lm;
use crate::failure::Outcome;
use crate::model;
use crate::output::terminal::BOLD;

/// Look at models, compare them, and make them smaller
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
    Share(share::ShareArgs),
    Sparsify(sparsify::SparsifyArgs),
    Compare(compare::CompareArgs),
    Inspect(inspect::InspectArgs),
}

/// What is told of a model.
#[derive(Serialize)]
struct Shown<'a> {
    name: &'a str,
    dim: usize,
    hash: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    colberter: Option<Colberter>,
}

/// What is told of a ColBERTer model.
#[derive(Serialize)]
struct Colberter {
    /// Rows of `dim` numbers that stand for the whole text.
    whole_text_rows: usize,
    /// Numbers of a word.
    word_dim: usize,
    /// What the whole text counts in the score; the words count the rest.
    whole_text_weight: f32,
    /// Whether words are removed from passages.
    gates: bool,
    /// Whether words meet only the same words, unless the user says otherwise.
    exact_match: bool,
}

impl Colberter {
    fn of(model: &ColberterEncoder) -> Self {
        Self {
            whole_text_rows: model.whole_text_rows(),
            word_dim: model.word_dim(),
            whole_text_weight: model.merger(),
            gates: model.has_gates(),
            exact_match: model.exact_match() || model.is_uni(),
        }
    }

    fn write(&self, out: &mut impl Write) -> std::io::Result<()> {
        let yes = |yes| if yes { "yes" } else { "no" };
        writeln!(out, "  rows of whole text  {}", self.whole_text_rows)?;
        writeln!(out, "  numbers per word    {}", self.word_dim)?;
        writeln!(out, "  whole text counts   {:.4}", self.whole_text_weight)?;
        writeln!(out, "  removes words       {}", yes(self.gates))?;
        writeln!(out, "  exact match         {}", yes(self.exact_match))
    }
}

pub(crate) fn run(args: &ModelArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    match &args.action {
        Action::Show { name } => show(name, globals),
        Action::Share(args) => lm::stopped(share::run(args, globals)),
        Action::Sparsify(args) => lm::stopped(sparsify::run(args, globals)),
        Action::Compare(args) => lm::stopped(compare::run(args, globals)),
        Action::Inspect(args) => lm::stopped(inspect::run(args, globals)),
    }
}

fn show(name: &str, globals: &Globals) -> anyhow::Result<Outcome> {
    let (encoder, colberter): (Box<dyn Encoder>, _) = match model::load_colberter(name, globals)? {
        Some(model) => {
            let told = Colberter::of(&model);
            (Box::new(model), Some(told))
        }
        None => (model::load(name, globals)?, None),
    };
    let identity = encoder.identity();
    let shown = Shown {
        name: &identity.name,
        dim: identity.dim,
        hash: &identity.hash,
        colberter,
    };
    let mut out = anstream::stdout().lock();
    if globals.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&shown)?)?;
    } else {
        writeln!(out, "{BOLD}{}{BOLD:#}", shown.name)?;
        writeln!(out, "  numbers per vector  {}", shown.dim)?;
        writeln!(out, "  hash                {}", shown.hash)?;
        if let Some(colberter) = &shown.colberter {
            colberter.write(&mut out)?;
        }
    }
    Ok(Outcome::Done)
}

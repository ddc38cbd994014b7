//! `keyfold train hax`.

use std::path::PathBuf;

use keyfold_text::hax::{HaxConfig, HaxTask, train};

use super::data;
use super::training::TrainingArgs;
use crate::args::Globals;
use crate::failure::{Outcome, wrong_use};

/// Train a small Mamba that also looks back at few keys
///
/// HAX: beside its scan every layer attends to keys with the query's hash and to keys of the
/// largest scores. Without --data it learns joint recall: made-up texts in which a key has another
/// value in each context. `--set task=multi_query_recall` asks for keys alone, `--set
/// task=language` follows your text. `--set model.sparse.sparse_arch=[]` leaves the Mamba alone;
/// on language OUT is then a model folder that `keyfold lm` reads.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  keyfold train hax --out recall --recipe recipes/hax-small.toml
  keyfold train hax --out window --recipe recipes/hax-small.toml \\
      --set model.sparse.sparse_arch=[\\\"sliding_window\\\"]
  keyfold train hax --data books/ --out bytes --set task=language
  keyfold bench hax")]
pub(super) struct HaxArgs {
    /// Texts, for the task language: files (.txt is read byte for byte) and folders of any kind,
    /// or JSON Lines with a field `text` (repeatable)
    #[arg(long, value_name = "PATH")]
    data: Vec<PathBuf>,
    #[command(flatten)]
    training: TrainingArgs,
}

pub(super) fn run(args: &HaxArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let defaults = HaxConfig {
        seed: globals.seed,
        ..HaxConfig::default()
    };
    let Some(config) = args.training.settings(&defaults, &args.data)? else {
        return Ok(Outcome::Done);
    };
    let language = config.task == HaxTask::Language;
    if language == args.data.is_empty() {
        return Err(wrong_use(match language {
            true => "the task language needs texts: --data PATH",
            false => "--data is for --set task=language; the other tasks make up their texts",
        }));
    }
    let Some(text) = data::joined(&args.data, globals)? else {
        return Ok(Outcome::Interrupted);
    };
    args.training
        .watch(globals, "hax", |place| train(&text, &config, place))
}

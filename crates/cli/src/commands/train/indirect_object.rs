//! `keyfold train indirect-object`.

use keyfold_inspect::sae_evaluation::indirect_object::training::{IndirectObjectTraining, train};

use super::training::TrainingArgs;
use crate::args::Globals;
use crate::failure::Outcome;

/// Train a small model to name the indirect object, to be looked into
///
/// Two names, then one of them again: the model learns to name the other. It learns from prompts that
/// are made up, so it needs no data, and takes a minute or two. Its folder also holds the task, as
/// 'keyfold model inspect' reads it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  keyfold train indirect-object --out names
  keyfold model inspect names --task names/task.jsonl --site blocks.1.attn.hook_z --activations rows.npy
  keyfold dictionary fit rows.npy --method sae --out sae
  keyfold model inspect names --task names/task.jsonl --site blocks.1.attn.hook_z --dict sae")]
pub(super) struct IndirectObjectArgs {
    #[command(flatten)]
    training: TrainingArgs,
}

pub(super) fn run(args: &IndirectObjectArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let defaults = IndirectObjectTraining {
        seed: globals.seed,
        ..IndirectObjectTraining::default()
    };
    let Some(config) = args.training.settings(&defaults, &[])? else {
        return Ok(Outcome::Done);
    };
    args.training
        .watch(globals, "indirect-object", |place| train(&config, place))
}

//! `keyfold train`: one file per method.

mod builtin;
mod colberter;
mod crisp;
mod data;
mod defsent;
mod hax;
mod hydra;
mod indirect_object;
mod language_model;
mod matryoshka;
mod pointer;
mod training;
mod tsm2;
mod vim2;
mod word_models;

use clap::Subcommand;

use crate::args::Globals;
use crate::commands::lm;
use crate::failure::Outcome;

/// Train a model on your own data
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A training is a folder: it holds the settings (run.json), measurements (metrics.jsonl), their \
curves (curves.svg), the newest checkpoints, and at the end the model. Ctrl-C stops it at the next \
step; --resume goes on to the same weights, after a kill as well.")]
pub(crate) struct TrainArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    BinaryParagraphVector(word_models::ParagraphVectorArgs),
    Builtin(builtin::BuiltinArgs),
    Colberter(colberter::ColberterArgs),
    Crisp(crisp::CrispArgs),
    DisambiguatedSkipGram(word_models::SkipGramArgs),
    DefsentPlus(defsent::DefSentArgs),
    Hax(hax::HaxArgs),
    Hydra(hydra::HydraArgs),
    IndirectObject(indirect_object::IndirectObjectArgs),
    LanguageModel(language_model::LanguageModelArgs),
    MatryoshkaKv(matryoshka::MatryoshkaArgs),
    PointerNetworks(pointer::PointerArgs),
    Tsm2(tsm2::Tsm2Args),
    Vim2(vim2::Vim2Args),
}

pub(crate) fn run(args: &TrainArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    match &args.what {
        What::BinaryParagraphVector(args) => word_models::paragraph_vectors(args, globals),
        What::Builtin(args) => builtin::run(args, globals),
        What::Colberter(args) => colberter::run(args, globals),
        What::Crisp(args) => crisp::run(args, globals),
        What::DisambiguatedSkipGram(args) => word_models::skip_gram(args, globals),
        What::DefsentPlus(args) => defsent::run(args, globals),
        What::Hax(args) => hax::run(args, globals),
        What::Hydra(args) => hydra::run(args, globals),
        What::IndirectObject(args) => indirect_object::run(args, globals),
        What::LanguageModel(args) => language_model::run(args, globals),
        What::MatryoshkaKv(args) => lm::stopped(matryoshka::run(args, globals)),
        What::PointerNetworks(args) => pointer::run(args, globals),
        What::Tsm2(args) => tsm2::run(args, globals),
        What::Vim2(args) => vim2::run(args, globals),
    }
}

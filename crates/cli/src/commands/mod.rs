//! One file per command.

use clap::Subcommand;

use crate::args::Args;
use crate::failure::Outcome;

mod ask;
pub(crate) mod bench;
mod check;
mod completions;
mod dictionary;
mod image;
mod index;
mod lab;
mod lm;
mod man;
mod model;
mod predict;
mod search;
mod series;
mod systems;
mod text;
mod train;
mod tune;

/// What Keyfold can do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Search(search::SearchArgs),
    Ask(ask::AskArgs),
    Image(image::ImageArgs),
    Index(index::IndexArgs),
    Check(check::CheckArgs),
    Dictionary(dictionary::DictionaryArgs),
    Systems(systems::SystemsArgs),
    Text(text::TextArgs),
    Lab(lab::LabArgs),
    Lm(lm::LmArgs),
    Bench(bench::BenchArgs),
    Model(model::ModelArgs),
    Predict(predict::PredictArgs),
    Series(series::SeriesArgs),
    Train(train::TrainArgs),
    Tune(tune::TuneArgs),
    Completions(completions::CompletionsArgs),
    Man(man::ManArgs),
}

/// Runs the command that the user typed.
pub(crate) fn run(args: &Args) -> anyhow::Result<Outcome> {
    match &args.command {
        Command::Search(search) => search::run(search, &args.globals),
        Command::Ask(ask) => lm::stopped(ask::run(ask, &args.globals)),
        Command::Lab(lab) => lab::run(lab, &args.globals),
        Command::Lm(lm) => lm::run(lm, &args.globals),
        Command::Image(image) => image::run(image, &args.globals),
        Command::Index(index) => index::run(index, &args.globals),
        Command::Check(check) => check::run(check, &args.globals),
        Command::Dictionary(dictionary) => dictionary::run(dictionary, &args.globals),
        Command::Bench(bench) => bench::run(bench, &args.globals),
        Command::Systems(systems) => systems::run(systems, &args.globals),
        Command::Text(text) => text::run(text, &args.globals),
        Command::Train(train) => train::run(train, &args.globals),
        Command::Tune(tune) => tune::run(tune, &args.globals),
        Command::Model(model) => model::run(model, &args.globals),
        Command::Predict(predict) => predict::run(predict, &args.globals),
        Command::Series(series) => series::run(series, &args.globals),
        Command::Completions(completions) => completions::run(completions),
        Command::Man(man) => man::run(man),
    }
}

//! `keyfold tune`.

use std::io::{self, Write};
use std::path::PathBuf;

use keyfold_core::Encoder;
use keyfold_search::candidates::Tuned;
use keyfold_search::candidates::tune::{EncodingTrial, TuneOptions, Tuning, tune, tune_encodings};
use keyfold_search::store::{Snapshot, set_tuned};
use serde_json::json;

use crate::args::Globals;
use crate::failure::{Outcome, wrong_use};
use crate::output::terminal::BOLD;
use crate::place;
use crate::progress::StderrProgress;
use crate::update;

/// Encodings that are shown.
const SHOWN: usize = 8;

/// Find the fastest way to search a store well, by trying
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Queries are made of the store's own words, and what they find is compared with an exhaustive
search. Tried are centroids, every passage, and with --fde encodings; plaid and warp are not. The
store keeps the result, and 'keyfold search' uses it until the store has grown
fourfold.

Examples:
  keyfold tune ~/notes
  keyfold tune ~/notes --fde                  try encodings of fixed length too
  keyfold tune ~/notes --recall 0.95
  keyfold tune ~/notes --forget")]
pub(crate) struct TuneArgs {
    /// The folder that was indexed
    #[arg(default_value = ".", conflicts_with = "store")]
    path: PathBuf,
    /// The store itself
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// The model: builtin, a folder, or a hub name [default: that of the store]
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Share of the ten best passages that must be found
    #[arg(long, value_name = "SHARE", default_value_t = 0.98, value_parser = share)]
    recall: f64,
    /// Queries to try
    #[arg(long, value_name = "N", default_value_t = 100,
          value_parser = clap::value_parser!(u16).range(1..=10_000))]
    queries: u16,
    /// Choose an encoding of fixed length (MUVERA) on a sample, and make it
    #[arg(long)]
    fde: bool,
    /// Search as if the store had never been tuned
    #[arg(long, conflicts_with_all = ["fde", "recall", "queries"])]
    forget: bool,
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(x) if x > 0.0 && x <= 1.0 => Ok(x),
        _ => Err("a share is above 0 and at most 1, as 0.98".to_owned()),
    }
}

pub(crate) fn run(args: &TuneArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let store = match &args.store {
        Some(store) => store.clone(),
        None => place::locate(&args.path, None)?.store,
    };
    // Says what is wrong with the store before a model is loaded.
    drop(Snapshot::open(&store)?);
    let encoder = update::encoder(&store, args.model.as_deref(), globals)?;
    if encoder.reads_rows() {
        return Err(wrong_use(
            "tune makes queries of the words of a store, and this one holds token vectors; try \
             --candidates and --nprobe of 'keyfold search' instead",
        ));
    }
    let writing = update::writer_options(&update::options(globals));
    let identity = encoder.identity();
    let progress = StderrProgress::new(globals.quiet, 0);
    if args.forget {
        set_tuned(&store, identity, None, &writing)?;
        progress.say("forgotten: the store is searched as any other");
        return Ok(Outcome::Done);
    }
    let mut options = TuneOptions {
        queries: args.queries.into(),
        recall: args.recall,
        seed: globals.seed,
        ..TuneOptions::default()
    };
    if let Some(threads) = globals.threads {
        options.threads = threads.into();
    }
    let mut encodings = Vec::new();
    if args.fde {
        encodings = choose_encoding(&store, &*encoder, &options, globals, &progress)?;
    }
    let tuning = tune(&Snapshot::open(&store)?, &*encoder, &options, &progress)?;
    if tuning.trials.is_empty() {
        if keyfold_core::Progress::cancelled(&progress) {
            progress.say("stopped: the store is searched as before");
            return Ok(Outcome::Interrupted);
        }
        progress.say("the store has no passage to make a query of; index some text first");
        return Ok(Outcome::Negative);
    }
    set_tuned(&store, identity, tuning.best.as_ref(), &writing)?;
    let mut out = anstream::stdout().lock();
    if globals.json {
        let document = json!({
            "store": place::shown(&store),
            "trials": tuning.trials,
            "chosen": tuning.best,
            "encodings": encodings,
        });
        writeln!(out, "{}", serde_json::to_string_pretty(&document)?)?;
    } else {
        write_report(&mut out, &tuning, &encodings)?;
    }
    Ok(Outcome::Done)
}

/// Tries encodings and makes the best.
fn choose_encoding(
    store: &std::path::Path,
    encoder: &dyn Encoder,
    options: &TuneOptions,
    globals: &Globals,
    progress: &StderrProgress,
) -> anyhow::Result<Vec<EncodingTrial>> {
    let trials = tune_encodings(&Snapshot::open(store)?, encoder, options, progress)?;
    if let Some(best) = trials.first() {
        let indexing = update::options(globals);
        update::encode(store, encoder, Some(&best.options), &indexing, progress)?;
    }
    Ok(trials)
}

fn write_report(
    out: &mut impl Write,
    tuning: &Tuning,
    encodings: &[EncodingTrial],
) -> io::Result<()> {
    if !encodings.is_empty() {
        writeln!(out, "{BOLD}candidates  bytes  encoding{BOLD:#}")?;
        for trial in encodings.iter().take(SHOWN) {
            let (n, bytes) = (trial.candidates, trial.bytes);
            writeln!(out, "{n:10}  {bytes:5}  {}", trial.options)?;
        }
        writeln!(out)?;
    }
    writeln!(out, "{BOLD}recall   p50, ms  candidates{BOLD:#}")?;
    for trial in &tuning.trials {
        writeln!(out, "{}", line(trial))?;
    }
    match &tuning.best {
        Some(best) => writeln!(out, "\nchosen: {}", line(best)),
        None => writeln!(
            out,
            "\nnothing finds enough; the store is searched as before"
        ),
    }
}

fn line(trial: &Tuned) -> String {
    use keyfold_search::candidates::Method;
    let way = match trial.method {
        Method::Exhaustive => "exhaustive".to_owned(),
        Method::Fde => format!("fde, {} encoded, {} exact", trial.encoded, trial.exact),
        _ => format!(
            "centroids, {} probes, {} estimated, {} exact",
            trial.probes, trial.estimated, trial.exact
        ),
    };
    format!("{:.4}  {:8.2}  {way}", trial.recall, trial.milliseconds)
}

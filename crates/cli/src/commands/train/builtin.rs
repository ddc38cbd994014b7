//! `keyfold train builtin`.

use std::io::Write;
use std::path::PathBuf;

use keyfold_core::ModelFolder;
use keyfold_text::distill::{DistillConfig, DistillError, distill};
use keyfold_text::{LoadOptions, SentenceEncoder};

use super::data;
use crate::args::Globals;
use crate::failure::{Outcome, wrong_use};
use crate::progress::StderrProgress;
use crate::{place, update};

/// Notes of a training that are shown.
const NOTES: usize = 20;

/// Distil the built-in encoder from a sentence encoder
///
/// The long part, in which the teacher reads all texts, is kept in
/// OUT/teacher.safetensors; a run on the same texts goes on from there.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  scripts/corpus.py corpus.jsonl
  keyfold train builtin --teacher all-MiniLM-L6-v2/ --data corpus.jsonl --out my-model
  keyfold search \"boat in the wind\" notes --model my-model --store notes-store")]
pub(super) struct BuiltinArgs {
    /// The sentence encoder to learn from: a folder or a hub name
    #[arg(long, value_name = "NAME")]
    teacher: String,
    /// Texts: JSON Lines with a field `text`, or files and folders of any kind (repeatable)
    #[arg(long, value_name = "PATH", required = true)]
    data: Vec<PathBuf>,
    /// Folder for the model
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Another value for a field of the configuration, as in steps=3000 (repeatable)
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

pub(super) fn run(args: &BuiltinArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    for path in &args.data {
        place::canonical(path)?;
    }
    let config = config(args, globals)?;
    let folder = ModelFolder::find(&args.teacher)?;
    let threads = config.threads;
    let teacher = SentenceEncoder::load(&folder, &LoadOptions { threads })?;
    let progress = StderrProgress::new(globals.quiet, NOTES);
    let mut texts = Vec::new();
    for path in &args.data {
        data::texts(path, &update::options(globals).read, &mut texts, &progress)?;
    }
    let report = match distill(&teacher, &folder, &texts, &config, &args.out, &progress) {
        Ok(report) => report,
        Err(e @ DistillError::Cancelled) => {
            progress.say(&e.to_string());
            return Ok(Outcome::Interrupted);
        }
        Err(e) => return Err(e.into()),
    };
    let mut out = anstream::stdout().lock();
    if globals.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        writeln!(out, "texts            {}", report.texts)?;
        writeln!(out, "tokens           {}", report.tokens)?;
        writeln!(out, "held-out cosine  {:.4}", report.held_out_cosine)?;
        writeln!(out, "bytes            {}", report.bytes)?;
        writeln!(out, "model            {}", args.out.display())?;
    }
    Ok(Outcome::Done)
}

/// The defaults with what `--set` changes.
fn config(args: &BuiltinArgs, globals: &Globals) -> anyhow::Result<DistillConfig> {
    let defaults = DistillConfig {
        seed: globals.seed,
        threads: globals.threads.map_or(0, usize::from),
        ..DistillConfig::default()
    };
    let mut values = serde_json::to_value(&defaults)?;
    for pair in &args.set {
        let Some((key, value)) = pair.split_once('=') else {
            return Err(wrong_use(format!(
                "--set {pair}: write KEY=VALUE, as in --set steps=3000"
            )));
        };
        let parsed = serde_json::from_str(value)
            .map_err(|_| wrong_use(format!("--set {pair}: '{value}' is not a number")))?;
        if values.get(key).is_none() {
            let known = values
                .as_object()
                .map(|v| v.keys().cloned().collect::<Vec<_>>());
            return Err(wrong_use(format!(
                "--set {pair}: no field '{key}'; there are {}",
                known.unwrap_or_default().join(", ")
            )));
        }
        values[key] = parsed;
    }
    serde_json::from_value(values).map_err(|e| wrong_use(format!("--set: {e}")))
}

//! `keyfold train builtin`.

use std::io::Write;
use std::path::PathBuf;

use keyfold_core::ModelFolder;
use keyfold_text::builtin::BUILTIN;
use keyfold_text::distill::{DistillConfig, DistillError, distill, distill_ranking};
use keyfold_text::{LoadOptions, SentenceEncoder};
use serde_json::{Value, json};

use super::data;
use crate::args::Globals;
use crate::failure::{Outcome, wrong_use};
use crate::progress::StderrProgress;
use crate::{place, update};

/// Notes of a training that are shown.
const NOTES: usize = 20;

/// Distil the built-in encoder from a sentence encoder
///
/// From texts the student learns where the teacher's token states point, from pairs of a query
/// and a text that belongs to it how the teacher ranks. With both it learns one after the other;
/// with pairs alone it begins from --start.
///
/// The long part, in which the teacher reads all texts, is kept in
/// OUT/teacher.safetensors and OUT/teacher-pairs.safetensors; a run on the same texts goes on
/// from there.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  scripts/corpus.py corpus.jsonl
  scripts/pairs.py pairs.jsonl
  keyfold train builtin --teacher all-MiniLM-L6-v2/ --data corpus.jsonl --pairs pairs.jsonl --out my-model
  keyfold train builtin --teacher all-MiniLM-L6-v2/ --pairs pairs.jsonl --out better
  keyfold search \"boat in the wind\" notes --model my-model --store notes-store")]
pub(super) struct BuiltinArgs {
    /// The sentence encoder to learn from: a folder or a hub name
    #[arg(long, value_name = "NAME")]
    teacher: String,
    /// Texts: JSON Lines with a field `text`, or files and folders of any kind (repeatable)
    #[arg(long, value_name = "PATH", required_unless_present = "pairs")]
    data: Vec<PathBuf>,
    /// Pairs: JSON Lines with `query` and `positive`, or files and folders whose headings are
    /// queries (repeatable)
    #[arg(long, value_name = "PATH")]
    pairs: Vec<PathBuf>,
    /// Where pairs alone begin: a folder that this command wrote, or the built-in encoder
    #[arg(long, value_name = "NAME", default_value = BUILTIN, conflicts_with = "data")]
    start: String,
    /// Folder for the model
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Another value for a field of the configuration, as in steps=3000 or ranking.steps=500
    /// (repeatable)
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

pub(super) fn run(args: &BuiltinArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    for path in args.data.iter().chain(&args.pairs) {
        place::canonical(path)?;
    }
    let config = config(args, globals)?;
    let folder = ModelFolder::find(&args.teacher)?;
    let threads = config.threads;
    let teacher = SentenceEncoder::load(&folder, &LoadOptions { threads })?;
    let progress = StderrProgress::new(globals.quiet, NOTES);
    let report = match train(args, globals, &config, &folder, &teacher, &progress) {
        Ok(report) => report,
        Err(e) => {
            let Some(e @ DistillError::Cancelled) = e.downcast_ref() else {
                return Err(e);
            };
            progress.say(&e.to_string());
            return Ok(Outcome::Interrupted);
        }
    };
    let mut out = anstream::stdout().lock();
    if globals.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
        return Ok(Outcome::Done);
    }
    for (name, value) in report.as_object().into_iter().flatten() {
        let name = name.replace('_', " ");
        match value.as_f64().filter(|_| value.is_f64()) {
            Some(number) => writeln!(out, "{name:<24}{number:.4}")?,
            None => writeln!(out, "{name:<24}{value}")?,
        }
    }
    writeln!(out, "{:<24}{}", "model", args.out.display())?;
    Ok(Outcome::Done)
}

/// Both stages, as far as there is something to learn from; gives what they report.
fn train(
    args: &BuiltinArgs,
    globals: &Globals,
    config: &DistillConfig,
    folder: &ModelFolder,
    teacher: &SentenceEncoder,
    progress: &StderrProgress,
) -> anyhow::Result<Value> {
    let read = &update::options(globals).read;
    let mut reports = json!({});
    if !args.data.is_empty() {
        let mut texts = Vec::new();
        for path in &args.data {
            data::texts(path, read, &mut texts, progress)?;
        }
        let report = distill(teacher, folder, &texts, config, &args.out, progress)?;
        join(&mut reports, serde_json::to_value(report)?);
    }
    if !args.pairs.is_empty() {
        let start = match (args.data.is_empty(), args.start.as_str()) {
            (false, _) => Some(ModelFolder::find(&args.out.to_string_lossy())?),
            (true, BUILTIN) => None,
            (true, name) => Some(ModelFolder::find(name)?),
        };
        let pairs = data::pairs(&args.pairs, globals)?.ok_or(DistillError::Cancelled)?;
        let texts = pairs
            .0
            .iter()
            .map(|pair| (pair.query.as_str(), pair.positive.as_str()));
        let texts: Vec<_> = texts.collect();
        let start = start.as_ref();
        let report = distill_ranking(start, teacher, &texts, config, &args.out, progress)?;
        join(&mut reports, serde_json::to_value(report)?);
    }
    Ok(reports)
}

fn join(reports: &mut Value, report: Value) {
    if let (Some(all), Value::Object(report)) = (reports.as_object_mut(), report) {
        all.extend(report);
    }
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
        let (part, name) = match key.split_once('.') {
            Some((part, name)) => (&mut values[part], name),
            None => (&mut values, key),
        };
        let fields = part.as_object_mut();
        let known = fields.as_ref().map(|fields| fields.keys().cloned());
        let known: Vec<String> = known.into_iter().flatten().collect();
        match fields.and_then(|fields| fields.get_mut(name)) {
            Some(field) if field.is_number() => {
                *field = serde_json::from_str(value)
                    .map_err(|_| wrong_use(format!("--set {pair}: '{value}' is not a number")))?;
            }
            Some(field) if field.is_string() => *field = value.into(),
            _ => {
                return Err(wrong_use(format!(
                    "--set {pair}: no field '{key}'; there are {}",
                    known.join(", ")
                )));
            }
        }
    }
    serde_json::from_value(values).map_err(|e| wrong_use(format!("--set: {e}")))
}

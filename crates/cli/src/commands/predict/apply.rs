//! `keyfold predict apply`.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use keyfold_core::atomic;
use keyfold_predict::{Classifier, Model, Predictor, Regressor, describe};
use serde_json::{Value, json};

use super::input::{InputArgs, Notes, read_examples};
use crate::args::Globals;
use crate::failure::{Outcome, wrong_use};
use crate::output::terminal::printable;
use crate::progress::StderrProgress;

/// Tell the classes (or numbers) of rows or texts
#[derive(Debug, clap::Args)]
pub(super) struct ApplyArgs {
    /// A folder that `keyfold predict fit` wrote
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// A file of rows, - for standard input, or a folder of texts
    #[arg(value_name = "DATA")]
    data: PathBuf,
    #[command(flatten)]
    input: InputArgs,
    /// The probabilities of all classes, not of the one told alone
    #[arg(long)]
    all: bool,
    /// key-value-bottleneck: which learned rows share how many pairs with each row
    #[arg(long)]
    explain: bool,
    /// Write a table (CSV) into this file
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The encoder of texts, where it is not found under the name that the model remembers
    #[arg(long = "model", value_name = "NAME", id = "encoder")]
    encoder: Option<String>,
}

/// Learned rows that an explanation names.
const NEAR: usize = 3;

pub(super) fn run(args: &ApplyArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let (method, notes) = describe(&args.model)?;
    let notes: Notes = serde_json::from_value(notes).unwrap_or_default();
    let progress = StderrProgress::new(globals.quiet, 20);
    let read = || {
        let encoder = args.encoder.as_deref();
        read_examples(
            &args.data,
            &args.input,
            encoder,
            Some(&notes),
            globals,
            &progress,
        )
    };
    if method == "cs-bottleneck" {
        let model = Regressor::load(&args.model)?;
        if args.all || args.explain {
            return Err(wrong_use("--all and --explain are for models of classes"));
        }
        let examples = read()?;
        let told = model.predict(&examples.x)?;
        let lines = examples.names.iter().zip(&told);
        let lines = lines.map(|(name, y)| vec![name.clone(), y.to_string()]);
        let values = examples.names.iter().zip(&told);
        let values = values.map(|(name, y)| json!({"name": name, "value": y}));
        let head = vec!["name".to_owned(), "value".to_owned()];
        return write(args, globals, head, lines.collect(), values.collect());
    }
    let model = Predictor::load(&args.model)?;
    let examples = read()?;
    let logits = model.logits(&examples.x)?;
    let probabilities = model.probabilities(&logits);
    let k = model.classes().len();
    let mut head = vec![
        "name".to_owned(),
        "class".to_owned(),
        "probability".to_owned(),
    ];
    if args.all {
        head.extend(model.classes().iter().cloned());
    }
    let (mut lines, mut values) = (Vec::new(), Vec::new());
    for (i, (row, p)) in (logits.chunks_exact(k))
        .zip(probabilities.chunks_exact(k))
        .enumerate()
    {
        let class = model.decide(row);
        let name = &examples.names[i];
        let mut line = vec![
            name.clone(),
            model.classes()[class].clone(),
            format!("{:.4}", p[class]),
        ];
        if args.all {
            line.extend(p.iter().map(|p| format!("{p:.4}")));
        }
        let by_class: serde_json::Map<String, Value> = (model.classes().iter())
            .zip(p)
            .map(|(class, p)| (class.clone(), json!(p)))
            .collect();
        let mut value = json!({
            "name": name,
            "class": model.classes()[class],
            "probabilities": by_class,
        });
        if args.explain {
            let Model::KeyValueBottleneck(table) = model.model() else {
                return Err(wrong_use("--explain is for key-value-bottleneck"));
            };
            let scaled = model.scaled(&examples.x.select(&[i]))?;
            let told = table.explain(scaled.row(0), NEAR)?;
            let near: Vec<String> = (told.rows.iter())
                .map(|(row, same)| format!("row {} ({same} pairs)", row + 1))
                .collect();
            line.push(near.join(", "));
            value["explanation"] = json!(told);
        }
        lines.push(line);
        values.push(value);
    }
    if args.explain {
        head.push("learned rows with the same pairs".to_owned());
    }
    write(args, globals, head, lines, values)
}

fn write(
    args: &ApplyArgs,
    globals: &Globals,
    head: Vec<String>,
    lines: Vec<Vec<String>>,
    values: Vec<Value>,
) -> anyhow::Result<Outcome> {
    if let Some(path) = &args.out {
        let mut text = String::new();
        for line in std::iter::once(&head).chain(&lines) {
            let cells: Vec<String> = line.iter().map(|cell| quoted(cell)).collect();
            text += &cells.join(",");
            text.push('\n');
        }
        atomic::write(path, text.as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))?;
        return Ok(Outcome::Done);
    }
    let mut out = anstream::stdout().lock();
    if globals.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&values)?)?;
        return Ok(Outcome::Done);
    }
    let width = |column: usize| {
        let cells = lines.iter().map(|line| line[column].chars().count());
        cells.max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    for line in &lines {
        let cells = line.iter().zip(&widths);
        let cells: Vec<String> = cells
            .map(|(cell, width)| format!("{:width$}", printable(cell)))
            .collect();
        writeln!(out, "{}", cells.join("  ").trim_end())?;
    }
    Ok(Outcome::Done)
}

/// A cell of a CSV table.
fn quoted(cell: &str) -> String {
    match cell.contains(['"', ',', '\n', '\r']) {
        true => format!("\"{}\"", cell.replace('"', "\"\"")),
        false => cell.to_owned(),
    }
}

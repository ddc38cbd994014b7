//! `keyfold bench`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::ValueEnum;
use keyfold_bench::{BenchError, BenchOptions, Experiment, Report, Scale, Table, experiments};
use keyfold_core::atomic;
use serde_json::json;
use unicode_width::UnicodeWidthStr;

use crate::args::Globals;
use crate::failure::{Outcome, wrong_use};
use crate::output::terminal::BOLD;
use crate::progress::StderrProgress;

/// Notes of an experiment that are shown.
const NOTES: usize = 20;

/// Run an experiment and print its results
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Besides the table on stdout, an experiment writes NAME.json and NAME.svg into --out.

Examples:
  keyfold bench                               list all experiments
  keyfold bench machine
  keyfold bench search --data ~/cranfield")]
pub(crate) struct BenchArgs {
    /// The experiment; without it, all are listed
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// How much to run
    #[arg(long, default_value = "small")]
    scale: ScaleArg,
    /// Folder for the report and the plot
    #[arg(long, value_name = "DIR", default_value = "reports")]
    out: PathBuf,
    /// Data to run on, for experiments that take some; smoke runs bring their own
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// The model to measure [default: builtin]
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// A model to compare with: a folder or a hub name
    #[arg(long, value_name = "NAME")]
    teacher: Option<String>,
    /// A model that weighs terms, to measure beside words: a folder or a hub name
    #[arg(long, value_name = "NAME")]
    sparse: Option<String>,
    /// A cross-encoder as the scorer whose calls are saved, for anncur: a folder or a hub name
    #[arg(long, value_name = "NAME")]
    cross_encoder: Option<String>,
    /// Pairs of texts to train on, where the experiment trains: JSON Lines with query and positive;
    /// for search a file of the STS benchmark
    #[arg(long, value_name = "FILE")]
    pairs: Option<PathBuf>,
    /// Another engine to measure beside ours, for peers and crisp: NAME=COMMAND; may be repeated
    #[arg(long = "peer", value_name = "NAME=COMMAND")]
    peers: Vec<String>,
    /// Look for the best options, where the experiment can: prf-interpolation
    #[arg(long)]
    sweep: bool,
}

/// How much to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ScaleArg {
    /// Seconds, on data that is part of the project
    Smoke,
    /// Minutes on two cores: what the documents quote
    Small,
    /// The sizes of the publication
    Full,
}

/// The names of all experiments.
#[cfg(test)]
pub(crate) fn names() -> Vec<&'static str> {
    experiments().iter().map(|e| e.name).collect()
}

pub(crate) fn run(args: &BenchArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let mut out = anstream::stdout().lock();
    let Some(name) = &args.name else {
        list(&mut out, globals.json)?;
        return Ok(Outcome::Done);
    };
    let Some(experiment) = experiments().iter().find(|e| e.name == name) else {
        return Err(wrong_use(format!(
            "no experiment '{name}'; 'keyfold bench' lists all of them"
        )));
    };
    let progress = StderrProgress::new(globals.quiet, NOTES);
    let report = match (experiment.run)(&options(args, globals), &progress) {
        Ok(report) => report,
        Err(BenchError::Cancelled) => {
            progress.say(&BenchError::Cancelled.to_string());
            return Ok(Outcome::Interrupted);
        }
        Err(e) => return Err(e.into()),
    };
    save(&args.out, &report)?;
    if globals.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        write_report(&mut out, &report)?;
    }
    progress.say(&format!(
        "wrote {name}.json and {name}.svg into {}",
        args.out.display()
    ));
    Ok(Outcome::Done)
}

fn options(args: &BenchArgs, globals: &Globals) -> BenchOptions {
    BenchOptions {
        scale: match args.scale {
            ScaleArg::Smoke => Scale::Smoke,
            ScaleArg::Small => Scale::Small,
            ScaleArg::Full => Scale::Full,
        },
        data: args.data.clone(),
        teacher: args.teacher.clone(),
        model: args.model.clone(),
        sparse: args.sparse.clone(),
        cross_encoder: args.cross_encoder.clone(),
        pairs: args.pairs.clone(),
        peers: args.peers.clone(),
        sweep: args.sweep,
        seed: globals.seed,
        threads: globals.threads.map_or(0, usize::from),
    }
}

fn list(out: &mut impl Write, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        let all: Vec<_> = experiments()
            .iter()
            .map(|Experiment { name, about, .. }| json!({ "name": name, "about": about }))
            .collect();
        writeln!(out, "{}", serde_json::to_string_pretty(&all)?)?;
        return Ok(());
    }
    let width = experiments()
        .iter()
        .map(|e| e.name.len())
        .max()
        .unwrap_or(0);
    for Experiment { name, about, .. } in experiments() {
        writeln!(out, "{BOLD}{name:width$}{BOLD:#}  {about}")?;
    }
    Ok(())
}

/// Writes the report and the plot into `folder`.
fn save(folder: &Path, report: &Report) -> anyhow::Result<()> {
    let mut text = serde_json::to_vec_pretty(report)?;
    text.push(b'\n');
    std::fs::create_dir_all(folder)
        .and_then(|()| atomic::write(&folder.join(format!("{}.json", report.name)), &text))
        .and_then(|()| {
            atomic::write(
                &folder.join(format!("{}.svg", report.name)),
                report.svg.as_bytes(),
            )
        })
        .with_context(|| {
            format!(
                "cannot write the report into {}; name another folder with --out",
                folder.display()
            )
        })
}

fn write_report(out: &mut impl Write, report: &Report) -> io::Result<()> {
    for table in &report.tables {
        writeln!(out, "{BOLD}{}{BOLD:#}\n", table.title)?;
        write_table(out, table)?;
        writeln!(out)?;
    }
    for finding in &report.findings {
        writeln!(out, "- {finding}")?;
    }
    Ok(())
}

/// A table as Markdown, so that it can go into a document as it is.
fn write_table(out: &mut impl Write, table: &Table) -> io::Result<()> {
    let width = |column: usize| {
        let cells = table.rows.iter().filter_map(|row| row.get(column));
        cells
            .chain([&table.columns[column]])
            .map(|c| c.width())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..table.columns.len()).map(width).collect();
    write_row(out, &table.columns, &widths)?;
    for (i, &width) in widths.iter().enumerate() {
        // Names to the left, numbers to the right.
        let line = "-".repeat(width + 1);
        let rule = if i == 0 {
            format!("{line}-")
        } else {
            format!("{line}:")
        };
        write!(out, "|{rule}")?;
    }
    writeln!(out, "|")?;
    for row in &table.rows {
        write_row(out, row, &widths)?;
    }
    Ok(())
}

fn write_row(out: &mut impl Write, cells: &[String], widths: &[usize]) -> io::Result<()> {
    for (i, (cell, &width)) in cells.iter().zip(widths).enumerate() {
        let gap = " ".repeat(width.saturating_sub(cell.width()));
        if i == 0 {
            write!(out, "| {cell}{gap} ")?;
        } else {
            write!(out, "| {gap}{cell} ")?;
        }
    }
    writeln!(out, "|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_markdown_with_straight_columns() {
        let cells = |row: &[&str]| row.iter().map(|c| (*c).to_owned()).collect::<Vec<_>>();
        let table = Table {
            title: "Quality".into(),
            columns: cells(&["mode", "nDCG@10"]),
            rows: vec![cells(&["lexical", "0.4"]), cells(&["bo", "0.4512"])],
        };
        let mut out = Vec::new();
        write_table(&mut out, &table).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "| mode    | nDCG@10 |\n\
             |---------|--------:|\n\
             | lexical |     0.4 |\n\
             | bo      |  0.4512 |\n"
        );
    }

    #[test]
    fn names_are_unique() {
        let names = names();
        let mut unique = names.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), names.len());
    }
}

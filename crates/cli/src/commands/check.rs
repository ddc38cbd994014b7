//! `keyfold check`.

use std::io::Write;
use std::path::PathBuf;

use keyfold_search::store::{CheckReport, check};
use serde_json::json;

use crate::args::Globals;
use crate::failure::Outcome;
use crate::output::terminal::{MATCH, PATH, printable};
use crate::place;
use crate::progress::{StderrProgress, with_separators};

/// Verify every byte of a store
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit codes: 0 all is well, 1 damage was found (the files are named) or the store cannot be read.")]
pub(crate) struct CheckArgs {
    /// The folder that was indexed
    #[arg(default_value = ".", conflicts_with = "store")]
    path: PathBuf,
    /// The store itself
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
}

pub(crate) fn run(args: &CheckArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let store = match &args.store {
        Some(store) => store.clone(),
        None => place::locate(&args.path, None)?.store,
    };
    let progress = StderrProgress::new(globals.quiet, 0);
    let report = check(&store, &progress)?;
    let mut out = anstream::stdout().lock();
    if globals.json {
        let damaged: Vec<_> = report
            .damaged
            .iter()
            .map(|d| json!({ "path": place::shown(&d.path), "what": d.what }))
            .collect();
        let document = json!({
            "store": place::shown(&store),
            "generation": report.generation,
            "files": report.files,
            "bytes": report.bytes,
            "damaged": damaged,
            "complete": !report.cancelled,
        });
        writeln!(out, "{}", serde_json::to_string_pretty(&document)?)?;
    } else {
        write_report(&mut out, &report)?;
    }
    if !report.damaged.is_empty() {
        let store = place::shown(&store);
        let _ = writeln!(
            anstream::stderr(),
            "keyfold: the store {} is damaged; 'keyfold index --rebuild' makes it anew from the files",
            store.display()
        );
        return Ok(Outcome::Negative);
    }
    Ok(if report.cancelled {
        Outcome::Interrupted
    } else {
        Outcome::Done
    })
}

fn write_report(out: &mut impl Write, report: &CheckReport) -> std::io::Result<()> {
    for file in &report.damaged {
        let path = place::shown(&file.path);
        let path = printable(&path.to_string_lossy());
        writeln!(
            out,
            "{PATH}{path}{PATH:#}: {MATCH}{}{MATCH:#}",
            printable(&file.what)
        )?;
    }
    let files = with_separators(report.files);
    let bytes = indicatif::HumanBytes(report.bytes);
    let verdict = if report.cancelled {
        "stopped before the end"
    } else if report.damaged.is_empty() {
        "all as it was written"
    } else {
        "damage was found"
    };
    writeln!(
        out,
        "{files} files, {bytes}, commit {}: {verdict}",
        report.generation
    )
}

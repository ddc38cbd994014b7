//! `keyfold man`.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::CommandFactory;

use crate::args::Args;
use crate::failure::Outcome;

/// Print the manual page, or write one page per command into a folder
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  keyfold man | man -l -
  keyfold man --out ~/.local/share/man/man1")]
pub(crate) struct ManArgs {
    /// Folder for one page per command (keyfold.1, keyfold-search.1, ...)
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub(crate) fn run(args: &ManArgs) -> anyhow::Result<Outcome> {
    match &args.out {
        Some(folder) => {
            std::fs::create_dir_all(folder)
                .and_then(|()| clap_mangen::generate_to(Args::command(), folder))
                .with_context(|| {
                    format!(
                        "cannot write manual pages to {}; give a folder that can be written",
                        folder.display()
                    )
                })?;
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Args::command()).render(&mut page)?;
            std::io::stdout().lock().write_all(&page)?;
        }
    }
    Ok(Outcome::Done)
}

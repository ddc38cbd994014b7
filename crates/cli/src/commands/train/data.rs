//! What a user's files hold to learn from.

use std::path::{Path, PathBuf};

use keyfold_core::Progress;
use keyfold_data::{ReadOptions, WalkOptions, read, walk};
use keyfold_text::training::{Pair, Pairs};

use super::training::NOTES;
use crate::args::Globals;
use crate::commands::text::json_lines;
use crate::progress::StderrProgress;
use crate::update;

/// A shorter heading or passage says too little to be a pair.
const LEAST_CHARACTERS: usize = 3;

fn is_json_lines(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "jsonl")
}

/// Appends the texts of a file or folder; notes what cannot be read.
pub(super) fn texts(
    path: &Path,
    options: &ReadOptions,
    texts: &mut Vec<String>,
    progress: &dyn Progress,
) -> anyhow::Result<()> {
    if is_json_lines(path) {
        let mut named = Vec::new();
        json_lines(path, &mut named)?;
        texts.extend(named.into_iter().map(|text| text.text));
        return Ok(());
    }
    passages(path, options, progress, |passage| texts.push(passage.text))
}

/// The texts of files and folders, one after the other; .txt files byte for byte. None when the
/// user stopped it.
pub(super) fn joined(paths: &[PathBuf], globals: &Globals) -> anyhow::Result<Option<String>> {
    let progress = StderrProgress::new(globals.quiet, NOTES);
    let mut all = Vec::new();
    for path in paths {
        if path.is_file() && path.extension().is_some_and(|e| e == "txt") {
            let bytes = std::fs::read(path)
                .map_err(|e| anyhow::anyhow!("cannot read {}: {e}", path.display()))?;
            all.push(String::from_utf8_lossy(&bytes).into_owned());
        } else {
            texts(path, &update::options(globals).read, &mut all, &progress)?;
        }
    }
    Ok((!progress.cancelled()).then(|| all.join("\n")))
}

/// The pairs of files and folders: of JSON Lines as they stand there, of other files a
/// passage with the heading above it. None when the user stopped it.
pub(super) fn pairs(paths: &[PathBuf], globals: &Globals) -> anyhow::Result<Option<Pairs>> {
    let progress = &StderrProgress::new(globals.quiet, NOTES);
    let options = &update::options(globals).read;
    let mut pairs = Pairs::default();
    for path in paths {
        if is_json_lines(path) {
            pairs.read_json_lines(path)?;
            continue;
        }
        passages(path, options, progress, |passage| {
            let text = passage.text;
            if let Some(heading) = passage.headings.last()
                && heading.len() >= LEAST_CHARACTERS
                && text.len() >= LEAST_CHARACTERS
            {
                pairs.0.push(Pair {
                    query: heading.clone(),
                    positive: text,
                    negatives: Vec::new(),
                });
            }
        })?;
    }
    pairs.clean();
    Ok((!progress.cancelled()).then_some(pairs))
}

fn passages(
    path: &Path,
    options: &ReadOptions,
    progress: &dyn Progress,
    mut take: impl FnMut(keyfold_data::Passage),
) -> anyhow::Result<()> {
    for entry in walk(&[path.to_owned()], &WalkOptions::default())? {
        if progress.cancelled() {
            break;
        }
        match entry.and_then(|entry| read(&entry, options)) {
            Ok(document) => document.passages.into_iter().for_each(&mut take),
            Err(e) => progress.note(&e.to_string()),
        }
    }
    Ok(())
}

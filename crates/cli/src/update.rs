//! Bringing a store up to date: what `index` and `search` share.

use std::path::Path;

use anyhow::Context;
use keyfold_core::{Encoder, Progress};
use keyfold_data::{FilterError, PathFilter, ReadOptions};
use keyfold_search::SearchError;
use keyfold_search::candidates::fde::FdeOptions;
use keyfold_search::index::IndexOptions;
use keyfold_search::store::{self, Snapshot, WriterOptions};

use crate::args::Globals;
use crate::failure::wrong_use;
use crate::model::{self, WordArgs};

/// The model that a store was made with, or the one that the user names, or the
/// built-in one.
pub(crate) fn encoder(
    store: &Path,
    named: Option<&str>,
    globals: &Globals,
) -> anyhow::Result<Box<dyn Encoder>> {
    if let Some(name) = named {
        return model::load(name, globals);
    }
    match Snapshot::open(store) {
        Ok(snapshot) => {
            let name = &snapshot.encoder().name;
            model::load(name, globals).with_context(|| {
                format!(
                    "the store {} was made with model '{name}', which cannot be loaded; \
                     say where it is with --model",
                    store.display()
                )
            })
        }
        // Whatever else is wrong with the store is for the command to say.
        Err(_) => model::load(model::BUILTIN, globals),
    }
}

/// [`encoder`] with options of ColBERTer models, where the user gave some; they
/// change those of the store's model.
pub(crate) fn encoder_with(
    store: &Path,
    named: Option<&str>,
    words: &WordArgs,
    globals: &Globals,
) -> anyhow::Result<Box<dyn Encoder>> {
    if !words.any() {
        return encoder(store, named, globals);
    }
    let stored = match named {
        None => Snapshot::open(store).ok().map(|s| s.encoder().name.clone()),
        Some(_) => None,
    };
    let name = named.or(stored.as_deref()).unwrap_or(model::BUILTIN);
    model::load(&words.name(name)?, globals)
}

/// Options of indexing that do not depend on the command.
pub(crate) fn options(globals: &Globals) -> IndexOptions {
    let mut options = IndexOptions {
        read: ReadOptions {
            // PDF files are read by this program in a process of its own.
            pdf_worker: std::env::current_exe().ok(),
            ..ReadOptions::default()
        },
        seed: globals.seed,
        ..IndexOptions::default()
    };
    if let Some(threads) = globals.threads {
        options.threads = threads.into();
    }
    options
}

/// Encodes the passages that have no encoding yet, where the store has encodings
/// or `wanted` asks for them.
pub(crate) fn encode(
    store: &Path,
    encoder: &dyn Encoder,
    wanted: Option<&FdeOptions>,
    options: &IndexOptions,
    progress: &dyn Progress,
) -> Result<bool, SearchError> {
    let writing = writer_options(options);
    store::update_encodings(store, encoder.identity(), wanted, &writing, progress)
}

/// How a store is written when nothing is read.
pub(crate) fn writer_options(options: &IndexOptions) -> WriterOptions {
    WriterOptions {
        memory: options.memory,
        seed: options.seed,
        threads: options.threads,
        ..WriterOptions::default()
    }
}

/// Globs and file types that mean nothing are wrong use, before anything is done.
pub(crate) fn path_filter(
    root: &Path,
    globs: &[String],
    types: &[String],
) -> anyhow::Result<PathFilter> {
    PathFilter::new(root, globs, types).map_err(|e: FilterError| wrong_use(e.to_string()))
}

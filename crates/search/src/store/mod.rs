//! The store: what was indexed, in one folder.
//!
//! ```text
//! manifest        the last commit: which of the files below count (one file,
//!                 replaced as a whole; nothing else in the store ever changes)
//! segments/N.kfs  token vectors and the table of files, by segment
//! codebooks/N.kfc what the vectors were coded with
//! encodings/      one short code for each passage, if asked for (see `encodings.rs`)
//! lexical/        passages and the lexical index, tantivy's files
//! impacts/        learnt weights of terms, by model (see `beside`)
//! anchors/        scores of anchors, by cross-encoder (see `beside`)
//! write.lock      held by the one process that writes
//! .gitignore      keeps the folder out of repositories
//! ```
//!
//! A writer adds new files, then replaces the manifest: killed at any moment, or
//! with the disk full, the store is what the last manifest says. Files that no
//! manifest names are removed by the next writer. A reader opens the files of
//! one manifest and sees that commit for as long as it likes. The bytes are
//! described in docs/FORMATS.md.

pub(crate) mod beside;
mod check;
mod directory;
mod encodings;
mod files;
mod known;
mod lexical;
mod lock;
mod manifest;
mod merge;
mod paths;
mod rows;
mod seal;
mod segment;
mod segment_writer;
mod snapshot;
mod sweep;
mod words;
mod writer;

use std::path::{Path, PathBuf};

use keyfold_core::EncoderIdentity;

pub use check::{CheckReport, DamagedFile, check};
pub use encodings::{Encodings, remove_encodings, set_tuned, update_encodings};
pub use files::{FileRecord, FileState};
pub(crate) use known::Known;
pub use known::KnownFile;
pub(crate) use lexical::nanoseconds;
pub use lexical::{Fields, StoredPassage};
pub(crate) use paths::{base, is_below, key, path};
pub use rows::Rows;
pub(crate) use seal::u32_at;
pub use segment::Segment;
pub(crate) use segment::section;
pub use snapshot::Snapshot;
pub(crate) use snapshot::live_records;
pub use writer::{Writer, WriterOptions};

use crate::error::SearchError;
use manifest::Manifest;

/// The format of the whole store; another number is refused. It changes with any
/// change of what is stored, the words of the lexical index included.
const FORMAT: u32 = 1;

pub(crate) const MANIFEST: &str = "manifest";
pub(crate) const LEXICAL: &str = "lexical";
pub(crate) const SEGMENTS: &str = "segments";
pub(crate) const CODEBOOKS: &str = "codebooks";
pub(crate) const ENCODINGS: &str = "encodings";
const LOCK: &str = "write.lock";
const IGNORE: &str = ".gitignore";

/// The folder of a store that need not exist yet, absolute and, as far as it
/// exists, without links.
pub(crate) fn resolve(store: &Path) -> Result<PathBuf, SearchError> {
    let failed = |e| SearchError::read(store, e);
    if store.exists() {
        return store.canonicalize().map_err(failed);
    }
    let whole = std::path::absolute(store).map_err(failed)?;
    match (whole.parent().map(Path::canonicalize), whole.file_name()) {
        (Some(Ok(parent)), Some(name)) => Ok(parent.join(name)),
        _ => Ok(whole),
    }
}

/// The folder of an existing store, absolute and without links.
fn existing(store: &Path) -> Result<PathBuf, SearchError> {
    match store.canonicalize() {
        Ok(path) => {
            refuse_other_folder(&path)?;
            Ok(path)
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(SearchError::NoStore {
            store: store.to_owned(),
        }),
        Err(e) => Err(SearchError::read(store, e)),
    }
}

/// Refuses a folder that holds something but no store.
fn refuse_other_folder(store: &Path) -> Result<(), SearchError> {
    let not_a_store = |found: String| SearchError::NotAStore {
        store: store.to_owned(),
        found,
    };
    if !store.is_dir() {
        return Err(not_a_store("a file".to_owned()));
    }
    if store.join(MANIFEST).is_file() {
        return Ok(());
    }
    // A store that was killed before its first commit has nothing else in it.
    let ours = [LEXICAL, SEGMENTS, CODEBOOKS, ENCODINGS, LOCK, IGNORE];
    let entries = std::fs::read_dir(store).map_err(|e| SearchError::read(store, e))?;
    for entry in entries {
        let name = entry.map_err(|e| SearchError::read(store, e))?.file_name();
        let name = name.to_string_lossy();
        if !ours.contains(&&*name) && !name.ends_with(keyfold_core::atomic::TEMPORARY_SUFFIX) {
            return Err(not_a_store(format!("'{name}'")));
        }
    }
    Ok(())
}

/// Refuses another model than the one that made the vectors of a store.
fn require_encoder(
    store: &Path,
    manifest: &Manifest,
    given: &EncoderIdentity,
) -> Result<(), SearchError> {
    let stored = &manifest.encoder;
    if stored.hash == given.hash && stored.dim == given.dim {
        return Ok(());
    }
    if stored.name == given.name {
        return Err(SearchError::OtherWeights {
            store: store.to_owned(),
            name: stored.name.clone(),
        });
    }
    Err(SearchError::OtherEncoder {
        store: store.to_owned(),
        stored: stored.name.clone(),
        given: given.name.clone(),
    })
}

//! Files beside the commits of a store: indexes of further models, made when they
//! are first asked for.
//!
//! ```text
//! magic           8 bytes, by kind
//! version         u32, by kind
//! header length   u32
//! header          JSON: the birth of the store, the hash of the model, and more
//! body            by kind
//! checksum        BLAKE3 of all bytes before, 32
//! ```
//!
//! No commit names them. They hold things by passage id, and an id never gets
//! another content, so a file that lags behind a commit is missing something but is
//! never wrong; `birth` tells a store from the one that `--rebuild` made of it. A
//! file that is damaged or belongs to something else is as good as none.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use keyfold_core::atomic;
use serde::{Serialize, de::DeserializeOwned};
use tantivy::Searcher;

use super::{Snapshot, seal::u32_at};
use crate::error::SearchError;

/// How the names of these files end, and of no others.
const EXTENSION: &str = "kfx";
const CHECKSUM: usize = 32;
const FIXED: usize = 16;

/// What kind of file.
pub(crate) struct Kind {
    pub(crate) magic: &'static [u8; 8],
    pub(crate) version: u32,
    /// Folder in the store.
    pub(crate) folder: &'static str,
}

/// To whom a file belongs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
pub(crate) struct Owner {
    birth: u64,
    model: String,
}

impl Owner {
    pub(crate) fn new(snapshot: &Snapshot, model_hash: &str) -> Self {
        Self {
            birth: snapshot.manifest().birth,
            model: model_hash.to_owned(),
        }
    }

    /// Where its file of a kind is; models are told apart by their hash.
    pub(crate) fn path(&self, store: &Path, kind: &Kind) -> PathBuf {
        let name: String = self
            .model
            .chars()
            .filter(char::is_ascii_hexdigit)
            .take(16)
            .collect();
        store.join(kind.folder).join(format!("{name}.{EXTENSION}"))
    }
}

/// Reads the header and the body of a file; none where there is no such file, or
/// none that is whole and of this version.
pub(crate) fn read<H: DeserializeOwned>(
    path: &Path,
    kind: &Kind,
) -> Result<Option<(H, Vec<u8>)>, SearchError> {
    let mut bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(SearchError::read(path, e)),
    };
    if bytes.len() < FIXED + CHECKSUM
        || &bytes[..8] != kind.magic
        || u32_at(&bytes, 8) != kind.version
    {
        return Ok(None);
    }
    let end = bytes.len() - CHECKSUM;
    if blake3::hash(&bytes[..end]).as_bytes() != &bytes[end..] {
        return Ok(None);
    }
    let header_end = FIXED.saturating_add(u32_at(&bytes, 12) as usize);
    let Some(header) = bytes[..end].get(FIXED..header_end) else {
        return Ok(None);
    };
    let Ok(header) = serde_json::from_slice(header) else {
        return Ok(None);
    };
    bytes.truncate(end);
    bytes.drain(..header_end);
    Ok(Some((header, bytes)))
}

/// All such files of a store, in the order of their paths.
pub(super) fn all(store: &Path) -> io::Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(store)? {
        let folder = entry?.path();
        if folder.is_dir() {
            for entry in std::fs::read_dir(folder)? {
                all.push(entry?.path());
            }
        }
    }
    all.retain(|path| path.extension().is_some_and(|e| e == EXTENSION));
    all.sort();
    Ok(all)
}

/// Compares a file with its checksum.
pub(super) fn verify(path: &Path) -> Result<(), SearchError> {
    let failed = |e| SearchError::read(path, e);
    let mut file = std::fs::File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    let mut hasher = blake3::Hasher::new();
    let body = length.saturating_sub(CHECKSUM as u64);
    io::copy(&mut (&mut file).take(body), &mut hasher).map_err(failed)?;
    let mut sum = Vec::new();
    file.read_to_end(&mut sum).map_err(failed)?;
    if hasher.finalize().as_bytes()[..] != sum {
        return Err(SearchError::Damaged {
            path: path.to_owned(),
            what:
                "its checksum does not fit; delete it, the next search that needs it makes it anew"
                    .to_owned(),
        });
    }
    Ok(())
}

/// Writes a file, whole or not at all.
pub(crate) fn write<H: Serialize>(
    path: &Path,
    kind: &Kind,
    header: &H,
    body: &[&[u8]],
) -> Result<(), SearchError> {
    let failed = |e| SearchError::write(path, e);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    let header = serde_json::to_vec(header).map_err(|e| failed(e.into()))?;
    atomic::write_with(path, |file| {
        let mut hasher = blake3::Hasher::new();
        let version = kind.version.to_le_bytes();
        let length = (header.len() as u32).to_le_bytes();
        let head: [&[u8]; 4] = [kind.magic, &version, &length, &header];
        for part in head.iter().chain(body) {
            hasher.update(part);
            file.write_all(part)?;
        }
        file.write_all(hasher.finalize().as_bytes())
    })
    .map_err(failed)
}

/// The ids of all live passages, ascending.
pub(crate) fn live_passages(snapshot: &Snapshot) -> Result<Vec<u64>, SearchError> {
    let searcher = snapshot.searcher();
    let name = searcher.schema().get_field_name(snapshot.fields().passage);
    let mut all = all_ids(searcher, name).map_err(|e| SearchError::lexical(snapshot.store(), e))?;
    all.sort_unstable();
    Ok(all)
}

fn all_ids(searcher: &Searcher, field: &str) -> tantivy::Result<Vec<u64>> {
    let mut all = Vec::with_capacity(searcher.num_docs() as usize);
    for segment in searcher.segment_readers() {
        let ids = segment.fast_fields().u64(field)?;
        all.extend(segment.doc_ids_alive().filter_map(|doc| ids.first(doc)));
    }
    Ok(all)
}

/// Takes `n` numbers from the front of `bytes`, little-endian; none if they are
/// not there.
pub(crate) fn take<T: bytemuck::Pod>(bytes: &mut &[u8], n: u64) -> Option<Vec<T>> {
    let length = usize::try_from(n).ok()?.checked_mul(size_of::<T>())?;
    let (now, later) = bytes.split_at_checked(length)?;
    *bytes = later;
    let mut numbers = vec![T::zeroed(); length / size_of::<T>()];
    bytemuck::cast_slice_mut(&mut numbers).copy_from_slice(now);
    Some(numbers)
}

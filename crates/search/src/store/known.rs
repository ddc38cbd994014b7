//! What a store knows of files, for deciding what to do.

use std::collections::HashMap;
use std::path::Path;

use keyfold_core::EncoderIdentity;

use super::SEGMENTS;
use super::directory::open_folder;
use super::manifest::Manifest;
use super::segment::SegmentFile;
use super::snapshot::{last_commit, live_records};
use crate::codebook::Bits;
use crate::error::SearchError;
use crate::fold::Folding;

/// What the writer knows of a file in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownFile {
    /// Bytes.
    pub size: u64,
    /// Last change before it was read, nanoseconds since 1970.
    pub modified: i64,
    /// BLAKE3 of its content; none where the content was not read.
    pub hash: Option<[u8; 32]>,
    pub(super) place: Place,
}

#[cfg(test)]
impl KnownFile {
    /// A file of a committed segment.
    pub(crate) fn for_tests(size: u64, modified: i64) -> Self {
        let place = Place {
            segment: Some(1),
            file: 0,
        };
        Self {
            size,
            modified,
            hash: None,
            place,
        }
    }
}

/// Where the record of a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Number of the segment; none for those that are not committed.
    pub(super) segment: Option<u64>,
    /// Number of the file in its table.
    pub(super) file: u32,
}

/// What is known of a store without writing to it.
pub(crate) struct Known {
    pub(crate) manifest: Manifest,
    pub(crate) files: HashMap<String, KnownFile>,
}

impl Known {
    /// Reads the last commit of the store in `store`.
    pub(crate) fn read(store: &Path) -> Result<Self, SearchError> {
        let store = super::existing(store)?;
        let (manifest, files) = last_commit(&store, known_files)?;
        Ok(Self { manifest, files })
    }

    /// Refuses another model, other bits or another folding than those of the store.
    pub(crate) fn require(
        &self,
        store: &Path,
        encoder: &EncoderIdentity,
        bits: Option<Bits>,
        fold: Option<Folding>,
    ) -> Result<(), SearchError> {
        super::require_encoder(store, &self.manifest, encoder)?;
        require_bits(store, &self.manifest, bits)?;
        require_fold(store, &self.manifest, fold)
    }
}

/// Refuses another number of bits than that of the store.
pub(super) fn require_bits(
    store: &Path,
    manifest: &Manifest,
    bits: Option<Bits>,
) -> Result<(), SearchError> {
    match bits {
        Some(given) if given != manifest.bits => Err(SearchError::OtherOption {
            store: store.to_owned(),
            option: "--bits",
            stored: manifest.bits.to_string(),
            given: given.to_string(),
        }),
        _ => Ok(()),
    }
}

/// Refuses another folding than that of the store.
pub(super) fn require_fold(
    store: &Path,
    manifest: &Manifest,
    fold: Option<Folding>,
) -> Result<(), SearchError> {
    match fold {
        Some(given) if given != manifest.fold => Err(SearchError::OtherOption {
            store: store.to_owned(),
            option: "--fold",
            stored: manifest.fold.to_string(),
            given: given.to_string(),
        }),
        _ => Ok(()),
    }
}

/// The live files of all segments.
pub(super) fn known_files(
    store: &Path,
    manifest: &Manifest,
) -> Result<HashMap<String, KnownFile>, SearchError> {
    let folder = open_folder(&store.join(SEGMENTS))?;
    let mut files = HashMap::new();
    for entry in &manifest.segments {
        let table = SegmentFile::open(store, &folder, entry)?;
        for (file, record) in live_records(&table, entry)? {
            let known = KnownFile {
                size: record.size,
                modified: record.modified,
                hash: record.hash,
                place: Place {
                    segment: Some(entry.number),
                    file,
                },
            };
            files.insert(record.key, known);
        }
    }
    Ok(files)
}

//! Removing the files that no commit names: those of old commits, and what a
//! killed or failed writer left. Only the holder of the lock may do it.
//!
//! What cannot be removed (on Windows, a file that a reader has open) stays for
//! the next time, so nothing here is an error.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use keyfold_core::atomic::TEMPORARY_SUFFIX;
use tantivy::Index;
use tantivy::index::SegmentComponent;

use super::manifest::{Manifest, codebook_file, coder_file, codes_file};
use super::{CODEBOOKS, ENCODINGS, LEXICAL, SEGMENTS};
use crate::error::SearchError;

/// Removes everything that the manifest and the lexical index do not name.
pub(super) fn sweep(store: &Path, manifest: &Manifest, index: &Index) {
    sweep_vectors(store, manifest);
    if let Ok(segments) = index.searchable_segment_metas() {
        let mut live = HashSet::new();
        for segment in segments {
            live.insert(segment.relative_path(SegmentComponent::Delete));
            live.extend(COMPONENTS.map(|c| segment.relative_path(c)));
        }
        keep(&store.join(LEXICAL), |name| live.contains(name));
    }
    if let Ok(entries) = fs::read_dir(store) {
        for path in entries.flatten().map(|e| e.path()) {
            if path.to_string_lossy().ends_with(TEMPORARY_SUFFIX) {
                let _ = fs::remove_file(path);
            }
        }
    }
}

const COMPONENTS: [SegmentComponent; 6] = [
    SegmentComponent::Postings,
    SegmentComponent::Positions,
    SegmentComponent::FastFields,
    SegmentComponent::FieldNorms,
    SegmentComponent::Terms,
    SegmentComponent::Store,
];

/// Removes vector segments and codebooks that the manifest does not name.
pub(super) fn sweep_vectors(store: &Path, manifest: &Manifest) {
    let segments: HashSet<PathBuf> = manifest.segments.iter().map(|s| s.file()).collect();
    keep(&store.join(SEGMENTS), |name| segments.contains(name));
    let codebooks: HashSet<PathBuf> = manifest
        .codebooks
        .iter()
        .map(|c| codebook_file(c.number))
        .collect();
    keep(&store.join(CODEBOOKS), |name| codebooks.contains(name));
    let mut encodings = HashSet::new();
    if let Some(entry) = &manifest.encodings {
        encodings.insert(coder_file(entry.number));
        encodings.extend(entry.segments.iter().map(|s| codes_file(entry.number, s.0)));
    }
    keep(&store.join(ENCODINGS), |name| encodings.contains(name));
}

fn keep(folder: &Path, wanted: impl Fn(&Path) -> bool) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        if !wanted(Path::new(&entry.file_name())) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// A number above those of all segments and codebooks that lie in the store.
pub(super) fn unused_number(store: &Path) -> Result<u64, SearchError> {
    let mut last = 0;
    for folder in [SEGMENTS, CODEBOOKS, ENCODINGS] {
        let folder = store.join(folder);
        if !folder.exists() {
            continue;
        }
        let entries = fs::read_dir(&folder).map_err(|e| SearchError::read(&folder, e))?;
        for entry in entries.flatten() {
            let name = entry.file_name();
            let stem = Path::new(&name).file_stem().and_then(|s| s.to_str());
            if let Some(number) = stem.and_then(|s| s.parse::<u64>().ok()) {
                last = last.max(number);
            }
        }
    }
    Ok(last + 1)
}

//! Reading every byte of a store and saying which files are damaged.

use std::path::{Path, PathBuf};

use keyfold_core::Progress;
use tantivy::index::SegmentComponent;
use tantivy::{Index, SegmentReader};

use super::beside;
use super::directory::{StoreDirectory, open_folder};
use super::encodings::Opener;
use super::lexical::Fields;
use super::manifest::{
    EncodingsEntry, Manifest, SegmentEntry, codebook_file, coder_file, codes_file,
};
use super::segment::{SegmentFile, open_sealed};
use super::snapshot::{open_codebook, open_index};
use super::{CODEBOOKS, ENCODINGS, LEXICAL, MANIFEST, SEGMENTS};
use crate::error::SearchError;

/// What [`check`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// The commit that was checked; zero if the manifest cannot be read.
    pub generation: u64,
    /// Files that were read.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files that do not hold what was written to them, and how that shows.
    pub damaged: Vec<DamagedFile>,
    /// The user asked to stop before everything was read.
    pub cancelled: bool,
}

/// A damaged file of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedFile {
    /// Where it is.
    pub path: PathBuf,
    /// What is wrong with it.
    pub what: String,
}

impl CheckReport {
    /// Whether all files hold what was written to them.
    pub fn is_sound(&self) -> bool {
        self.damaged.is_empty() && !self.cancelled
    }
}

/// Reads every byte of the last commit of the store in `store`, compares it with
/// its checksums, and compares the lexical index with the vector segments. Writes
/// nothing; a writer may be at work meanwhile.
pub fn check(store: &Path, progress: &dyn Progress) -> Result<CheckReport, SearchError> {
    let store = super::existing(store)?;
    loop {
        let report = check_commit(&store, progress)?;
        // Files of a commit may be removed once there is a newer one.
        let newer = Manifest::read(&store)
            .is_ok_and(|m| m.generation != report.generation && report.generation != 0);
        if report.is_sound() || report.cancelled || !newer {
            return Ok(report);
        }
    }
}

fn check_commit(store: &Path, progress: &dyn Progress) -> Result<CheckReport, SearchError> {
    let mut run = Run {
        report: CheckReport::default(),
        progress,
    };
    let path = store.join(MANIFEST);
    let Some(manifest) = run.file(&path, || Manifest::read(store))? else {
        return Ok(run.report);
    };
    run.report.generation = manifest.generation;
    progress.start("checking", "files", None);
    let vectors = run.vectors(store, &manifest)?;
    let words = run.lexical(store, &manifest)?;
    run.beside(store)?;
    if let (Some(vectors), Some(words)) = (vectors, words)
        && vectors != words
    {
        run.note(
            path,
            "its text and its vectors are not of the same passages",
        );
    }
    progress.finish();
    Ok(run.report)
}

/// A set of passage ids, as a count and a sum that does not depend on their order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Ids {
    count: u64,
    sum: u64,
}

impl Ids {
    fn add(&mut self, id: u64) {
        self.count += 1;
        // A multiplier that spreads small numbers over all bits.
        let mixed = (id + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.sum = self.sum.wrapping_add(mixed ^ (mixed >> 29));
    }
}

struct Run<'a> {
    report: CheckReport,
    progress: &'a dyn Progress,
}

impl Run<'_> {
    /// Checks one file: what `f` gives, or none if that is noted as damage.
    fn file<T>(
        &mut self,
        path: &Path,
        f: impl FnOnce() -> Result<T, SearchError>,
    ) -> Result<Option<T>, SearchError> {
        self.report.files += 1;
        self.report.bytes += std::fs::metadata(path).map_or(0, |m| m.len());
        let done = self.step(f);
        self.progress.advance(1);
        done
    }

    /// What `f` gives, or none if that is noted as damage.
    fn step<T>(
        &mut self,
        f: impl FnOnce() -> Result<T, SearchError>,
    ) -> Result<Option<T>, SearchError> {
        match f() {
            Ok(value) => Ok(Some(value)),
            Err(SearchError::Damaged { path, what }) => {
                self.note(path, what);
                Ok(None)
            }
            // A disk that gives no answer damages as well as one that lies.
            Err(SearchError::Read { path, source }) => {
                self.note(path, source.to_string());
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    fn note(&mut self, path: PathBuf, what: impl Into<String>) {
        let what = what.into();
        self.progress.note(&format!("{}: {what}", path.display()));
        self.report.damaged.push(DamagedFile { path, what });
    }

    fn cancelled(&mut self) -> bool {
        self.report.cancelled |= self.progress.cancelled();
        self.report.cancelled
    }

    /// Checks codebooks and vector segments; the ids of the live passages, if all
    /// could be read.
    fn vectors(&mut self, store: &Path, manifest: &Manifest) -> Result<Option<Ids>, SearchError> {
        for entry in &manifest.codebooks {
            if self.cancelled() {
                return Ok(None);
            }
            let path = store.join(CODEBOOKS).join(codebook_file(entry.number));
            self.file(&path, || open_codebook(store, entry))?;
        }
        if let Some(entry) = &manifest.encodings {
            self.encodings(store, manifest, entry)?;
        }
        let mut all = Some(Ids::default());
        for entry in &manifest.segments {
            if self.cancelled() {
                return Ok(None);
            }
            let path = store.join(SEGMENTS).join(entry.file());
            let mut ids = all.unwrap_or_default();
            let done = self.file(&path, || {
                let folder = open_folder(&store.join(SEGMENTS))?;
                let file = SegmentFile::open(store, &folder, entry)?;
                file.verify()?;
                add_live(&file, entry, &mut ids)
            })?;
            all = all.and(done).map(|()| ids);
        }
        Ok(all)
    }

    /// Checks the encodings of the passages.
    fn encodings(
        &mut self,
        store: &Path,
        manifest: &Manifest,
        entry: &EncodingsEntry,
    ) -> Result<(), SearchError> {
        let folder = store.join(ENCODINGS);
        let path = folder.join(coder_file(entry.number));
        let Some(opener) = self.file(&path, || Opener::new(store, manifest))? else {
            return Ok(());
        };
        for segment in &manifest.segments {
            if self.cancelled() {
                return Ok(());
            }
            if entry.segments.iter().any(|s| s.0 == segment.number) {
                let path = folder.join(codes_file(entry.number, segment.number));
                self.file(&path, || {
                    match opener.open(segment.number, segment.passages as usize)? {
                        Some(encodings) => encodings.verify(),
                        None => Ok(()),
                    }
                })?;
            }
        }
        Ok(())
    }

    /// Checks the files that belong to no commit.
    fn beside(&mut self, store: &Path) -> Result<(), SearchError> {
        let files = self.step(|| beside::all(store).map_err(|e| SearchError::read(store, e)))?;
        for path in files.unwrap_or_default() {
            if self.cancelled() {
                return Ok(());
            }
            self.file(&path, || beside::verify(&path))?;
        }
        Ok(())
    }

    /// Checks the files of the lexical index; the ids of its documents, if all
    /// could be read.
    fn lexical(&mut self, store: &Path, manifest: &Manifest) -> Result<Option<Ids>, SearchError> {
        let folder = store.join(LEXICAL);
        let directory = StoreDirectory::reader(store, manifest.clone().into());
        let opened = self.step(|| open_index(store, directory?))?;
        let Some((index, fields)) = opened else {
            return Ok(None);
        };
        let segments = index
            .searchable_segments()
            .map_err(|e| SearchError::lexical(store, e))?;
        let mut all = Some(());
        let map = open_folder(&folder)?;
        for segment in &segments {
            let mut components = vec![
                SegmentComponent::Postings,
                SegmentComponent::Positions,
                SegmentComponent::FastFields,
                SegmentComponent::FieldNorms,
                SegmentComponent::Terms,
                SegmentComponent::Store,
            ];
            if segment.meta().has_deletes() {
                components.push(SegmentComponent::Delete);
            }
            for component in components {
                if self.cancelled() {
                    return Ok(None);
                }
                let name = segment.meta().relative_path(component);
                let path = folder.join(&name);
                let done = self.file(&path, || {
                    let file = open_sealed(&map, &name, path.clone())?;
                    let bytes = file.read(0..file.length());
                    bytes.map(|_| ()).map_err(|e| SearchError::read(&path, e))
                })?;
                all = all.and(done);
            }
        }
        if all.is_none() {
            return Ok(None);
        }
        self.step(|| document_ids(&index, &fields).map_err(|e| SearchError::lexical(store, e)))
    }
}

/// Adds the ids of the live passages of a segment.
fn add_live(file: &SegmentFile, entry: &SegmentEntry, ids: &mut Ids) -> Result<(), SearchError> {
    let mut dead = std::collections::HashSet::new();
    for &(first, count) in &entry.dead {
        for number in first..first.saturating_add(count) {
            dead.extend(file.passages_of(number)?);
        }
    }
    for (local, &id) in (0u32..).zip(file.ids()?) {
        if !dead.contains(&local) {
            ids.add(id);
        }
    }
    Ok(())
}

fn document_ids(index: &Index, fields: &Fields) -> tantivy::Result<Ids> {
    let mut ids = Ids::default();
    let name = index.schema().get_field_name(fields.passage).to_owned();
    for segment in index.searchable_segments()? {
        let reader = SegmentReader::open(&segment)?;
        let column = reader.fast_fields().u64(&name)?;
        for document in reader.doc_ids_alive() {
            column.values_for_doc(document).for_each(|id| ids.add(id));
        }
    }
    Ok(ids)
}

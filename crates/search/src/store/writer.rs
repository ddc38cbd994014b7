//! The one who writes: adds, replaces and removes files, and commits.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard};

use keyfold_core::{EncoderIdentity, atomic};
use keyfold_data::Passage;
use tantivy::indexer::{IndexWriterOptions, NoMergePolicy};
use tantivy::{Index, IndexSettings, IndexWriter, TantivyDocument, Term};

use super::directory::{Pending, SharedPending, StoreDirectory, open_folder};
use super::files::{FileRecord, FileState};
use super::known::{KnownFile, Place, known_files, require_bits, require_fold};
use super::lexical::{self, Fields};
use super::lock::WriteLock;
use super::manifest::{self, CodebookEntry, Manifest};
use super::rows::{NewRows, RowOptions, Rows, runs};
use super::segment::SegmentFile;
use super::snapshot::{open_codebooks, open_index};
use super::{CODEBOOKS, LEXICAL, MANIFEST, SEGMENTS, sweep};
use crate::codebook::{Bits, Codebook};
use crate::error::SearchError;
use crate::fold::Folding;

/// The least memory that the lexical index works with, bytes.
const LEAST_LEXICAL: usize = 15_000_000;

/// How a store is written.
#[derive(Debug, Clone)]
pub struct WriterOptions {
    /// Bits kept of every entry of a vector: of a new store, or as a demand on an
    /// existing one. None takes what the store has, or four.
    pub bits: Option<Bits>,
    /// How the rows that are added were folded: of a new store, or as a demand on an
    /// existing one. None takes what the store has, or no folding. Whoever adds rows
    /// folds them first; see [`Writer::folding`].
    pub fold: Option<Folding>,
    /// Memory for what is not written yet, bytes. A quarter goes to vectors that
    /// wait for the first codebook, as much is needed to make it, and an eighth
    /// goes to words, but at least 15 MB. What the writer knows of every file
    /// (some 200 bytes) and passage (16 bytes until it is committed) comes on top.
    pub memory: usize,
    /// Seed of the codebook.
    pub seed: u64,
    /// Threads that code vectors.
    pub threads: usize,
    /// Begin with an empty store, whatever is there; also the way out of a
    /// damaged store, another format and another model.
    pub rebuild: bool,
    /// How many rows at the head of each passage of a new store stand for all of it
    /// (`Encoder::whole_text_rows`). Such stores keep 8 bits and the ids of rows.
    pub whole_text_rows: usize,
}

impl Default for WriterOptions {
    fn default() -> Self {
        Self {
            bits: None,
            fold: None,
            memory: 512 << 20,
            seed: 0,
            threads: 1,
            rebuild: false,
            whole_text_rows: 0,
        }
    }
}

/// Writes to a store; there is one at a time.
///
/// What was added counts after [`Writer::commit`]; dropped without it, or killed,
/// the store is as it was at the last commit. After an error, drop the writer.
pub struct Writer {
    // Dropped in this order: the lexical writer first, the lock last.
    lexical: Option<IndexWriter>,
    index: Index,
    fields: Fields,
    directory: StoreDirectory,
    pending: SharedPending,
    pub(super) store: PathBuf,
    pub(super) rows: NewRows,
    pub(super) row_options: RowOptions,
    pub(super) files: HashMap<String, KnownFile>,
    /// Dead files of committed segments, since the last commit.
    dead: BTreeMap<u64, BTreeSet<u32>>,
    /// The file that is being added.
    current: Option<String>,
    next_passage: u64,
    expected_tokens: u64,
    tokens_added: u64,
    changed: bool,
    _lock: WriteLock,
}

impl Writer {
    /// Takes the lock and opens the store in the folder `store`; makes it if
    /// there is none. A model that is not the store's is refused.
    pub fn open(
        store: &Path,
        encoder: &EncoderIdentity,
        options: &WriterOptions,
    ) -> Result<Self, SearchError> {
        let store = prepare(store)?;
        let lock = WriteLock::take(&store)?;
        let committed = match Manifest::read(&store) {
            Ok(manifest) => Some(manifest),
            Err(SearchError::NoStore { .. }) => None,
            Err(_) if options.rebuild => None,
            Err(e) => return Err(e),
        };
        let existing = committed.as_ref().filter(|_| !options.rebuild);
        if let Some(manifest) = existing {
            super::require_encoder(&store, manifest, encoder)?;
            require_bits(&store, manifest, options.bits)?;
            require_fold(&store, manifest, options.fold)?;
        }
        for folder in [LEXICAL, SEGMENTS, CODEBOOKS] {
            let folder = store.join(folder);
            std::fs::create_dir_all(&folder).map_err(|e| SearchError::write(&folder, e))?;
        }
        let next = match existing {
            Some(manifest) => Manifest {
                program: manifest::program(),
                ..manifest.clone()
            },
            None => {
                let number = sweep::unused_number(&store)?;
                Manifest {
                    next_file: number,
                    birth: number,
                    whole_text_rows: options.whole_text_rows as u32,
                    fold: options.fold.unwrap_or_default(),
                    ..Manifest::empty(encoder.clone(), bits_of_new(encoder, options)?)
                }
            }
        };
        next.fold
            .require(next.bits, encoder, next.whole_text_rows as usize)?;
        let is_new = existing.is_none();
        let (directory, pending) = StoreDirectory::writer(&store, committed, next.clone())?;
        let (index, fields) = if is_new {
            create_index(&store, directory.clone())?
        } else {
            open_index(&store, directory.clone())?
        };
        sweep::sweep(&store, &next, &index);
        let lexical = lexical_writer(&store, &index, options.memory / 8)?;
        let row_options = RowOptions {
            dim: encoder.dim,
            bits: next.bits,
            memory: options.memory / 4,
            seed: options.seed,
            threads: options.threads.max(1),
            whole_text_rows: next.whole_text_rows as usize,
        };
        let codebook = newest_codebook(&store, &next)?;
        Ok(Self {
            lexical: Some(lexical),
            index,
            fields,
            directory,
            pending,
            rows: NewRows::new(&store, row_options, codebook),
            row_options,
            files: known_files(&store, &next)?,
            dead: BTreeMap::new(),
            current: None,
            next_passage: next.next_passage,
            expected_tokens: 0,
            tokens_added: 0,
            changed: false,
            store,
            _lock: lock,
        })
    }

    /// The files in the store, by key, with what was added since the last commit.
    pub fn files(&self) -> &HashMap<String, KnownFile> {
        &self.files
    }

    /// The codebook that new rows are coded with; none before there are enough
    /// rows to make one.
    pub fn codebook(&self) -> Option<&Arc<Codebook>> {
        self.rows.codebook()
    }

    /// How rows are folded before they are added.
    pub fn folding(&self) -> Folding {
        self.pending().next.fold
    }

    /// Says how many rows are still to come, for the size of the first codebook.
    pub fn expect_tokens(&mut self, more: u64) {
        self.expected_tokens = more;
    }

    /// Remembers what was indexed and how; part of the next commit.
    pub fn set_roots(&mut self, roots: Vec<String>, options: serde_json::Value) {
        let mut pending = self.pending();
        let same = pending.next.roots == roots && pending.next.options == options;
        pending.next.roots = roots;
        pending.next.options = options;
        drop(pending);
        self.changed |= !same;
    }

    /// Begins to add a file; the file with the same key, if there is one, is
    /// replaced.
    pub fn begin_file(&mut self, key: &str) {
        self.remove_file(key);
        self.changed = true;
        self.current = Some(key.to_owned());
    }

    /// Adds passages to the file that was begun: `counts[i]` of the rows belong to
    /// `passages[i]`. `row_ids` are the ids of the rows, or nothing; they are kept in
    /// stores with [`WriterOptions::whole_text_rows`]. `format` and `modified` (nanoseconds since 1970) are those
    /// of the file.
    ///
    /// # Panics
    /// When there are fewer rows than the counts add up to.
    pub fn add_passages(
        &mut self,
        format: &str,
        modified: i64,
        passages: &[Passage],
        counts: &[usize],
        rows: Rows<'_>,
        row_ids: &[u32],
    ) -> Result<(), SearchError> {
        let Some(key) = self.current.clone() else {
            return Ok(());
        };
        let first = self.next_passage;
        for (id, passage) in (first..).zip(passages) {
            let document = lexical::document(&self.fields, id, &key, format, modified, passage)
                .map_err(|e| SearchError::write(&self.store, e.into()))?;
            self.add_document(document)?;
        }
        self.rows.passages(first, counts, rows, row_ids)?;
        self.tokens_added += counts.iter().sum::<usize>() as u64;
        self.next_passage += passages.len() as u64;
        if self.rows.is_full() {
            self.train()?;
        }
        Ok(())
    }

    /// Ends the file that was begun; `record.key` is its key.
    pub fn end_file(&mut self, record: FileRecord) -> Result<(), SearchError> {
        let file = self.rows.end_file(&record)?;
        let known = KnownFile {
            size: record.size,
            modified: record.modified,
            hash: record.hash,
            place: Place {
                segment: None,
                file,
            },
        };
        self.files.insert(record.key, known);
        self.current = None;
        Ok(())
    }

    /// Takes back the file that was begun, with all its passages.
    pub fn abandon_file(&mut self) -> Result<(), SearchError> {
        let Some(key) = self.current.clone() else {
            return Ok(());
        };
        // Its rows may be on disk already: it ends as a file that is dead.
        self.end_file(FileRecord {
            key: key.clone(),
            size: 0,
            modified: 0,
            hash: None,
            state: FileState::Failed(String::new()),
        })?;
        self.remove_file(&key);
        Ok(())
    }

    /// Removes a file and its passages; false if there is none with this key.
    pub fn remove_file(&mut self, key: &str) -> bool {
        let Some(known) = self.files.remove(key) else {
            return false;
        };
        self.changed = true;
        self.kill(known.place);
        if let Some(lexical) = &self.lexical {
            lexical.delete_term(Term::from_field_text(self.fields.path, key));
        }
        true
    }

    /// Remembers another time for a file whose content is the same.
    pub fn touch_file(&mut self, key: &str, modified: i64) {
        let Some(known) = self.files.get_mut(key) else {
            return;
        };
        known.modified = modified;
        let place = known.place;
        let Some(number) = place.segment else {
            return;
        };
        let mut pending = self.pending();
        if let Some(entry) = pending
            .next
            .segments
            .iter_mut()
            .find(|s| s.number == number)
        {
            match entry.touched.binary_search_by_key(&place.file, |t| t.0) {
                Ok(at) => entry.touched[at].1 = modified,
                Err(at) => entry.touched.insert(at, (place.file, modified)),
            }
            drop(pending);
            self.changed = true;
        }
    }

    /// Makes all that was added, replaced and removed count, at once; false if
    /// there was nothing. Files that were begun must be ended.
    pub fn commit(&mut self) -> Result<bool, SearchError> {
        if !self.changed {
            return Ok(false);
        }
        if self.rows.needs_codebook() {
            self.train()?;
        }
        let number = self.take_number();
        let entry = self.rows.finish(number)?;
        self.apply_dead()?;
        let codebook = self.rows.codebook_entry().cloned();
        let next_passage = self.next_passage;
        let mut pending = self.pending();
        pending.next.next_passage = next_passage;
        pending.next.segments.extend(entry);
        set_codebooks(&mut pending.next, codebook);
        drop(pending);
        self.commit_lexical()?;
        for known in self.files.values_mut() {
            known.place.segment.get_or_insert(number);
        }
        self.changed = false;
        self.tokens_added = 0;
        self.sweep_vectors();
        Ok(true)
    }

    /// Number of rows of the last commit.
    pub(super) fn committed_tokens(&self) -> u64 {
        self.pending().next.segments.iter().map(|s| s.tokens).sum()
    }

    pub(super) fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock()
    }

    /// Commits the pending state with the same lexical index.
    pub(super) fn publish(&mut self) -> Result<(), SearchError> {
        self.directory
            .publish()
            .map_err(|e| SearchError::write(&self.store.join(MANIFEST), e))?;
        self.sweep_vectors();
        Ok(())
    }

    /// A number for a new file of the store.
    pub(super) fn take_number(&mut self) -> u64 {
        let mut pending = self.pending();
        let number = pending.next.next_file;
        pending.next.next_file += 1;
        number
    }

    /// Merges segments of the lexical index into one; a commit.
    pub(super) fn merge_lexical(
        &mut self,
        segments: &[tantivy::index::SegmentId],
    ) -> Result<(), SearchError> {
        let Some(lexical) = &mut self.lexical else {
            return Ok(());
        };
        match lexical.merge(segments).wait() {
            Ok(_) => Ok(()),
            Err(e) => Err(SearchError::lexical_write(&self.store, e)),
        }
    }

    /// The segments of the lexical index at the last commit.
    pub(super) fn lexical_segments(&self) -> Result<Vec<tantivy::index::SegmentMeta>, SearchError> {
        self.index
            .searchable_segment_metas()
            .map_err(|e| SearchError::lexical(&self.store, e))
    }

    fn train(&mut self) -> Result<(), SearchError> {
        let expected = self.committed_tokens() + self.tokens_added + self.expected_tokens;
        let number = self.take_number();
        self.rows.train(number, expected)
    }

    fn kill(&mut self, place: Place) {
        match place.segment {
            None => self.rows.kill(place.file),
            Some(number) => {
                self.dead.entry(number).or_default().insert(place.file);
            }
        }
    }

    /// Moves the dead files of committed segments into the next manifest.
    fn apply_dead(&mut self) -> Result<(), SearchError> {
        let dead = std::mem::take(&mut self.dead);
        let folder = open_folder(&self.store.join(SEGMENTS))?;
        let store = self.store.clone();
        let mut pending = self.pending();
        for (number, mut files) in dead {
            let entries = &mut pending.next.segments;
            let Some(entry) = entries.iter_mut().find(|s| s.number == number) else {
                continue;
            };
            for &(first, count) in &entry.dead {
                files.extend(first..first.saturating_add(count));
            }
            let file = SegmentFile::open(&store, &folder, entry)?;
            entry.dead_passages = 0;
            for &number in &files {
                let passages = file.passages_of(number)?;
                entry.dead_passages += passages.end - passages.start;
            }
            entry.dead = runs(files);
        }
        Ok(())
    }

    fn add_document(&mut self, document: TantivyDocument) -> Result<(), SearchError> {
        let Some(lexical) = &mut self.lexical else {
            return Ok(());
        };
        let Err(e) = lexical.add_document(document) else {
            return Ok(());
        };
        // The indexing thread has ended; only joining it tells why.
        let cause = lexical.prepare_commit().err().unwrap_or(e);
        Err(SearchError::lexical_write(&self.store, cause))
    }

    fn commit_lexical(&mut self) -> Result<(), SearchError> {
        let Some(lexical) = &mut self.lexical else {
            return Ok(());
        };
        lexical
            .prepare_commit()
            .and_then(|prepared| prepared.commit())
            .map(|_| ())
            .map_err(|e| SearchError::lexical_write(&self.store, e))
    }

    fn sweep_vectors(&self) {
        sweep::sweep_vectors(&self.store, &self.pending().next);
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Ends its threads, which may be writing files.
        self.lexical = None;
        let committed = self.pending().committed.clone();
        if let Some(manifest) = committed {
            sweep::sweep(&self.store, &manifest, &self.index);
        }
    }
}

/// Keeps the codebooks that segments use, and the newest.
pub(super) fn set_codebooks(manifest: &mut Manifest, newest: Option<CodebookEntry>) {
    if let Some(newest) = newest {
        manifest.codebooks.retain(|c| c.number != newest.number);
        manifest.codebooks.push(newest);
    }
    let newest = manifest.codebooks.iter().map(|c| c.number).max();
    let used: BTreeSet<u64> = manifest
        .segments
        .iter()
        .filter_map(|s| s.codebook)
        .collect();
    manifest
        .codebooks
        .retain(|c| Some(c.number) == newest || used.contains(&c.number));
}

/// The bits of a store that is made. Only eight keep the length of a row.
fn bits_of_new(encoder: &EncoderIdentity, options: &WriterOptions) -> Result<Bits, SearchError> {
    match options.bits {
        bits if options.whole_text_rows == 0 => Ok(bits.unwrap_or_default()),
        None | Some(Bits::Eight) => Ok(Bits::Eight),
        Some(bits) => Err(SearchError::NeedsEightBits {
            model: encoder.name.clone(),
            bits,
        }),
    }
}

/// Makes the folder of a store if it is not there; its path, absolute and
/// without links. Touches no folder that holds something else.
fn prepare(store: &Path) -> Result<PathBuf, SearchError> {
    let failed = |e| SearchError::write(store, e);
    if !store.exists() {
        std::fs::create_dir_all(store).map_err(failed)?;
    }
    let store = store.canonicalize().map_err(failed)?;
    super::refuse_other_folder(&store)?;
    let ignore = store.join(super::IGNORE);
    if !ignore.exists() {
        atomic::write(&ignore, b"*\n").map_err(|e| SearchError::write(&ignore, e))?;
    }
    Ok(store)
}

/// The first commit of a store: an empty lexical index and the next manifest.
fn create_index(store: &Path, directory: StoreDirectory) -> Result<(Index, Fields), SearchError> {
    let (schema, fields) = lexical::schema();
    let index = Index::create(directory, schema, IndexSettings::default())
        .map_err(|e| SearchError::lexical_write(store, e))?;
    lexical::register(&index);
    Ok((index, fields))
}

fn lexical_writer(store: &Path, index: &Index, memory: usize) -> Result<IndexWriter, SearchError> {
    let options = IndexWriterOptions::builder()
        .num_worker_threads(1)
        .num_merge_threads(1)
        .memory_budget_per_thread(memory.clamp(LEAST_LEXICAL, 1 << 30))
        .build();
    let writer: IndexWriter = index
        .writer_with_options(options)
        .map_err(|e| SearchError::lexical_write(store, e))?;
    // Segments are merged after commits, in the open, not behind them.
    writer.set_merge_policy(Box::new(NoMergePolicy));
    Ok(writer)
}

fn newest_codebook(
    store: &Path,
    manifest: &Manifest,
) -> Result<Option<(CodebookEntry, Arc<Codebook>)>, SearchError> {
    let Some(entry) = manifest.codebooks.iter().max_by_key(|c| c.number) else {
        return Ok(None);
    };
    let mut codebooks = open_codebooks(store, manifest)?;
    Ok(codebooks.remove(&entry.number).map(|c| (entry.clone(), c)))
}

//! What a reader sees: one commit of a store, for as long as it likes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keyfold_core::EncoderIdentity;
use tantivy::schema::IndexRecordOption;
use tantivy::{
    DocAddress, DocSet, Index, ReloadPolicy, Searcher, TERMINATED, TantivyDocument, Term,
};

use super::directory::{StoreDirectory, open_folder};
use super::encodings::Opener;
use super::files::FileRecord;
use super::lexical::{self, Fields, StoredPassage};
use super::manifest::{CodebookEntry, Manifest, codebook_file};
use super::segment::{Segment, SegmentFile, open_sealed};
use super::{CODEBOOKS, SEGMENTS, paths};
use crate::candidates::fde::FdeOptions;
use crate::candidates::{Method, Tuned};
use crate::codebook::{Bits, Codebook};
use crate::error::SearchError;
use crate::fold::Folding;

/// Tries to open a commit before giving up; each finds that the writer has
/// meanwhile made another one.
const TRIES: usize = 100;
/// Blocks of passages that are kept unpacked, for each lexical segment.
const CACHED_BLOCKS: usize = 16;

/// One commit of a store, open for searching. Later commits do not change it.
pub struct Snapshot {
    store: PathBuf,
    base: PathBuf,
    manifest: Arc<Manifest>,
    /// All segments, in the order of the manifest.
    files: Vec<Arc<SegmentFile>>,
    segments: Vec<Segment>,
    searcher: Searcher,
    fields: Fields,
}

impl Snapshot {
    /// Opens the last commit of the store in the folder `store`. Writes nothing.
    pub fn open(store: &Path) -> Result<Self, SearchError> {
        let store = super::existing(store)?;
        last_commit(&store, Self::open_commit).map(|(_, snapshot)| snapshot)
    }

    fn open_commit(store: &Path, manifest: &Manifest) -> Result<Self, SearchError> {
        let manifest = Arc::new(manifest.clone());
        let codebooks = open_codebooks(store, &manifest)?;
        let encodings = Opener::new(store, &manifest)?;
        let folder = open_folder(&store.join(SEGMENTS))?;
        let mut files = Vec::new();
        let mut segments = Vec::new();
        for entry in &manifest.segments {
            let file = Arc::new(SegmentFile::open(store, &folder, entry)?);
            files.push(file.clone());
            if let Some(number) = entry.codebook {
                let codebook = codebooks.get(&number).ok_or_else(|| SearchError::Damaged {
                    path: store.join(SEGMENTS).join(entry.file()),
                    what: "its codebook is not in the manifest".to_owned(),
                })?;
                let encodings = encodings.open(entry.number, entry.passages as usize)?;
                let segment = Segment::new(file, codebook.clone(), &entry.dead, encodings)?;
                segments.push(segment.with_whole_text_rows(manifest.whole_text_rows as usize));
            }
        }
        let directory = StoreDirectory::reader(store, manifest.clone())?;
        let (index, fields) = open_index(store, directory)?;
        let reader = index
            .reader_builder()
            .reload_policy(ReloadPolicy::Manual)
            .doc_store_cache_num_blocks(CACHED_BLOCKS)
            .try_into()
            .map_err(|e| SearchError::lexical(store, e))?;
        Ok(Self {
            base: paths::base(store),
            store: store.to_owned(),
            files,
            segments,
            searcher: reader.searcher(),
            fields,
            manifest,
        })
    }

    /// The folder of the store.
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// The number of the commit; grows by one with every commit.
    pub fn generation(&self) -> u64 {
        self.manifest.generation
    }

    /// Which model made the vectors.
    pub fn encoder(&self) -> &EncoderIdentity {
        &self.manifest.encoder
    }

    /// Refuses another model than the one that made the vectors.
    pub fn require_encoder(&self, given: &EncoderIdentity) -> Result<(), SearchError> {
        super::require_encoder(&self.store, &self.manifest, given)
    }

    /// How many bits are kept of every entry of a vector.
    pub fn bits(&self) -> Bits {
        self.manifest.bits
    }

    /// How many rows at the head of each passage stand for all of it.
    pub fn whole_text_rows(&self) -> usize {
        self.manifest.whole_text_rows as usize
    }

    /// How the rows of a text became fewer.
    pub fn folding(&self) -> Folding {
        self.manifest.fold
    }

    /// How passages are encoded, if they are.
    pub fn encoded_with(&self) -> Option<&FdeOptions> {
        let encodings = self.segments.iter().find_map(Segment::encodings);
        encodings.map(|e| e.coder().options())
    }

    /// How to search by meaning, if that was tuned and still holds: not when the
    /// store has grown fourfold, nor while it lacks the encodings that were used.
    pub fn tuned(&self) -> Option<&Tuned> {
        let encoded = || self.segments.iter().all(|s| s.encodings().is_some());
        let tuned = self.manifest.tuned.as_ref();
        tuned
            .filter(|t| self.passage_count() <= 4 * t.passages)
            .filter(|t| t.method != Method::Fde || encoded())
    }

    /// The folders and files that were indexed.
    pub fn roots(&self) -> Vec<PathBuf> {
        self.manifest
            .roots
            .iter()
            .map(|k| self.path_of(k))
            .collect()
    }

    /// The vector segments that have rows. Together they hold every live
    /// passage with vectors once.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The lexical index; its documents are the live passages.
    pub fn searcher(&self) -> &Searcher {
        &self.searcher
    }

    /// The fields of the lexical index.
    pub fn fields(&self) -> &Fields {
        &self.fields
    }

    /// Number of passages that can be found.
    pub fn passage_count(&self) -> u64 {
        self.searcher.num_docs()
    }

    /// Number of stored token vectors, those of deleted passages included until
    /// their segment is merged.
    pub fn token_count(&self) -> u64 {
        self.manifest.segments.iter().map(|s| s.tokens).sum()
    }

    /// The path that the key of a file stands for.
    pub fn path_of(&self, key: &str) -> PathBuf {
        paths::path(&self.base, key)
    }

    /// The passage with an id; none if there is no live one.
    pub fn passage(&self, id: u64) -> Result<Option<StoredPassage>, SearchError> {
        let failed = |e| SearchError::lexical(&self.store, e);
        let Some(address) = self.address(id).map_err(failed)? else {
            return Ok(None);
        };
        let document: TantivyDocument = self.searcher.doc(address).map_err(failed)?;
        lexical::passage(&self.store, &self.fields, id, &document, |k| {
            self.path_of(k)
        })
        .map(Some)
    }

    pub(crate) fn address(&self, id: u64) -> tantivy::Result<Option<DocAddress>> {
        let term = Term::from_field_u64(self.fields.passage, id);
        for (ordinal, reader) in self.searcher.segment_readers().iter().enumerate() {
            let index = reader.inverted_index(self.fields.passage)?;
            let Some(mut postings) = index.read_postings(&term, IndexRecordOption::Basic)? else {
                continue;
            };
            let mut doc = postings.doc();
            while doc != TERMINATED {
                if !reader.is_deleted(doc) {
                    return Ok(Some(DocAddress::new(ordinal as u32, doc)));
                }
                doc = postings.advance();
            }
        }
        Ok(None)
    }

    /// The live files, in no particular order.
    pub fn files(&self) -> Result<Vec<FileRecord>, SearchError> {
        let mut all = Vec::new();
        for (entry, file) in self.manifest.segments.iter().zip(&self.files) {
            for (_, record) in live_records(file, entry)? {
                all.push(record);
            }
        }
        Ok(all)
    }

    pub(crate) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub(crate) fn segment_files(&self) -> &[Arc<SegmentFile>] {
        &self.files
    }
}

/// Reads something of the last commit of a store with `f`, and gives its manifest.
pub(crate) fn last_commit<T>(
    store: &Path,
    f: impl Fn(&Path, &Manifest) -> Result<T, SearchError>,
) -> Result<(Manifest, T), SearchError> {
    let mut manifest = Manifest::read(store)?;
    for _ in 1..TRIES {
        match f(store, &manifest) {
            Ok(value) => return Ok((manifest, value)),
            Err(e) => {
                // A writer removes the files of old commits; that this one could
                // not be read counts only if it still is the last.
                let newer = Manifest::read(store)?;
                if newer.generation == manifest.generation {
                    return Err(e);
                }
                manifest = newer;
            }
        }
    }
    let value = f(store, &manifest)?;
    Ok((manifest, value))
}

/// The records of the files of a segment that are not dead, with their numbers
/// and with their newest times.
pub(crate) fn live_records(
    file: &SegmentFile,
    entry: &super::manifest::SegmentEntry,
) -> Result<Vec<(u32, FileRecord)>, SearchError> {
    let mut records = file.records()?;
    for &(number, modified) in &entry.touched {
        if let Some(record) = records.get_mut(number as usize) {
            record.modified = modified;
        }
    }
    let mut dead = entry.dead.iter().peekable();
    let mut live = Vec::with_capacity(records.len());
    for (number, record) in (0u32..).zip(records) {
        while dead
            .next_if(|&&(first, count)| first.saturating_add(count) <= number)
            .is_some()
        {}
        if dead.peek().is_none_or(|&&(first, _)| number < first) {
            live.push((number, record));
        }
    }
    Ok(live)
}

/// Opens the segments with rows, with their numbers, without encodings.
pub(super) fn open_segments(
    store: &Path,
    manifest: &Manifest,
) -> Result<Vec<(u64, Segment)>, SearchError> {
    let codebooks = open_codebooks(store, manifest)?;
    let folder = open_folder(&store.join(SEGMENTS))?;
    let mut all = Vec::new();
    for entry in &manifest.segments {
        if let Some(codebook) = entry.codebook.and_then(|n| codebooks.get(&n)) {
            let file = Arc::new(SegmentFile::open(store, &folder, entry)?);
            let segment = Segment::new(file, codebook.clone(), &entry.dead, None)?;
            all.push((entry.number, segment));
        }
    }
    Ok(all)
}

/// Opens the codebooks that a manifest names.
pub(crate) fn open_codebooks(
    store: &Path,
    manifest: &Manifest,
) -> Result<HashMap<u64, Arc<Codebook>>, SearchError> {
    let mut all = HashMap::new();
    for entry in &manifest.codebooks {
        all.insert(entry.number, Arc::new(open_codebook(store, entry)?));
    }
    Ok(all)
}

pub(crate) fn open_codebook(store: &Path, entry: &CodebookEntry) -> Result<Codebook, SearchError> {
    let folder = open_folder(&store.join(CODEBOOKS))?;
    let name = codebook_file(entry.number);
    let path = store.join(CODEBOOKS).join(&name);
    let file = open_sealed(&folder, &name, path.clone())?;
    if file.seal() != entry.seal {
        return Err(SearchError::Damaged {
            path,
            what: "it is not the file that the manifest names".to_owned(),
        });
    }
    let bytes = file
        .read(0..file.length())
        .map_err(|e| SearchError::read(&path, e))?;
    Codebook::from_bytes(bytes).map_err(|e| SearchError::Damaged {
        path,
        what: e.to_string(),
    })
}

/// Opens the lexical index.
pub(crate) fn open_index(
    store: &Path,
    directory: StoreDirectory,
) -> Result<(Index, Fields), SearchError> {
    let (schema, fields) = lexical::schema();
    let index = Index::open(directory).map_err(|e| SearchError::lexical(store, e))?;
    if index.schema() != schema {
        return Err(SearchError::Damaged {
            path: store.join(super::MANIFEST),
            what: "its lexical index has other fields".to_owned(),
        });
    }
    lexical::register(&index);
    Ok((index, fields))
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot")
            .field("store", &self.store)
            .field("generation", &self.generation())
            .field("segments", &self.segments)
            .finish()
    }
}

//! Where the token vectors of new passages go: into a segment file as soon as
//! they can be coded, and into memory until there is a codebook.

use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keyfold_core::atomic;

use super::files::FileRecord;
use super::manifest::{CodebookEntry, SegmentEntry, codebook_file};
use super::seal::SealWriter;
use super::segment::Shape;
use super::segment_writer::SegmentWriter;
use super::{CODEBOOKS, SEGMENTS};
use crate::codebook::{Bits, Codebook, Quantized};
use crate::error::SearchError;

/// Rows that are coded in one go.
pub(crate) const CODED_AT_ONCE: usize = 1 << 14;

/// How rows are coded and how much memory that may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowOptions {
    pub(crate) dim: usize,
    pub(crate) bits: Bits,
    /// Bytes for the rows that wait for a codebook, and for the lists of a segment.
    pub(crate) memory: usize,
    pub(crate) seed: u64,
    pub(crate) threads: usize,
    /// Rows at the head of each passage that stand for all of it; where there are
    /// such, every row has an id.
    pub(crate) whole_text_rows: usize,
}

impl RowOptions {
    /// Whether passages are looked for by the centroids of their rows.
    pub(crate) fn uses_centroids(&self) -> bool {
        self.whole_text_rows == 0 && self.bits != Bits::One
    }
}

/// The rows of new passages between two commits.
pub(crate) struct NewRows {
    store: PathBuf,
    options: RowOptions,
    codebook: Option<(CodebookEntry, Arc<Codebook>)>,
    segment: Option<SegmentWriter>,
    /// Files of the segment that are dead already.
    dead: Vec<u32>,
    /// What waits for a codebook, in order, and its rows.
    waiting: Vec<Waiting>,
    rows: Vec<f32>,
    row_ids: Vec<u32>,
    files: u32,
}

enum Waiting {
    Passage { id: u64, rows: usize },
    File(FileRecord),
}

/// The rows of some passages.
pub enum Rows<'a> {
    /// As the encoder made them, `[rows, dim]`.
    Raw(&'a [f32]),
    /// Coded with a codebook: the centroids `[rows]` and the coded bytes
    /// `[rows, bytes_per_row]`. With [`super::Writer::codebook`] they are taken
    /// as they are, with another one they are coded again.
    Coded(&'a Codebook, &'a [u16], &'a [u8]),
}

impl NewRows {
    /// Rows for the store in `store`, coded with its codebook if it has one.
    pub(crate) fn new(
        store: &Path,
        options: RowOptions,
        codebook: Option<(CodebookEntry, Arc<Codebook>)>,
    ) -> Self {
        Self {
            store: store.to_owned(),
            options,
            codebook,
            segment: None,
            dead: Vec::new(),
            waiting: Vec::new(),
            rows: Vec::new(),
            row_ids: Vec::new(),
            files: 0,
        }
    }

    pub(crate) fn codebook(&self) -> Option<&Arc<Codebook>> {
        self.codebook.as_ref().map(|(_, c)| c)
    }

    pub(crate) fn codebook_entry(&self) -> Option<&CodebookEntry> {
        self.codebook.as_ref().map(|(e, _)| e)
    }

    /// Codes with another codebook from now on; only between commits.
    pub(crate) fn set_codebook(&mut self, entry: CodebookEntry, codebook: Arc<Codebook>) {
        self.codebook = Some((entry, codebook));
    }

    /// True once the rows that wait have filled the memory for them.
    pub(crate) fn is_full(&self) -> bool {
        size_of_val(&self.rows[..]) >= self.options.memory
    }

    /// Adds consecutive passages from `id` on; `counts` are their numbers of rows.
    /// `row_ids` may be empty where rows have no ids.
    pub(crate) fn passages(
        &mut self,
        mut id: u64,
        counts: &[usize],
        rows: Rows<'_>,
        row_ids: &[u32],
    ) -> Result<(), SearchError> {
        let total: usize = counts.iter().sum();
        let zeros;
        let row_ids = match row_ids.len() {
            _ if self.options.whole_text_rows == 0 => &[],
            n if n == total => row_ids,
            _ => {
                zeros = vec![0; total];
                &zeros[..]
            }
        };
        let Some((_, ours)) = &self.codebook else {
            self.make_room(total);
            self.row_ids.extend_from_slice(row_ids);
            match rows {
                Rows::Raw(rows) => self.rows.extend_from_slice(rows),
                Rows::Coded(theirs, codes, packed) => {
                    theirs.decode(codes, packed, &mut self.rows);
                }
            }
            for &rows in counts {
                self.waiting.push(Waiting::Passage { id, rows });
                id += 1;
            }
            return Ok(());
        };
        let coded;
        let (codes, packed) = match rows {
            Rows::Coded(theirs, codes, packed) if std::ptr::eq(&**ours, theirs) => (codes, packed),
            rows => {
                coded = code(ours, rows, self.options.threads);
                (&coded.codes[..], &coded.packed[..])
            }
        };
        let with_ids = self.options.whole_text_rows > 0;
        let segment = open_segment(&self.store, &mut self.segment, &self.codebook, with_ids)?;
        let size = ours.bytes_per_row();
        let mut first = 0;
        for &count in counts {
            let rows = first..first + count;
            segment
                .passage(
                    id,
                    &codes[rows.clone()],
                    &packed[rows.start * size..rows.end * size],
                    row_ids.get(rows).unwrap_or(&[]),
                )
                .map_err(|e| failed(&self.store, e))?;
            first += count;
            id += 1;
        }
        Ok(())
    }

    /// Makes room for more rows that wait, in steps that keep to the memory;
    /// growing by itself, the list would take up to twice of it.
    fn make_room(&mut self, rows: usize) {
        let step = self.options.memory / 8 / size_of::<f32>();
        let more = rows * self.options.dim;
        if self.rows.capacity() - self.rows.len() < more {
            self.rows.reserve_exact(more.max(step));
        }
    }

    /// Ends a file and gives its number among the new files.
    pub(crate) fn end_file(&mut self, record: &FileRecord) -> Result<u32, SearchError> {
        if self.codebook.is_some() {
            self.segment()?.end_file(record);
        } else {
            self.waiting.push(Waiting::File(record.clone()));
        }
        self.files += 1;
        Ok(self.files - 1)
    }

    /// A new file is gone again.
    pub(crate) fn kill(&mut self, file: u32) {
        self.dead.push(file);
    }

    /// Makes a codebook from the rows that wait, and codes them. `number` is that
    /// of its file, `tokens` how many rows the store is expected to get.
    pub(crate) fn train(&mut self, number: u64, tokens: u64) -> Result<(), SearchError> {
        let o = self.options;
        let tokens = match o.uses_centroids() {
            true => tokens.max((self.rows.len() / o.dim) as u64),
            // Few do.
            false => 1,
        };
        let codebook = Codebook::train(&self.rows, o.dim, o.bits, tokens, o.seed, o.threads)
            .map_err(|source| SearchError::Codebook {
                store: self.store.clone(),
                source,
            })?;
        // A small sample makes a codebook for a small store only: 4 rows are the
        // least for a centroid, and 16 sqrt(n) centroids are wanted for n rows.
        let sample = (self.rows.len() / o.dim) as u64;
        let made_for = tokens.min(sample.max((sample / 64).saturating_pow(2)));
        let entry = write_codebook(&self.store, &codebook, number, made_for)?;
        self.codebook = Some((entry, Arc::new(codebook)));
        self.code_waiting()
    }

    fn code_waiting(&mut self) -> Result<(), SearchError> {
        let waiting = std::mem::take(&mut self.waiting);
        let rows = std::mem::take(&mut self.rows);
        let row_ids = std::mem::take(&mut self.row_ids);
        let mut first = 0;
        let mut batch: Vec<(u64, usize)> = Vec::new();
        let mut batched = 0;
        for item in waiting {
            match item {
                Waiting::Passage { id, rows: n } => {
                    batch.push((id, n));
                    batched += n;
                    if batched >= CODED_AT_ONCE {
                        self.code_batch(&mut batch, &rows, &row_ids, first..first + batched)?;
                        first += batched;
                        batched = 0;
                    }
                }
                Waiting::File(record) => {
                    self.code_batch(&mut batch, &rows, &row_ids, first..first + batched)?;
                    first += batched;
                    batched = 0;
                    self.segment()?.end_file(&record);
                }
            }
        }
        self.code_batch(&mut batch, &rows, &row_ids, first..first + batched)
    }

    /// Codes the rows `part` of `rows`, those of a batch of passages.
    fn code_batch(
        &mut self,
        batch: &mut Vec<(u64, usize)>,
        rows: &[f32],
        row_ids: &[u32],
        part: Range<usize>,
    ) -> Result<(), SearchError> {
        if let Some(&(id, _)) = batch.first() {
            let counts: Vec<usize> = batch.iter().map(|&(_, n)| n).collect();
            let dim = self.options.dim;
            let rows = Rows::Raw(&rows[part.start * dim..part.end * dim]);
            self.passages(id, &counts, rows, row_ids.get(part).unwrap_or(&[]))?;
            batch.clear();
        }
        Ok(())
    }

    /// True if rows wait for a codebook.
    pub(crate) fn needs_codebook(&self) -> bool {
        self.codebook.is_none() && !self.rows.is_empty()
    }

    /// Finishes the segment of what was added since the last commit; none if
    /// there was nothing. Rows must not wait for a codebook any more.
    pub(crate) fn finish(&mut self, number: u64) -> Result<Option<SegmentEntry>, SearchError> {
        if self.files == 0 {
            return Ok(None);
        }
        // Without any row there is no codebook, and none is needed.
        self.code_rowless()?;
        let Some(segment) = self.segment.take() else {
            return Ok(None);
        };
        self.dead.sort_unstable();
        self.dead.dedup();
        let dead_passages = self.dead.iter().map(|&f| segment.passages_of(f)).sum();
        let has_rows = segment.tokens() > 0;
        let codebook = self.codebook_entry().filter(|_| has_rows).map(|e| e.number);
        let mut entry = segment
            .finish(
                &self.store.join(SEGMENTS),
                number,
                codebook,
                self.options.memory,
            )
            .map_err(|e| failed(&self.store, e))?;
        entry.dead = runs(self.dead.drain(..));
        entry.dead_passages = dead_passages;
        self.files = 0;
        Ok(Some(entry))
    }

    /// The segment that is being written.
    fn segment(&mut self) -> Result<&mut SegmentWriter, SearchError> {
        let with_ids = self.options.whole_text_rows > 0;
        open_segment(&self.store, &mut self.segment, &self.codebook, with_ids)
    }

    fn code_rowless(&mut self) -> Result<(), SearchError> {
        for item in std::mem::take(&mut self.waiting) {
            let store = self.store.clone();
            let segment = self.segment()?;
            match item {
                Waiting::Passage { id, .. } => segment
                    .passage(id, &[], &[], &[])
                    .map_err(|e| failed(&store, e))?,
                Waiting::File(record) => segment.end_file(&record),
            }
        }
        Ok(())
    }
}

/// The segment that is being written, begun if there is none.
fn open_segment<'a>(
    store: &Path,
    segment: &'a mut Option<SegmentWriter>,
    codebook: &Option<(CodebookEntry, Arc<Codebook>)>,
    with_ids: bool,
) -> Result<&'a mut SegmentWriter, SearchError> {
    match segment {
        Some(s) => Ok(s),
        None => {
            let shape = Shape::of(codebook.as_ref().map(|(_, c)| &**c));
            let new = SegmentWriter::create(&store.join(SEGMENTS), shape, with_ids)
                .map_err(|e| failed(store, e))?;
            Ok(segment.insert(new))
        }
    }
}

/// Codes rows with `codebook`, decoding them first if another one coded them.
fn code(codebook: &Codebook, rows: Rows<'_>, threads: usize) -> Quantized {
    match rows {
        Rows::Raw(rows) => codebook.quantize(rows, threads),
        Rows::Coded(other, codes, packed) => {
            let mut rows = Vec::new();
            other.decode(codes, packed, &mut rows);
            codebook.quantize(&rows, threads)
        }
    }
}

fn failed(store: &Path, e: io::Error) -> SearchError {
    SearchError::write(&store.join(SEGMENTS), e)
}

/// Ascending numbers as runs (first, count).
pub(crate) fn runs(numbers: impl IntoIterator<Item = u32>) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for n in numbers {
        match runs.last_mut() {
            Some((first, count)) if *first + *count == n => *count += 1,
            _ => runs.push((n, 1)),
        }
    }
    runs
}

/// Writes a codebook into the store; `tokens` is how many rows it was made for.
pub(crate) fn write_codebook(
    store: &Path,
    codebook: &Codebook,
    number: u64,
    tokens: u64,
) -> Result<CodebookEntry, SearchError> {
    let path = store.join(CODEBOOKS).join(codebook_file(number));
    let mut sealed = SealWriter::new(Vec::new());
    let bytes = sealed
        .write_all(&codebook.to_bytes())
        .and_then(|()| sealed.finish());
    let (seal, bytes) = bytes.map_err(|e| SearchError::write(&path, e))?;
    atomic::write(&path, &bytes).map_err(|e| SearchError::write(&path, e))?;
    Ok(CodebookEntry {
        number,
        seal,
        tokens,
    })
}

//! A vector segment: the coded token vectors of some passages, the lists of
//! passages by centroid, and the files that the passages came from. Written
//! once, then only read, from a map of the file; the coded rows, which are nearly all of
//! it, where it is asked for also by reading the file.
//!
//! The body of the sealed file holds these sections, each from a multiple of 64
//! bytes on, integers little-endian, and last the directory:
//!
//! ```text
//! packed          [tokens, bytes_per_row] u8, the coded rows, passage by passage
//! codes           [tokens] u16, the centroid of every row
//! ids             [passages] u64, ascending
//! row starts      [passages + 1] u64, where the rows of a passage begin
//! posting starts  [centroids + 1] u64, where the list of a centroid begins
//! postings        [..] u32, per centroid the passages with a row of it, ascending,
//!                 counted from 0 within the segment
//! passage starts  [files + 1] u32, where the passages of a file begin
//! files           the records of the files (see `files.rs`)
//! row ids         [tokens] u32, in the stores of models that give rows ids only
//! directory, 176  "KFSEGM1\n"; dim, bits, bytes_per_row, centroids, passages,
//!                 files as u32; offset of the row ids u64, 0 if there are none;
//!                 tokens u64; offset u64 and length u64 (in bytes) of each of the
//!                 first eight sections above
//! ```

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytemuck::Pod;
use tantivy::directory::{Directory as _, MmapDirectory};

use super::SEGMENTS;
use super::encodings::Encodings;
use super::files::FileRecord;
use super::manifest::SegmentEntry;
use super::seal::{Sealed, u32_at, u64_at};
use crate::codebook::Codebook;
use crate::error::SearchError;

// Sections are read in place.
const _: () = assert!(cfg!(target_endian = "little"), "segments are little-endian");

const MAGIC: &[u8; 8] = b"KFSEGM1\n";
/// Sections of a segment, in their order in the file.
pub(crate) const SECTIONS: usize = 8;
pub(crate) const DIRECTORY: usize = 8 + 8 * 4 + 8 + SECTIONS * 16;

/// Names of the sections, as their places in [`Directory::sections`].
pub(crate) mod section {
    pub(crate) const PACKED: usize = 0;
    pub(crate) const CODES: usize = 1;
    pub(crate) const IDS: usize = 2;
    pub(crate) const ROW_STARTS: usize = 3;
    pub(crate) const POSTING_STARTS: usize = 4;
    pub(crate) const POSTINGS: usize = 5;
    pub(crate) const PASSAGE_STARTS: usize = 6;
    pub(crate) const FILES: usize = 7;
}

/// How rows are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) dim: u32,
    pub(crate) bits: u32,
    pub(crate) bytes_per_row: u32,
    pub(crate) centroids: u32,
}

impl Shape {
    /// The shape of rows that were coded with `codebook`; without one there are
    /// no rows.
    pub(crate) fn of(codebook: Option<&Codebook>) -> Self {
        match codebook {
            None => Self {
                dim: 0,
                bits: 0,
                bytes_per_row: 0,
                centroids: 0,
            },
            Some(c) => Self {
                dim: c.dim() as u32,
                bits: c.bits().number(),
                bytes_per_row: c.bytes_per_row() as u32,
                centroids: c.count() as u32,
            },
        }
    }
}

/// The last bytes of the body: what is where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Directory {
    pub(crate) shape: Shape,
    pub(crate) passages: u32,
    pub(crate) files: u32,
    pub(crate) tokens: u64,
    /// Offset of the ids of the rows; 0 where they have none.
    pub(crate) row_ids: u64,
    /// Offset and length in bytes.
    pub(crate) sections: [(u64, u64); SECTIONS],
}

impl Directory {
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        let s = self.shape;
        let words = [
            s.dim,
            s.bits,
            s.bytes_per_row,
            s.centroids,
            self.passages,
            self.files,
        ];
        for word in words {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&self.row_ids.to_le_bytes());
        out.extend_from_slice(&self.tokens.to_le_bytes());
        for (offset, length) in self.sections {
            out.extend_from_slice(&offset.to_le_bytes());
            out.extend_from_slice(&length.to_le_bytes());
        }
        out
    }

    /// Reads the directory at the end of a body of `length` bytes and checks
    /// that all sections have the lengths that its counts ask for.
    fn parse(bytes: &[u8], length: u64) -> Result<Self, &'static str> {
        if &bytes[..8] != MAGIC {
            return Err("it is not a vector segment");
        }
        let word = |i: usize| u32_at(bytes, 8 + 4 * i);
        let mut sections = [(0, 0); SECTIONS];
        for (i, s) in sections.iter_mut().enumerate() {
            *s = (u64_at(bytes, 48 + 16 * i), u64_at(bytes, 56 + 16 * i));
        }
        let d = Self {
            shape: Shape {
                dim: word(0),
                bits: word(1),
                bytes_per_row: word(2),
                centroids: word(3),
            },
            passages: word(4),
            files: word(5),
            tokens: u64_at(bytes, 40),
            row_ids: u64_at(bytes, 32),
            sections,
        };
        let ids_end = d
            .tokens
            .checked_mul(4)
            .and_then(|n| d.row_ids.checked_add(n));
        if d.row_ids != 0
            && (!d.row_ids.is_multiple_of(64) || ids_end.is_none_or(|end| end > length))
        {
            return Err("the ids of its rows do not fit its counts");
        }
        let wanted = d.lengths().ok_or("its counts are impossible")?;
        for (wanted, (offset, got)) in wanted.into_iter().zip(d.sections) {
            let fits = offset.checked_add(got).is_some_and(|end| end <= length);
            if !fits || offset % 64 != 0 || wanted.is_some_and(|w| w != got) {
                return Err("its sections do not fit its counts");
            }
        }
        Ok(d)
    }

    /// The bytes that every section must have; none where any length will do.
    fn lengths(&self) -> Option<[Option<u64>; SECTIONS]> {
        let passages = u64::from(self.passages);
        Some([
            Some(
                self.tokens
                    .checked_mul(u64::from(self.shape.bytes_per_row))?,
            ),
            Some(self.tokens.checked_mul(2)?),
            Some(passages * 8),
            Some(passages * 8 + 8),
            Some(u64::from(self.shape.centroids) * 8 + 8),
            None,
            Some(u64::from(self.files) * 4 + 4),
            None,
        ])
    }
}

/// An open segment file.
pub(crate) struct SegmentFile {
    file: Sealed,
    /// The same file, for [`Segment::read_packed`].
    open: File,
    directory: Directory,
}

impl SegmentFile {
    /// Opens the segment of `entry` in the folder that `segments` maps.
    pub(crate) fn open(
        store: &Path,
        segments: &MmapDirectory,
        entry: &SegmentEntry,
    ) -> Result<Self, SearchError> {
        let path = store.join(SEGMENTS).join(entry.file());
        let file = open_sealed(segments, &entry.file(), path.clone())?;
        let open = File::open(&path).map_err(|e| SearchError::read(&path, e))?;
        Self::new(file, open, entry).map_err(|what| SearchError::Damaged {
            path,
            what: what.to_owned(),
        })
    }

    fn new(file: Sealed, open: File, entry: &SegmentEntry) -> Result<Self, &'static str> {
        if file.seal() != entry.seal {
            return Err("it is not the file that the manifest names");
        }
        let length = file.length();
        let start = length.checked_sub(DIRECTORY).ok_or("it is too short")?;
        let bytes = file
            .read(start..length)
            .map_err(|_| "its directory is wrong")?;
        let directory = Directory::parse(bytes, start as u64)?;
        let same = directory.passages == entry.passages
            && directory.files == entry.files
            && directory.tokens == entry.tokens;
        if !same {
            return Err("its counts are not those of the manifest");
        }
        Ok(Self {
            file,
            open,
            directory,
        })
    }

    /// Checks every byte, and that the tables agree with each other.
    pub(crate) fn verify(&self) -> Result<(), SearchError> {
        self.read(0..self.file.length())?;
        self.records()?;
        let d = &self.directory;
        let ids = self.ids()?;
        if !ids.windows(2).all(|w| w[0] < w[1]) {
            return Err(self.damaged("its passages are not in order"));
        }
        let rows = self.all::<u64>(section::ROW_STARTS)?;
        let files = self.all::<u32>(section::PASSAGE_STARTS)?;
        let lists = self.all::<u64>(section::POSTING_STARTS)?;
        let postings = self.all::<u32>(section::POSTINGS)?;
        let bounded = spans(rows, 0, d.tokens)
            && spans(files, 0, d.passages)
            && spans(lists, 0, postings.len() as u64);
        if !bounded {
            return Err(self.damaged("a table in it is not in order"));
        }
        for list in lists.windows(2) {
            let list = &postings[list[0] as usize..list[1] as usize];
            let inside = list.last().is_none_or(|&p| p < d.passages);
            if !inside || !list.windows(2).all(|w| w[0] < w[1]) {
                return Err(self.damaged("a list of passages in it is not in order"));
            }
        }
        self.codes(0..d.tokens as usize).map(|_| ())
    }

    /// The ids of the passages, ascending.
    pub(crate) fn ids(&self) -> Result<&[u64], SearchError> {
        self.all::<u64>(section::IDS)
    }

    fn read(&self, range: Range<usize>) -> Result<&[u8], SearchError> {
        self.file
            .read(range)
            .map_err(|e| SearchError::read(self.file.path(), e))
    }

    fn damaged(&self, what: &str) -> SearchError {
        SearchError::Damaged {
            path: self.file.path().to_owned(),
            what: what.to_owned(),
        }
    }

    /// Elements `range` of a section of `T`.
    pub(crate) fn part<T: Pod>(
        &self,
        section: usize,
        range: Range<usize>,
    ) -> Result<&[T], SearchError> {
        self.part_of(self.directory.sections[section], range)
    }

    /// Elements `range` of the `T` at an offset, of a length in bytes.
    fn part_of<T: Pod>(
        &self,
        (offset, length): (u64, u64),
        range: Range<usize>,
    ) -> Result<&[T], SearchError> {
        let size = size_of::<T>();
        if range.start > range.end || range.end > length as usize / size {
            return Err(self.damaged("a count in it points past its end"));
        }
        let offset = offset as usize;
        let bytes = self.read(offset + range.start * size..offset + range.end * size)?;
        bytemuck::try_cast_slice(bytes).map_err(|_| self.damaged("it is not aligned"))
    }

    /// All of a section of `T`.
    pub(crate) fn all<T: Pod>(&self, section: usize) -> Result<&[T], SearchError> {
        let length = self.directory.sections[section].1 as usize;
        self.part(section, 0..length / size_of::<T>())
    }

    /// The records of the files, in order.
    pub(crate) fn records(&self) -> Result<Vec<FileRecord>, SearchError> {
        let mut table = self.all::<u8>(section::FILES)?;
        (0..self.directory.files)
            .map(|_| FileRecord::read(&mut table).map_err(|e| self.damaged(&e.to_string())))
            .collect()
    }

    /// The passages of a file, counted from 0 within the segment.
    pub(crate) fn passages_of(&self, file: u32) -> Result<Range<u32>, SearchError> {
        let at = file as usize;
        let starts = self.part::<u32>(section::PASSAGE_STARTS, at..at + 2)?;
        if starts[0] > starts[1] || starts[1] > self.directory.passages {
            return Err(self.damaged("its table of passages is not one"));
        }
        Ok(starts[0]..starts[1])
    }

    /// The id of a passage.
    pub(crate) fn id_of(&self, local: u32) -> Result<u64, SearchError> {
        let at = local as usize;
        Ok(self.part::<u64>(section::IDS, at..at + 1)?[0])
    }

    /// The rows of a passage.
    pub(crate) fn rows_of(&self, local: u32) -> Result<Range<usize>, SearchError> {
        let at = local as usize;
        let starts = self.part::<u64>(section::ROW_STARTS, at..at + 2)?;
        if starts[0] > starts[1] || starts[1] > self.directory.tokens {
            return Err(self.damaged("its table of rows is not one"));
        }
        Ok(starts[0] as usize..starts[1] as usize)
    }

    /// The centroids of some rows.
    pub(crate) fn codes(&self, rows: Range<usize>) -> Result<&[u16], SearchError> {
        let codes = self.part::<u16>(section::CODES, rows)?;
        let last = codes.iter().fold(0, |m, &c| m.max(c));
        if u32::from(last) >= self.directory.shape.centroids && !codes.is_empty() {
            return Err(self.damaged("a row names a centroid that is not there"));
        }
        Ok(codes)
    }

    /// The ids of some rows; empty where the rows have none.
    pub(crate) fn row_ids(&self, rows: Range<usize>) -> Result<&[u32], SearchError> {
        match self.directory.row_ids {
            0 => Ok(&[]),
            offset => self.part_of((offset, self.directory.tokens * 4), rows),
        }
    }

    /// [`SegmentFile::packed`], read into `buffer`.
    pub(crate) fn read_packed<'a>(
        &self,
        rows: Range<usize>,
        buffer: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], SearchError> {
        let size = self.directory.shape.bytes_per_row as usize;
        let (offset, _) = self.directory.sections[section::PACKED];
        if rows.start > rows.end || rows.end > self.directory.tokens as usize {
            return Err(self.damaged("a count in it points past its end"));
        }
        let offset = offset as usize;
        let bytes = offset + rows.start * size..offset + rows.end * size;
        (self.file)
            .read_into(&self.open, bytes, buffer)
            .map_err(|e| SearchError::read(self.file.path(), e))
    }

    /// The coded bytes of some rows.
    pub(crate) fn packed(&self, rows: Range<usize>) -> Result<&[u8], SearchError> {
        let size = self.directory.shape.bytes_per_row as usize;
        let bytes = rows.start.saturating_mul(size)..rows.end.saturating_mul(size);
        self.part::<u8>(section::PACKED, bytes)
    }
}

/// Whether a table of starts ascends from `first` to `last`.
fn spans<T: PartialOrd + Copy>(starts: &[T], first: T, last: T) -> bool {
    starts.first().is_some_and(|&s| s == first)
        && starts.last().is_some_and(|&s| s == last)
        && starts.windows(2).all(|w| w[0] <= w[1])
}

/// Opens a sealed file of a folder that is mapped.
pub(crate) fn open_sealed(
    folder: &MmapDirectory,
    name: &Path,
    path: PathBuf,
) -> Result<Sealed, SearchError> {
    use tantivy::directory::error::OpenReadError;
    let slice = folder.open_read(name).map_err(|e| match e {
        OpenReadError::FileDoesNotExist(_) => SearchError::Damaged {
            path: path.clone(),
            what: "it is missing".to_owned(),
        },
        e => SearchError::read(&path, std::io::Error::other(e)),
    })?;
    let bytes = slice.read_bytes();
    bytes
        .and_then(|bytes| Sealed::open(path.clone(), bytes))
        .map_err(|e| SearchError::read(&path, e))
}

/// A vector segment, open for searching.
///
/// A passage of it is named by its place, `0..passages()`; only the live ones
/// can be found. What is read has been checked against the checksums of the
/// file, so a damaged file gives an error and never wrong vectors.
pub struct Segment {
    file: Arc<SegmentFile>,
    codebook: Arc<Codebook>,
    /// One bit for every passage that is gone; empty if all are live.
    dead: Vec<u64>,
    encodings: Option<Encodings>,
    whole_text_rows: usize,
}

impl Segment {
    /// Puts an open file, its codebook, the runs of dead files and the encodings,
    /// if there are some, together.
    pub(crate) fn new(
        file: Arc<SegmentFile>,
        codebook: Arc<Codebook>,
        dead: &[(u32, u32)],
        encodings: Option<Encodings>,
    ) -> Result<Self, SearchError> {
        if file.directory.shape != Shape::of(Some(&codebook)) {
            return Err(file.damaged("it does not fit its codebook"));
        }
        let passages = file.directory.passages as usize;
        let mut gone = Vec::new();
        if !dead.is_empty() {
            gone = vec![0u64; passages.div_ceil(64)];
            for &(first, count) in dead {
                let last = first.saturating_add(count.saturating_sub(1));
                let run = file.passages_of(first)?.start..file.passages_of(last)?.end;
                for local in run {
                    gone[local as usize / 64] |= 1 << (local % 64);
                }
            }
        }
        Ok(Self {
            file,
            codebook,
            dead: gone,
            encodings,
            whole_text_rows: 0,
        })
    }

    /// Says how many rows at the head of each passage stand for all of it.
    pub(crate) fn with_whole_text_rows(self, whole_text_rows: usize) -> Self {
        Self {
            whole_text_rows,
            ..self
        }
    }

    /// How many rows at the head of each passage stand for all of it.
    pub fn whole_text_rows(&self) -> usize {
        self.whole_text_rows
    }

    /// The ids of some rows; empty where the rows have none.
    pub fn row_ids(&self, rows: Range<usize>) -> Result<&[u32], SearchError> {
        self.file.row_ids(rows)
    }

    /// Number of passages, dead ones included.
    pub fn passages(&self) -> usize {
        self.file.directory.passages as usize
    }

    /// Number of rows of all passages, dead ones included.
    pub fn tokens(&self) -> usize {
        self.file.directory.tokens as usize
    }

    /// The codebook of its rows.
    pub fn codebook(&self) -> &Arc<Codebook> {
        &self.codebook
    }

    /// Encodings of fixed length of its passages, if it has them.
    pub fn encodings(&self) -> Option<&Encodings> {
        self.encodings.as_ref()
    }

    pub(crate) fn require_encodings(&self) -> Result<&Encodings, SearchError> {
        self.encodings().ok_or_else(|| SearchError::NoEncodings {
            segment: self.file.file.path().to_owned(),
        })
    }

    /// What is wrong with rows that an encoding refuses.
    pub(crate) fn refused(&self, error: &dyn std::fmt::Display) -> SearchError {
        self.file.damaged(&error.to_string())
    }

    /// The id of a passage.
    pub fn passage_id(&self, local: u32) -> Result<u64, SearchError> {
        self.file.id_of(local)
    }

    /// The place of the passage with an id, live or not; none if it is not here.
    pub fn find(&self, id: u64) -> Result<Option<u32>, SearchError> {
        let ids = self.file.ids()?;
        Ok(ids.binary_search(&id).ok().map(|i| i as u32))
    }

    /// Whether a passage can be found; false past the end.
    pub fn is_live(&self, local: u32) -> bool {
        let at = local as usize;
        at < self.passages()
            && self
                .dead
                .get(at / 64)
                .is_none_or(|w| w >> (at % 64) & 1 == 0)
    }

    /// The live passages, ascending.
    pub fn live(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.passages() as u32).filter(|&local| self.is_live(local))
    }

    /// Number of live passages.
    pub fn live_passages(&self) -> usize {
        let dead: u32 = self.dead.iter().map(|w| w.count_ones()).sum();
        self.passages() - dead as usize
    }

    /// The rows of a passage, for [`Segment::codes`] and [`Segment::packed`].
    pub fn rows(&self, local: u32) -> Result<Range<usize>, SearchError> {
        self.file.rows_of(local)
    }

    /// The centroids of some rows, all below `codebook().count()`.
    pub fn codes(&self, rows: Range<usize>) -> Result<&[u16], SearchError> {
        self.file.codes(rows)
    }

    /// The coded bytes of some rows, `[rows, codebook().bytes_per_row()]`.
    pub fn packed(&self, rows: Range<usize>) -> Result<&[u8], SearchError> {
        self.file.packed(rows)
    }

    /// [`Segment::packed`], read into `buffer` instead of mapped.
    pub(crate) fn read_packed<'a>(
        &self,
        rows: Range<usize>,
        buffer: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], SearchError> {
        self.file.read_packed(rows, buffer)
    }

    /// Length of all [`Segment::postings`].
    pub(crate) fn all_postings(&self) -> Result<usize, SearchError> {
        let end = self.codebook.count();
        let starts = self
            .file
            .part::<u64>(section::POSTING_STARTS, end..end + 1)?;
        Ok(starts[0] as usize)
    }

    /// The passages that have a row of a centroid, ascending, dead ones
    /// included, all below `passages()`; empty past the last centroid.
    pub fn postings(&self, centroid: u16) -> Result<&[u32], SearchError> {
        let at = centroid as usize;
        if at >= self.codebook.count() {
            return Ok(&[]);
        }
        let starts = self.file.part::<u64>(section::POSTING_STARTS, at..at + 2)?;
        let list = self
            .file
            .part::<u32>(section::POSTINGS, starts[0] as usize..starts[1] as usize)?;
        let last = list.iter().fold(0, |m, &p| m.max(p));
        if !list.is_empty() && last as usize >= self.passages() {
            return Err(self
                .file
                .damaged("a list names a passage that is not there"));
        }
        Ok(list)
    }
}

impl std::fmt::Debug for Segment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Segment")
            .field("file", &self.file.file)
            .field("passages", &self.passages())
            .field("live", &self.live_passages())
            .field("tokens", &self.tokens())
            .finish()
    }
}

//! Writes a vector segment passage by passage; memory does not grow with the
//! rows. It grows by 16 bytes for every passage and by the records of the files.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::path::Path;

use keyfold_core::atomic;
use tempfile::NamedTempFile;

use super::files::FileRecord;
use super::manifest::{SegmentEntry, segment_file};
use super::seal::SealWriter;
use super::segment::{Directory, SECTIONS, Shape, section};

const BUFFER: usize = 1 << 16;

/// A segment that is being written; dropped unfinished, it leaves nothing.
pub(crate) struct SegmentWriter {
    out: SealWriter<BufWriter<NamedTempFile>>,
    /// The codes of all rows, which follow the packed rows in the file.
    codes: BufWriter<File>,
    /// The ids of all rows, where rows have ids, which come last.
    row_ids: Option<BufWriter<File>>,
    shape: Shape,
    ids: Vec<u64>,
    row_starts: Vec<u64>,
    passage_starts: Vec<u32>,
    files: Vec<u8>,
}

impl SegmentWriter {
    /// Begins a segment in the folder of segments; `with_ids` if its rows have ids.
    pub(crate) fn create(folder: &Path, shape: Shape, with_ids: bool) -> io::Result<Self> {
        let file = temporary(folder)?;
        let row_ids = match with_ids {
            true => Some(BufWriter::with_capacity(
                BUFFER,
                tempfile::tempfile_in(folder)?,
            )),
            false => None,
        };
        Ok(Self {
            row_ids,
            out: SealWriter::new(BufWriter::with_capacity(BUFFER, file)),
            codes: BufWriter::with_capacity(BUFFER, tempfile::tempfile_in(folder)?),
            shape,
            ids: Vec::new(),
            row_starts: vec![0],
            passage_starts: vec![0],
            files: Vec::new(),
        })
    }

    /// Number of passages of a file that was ended.
    pub(crate) fn passages_of(&self, file: u32) -> u32 {
        let at = file as usize;
        self.passage_starts[at + 1] - self.passage_starts[at]
    }

    /// Rows so far.
    pub(crate) fn tokens(&self) -> u64 {
        self.row_starts.last().copied().unwrap_or(0)
    }

    /// Adds a passage with its coded rows and their ids, where rows have ids; `id` is
    /// above all before.
    pub(crate) fn passage(
        &mut self,
        id: u64,
        codes: &[u16],
        packed: &[u8],
        row_ids: &[u32],
    ) -> io::Result<()> {
        debug_assert_eq!(
            packed.len(),
            codes.len() * self.shape.bytes_per_row as usize
        );
        debug_assert!(self.ids.last().is_none_or(|&last| last < id));
        self.out.write_all(packed)?;
        self.codes.write_all(bytemuck::cast_slice(codes))?;
        if let Some(out) = &mut self.row_ids {
            debug_assert_eq!(row_ids.len(), codes.len());
            out.write_all(bytemuck::cast_slice(row_ids))?;
        }
        self.ids.push(id);
        self.row_starts.push(self.tokens() + codes.len() as u64);
        Ok(())
    }

    /// Ends a file: all passages since the last one are of it.
    pub(crate) fn end_file(&mut self, record: &FileRecord) {
        record.write(&mut self.files);
        self.passage_starts.push(self.ids.len() as u32);
    }

    /// Writes the rest, syncs, and gives the segment its name. The lists of
    /// passages by centroid are made with about `memory` bytes.
    pub(crate) fn finish(
        mut self,
        folder: &Path,
        number: u64,
        codebook: Option<u64>,
        memory: usize,
    ) -> io::Result<SegmentEntry> {
        let tokens = self.tokens();
        let mut sections = [(0, 0); SECTIONS];
        sections[section::PACKED] = (0, self.out.length());

        let mut codes = self
            .codes
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        codes.rewind()?;
        begin(&mut self.out, &mut sections, section::CODES)?;
        io::copy(&mut codes, &mut self.out)?;
        end(&self.out, &mut sections, section::CODES);

        for (which, bytes) in [
            (section::IDS, bytemuck::cast_slice(&self.ids)),
            (section::ROW_STARTS, bytemuck::cast_slice(&self.row_starts)),
        ] {
            begin(&mut self.out, &mut sections, which)?;
            self.out.write_all(bytes)?;
            end(&self.out, &mut sections, which);
        }

        let mut postings = Postings {
            codes,
            row_starts: &self.row_starts,
            centroids: self.shape.centroids as usize,
        };
        let starts = postings.starts()?;
        begin(&mut self.out, &mut sections, section::POSTING_STARTS)?;
        self.out.write_all(bytemuck::cast_slice(&starts))?;
        end(&self.out, &mut sections, section::POSTING_STARTS);
        begin(&mut self.out, &mut sections, section::POSTINGS)?;
        postings.write(&starts, memory, &mut self.out)?;
        end(&self.out, &mut sections, section::POSTINGS);

        for (which, bytes) in [
            (
                section::PASSAGE_STARTS,
                bytemuck::cast_slice(&self.passage_starts),
            ),
            (section::FILES, &self.files[..]),
        ] {
            begin(&mut self.out, &mut sections, which)?;
            self.out.write_all(bytes)?;
            end(&self.out, &mut sections, which);
        }

        let mut row_ids = 0;
        if let Some(ids) = self.row_ids {
            let mut ids = ids.into_inner().map_err(io::IntoInnerError::into_error)?;
            ids.rewind()?;
            self.out.align()?;
            row_ids = self.out.length();
            io::copy(&mut ids, &mut self.out)?;
        }
        let directory = Directory {
            row_ids,
            shape: self.shape,
            passages: self.ids.len() as u32,
            files: (self.passage_starts.len() - 1) as u32,
            tokens,
            sections,
        };
        self.out.align()?;
        self.out.write_all(&directory.to_bytes())?;
        let (seal, out) = self.out.finish()?;
        let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        persist(file, folder, &segment_file(number))?;
        Ok(SegmentEntry {
            number,
            seal,
            codebook,
            passages: directory.passages,
            tokens,
            files: directory.files,
            dead: Vec::new(),
            dead_passages: 0,
            touched: Vec::new(),
        })
    }
}

type Out = SealWriter<BufWriter<NamedTempFile>>;

fn begin(out: &mut Out, sections: &mut [(u64, u64); SECTIONS], which: usize) -> io::Result<()> {
    out.align()?;
    sections[which].0 = out.length();
    Ok(())
}

fn end(out: &Out, sections: &mut [(u64, u64); SECTIONS], which: usize) {
    sections[which].1 = out.length() - sections[which].0;
}

/// The lists of passages by centroid, made from the codes in several passes if
/// they do not fit into memory at once.
struct Postings<'a> {
    codes: File,
    row_starts: &'a [u64],
    centroids: usize,
}

impl Postings<'_> {
    /// Where the list of each centroid begins, and where the last one ends.
    fn starts(&mut self) -> io::Result<Vec<u64>> {
        let mut starts = vec![0u64; self.centroids + 1];
        self.each(0..self.centroids, |_, code| starts[code + 1] += 1)?;
        for i in 0..self.centroids {
            starts[i + 1] += starts[i];
        }
        Ok(starts)
    }

    fn write(&mut self, starts: &[u64], memory: usize, out: &mut impl Write) -> io::Result<()> {
        let most = (memory / size_of::<u32>()).max(1) as u64;
        let mut first = 0;
        while first < self.centroids {
            // As many centroids as fit, at least one.
            let fits = starts[first + 1..].partition_point(|&end| end - starts[first] <= most);
            let last = first + fits.max(1);
            let mut lists = vec![0u32; (starts[last] - starts[first]) as usize];
            let mut at: Vec<u64> = starts[first..last]
                .iter()
                .map(|s| s - starts[first])
                .collect();
            self.each(first..last, |passage, code| {
                let at = &mut at[code - first];
                lists[*at as usize] = passage;
                *at += 1;
            })?;
            out.write_all(bytemuck::cast_slice(&lists))?;
            first = last;
        }
        Ok(())
    }

    /// Calls `f` once for every passage and every centroid of `wanted` that it has.
    fn each(
        &mut self,
        wanted: std::ops::Range<usize>,
        mut f: impl FnMut(u32, usize),
    ) -> io::Result<()> {
        self.codes.rewind()?;
        let mut reader = BufReader::with_capacity(BUFFER, &mut self.codes);
        // The last passage in which each centroid was seen, counted from 1.
        let mut seen = vec![0u32; self.centroids];
        let mut codes: Vec<u16> = Vec::new();
        for (passage, rows) in self.row_starts.windows(2).enumerate() {
            codes.resize((rows[1] - rows[0]) as usize, 0);
            reader.read_exact(bytemuck::cast_slice_mut(&mut codes))?;
            for &code in &codes {
                let code = code as usize;
                if wanted.contains(&code) && seen[code] != passage as u32 + 1 {
                    seen[code] = passage as u32 + 1;
                    f(passage as u32, code);
                }
            }
        }
        Ok(())
    }
}

/// A new file in `folder` under a temporary name.
fn temporary(folder: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.suffix(atomic::TEMPORARY_SUFFIX);
    #[cfg(unix)]
    {
        // The umask of the process still applies.
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(folder)
}

/// Syncs a temporary file and gives it its name.
fn persist(file: NamedTempFile, folder: &Path, name: &Path) -> io::Result<()> {
    file.as_file().sync_all()?;
    file.persist(folder.join(name)).map_err(|e| e.error)?;
    atomic::sync_folder(folder)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::directory::open_folder;
    use super::super::files::FileState;
    use super::super::segment::SegmentFile;
    use super::super::{SEGMENTS, files::FileRecord};
    use super::*;

    const BYTES: usize = 5;

    /// Codes of the passages of each file, as they were given.
    type Given = Vec<Vec<Vec<u16>>>;

    fn write(store: &Path, given: &Given, memory: usize, with_ids: bool) -> SegmentEntry {
        let folder = store.join(SEGMENTS);
        std::fs::create_dir_all(&folder).unwrap();
        let shape = Shape {
            dim: 9,
            bits: 4,
            bytes_per_row: BYTES as u32,
            centroids: 7,
        };
        let mut w = SegmentWriter::create(&folder, shape, with_ids).unwrap();
        let mut id = 100;
        for (n, file) in given.iter().enumerate() {
            for codes in file {
                let ids = row_ids(id, codes);
                w.passage(id, codes, &packed(id, codes), &ids).unwrap();
                id += 3;
            }
            w.end_file(&record(n));
        }
        w.finish(&folder, 1, Some(1), memory).unwrap()
    }

    fn packed(id: u64, codes: &[u16]) -> Vec<u8> {
        let byte = |i: usize| (id as usize * 31 + i * 7) as u8;
        (0..codes.len() * BYTES).map(byte).collect()
    }

    fn row_ids(id: u64, codes: &[u16]) -> Vec<u32> {
        (0..codes.len())
            .map(|i| id as u32 * 100 + i as u32)
            .collect()
    }

    fn record(n: usize) -> FileRecord {
        FileRecord {
            key: format!("file {n}"),
            size: n as u64,
            modified: -1,
            hash: None,
            state: FileState::Read("text".into()),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(30))]
        #[test]
        fn a_segment_holds_what_was_written_however_little_memory_its_lists_get(
            given in prop::collection::vec(
                prop::collection::vec(prop::collection::vec(0u16..7, 0..20), 0..5), 0..5),
            memory in prop::sample::select(vec![0usize, 8, 40, 1 << 20]),
            with_ids: bool,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let entry = write(dir.path(), &given, memory, with_ids);
            let folder = dir.path().join(SEGMENTS);
            prop_assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
            let map = open_folder(&folder).unwrap();
            let file = SegmentFile::open(dir.path(), &map, &entry).unwrap();
            file.verify().unwrap();

            let records: Vec<FileRecord> = (0..given.len()).map(record).collect();
            prop_assert_eq!(file.records().unwrap(), records);
            let mut local = 0;
            let mut lists = vec![Vec::new(); 7];
            for (n, passages) in given.iter().enumerate() {
                let range = local..local + passages.len() as u32;
                prop_assert_eq!(file.passages_of(n as u32).unwrap(), range);
                for codes in passages {
                    let id = 100 + 3 * u64::from(local);
                    let rows = file.rows_of(local).unwrap();
                    prop_assert_eq!(file.id_of(local).unwrap(), id);
                    prop_assert_eq!(file.codes(rows.clone()).unwrap(), &codes[..]);
                    prop_assert_eq!(file.packed(rows.clone()).unwrap(), &packed(id, codes)[..]);
                    let ids = if with_ids { row_ids(id, codes) } else { Vec::new() };
                    prop_assert_eq!(file.row_ids(rows).unwrap(), &ids[..]);
                    for &code in codes {
                        let list: &mut Vec<u32> = &mut lists[code as usize];
                        if list.last() != Some(&local) {
                            list.push(local);
                        }
                    }
                    local += 1;
                }
            }
            prop_assert!(file.rows_of(local).is_err() && file.id_of(local).is_err());
            let starts = file.all::<u64>(section::POSTING_STARTS).unwrap();
            for (list, range) in lists.iter().zip(starts.windows(2)) {
                let range = range[0] as usize..range[1] as usize;
                let stored = file.part::<u32>(section::POSTINGS, range).unwrap();
                prop_assert_eq!(stored, &list[..]);
            }
        }
    }

    #[test]
    fn a_segment_that_is_not_finished_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let shape = Shape::of(None);
        let mut w = SegmentWriter::create(dir.path(), shape, true).unwrap();
        w.passage(1, &[], &[], &[]).unwrap();
        drop(w);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

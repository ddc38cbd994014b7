//! Sealed files: every byte that is read has been checked against a checksum
//! once since the file was opened, and opening costs next to nothing.
//!
//! ```text
//! body            any bytes
//! table           u32 for every 4096 bytes of the body: their CRC-32
//! footer, 24      "KFSEAL1\n", length of the body u64, CRC-32 of the table u32,
//!                 CRC-32 of the 20 bytes before u32
//! ```
//!
//! All integers are little-endian. A reader of some bytes checks the blocks that
//! they lie in, unless that was done before, so searching reads no page of the
//! file more than it needs.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use tantivy::directory::{AntiCallToken, FileHandle, OwnedBytes, TerminatingWrite};

use crate::error::Damage;

/// Bytes that share a checksum; the size of a page of memory.
const BLOCK: usize = 4096;
const MAGIC: &[u8; 8] = b"KFSEAL1\n";
const FOOTER: usize = 24;

/// What identifies the content of a sealed file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Seal {
    /// Length of the body.
    pub(crate) length: u64,
    /// CRC-32 of the checksums of its blocks.
    pub(crate) checksum: u32,
}

/// Writes a body, then seals it.
pub(crate) struct SealWriter<W> {
    inner: W,
    block: crc32fast::Hasher,
    /// Bytes of the current block so far.
    filled: usize,
    length: u64,
    table: Vec<u8>,
}

impl<W: Write> SealWriter<W> {
    pub(crate) fn new(inner: W) -> Self {
        Self {
            inner,
            block: crc32fast::Hasher::new(),
            filled: 0,
            length: 0,
            table: Vec::new(),
        }
    }

    /// Bytes of the body so far.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Fills the body with zeros up to a multiple of 64 bytes.
    pub(crate) fn align(&mut self) -> io::Result<()> {
        let rest = (self.length % 64) as usize;
        if rest > 0 {
            self.write_all(&[0; 64][rest..])?;
        }
        Ok(())
    }

    /// Writes the table and the footer, and gives the writer back.
    pub(crate) fn finish(mut self) -> io::Result<(Seal, W)> {
        let seal = self.seal()?;
        Ok((seal, self.inner))
    }

    fn seal(&mut self) -> io::Result<Seal> {
        if self.filled > 0 {
            self.end_block();
        }
        let seal = Seal {
            length: self.length,
            checksum: crc32fast::hash(&self.table),
        };
        self.inner.write_all(&self.table)?;
        let mut footer = Vec::with_capacity(FOOTER);
        footer.extend_from_slice(MAGIC);
        footer.extend_from_slice(&seal.length.to_le_bytes());
        footer.extend_from_slice(&seal.checksum.to_le_bytes());
        footer.extend_from_slice(&crc32fast::hash(&footer).to_le_bytes());
        self.inner.write_all(&footer)?;
        Ok(seal)
    }

    fn end_block(&mut self) {
        let block = std::mem::take(&mut self.block);
        self.table
            .extend_from_slice(&block.finalize().to_le_bytes());
        self.filled = 0;
    }

    fn absorb(&mut self, mut bytes: &[u8]) {
        self.length += bytes.len() as u64;
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK - self.filled));
            self.block.update(now);
            self.filled += now.len();
            if self.filled == BLOCK {
                self.end_block();
            }
            bytes = later;
        }
    }
}

impl<W: Write> Write for SealWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.absorb(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<W: TerminatingWrite> TerminatingWrite for SealWriter<W> {
    fn terminate_ref(&mut self, token: AntiCallToken) -> io::Result<()> {
        self.seal()?;
        self.inner.terminate_ref(token)
    }
}

/// An open sealed file.
pub(crate) struct Sealed {
    path: PathBuf,
    bytes: OwnedBytes,
    body: usize,
    seal: Seal,
    /// One bit for every block that was checked.
    checked: Vec<AtomicU64>,
}

impl Sealed {
    /// Opens the bytes of the file `path`; checks footer and table.
    pub(crate) fn open(path: PathBuf, bytes: OwnedBytes) -> io::Result<Self> {
        let damage = |what: &str| Damage::error(&path, what);
        let Some((rest, footer)) = bytes.as_slice().split_last_chunk::<FOOTER>() else {
            return Err(damage("it is too short"));
        };
        let checksum = u32_at(footer, 20);
        if &footer[..8] != MAGIC || crc32fast::hash(&footer[..20]) != checksum {
            return Err(damage("its last bytes are not those of a sealed file"));
        }
        let seal = Seal {
            length: u64_at(footer, 8),
            checksum: u32_at(footer, 16),
        };
        let body = usize::try_from(seal.length).unwrap_or(usize::MAX);
        let blocks = body.div_ceil(BLOCK);
        if body.checked_add(blocks * 4) != Some(rest.len()) {
            return Err(damage("its length is wrong"));
        }
        if crc32fast::hash(&rest[body..]) != seal.checksum {
            return Err(damage("its table of checksums is not what was written"));
        }
        let checked = (0..blocks.div_ceil(64))
            .map(|_| AtomicU64::new(0))
            .collect();
        Ok(Self {
            path,
            bytes,
            body,
            seal,
            checked,
        })
    }

    /// Where it lies.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What identifies its content.
    pub(crate) fn seal(&self) -> Seal {
        self.seal
    }

    /// Length of the body.
    pub(crate) fn length(&self) -> usize {
        self.body
    }

    /// Bytes of the body, checked; an error past the end or where they are not
    /// what was written.
    pub(crate) fn read(&self, range: Range<usize>) -> io::Result<&[u8]> {
        self.check(&range)?;
        Ok(&self.bytes.as_slice()[range])
    }

    /// [`Sealed::read`] by way of the open `file` itself, into `buffer`: the bytes take no
    /// room of the map, and a file cut short meanwhile is an error.
    pub(crate) fn read_into<'a>(
        &self,
        file: &File,
        range: Range<usize>,
        buffer: &'a mut Vec<u8>,
    ) -> io::Result<&'a [u8]> {
        self.check_bounds(&range)?;
        let blocks = blocks(&range);
        let unchecked = blocks.clone().any(|block| !self.is_checked(block));
        let around = if unchecked {
            blocks.start * BLOCK..self.body.min(blocks.end * BLOCK)
        } else {
            range.clone()
        };
        buffer.resize(around.len(), 0);
        read_exact_at(file, buffer, around.start as u64)?;
        if unchecked {
            for (block, content) in blocks.zip(buffer.chunks(BLOCK)) {
                self.check_content(block, content)?;
            }
        }
        Ok(&buffer[range.start - around.start..][..range.len()])
    }

    /// [`Sealed::read`] for readers that outlive this borrow.
    fn read_owned(&self, range: Range<usize>) -> io::Result<OwnedBytes> {
        self.check(&range)?;
        Ok(self.bytes.slice(range))
    }

    fn check(&self, range: &Range<usize>) -> io::Result<()> {
        self.check_bounds(range)?;
        for block in blocks(range) {
            if !self.is_checked(block) {
                let start = block * BLOCK;
                let end = self.body.min(start + BLOCK);
                self.check_content(block, &self.bytes.as_slice()[start..end])?;
            }
        }
        Ok(())
    }

    fn check_bounds(&self, range: &Range<usize>) -> io::Result<()> {
        if range.start <= range.end && range.end <= self.body {
            return Ok(());
        }
        Err(Damage::error(
            &self.path,
            format!("bytes {range:?} of {} were asked for", self.body),
        ))
    }

    fn is_checked(&self, block: usize) -> bool {
        self.checked[block / 64].load(Ordering::Relaxed) >> (block % 64) & 1 == 1
    }

    /// Checks what was read as a block, and notes it.
    #[cold]
    fn check_content(&self, block: usize, content: &[u8]) -> io::Result<()> {
        let wanted = u32_at(self.bytes.as_slice(), self.body + 4 * block);
        if crc32fast::hash(content) != wanted {
            let start = block * BLOCK;
            let end = start + content.len();
            return Err(Damage::error(
                &self.path,
                format!("bytes {start} to {end} are not what was written"),
            ));
        }
        self.checked[block / 64].fetch_or(1 << (block % 64), Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_read(file, buffer, offset)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buffer = &mut buffer[n..];
        offset += n as u64;
    }
    Ok(())
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealed({})", self.path.display())
    }
}

impl tantivy::HasLen for Sealed {
    fn len(&self) -> usize {
        self.body
    }
}

impl FileHandle for Sealed {
    fn read_bytes(&self, range: Range<usize>) -> io::Result<OwnedBytes> {
        self.read_owned(range)
    }
}

/// The blocks that some bytes lie in.
fn blocks(range: &Range<usize>) -> Range<usize> {
    let first = range.start / BLOCK;
    if range.is_empty() {
        return first..first;
    }
    first..range.end.div_ceil(BLOCK)
}

/// The u32 at byte `at`; panics past the end, as slices do.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

/// The u64 at byte `at`; panics past the end, as slices do.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(body: &[u8]) -> Vec<u8> {
        let mut w = SealWriter::new(Vec::new());
        // Uneven pieces, so that blocks begin and end within a write.
        for piece in body.chunks(1000) {
            w.write_all(piece).unwrap();
        }
        w.finish().unwrap().1
    }

    fn open(bytes: Vec<u8>) -> io::Result<Sealed> {
        Sealed::open("a".into(), OwnedBytes::new(bytes))
    }

    #[test]
    fn reads_what_was_written() {
        for length in [0, 1, 4095, 4096, 4097, 20_000] {
            let body: Vec<u8> = (0..length).map(|i| (i * 7 % 251) as u8).collect();
            let file = open(sealed(&body)).unwrap();
            assert_eq!(file.length(), length);
            assert_eq!(file.read(0..length).unwrap(), body);
            let middle = length / 3..length / 2;
            assert_eq!(file.read(middle.clone()).unwrap(), &body[middle]);
            assert!(file.read(0..length + 1).is_err());
        }
    }

    #[test]
    fn the_file_itself_gives_what_the_map_gives() {
        let body: Vec<u8> = (0..20_000).map(|i| (i * 7 % 251) as u8).collect();
        let mut good = tempfile::tempfile().unwrap();
        good.write_all(&sealed(&body)).unwrap();
        let mut buffer = Vec::new();
        let ends = [0, 1, 4095, 4096, 4097, 9000, 19_999, 20_000];
        for _ in 0..2 {
            let file = open(sealed(&body)).unwrap();
            for (i, start) in ends.into_iter().enumerate() {
                for end in ends[i..].iter().copied().rev() {
                    let got = file.read_into(&good, start..end, &mut buffer).unwrap();
                    assert_eq!(got, &body[start..end]);
                }
            }
        }
        let file = open(sealed(&body)).unwrap();
        assert!(file.read_into(&good, 5..20_001, &mut buffer).is_err());
        // What the file holds now counts, not what the map held when it was opened.
        let mut changed = sealed(&body);
        changed[5000] ^= 1;
        let mut bad = tempfile::tempfile().unwrap();
        bad.write_all(&changed).unwrap();
        assert!(file.read_into(&bad, 4200..4300, &mut buffer).is_err());
        assert_eq!(
            file.read_into(&bad, 0..4096, &mut buffer).unwrap(),
            &body[..4096]
        );
        bad.set_len(9000).unwrap();
        assert!(file.read_into(&bad, 8000..12_000, &mut buffer).is_err());
    }

    #[test]
    fn every_changed_byte_is_noticed_when_it_is_read() {
        let body: Vec<u8> = (0..9000).map(|i| (i % 256) as u8).collect();
        let good = sealed(&body);
        for at in (0..good.len()).step_by(13).chain(body.len()..good.len()) {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            let noticed = match open(bad) {
                Err(_) => true,
                Ok(file) => file.read(0..body.len()).is_err(),
            };
            assert!(noticed, "byte {at}");
            let mut short = good.clone();
            short.truncate(at);
            assert!(open(short).is_err(), "cut at {at}");
        }
        // A reader of other blocks is not disturbed.
        let mut bad = good.clone();
        bad[5000] ^= 1;
        let file = open(bad).unwrap();
        assert!(file.read(0..4096).is_ok());
        assert!(file.read(4096..4097).is_err());
    }
}

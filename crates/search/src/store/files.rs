//! What the store remembers of every file: enough to know whether it changed,
//! and why it gave no passages.
//!
//! The table of a segment holds for every file:
//!
//! ```text
//! size            u64
//! modified        i64, nanoseconds since 1970
//! state           u8: 0 read, 1 skipped, 2 failed; +128 if a hash follows
//! hash            BLAKE3 of the content, 32, if there is one
//! key             u32 length, then UTF-8
//! about           u32 length, then UTF-8: the format, or why it was not read
//! ```

use std::io;

use super::seal::{u32_at, u64_at};

/// What the store knows of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRecord {
    /// The key of the file (see [`crate::store::StoredPassage::key`]).
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// Last change before it was read, nanoseconds since 1970.
    pub modified: i64,
    /// BLAKE3 of its content; none where the content was not read.
    pub hash: Option<[u8; 32]>,
    /// What became of it.
    pub state: FileState,
}

/// What became of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileState {
    /// It was read, as this format.
    Read(String),
    /// It is nothing to read, and why.
    Skipped(String),
    /// It could not be read, and why.
    Failed(String),
}

const HASHED: u8 = 128;

impl FileRecord {
    /// Appends the record to a table.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let (state, about) = match &self.state {
            FileState::Read(s) => (0, s),
            FileState::Skipped(s) => (1, s),
            FileState::Failed(s) => (2, s),
        };
        out.extend_from_slice(&self.size.to_le_bytes());
        out.extend_from_slice(&self.modified.to_le_bytes());
        out.push(state | if self.hash.is_some() { HASHED } else { 0 });
        out.extend_from_slice(self.hash.as_ref().map_or(&[], |h| &h[..]));
        for text in [&self.key, about] {
            out.extend_from_slice(&(text.len() as u32).to_le_bytes());
            out.extend_from_slice(text.as_bytes());
        }
    }

    /// Reads the next record of a table and moves past it.
    pub(crate) fn read(table: &mut &[u8]) -> io::Result<Self> {
        let head = take(table, 17)?;
        let hash = if head[16] & HASHED == 0 {
            None
        } else {
            let mut hash = [0; 32];
            hash.copy_from_slice(take(table, 32)?);
            Some(hash)
        };
        let key = text(table)?;
        let about = text(table)?;
        Ok(Self {
            key,
            size: u64_at(head, 0),
            modified: u64_at(head, 8) as i64,
            hash,
            state: match head[16] & !HASHED {
                0 => FileState::Read(about),
                1 => FileState::Skipped(about),
                2 => FileState::Failed(about),
                _ => return Err(invalid()),
            },
        })
    }
}

fn text(table: &mut &[u8]) -> io::Result<String> {
    let length = u32_at(take(table, 4)?, 0) as usize;
    let bytes = take(table, length)?;
    String::from_utf8(bytes.to_vec()).map_err(|_| invalid())
}

fn take<'a>(table: &mut &'a [u8], n: usize) -> io::Result<&'a [u8]> {
    let (now, later) = table.split_at_checked(n).ok_or_else(invalid)?;
    *table = later;
    Ok(now)
}

fn invalid() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "its table of files is not one")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn records_come_back_and_no_bytes_panic(
            key in "\\PC{0,20}", about in "\\PC{0,20}", size: u64, modified: i64,
            hash: Option<[u8; 32]>, state in 0..3, cut: usize,
        ) {
            let state = match state {
                0 => FileState::Read(about),
                1 => FileState::Skipped(about),
                _ => FileState::Failed(about),
            };
            let record = FileRecord { key, size, modified, hash, state };
            let mut table = Vec::new();
            record.write(&mut table);
            record.write(&mut table);
            let mut rest = &table[..];
            prop_assert_eq!(&FileRecord::read(&mut rest).unwrap(), &record);
            prop_assert_eq!(&FileRecord::read(&mut rest).unwrap(), &record);
            prop_assert!(rest.is_empty());
            let mut short = &table[..cut % (table.len() / 2)];
            prop_assert!(FileRecord::read(&mut short).is_err());
        }
    }
}

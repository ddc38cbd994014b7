//! One writer: a lock on a file of the store, which the system releases when the
//! process ends, however it ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

use super::LOCK;
use crate::error::SearchError;

/// The right to write to a store; given back when dropped.
pub(crate) struct WriteLock {
    _file: File,
}

impl WriteLock {
    /// Takes the lock of the store in `store`; an error at once if another
    /// process (or another writer in this one) has it.
    pub(crate) fn take(store: &Path) -> Result<Self, SearchError> {
        let path = store.join(LOCK);
        let failed = |e| SearchError::write(&path, e);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(SearchError::Busy {
                    store: store.to_owned(),
                    holder: holder(&mut file),
                });
            }
            Err(TryLockError::Error(e)) => return Err(failed(e)),
        }
        // The number only serves the message above.
        let note = |file: &mut File| {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        note(&mut file).map_err(failed)?;
        Ok(Self { _file: file })
    }
}

/// The process that wrote its number into the file.
fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(20).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_writer_is_told_who_is_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = WriteLock::take(dir.path()).unwrap();
        let e = WriteLock::take(dir.path()).err().unwrap();
        let expected = format!("process {}", std::process::id());
        assert!(e.to_string().contains(&expected), "{e}");
        drop(first);
        WriteLock::take(dir.path()).unwrap();
    }
}

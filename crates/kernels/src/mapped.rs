//! Files read in place.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;

/// A file whose bytes are read from the disk as they are touched, so that a model of
/// several gigabytes opens at once and is shared by programs that read it.
///
/// The bytes begin at a page; what lies in the file need not be aligned.
#[derive(Debug)]
pub struct MappedFile {
    // Nothing can be mapped of an empty file.
    map: Option<Mmap>,
}

impl MappedFile {
    /// Maps a file for reading.
    ///
    /// While the map lives, no program may shorten the file: reading past its new end
    /// stops the process. Files that are replaced (renamed over) are safe: the map keeps
    /// the old one.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        if file.metadata()?.len() == 0 {
            return Ok(Self { map: None });
        }
        // SAFETY: the map is private to this process and only ever read as bytes, for
        // which any bit pattern is valid. That other programs do not shorten or change
        // the file meanwhile is the condition that `open` documents; model files are
        // written once, and then replaced, not edited.
        let map = unsafe { Mmap::map(&file)? };
        Ok(Self { map: Some(map) })
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_holds_what_the_file_holds() {
        let folder = std::env::temp_dir().join(format!("keyfold-mapped-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("file");
        let bytes: Vec<u8> = (0..10_000u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(&*MappedFile::open(&path).unwrap(), &bytes[..]);
        std::fs::write(&path, b"").unwrap();
        assert!(MappedFile::open(&path).unwrap().is_empty());
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(MappedFile::open(&path).is_err());
    }
}

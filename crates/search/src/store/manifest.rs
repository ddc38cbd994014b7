//! The manifest: the one file whose replacement is a commit.
//!
//! ```text
//! magic           "KFSTORE\n"
//! format          u32, the format of the whole store
//! length          u64, length of the content
//! content         JSON, see [`Manifest`]
//! checksum        BLAKE3 of all bytes before, 32
//! ```

use std::path::{Path, PathBuf};

use keyfold_core::{EncoderIdentity, atomic};

use super::seal::{Seal, u32_at, u64_at};
use super::{FORMAT, MANIFEST};
use crate::candidates::Tuned;
use crate::codebook::Bits;
use crate::error::SearchError;
use crate::fold::Folding;

const MAGIC: &[u8; 8] = b"KFSTORE\n";
const HEADER: usize = 20;
const CHECKSUM: usize = 32;

/// The state of a store: one commit.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Manifest {
    /// Grows by one with every commit.
    pub(crate) generation: u64,
    /// Which program wrote it; for people.
    pub(crate) program: String,
    /// Whose vectors the segments hold.
    pub(crate) encoder: EncoderIdentity,
    /// How many bits are kept of every entry of a vector.
    pub(crate) bits: Bits,
    /// How many rows at the head of each passage stand for all of it (see
    /// `Encoder::whole_text_rows`); such stores keep an id for every row.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) whole_text_rows: u32,
    /// How the rows of a text became fewer.
    #[serde(default, skip_serializing_if = "Folding::is_none")]
    pub(crate) fold: Folding,
    /// The folders and files that were indexed, as keys (see [`super::paths`]).
    pub(crate) roots: Vec<String>,
    /// How they were read, as the indexing pipeline wants it remembered.
    pub(crate) options: serde_json::Value,
    /// The id of the next new passage.
    pub(crate) next_passage: u64,
    /// The number of the next new segment or codebook.
    pub(crate) next_file: u64,
    /// That number when the store was made, by which a store is told from those that
    /// were rebuilt from it in the same folder.
    #[serde(default)]
    pub(crate) birth: u64,
    pub(crate) codebooks: Vec<CodebookEntry>,
    pub(crate) segments: Vec<SegmentEntry>,
    /// Short codes of the passages, if they were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) encodings: Option<EncodingsEntry>,
    /// How to search by meaning, if that was tuned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tuned: Option<Tuned>,
    /// The `meta.json` of the lexical index.
    pub(crate) lexical: String,
}

/// A codebook of the store.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct CodebookEntry {
    /// Number in its file name.
    pub(crate) number: u64,
    pub(crate) seal: Seal,
    /// How many tokens it was made for; far more ask for a new one.
    pub(crate) tokens: u64,
}

/// Encodings of the passages (see [`super::encodings`]).
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct EncodingsEntry {
    /// Number in the name of the file of the coder.
    pub(crate) number: u64,
    pub(crate) seal: Seal,
    /// How many passages it was made for; far more ask for a new one.
    pub(crate) passages: u64,
    /// The segments that have codes: number, seal of the codes.
    pub(crate) segments: Vec<(u64, Seal)>,
}

/// A vector segment of the store.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct SegmentEntry {
    /// Number in its file name.
    pub(crate) number: u64,
    pub(crate) seal: Seal,
    /// The codebook of its rows; none if it has no row.
    pub(crate) codebook: Option<u64>,
    pub(crate) passages: u32,
    pub(crate) tokens: u64,
    pub(crate) files: u32,
    /// Files of its table that are gone or have a newer version elsewhere, as
    /// runs (first, count), ascending.
    pub(crate) dead: Vec<(u32, u32)>,
    /// Passages of the dead files.
    pub(crate) dead_passages: u32,
    /// Files whose time changed without their content: (file, nanoseconds since
    /// 1970), ascending by file.
    pub(crate) touched: Vec<(u32, i64)>,
}

impl SegmentEntry {
    /// File name in the folder of segments.
    pub(crate) fn file(&self) -> PathBuf {
        segment_file(self.number)
    }
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// File name of the segment with a number.
pub(crate) fn segment_file(number: u64) -> PathBuf {
    format!("{number:08}.kfs").into()
}

/// File name of the codebook with a number.
pub(crate) fn codebook_file(number: u64) -> PathBuf {
    format!("{number:08}.kfc").into()
}

/// File name of the coder with a number.
pub(crate) fn coder_file(number: u64) -> PathBuf {
    format!("{number:08}.kfe").into()
}

/// File name of the codes that a coder made of a segment.
pub(crate) fn codes_file(coder: u64, segment: u64) -> PathBuf {
    format!("{coder:08}-{segment:08}.kff").into()
}

/// What this program calls itself in manifests.
pub(crate) fn program() -> String {
    concat!("keyfold ", env!("CARGO_PKG_VERSION")).to_owned()
}

impl Manifest {
    /// A store without content.
    pub(crate) fn empty(encoder: EncoderIdentity, bits: Bits) -> Self {
        Self {
            generation: 0,
            program: program(),
            encoder,
            bits,
            whole_text_rows: 0,
            fold: Folding::default(),
            roots: Vec::new(),
            options: serde_json::Value::Null,
            next_passage: 0,
            next_file: 1,
            birth: 1,
            codebooks: Vec::new(),
            segments: Vec::new(),
            encodings: None,
            tuned: None,
            lexical: String::new(),
        }
    }

    /// Reads the manifest of the store in `store`.
    pub(crate) fn read(store: &Path) -> Result<Self, SearchError> {
        let path = store.join(MANIFEST);
        let bytes = std::fs::read(&path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => SearchError::NoStore {
                store: store.to_owned(),
            },
            _ => SearchError::read(&path, e),
        })?;
        Self::parse(store, &bytes)
    }

    fn parse(store: &Path, bytes: &[u8]) -> Result<Self, SearchError> {
        let damaged = |what: &str| SearchError::Damaged {
            path: store.join(MANIFEST),
            what: what.to_owned(),
        };
        if bytes.len() < HEADER + CHECKSUM || &bytes[..8] != MAGIC {
            return Err(damaged("it is not a manifest"));
        }
        let (content, checksum) = bytes.split_at(bytes.len() - CHECKSUM);
        if blake3::hash(content).as_bytes() != checksum {
            return Err(damaged("its checksum is wrong"));
        }
        let found = u32_at(bytes, 8);
        if found != FORMAT {
            return Err(SearchError::Version {
                store: store.to_owned(),
                found,
                expected: FORMAT,
            });
        }
        let content = &content[HEADER..];
        if u64_at(bytes, 12) != content.len() as u64 {
            return Err(damaged("its length is wrong"));
        }
        serde_json::from_slice(content).map_err(|e| damaged(&e.to_string()))
    }

    /// Replaces the manifest of the store in `store`: the commit.
    pub(crate) fn write(&self, store: &Path) -> std::io::Result<()> {
        let content = serde_json::to_vec(self)?;
        let mut bytes = Vec::with_capacity(HEADER + content.len() + CHECKSUM);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&(content.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&content);
        let checksum = blake3::hash(&bytes);
        bytes.extend_from_slice(checksum.as_bytes());
        atomic::write(&store.join(MANIFEST), &bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let encoder = EncoderIdentity {
            name: "tiny".into(),
            hash: "00".into(),
            dim: 8,
        };
        let mut m = Manifest::empty(encoder, Bits::Four);
        m.segments.push(SegmentEntry {
            number: 3,
            seal: Seal {
                length: 10,
                checksum: 7,
            },
            codebook: Some(2),
            passages: 5,
            tokens: 50,
            files: 2,
            dead: vec![(1, 1)],
            dead_passages: 2,
            touched: vec![(0, -5)],
        });
        m
    }

    #[test]
    fn comes_back_and_every_changed_byte_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        manifest().write(dir.path()).unwrap();
        assert_eq!(Manifest::read(dir.path()).unwrap(), manifest());
        let good = std::fs::read(dir.path().join(MANIFEST)).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(Manifest::parse(dir.path(), &bad).is_err(), "byte {at}");
            assert!(
                Manifest::parse(dir.path(), &good[..at]).is_err(),
                "cut at {at}"
            );
        }
    }

    #[test]
    fn another_format_is_told_from_damage() {
        let dir = tempfile::tempdir().unwrap();
        manifest().write(dir.path()).unwrap();
        let mut bytes = std::fs::read(dir.path().join(MANIFEST)).unwrap();
        bytes.truncate(bytes.len() - CHECKSUM);
        bytes[8] = 99;
        let checksum = blake3::hash(&bytes);
        bytes.extend_from_slice(checksum.as_bytes());
        let e = Manifest::parse(dir.path(), &bytes).unwrap_err();
        assert!(matches!(e, SearchError::Version { found: 99, .. }), "{e}");
        assert!(e.to_string().contains("--rebuild"), "{e}");
    }
}

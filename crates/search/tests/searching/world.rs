//! A small store to search in, and a model that knows a few synonyms.

use std::ops::Range;
use std::path::PathBuf;

use keyfold_core::{EncodeError, Encoder, EncoderIdentity, Role, Vectors};
use keyfold_data::Passage;
use keyfold_search::codebook::Bits;
use keyfold_search::store::{FileRecord, FileState, Rows, Snapshot, Writer, WriterOptions};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use unicode_segmentation::UnicodeSegmentation;

/// Gives every word a random direction, synonyms the same one, and every row of a
/// passage a little of the word before.
pub(crate) struct TinyModel {
    identity: EncoderIdentity,
}

const DIM: usize = 24;
const SYNONYMS: [(&str, &str); 3] = [
    ("automobile", "car"),
    ("physician", "doctor"),
    ("repaired", "fixed"),
];
const LIGHT: [&str; 6] = ["the", "a", "of", "was", "by", "in"];

impl TinyModel {
    pub(crate) fn new() -> Self {
        Self::named("tiny", "1")
    }

    pub(crate) fn named(name: &str, hash: &str) -> Self {
        Self {
            identity: EncoderIdentity {
                name: name.to_owned(),
                hash: hash.to_owned(),
                dim: DIM,
            },
        }
    }

    pub(crate) fn one(&self, text: &str, role: Role) -> Vectors {
        self.encode(&[text], role).unwrap().remove(0)
    }
}

fn direction(word: &str) -> Vec<f32> {
    let word = word.to_lowercase();
    let word = SYNONYMS
        .iter()
        .find(|(s, _)| *s == word)
        .map_or(&*word, |s| s.1);
    let seed = word
        .bytes()
        .fold(7u64, |h, b| h.wrapping_mul(0x100_0000_01b3) ^ u64::from(b));
    let mut rng = SmallRng::seed_from_u64(seed);
    (0..DIM).map(|_| rng.random_range(-1.0..1.0)).collect()
}

impl Encoder for TinyModel {
    fn identity(&self) -> &EncoderIdentity {
        &self.identity
    }

    fn encode(&self, texts: &[&str], role: Role) -> Result<Vec<Vectors>, EncodeError> {
        let encode = |text: &&str| {
            let mut rows = Vec::new();
            let mut before = vec![0.0; DIM];
            for word in text.unicode_words() {
                let this = direction(word);
                let context = if role == Role::Document { 0.2 } else { 0.0 };
                rows.extend(this.iter().zip(&before).map(|(t, b)| t + context * b));
                before = this;
            }
            let mut rows = Vectors::new(DIM, rows).unwrap().normalized().into_vec();
            if role == Role::Query {
                for (row, word) in rows.chunks_exact_mut(DIM).zip(text.unicode_words()) {
                    let weight = if LIGHT.contains(&&*word.to_lowercase()) {
                        0.05
                    } else {
                        1.0
                    };
                    row.iter_mut().for_each(|x| *x *= weight);
                }
            }
            Vectors::new(DIM, rows).unwrap()
        };
        Ok(texts.iter().map(encode).collect())
    }

    fn spans(&self, text: &str, _: Role) -> Result<Vec<Option<Range<usize>>>, EncodeError> {
        let words = text.unicode_word_indices();
        Ok(words.map(|(at, word)| Some(at..at + word.len())).collect())
    }
}

/// A file to be.
pub(crate) struct File<'a> {
    pub(crate) key: &'a str,
    pub(crate) format: &'a str,
    /// Seconds since 1970.
    pub(crate) modified: i64,
    /// Heading (or none) and text of every passage.
    pub(crate) passages: Vec<(&'a str, &'a str)>,
}

pub(crate) fn file<'a>(key: &'a str, passages: &[&'a str]) -> File<'a> {
    File {
        key,
        format: "markdown",
        modified: 0,
        passages: passages.iter().map(|p| ("", *p)).collect(),
    }
}

/// A store in a folder of its own.
pub(crate) struct World {
    folder: tempfile::TempDir,
    bits: Bits,
    pub(crate) model: TinyModel,
}

impl World {
    pub(crate) fn new(files: &[File<'_>]) -> Self {
        Self::with_bits(Bits::Four, files)
    }

    pub(crate) fn with_bits(bits: Bits, files: &[File<'_>]) -> Self {
        let world = Self {
            folder: tempfile::tempdir().unwrap(),
            bits,
            model: TinyModel::new(),
        };
        world.change(files, &[]);
        world
    }

    /// Adds or replaces files and removes others, in one commit.
    pub(crate) fn change(&self, files: &[File<'_>], removed: &[&str]) {
        let store = self.store();
        let options = WriterOptions {
            bits: Some(self.bits),
            ..WriterOptions::default()
        };
        let mut writer = Writer::open(&store, self.model.identity(), &options).unwrap();
        for key in removed {
            assert!(writer.remove_file(key));
        }
        for file in files {
            self.add(&mut writer, file);
        }
        writer.commit().unwrap();
    }

    fn add(&self, writer: &mut Writer, file: &File<'_>) {
        let modified = file.modified * 1_000_000_000;
        let mut passages = Vec::new();
        let mut counts = Vec::new();
        let mut rows = Vec::new();
        for &(heading, text) in &file.passages {
            let passage = Passage {
                text: text.to_owned(),
                headings: if heading.is_empty() {
                    vec![]
                } else {
                    vec![heading.to_owned()]
                },
                lines: 1..2,
                part: None,
                bytes: 0..text.len() as u64,
            };
            let vectors = self.model.one(&passage.searchable().0, Role::Document);
            counts.push(vectors.rows());
            rows.extend(vectors.into_vec());
            passages.push(passage);
        }
        writer.begin_file(file.key);
        writer
            .add_passages(
                file.format,
                modified,
                &passages,
                &counts,
                Rows::Raw(&rows),
                &[],
            )
            .unwrap();
        writer
            .end_file(FileRecord {
                key: file.key.to_owned(),
                size: 1,
                modified,
                hash: None,
                state: FileState::Read(file.format.to_owned()),
            })
            .unwrap();
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.folder.path().join(".keyfold")
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot::open(&self.store()).unwrap()
    }
}

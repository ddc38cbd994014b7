//! A tiny encoder and folders for the tests of the store.
// Every test uses a part of it, and unwraps as tests do.
#![allow(dead_code, clippy::unwrap_used)]

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use keyfold_core::{EncodeError, Encoder, EncoderIdentity, Role, Vectors};
use keyfold_search::store::Snapshot;

/// Length of the vectors of [`Words`].
pub(crate) const DIM: usize = 16;

/// Gives every word a vector that depends on nothing but the word.
pub(crate) struct Words {
    identity: EncoderIdentity,
    /// Texts that were encoded.
    pub(crate) encoded: AtomicUsize,
    /// Texts with this word cannot be encoded.
    pub(crate) poison: Option<&'static str>,
}

impl Words {
    pub(crate) fn named(name: &str) -> Self {
        Self {
            identity: EncoderIdentity {
                name: name.to_owned(),
                hash: format!("hash of {name}"),
                dim: DIM,
            },
            encoded: AtomicUsize::new(0),
            poison: None,
        }
    }

    pub(crate) fn new() -> Self {
        Self::named("words")
    }

    /// The model of this name after its weights have changed.
    pub(crate) fn changed(name: &str) -> Self {
        let mut changed = Self::named(name);
        changed.identity.hash.push_str(", changed");
        changed
    }

    pub(crate) fn count(&self) -> usize {
        self.encoded.load(Ordering::Relaxed)
    }
}

/// The vector of a word, of length one.
pub(crate) fn vector(word: &str) -> Vec<f32> {
    let mut state = word.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut v: Vec<f32> = (0..DIM)
        .map(|_| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1u32 << 24) as f32 - 0.5
        })
        .collect();
    let norm = v.iter().map(|x| x * x).sum::<f32>().sqrt();
    v.iter_mut().for_each(|x| *x /= norm);
    v
}

impl Encoder for Words {
    fn identity(&self) -> &EncoderIdentity {
        &self.identity
    }

    fn encode(&self, texts: &[&str], _: Role) -> Result<Vec<Vectors>, EncodeError> {
        self.encoded.fetch_add(texts.len(), Ordering::Relaxed);
        let one = |text: &&str| {
            if self.poison.is_some_and(|p| text.contains(p)) {
                return Err(EncodeError::Tokenizer {
                    model: self.identity.name.clone(),
                    reason: "poison".to_owned(),
                });
            }
            let rows = text.split_whitespace().flat_map(vector).collect();
            Ok(Vectors::new(DIM, rows).unwrap())
        };
        texts.iter().map(one).collect()
    }

    fn spans(&self, text: &str, _: Role) -> Result<Vec<Option<Range<usize>>>, EncodeError> {
        Ok(vec![None; text.split_whitespace().count()])
    }
}

/// Words for texts, drawn by a simple generator.
pub(crate) fn text(seed: usize, words: usize) -> String {
    let mut state = seed as u64 * 2 + 1;
    let mut out = String::new();
    for i in 0..words {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        out.push_str(&format!("word{}", (state >> 33) % 500));
        out.push_str(if i % 10 == 9 { ".\n" } else { " " });
    }
    out
}

/// Writes a file that lies in the past, so that its time is taken at its word.
pub(crate) fn write_old(path: &Path, text: &str, seconds: u64) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
    set_time(path, seconds);
}

/// Gives a file a time, seconds since 2001.
pub(crate) fn set_time(path: &Path, seconds: u64) {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(978_307_200 + seconds);
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_modified(time).unwrap();
}

/// The texts of all passages of a file, in order.
pub(crate) fn passages_of(snapshot: &Snapshot, key: &str) -> Vec<String> {
    all_passages(snapshot)
        .into_iter()
        .filter(|p| p.1 == key)
        .map(|p| p.2)
        .collect()
}

/// Id, key and text of every passage of the vector segments that is live, by id.
pub(crate) fn all_passages(snapshot: &Snapshot) -> Vec<(u64, String, String)> {
    let mut all = Vec::new();
    for segment in snapshot.segments() {
        for local in 0..segment.passages() as u32 {
            if segment.is_live(local) {
                let id = segment.passage_id(local).unwrap();
                let p = snapshot
                    .passage(id)
                    .unwrap()
                    .expect("a live passage has its text");
                all.push((id, p.key, p.passage.text));
            }
        }
    }
    all.sort();
    all
}

/// Checks that everything in a snapshot belongs together: every live passage of
/// the vector segments has its text and the other way round, its vectors are
/// those of its text, it is in the lists of its centroids, and the passages of a
/// file are consecutive. Gives the keys of the files with passages.
pub(crate) fn assert_whole(snapshot: &Snapshot) -> Vec<String> {
    let mut files: Vec<(String, Vec<u64>)> = Vec::new();
    let mut live = 0;
    for segment in snapshot.segments() {
        let codebook = segment.codebook();
        for local in 0..segment.passages() as u32 {
            let rows = segment.rows(local).unwrap();
            let codes = segment.codes(rows.clone()).unwrap();
            for &code in codes {
                assert!(
                    segment
                        .postings(code)
                        .unwrap()
                        .binary_search(&local)
                        .is_ok()
                );
            }
            let id = segment.passage_id(local).unwrap();
            assert_eq!(segment.find(id).unwrap(), Some(local));
            if !segment.is_live(local) {
                continue;
            }
            live += 1;
            let stored = snapshot.passage(id).unwrap().expect("live");
            assert_eq!(stored.id, id);
            let text = stored.passage.searchable().0;
            let words: Vec<&str> = text.split_whitespace().collect();
            assert_eq!(words.len(), rows.len(), "rows of {text:?}");
            let mut decoded = Vec::new();
            codebook.decode(codes, segment.packed(rows).unwrap(), &mut decoded);
            // Four bits blur single entries; another text's vectors would give
            // cosines around zero.
            let cosines: f32 = words
                .iter()
                .zip(decoded.chunks_exact(DIM))
                .map(|(word, row)| {
                    vector(word)
                        .iter()
                        .zip(row)
                        .map(|(a, b)| a * b)
                        .sum::<f32>()
                })
                .sum();
            assert!(cosines >= 0.85 * words.len() as f32, "vectors of {text:?}");
            match files.iter_mut().find(|f| f.0 == stored.key) {
                Some(file) => file.1.push(id),
                None => files.push((stored.key, vec![id])),
            }
        }
    }
    assert_eq!(
        live,
        snapshot.passage_count(),
        "passages with text and with vectors"
    );
    for (key, ids) in &mut files {
        ids.sort_unstable();
        assert!(
            ids.windows(2).all(|w| w[0] + 1 == w[1]),
            "passages of {key}"
        );
    }
    let mut keys: Vec<String> = files.into_iter().map(|f| f.0).collect();
    keys.sort();
    keys
}

/// All files of a folder and below, by path.
pub(crate) fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(files_below(&path));
        } else {
            all.push(path);
        }
    }
    all.sort();
    all
}

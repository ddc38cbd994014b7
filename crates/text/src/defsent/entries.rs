//! Vectors of the entries of a dictionary, made of their definitions; the entries that fit a
//! description.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use keyfold_core::{EncodeError, Encoder, Progress, atomic};
use keyfold_kernels as kernels;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use super::Dictionary;
use crate::SentenceEncoder;

/// Definitions that are tokenised at once.
const BLOCK: usize = 4096;
/// Version of the file of vectors.
const VERSION: &str = "1";
const TENSOR: &str = "entries";

/// Why there are no vectors of entries.
#[derive(Debug, thiserror::Error)]
pub enum EntriesError {
    /// The encoder could not read a definition.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The dictionary is too small.
    #[error(
        "the dictionary has {0} entries; at least 2 are needed, each with a TAB and a definition"
    )]
    TooFew(usize),
    /// The vectors could not be made independent.
    #[error("the vectors of the entries cannot be made independent: {0}")]
    Independent(&'static str),
    /// The user asked to stop.
    #[error("stopped before all entries had their vectors")]
    Cancelled,
    /// The file of vectors could not be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// One vector per entry, `[entries, dim]`: the mean over its definitions of their pooled
/// vectors. Definitions of any length are read together, packed without padding.
///
/// # Errors
/// When there are fewer than 2 entries, the encoder fails or the user stops it.
pub fn embed(
    encoder: &SentenceEncoder,
    dictionary: &Dictionary,
    progress: &dyn Progress,
) -> Result<Vec<f32>, EntriesError> {
    let entries = dictionary.entries();
    if entries.len() < 2 {
        return Err(EntriesError::TooFew(entries.len()));
    }
    let dim = encoder.identity().dim;
    let all: Vec<(usize, &str)> = (entries.iter().enumerate())
        .flat_map(|(i, e)| e.definitions.iter().map(move |d| (i, d.as_str())))
        .collect();
    let mut vectors = vec![0.0; entries.len() * dim];
    progress.start("entries", "definitions", Some(all.len() as u64));
    for block in all.chunks(BLOCK) {
        if progress.cancelled() {
            progress.finish();
            return Err(EntriesError::Cancelled);
        }
        let texts: Vec<&str> = block.iter().map(|(_, text)| *text).collect();
        let pooled = encoder.pooled(&texts)?;
        for ((entry, _), row) in block.iter().zip(pooled.chunks_exact(dim)) {
            kernels::add_assign(&mut vectors[entry * dim..(entry + 1) * dim], row);
        }
        progress.advance(block.len() as u64);
    }
    progress.finish();
    for (entry, row) in entries.iter().zip(vectors.chunks_exact_mut(dim)) {
        let share = 1.0 / entry.definitions.len() as f32;
        row.iter_mut().for_each(|x| *x *= share);
    }
    Ok(vectors)
}

/// [`embed`], kept in `file`: read from there when it holds those of the same encoder and
/// dictionary, else made and written.
///
/// # Errors
/// As [`embed`], and when the file cannot be written.
pub fn embed_cached(
    encoder: &SentenceEncoder,
    dictionary: &Dictionary,
    file: &Path,
    progress: &dyn Progress,
) -> Result<Vec<f32>, EntriesError> {
    let shape = [dictionary.entries().len(), encoder.identity().dim];
    let of = [
        ("encoder", encoder.identity().hash.clone()),
        ("dictionary", dictionary.checksum()),
    ];
    kept(file, &of, shape, || embed(encoder, dictionary, progress))
}

/// A matrix that is kept in `file`: read from there when the file is whole and `of` the
/// same, else made and written.
pub(super) fn kept(
    file: &Path,
    of: &[(&str, String)],
    shape: [usize; 2],
    make: impl FnOnce() -> Result<Vec<f32>, EntriesError>,
) -> Result<Vec<f32>, EntriesError> {
    let version = [("version".to_owned(), VERSION.to_owned())];
    let of = of
        .iter()
        .map(|(key, value)| ((*key).to_owned(), value.clone()));
    let mut told: HashMap<String, String> = of.chain(version).collect();
    // Whatever is wrong with it, it can be made again.
    if let Some(vectors) = std::fs::read(file)
        .ok()
        .and_then(|bytes| read(&bytes, &told, &shape))
    {
        return Ok(vectors);
    }
    let vectors = make()?;
    let error = |source| EntriesError::Write {
        path: file.to_owned(),
        source,
    };
    let bytes: Vec<u8> = vectors.iter().flat_map(|x| x.to_le_bytes()).collect();
    told.insert("checksum".to_owned(), blake3::hash(&bytes).to_string());
    let whole = TensorView::new(Dtype::F32, shape.to_vec(), &bytes)
        .and_then(|view| safetensors::serialize([(TENSOR, view)], Some(told)))
        .map_err(|e| error(std::io::Error::other(e)))?;
    atomic::write(file, &whole).map_err(error)?;
    Ok(vectors)
}

fn read(bytes: &[u8], known: &HashMap<String, String>, shape: &[usize]) -> Option<Vec<f32>> {
    let (_, head) = SafeTensors::read_metadata(bytes).ok()?;
    let told = head.metadata().as_ref()?;
    if known
        .iter()
        .any(|(key, value)| told.get(key) != Some(value))
    {
        return None;
    }
    let file = SafeTensors::deserialize(bytes).ok()?;
    let tensor = file.tensor(TENSOR).ok()?;
    let checksum = blake3::hash(tensor.data()).to_string();
    if tensor.shape() != shape
        || tensor.dtype() != Dtype::F32
        || told.get("checksum") != Some(&checksum)
    {
        return None;
    }
    let (numbers, _) = tensor.data().as_chunks::<4>();
    Some(numbers.iter().map(|n| f32::from_le_bytes(*n)).collect())
}

/// Finds the entries that fit a description: the nearest by cosine.
pub struct ReverseDictionary {
    encoder: SentenceEncoder,
    dictionary: Dictionary,
    /// Of length one, `[entries, dim]`.
    vectors: Vec<f32>,
}

impl ReverseDictionary {
    /// From an encoder, a dictionary and [the vectors](embed) of its entries.
    ///
    /// # Panics
    /// When there are not as many vectors as entries.
    pub fn new(encoder: SentenceEncoder, dictionary: Dictionary, mut vectors: Vec<f32>) -> Self {
        let dim = encoder.identity().dim;
        assert_eq!(
            vectors.len(),
            dictionary.entries().len() * dim,
            "ReverseDictionary::new: a vector for each entry"
        );
        kernels::normalize_rows(&mut vectors, dim);
        Self {
            encoder,
            dictionary,
            vectors,
        }
    }

    /// The `k` entries that fit `text` best, with their cosines, best first.
    ///
    /// # Errors
    /// When the encoder fails.
    pub fn define(&self, text: &str, k: usize) -> Result<Vec<(&str, f32)>, EncodeError> {
        let mut query = self.encoder.pooled(&[text])?;
        let (dim, entries) = (query.len(), self.dictionary.entries());
        kernels::normalize_rows(&mut query, dim);
        let mut scores = vec![0.0; entries.len()];
        kernels::matmul_nt(&mut scores, &query, &self.vectors, 1, entries.len(), dim, 1);
        let best = kernels::top_k(&scores, k);
        let named = best.into_iter();
        Ok(named
            .map(|(score, i)| (entries[i as usize].words.as_str(), score))
            .collect())
    }
}

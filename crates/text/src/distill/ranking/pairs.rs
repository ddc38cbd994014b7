//! Pairs that a student learns to rank, with what its teacher says of them.

use std::collections::HashMap;
use std::path::Path;

use half::f16;
use keyfold_core::{Encoder, Progress, Role, atomic};
use keyfold_kernels as kernels;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use tokenizers::Tokenizer;

use super::super::{DistillError, io};
use crate::SentenceEncoder;
use crate::builtin::words;

/// Texts that the teacher reads at a time.
const TEXTS: usize = 256;

/// Pairs as tokens, and the teacher's vectors of length one for both sides.
pub struct RankingPairs {
    /// Token ids of each query.
    pub queries: Vec<Vec<u32>>,
    /// Token ids of each document.
    pub documents: Vec<Vec<u32>>,
    /// `[pairs, dim]`
    pub query_vectors: Vec<f32>,
    /// `[pairs, dim]`
    pub document_vectors: Vec<f32>,
}

impl RankingPairs {
    /// Lets the teacher read both sides of `pairs` (query, document), or takes what it said in an
    /// earlier run from `cache`.
    pub(in crate::distill) fn make(
        reader: &Tokenizer,
        teacher: &SentenceEncoder,
        pairs: &[(&str, &str)],
        cache: &Path,
        progress: &dyn Progress,
    ) -> Result<Self, DistillError> {
        let sides = pairs
            .iter()
            .flat_map(|&(query, document)| [query, document]);
        let texts: Vec<&str> = sides.collect();
        let mut ids = Vec::with_capacity(texts.len());
        for text in &texts {
            let pieces = words::pieces(reader, text);
            ids.push(pieces.map_err(|what| DistillError::Config { what })?);
        }
        let vectors = teacher_vectors(teacher, &texts, cache, progress)?;
        let dim = vectors.len() / texts.len().max(1);
        let side = |side: usize| {
            let rows = vectors.chunks_exact(dim.max(1)).skip(side).step_by(2);
            rows.flatten().copied().collect()
        };
        let mut sides = [Vec::new(), Vec::new()];
        for (number, ids) in ids.into_iter().enumerate() {
            sides[number % 2].push(ids);
        }
        let [queries, documents] = sides;
        Ok(Self {
            queries,
            documents,
            query_vectors: side(0),
            document_vectors: side(1),
        })
    }

    fn dim(&self) -> usize {
        self.query_vectors.len() / self.queries.len().max(1)
    }

    fn vector<'a>(&self, of: &'a [f32], pair: usize) -> &'a [f32] {
        let dim = self.dim();
        &of[pair * dim..(pair + 1) * dim]
    }

    /// The pairs of a pool whose documents are nearest to that of its first pair, which
    /// comes first.
    pub(super) fn near(&self, pool: &[usize], count: usize) -> Vec<usize> {
        let first = self.vector(&self.document_vectors, pool[0]);
        let mut all: Vec<(f32, usize)> = pool
            .iter()
            .map(|&pair| {
                let vector = self.vector(&self.document_vectors, pair);
                (kernels::dot(first, vector), pair)
            })
            .collect();
        all[1..].sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        all.truncate(count);
        all.into_iter().map(|(_, pair)| pair).collect()
    }

    /// `<T(q), T(d)>` of some pairs' queries and documents, `[pairs, pairs]`.
    pub(super) fn teacher_scores(&self, pairs: &[usize]) -> Vec<f32> {
        let rows = |of: &[f32]| -> Vec<f32> {
            let rows = pairs.iter().flat_map(|&pair| self.vector(of, pair));
            rows.copied().collect()
        };
        let (queries, documents) = (rows(&self.query_vectors), rows(&self.document_vectors));
        let n = pairs.len();
        let mut scores = vec![0.0; n * n];
        kernels::matmul_nt(&mut scores, &queries, &documents, n, n, self.dim(), 1);
        scores
    }
}

/// The teacher's vectors of texts, `[texts, dim]`, of length one. `cache` keeps them.
fn teacher_vectors(
    teacher: &SentenceEncoder,
    texts: &[&str],
    cache: &Path,
    progress: &dyn Progress,
) -> Result<Vec<f32>, DistillError> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(teacher.identity().hash.as_bytes());
    for text in texts {
        hasher.update(blake3::hash(text.as_bytes()).as_bytes());
    }
    let key = hasher.finalize().to_hex().to_string();
    if let Some(vectors) = read_vectors(cache, &key) {
        progress.note(&format!(
            "using the teacher's vectors in {}",
            cache.display()
        ));
        return Ok(vectors);
    }
    let mut vectors: Vec<f16> = Vec::new();
    progress.start("teacher reads", "texts", Some(texts.len() as u64));
    for chunk in texts.chunks(TEXTS) {
        if progress.cancelled() {
            return Err(DistillError::Cancelled);
        }
        for text in teacher.encode(chunk, Role::Document)? {
            let mut text = text.into_vec();
            let dim = text.len();
            kernels::normalize_rows(&mut text, dim);
            vectors.extend(text.into_iter().map(f16::from_f32));
        }
        progress.advance(chunk.len() as u64);
    }
    progress.finish();
    let dim = vectors.len() / texts.len().max(1);
    let bytes: Vec<u8> = vectors.iter().flat_map(|x| x.to_le_bytes()).collect();
    let written = TensorView::new(Dtype::F16, vec![texts.len(), dim], &bytes)
        .and_then(|view| {
            let metadata = HashMap::from([("key".to_owned(), key)]);
            safetensors::serialize([("vectors", view)], Some(metadata))
        })
        .map_err(std::io::Error::other)
        .and_then(|bytes| atomic::write(cache, &bytes));
    written.map_err(io(cache))?;
    Ok(vectors.into_iter().map(f16::to_f32).collect())
}

/// What [`teacher_vectors`] has kept of the same texts.
fn read_vectors(path: &Path, key: &str) -> Option<Vec<f32>> {
    let bytes = std::fs::read(path).ok()?;
    let (_, header) = SafeTensors::read_metadata(&bytes).ok()?;
    if header.metadata().as_ref()?.get("key")? != key {
        return None;
    }
    let file = SafeTensors::deserialize(&bytes).ok()?;
    let halves = file.tensor("vectors").ok()?.data().chunks_exact(2);
    Some(
        halves
            .map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32())
            .collect(),
    )
}

//! The scores that a training imitates.

use keyfold_core::{Encoder, Progress, Role};
use keyfold_kernels::dot;
use keyfold_train::LearnError;

/// Texts that the teacher reads at once.
const CHUNK: usize = 256;

/// The teacher's vectors: those of several, one after the other.
pub(super) struct Teacher {
    pub(super) dim: usize,
    pub(super) queries: Vec<f32>,
    pub(super) documents: Vec<f32>,
}

impl Teacher {
    pub(super) fn new(
        teachers: &[&dyn Encoder],
        queries: &[&str],
        documents: &[&str],
        scale: f64,
        progress: &dyn Progress,
    ) -> Result<Self, LearnError> {
        let dims: Vec<usize> = teachers.iter().map(|t| t.identity().dim).collect();
        let dim: usize = dims.iter().sum();
        // The dot product of both sides is the mean cosine times the scale.
        let factor = (scale / teachers.len() as f64).sqrt() as f32;
        let total = (queries.len() + documents.len()) * teachers.len();
        progress.start("the teacher reads", "texts", Some(total as u64));
        let side = |texts: &[&str], role| -> Result<Vec<f32>, LearnError> {
            let mut all = vec![0.0; texts.len() * dim];
            let mut at = 0;
            for (teacher, width) in teachers.iter().zip(&dims) {
                for (chunk, texts) in texts.chunks(CHUNK).enumerate() {
                    if progress.cancelled() {
                        return Err(LearnError::Stopped);
                    }
                    let vectors = teacher
                        .encode(texts, role)
                        .map_err(|e| LearnError::Data(e.to_string()))?;
                    for (i, vector) in vectors.iter().enumerate() {
                        let row = vector.as_slice();
                        if row.len() != *width {
                            return Err(LearnError::Data(format!(
                                "'{}' gives {} vectors for a text; a teacher is a sentence \
                                 encoder, which gives one",
                                teacher.identity().name,
                                row.len() / width
                            )));
                        }
                        let start = (chunk * CHUNK + i) * dim + at;
                        let place = &mut all[start..start + width];
                        place.iter_mut().zip(row).for_each(|(p, x)| *p = x * factor);
                    }
                    progress.advance(texts.len() as u64);
                }
                at += width;
            }
            Ok(all)
        };
        let made = Self {
            dim,
            queries: side(queries, Role::Query)?,
            documents: side(documents, Role::Document)?,
        };
        progress.finish();
        Ok(made)
    }

    pub(super) fn query(&self, i: usize) -> &[f32] {
        &self.queries[i * self.dim..(i + 1) * self.dim]
    }

    pub(super) fn document(&self, i: usize) -> &[f32] {
        &self.documents[i * self.dim..(i + 1) * self.dim]
    }

    pub(super) fn score(&self, query: usize, document: usize) -> f32 {
        dot(self.query(query), self.document(document))
    }
}

//! An estimate of MaxSim that reads few rows of a passage.
//!
//! For every query row the row of the passage whose centroid is nearest stands
//! for all: `sum_i <q_i, d_j(i)>` with `j(i) = argmax_j <q_i, centroid of d_j>`.
//! The product is exact up to the length of the decoded row, which is not worth
//! computing here.

use std::hint::black_box;

use keyfold_kernels::{COARSE_LANES, CoarseRow, coarse_rows, nearest_codes};

use super::centroids::Probes;
use super::{Candidate, share};
use crate::error::SearchError;
use crate::score::Query;
use crate::store::Segment;

/// Products of centroids with the query rows in a byte each, by blocks of query
/// rows: small enough to stay in the second cache, where the tables are read in
/// any order.
pub(super) struct CoarseScores {
    /// For every block of query rows the scores of all centroids: 255 for a cosine
    /// of 1, 0 for 0 or less.
    blocks: Vec<Vec<CoarseRow>>,
    /// For every block what a score is multiplied by to become a byte.
    factors: Vec<Vec<f32>>,
}

impl CoarseScores {
    /// For so many centroids and query rows of these lengths; nothing is in yet.
    pub(super) fn new(centroids: usize, lengths: &[f32]) -> Self {
        let factor = |length: &f32| 255.0 / length.max(f32::MIN_POSITIVE);
        let factors = lengths.chunks(COARSE_LANES);
        let factors: Vec<Vec<f32>> = factors.map(|l| l.iter().map(factor).collect()).collect();
        Self {
            blocks: vec![vec![[0; COARSE_LANES]; centroids]; factors.len()],
            factors,
        }
    }

    /// Parts of so many centroids, to be filled by [`CoarsePart::fill`].
    pub(super) fn parts(&mut self, centroids: usize) -> Vec<CoarsePart<'_>> {
        let mut parts = Vec::new();
        for ((number, block), factors) in (0..).zip(&mut self.blocks).zip(&self.factors) {
            for (i, rows) in block.chunks_mut(centroids).enumerate() {
                if parts.len() == i {
                    parts.push(CoarsePart(Vec::new()));
                }
                parts[i].0.push((number * COARSE_LANES, factors, rows));
            }
        }
        parts
    }
}

/// Some centroids: for every block its first query row, its factors, and its scores.
pub(super) struct CoarsePart<'a>(Vec<(usize, &'a [f32], &'a mut [CoarseRow])>);

impl CoarsePart<'_> {
    /// From the scores of these centroids (`[centroids, rows]`).
    pub(super) fn fill(&mut self, scores: &[f32], rows: usize) {
        for (first, factors, out) in &mut self.0 {
            coarse_rows(scores, rows, *first, factors, out);
        }
    }
}

/// Sets the scores of candidates to their estimates; minus infinity for passages
/// without rows.
pub(super) fn estimate(
    segments: &[Segment],
    query: &Query,
    probes: &[Probes],
    candidates: &mut [Candidate],
    threads: usize,
) -> Result<(), SearchError> {
    share(candidates, threads, Default::default, |scratch, c| {
        let (bytes, scratch): &mut (Vec<u8>, Vec<f32>) = scratch;
        let segment = &segments[c.segment as usize];
        let rows = segment.rows(c.local)?;
        let codes = segment.codes(rows.clone())?;
        let packed = query.packed(segment, rows, bytes)?;
        let codebook = query.codebook_of(c.segment as usize);
        c.score = probes[codebook].estimate(query, codebook, codes, packed, scratch);
        Ok(())
    })?;
    Ok(())
}

impl Probes {
    fn estimate(
        &self,
        query: &Query,
        codebook: usize,
        codes: &[u16],
        packed: &[u8],
        scratch: &mut Vec<f32>,
    ) -> f32 {
        if codes.is_empty() {
            return f32::NEG_INFINITY;
        }
        let (codebook, query) = query.of_codebook(codebook);
        let (width, size) = (codebook.width(), codebook.bytes_per_row());
        let n = query.len() / width;
        let bytes = |row: usize| &packed[row * size..][..size];
        let mut sum = 0.0;
        for ((block, query), first) in self
            .coarse
            .blocks
            .iter()
            .zip(query.chunks(COARSE_LANES * width))
            .zip((0..).step_by(COARSE_LANES))
        {
            let here = query.len() / width;
            let nearest = nearest_codes(block, codes, here).map(|row| row as usize);
            // Asks for all rows before the first is worked on: they are far apart.
            let touch = |touched, &row: &usize| touched ^ bytes(row)[0] ^ bytes(row)[size - 1];
            black_box(nearest[..here].iter().fold(0, touch));
            for (i, query) in query.chunks_exact(width).enumerate() {
                let code = usize::from(codes[nearest[i]]);
                let centroid = self.scores[code * n + first + i];
                sum += codebook.product(query, centroid, bytes(nearest[i]), scratch);
            }
        }
        sum
    }
}

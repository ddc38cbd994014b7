//! An estimate of MaxSim that reads few rows of a passage.
//!
//! For every query row the row of the passage whose centroid is nearest stands
//! for all: `sum_i <q_i, d_j(i)>` with `j(i) = argmax_j <q_i, centroid of d_j>`.
//! The product is exact up to the length of the decoded row, which is not worth
//! computing here.

use std::hint::black_box;

use super::centroids::Probes;
use super::{Candidate, share};
use crate::error::SearchError;
use crate::score::Query;
use crate::store::Segment;

/// Query rows that are looked at together.
const LANES: usize = 16;

/// Products of centroids with the query rows in a byte each, by blocks of query
/// rows: small enough to stay in the second cache, where the tables are read in
/// any order.
pub(super) struct CoarseScores {
    /// For every block of query rows the scores of all centroids: 255 for a cosine
    /// of 1, 0 for 0 or less.
    blocks: Vec<Vec<[u8; LANES]>>,
}

impl CoarseScores {
    /// Of `scores` (`[centroids, lengths.len()]`) of query rows with these lengths.
    pub(super) fn new(scores: &[f32], lengths: &[f32]) -> Self {
        let n = lengths.len();
        let block = |first: usize| {
            let mut scale = [0.0; LANES];
            for (scale, length) in scale.iter_mut().zip(&lengths[first..]) {
                *scale = 255.0 / length.max(f32::MIN_POSITIVE);
            }
            let coarse = |row: &[f32]| {
                let mut coarse = [0; LANES];
                for ((c, s), scale) in coarse.iter_mut().zip(&row[first..]).zip(&scale) {
                    // The cast ends at 0 and 255.
                    *c = (s * scale) as u8;
                }
                coarse
            };
            scores.chunks_exact(n).map(coarse).collect()
        };
        Self {
            blocks: (0..n).step_by(LANES).map(block).collect(),
        }
    }
}

/// For each of `n` query rows the first row of the passage whose centroid has the
/// greatest score.
fn nearest_rows(scores: &[[u8; LANES]], codes: &[u16], n: usize) -> [usize; LANES] {
    // Lanes without a query row never match, since their scores are 0.
    let mut best = [u8::MAX; LANES];
    best[..n].fill(0);
    for &code in codes {
        let scores = &scores[usize::from(code)];
        for (best, &score) in best.iter_mut().zip(scores) {
            *best = score.max(*best);
        }
    }
    let mut nearest = [0; LANES];
    for (row, &code) in codes.iter().enumerate().rev() {
        let scores = &scores[usize::from(code)];
        let matches = scores.iter().zip(&best);
        // Few rows are the nearest of any.
        if matches.fold(false, |any, (s, b)| any | (s == b)) {
            for i in 0..n {
                if scores[i] == best[i] {
                    nearest[i] = row;
                }
            }
        }
    }
    nearest
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
    share(candidates, threads, Vec::new, |scratch, c| {
        let segment = &segments[c.segment as usize];
        let rows = segment.rows(c.local)?;
        let codes = segment.codes(rows.clone())?;
        let packed = segment.packed(rows)?;
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
            .zip(query.chunks(LANES * width))
            .zip((0..).step_by(LANES))
        {
            let here = query.len() / width;
            let nearest = nearest_rows(block, codes, here);
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

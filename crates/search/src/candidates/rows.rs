//! An estimate of MaxSim that reads few rows of a passage.
//!
//! For every query row the row of the passage whose centroid is nearest stands
//! for all: `sum_i <q_i, d_j(i)>` with `j(i) = argmax_j <q_i, centroid of d_j>`.
//! The product is exact up to the length of the decoded row, which is not worth
//! computing here.

use super::centroids::Probes;
use super::{Candidate, share};
use crate::error::SearchError;
use crate::score::Query;
use crate::store::Segment;

/// Query rows are handled in blocks of so many; missing ones are 0.
pub(super) const LANES: usize = 8;

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
        let size = codebook.bytes_per_row();
        let mut sum = 0.0;
        for (block, query) in query.chunks(LANES * codebook.width()).enumerate() {
            let nearest = self.nearest_rows(block * LANES, codes);
            for (query, (score, row)) in query.chunks_exact(codebook.width()).zip(nearest) {
                let packed = &packed[row as usize * size..][..size];
                sum += codebook.product(query, score, packed, scratch);
            }
        }
        sum
    }

    /// For the query rows from `first` on the greatest centroid score, and the
    /// first row of the passage that has it.
    fn nearest_rows(&self, first: usize, codes: &[u16]) -> [(f32, u32); LANES] {
        let mut best = [f32::NEG_INFINITY; LANES];
        let mut at = [0u32; LANES];
        for (row, &code) in (0u32..).zip(codes) {
            let scores = &self.scores[code as usize * self.lanes + first..][..LANES];
            for i in 0..LANES {
                // Without branches, so that all lanes are compared at once.
                let better = scores[i] > best[i];
                best[i] = if better { scores[i] } else { best[i] };
                at[i] = if better { row } else { at[i] };
            }
        }
        std::array::from_fn(|i| (best[i], at[i]))
    }
}

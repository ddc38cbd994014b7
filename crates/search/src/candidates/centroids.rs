//! The first two sieves, which know passages only by the centroids of their rows.
//!
//! *Probing.* Query row `i` names the `n` centroids `c` of greatest `<q_i, c>`;
//! let `m_i` be the least of these. A passage scores
//! `sum_i max(<q_i, c> - m_i)` over the named centroids that it has, 0 for a row
//! that meets none: as if what was not looked at were as good as the worst that
//! was (the imputation of XTR and WARP). The lists of passages are read in ranges of
//! passages, so that the sums stay in the cache and memory does not grow with
//! the store.
//!
//! *Interaction.* `sum_i max over rows j of the passage of <q_i, centroid of j>`.

use std::ops::Range;

use keyfold_kernels::{TopK, centroid_scores, norm};

use super::{Candidate, CandidateOptions, share};
use crate::codebook::Codebook;
use crate::error::SearchError;
use crate::filter::Allowed;
use crate::score::Query;
use crate::store::Segment;

/// Passages that are probed together.
const RANGE: u32 = 1 << 15;
/// Query rows are handled in blocks of so many; missing ones are 0.
const LANES: usize = 8;

/// A query against the centroids of a codebook.
pub(super) struct Probes {
    /// Query rows, rounded up to whole blocks.
    lanes: usize,
    /// `<q_i, c>`, `[centroids, lanes]`.
    scores: Vec<f32>,
    /// For every query row that is probed the centroids it names and what a
    /// passage gains by having them, best first.
    named: Vec<Vec<(u16, f32)>>,
}

/// Compares the query with the centroids of all codebooks.
pub(super) fn probes(query: &Query, options: &CandidateOptions) -> Vec<Probes> {
    query
        .by_codebook()
        .map(|(codebook, rows)| Probes::new(codebook, rows, options))
        .collect()
}

impl Probes {
    fn new(codebook: &Codebook, rows: &[f32], options: &CandidateOptions) -> Self {
        let (width, count) = (codebook.width(), codebook.count());
        let lanes = (rows.len() / width).next_multiple_of(LANES);
        let mut padded = rows.to_vec();
        padded.resize(lanes * width, 0.0);
        let mut scores = vec![0.0; count * lanes];
        centroid_scores(
            &padded,
            codebook.centroids(),
            lanes,
            count,
            width,
            &mut scores,
        );

        let lengths: Vec<f32> = rows.chunks_exact(width).map(norm).collect();
        let longest = lengths.iter().fold(0.0, |m: f32, &x| m.max(x));
        let probed = (0..lengths.len())
            .filter(|&i| lengths[i] > 0.0 && lengths[i] >= options.shortest * longest);
        let named = probed
            .map(|i| named(&scores, lanes, i, options.probes.max(1)))
            .collect();
        Self {
            lanes,
            scores,
            named,
        }
    }
}

/// The centroids that query row `i` names, and what they gain.
fn named(scores: &[f32], lanes: usize, i: usize, n: usize) -> Vec<(u16, f32)> {
    let mut top = TopK::new(n);
    let mut threshold = f32::NEG_INFINITY;
    for (code, row) in scores.chunks_exact(lanes).enumerate() {
        if row[i] > threshold {
            top.push(row[i], code as u64);
            threshold = top.threshold();
        }
    }
    let best = top.into_sorted();
    let least = best.last().map_or(0.0, |&(score, _)| score);
    // The least one must gain something too, or naming it would be idle.
    let margin = (best.first().map_or(0.0, |&(score, _)| score) - least) * 0.01 + f32::EPSILON;
    best.into_iter()
        .map(|(score, code)| (code as u16, score - least + margin))
        .collect()
}

/// The passages that the probes find, about `keep` best ones, in the order of the store.
pub(super) fn probe(
    segments: &[Segment],
    query: &Query,
    probes: &[Probes],
    allowed: Option<&Allowed>,
    keep: usize,
    threads: usize,
) -> Result<Vec<Candidate>, SearchError> {
    let mut ranges = Vec::new();
    for (number, segment) in segments.iter().enumerate() {
        let passages = segment.passages() as u32;
        let starts = (0..passages).step_by(RANGE as usize);
        ranges.extend(starts.map(|s| (number, s..passages.min(s.saturating_add(RANGE)))));
    }
    let found = share(
        &mut ranges,
        threads,
        Scratch::default,
        |scratch, (number, range)| {
            let probes = &probes[query.codebook_of(*number as u32)];
            scratch.collect(&segments[*number], probes, range)?;
            let mut found = scratch.found(range, |local| match allowed {
                Some(allowed) => allowed.in_segment(*number, local),
                None => segments[*number].is_live(local),
            });
            found.iter_mut().for_each(|c| c.segment = *number as u32);
            super::keep_best(&mut found, keep);
            Ok(found)
        },
    )?;
    let mut all = found.concat();
    super::keep_best(&mut all, keep);
    Ok(all)
}

/// Sums of a range of passages, reused from range to range.
#[derive(Default)]
struct Scratch {
    sums: Vec<f32>,
    /// The last query row, counted from 1, that added to each sum.
    added: Vec<u16>,
}

impl Scratch {
    /// Sums what the passages of a range gain.
    fn collect(
        &mut self,
        segment: &Segment,
        probes: &Probes,
        range: &Range<u32>,
    ) -> Result<(), SearchError> {
        self.sums.clear();
        self.sums.resize(range.len(), 0.0);
        self.added.clear();
        self.added.resize(range.len(), 0);
        for (i, named) in (1u16..).zip(&probes.named) {
            for &(code, gain) in named {
                let list = segment.postings(code)?;
                let list = &list[list.partition_point(|&p| p < range.start)..];
                let list = &list[..list.partition_point(|&p| p < range.end)];
                for &p in list {
                    let at = (p - range.start) as usize;
                    // The best centroid of a row comes first and alone counts.
                    let first = if self.added[at] == i { 0.0 } else { gain };
                    self.sums[at] += first;
                    self.added[at] = i;
                }
            }
        }
        Ok(())
    }

    /// The passages that can be selected, with their sums.
    fn found(&self, range: &Range<u32>, selectable: impl Fn(u32) -> bool) -> Vec<Candidate> {
        (range.clone().zip(&self.sums))
            .filter(|&(local, _)| selectable(local))
            .map(|(local, &score)| Candidate {
                score,
                segment: 0,
                local,
            })
            .collect()
    }
}

/// Sets the scores of candidates to their centroid interaction.
pub(super) fn interact(
    segments: &[Segment],
    query: &Query,
    probes: &[Probes],
    candidates: &mut [Candidate],
    threads: usize,
) -> Result<(), SearchError> {
    share(
        candidates,
        threads,
        || (),
        |(), c| {
            let segment = &segments[c.segment as usize];
            let codes = segment.codes(segment.rows(c.local)?)?;
            c.score = probes[query.codebook_of(c.segment)].interaction(codes);
            Ok(())
        },
    )?;
    Ok(())
}

impl Probes {
    /// MaxSim with centroids in the place of rows; minus infinity without rows.
    fn interaction(&self, codes: &[u16]) -> f32 {
        if codes.is_empty() {
            return f32::NEG_INFINITY;
        }
        let mut sum = 0.0;
        for block in (0..self.lanes).step_by(LANES) {
            let mut best = [f32::NEG_INFINITY; LANES];
            for &code in codes {
                let row = &self.scores[code as usize * self.lanes + block..][..LANES];
                for (best, &score) in best.iter_mut().zip(row) {
                    *best = if score > *best { score } else { *best };
                }
            }
            sum += best.iter().sum::<f32>();
        }
        sum
    }
}

//! Probing: which passages have rows near the query, known by the centroids of
//! their rows alone.
//!
//! Query row `i` names the `n` centroids `c` of greatest `<q_i, c>`; let `m_i` be
//! the least of these. A passage scores `sum_i m_i`, and for every row of which it
//! has a named centroid the best `<q_i, c> - m_i` and a little more: what was not
//! looked at counts as hardly worse than the worst that was (the imputation of
//! XTR and WARP). The lists of passages are read in ranges of passages, so that
//! the sums stay in the cache and memory does not grow with the store.

use std::ops::Range;

use keyfold_kernels::{TopK, matmul_nt, norm};

use super::rows::CoarseScores;
use super::{Candidate, CandidateOptions, best_of, ranges, share, within};
use crate::codebook::Codebook;
use crate::error::SearchError;
use crate::filter::Allowed;
use crate::score::Query;
use crate::store::Segment;

/// Passages that are probed together.
const RANGE: u32 = 1 << 15;

/// What a named centroid is worth beyond its score, as a share of the length of
/// the query row. Measured: the best ten are found among fewer candidates than
/// without, by a third with few probes.
const NAMED: f32 = 0.05;

/// A query against the centroids of a codebook.
pub(super) struct Probes {
    /// `<q_i, c>`, `[centroids, query rows]`.
    pub(super) scores: Vec<f32>,
    /// The same in a few bits.
    pub(super) coarse: CoarseScores,
    /// The lengths of the query rows.
    pub(super) lengths: Vec<f32>,
    /// For every query row that is probed the centroids it names and what a
    /// passage gains by having them, best first.
    named: Vec<Vec<(u16, f32)>>,
    /// The places of these query rows.
    rows: Vec<usize>,
    /// What a passage scores that has none of these.
    base: f32,
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
        let n = rows.len() / width;
        let mut scores = vec![0.0; count * n];
        let centroids = codebook.centroids();
        matmul_nt(
            &mut scores,
            centroids,
            rows,
            count,
            n,
            width,
            options.threads,
        );

        let lengths: Vec<f32> = rows.chunks_exact(width).map(norm).collect();
        let longest = lengths.iter().fold(0.0, |m: f32, &x| m.max(x));
        let is_probed = |length: f32| length > 0.0 && length >= options.shortest * longest;
        let probed: Vec<bool> = lengths.iter().map(|&x| is_probed(x)).collect();
        let best = best_of_columns(&scores, &probed, options.probes.max(1));
        let mut named = Vec::with_capacity(best.len());
        let mut of_rows = Vec::with_capacity(best.len());
        let mut base = 0.0;
        for (row, (list, &length)) in best.into_iter().zip(&lengths).enumerate() {
            let Some(&(least, _)) = list.last() else {
                continue;
            };
            of_rows.push(row);
            base += least;
            let gain = |score| score - least + NAMED * length;
            named.push(
                list.iter()
                    .map(|&(s, code)| (code as u16, gain(s)))
                    .collect(),
            );
        }
        Self {
            coarse: CoarseScores::new(&scores, &lengths),
            scores,
            lengths,
            named,
            rows: of_rows,
            base,
        }
    }

    /// The centroids that each probed query row names, best first, with its place.
    pub(super) fn named_by_row(&self) -> impl Iterator<Item = (usize, Vec<u16>)> + '_ {
        let codes = |named: &Vec<(u16, f32)>| named.iter().map(|n| n.0).collect();
        self.rows.iter().copied().zip(self.named.iter().map(codes))
    }

    /// All named centroids, each once.
    pub(super) fn codes(&self) -> Vec<u16> {
        let mut codes: Vec<u16> = self.named.iter().flatten().map(|n| n.0).collect();
        codes.sort_unstable();
        codes.dedup();
        codes
    }
}

/// The `n` greatest scores of every wanted column of `scores`
/// (`[rows, wanted.len()]`) with their rows, the greatest first; of other columns none.
fn best_of_columns(scores: &[f32], wanted: &[bool], n: usize) -> Vec<Vec<(f32, u64)>> {
    let mut best: Vec<TopK> = vec![TopK::new(n); wanted.len()];
    // What a score must exceed to be among them.
    let limit = |&wanted: &bool| {
        if wanted {
            f32::NEG_INFINITY
        } else {
            f32::INFINITY
        }
    };
    let mut enough: Vec<f32> = wanted.iter().map(limit).collect();
    for (at, row) in scores.chunks_exact(wanted.len()).enumerate() {
        // Most centroids are far from all rows: one comparison for a block of them.
        let pairs = row.iter().zip(&enough);
        if !pairs.fold(false, |any, (s, e)| any | (s > e)) {
            continue;
        }
        for (i, best) in best.iter_mut().enumerate() {
            if row[i] > enough[i] {
                best.push(row[i], at as u64);
                enough[i] = best.threshold();
            }
        }
    }
    best.into_iter().map(TopK::into_sorted).collect()
}

/// The `keep` passages that the probes rank highest, in the order of the store.
pub(super) fn probe(
    segments: &[Segment],
    query: &Query,
    probes: &[Probes],
    allowed: Option<&Allowed>,
    keep: usize,
    threads: usize,
) -> Result<Vec<Candidate>, SearchError> {
    let mut all = Vec::new();
    for (number, segment) in segments.iter().enumerate() {
        let probes = &probes[query.codebook_of(number)];
        let lists = lists(segment, probes)?;
        let found = share(
            &mut ranges(segment, RANGE),
            threads,
            Sums::default,
            |sums, range| {
                sums.collect(&lists, range);
                let scores = sums.sums.iter().map(|sum| probes.base + sum);
                let scores = range.clone().zip(scores);
                Ok(best_of(segment, number, scores, allowed, keep))
            },
        )?;
        all.extend(found.into_iter().flatten());
    }
    super::keep_best(&mut all, keep);
    super::sort_by_place(&mut all);
    Ok(all)
}

/// The passages that have each named centroid, and what they gain, by query row.
type Lists<'a> = Vec<Vec<(&'a [u32], f32)>>;

fn lists<'a>(segment: &'a Segment, probes: &Probes) -> Result<Lists<'a>, SearchError> {
    let list = |&(code, gain): &(u16, f32)| Ok((segment.postings(code)?, gain));
    let of_row = |named: &Vec<(u16, f32)>| named.iter().map(list).collect();
    probes.named.iter().map(of_row).collect()
}

/// What the passages of a range gain, reused from range to range.
#[derive(Default)]
struct Sums {
    sums: Vec<f32>,
    /// The last query row, counted from 1, that added to each sum.
    added: Vec<u16>,
}

impl Sums {
    fn collect(&mut self, lists: &Lists<'_>, range: &Range<u32>) {
        self.sums.clear();
        self.sums.resize(range.len(), 0.0);
        self.added.clear();
        self.added.resize(range.len(), 0);
        for (i, of_row) in (1u16..).zip(lists) {
            for &(list, gain) in of_row {
                for &p in within(list, range) {
                    let at = (p - range.start) as usize;
                    // The best centroid of a row comes first and alone counts.
                    self.sums[at] += if self.added[at] == i { 0.0 } else { gain };
                    self.added[at] = i;
                }
            }
        }
    }
}

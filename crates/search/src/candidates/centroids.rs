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

use keyfold_kernels::{TopK, best_of_columns, matmul_nt, norm};

use super::rows::{CoarsePart, CoarseScores};
use super::{Candidate, CandidateOptions, best_of, ranges, share, within};
use crate::codebook::Codebook;
use crate::error::SearchError;
use crate::filter::Allowed;
use crate::score::Query;
use crate::store::Segment;

/// So few centroids are not shared out among threads.
const LEAST: usize = 512;

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
pub(super) fn probes(
    query: &Query,
    options: &CandidateOptions,
) -> Result<Vec<Probes>, SearchError> {
    query
        .by_codebook()
        .map(|(codebook, rows)| Probes::new(codebook, rows, options))
        .collect()
}

impl Probes {
    fn new(
        codebook: &Codebook,
        rows: &[f32],
        options: &CandidateOptions,
    ) -> Result<Self, SearchError> {
        let lengths: Vec<f32> = rows.chunks_exact(codebook.width()).map(norm).collect();
        let longest = lengths.iter().fold(0.0, |m: f32, &x| m.max(x));
        let is_probed = |length: f32| length > 0.0 && length >= options.shortest * longest;
        let probed: Vec<bool> = lengths.iter().map(|&x| is_probed(x)).collect();

        let (scores, coarse, best) = compare(codebook, rows, &lengths, &probed, options)?;
        let best = best.into_iter().map(TopK::into_sorted);
        let mut named = Vec::with_capacity(lengths.len());
        let mut of_rows = Vec::with_capacity(lengths.len());
        let mut base = 0.0;
        for (row, (list, &length)) in best.zip(&lengths).enumerate() {
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
        Ok(Self {
            scores,
            coarse,
            lengths,
            named,
            rows: of_rows,
            base,
        })
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

/// The scores of all centroids (`[centroids, query rows]`), the same in a byte each, and the best
/// of every probed row.
fn compare(
    codebook: &Codebook,
    rows: &[f32],
    lengths: &[f32],
    probed: &[bool],
    options: &CandidateOptions,
) -> Result<(Vec<f32>, CoarseScores, Vec<TopK>), SearchError> {
    let (width, count, n) = (codebook.width(), codebook.count(), lengths.len());
    let mut scores = vec![0.0; count * n];
    let mut coarse = CoarseScores::new(count, lengths);
    let many = count.div_ceil(options.threads.max(1)).max(LEAST);
    let mut parts: Vec<Part> = Vec::new();
    let centroids = codebook.centroids().chunks(many * width);
    let of_parts = scores.chunks_mut(many * n).zip(coarse.parts(many));
    for ((i, centroids), (scores, coarse)) in (0..).zip(centroids).zip(of_parts) {
        parts.push(Part {
            first: i * many as u64,
            centroids,
            scores,
            coarse,
        });
    }
    let most = options.probes.max(1);
    let found = share(
        &mut parts,
        options.threads,
        || (),
        |(), part| Ok(part.compare(rows, width, probed, most)),
    )?;
    let mut best = vec![TopK::new(most); n];
    for lists in found {
        for (best, list) in best.iter_mut().zip(lists) {
            for (score, code) in list.into_sorted() {
                best.push(score, code);
            }
        }
    }
    Ok((scores, coarse, best))
}

/// Some of the centroids, and where their scores go.
struct Part<'a> {
    /// The number of the first.
    first: u64,
    centroids: &'a [f32],
    scores: &'a mut [f32],
    coarse: CoarsePart<'a>,
}

impl Part<'_> {
    /// Compares them with the query rows; gives the `most` best of every probed row.
    fn compare(&mut self, rows: &[f32], width: usize, probed: &[bool], most: usize) -> Vec<TopK> {
        let n = probed.len();
        matmul_nt(
            self.scores,
            self.centroids,
            rows,
            self.scores.len() / n,
            n,
            width,
            1,
        );
        self.coarse.fill(self.scores, n);
        let mut best = vec![TopK::new(most); n];
        best_of_columns(self.scores, probed, self.first, &mut best);
        best
    }
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

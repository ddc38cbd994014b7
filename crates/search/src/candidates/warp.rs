//! WARP's scores, as a baseline: only rows of probed centroids are looked at, and
//! none is decompressed and scaled (Scheerer, Zaharia, Potts, Alonso, Khattab 2025,
//! *WARP: An Efficient Engine for Multi-Vector Retrieval*; after XTR, Lee et al.
//! 2023).
//!
//! Query row `i` probes its `nprobe` best centroids (32). A row of them, with centroid `c` and
//! residual weights `w`, scores `<q_i, c> + Σ_d q_i[d] w[d]`; the best row of a passage
//! counts. A passage of which no row was met gets `m_i` instead, the score of the
//! centroid at which the rows of the best centroids, added up, first reach `t'`:
//! `⌊√(8 rows) / 1000⌋ · 1000`, at least 1000; at most `bound` centroids (128) are looked at.
//! The sum over query rows orders passages; the first get exact scores.
//!
//! The authors' index keeps the rows of a centroid together; here they lie with
//! their passage and are looked up there, with the same result. How many rows a
//! centroid has is judged by how many passages have it.

use std::ops::Range;

use super::centroids::Probes;
use super::{Candidate, best_of, keep_best, ranges, share, sort_by_place, within};
use crate::error::SearchError;
use crate::filter::Allowed;
use crate::score::Query;
use crate::store::Segment;

/// WARP's parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WarpOptions {
    /// How many centroids a query row probes (`nprobe`).
    pub probes: usize,
    /// `t'`; none: by the number of rows, as above.
    pub t_prime: Option<usize>,
    /// How many centroids are looked at for `m`, at most (`bound`).
    pub bound: usize,
}

impl Default for WarpOptions {
    fn default() -> Self {
        Self {
            probes: 32,
            t_prime: None,
            bound: 128,
        }
    }
}

impl WarpOptions {
    /// How many centroids each query row names.
    pub(super) fn named(&self) -> usize {
        self.probes.max(self.bound)
    }
}

/// Passages that are scored together.
const RANGE: u32 = 1 << 12;

/// The `keep` passages of the greatest scores, in the order of the store. The
/// probes name [`WarpOptions::named`] centroids for each row.
pub(super) fn candidates(
    segments: &[Segment],
    query: &Query,
    probes: &[Probes],
    keep: usize,
    allowed: Option<&Allowed>,
    (options, threads): (&WarpOptions, usize),
) -> Result<Vec<Candidate>, SearchError> {
    let mut wanted = Vec::new();
    for (place, probes) in probes.iter().enumerate() {
        let of_book = |s: &usize| query.codebook_of(*s) == place;
        let own: Vec<&Segment> = (0..segments.len())
            .filter(of_book)
            .map(|s| &segments[s])
            .collect();
        wanted.push(Wanted::new(probes, &own, options)?);
    }
    let mut all = Vec::new();
    for (number, segment) in segments.iter().enumerate() {
        let place = query.codebook_of(number);
        let wanted = &wanted[place];
        let mut lists = Vec::new();
        for (code, rows) in &wanted.probed {
            lists.push((*code, &rows[..], segment.postings(*code)?));
        }
        let found = share(
            &mut ranges(segment, RANGE),
            threads,
            Scores::default,
            |scores, part| {
                scores.collect(
                    segment,
                    query.of_codebook(place).1,
                    &probes[place],
                    &lists,
                    part,
                )?;
                let of_passages = scores.best.chunks_exact(wanted.missing.len());
                let sum = |of_rows: &[f32]| {
                    let pairs = of_rows.iter().zip(&wanted.missing);
                    pairs
                        .map(|(&s, &m)| if s > f32::NEG_INFINITY { s } else { m })
                        .sum()
                };
                let sums = part.clone().zip(of_passages.map(sum));
                Ok(best_of(segment, number, sums, allowed, keep))
            },
        )?;
        all.extend(found.into_iter().flatten());
    }
    keep_best(&mut all, keep);
    sort_by_place(&mut all);
    Ok(all)
}

/// What is looked up in segments of one codebook.
struct Wanted {
    /// Probed centroids and the query rows that probe them.
    probed: Vec<(u16, Vec<usize>)>,
    /// `m` of every query row.
    missing: Vec<f32>,
}

impl Wanted {
    fn new(
        probes: &Probes,
        segments: &[&Segment],
        options: &WarpOptions,
    ) -> Result<Self, SearchError> {
        let n = probes.lengths.len();
        let tokens: usize = segments.iter().map(|s| s.tokens()).sum();
        let by_rows = ((8.0 * tokens as f64).sqrt() / 1000.0).floor().max(1.0) * 1000.0;
        let enough = options.t_prime.map_or(by_rows, |t| t as f64);
        let mut postings = 0;
        for segment in segments {
            postings += segment.all_postings()?;
        }
        let rows_per_passage = tokens as f64 / postings.max(1) as f64;
        let mut probed: std::collections::BTreeMap<u16, Vec<usize>> = Default::default();
        let mut missing = vec![0.0; n];
        for (i, named) in probes.named_by_row() {
            for &code in named.iter().take(options.probes) {
                probed.entry(code).or_default().push(i);
            }
            let mut rows = 0.0;
            for &code in named.iter().take(options.bound) {
                missing[i] = probes.scores[usize::from(code) * n + i];
                for segment in segments {
                    rows += rows_per_passage * segment.postings(code)?.len() as f64;
                }
                if rows >= enough {
                    break;
                }
            }
        }
        Ok(Self {
            probed: probed.into_iter().collect(),
            missing,
        })
    }
}

/// A centroid, the query rows that probe it, the passages that have it.
type List<'a> = (u16, &'a [usize], &'a [u32]);

/// The best scores of a range of passages, `[passages, query rows]`.
#[derive(Default)]
struct Scores {
    best: Vec<f32>,
    scratch: Vec<f32>,
}

impl Scores {
    fn collect(
        &mut self,
        segment: &Segment,
        query: &[f32],
        probes: &Probes,
        lists: &[List<'_>],
        range: &Range<u32>,
    ) -> Result<(), SearchError> {
        let n = probes.lengths.len();
        let codebook = segment.codebook();
        let width = codebook.width();
        self.best.clear();
        self.best.resize(range.len() * n, f32::NEG_INFINITY);
        for &(code, of_query, passages) in lists {
            for &local in within(passages, range) {
                let rows = segment.rows(local)?;
                let codes = segment.codes(rows.clone())?;
                let best = &mut self.best[(local - range.start) as usize * n..][..n];
                for (row, _) in codes.iter().enumerate().filter(|(_, c)| **c == code) {
                    let packed = segment.packed(rows.start + row..rows.start + row + 1)?;
                    for &i in of_query {
                        let centroid = probes.scores[usize::from(code) * n + i];
                        let query = &query[i * width..][..width];
                        let score = codebook.product(query, centroid, packed, &mut self.scratch);
                        best[i] = score.max(best[i]);
                    }
                }
            }
        }
        Ok(())
    }
}

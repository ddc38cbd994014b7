//! PLAID's centroid interaction, as a baseline (Santhanam, Khattab, Potts, Zaharia
//! 2022, *PLAID: An Efficient Engine for Late Interaction Retrieval*).
//!
//! Each query row names its nearest centroids; all passages with a row of one of
//! them are candidates. With `s(c, i) = <q_i, c>` and the centroids `C_p` of the rows
//! of passage `p`, candidates are scored twice, each time the best are kept,
//!
//! ```text
//! Σ_i max over c in C_p of s(c, i)
//! ```
//!
//! first over centroids alone that are near some query row (`s ≥ t`, of rows of
//! length 1), `n` are kept, then over all, `n / 4` are kept. These get exact
//! scores. So does the authors' program; others have one round of scores, and cut
//! differently ([`PlaidLike`]).

use super::centroids::Probes;
use super::{Candidate, keep_best, may_be_found, share, sort_by_place};
use crate::error::SearchError;
use crate::filter::Allowed;
use crate::score::Query;
use crate::store::Segment;

/// Whose steps and numbers PLAID has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PlaidLike {
    /// The authors' program: two rounds, numbers by how many passages are wanted.
    #[default]
    Stanford,
    /// next-plaid: named centroids that are far from all query rows are left out,
    /// then one round over all centroids.
    NextPlaid,
    /// fast-plaid: one round, nothing is left out.
    FastPlaid,
    /// As fast-plaid, with twice the passages: what PyLate asks of it.
    PyLate,
}

/// PLAID's parameters; those of the program that is followed where none is given.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PlaidOptions {
    /// Whose steps, and whose numbers where the others say nothing.
    pub like: PlaidLike,
    /// How many centroids each query row names (`nprobe`, `n_ivf_probe`).
    pub probes: Option<usize>,
    /// `t` (`t_cs`, `centroid_score_threshold`), a cosine; -1 leaves nothing out.
    /// fast-plaid and PyLate have none.
    pub threshold: Option<f32>,
    /// `n` (`ndocs`, `n_full_scores`); a quarter of them get exact scores.
    pub full_scores: Option<usize>,
}

/// All parameters of a search.
struct Plaid {
    probes: usize,
    threshold: f32,
    full_scores: usize,
}

impl PlaidOptions {
    fn of(&self, k: usize) -> Plaid {
        let (probes, threshold, full_scores) = match self.like {
            PlaidLike::Stanford => match k {
                0..=10 => (1, 0.5, 256),
                11..=100 => (2, 0.45, 1024),
                _ => (4, 0.4, k.saturating_mul(4).max(4096)),
            },
            PlaidLike::NextPlaid | PlaidLike::FastPlaid => (8, 0.4, 4096),
            PlaidLike::PyLate => (8, 0.4, 8192),
        };
        Plaid {
            probes: self.probes.unwrap_or(probes),
            threshold: self.threshold.unwrap_or(threshold),
            full_scores: self.full_scores.unwrap_or(full_scores),
        }
    }

    /// How many centroids each query row names when `k` passages are wanted.
    pub(super) fn probes(&self, k: usize) -> usize {
        self.of(k).probes
    }
}

/// The passages to score exactly when `k` are wanted, in the order of the store.
pub(super) fn candidates(
    segments: &[Segment],
    query: &Query,
    probes: &[Probes],
    k: usize,
    allowed: Option<&Allowed>,
    (options, threads): (&PlaidOptions, usize),
) -> Result<Vec<Candidate>, SearchError> {
    let plaid = options.of(k);
    let near: Vec<Vec<bool>> = probes.iter().map(|p| p.near(plaid.threshold)).collect();
    let mut found = Vec::new();
    for (number, segment) in segments.iter().enumerate() {
        let place = query.codebook_of(number);
        let mut locals = Vec::new();
        for code in probes[place].codes() {
            if options.like != PlaidLike::NextPlaid || near[place][usize::from(code)] {
                locals.extend_from_slice(segment.postings(code)?);
            }
        }
        locals.sort_unstable();
        locals.dedup();
        let selectable = |&local: &u32| may_be_found(segment, number, local, allowed);
        found.extend(
            locals
                .into_iter()
                .filter(selectable)
                .map(|local| Candidate {
                    score: 0.0,
                    segment: number as u32,
                    local,
                }),
        );
    }
    let last = (false, plaid.full_scores / 4);
    let rounds = match options.like {
        PlaidLike::Stanford => vec![(true, plaid.full_scores), last],
        _ => vec![last],
    };
    for (pruned, keep) in rounds {
        share(&mut found, threads, Vec::new, |best, c| {
            let segment = &segments[c.segment as usize];
            let codes = segment.codes(segment.rows(c.local)?)?;
            let place = query.codebook_of(c.segment as usize);
            c.score = probes[place].interaction(codes, pruned.then_some(&near[place]), best);
            Ok(())
        })?;
        keep_best(&mut found, keep.max(k));
        sort_by_place(&mut found);
    }
    Ok(found)
}

impl Probes {
    /// Which centroids are near some query row.
    fn near(&self, threshold: f32) -> Vec<bool> {
        let rows = self.scores.chunks_exact(self.lengths.len());
        let near = |row: &[f32]| {
            let mut pairs = row.iter().zip(&self.lengths);
            pairs.any(|(s, length)| *length > 0.0 && *s >= threshold * length)
        };
        rows.map(near).collect()
    }

    /// The score of a passage by the centroids of its rows, of those in `only` if
    /// given. A query row without any adds nothing.
    fn interaction(&self, codes: &[u16], only: Option<&Vec<bool>>, best: &mut Vec<f32>) -> f32 {
        let n = self.lengths.len();
        best.clear();
        best.resize(n, f32::NEG_INFINITY);
        for &code in codes {
            let code = usize::from(code);
            if only.is_some_and(|only| !only[code]) {
                continue;
            }
            for (best, &s) in best.iter_mut().zip(&self.scores[code * n..][..n]) {
                *best = s.max(*best);
            }
        }
        best.iter().filter(|b| **b > f32::NEG_INFINITY).sum()
    }
}

//! From a query's vectors to the passages of the greatest MaxSim, without
//! scoring every passage.
//!
//! Three steps, each more exact and dearer for a passage than the one before:
//!
//! 1. *Probing* (`centroids`) looks up which passages have rows near the query
//!    rows, and orders them by the centroids of these.
//! 2. *Estimating* (`rows`) reads of each passage one row for every query row:
//!    that whose centroid is nearest.
//! 3. *Exact scores* (`crate::score`) read all rows.
//!
//! This is PLAID (Santhanam, Khattab, Potts, Zaharia 2022) with the order of XTR
//! (Lee et al. 2023) in step 1, and with one true row in the place of PLAID's
//! centroids in step 2: those order passages no better than probing does, while
//! with the row the best ten are nearly always among the first fifty.
//!
//! A filter is applied before the choice, so that it never empties the result.

mod centroids;
pub mod fde;
mod rows;

use std::time::{Duration, Instant};

use keyfold_core::Vectors;
use rayon::prelude::*;

use crate::error::SearchError;
use crate::filter::Allowed;
use crate::fuse::{self, Ranked};
use crate::score::{self, Query};
use crate::store::Segment;

/// How thoroughly to look.
///
/// The default finds 98.6 % of the true best ten among 100,000 passages of 145
/// token vectors of a sentence encoder (128 dimensions, 4 bits, 16384 centroids,
/// queries of 5 to 20 rows); 4096 `estimated` find 99.2 %, 2048 find 98 %, and
/// more `probes` or `exact` gain nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CandidateOptions {
    /// How many centroids every query row names.
    pub probes: usize,
    /// Query rows shorter than this share of the longest name none; they still
    /// count in exact scores.
    pub shortest: f32,
    /// How many passages are estimated, at least; four times as many as are
    /// scored exactly if that is more.
    pub estimated: usize,
    /// How many passages are scored exactly, at least; twice the number of
    /// wanted passages if that is more.
    pub exact: usize,
    /// Score every passage exactly instead.
    pub exhaustive: bool,
    /// At most this many threads of the current rayon pool work on a query; 1
    /// works on the calling thread.
    pub threads: usize,
}

impl Default for CandidateOptions {
    fn default() -> Self {
        Self {
            probes: 16,
            shortest: 0.1,
            estimated: 3072,
            exact: 128,
            exhaustive: false,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

/// Where the time of a search by meaning went.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct MeaningTimings {
    /// Comparing the query with the centroids.
    pub centroids: Duration,
    /// Probing.
    pub probing: Duration,
    /// Estimating.
    pub estimating: Duration,
    /// Exact scores.
    pub exact: Duration,
}

/// A passage of a segment with its score so far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Candidate {
    pub(crate) score: f32,
    pub(crate) segment: u32,
    pub(crate) local: u32,
}

/// The `k` passages of the greatest MaxSim with `query` among those allowed
/// (all live ones without `allowed`), best first, and where the time went.
/// Passages without rows are not found by meaning.
pub fn nearest(
    segments: &[Segment],
    query: &Vectors,
    k: usize,
    allowed: Option<&Allowed>,
    options: &CandidateOptions,
) -> Result<(Vec<Ranked>, MeaningTimings), SearchError> {
    let mut timings = MeaningTimings::default();
    if query.is_empty() || k == 0 || segments.is_empty() {
        return Ok((Vec::new(), timings));
    }
    let query = Query::new(segments, query);
    let exact = options.exact.max(k.saturating_mul(2));
    let selectable: usize = match allowed {
        Some(allowed) => allowed.count(),
        None => segments.iter().map(Segment::live_passages).sum(),
    };
    let estimated = options.estimated.max(exact.saturating_mul(4));
    let mut clock = Instant::now();
    let mut candidates;
    if options.exhaustive || selectable <= exact {
        candidates = every(segments, allowed);
    } else {
        let probes = centroids::probes(&query, options);
        timings.centroids = lap(&mut clock);
        candidates = if selectable <= estimated {
            every(segments, allowed)
        } else {
            centroids::probe(
                segments,
                &query,
                &probes,
                allowed,
                estimated,
                options.threads,
            )?
        };
        timings.probing = lap(&mut clock);
        rows::estimate(segments, &query, &probes, &mut candidates, options.threads)?;
        keep_best(&mut candidates, exact);
        sort_by_place(&mut candidates);
        timings.estimating = lap(&mut clock);
    }
    score::exact(segments, &query, &mut candidates, options.threads)?;
    let ranked = rank(segments, candidates, k)?;
    timings.exact = lap(&mut clock);
    Ok((ranked, timings))
}

/// The time since `clock`, which is set to now.
pub(crate) fn lap(clock: &mut Instant) -> Duration {
    let now = Instant::now();
    now - std::mem::replace(clock, now)
}

/// All passages that may be found.
fn every(segments: &[Segment], allowed: Option<&Allowed>) -> Vec<Candidate> {
    let mut all = Vec::new();
    for (number, segment) in segments.iter().enumerate() {
        let locals = 0..segment.passages() as u32;
        let selectable = locals.filter(|&local| match allowed {
            Some(allowed) => allowed.in_segment(number, local),
            None => segment.is_live(local),
        });
        all.extend(selectable.map(|local| Candidate {
            score: 0.0,
            segment: number as u32,
            local,
        }));
    }
    all
}

/// Keeps the `n` best, in any order.
fn keep_best(candidates: &mut Vec<Candidate>, n: usize) {
    if candidates.len() > n && n > 0 {
        candidates.select_nth_unstable_by(n - 1, best_first);
    }
    candidates.truncate(n);
}

/// The order of the store, in which passages are read fastest.
fn sort_by_place(candidates: &mut [Candidate]) {
    candidates.sort_unstable_by_key(|c| (c.segment, c.local));
}

/// Falling score; among equals the order of the store.
fn best_first(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    let place = |c: &Candidate| (c.segment, c.local);
    b.score.total_cmp(&a.score).then(place(a).cmp(&place(b)))
}

/// The `k` best by id.
fn rank(
    segments: &[Segment],
    mut candidates: Vec<Candidate>,
    k: usize,
) -> Result<Vec<Ranked>, SearchError> {
    // A passage without rows matches nothing.
    candidates.retain(|c| c.score > f32::NEG_INFINITY);
    keep_best(&mut candidates, k);
    let mut ranked = Vec::with_capacity(candidates.len());
    for c in candidates {
        ranked.push(Ranked {
            passage: segments[c.segment as usize].passage_id(c.local)?,
            score: c.score,
        });
    }
    fuse::sort(&mut ranked);
    Ok(ranked)
}

/// Applies `f` to all items in order, with up to `threads` threads; `init` makes
/// what a thread needs.
pub(crate) fn share<T: Send + Sync, S, R: Send>(
    items: &mut [T],
    threads: usize,
    init: impl Fn() -> S + Sync + Send,
    f: impl Fn(&mut S, &mut T) -> Result<R, SearchError> + Sync + Send,
) -> Result<Vec<R>, SearchError> {
    if threads <= 1 || items.len() <= 1 {
        let mut state = init();
        return items.iter_mut().map(|item| f(&mut state, item)).collect();
    }
    let least = items.len().div_ceil(threads * 4).max(1);
    items
        .par_iter_mut()
        .with_min_len(least)
        .map_init(init, f)
        .collect()
}

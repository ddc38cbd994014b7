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
//! with the row the best ten are mostly among the first fifty.
//!
//! A filter is applied before the choice, so that it never empties the result.
//!
//! In stores of models that also have a vector of each whole text (ColBERTer),
//! candidates are the passages whose whole texts are nearest ([`Method::Cls`]).
//!
//! In stores of binary codes every code is compared, by Hamming distance.
//!
//! Steps 1 and 2 can be done otherwise (see [`Method`]): by one scan over encodings
//! of fixed length (`fde`), and, to compare with, as PLAID (`plaid`) and WARP
//! (`warp`) do it. [`tune`] tries them on a store.

mod carving;
mod centroids;
pub mod fde;
mod plaid;
mod rows;
pub mod tune;
mod warp;

use std::ops::Range;
use std::time::{Duration, Instant};

use keyfold_core::Vectors;
use rayon::prelude::*;

pub use plaid::{PlaidLike, PlaidOptions};
pub use warp::WarpOptions;

use crate::error::SearchError;
use crate::filter::Allowed;
use crate::fuse::{self, Ranked};
use crate::score::{self, Query};
use crate::store::Segment;

/// By what passages are found whose vectors are then compared.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// As the store was tuned (see [`Tuned`]); else by centroids, or by vectors of
    /// whole texts where the model has them.
    #[default]
    Auto,
    /// By vectors of whole texts, in the stores of models that have them.
    Cls,
    /// By encodings of fixed length (MUVERA, see [`fde`]), which the store must have.
    Fde,
    /// By the centroids of rows near the query's, then by one row for each of the
    /// query's.
    Centroids,
    /// By the centroids of all rows (PLAID).
    Plaid,
    /// By the rows of probed centroids alone (WARP).
    Warp,
    /// Not at all: every passage is scored.
    Exhaustive,
}

impl std::str::FromStr for Method {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "auto" => Ok(Self::Auto),
            "cls" => Ok(Self::Cls),
            "fde" => Ok(Self::Fde),
            "centroids" => Ok(Self::Centroids),
            "plaid" => Ok(Self::Plaid),
            "warp" => Ok(Self::Warp),
            "exhaustive" => Ok(Self::Exhaustive),
            _ => Err(format!(
                "'{s}' finds no candidates: choose auto, cls, fde, centroids, plaid, warp or exhaustive"
            )),
        }
    }
}

/// What was found to search a store fast enough and well enough; the store keeps it.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Tuned {
    /// By what.
    pub method: Method,
    /// See [`CandidateOptions::probes`].
    pub probes: usize,
    /// See [`CandidateOptions::estimated`].
    pub estimated: usize,
    /// See [`CandidateOptions::encoded`].
    pub encoded: usize,
    /// See [`CandidateOptions::exact`].
    pub exact: usize,
    /// Share of the ten best by MaxSim that was found, in the mean of the queries.
    pub recall: f64,
    /// Time of a query, in the median, milliseconds.
    pub milliseconds: f64,
    /// Passages of the store at that time.
    pub passages: u64,
}

/// How thoroughly to look.
///
/// What the default finds of the true best ten, and how fast, is in
/// docs/PERFORMANCE.md (`keyfold bench scale`). More `estimated` and `exact` find more
/// and cost more; more `probes` were seen to gain little.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CandidateOptions {
    /// By what.
    pub method: Method,
    /// How many centroids every query row names, of [`Method::Centroids`] and
    /// [`Method::Fde`].
    pub probes: usize,
    /// Query rows shorter than this share of the longest name none; they still
    /// count in exact scores.
    pub shortest: f32,
    /// How many passages are estimated, at least; four times as many as are
    /// scored exactly if that is more.
    pub estimated: usize,
    /// How many passages encodings of fixed length find, at least; as many as are
    /// scored exactly if that is more. More than these are estimated first.
    pub encoded: usize,
    /// How many passages are scored exactly, at least; twice the number of
    /// wanted passages if that is more.
    pub exact: usize,
    /// How many passages vectors of whole texts find, at least; all of them are
    /// scored exactly.
    pub cls: usize,
    /// Whether rows meet only rows with the same id, in the stores of models with
    /// vectors of whole texts; none takes what the model says.
    pub exact_match: Option<bool>,
    /// How near query rows must be, in cosine, to count as one in exact scores (ball
    /// carving); none: all count. Scores are then at most the exact ones. Rows with
    /// ids are left as they are.
    pub carving: Option<f32>,
    /// How [`Method::Plaid`] looks.
    pub plaid: PlaidOptions,
    /// How [`Method::Warp`] looks.
    pub warp: WarpOptions,
    /// Score every passage exactly, whatever the method.
    pub exhaustive: bool,
    /// How the vectors of compared passages are reached.
    pub access: Access,
    /// At most this many threads of the current rayon pool work on a query; 1
    /// works on the calling thread.
    pub threads: usize,
}

/// How the coded vectors of passages are reached. What a search compares lies all over the
/// store, so the memory of a process that searches often grows by nearly all of what it maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Access {
    /// Where the file is mapped: the fastest. The system takes the memory back when others
    /// need it.
    #[default]
    Mapped,
    /// Read from the file for every comparison: a system call and a copy of the passage more,
    /// and next to no memory.
    Read,
}

impl Default for CandidateOptions {
    fn default() -> Self {
        Self {
            method: Method::Auto,
            probes: 16,
            shortest: 0.1,
            estimated: 3072,
            encoded: 512,
            exact: 256,
            cls: 2000,
            exact_match: None,
            carving: None,
            plaid: PlaidOptions::default(),
            warp: WarpOptions::default(),
            exhaustive: false,
            access: Access::default(),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

impl CandidateOptions {
    /// What was found best for the store, where the method is left to it.
    pub(crate) fn tuned(&self, tuned: Option<&Tuned>) -> Self {
        match tuned {
            Some(t) if self.method == Method::Auto => Self {
                method: t.method,
                probes: t.probes,
                estimated: t.estimated,
                encoded: t.encoded,
                exact: t.exact,
                ..*self
            },
            _ => *self,
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
    let exact = options.exact.max(k.saturating_mul(2));
    let selectable: usize = match allowed {
        Some(allowed) => allowed.count(),
        None => segments.iter().map(Segment::live_passages).sum(),
    };
    let rows = query;
    let query = Query::new(segments, rows, options);
    let mut clock = Instant::now();
    let method = match options.method {
        _ if options.exhaustive || selectable <= exact => Method::Exhaustive,
        // All codes are compared: that costs less for each than finding it otherwise.
        _ if query.is_binary() => Method::Exhaustive,
        // The engine refuses what does not go together; here it is only not wrong.
        _ if query.whole_text().is_some() => Method::Cls,
        Method::Cls => Method::Exhaustive,
        method => method,
    };
    let search = Search {
        segments,
        query: &query,
        allowed,
        options,
        exact,
        selectable,
    };
    let mut candidates = match method {
        Method::Exhaustive => every(segments, allowed),
        Method::Cls => search.by_whole_texts(&mut clock, &mut timings)?,
        Method::Auto | Method::Centroids => search.by_centroids(&mut clock, &mut timings)?,
        Method::Fde => search.by_encodings(rows, &mut clock, &mut timings)?,
        Method::Plaid => {
            let options = CandidateOptions {
                probes: options.plaid.probes(k),
                shortest: 0.0,
                ..*options
            };
            let probes = centroids::probes(&query, &options)?;
            timings.centroids = lap(&mut clock);
            let how = (&options.plaid, options.threads);
            let found = plaid::candidates(segments, &query, &probes, k, allowed, how)?;
            timings.probing = lap(&mut clock);
            found
        }
        Method::Warp => {
            let options = CandidateOptions {
                probes: options.warp.named(),
                shortest: 0.0,
                ..*options
            };
            let probes = centroids::probes(&query, &options)?;
            timings.centroids = lap(&mut clock);
            let how = (&options.warp, options.threads);
            let found = warp::candidates(segments, &query, &probes, exact, allowed, how)?;
            timings.probing = lap(&mut clock);
            found
        }
    };
    // Rows with ids meet their like alone; sums have none.
    let carving = options.carving.filter(|_| rows.ids().is_none());
    let carved = carving.map(|near| carving::carve(rows, near));
    let carved = carved.map(|rows| Query::new(segments, &rows, options));
    let query = carved.as_ref().unwrap_or(&query);
    score::exact(segments, query, &mut candidates, options.threads)?;
    let ranked = rank(segments, candidates, k)?;
    timings.exact = lap(&mut clock);
    Ok((ranked, timings))
}

/// The scores of the passages with these ids as [`nearest`] gives them; of those that
/// are gone or have no rows, none. In the order of the store.
pub(crate) fn scores_of(
    segments: &[Segment],
    query: &Vectors,
    ids: &[u64],
    options: &CandidateOptions,
) -> Result<Vec<Ranked>, SearchError> {
    let mut candidates = Vec::new();
    for (number, segment) in segments.iter().enumerate() {
        for &id in ids {
            if let Some(local) = segment.find(id)?.filter(|&local| segment.is_live(local)) {
                candidates.push(Candidate {
                    score: 0.0,
                    segment: number as u32,
                    local,
                });
            }
        }
    }
    sort_by_place(&mut candidates);
    let query = Query::new(segments, query, options);
    score::exact(segments, &query, &mut candidates, options.threads)?;
    let all = candidates.len();
    rank(segments, candidates, all)
}

/// What is searched for, where, and how.
struct Search<'a> {
    segments: &'a [Segment],
    query: &'a Query,
    allowed: Option<&'a Allowed>,
    options: &'a CandidateOptions,
    /// How many passages will be scored exactly.
    exact: usize,
    /// How many may be found.
    selectable: usize,
}

impl Search<'_> {
    fn by_whole_texts(
        &self,
        clock: &mut Instant,
        timings: &mut MeaningTimings,
    ) -> Result<Vec<Candidate>, SearchError> {
        let keep = self.options.cls.max(self.exact);
        let mut found = match self.query.whole_text() {
            Some(query) => {
                let threads = self.options.threads;
                query.nearest(self.segments, self.allowed, keep, threads)?
            }
            None => every(self.segments, self.allowed),
        };
        keep_best(&mut found, keep);
        sort_by_place(&mut found);
        timings.probing = lap(clock);
        Ok(found)
    }

    fn by_centroids(
        &self,
        clock: &mut Instant,
        timings: &mut MeaningTimings,
    ) -> Result<Vec<Candidate>, SearchError> {
        let probes = centroids::probes(self.query, self.options)?;
        timings.centroids = lap(clock);
        let estimated = self.options.estimated.max(self.exact.saturating_mul(4));
        let candidates = if self.selectable <= estimated {
            every(self.segments, self.allowed)
        } else {
            centroids::probe(
                self.segments,
                self.query,
                &probes,
                self.allowed,
                estimated,
                self.options.threads,
            )?
        };
        timings.probing = lap(clock);
        self.estimate(candidates, &probes, clock, timings)
    }

    fn by_encodings(
        &self,
        rows: &Vectors,
        clock: &mut Instant,
        timings: &mut MeaningTimings,
    ) -> Result<Vec<Candidate>, SearchError> {
        let encoded = self.options.encoded.max(self.exact);
        let threads = self.options.threads;
        let found = fde::scan(self.segments, rows, self.allowed, encoded, threads)?;
        timings.probing = lap(clock);
        if found.len() <= self.exact {
            return Ok(found);
        }
        let probes = centroids::probes(self.query, self.options)?;
        timings.centroids = lap(clock);
        self.estimate(found, &probes, clock, timings)
    }

    /// The best of the candidates by estimates.
    fn estimate(
        &self,
        mut candidates: Vec<Candidate>,
        probes: &[centroids::Probes],
        clock: &mut Instant,
        timings: &mut MeaningTimings,
    ) -> Result<Vec<Candidate>, SearchError> {
        let threads = self.options.threads;
        rows::estimate(self.segments, self.query, probes, &mut candidates, threads)?;
        keep_best(&mut candidates, self.exact);
        sort_by_place(&mut candidates);
        timings.estimating = lap(clock);
        Ok(candidates)
    }
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
        let selectable = locals.filter(|&local| may_be_found(segment, number, local, allowed));
        all.extend(selectable.map(|local| Candidate {
            score: 0.0,
            segment: number as u32,
            local,
        }));
    }
    all
}

/// Whether a passage of segment `number` may be found.
fn may_be_found(segment: &Segment, number: usize, local: u32, allowed: Option<&Allowed>) -> bool {
    match allowed {
        Some(allowed) => allowed.in_segment(number, local),
        None => segment.is_live(local),
    }
}

/// The `keep` passages of segment `number` with the greatest scores among those
/// that may be found, in any order. `scores` come in the order of the store.
pub(crate) fn best_of(
    segment: &Segment,
    number: usize,
    scores: impl Iterator<Item = (u32, f32)>,
    allowed: Option<&Allowed>,
    keep: usize,
) -> Vec<Candidate> {
    let mut found = Vec::new();
    // What a score must exceed.
    let mut enough = f32::NEG_INFINITY;
    for (local, score) in scores {
        if score > enough && may_be_found(segment, number, local, allowed) {
            found.push(Candidate {
                score,
                segment: number as u32,
                local,
            });
            if found.len() >= 2 * keep {
                keep_best(&mut found, keep);
                enough = found.iter().map(|c| c.score).fold(f32::INFINITY, f32::min);
            }
        }
    }
    keep_best(&mut found, keep);
    found
}

/// The passages of a segment in ranges of so many, to be shared among threads.
pub(crate) fn ranges(segment: &Segment, many: u32) -> Vec<Range<u32>> {
    let passages = segment.passages() as u32;
    let starts = (0..passages).step_by(many as usize);
    let range = |start: u32| start..passages.min(start.saturating_add(many));
    starts.map(range).collect()
}

/// The part of a list of passages, ascending, that lies in a range.
fn within<'a>(list: &'a [u32], range: &Range<u32>) -> &'a [u32] {
    let list = &list[list.partition_point(|&p| p < range.start)..];
    &list[..list.partition_point(|&p| p < range.end)]
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

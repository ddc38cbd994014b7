//! A second, dear opinion: a cross-encoder reads the query with single passages, and
//! its scores make the order.
//!
//! How many passages it reads is the budget. Which ones, [`RerankBy`] says: the best
//! of the search (the usual way), or those that its own scores of other queries
//! point to ([`cur`]), for which it must have scored some anchor queries against all
//! passages once. These scores lie beside the commits of a store and are brought up
//! to date when they are opened: passages that came are scored, those that went are
//! left out.
//!
//! Source of the method: Yadav et al. 2022 and 2023, see [`cur`].

mod anchors;
mod command;
pub mod cur;

use keyfold_core::PairScorer;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::index::sample;

pub use anchors::Anchors;
pub use command::{CommandScorer, PATIENCE};

use crate::error::SearchError;
use crate::filter::Allowed;
use crate::fuse::{self, Ranked};
use crate::sparse::texts;
use crate::store::Snapshot;
use cur::Inverse;

/// Pairs that are scored at a time.
const BATCH: usize = 32;

/// Which passages the cross-encoder reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RerankBy {
    /// The best of the search, all of the budget.
    #[default]
    All,
    /// Anchors, then those that look best from their scores.
    Cur,
    /// The best of the search, then in rounds those that look best from all scores
    /// so far.
    AdaCur,
}

/// How to rerank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RerankOptions {
    /// Which passages are read.
    pub by: RerankBy,
    /// How many: the budget. Anchors count.
    pub calls: usize,
    /// How many anchors; at most half of the anchor queries is sound, and demanded of
    /// [`Inverse::Pseudo`].
    pub anchors: usize,
    /// In how many rounds [`RerankBy::AdaCur`] spends the budget.
    pub rounds: usize,
    /// How scores are inverted.
    pub inverse: Inverse,
    /// Which passages are anchors is drawn by it.
    pub seed: u64,
}

impl Default for RerankOptions {
    fn default() -> Self {
        Self {
            by: RerankBy::default(),
            calls: 100,
            anchors: 50,
            rounds: 5,
            inverse: Inverse::default(),
            seed: 0,
        }
    }
}

/// A cross-encoder with what it needs for one snapshot.
pub struct Reranker<'a> {
    scorer: &'a dyn PairScorer,
    options: RerankOptions,
    anchors: Option<Fixed>,
}

/// Anchor queries' scores, and what is computed from them once.
struct Fixed {
    anchors: Anchors,
    /// Places of the anchor items.
    items: Vec<usize>,
    /// Their inverse, for [`RerankBy::Cur`].
    factor: Option<cur::Factor>,
    /// See [`AnchorScores::held_out_error`](cur::AnchorScores::held_out_error).
    error: Option<f64>,
}

impl<'a> Reranker<'a> {
    /// A reranker; `anchors` are needed unless the best of the search are read.
    ///
    /// Refuses no budget, anchors that leave nothing of it, missing anchors, and without
    /// ridge fewer than twice as many anchor queries as anchors.
    pub fn new(
        scorer: &'a dyn PairScorer,
        anchors: Option<Anchors>,
        options: RerankOptions,
    ) -> Result<Self, SearchError> {
        let refused = |what: String| Err(SearchError::Rerank { what });
        if options.calls == 0 {
            return refused("no call of the model is allowed: raise --calls".to_owned());
        }
        if options.by == RerankBy::All {
            return Ok(Self {
                scorer,
                options,
                anchors: None,
            });
        }
        let Some(anchors) = anchors else {
            return refused(
                "there are no scores of anchor queries: give --anchor-queries".to_owned(),
            );
        };
        let scores = anchors.scores();
        if options.by == RerankBy::Cur {
            if options.anchors == 0 || options.anchors >= options.calls {
                return refused(format!(
                    "{} anchors leave nothing of {} calls: raise --calls, or lower --anchors",
                    options.anchors, options.calls
                ));
            }
            // About as many of both make estimates that are worse than none.
            let (queries, anchors) = (scores.queries(), options.anchors.min(scores.items()));
            if options.inverse == Inverse::Pseudo && queries < 2 * anchors {
                return refused(format!(
                    "{queries} anchor queries are fewer than twice the {anchors} anchors, and without \
                     ridge what they say of other passages is useless: give at least {} with \
                     --anchor-queries, or at most {} --anchors, or leave out --ridge none",
                    2 * anchors,
                    queries / 2
                ));
            }
        }
        let n = scores.items();
        let mut rng = SmallRng::seed_from_u64(options.seed);
        let mut items = sample(&mut rng, n, options.anchors.min(n)).into_vec();
        items.sort_unstable();
        let fixed = Fixed {
            error: scores.held_out_error(&items, options.inverse, options.seed),
            factor: (options.by == RerankBy::Cur).then(|| scores.factor(&items, options.inverse)),
            items,
            anchors,
        };
        Ok(Self {
            scorer,
            options,
            anchors: Some(fixed),
        })
    }

    /// How far estimates from as many random anchors as the options say are from the
    /// truth, relative to it, for anchor queries that are left out of them; none
    /// where nothing is estimated.
    pub fn relative_error(&self) -> Option<f64> {
        self.anchors.as_ref()?.error
    }

    /// How many passages only some of the anchor queries have scored.
    pub fn estimated(&self) -> usize {
        let fixed = self.anchors.as_ref();
        fixed.map_or(0, |fixed| fixed.anchors.estimated())
    }

    /// How long the list of the search must be.
    pub(crate) fn depth(&self) -> usize {
        match self.options.by {
            RerankBy::All => self.options.calls,
            RerankBy::Cur => 0,
            RerankBy::AdaCur => self.options.calls.div_ceil(self.options.rounds.max(2)),
        }
    }

    /// The passages that were read, best first, and how many were read; `found` is the
    /// list of the search, best first, and `allowed` says which passages may be given.
    pub(crate) fn rerank(
        &self,
        snapshot: &Snapshot,
        query: &str,
        found: &[Ranked],
        allowed: Option<&Allowed>,
    ) -> Result<(Vec<Ranked>, usize), SearchError> {
        let Some(fixed) = &self.anchors else {
            let ids: Vec<u64> = found
                .iter()
                .map(|r| r.passage)
                .take(self.options.calls)
                .collect();
            let scores = self.score(snapshot, query, &ids)?;
            let calls = ids.len();
            return Ok((ranked(ids.into_iter().zip(scores)), calls));
        };
        let ids = fixed.anchors.ids();
        let bits = allowed.map(Allowed::ids);
        let may = |i: usize| {
            bits.as_ref()
                .is_none_or(|bits| bits.contains(ids[i] as usize))
        };
        let mut calls = 0;
        let mut score = |items: &[usize]| {
            calls += items.len();
            let ids: Vec<u64> = items.iter().map(|&i| ids[i]).collect();
            self.score(snapshot, query, &ids)
        };
        let (index, options) = (fixed.anchors.scores(), &self.options);
        let scored = match &fixed.factor {
            Some(factor) => {
                cur::nearest(index, &fixed.items, factor, options.calls, &may, &mut score)?
            }
            None => {
                let first: Vec<usize> = found
                    .iter()
                    .filter_map(|r| ids.binary_search(&r.passage).ok())
                    .collect();
                let (rounds, calls) = (options.rounds, options.calls);
                cur::adaptive(
                    index,
                    &first,
                    rounds,
                    calls,
                    options.inverse,
                    &may,
                    &mut score,
                )?
            }
        };
        Ok((ranked(scored.into_iter().map(|(i, s)| (ids[i], s))), calls))
    }

    fn score(
        &self,
        snapshot: &Snapshot,
        query: &str,
        ids: &[u64],
    ) -> Result<Vec<f32>, SearchError> {
        let mut scores = Vec::with_capacity(ids.len());
        for batch in ids.chunks(BATCH) {
            let texts = texts(snapshot, batch)?;
            let pairs: Vec<(&str, &str)> = texts.iter().map(|t| (query, t.as_str())).collect();
            scores.extend(self.scorer.score(&pairs)?);
        }
        Ok(scores)
    }
}

fn ranked(scored: impl Iterator<Item = (u64, f32)>) -> Vec<Ranked> {
    let mut list: Vec<Ranked> = scored
        .map(|(passage, score)| Ranked { passage, score })
        .collect();
    fuse::sort(&mut list);
    list
}

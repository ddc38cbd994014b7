//! CUR: the scores of all items from the scores of a few.
//!
//! Source: Yadav, Monath, Angell, Zaheer, McCallum: Efficient Nearest Neighbor
//! Search for Cross-Encoder Models using Matrix Factorization (ANNCUR, EMNLP 2022);
//! adaptive anchors: Yadav, Monath, Zaheer, McCallum: Adaptive Retrieval and
//! Scalable Indexing for k-NN Search with Cross-Encoders (ADACUR, 2023).
//!
//! A dear scorer has scored `r` anchor queries against all `n` items: `R [r, n]`.
//! With `X = R[:, anchors] [r, k]` for `k` anchor items, a new query with the scores
//! `c [k]` of these has about the scores
//!
//! ```text
//! c U R [n],   U = (X'X + l I)^-1 X',   l = ridge * trace(X'X) / k
//! ```
//!
//! of all items; the paper has the pseudo-inverse `U = X^+` ([`Inverse::Pseudo`]). A square
//! `X` is ill-conditioned, and without ridge its scores are useless: give twice as
//! many queries as anchor items, or ridge.
//!
//! [`nearest`] scores the anchors, then the items that look best: that is ANNCUR.
//! [`adaptive`] begins with items that something cheaper found, and in every round
//! makes anchors of all that is scored by then: ADACUR. Both score `calls` items.
//!
//! Cost beyond these: `k^2 r + k^3` for `U`, once, or in every round; `k r + r n`
//! for a query.

mod inverse;

use std::collections::HashSet;

use keyfold_kernels as kernels;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::seq::index::sample;

use inverse::{pseudo_inverse, ridge_inverse};

/// Queries that [`AnchorScores::held_out_error`] leaves out, at most.
const HELD_OUT: usize = 20;
/// Items that it looks at, at most.
const SEEN: usize = 2000;

/// Scores of anchor queries against all items.
#[derive(Debug, Clone, PartialEq)]
pub struct AnchorScores {
    /// `[items, queries]`: one row for each item.
    scores: Vec<f32>,
    queries: usize,
}

/// What scores items, by their places; the scores are finite.
pub type Scorer<'a, E> = dyn FnMut(&[usize]) -> Result<Vec<f32>, E> + 'a;

/// How `U` is computed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Inverse {
    /// With this much ridge, relative to the mean of the diagonal of `X'X`.
    Ridge(f64),
    /// By singular values, those below 1e-15 of the largest left out.
    Pseudo,
}

impl Default for Inverse {
    fn default() -> Self {
        Self::Ridge(1e-6)
    }
}

impl AnchorScores {
    /// Of `[items, queries]` finite scores; none if the numbers do not divide into
    /// rows or some are not finite.
    pub fn new(scores: Vec<f32>, queries: usize) -> Option<Self> {
        let sound = queries > 0
            && scores.len().is_multiple_of(queries)
            && scores.iter().all(|s| s.is_finite());
        sound.then_some(Self { scores, queries })
    }

    /// Number of items.
    pub fn items(&self) -> usize {
        self.scores.len() / self.queries
    }

    /// Number of anchor queries.
    pub fn queries(&self) -> usize {
        self.queries
    }

    /// The scores of an item, by query.
    pub fn item(&self, i: usize) -> &[f32] {
        &self.scores[i * self.queries..(i + 1) * self.queries]
    }

    /// The same with the first `n` queries only; none if there are fewer.
    pub fn first_queries(&self, n: usize) -> Option<Self> {
        let items = self.scores.chunks_exact(self.queries);
        let first = (1..=self.queries)
            .contains(&n)
            .then(|| items.map(|row| &row[..n]))?;
        Self::new(first.collect::<Vec<_>>().concat(), n)
    }

    /// What a query's scores of the anchors of `factor` say of its scores of all
    /// items.
    pub fn estimate_with(&self, factor: &Factor, scores: &[f32]) -> Vec<f32> {
        self.of_weights(&factor.weights(scores))
    }

    /// What a query's scores of `anchors` say of its scores of all items.
    pub fn estimate(&self, anchors: &[usize], scores: &[f32], inverse: Inverse) -> Vec<f32> {
        self.estimate_with(&self.factor(anchors, inverse), scores)
    }

    /// `U` for these anchors; their order is that of the scores of a query.
    pub fn factor(&self, anchors: &[usize], inverse: Inverse) -> Factor {
        let (r, k) = (self.queries, anchors.len());
        // Columns of X, one after the other.
        let x: Vec<f64> = anchors
            .iter()
            .flat_map(|&i| self.item(i).iter().map(|&s| f64::from(s)))
            .collect();
        let u = match inverse {
            Inverse::Ridge(ridge) => ridge_inverse(&x, r, k, ridge),
            Inverse::Pseudo => pseudo_inverse(x, r, k),
        };
        Factor { u, queries: r }
    }

    /// How far estimates from these anchors are from the truth: the Frobenius norm of
    /// the difference over that of the scores, for some of the anchor queries, which
    /// are left out where the estimates are made. At most 20 queries and
    /// 2000 items are drawn for it. None of fewer than two queries.
    pub fn held_out_error(&self, anchors: &[usize], inverse: Inverse, seed: u64) -> Option<f64> {
        let held = (self.queries / 5).clamp(1, HELD_OUT);
        let rest = self.queries.checked_sub(held).filter(|&n| n > 0)?;
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut order: Vec<usize> = (0..self.queries).collect();
        order.shuffle(&mut rng);
        let n = self.items();
        // The anchors first, then what is estimated.
        let seen = sample(&mut rng, n, SEEN.min(n)).into_iter();
        let items: Vec<usize> = anchors.iter().copied().chain(seen).collect();
        let row = |&i: &usize| order[..rest].iter().map(move |&q| self.item(i)[q]);
        let train = Self::new(items.iter().flat_map(row).collect(), rest)?;
        let places: Vec<usize> = (0..anchors.len()).collect();
        let factor = train.factor(&places, inverse);
        let (mut missed, mut all) = (0.0, 0.0);
        for &q in &order[rest..] {
            let scores: Vec<f32> = anchors.iter().map(|&i| self.item(i)[q]).collect();
            let estimates = train.estimate_with(&factor, &scores);
            for (&item, estimate) in items.iter().zip(estimates).skip(anchors.len()) {
                let truth = self.item(item)[q];
                missed += f64::from(estimate - truth).powi(2);
                all += f64::from(truth).powi(2);
            }
        }
        Some(match all > 0.0 {
            true => (missed / all).sqrt(),
            false => missed.sqrt(),
        })
    }

    /// For items that come later: what their scores by a few `queries` say of those by
    /// all, as learnt from `items` that all queries have scored; `C U` of the
    /// paper's other way round (new items, old queries). At least twice as many items
    /// as queries are sound, or ridge.
    pub fn for_new_items(&self, queries: &[usize], items: &[usize], inverse: Inverse) -> NewItems {
        // The same with the roles of queries and items exchanged.
        let column = |q: usize| items.iter().map(move |&i| self.item(i)[q]);
        let exchanged = Self {
            scores: (0..self.queries).flat_map(column).collect(),
            queries: items.len(),
        };
        let factor = exchanged.factor(queries, inverse);
        let mut latent = vec![0.0; self.queries * queries.len()];
        let rows = exchanged.scores.chunks_exact(items.len().max(1));
        for (row, latent) in rows.zip(latent.chunks_exact_mut(queries.len().max(1))) {
            for (u, x) in factor.u.chunks_exact(items.len().max(1)).zip(latent) {
                let pairs = u.iter().zip(row);
                *x = pairs.map(|(u, &score)| u * f64::from(score)).sum::<f64>() as f32;
            }
        }
        NewItems {
            latent,
            queries: queries.to_vec(),
        }
    }

    /// The scores of all items by the weights of the anchor queries.
    fn of_weights(&self, weights: &[f32]) -> Vec<f32> {
        let items = self.scores.chunks_exact(self.queries);
        items.map(|item| kernels::dot(item, weights)).collect()
    }
}

/// How the scores of new items by a few queries give those by all; see
/// [`AnchorScores::for_new_items`].
#[derive(Debug, Clone, PartialEq)]
pub struct NewItems {
    /// `[all queries, these queries]`.
    latent: Vec<f32>,
    queries: Vec<usize>,
}

impl NewItems {
    /// The queries that a new item must be scored by.
    pub fn queries(&self) -> &[usize] {
        &self.queries
    }

    /// The scores by all queries of an item with these scores by [`Self::queries`],
    /// which stay as they are.
    pub fn estimate(&self, scores: &[f32]) -> Vec<f32> {
        let rows = self.latent.chunks_exact(self.queries.len().max(1));
        let mut all: Vec<f32> = rows.map(|row| kernels::dot(row, scores)).collect();
        for (&query, &score) in self.queries.iter().zip(scores) {
            all[query] = score;
        }
        all
    }
}

/// `U [k, r]` of some anchor items.
#[derive(Debug, Clone, PartialEq)]
pub struct Factor {
    u: Vec<f64>,
    queries: usize,
}

impl Factor {
    /// `c U`: how a query with these scores of the anchors is a sum of the anchor
    /// queries.
    fn weights(&self, scores: &[f32]) -> Vec<f32> {
        let mut weights = vec![0.0f64; self.queries];
        for (&score, row) in scores.iter().zip(self.u.chunks_exact(self.queries)) {
            let score = f64::from(score);
            weights
                .iter_mut()
                .zip(row)
                .for_each(|(w, u)| *w += score * u);
        }
        weights.into_iter().map(|w| w as f32).collect()
    }

    /// `U`, row-major `[anchors, queries]`.
    pub fn as_slice(&self) -> &[f64] {
        &self.u
    }
}

/// ANNCUR: the items of the greatest exact scores among the anchors and those that
/// look best from them, best first; `calls` items are scored. Of equal scores the
/// first item is better. Items that are not `allowed` are scored as anchors only.
pub fn nearest<E>(
    index: &AnchorScores,
    anchors: &[usize],
    factor: &Factor,
    calls: usize,
    allowed: &dyn Fn(usize) -> bool,
    score: &mut Scorer<'_, E>,
) -> Result<Vec<(usize, f32)>, E> {
    let of_anchors = score(anchors)?;
    let estimates = index.estimate_with(factor, &of_anchors);
    let mut scored: Vec<(usize, f32)> = anchors.iter().copied().zip(of_anchors).collect();
    let rest = calls.saturating_sub(anchors.len());
    add_best(&estimates, rest, allowed, &mut scored, score)?;
    scored.retain(|&(item, _)| allowed(item));
    sort(&mut scored);
    Ok(scored)
}

/// ADACUR: as [`nearest`], but the anchors are what is scored already: first the
/// beginning of `first`, a list of distinct items best first, then in every round
/// the items that look best. All of them count for the result.
pub fn adaptive<E>(
    index: &AnchorScores,
    first: &[usize],
    rounds: usize,
    calls: usize,
    inverse: Inverse,
    allowed: &dyn Fn(usize) -> bool,
    score: &mut Scorer<'_, E>,
) -> Result<Vec<(usize, f32)>, E> {
    let rounds = rounds.max(2);
    let calls = calls.min(index.items());
    let each = calls.div_ceil(rounds).max(1);
    let start: Vec<usize> = first
        .iter()
        .copied()
        .filter(|&i| allowed(i))
        .take(each)
        .collect();
    let scores = score(&start)?;
    let mut scored: Vec<(usize, f32)> = start.into_iter().zip(scores).collect();
    while scored.len() < calls {
        let (items, scores): (Vec<usize>, Vec<f32>) = scored.iter().copied().unzip();
        // Beyond as many anchors as queries, more do not make it better conditioned,
        // and the latest are the nearest.
        let from = items.len().saturating_sub(index.queries / 2);
        let estimates = index.estimate(&items[from..], &scores[from..], inverse);
        let before = scored.len();
        let more = each.min(calls - before);
        add_best(&estimates, more, allowed, &mut scored, score)?;
        if scored.len() == before {
            break;
        }
    }
    sort(&mut scored);
    Ok(scored)
}

/// Scores the `n` items of the greatest estimates that are not scored yet.
fn add_best<E>(
    estimates: &[f32],
    n: usize,
    allowed: &dyn Fn(usize) -> bool,
    scored: &mut Vec<(usize, f32)>,
    score: &mut Scorer<'_, E>,
) -> Result<(), E> {
    let known: HashSet<usize> = scored.iter().map(|s| s.0).collect();
    let mut top = kernels::TopK::new(n);
    for (item, &estimate) in estimates.iter().enumerate() {
        if !known.contains(&item) && allowed(item) {
            top.push(estimate, item as u64);
        }
    }
    let best: Vec<usize> = top
        .into_sorted()
        .into_iter()
        .map(|(_, i)| i as usize)
        .collect();
    let scores = score(&best)?;
    scored.extend(best.into_iter().zip(scores));
    Ok(())
}

fn sort(scored: &mut [(usize, f32)]) {
    scored.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use rand::Rng;

    use super::*;

    /// Scores of rank `rank`: anchor queries, items, and one more query.
    fn world(r: usize, n: usize, rank: usize, seed: u64) -> (AnchorScores, Vec<f32>) {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut draw =
            |n: usize| -> Vec<f32> { (0..n).map(|_| rng.random_range(-1.0..1.0)).collect() };
        let (queries, items, query) = (draw(r * rank), draw(n * rank), draw(rank));
        let mut scores = Vec::new();
        for item in items.chunks_exact(rank) {
            scores.extend(queries.chunks_exact(rank).map(|q| kernels::dot(q, item)));
        }
        let truth = items
            .chunks_exact(rank)
            .map(|i| kernels::dot(&query, i))
            .collect();
        (AnchorScores::new(scores, r).unwrap(), truth)
    }

    #[test]
    fn scores_of_low_rank_are_told_from_a_few() {
        let (index, truth) = world(30, 200, 8, 1);
        let anchors: Vec<usize> = (0..12).map(|i| i * 7).collect();
        let scores: Vec<f32> = anchors.iter().map(|&i| truth[i]).collect();
        for inverse in [Inverse::default(), Inverse::Pseudo] {
            let estimates = index.estimate(&anchors, &scores, inverse);
            let worst = estimates
                .iter()
                .zip(&truth)
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f32::max);
            assert!(worst < 2e-3, "{inverse:?}: off by {worst}");
        }
    }

    #[test]
    fn the_best_are_found_with_few_calls_and_no_item_is_scored_twice() {
        let (index, truth) = world(40, 500, 8, 2);
        let mut order: Vec<usize> = (0..500).collect();
        order.sort_by(|&a, &b| truth[b].total_cmp(&truth[a]));
        let anchors: Vec<usize> = (0..20).map(|i| i * 20 + 3).collect();
        for filtered in [false, true] {
            let allowed = |i: usize| !filtered || i.is_multiple_of(2);
            let best: Vec<usize> = order
                .iter()
                .copied()
                .filter(|&i| allowed(i))
                .take(10)
                .collect();
            let mut calls = Vec::new();
            let mut score = |items: &[usize]| {
                calls.extend_from_slice(items);
                Ok::<_, Infallible>(items.iter().map(|&i| truth[i]).collect())
            };
            let factor = index.factor(&anchors, Inverse::default());
            let found = nearest(&index, &anchors, &factor, 40, &allowed, &mut score).unwrap();
            let Ok(adapted) = adaptive(
                &index,
                &anchors,
                4,
                40,
                Inverse::default(),
                &allowed,
                &mut score,
            );
            for found in [found, adapted] {
                let ids: Vec<usize> = found.iter().take(10).map(|f| f.0).collect();
                assert_eq!(ids, best);
            }
            assert_eq!(calls.len(), 80);
            for calls in calls.chunks(40) {
                assert_eq!(calls.iter().collect::<HashSet<_>>().len(), 40);
            }
        }
    }

    #[test]
    fn few_queries_tell_the_scores_of_new_items() {
        let (index, _) = world(40, 300, 8, 3);
        let old: Vec<usize> = (0..200).collect();
        let queries: Vec<usize> = (0..12).map(|q| q * 3 + 1).collect();
        for inverse in [Inverse::default(), Inverse::Pseudo] {
            let new = index.for_new_items(&queries, &old, inverse);
            assert_eq!(new.queries(), queries);
            for item in 200..300 {
                let truth = index.item(item);
                let given: Vec<f32> = queries.iter().map(|&q| truth[q]).collect();
                let estimate = new.estimate(&given);
                let off = estimate.iter().zip(truth).map(|(a, b)| (a - b).abs());
                assert!(off.fold(0.0, f32::max) < 5e-3, "{inverse:?} {item}");
                assert!(queries.iter().all(|&q| estimate[q] == truth[q]));
            }
        }
    }

    #[test]
    fn the_error_of_estimates_is_told_without_more_scores() {
        // Enough anchors for the rank, and too few.
        let (index, truth) = world(60, 300, 8, 4);
        let error = |anchors: usize| {
            let anchors: Vec<usize> = (0..anchors).map(|i| i * 11).collect();
            let told = index
                .held_out_error(&anchors, Inverse::default(), 5)
                .unwrap();
            // Of a query that is in no table.
            let scores: Vec<f32> = anchors.iter().map(|&i| truth[i]).collect();
            let estimates = index.estimate(&anchors, &scores, Inverse::default());
            let missed: f32 = estimates
                .iter()
                .zip(&truth)
                .map(|(a, b)| (a - b).powi(2))
                .sum();
            let all: f32 = truth.iter().map(|t| t * t).sum();
            (told, f64::from((missed / all).sqrt()))
        };
        let (told, true_one) = error(20);
        assert!(told < 0.01 && true_one < 0.01, "{told} {true_one}");
        let (told, true_one) = error(4);
        assert!((0.3..1.5).contains(&(told / true_one)), "{told} {true_one}");
        let (one, _) = world(1, 9, 2, 1);
        assert_eq!(one.held_out_error(&[1], Inverse::default(), 0), None);
    }

    #[test]
    fn nothing_to_score_is_no_trouble() {
        let index = AnchorScores::new(vec![1.0; 12], 3).unwrap();
        let mut score = |items: &[usize]| Ok::<_, Infallible>(vec![0.0; items.len()]);
        let Ok(found) = adaptive(
            &index,
            &[],
            3,
            99,
            Inverse::default(),
            &|_| true,
            &mut score,
        );
        assert_eq!(found.len(), 4);
        let Ok(found) = adaptive(
            &index,
            &[1],
            3,
            99,
            Inverse::default(),
            &|_| false,
            &mut score,
        );
        assert!(found.is_empty());
        assert!(AnchorScores::new(vec![1.0; 5], 2).is_none());
        assert!(AnchorScores::new(vec![f32::NAN; 4], 2).is_none());
        assert!(AnchorScores::new(Vec::new(), 0).is_none());
    }
}

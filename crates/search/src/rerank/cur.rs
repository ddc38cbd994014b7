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
//! of all items; with `ridge` 0 that is the pseudo-inverse of the paper. A square
//! `X` is ill-conditioned, and without ridge its scores are useless: give twice as
//! many queries as anchor items, or ridge.
//!
//! [`nearest`] scores the anchors, then the items that look best: that is ANNCUR.
//! [`adaptive`] begins with items that something cheaper found, and in every round
//! makes anchors of all that is scored by then: ADACUR. Both score `calls` items.
//!
//! Cost beyond these: `k^2 r + k^3` for `U`, once, or in every round; `k r + r n`
//! for a query.

use std::collections::HashSet;

use keyfold_kernels as kernels;

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

    /// The scores of an item.
    fn item(&self, i: usize) -> &[f32] {
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

    /// The scores of all items by the weights of the anchor queries.
    fn of_weights(&self, weights: &[f32]) -> Vec<f32> {
        let items = self.scores.chunks_exact(self.queries);
        items.map(|item| kernels::dot(item, weights)).collect()
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

/// `(X'X + l I)^-1 X'`, `[k, r]`, by Cholesky; `x` holds the columns of `X`.
fn ridge_inverse(x: &[f64], r: usize, k: usize, ridge: f64) -> Vec<f64> {
    let column = |i: usize| &x[i * r..(i + 1) * r];
    let mut a = vec![0.0; k * k];
    for i in 0..k {
        for j in 0..=i {
            a[i * k + j] = dot(column(i), column(j));
        }
    }
    let trace: f64 = (0..k).map(|i| a[i * k + i]).sum();
    // Never 0, or equal anchors would divide by it.
    let l = (ridge.max(1e-14) * trace / k.max(1) as f64).max(f64::MIN_POSITIVE);
    for i in 0..k {
        a[i * k + i] += l;
    }
    // L of A = L L', in place.
    for i in 0..k {
        for j in 0..=i {
            let (row_i, row_j) = (&a[i * k..i * k + j], &a[j * k..j * k + j]);
            let rest = a[i * k + j] - dot(row_i, row_j);
            a[i * k + j] = if i == j {
                rest.max(l).sqrt()
            } else {
                rest / a[j * k + j]
            };
        }
    }
    // The rows of X' are its columns: L Y = X', then L' U = Y.
    let mut u = x.to_vec();
    for i in 0..k {
        let (done, now) = u.split_at_mut(i * r);
        let now = &mut now[..r];
        for (j, row) in done.chunks_exact(r).enumerate() {
            let factor = a[i * k + j];
            now.iter_mut().zip(row).for_each(|(x, y)| *x -= factor * y);
        }
        now.iter_mut().for_each(|x| *x /= a[i * k + i]);
    }
    for i in (0..k).rev() {
        let (now, done) = u[i * r..].split_at_mut(r);
        for (j, row) in (i + 1..k).zip(done.chunks_exact(r)) {
            let factor = a[j * k + i];
            now.iter_mut().zip(row).for_each(|(x, y)| *x -= factor * y);
        }
        now.iter_mut().for_each(|x| *x /= a[i * k + i]);
    }
    u
}

/// The pseudo-inverse `[k, r]` of the matrix with these columns, by one-sided
/// Jacobi rotations: `X V = W` with orthogonal columns `w_i` of length `s_i`, so
/// `X^+ = V S^-2 W'`.
fn pseudo_inverse(mut w: Vec<f64>, r: usize, k: usize) -> Vec<f64> {
    const CUT: f64 = 1e-15;
    let mut v = vec![0.0; k * k];
    (0..k).for_each(|i| v[i * k + i] = 1.0);
    for _sweep in 0..60 {
        let mut rotated = false;
        for i in 0..k {
            for j in i + 1..k {
                rotated |= rotate(&mut w, &mut v, i, j, r, k);
            }
        }
        if !rotated {
            break;
        }
    }
    let squares: Vec<f64> = w.chunks_exact(r).map(|c| dot(c, c)).collect();
    let largest = squares.iter().copied().fold(0.0, f64::max);
    let mut inverse = vec![0.0; k * r];
    for (i, &square) in squares.iter().enumerate() {
        if square <= 0.0 || square.sqrt() <= CUT * largest.sqrt() {
            continue;
        }
        for (row, out) in inverse.chunks_exact_mut(r).enumerate() {
            let factor = v[i * k + row] / square;
            out.iter_mut()
                .zip(&w[i * r..(i + 1) * r])
                .for_each(|(o, w)| *o += factor * w);
        }
    }
    inverse
}

/// Makes two columns orthogonal; false if they are.
fn rotate(w: &mut [f64], v: &mut [f64], i: usize, j: usize, r: usize, k: usize) -> bool {
    let (a, b) = (&w[i * r..(i + 1) * r], &w[j * r..(j + 1) * r]);
    let (aa, bb, ab) = (dot(a, a), dot(b, b), dot(a, b));
    if ab.abs() <= 1e-15 * (aa * bb).sqrt() || ab == 0.0 {
        return false;
    }
    let z = (bb - aa) / (2.0 * ab);
    let t = z.signum() / (z.abs() + (1.0 + z * z).sqrt());
    let c = 1.0 / (1.0 + t * t).sqrt();
    let s = c * t;
    for (m, n) in [(w, r), (v, k)] {
        let (before, after) = m.split_at_mut(j * n);
        let pairs = before[i * n..(i + 1) * n].iter_mut().zip(&mut after[..n]);
        for (x, y) in pairs {
            (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
        }
    }
    true
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

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

    proptest! {
        #[test]
        fn inverses_invert(r in 1usize..7, k in 1usize..7, seed: u64) {
            let mut rng = SmallRng::seed_from_u64(seed);
            let x: Vec<f64> = (0..r * k).map(|_| rng.random_range(-1.0..1.0)).collect();
            let u = pseudo_inverse(x.clone(), r, k);
            // X U X = X, whatever the shape.
            for i in 0..k {
                let mut column = vec![0.0; r];
                for m in 0..k {
                    let weight = dot(&u[m * r..(m + 1) * r], &x[i * r..(i + 1) * r]);
                    column.iter_mut().zip(&x[m * r..(m + 1) * r]).for_each(|(c, x)| *c += weight * x);
                }
                for (a, b) in column.iter().zip(&x[i * r..(i + 1) * r]) {
                    prop_assert!((a - b).abs() < 1e-7, "{} {}", a, b);
                }
            }
        }
    }
}

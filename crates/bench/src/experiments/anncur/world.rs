//! Queries and items with all their scores, and what each way finds of the best.

use std::collections::HashSet;
use std::convert::Infallible;

use keyfold_kernels as kernels;
use keyfold_search::rerank::cur::{AnchorScores, Inverse, adaptive, nearest};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::DUAL;
use crate::BenchError;
use crate::quality::mean;

const DIM: usize = 32;
const HIDDEN: usize = 64;
/// Rounds of the adaptive way.
const ROUNDS: usize = 5;

/// Queries and items with all their scores.
pub(super) struct World {
    /// Scores of the anchor queries.
    pub(super) index: AnchorScores,
    /// For every held-out query the scores of all items.
    pub(super) truth: Vec<Vec<f32>>,
    /// The same by cheaper ways.
    pub(super) cheap: Vec<(&'static str, Vec<Vec<f32>>)>,
}

/// Sizes of the synthetic world.
pub(super) struct Sizes {
    pub(super) items: usize,
    pub(super) train: usize,
    pub(super) test: usize,
    pub(super) seeds: u64,
}

/// Gaussian numbers with standard deviation `scale` (Box-Muller).
fn gaussian(rng: &mut StdRng, n: usize, scale: f32) -> Vec<f32> {
    let mut draw = || {
        let (a, b): (f32, f32) = (1.0 - rng.random::<f32>(), rng.random());
        (-2.0 * a.ln()).sqrt() * (std::f32::consts::TAU * b).cos() * scale
    };
    (0..n).map(|_| draw()).collect()
}

pub(super) fn synthetic(sizes: &Sizes, seed: u64, bent: bool) -> Result<World, BenchError> {
    let mut rng = StdRng::seed_from_u64(seed);
    let queries = sizes.train + sizes.test;
    let mut scaled = |n: usize| {
        let mut rows = gaussian(&mut rng, n * DIM, 1.0);
        for row in rows.chunks_exact_mut(DIM) {
            row.iter_mut()
                .zip(0..)
                .for_each(|(x, j)| *x *= 0.9f32.powi(j));
        }
        rows
    };
    let (u, v) = (scaled(queries), scaled(sizes.items));
    let scale = (DIM as f32).sqrt().recip();
    // Transposed, as products with rows want them.
    let a = gaussian(&mut rng, HIDDEN * DIM, scale);
    let b = gaussian(&mut rng, HIDDEN * DIM, scale);
    let w = gaussian(&mut rng, HIDDEN, 1.0 / 8.0);
    let noisy = |rng: &mut StdRng, rows: &[f32]| -> Vec<f32> {
        let noise = gaussian(rng, rows.len(), 0.25);
        rows.iter().zip(noise).map(|(x, n)| x + n).collect()
    };
    let (dual_u, dual_v) = (noisy(&mut rng, &u), noisy(&mut rng, &v));
    let product = |x: &[f32], y: &[f32], width: usize| {
        let (n, m) = (x.len() / width, y.len() / width);
        let mut out = vec![0.0; n * m];
        kernels::matmul_nt(&mut out, x, y, n, m, width, 1);
        out
    };
    let mut scores = product(&u, &v, DIM);
    if bent {
        let (ua, vb) = (product(&u, &a, DIM), product(&v, &b, DIM));
        let mut inner = vec![0.0; sizes.items * HIDDEN];
        for (ua, scores) in ua
            .chunks_exact(HIDDEN)
            .zip(scores.chunks_exact_mut(sizes.items))
        {
            for (inner, vb) in inner.chunks_exact_mut(HIDDEN).zip(vb.chunks_exact(HIDDEN)) {
                let pairs = ua.iter().zip(vb);
                inner
                    .iter_mut()
                    .zip(pairs)
                    .for_each(|(x, (u, v))| *x = 2.0 * (u + v));
            }
            kernels::tanh(&mut inner);
            let bends = inner
                .chunks_exact(HIDDEN)
                .map(|row| 6.0 * kernels::dot(row, &w));
            scores.iter_mut().zip(bends).for_each(|(s, b)| *s += b);
        }
    }
    let dual = product(&dual_u[sizes.train * DIM..], &dual_v, DIM);
    let rows = |scores: &[f32]| {
        scores
            .chunks_exact(sizes.items)
            .map(<[f32]>::to_vec)
            .collect()
    };
    let (train, test) = scores.split_at(sizes.train * sizes.items);
    Ok(World {
        index: anchor_scores(train, sizes.items)?,
        truth: rows(test),
        cheap: vec![(DUAL, rows(&dual))],
    })
}

/// From `[queries, items]`.
pub(super) fn anchor_scores(scores: &[f32], items: usize) -> Result<AnchorScores, BenchError> {
    let queries = scores.len() / items.max(1);
    let by_item = (0..items).flat_map(|i| (0..queries).map(move |q| scores[q * items + i]));
    AnchorScores::new(by_item.collect(), queries)
        .ok_or_else(|| BenchError::data("the scorer", "its scores are not finite"))
}

impl World {
    pub(super) fn items(&self) -> usize {
        self.index.items()
    }

    /// Recall of the best `k` of every held-out query when `find` scores `calls`
    /// items of it.
    pub(super) fn recall(&self, k: usize, find: impl Fn(usize) -> Vec<usize>) -> Vec<f64> {
        let recall = |(q, truth): (usize, &Vec<f32>)| {
            let best: HashSet<usize> = top(truth, k).into_iter().collect();
            let found: HashSet<usize> = find(q).into_iter().collect();
            best.intersection(&found).count() as f64 / best.len().max(1) as f64
        };
        self.truth.iter().enumerate().map(recall).collect()
    }

    /// Rerank-the-top of a cheaper way: what is scored is what is found.
    pub(super) fn top_of(&self, scores: &[Vec<f32>], calls: usize, k: usize) -> f64 {
        mean(&self.recall(k, |q| top(&scores[q], calls)))
    }

    pub(super) fn random(&self, calls: usize, k: usize, seed: u64) -> f64 {
        mean(&self.recall(k, |q| {
            let mut rng = StdRng::seed_from_u64(seed + q as u64);
            rand::seq::index::sample(&mut rng, self.items(), calls.min(self.items())).into_vec()
        }))
    }

    pub(super) fn cur(&self, anchors: usize, calls: usize, k: usize, seed: u64) -> f64 {
        let anchors = drawn(self.items(), anchors, seed);
        let factor = self.index.factor(&anchors, Inverse::default());
        mean(&self.recall(k, |q| {
            let mut score = self.scorer(q);
            let Ok(found) = nearest(&self.index, &anchors, &factor, calls, &|_| true, &mut score);
            found.into_iter().take(k).map(|f| f.0).collect()
        }))
    }

    pub(super) fn adaptive(&self, cheap: &[Vec<f32>], calls: usize, k: usize) -> f64 {
        mean(&self.recall(k, |q| {
            let first = top(&cheap[q], calls);
            let mut score = self.scorer(q);
            let index = &self.index;
            let inverse = Inverse::default();
            let Ok(found) = adaptive(index, &first, ROUNDS, calls, inverse, &|_| true, &mut score);
            found.into_iter().take(k).map(|f| f.0).collect()
        }))
    }

    fn scorer(&self, q: usize) -> impl FnMut(&[usize]) -> Result<Vec<f32>, Infallible> {
        move |items| Ok(items.iter().map(|&i| self.truth[q][i]).collect())
    }
}

pub(super) fn top(scores: &[f32], k: usize) -> Vec<usize> {
    let best = kernels::top_k(scores, k).into_iter();
    best.map(|(_, i)| i as usize).collect()
}

/// `k` of `n` places, ascending.
pub(super) fn drawn(n: usize, k: usize, seed: u64) -> Vec<usize> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut all = rand::seq::index::sample(&mut rng, n, k.min(n)).into_vec();
    all.sort_unstable();
    all
}

/// Frobenius norm of what estimates miss over that of the truth.
pub(super) fn relative_error(
    world: &World,
    index: &AnchorScores,
    anchors: &[usize],
    inverse: Inverse,
) -> f64 {
    let factor = index.factor(anchors, inverse);
    let (mut missed, mut all) = (0.0, 0.0);
    for truth in &world.truth {
        let scores: Vec<f32> = anchors.iter().map(|&i| truth[i]).collect();
        let estimates = index.estimate_with(&factor, &scores);
        for (e, t) in estimates.iter().zip(truth) {
            missed += f64::from(e - t).powi(2);
            all += f64::from(*t).powi(2);
        }
    }
    (missed / all).sqrt()
}

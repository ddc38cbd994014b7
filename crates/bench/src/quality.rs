//! How good a ranking is, and whether one is better than another.

use std::collections::HashMap;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// What is known to be relevant for one query: gain by document; larger is better.
pub(crate) type Relevant = HashMap<usize, f64>;

/// Normalised discounted cumulative gain of the first `k` (Järvelin and
/// Kekäläinen 2002): `Σ gainᵢ / log2(i + 1)` over that of the best order.
pub(crate) fn ndcg(ranked: &[usize], relevant: &Relevant, k: usize) -> f64 {
    let discounted = |gains: &mut dyn Iterator<Item = f64>| -> f64 {
        let places = gains.take(k).enumerate();
        places.map(|(i, g)| g / (i as f64 + 2.0).log2()).sum()
    };
    let mut ideal: Vec<f64> = relevant.values().copied().collect();
    ideal.sort_by(|a, b| b.total_cmp(a));
    let best = discounted(&mut ideal.into_iter());
    let gain = |d: &usize| relevant.get(d).copied().unwrap_or(0.0);
    if best > 0.0 {
        discounted(&mut ranked.iter().map(gain)) / best
    } else {
        0.0
    }
}

/// Share of the relevant documents among the first `k`.
pub(crate) fn recall(ranked: &[usize], relevant: &Relevant, k: usize) -> f64 {
    let all = relevant.values().filter(|&&g| g > 0.0).count();
    let found = ranked.iter().take(k).filter(|d| is_relevant(relevant, d));
    found.count() as f64 / all.max(1) as f64
}

/// Mean of the precision at the place of every relevant document.
pub(crate) fn average_precision(ranked: &[usize], relevant: &Relevant) -> f64 {
    let all = relevant.values().filter(|&&g| g > 0.0).count();
    let mut found = 0.0;
    let mut sum = 0.0;
    for (i, d) in ranked.iter().enumerate() {
        if is_relevant(relevant, d) {
            found += 1.0;
            sum += found / (i as f64 + 1.0);
        }
    }
    sum / all.max(1) as f64
}

fn is_relevant(relevant: &Relevant, document: &usize) -> bool {
    relevant.get(document).is_some_and(|&g| g > 0.0)
}

/// The mean, 0 of nothing.
pub(crate) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Spearman's correlation: Pearson's of the ranks, equal values sharing the mean of theirs.
/// 0 where one side is constant or there are fewer than two values.
pub(crate) fn spearman(a: &[f64], b: &[f64]) -> f64 {
    pearson(&ranks(a), &ranks(b))
}

/// Pearson's correlation; 0 where one side is constant or there are fewer than two values.
pub(crate) fn pearson(a: &[f64], b: &[f64]) -> f64 {
    let (middle_a, middle_b) = (mean(a), mean(b));
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (x, y) in a.iter().zip(b) {
        let (x, y) = (x - middle_a, y - middle_b);
        ab += x * y;
        aa += x * x;
        bb += y * y;
    }
    let spread = (aa * bb).sqrt();
    if spread > 0.0 { ab / spread } else { 0.0 }
}

/// Ranks from 0; equal values get the mean of theirs.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&i, &j| values[i].total_cmp(&values[j]));
    let mut ranks = vec![0.0; values.len()];
    let mut from = 0;
    while from < order.len() {
        let equal = |&&i: &&usize| values[i] == values[order[from]];
        let to = from + order[from..].iter().take_while(equal).count().max(1);
        for &i in &order[from..to] {
            ranks[i] = (from + to - 1) as f64 / 2.0;
        }
        from = to;
    }
    ranks
}

/// What a paired bootstrap says of the difference of two methods on the same queries.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub(crate) struct Difference {
    /// Mean of the first minus mean of the second.
    pub(crate) mean: f64,
    /// Bounds of the middle 95 % of resampled means.
    pub(crate) low: f64,
    /// The upper one.
    pub(crate) high: f64,
    /// Share of resamples in which the first is not better (one-sided).
    pub(crate) p: f64,
}

const RESAMPLES: usize = 10_000;

/// Paired bootstrap over queries (Efron and Tibshirani 1993).
pub(crate) fn bootstrap(first: &[f64], second: &[f64], seed: u64) -> Difference {
    let differences: Vec<f64> = first.iter().zip(second).map(|(a, b)| a - b).collect();
    let n = differences.len().max(1);
    let mut rng = StdRng::seed_from_u64(seed);
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let draws = (0..differences.len()).map(|_| differences[rng.random_range(0..n)]);
            draws.sum::<f64>() / n as f64
        })
        .collect();
    means.sort_by(f64::total_cmp);
    let not_better = means.iter().filter(|&&m| m <= 0.0).count();
    Difference {
        mean: mean(&differences),
        low: means[RESAMPLES * 25 / 1000],
        high: means[RESAMPLES * 975 / 1000],
        p: not_better as f64 / RESAMPLES as f64,
    }
}

/// The value below which `share` of the values lie.
pub(crate) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (share * (sorted.len().saturating_sub(1)) as f64).round() as usize;
    sorted.get(at).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spearman_sees_order_and_shares_ranks_of_equals() {
        assert!((spearman(&[1.0, 5.0, 9.0], &[0.1, 0.2, 7.0]) - 1.0).abs() < 1e-12);
        assert!((spearman(&[1.0, 5.0, 9.0], &[3.0, 2.0, 1.0]) + 1.0).abs() < 1e-12);
        // As scipy.stats.spearmanr gives it.
        let tied = spearman(&[1.0, 2.0, 2.0, 4.0, 3.0], &[2.0, 1.0, 3.0, 5.0, 3.0]);
        assert!((tied - 0.763_157_894_736_842_1).abs() < 1e-12, "{tied}");
        assert_eq!(spearman(&[1.0, 1.0], &[1.0, 2.0]), 0.0);
    }

    #[test]
    fn measures_have_known_values() {
        let relevant: Relevant = [(1, 3.0), (2, 1.0), (3, 0.0)].into();
        assert_eq!(ndcg(&[1, 2, 3], &relevant, 10), 1.0);
        let swapped = (1.0 + 3.0 / 3f64.log2()) / (3.0 + 1.0 / 3f64.log2());
        assert!((ndcg(&[2, 1], &relevant, 10) - swapped).abs() < 1e-12);
        assert_eq!(ndcg(&[3, 4], &relevant, 10), 0.0);
        assert_eq!(recall(&[9, 1, 2], &relevant, 2), 0.5);
        assert_eq!(
            average_precision(&[9, 1, 2], &relevant),
            (0.5 + 2.0 / 3.0) / 2.0
        );
        assert_eq!(quantile(&[3.0, 1.0, 2.0], 0.5), 2.0);
    }

    #[test]
    fn bootstrap_tells_a_difference_from_noise() {
        let a: Vec<f64> = (0..200).map(|i| f64::from(i % 7)).collect();
        let better: Vec<f64> = a.iter().map(|x| x + 0.5).collect();
        assert_eq!(bootstrap(&better, &a, 1).p, 0.0);
        assert_eq!(bootstrap(&a, &a, 1).p, 1.0);
        let noise: Vec<f64> = (0..200).map(|i| f64::from((i + 1) % 7)).collect();
        let d = bootstrap(&a, &noise, 1);
        assert!(d.p > 0.05 && d.low < 0.0 && d.high > 0.0, "{d:?}");
    }
}

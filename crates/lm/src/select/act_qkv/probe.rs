//! The probe query of a chunk, and how many blocks each layer may retrieve with it.

use std::collections::VecDeque;

use keyfold_kernels::axpy;

/// Mean and variance of every channel of the queries that were seen, so that a query which
/// is unlike them can be told.
#[derive(Debug, Clone, Default)]
pub(super) struct Statistics {
    mean: Vec<f32>,
    var: Vec<f32>,
    /// Chunks so far.
    count: u64,
}

impl Statistics {
    /// Takes in the queries `[n, width]` of a chunk and gives their weights, which sum to 1:
    /// the more a query deviates from what was seen, the more it weighs. After `upper` chunks
    /// old ones fade. `plain_first`: all weigh the same until then.
    pub(super) fn weights(
        &mut self,
        queries: &[f32],
        width: usize,
        upper: u64,
        plain_first: bool,
    ) -> Vec<f32> {
        let n = queries.len() / width;
        let plain = vec![1.0 / n as f32; n];
        let early = self.count <= upper;
        self.take_in(queries, width, upper);
        if plain_first && early {
            return plain;
        }
        let floor = self.var.iter().sum::<f32>() / width as f32 / 100.0;
        let deviation = |row: &[f32]| {
            let channels = row.iter().zip(&self.mean).zip(&self.var);
            let terms = channels.map(|((x, mean), var)| (x - mean).powi(2) / (var + floor));
            terms.sum::<f32>() / width as f32
        };
        let mut weights: Vec<f32> = queries.chunks_exact(width).map(deviation).collect();
        let sum: f32 = weights.iter().sum();
        if !(sum > 0.0 && sum.is_finite()) {
            // Nothing deviates, or nothing is known yet.
            return plain;
        }
        weights.iter_mut().for_each(|weight| *weight /= sum);
        weights
    }

    fn take_in(&mut self, queries: &[f32], width: usize, upper: u64) {
        let n = (queries.len() / width) as f32;
        let mut mean = vec![0.0; width];
        for row in queries.chunks_exact(width) {
            axpy(&mut mean, 1.0 / n, row);
        }
        let mut var = vec![0.0; width];
        for row in queries.chunks_exact(width) {
            for ((var, x), mean) in var.iter_mut().zip(row).zip(&mean) {
                *var += (x - mean).powi(2) / n;
            }
        }
        if self.count == 0 {
            if n > 1.0 {
                var.iter_mut().for_each(|var| *var *= n / (n - 1.0));
            }
            (self.mean, self.var) = (mean, var);
        } else {
            let m = self.count.min(upper.max(1)) as f32;
            let own = self.mean.iter_mut().zip(&mut self.var);
            for ((old, old_var), (mean, var)) in own.zip(mean.iter().zip(&var)) {
                *old_var =
                    (*old_var * (m - 1.0 / n) + var + (mean - *old).powi(2) / (1.0 + 1.0 / m))
                        / (m + 1.0 - 1.0 / n);
                *old = (*old * m + mean) / (m + 1.0);
            }
        }
        self.count += 1;
    }
}

/// Certainty of the layers' rankings of blocks, by which they share a budget.
#[derive(Debug, Clone)]
pub(super) struct Budgets {
    /// Normalised entropies of every layer's last rankings.
    history: Vec<VecDeque<f32>>,
    /// Entropies that are kept of each layer.
    kept: usize,
}

/// How few and how many blocks a layer may retrieve.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) least: usize,
    pub(super) most: usize,
}

impl Budgets {
    pub(super) fn new(layers: usize, kept: usize) -> Self {
        Self {
            history: vec![VecDeque::new(); layers],
            kept,
        }
    }

    /// How many blocks `layer` retrieves by `scores`, of what `remaining` blocks the layers
    /// from it on have; lowers `remaining`. Before `by_certainty` all layers get the same.
    pub(super) fn share(
        &mut self,
        layer: usize,
        scores: &[f32],
        bounds: Bounds,
        by_certainty: bool,
        remaining: &mut f32,
    ) -> usize {
        let n = scores.len();
        // One block leaves no choice, and its entropy says nothing.
        if n > 1 {
            self.note(layer, entropy(scores) / (n as f32).ln());
        }
        if n <= 1 {
            *remaining -= n as f32;
            return n;
        }
        let later = &self.history[layer..];
        let known = self.history.iter().all(|own| own.len() == self.kept);
        let mean = |own: &VecDeque<f32>| own.iter().sum::<f32>() / own.len() as f32;
        let weight = if by_certainty && known {
            mean(&later[0]) / later.iter().map(mean).sum::<f32>()
        } else {
            1.0 / later.len() as f32
        };
        let share = (weight * *remaining).round_ties_even();
        let share = if share.is_finite() {
            share.max(0.0) as usize
        } else {
            0
        };
        let share = share.min(n.min(bounds.most)).max(n.min(bounds.least));
        *remaining -= share as f32;
        share
    }

    /// Counts a ranking of `layer` with this normalised entropy.
    pub(super) fn note(&mut self, layer: usize, entropy: f32) {
        let own = &mut self.history[layer];
        own.push_back(entropy);
        if own.len() > self.kept {
            own.pop_front();
        }
    }
}

/// Entropy of the softmax of `scores`.
fn entropy(scores: &[f32]) -> f32 {
    let greatest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = scores.iter().map(|x| (x - greatest).exp()).sum();
    let terms = scores.iter().map(|x| {
        let p = (x - greatest).exp() / sum;
        -p * (p + 1e-10).ln()
    });
    terms.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_statistics_are_those_of_all_queries() {
        // Chunks of 4 rows of one channel; their mean and variance over all rows.
        let chunks = [
            [1.0, 2.0, 3.0, 6.0],
            [0.0, 0.0, 4.0, 8.0],
            [1.0, 1.0, 1.0, 1.0],
        ];
        let mut statistics = Statistics::default();
        for chunk in &chunks {
            statistics.weights(chunk, 1, 1000, false);
        }
        let all: Vec<f32> = chunks.iter().flatten().copied().collect();
        let mean = all.iter().sum::<f32>() / 12.0;
        assert!((statistics.mean[0] - mean).abs() < 1e-5);
        let var = all.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / 11.0;
        assert!(
            (statistics.var[0] - var).abs() < 1e-4,
            "{} {var}",
            statistics.var[0]
        );
    }

    #[test]
    fn the_query_that_is_unlike_the_others_weighs_most() {
        let mut statistics = Statistics::default();
        let usual = [1.0, 0.0, 0.9, 0.1, 1.1, -0.1, 1.0, 0.1];
        let weights = statistics.weights(&usual, 2, 1000, false);
        assert!((weights.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        for _ in 0..20 {
            statistics.weights(&usual, 2, 1000, false);
        }
        let odd = [1.0, 0.0, 0.9, 0.1, -3.0, 4.0, 1.0, 0.1];
        let weights = statistics.clone().weights(&odd, 2, 1000, false);
        assert!(weights[2] > 0.9, "{weights:?}");
        assert_eq!(statistics.weights(&odd, 2, 1000, true), [0.25; 4]);
        // Queries that are all alike, from the start, weigh the same.
        assert_eq!(
            Statistics::default().weights(&[2.0; 4], 2, 9, false),
            [0.5; 2]
        );
        assert_eq!(Statistics::default().weights(&[2.0; 2], 2, 9, false), [1.0]);
    }

    #[test]
    fn uncertain_layers_get_more_blocks_and_bounds_hold() {
        let bounds = Bounds { least: 2, most: 40 };
        let flat = vec![0.5; 100];
        let mut sharp = vec![0.0; 100];
        sharp[7] = 9.0;
        let mut budgets = Budgets::new(2, 3);
        for _ in 0..3 {
            let mut remaining = 40.0;
            assert_eq!(budgets.share(0, &sharp, bounds, true, &mut remaining), 20);
            assert_eq!(budgets.share(1, &flat, bounds, true, &mut remaining), 20);
            assert_eq!(remaining, 0.0);
        }
        let mut remaining = 40.0;
        let first = budgets.share(0, &sharp, bounds, true, &mut remaining);
        assert!((2..8).contains(&first), "{first}");
        let second = budgets.share(1, &flat, bounds, true, &mut remaining);
        assert_eq!(second, 40 - first);
        assert_eq!(budgets.share(0, &flat, bounds, false, &mut 1000.0), 40);
        assert_eq!(budgets.share(0, &flat, bounds, false, &mut 0.0), 2);
        assert_eq!(budgets.share(0, &[], bounds, false, &mut 10.0), 0);
        assert_eq!(budgets.share(0, &[1.0], bounds, false, &mut 0.0), 1);
    }
}

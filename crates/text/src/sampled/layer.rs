//! The layer that predicts words, its losses and their gradients.
//!
//! With a hidden vector `h`, `s(w) = O_w h + b_w`, a word `t` that occurred and words
//! `N` that were drawn, without `t`:
//!
//! ```text
//! sampled softmax    -log( exp r(t) / (exp r(t) + Σ_N exp r(n)) ),  r(w) = s(w) - log E(w)
//! NCE                -log σ(r(t)) - Σ_N log σ(-r(n))
//! negative sampling  -log σ(s(t)) - Σ_N log σ(-s(n))
//! ```
//!
//! `E(w)` is how often `w` was expected among the words drawn (Jean et al. 2015;
//! Gutmann and Hyvärinen 2010; Mikolov et al. 2013). The words drawn are shared by a
//! batch, so that their products are matrix products, or each target has its own, as
//! word2vec has it.

use std::ops::Range;

use keyfold_kernels as kernels;
use rand::rngs::SmallRng;
use serde::{Deserialize, Serialize};

use super::sampler::Sampler;
use super::table::{Add, Table};

/// What is minimised when a word is predicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WordLoss {
    /// The softmax over the word and those drawn, corrected for how they were drawn.
    SampledSoftmax,
    /// Telling the word from those drawn, corrected for how they were drawn.
    Nce,
    /// Telling the word from those drawn.
    NegativeSampling,
}

/// Vectors and biases of the words that are predicted.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Layer {
    /// `[words, dim]`.
    pub(crate) weights: Table,
    /// `[words, 1]`.
    pub(crate) bias: Table,
}

/// Words that did not occur.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) enum Negatives {
    /// The same for all targets of a batch, in order, each once.
    #[default]
    None,
    Shared {
        words: Vec<u32>,
        /// `log E` of each.
        expected: Vec<f32>,
    },
    /// So many for each target, one target after another, with `log E` of every word of
    /// the vocabulary left out: for negative sampling.
    Own { words: Vec<u32>, each: usize },
}

/// Hidden vectors with the words that each is to predict, and what was learned of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Batch {
    /// `[rows, dim]`.
    pub(crate) hidden: Vec<f32>,
    /// The words of all rows, one row after another.
    pub(crate) targets: Vec<u32>,
    /// For each row the end of its words.
    pub(crate) ends: Vec<usize>,
    /// `log E` of the targets; may be empty for negative sampling.
    pub(crate) expected: Vec<f32>,
    pub(crate) negatives: Negatives,
    /// The sum of the losses of all targets.
    pub(crate) loss: f64,
    /// `[rows, dim]`.
    pub(crate) hidden_gradient: Vec<f32>,
    /// For each target that of its `s(t)`.
    target_gradient: Vec<f32>,
    /// That of `s(n)`: `[rows, shared]` or `[targets, own]`.
    negative_gradient: Vec<f32>,
    /// Of shared words: their vectors, `[shared, dim]`, and the gradients of these and
    /// of their biases.
    shared_rows: Vec<f32>,
    shared_gradient: Vec<f32>,
    shared_bias: Vec<f32>,
}

impl Batch {
    pub(crate) fn rows(&self) -> usize {
        self.ends.len()
    }

    fn targets_of(&self, row: usize) -> Range<usize> {
        let start = if row == 0 { 0 } else { self.ends[row - 1] };
        start..self.ends[row]
    }

    /// Makes room for new contents.
    pub(crate) fn clear(&mut self) {
        self.hidden.clear();
        self.targets.clear();
        self.ends.clear();
        self.expected.clear();
        self.loss = 0.0;
    }

    /// Draws the words that did not occur: `many` for all targets together, or for each.
    pub(crate) fn draw(
        &mut self,
        loss: WordLoss,
        sampler: &Sampler,
        many: usize,
        own: bool,
        rng: &mut SmallRng,
    ) {
        self.expected.clear();
        if own {
            let draws = many * self.targets.len();
            let mut words = match std::mem::take(&mut self.negatives) {
                Negatives::Own { words, .. } => words,
                _ => Vec::new(),
            };
            words.clear();
            words.extend((0..draws).map(|_| sampler.draw(rng)));
            self.negatives = Negatives::Own { words, each: many };
            return;
        }
        let (mut words, mut expected) = match std::mem::take(&mut self.negatives) {
            Negatives::Shared { words, expected } => (words, expected),
            _ => Default::default(),
        };
        let by = sampler.distinct(many, rng, &mut words);
        expected.clear();
        if loss == WordLoss::NegativeSampling {
            expected.resize(words.len(), 0.0);
        } else {
            expected.extend(words.iter().map(|&w| by.log(w)));
            self.expected
                .extend(self.targets.iter().map(|&w| by.log(w)));
        }
        self.negatives = Negatives::Shared { words, expected };
    }

    /// The rows of the layer's weights that have a gradient.
    pub(crate) fn weight_gradient(&self, dim: usize, scale: f32, add: Add<'_>) {
        for row in 0..self.rows() {
            let hidden = &self.hidden[row * dim..(row + 1) * dim];
            for at in self.targets_of(row) {
                add(self.targets[at], scale * self.target_gradient[at], hidden);
                for (&word, &gradient) in self.own(at) {
                    // An own word that is the target itself has none.
                    if gradient != 0.0 {
                        add(word, scale * gradient, hidden);
                    }
                }
            }
        }
        if let Negatives::Shared { words, .. } = &self.negatives {
            for (&word, gradient) in words.iter().zip(self.shared_gradient.chunks_exact(dim)) {
                add(word, scale, gradient);
            }
        }
    }

    /// The same for the biases.
    pub(crate) fn bias_gradient(&self, scale: f32, add: Add<'_>) {
        for (at, (&word, &gradient)) in self.targets.iter().zip(&self.target_gradient).enumerate() {
            add(word, scale * gradient, &[1.0]);
            for (&word, &gradient) in self.own(at) {
                if gradient != 0.0 {
                    add(word, scale * gradient, &[1.0]);
                }
            }
        }
        if let Negatives::Shared { words, .. } = &self.negatives {
            for (&word, &gradient) in words.iter().zip(&self.shared_bias) {
                add(word, scale * gradient, &[1.0]);
            }
        }
    }

    /// The own words of target `at` with their gradients.
    fn own(&self, at: usize) -> impl Iterator<Item = (&u32, &f32)> {
        let (words, each) = match &self.negatives {
            Negatives::Own { words, each } => (&words[..], *each),
            _ => (&[][..], 0),
        };
        let range = at * each..(at + 1) * each;
        words[range.clone()]
            .iter()
            .zip(&self.negative_gradient[range])
    }
}

impl Layer {
    /// All zero.
    pub(crate) fn zeros(words: usize, dim: usize) -> Self {
        Self {
            weights: Table::zeros(words, dim),
            bias: Table::zeros(words, 1),
        }
    }

    /// Loss and gradients of a batch, whose hidden vectors, targets and words that did not
    /// occur are given.
    pub(crate) fn backward(&self, loss: WordLoss, batch: &mut Batch) {
        let (rows, dim) = (batch.rows(), self.weights.dim);
        batch.loss = 0.0;
        batch.hidden_gradient.clear();
        batch.hidden_gradient.resize(rows * dim, 0.0);
        batch.target_gradient.clear();
        batch.target_gradient.resize(batch.targets.len(), 0.0);
        match std::mem::take(&mut batch.negatives) {
            Negatives::Own { words, each } => {
                self.backward_own(batch, &words, each);
                batch.negatives = Negatives::Own { words, each };
            }
            Negatives::Shared { words, expected } => {
                self.backward_shared(loss, batch, &words, &expected);
                batch.negatives = Negatives::Shared { words, expected };
            }
            Negatives::None => {}
        }
        for row in 0..rows {
            let targets = batch.targets_of(row);
            kernels::gather_add(
                &mut batch.hidden_gradient[row * dim..(row + 1) * dim],
                &self.weights.values,
                &batch.targets[targets.clone()],
                &batch.target_gradient[targets],
            );
        }
    }

    /// `s(t) - log E(t)` of the targets of one row, into their gradients' places.
    fn target_scores(&self, batch: &mut Batch, row: usize) {
        let (targets, dim) = (batch.targets_of(row), self.weights.dim);
        let scores = &mut batch.target_gradient[targets.clone()];
        let words = &batch.targets[targets.clone()];
        let hidden = &batch.hidden[row * dim..(row + 1) * dim];
        kernels::gather_dots(scores, &self.weights.values, words, hidden);
        for (score, &word) in scores.iter_mut().zip(words) {
            *score += self.bias.values[word as usize];
        }
        if !batch.expected.is_empty() {
            let expected = &batch.expected[targets];
            scores.iter_mut().zip(expected).for_each(|(s, e)| *s -= e);
        }
    }

    fn backward_own(&self, batch: &mut Batch, words: &[u32], each: usize) {
        let dim = self.weights.dim;
        batch.negative_gradient.clear();
        batch.negative_gradient.resize(words.len(), 0.0);
        let mut both = Vec::new();
        let mut scores = Vec::new();
        for row in 0..batch.rows() {
            let hidden = &batch.hidden[row * dim..(row + 1) * dim];
            for at in batch.targets_of(row) {
                let own = at * each..(at + 1) * each;
                both.clear();
                both.push(batch.targets[at]);
                both.extend_from_slice(&words[own.clone()]);
                scores.resize(both.len(), 0.0);
                kernels::gather_dots(&mut scores, &self.weights.values, &both, hidden);
                for (score, &word) in scores.iter_mut().zip(&both) {
                    *score += self.bias.values[word as usize];
                }
                batch.loss += softplus(-scores[0]);
                let negatives = both[1..].iter().zip(&mut scores[1..]);
                for (&word, score) in negatives {
                    if word == both[0] {
                        // Its probability becomes 0.
                        *score = f32::NEG_INFINITY;
                    }
                }
                batch.loss += many_softplus(&scores[1..]);
                kernels::sigmoid(&mut scores);
                scores[0] -= 1.0;
                batch.target_gradient[at] = scores[0];
                batch.negative_gradient[own].copy_from_slice(&scores[1..]);
                kernels::gather_add(
                    &mut batch.hidden_gradient[row * dim..(row + 1) * dim],
                    &self.weights.values,
                    &both[1..],
                    &scores[1..],
                );
            }
        }
    }

    fn backward_shared(&self, loss: WordLoss, batch: &mut Batch, words: &[u32], expected: &[f32]) {
        let (rows, dim, shared) = (batch.rows(), self.weights.dim, words.len());
        batch.shared_rows.clear();
        for &word in words {
            batch.shared_rows.extend_from_slice(self.weights.row(word));
        }
        let mut scores = std::mem::take(&mut batch.negative_gradient);
        scores.clear();
        scores.resize(rows * shared, 0.0);
        kernels::matmul_nt(
            &mut scores,
            &batch.hidden,
            &batch.shared_rows,
            rows,
            shared,
            dim,
            1,
        );
        let offset: Vec<f32> = words
            .iter()
            .zip(expected)
            .map(|(&w, e)| self.bias.values[w as usize] - e)
            .collect();
        kernels::add_bias(&mut scores, &offset);
        for row in 0..rows {
            self.target_scores(batch, row);
        }
        match loss {
            WordLoss::SampledSoftmax => softmax_gradient(batch, words, &mut scores),
            WordLoss::Nce | WordLoss::NegativeSampling => {
                logistic_gradient(batch, words, &mut scores);
            }
        }
        kernels::matmul_nn(
            &mut batch.hidden_gradient,
            &scores,
            &batch.shared_rows,
            rows,
            dim,
            shared,
            1,
        );
        let mut turned = vec![0.0; scores.len()];
        for (row, scores) in scores.chunks_exact(shared.max(1)).enumerate() {
            for (k, score) in scores.iter().enumerate() {
                turned[k * rows + row] = *score;
            }
        }
        batch.shared_gradient.resize(shared * dim, 0.0);
        kernels::matmul_nn(
            &mut batch.shared_gradient,
            &turned,
            &batch.hidden,
            shared,
            dim,
            rows,
            1,
        );
        batch.shared_bias.clear();
        let sums = turned
            .chunks_exact(rows.max(1))
            .map(|t| t.iter().sum::<f32>());
        batch.shared_bias.extend(sums);
        batch.negative_gradient = scores;
    }
}

/// Turns scores of shared words and of targets into their gradients, for the softmax.
fn softmax_gradient(batch: &mut Batch, words: &[u32], scores: &mut [f32]) {
    let (rows, shared) = (batch.rows(), words.len());
    let (mut greatest, mut sums) = (vec![0.0; rows], vec![0.0; rows]);
    kernels::exp_rows(scores, shared, &mut greatest, &mut sums);
    if shared == 0 {
        greatest.fill(f32::NEG_INFINITY);
    }
    let mut hits = Vec::new();
    for row in 0..rows {
        let exponents = &mut scores[row * shared..(row + 1) * shared];
        let mut weight = 0.0;
        hits.clear();
        for at in batch.targets_of(row) {
            let hit = words.binary_search(&batch.targets[at]).ok();
            let sum = match hit {
                // Summed anew, since a difference would lose digits.
                Some(hit) => without(exponents, hit),
                None => sums[row],
            };
            let score = batch.target_gradient[at];
            let top = greatest[row].max(score);
            let (others, own) = ((greatest[row] - top).exp(), (score - top).exp());
            let all = sum * others + own;
            batch.loss += f64::from(top - score) + f64::from(all).ln();
            // One less the probability of the others, not of the word, which is near 1.
            batch.target_gradient[at] = -(sum * others / all);
            let share = others / all;
            weight += share;
            hits.extend(hit.map(|hit| (hit, share)));
        }
        let taken: Vec<f32> = hits.iter().map(|(hit, s)| exponents[*hit] * s).collect();
        exponents.iter_mut().for_each(|e| *e *= weight);
        for ((hit, _), taken) in hits.iter().zip(taken) {
            exponents[*hit] -= taken;
        }
    }
}

/// The same for the logistic losses.
fn logistic_gradient(batch: &mut Batch, words: &[u32], scores: &mut [f32]) {
    let shared = words.len();
    for row in 0..batch.rows() {
        let scores = &mut scores[row * shared..(row + 1) * shared];
        let targets = batch.targets_of(row);
        let mut hits = Vec::new();
        let negative = many_softplus(scores);
        for at in targets.clone() {
            batch.loss += softplus(-batch.target_gradient[at]) + negative;
            if let Ok(hit) = words.binary_search(&batch.targets[at]) {
                batch.loss -= softplus(scores[hit]);
                hits.push(hit);
            }
        }
        kernels::sigmoid(scores);
        let taken: Vec<f32> = hits.iter().map(|&hit| scores[hit]).collect();
        let count = targets.len() as f32;
        scores.iter_mut().for_each(|s| *s *= count);
        for (hit, taken) in hits.iter().zip(taken) {
            scores[*hit] -= taken;
        }
        let own = &mut batch.target_gradient[targets];
        // σ(s) - 1 = -σ(-s), exact where σ is near 1.
        own.iter_mut().for_each(|s| *s = -*s);
        kernels::sigmoid(own);
        own.iter_mut().for_each(|s| *s = -*s);
    }
}

fn without(numbers: &[f32], place: usize) -> f32 {
    numbers[..place].iter().chain(&numbers[place + 1..]).sum()
}

/// `ln(1 + exp(x))`.
fn softplus(x: f32) -> f64 {
    let x = f64::from(x);
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// The sum of [`softplus`] of some numbers.
fn many_softplus(numbers: &[f32]) -> f64 {
    // A logarithm of the product of sixteen is faster than sixteen logarithms.
    let block = |block: &[f32]| -> f64 {
        let mut parts = [0.0f32; 16];
        let parts = &mut parts[..block.len()];
        let mut linear = 0.0;
        for (part, x) in parts.iter_mut().zip(block) {
            linear += f64::from(x.max(0.0));
            *part = -x.abs();
        }
        kernels::exp(parts);
        let product: f64 = parts.iter().map(|p| 1.0 + f64::from(*p)).product();
        linear + product.ln()
    };
    numbers.chunks(16).map(block).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(words: usize, dim: usize) -> Layer {
        let number = |i: usize| ((i * 37 % 101) as f32 / 101.0 - 0.5) * 2.0;
        Layer {
            weights: Table::new(dim, (0..words * dim).map(number).collect()),
            bias: Table::new(1, (0..words).map(|i| number(i + 11)).collect()),
        }
    }

    fn batch(negatives: Negatives) -> Batch {
        Batch {
            hidden: (0..3 * 4)
                .map(|i| (i * 29 % 17) as f32 / 8.0 - 1.0)
                .collect(),
            targets: vec![1, 4, 2, 8, 1, 1],
            // The second row has no target.
            ends: vec![3, 3, 6],
            negatives,
            ..Batch::default()
        }
    }

    /// The loss as it is defined, in f64.
    fn definition(layer: &Layer, loss: WordLoss, batch: &Batch) -> f64 {
        let dim = layer.weights.dim;
        let mut sum = 0.0;
        for row in 0..batch.rows() {
            let hidden = &batch.hidden[row * dim..(row + 1) * dim];
            let score = |w: u32, e: f32| -> f64 {
                let products = layer.weights.row(w).iter().zip(hidden);
                let product: f64 = products.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                product + f64::from(layer.bias.values[w as usize]) - f64::from(e)
            };
            for at in batch.targets_of(row) {
                let target = batch.targets[at];
                let expected = batch.expected.get(at).copied().unwrap_or(0.0);
                let negatives: Vec<f64> = match &batch.negatives {
                    Negatives::Shared { words, expected } => {
                        let pairs = words.iter().zip(expected).filter(|(w, _)| **w != target);
                        pairs.map(|(&w, &e)| score(w, e)).collect()
                    }
                    Negatives::Own { words, each } => {
                        let own = words[at * each..(at + 1) * each].iter();
                        own.filter(|w| **w != target)
                            .map(|&w| score(w, 0.0))
                            .collect()
                    }
                    Negatives::None => Vec::new(),
                };
                let own = score(target, expected);
                sum += match loss {
                    WordLoss::SampledSoftmax => {
                        let all = own.exp() + negatives.iter().map(|n| n.exp()).sum::<f64>();
                        all.ln() - own
                    }
                    _ => {
                        let soft = |x: f64| x.exp().ln_1p();
                        soft(-own) + negatives.iter().map(|n| soft(*n)).sum::<f64>()
                    }
                };
            }
        }
        sum
    }

    fn cases() -> Vec<(WordLoss, Batch)> {
        let shared = || Negatives::Shared {
            words: vec![0, 1, 5, 8, 9],
            expected: vec![0.3, -0.2, 0.1, -1.0, -0.5],
        };
        let own = Negatives::Own {
            words: vec![3, 1, 5, 4, 6, 7, 8, 8, 0, 2, 1, 3],
            each: 2,
        };
        let mut corrected = batch(shared());
        corrected.expected = vec![0.4, -0.1, 0.2, 0.9, -0.2, -0.2];
        vec![
            (WordLoss::SampledSoftmax, corrected.clone()),
            (WordLoss::Nce, corrected),
            (WordLoss::NegativeSampling, batch(shared())),
            (WordLoss::NegativeSampling, batch(own)),
        ]
    }

    #[test]
    fn losses_and_gradients_are_those_of_the_definition() {
        for (loss, mut batch) in cases() {
            let layer = layer(10, 4);
            layer.backward(loss, &mut batch);
            let want = definition(&layer, loss, &batch);
            assert!((batch.loss - want).abs() < 1e-5, "{} {want}", batch.loss);

            let mut weights = [0.0; 40];
            batch.weight_gradient(4, 1.0, &mut |row, factor, source| {
                let row = &mut weights[row as usize * 4..][..4];
                kernels::axpy(row, factor, source);
            });
            let mut bias = [0.0; 10];
            batch.bias_gradient(1.0, &mut |row, factor, one| {
                bias[row as usize] += factor * one[0]
            });
            let step = 1e-2f32;
            let slope = |change: &dyn Fn(&mut Layer, &mut Batch, f32)| {
                let at = |by: f32| {
                    let (mut layer, mut batch) = (layer.clone(), batch.clone());
                    change(&mut layer, &mut batch, by);
                    definition(&layer, loss, &batch)
                };
                (at(step) - at(-step)) / f64::from(2.0 * step)
            };
            let near =
                |a: f32, b: f64| assert!((f64::from(a) - b).abs() < 2e-3, "{a} {b} {loss:?}");
            for (i, weight) in weights.into_iter().enumerate() {
                near(weight, slope(&|l, _, by| l.weights.values[i] += by));
            }
            for (i, bias) in bias.into_iter().enumerate() {
                near(bias, slope(&|l, _, by| l.bias.values[i] += by));
            }
            for i in 0..12 {
                near(
                    batch.hidden_gradient[i],
                    slope(&|_, b, by| b.hidden[i] += by),
                );
            }
        }
    }

    #[test]
    fn extreme_scores_give_finite_losses() {
        for (loss, mut batch) in cases() {
            let mut layer = layer(10, 4);
            layer.weights.values.iter_mut().for_each(|w| *w *= 1000.0);
            layer.backward(loss, &mut batch);
            assert!(batch.loss.is_finite() && batch.loss > 0.0, "{}", batch.loss);
            assert!(batch.hidden_gradient.iter().all(|x| x.is_finite()));
        }
    }
}

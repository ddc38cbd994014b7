//! The parameters, and what a batch makes of them.

use keyfold_kernels as kernels;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::config::Config;
use crate::sampled::{Batch as WordBatch, Layer, Rate, Sampler, Table, Threads, WordLoss, bounds};

/// Added to a probability before its logarithm.
const EPSILON: f32 = 1e-5;

/// All that is learned.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Params {
    /// `[words, senses · dim]`.
    pub(super) senses: Table,
    /// The vectors that predict, which also make up a context.
    pub(super) layer: Layer,
    /// `[classifiers, senses · dim]`; the first is the shared one.
    pub(super) classifier: Table,
    /// `[classifiers, senses]`.
    pub(super) classifier_bias: Table,
    /// The classifier of each word.
    pub(super) slots: Vec<u32>,
}

/// How the sense of an occurrence is weighed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Stage {
    /// By the softmax, whose entropy is part of the loss with this factor.
    Soft {
        /// The factor.
        entropy: f32,
    },
    /// By a sample of the relaxed one-hot distribution (Jang et al. and Maddison et al.
    /// 2017) of this temperature.
    Sampled {
        /// The temperature.
        temperature: f32,
    },
}

/// Some occurrences of words.
#[derive(Debug, Clone, Default)]
pub(super) struct Batch {
    pub(super) words: WordBatch,
    /// The word of each hidden vector.
    pub(super) centres: Vec<u32>,
    /// Means of the vectors of the words around, `[rows, dim]`.
    contexts: Vec<f32>,
    /// Gumbel noise, `[rows, senses]`.
    pub(super) noise: Vec<f32>,
    /// Weights of the senses, `[rows, senses]`.
    pub(super) weights: Vec<f32>,
    /// Gradients of the senses and the classifiers of the words, `[rows, senses · dim]`,
    /// and of the biases, `[rows, senses]`.
    senses_gradient: Vec<f32>,
    classifier_gradient: Vec<f32>,
    bias_gradient: Vec<f32>,
    /// Loss: the mean over all that is predicted, with the entropy.
    pub(super) loss: f64,
    /// The mean entropy of the senses.
    pub(super) entropy: f64,
}

/// Bounds by which threads part the tables.
pub(super) struct Bounds(Vec<usize>);

impl Bounds {
    pub(super) fn new(counts: &[u64], threads: &Threads) -> Self {
        let weights = counts.iter().map(|&c| (c as f64).powf(0.75));
        Self(bounds(weights, threads.count()))
    }
}

impl Params {
    pub(super) fn new(words: usize, config: &Config) -> Self {
        let bound = 0.5 / (config.dim * config.senses) as f32;
        let mut rng = SmallRng::seed_from_u64(config.seed);
        let width = config.senses * config.dim;
        let draw = |_| rng.random_range(-bound..bound);
        Self {
            senses: Table::new(width, (0..words * width).map(draw).collect()),
            layer: Layer::zeros(words, config.dim),
            classifier: Table::zeros(1, width),
            classifier_bias: Table::zeros(1, config.senses),
            slots: vec![0; words],
        }
    }

    /// Gives frequent words a copy of the shared classifier, and forgets momentum: the
    /// second stage begins.
    pub(super) fn split(&mut self, counts: &[u64], config: &Config) {
        self.slots = slots(counts, config);
        let classifiers = self.slots.iter().copied().max().unwrap_or(0) as usize + 1;
        for table in [&mut self.classifier, &mut self.classifier_bias] {
            let shared = table.values[..table.dim].to_vec();
            table.values = shared.repeat(classifiers);
        }
        for table in self.tables_mut() {
            table.velocity.clear();
        }
    }

    /// All tables, in a fixed order.
    pub(super) fn tables_mut(&mut self) -> [&mut Table; 5] {
        [
            &mut self.senses,
            &mut self.layer.weights,
            &mut self.layer.bias,
            &mut self.classifier,
            &mut self.classifier_bias,
        ]
    }

    /// Appends the mean of the vectors of some words; zeros of none.
    pub(super) fn context(&self, around: &[u32], out: &mut Vec<f32>) {
        let start = out.len();
        out.resize(start + self.layer.weights.dim, 0.0);
        let share = vec![1.0 / around.len().max(1) as f32; around.len()];
        kernels::gather_add(
            &mut out[start..],
            &self.layer.weights.values,
            around,
            &share,
        );
    }

    /// What the classifier of a word says of a context, before the softmax.
    pub(super) fn logits(&self, word: u32, context: &[f32], out: &mut [f32]) {
        let slot = self.slots[word as usize];
        let bias = self.classifier_bias.row(slot);
        let rows = self.classifier.row(slot).chunks_exact(context.len());
        for ((out, row), bias) in out.iter_mut().zip(rows).zip(bias) {
            *out = kernels::dot(row, context) + bias;
        }
    }

    /// The vector of sense `sense` of a word.
    pub(super) fn sense(&self, word: u32, sense: usize) -> &[f32] {
        let dim = self.layer.weights.dim;
        &self.senses.row(word)[sense * dim..(sense + 1) * dim]
    }

    /// Loss and gradients of a batch; `around` gives the words around each occurrence.
    pub(super) fn backward(
        &self,
        batch: &mut Batch,
        around: &[u32],
        stage: Stage,
        config: &Config,
    ) {
        let (rows, senses, dim) = (batch.centres.len(), config.senses, config.dim);
        let (inverse, noisy) = match stage {
            Stage::Soft { .. } => (1.0, false),
            Stage::Sampled { temperature } => (1.0 / temperature, true),
        };
        batch.contexts.clear();
        for around in around.chunks_exact(2 * config.window) {
            self.context(around, &mut batch.contexts);
        }
        batch.weights.resize(rows * senses, 0.0);
        let places = batch
            .weights
            .chunks_exact_mut(senses)
            .zip(batch.contexts.chunks_exact(dim));
        for ((weights, context), &word) in places.zip(&batch.centres) {
            self.logits(word, context, weights);
        }
        if noisy {
            kernels::add_assign(&mut batch.weights, &batch.noise);
            batch.weights.iter_mut().for_each(|w| *w *= inverse);
        }
        kernels::softmax_rows(&mut batch.weights, senses);
        batch.words.hidden.clear();
        batch.words.hidden.resize(rows * dim, 0.0);
        let hidden = batch.words.hidden.chunks_exact_mut(dim);
        for ((hidden, weights), &word) in hidden
            .zip(batch.weights.chunks_exact(senses))
            .zip(&batch.centres)
        {
            for (sense, weight) in weights.iter().enumerate() {
                kernels::axpy(hidden, *weight, self.sense(word, sense));
            }
        }
        self.layer
            .backward(WordLoss::SampledSoftmax, &mut batch.words);
        let share = batch.share();
        batch.loss = batch.words.loss * f64::from(share);
        self.sense_gradients(batch, stage, inverse, config);
    }

    fn sense_gradients(&self, batch: &mut Batch, stage: Stage, inverse: f32, config: &Config) {
        let (rows, senses, dim) = (batch.centres.len(), config.senses, config.dim);
        let share = batch.share();
        batch.senses_gradient.clear();
        batch.senses_gradient.resize(rows * senses * dim, 0.0);
        batch.classifier_gradient.clear();
        batch.classifier_gradient.resize(rows * senses * dim, 0.0);
        batch.bias_gradient.clear();
        batch.bias_gradient.resize(rows * senses, 0.0);
        batch.entropy = 0.0;
        for (row, &word) in batch.centres.iter().enumerate() {
            let hidden = &batch.words.hidden_gradient[row * dim..(row + 1) * dim];
            let weights = &batch.weights[row * senses..(row + 1) * senses];
            let slopes = &mut batch.bias_gradient[row * senses..(row + 1) * senses];
            for (sense, slope) in slopes.iter_mut().enumerate() {
                *slope = share * kernels::dot(hidden, self.sense(word, sense));
            }
            if let Stage::Soft { entropy } = stage {
                for (p, slope) in weights.iter().zip(slopes.iter_mut()) {
                    let log = (p + EPSILON).ln();
                    batch.entropy -= f64::from(p * log) / rows as f64;
                    *slope -= entropy / rows as f32 * (log + p / (p + EPSILON));
                }
            }
            // The softmax: dl = w (dw - Σ w dw) / temperature.
            let mean = kernels::dot(weights, slopes);
            for (w, slope) in weights.iter().zip(slopes.iter_mut()) {
                *slope = inverse * w * (*slope - mean);
            }
            let context = &batch.contexts[row * dim..(row + 1) * dim];
            for sense in 0..senses {
                let part = (row * senses + sense) * dim..(row * senses + sense + 1) * dim;
                kernels::axpy(
                    &mut batch.senses_gradient[part.clone()],
                    share * weights[sense],
                    hidden,
                );
                kernels::axpy(&mut batch.classifier_gradient[part], slopes[sense], context);
            }
        }
        if let Stage::Soft { entropy } = stage {
            batch.loss += f64::from(entropy) * batch.entropy;
        }
    }

    /// Changes all parameters by the gradients of batches.
    pub(super) fn descend(
        &mut self,
        batches: &[Batch],
        rate: Rate,
        threads: &Threads,
        bounds: &Bounds,
    ) {
        let width = self.senses.dim;
        let dim = self.layer.weights.dim;
        let senses = self.classifier_bias.dim;
        self.senses
            .descend(threads, &bounds.0, rate, batches, |batch, add| {
                let rows = batch.senses_gradient.chunks_exact(width);
                batch
                    .centres
                    .iter()
                    .zip(rows)
                    .for_each(|(&w, g)| add(w, 1.0, g));
            });
        self.layer
            .weights
            .descend(threads, &bounds.0, rate, batches, |batch, add| {
                batch.words.weight_gradient(dim, batch.share(), add);
            });
        self.layer
            .bias
            .descend(threads, &bounds.0, rate, batches, |batch, add| {
                batch.words.bias_gradient(batch.share(), add);
            });
        let slots = &self.slots;
        self.classifier
            .descend(threads, &bounds.0, rate, batches, |batch, add| {
                let rows = batch.classifier_gradient.chunks_exact(width);
                let slots = batch.centres.iter().map(|w| slots[*w as usize]);
                slots.zip(rows).for_each(|(slot, g)| add(slot, 1.0, g));
            });
        self.classifier_bias
            .descend(threads, &bounds.0, rate, batches, |batch, add| {
                let rows = batch.bias_gradient.chunks_exact(senses);
                let slots = batch.centres.iter().map(|w| slots[*w as usize]);
                slots.zip(rows).for_each(|(slot, g)| add(slot, 1.0, g));
            });
    }
}

impl Batch {
    /// Takes up occurrences: a word, and the words around it that are to be predicted.
    pub(super) fn clear(&mut self) {
        self.words.clear();
        self.centres.clear();
    }

    /// Adds an occurrence of a word; unknown words around it are not predicted.
    pub(super) fn push(&mut self, word: u32, around: &[u32]) {
        self.centres.push(word);
        self.words.targets.extend(around.iter().filter(|w| **w > 0));
        self.words.ends.push(self.words.targets.len());
    }

    /// Draws the words that did not occur, and the noise.
    pub(super) fn draw(&mut self, config: &Config, sampler: &Sampler, rng: &mut SmallRng) {
        self.words.draw(
            WordLoss::SampledSoftmax,
            sampler,
            config.negatives,
            false,
            rng,
        );
        self.noise.clear();
        let gumbel = |_| {
            // Above 0, so that the logarithms are finite.
            let u = 1.0 - rng.random::<f64>();
            -(-(u.clamp(1e-12, 1.0 - 1e-12)).ln()).ln() as f32
        };
        self.noise
            .extend((0..self.centres.len() * config.senses).map(gumbel));
    }

    /// What one prediction counts in the mean.
    fn share(&self) -> f32 {
        1.0 / self.words.targets.len().max(1) as f32
    }
}

/// The classifier of each word in the second stage: frequent ones have their own.
pub(super) fn slots(counts: &[u64], config: &Config) -> Vec<u32> {
    let mut next = 0;
    let slot = |(word, count): (usize, &u64)| {
        if word > 0 && *count >= config.classifier_min_count {
            next += 1;
            next
        } else {
            0
        }
    };
    counts.iter().enumerate().map(slot).collect()
}

//! The parameters, and what a batch makes of them.

use keyfold_kernels as kernels;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::config::{Architecture, Code, Config, Join};
use crate::sampled::{Batch as WordBatch, Descent, Layer, Rate, Sampler, Table, Threads, bounds};

/// All that is learned but the documents.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Params {
    pub(super) layer: Layer,
    /// Vectors of words around, `[words, bits]`, with PV-DM.
    pub(super) context: Option<Table>,
    /// `[bits, real_dim]`, with the real-binary model.
    pub(super) projection: Option<Table>,
}

/// A word to predict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Sample {
    pub(super) document: u32,
    /// The place in the document, where the words around count.
    pub(super) place: u32,
    pub(super) word: u32,
}

/// No word around at this place.
pub(super) const NONE: u32 = u32::MAX;

/// Words of some documents.
#[derive(Debug, Clone, Default)]
pub(super) struct Batch {
    pub(super) words: WordBatch,
    /// The document of each hidden vector.
    pub(super) documents: Vec<u32>,
    /// The words around, so many for each hidden vector; [`NONE`] where there is none.
    pub(super) around: Vec<u32>,
    /// What is turned into codes, `[rows, bits]`; later its gradient.
    sums: Vec<f32>,
    /// `[rows, real_dim]`, with a projection.
    reals: Vec<f32>,
    /// Gradients of the documents' rows, `[rows, bits]` or `[rows, real_dim]`.
    row_gradient: Vec<f32>,
    projection_gradient: Vec<f32>,
}

impl Batch {
    /// Takes up samples; those of one document share a hidden vector where the words
    /// around do not count. `around` gives these for a sample.
    pub(super) fn fill(
        &mut self,
        samples: &mut [Sample],
        mut around: impl FnMut(&Sample, &mut Vec<u32>),
        config: &Config,
    ) {
        samples.sort_unstable();
        self.words.clear();
        self.documents.clear();
        self.around.clear();
        let alone = config.architecture == Architecture::PvDm;
        for sample in samples.iter() {
            if alone || self.documents.last() != Some(&sample.document) {
                self.documents.push(sample.document);
                self.words.ends.push(self.words.targets.len());
                if alone {
                    around(sample, &mut self.around);
                }
            }
            self.words.targets.push(sample.word);
            if let Some(end) = self.words.ends.last_mut() {
                *end = self.words.targets.len();
            }
        }
    }

    pub(super) fn draw(&mut self, config: &Config, sampler: &Sampler, rng: &mut SmallRng) {
        let own = !config.share_negatives;
        self.words
            .draw(config.loss, sampler, config.negatives, own, rng);
    }
}

/// Bounds by which threads part the tables.
pub(super) struct Bounds {
    outputs: Vec<usize>,
    documents: Vec<usize>,
}

impl Bounds {
    pub(super) fn new(counts: &[u64], documents: usize, threads: &Threads) -> Self {
        let weights = counts.iter().map(|&c| (c as f64).powf(0.75));
        Self {
            outputs: bounds(weights, threads.count()),
            documents: bounds(std::iter::repeat_n(1.0, documents), threads.count()),
        }
    }
}

impl Params {
    pub(super) fn new(outputs: usize, words: usize, config: &Config) -> Self {
        let mut rng = SmallRng::seed_from_u64(config.seed ^ 0x5eed);
        let context = (config.architecture == Architecture::PvDm)
            .then(|| uniform(words, config.bits, 0.5 / config.bits as f32, &mut rng));
        let projection = (config.real_dim > 0).then(|| {
            let bound = 1.0 / (config.real_dim as f32).sqrt();
            uniform(config.bits, config.real_dim, bound, &mut rng)
        });
        Self {
            layer: Layer::zeros(outputs, config.hidden()),
            context,
            projection,
        }
    }

    /// Rows of documents before they learned, `[documents, bits]` or `[documents, real_dim]`.
    pub(super) fn documents(documents: usize, config: &Config) -> Table {
        let mut rng = SmallRng::seed_from_u64(config.seed);
        uniform(documents, config.row(), 0.5 / config.row() as f32, &mut rng)
    }

    /// What is rounded to codes, `[rows, bits]`, of documents' rows.
    pub(super) fn sums(&self, rows: &[f32], config: &Config) -> Vec<f32> {
        match &self.projection {
            Some(p) => {
                let n = rows.len() / config.real_dim;
                let mut sums = vec![0.0; n * config.bits];
                kernels::matmul_nt(
                    &mut sums,
                    rows,
                    &p.values,
                    n,
                    config.bits,
                    config.real_dim,
                    1,
                );
                sums
            }
            None => rows.to_vec(),
        }
    }

    /// Loss and gradients of a batch.
    pub(super) fn backward(&self, documents: &Table, batch: &mut Batch, config: &Config) {
        let (bits, hidden) = (config.bits, config.hidden());
        batch.reals.clear();
        for &document in &batch.documents {
            batch.reals.extend_from_slice(documents.row(document));
        }
        batch.sums = self.sums(&batch.reals, config);
        batch.words.hidden.clear();
        for sums in batch.sums.chunks_exact(bits) {
            let start = batch.words.hidden.len();
            batch.words.hidden.extend_from_slice(sums);
            match config.code {
                Code::Rounded => batch.words.hidden[start..]
                    .iter_mut()
                    .for_each(|x| *x = f32::from(u8::from(*x > 0.0))),
                Code::Sigmoid => kernels::sigmoid(&mut batch.words.hidden[start..]),
                Code::Real => {}
            }
            batch.words.hidden.resize(start + hidden, 0.0);
        }
        if let Some(context) = &self.context {
            each_around(&batch.around, config, |row, at, word| {
                let place = &mut batch.words.hidden[row * hidden + at..][..bits];
                kernels::axpy(place, 1.0, context.row(word));
            });
        }
        self.layer.backward(config.loss, &mut batch.words);
        batch.row_gradient.clear();
        if config.code != Code::Real {
            kernels::sigmoid(&mut batch.sums);
        }
        let gradients = batch.words.hidden_gradient.chunks_exact(hidden);
        for (sums, gradient) in batch.sums.chunks_exact_mut(bits).zip(gradients) {
            for (s, g) in sums.iter_mut().zip(gradient) {
                *s = match config.code {
                    Code::Real => *g,
                    _ => g * *s * (1.0 - *s),
                };
            }
        }
        let Some(projection) = &self.projection else {
            batch.row_gradient.extend_from_slice(&batch.sums);
            return;
        };
        let (rows, dim) = (batch.documents.len(), config.real_dim);
        batch.row_gradient.resize(rows * dim, 0.0);
        kernels::matmul_nn(
            &mut batch.row_gradient,
            &batch.sums,
            &projection.values,
            rows,
            dim,
            bits,
            1,
        );
        let mut turned = vec![0.0; rows * bits];
        for (row, sums) in batch.sums.chunks_exact(bits).enumerate() {
            sums.iter()
                .enumerate()
                .for_each(|(bit, g)| turned[bit * rows + row] = *g);
        }
        batch.projection_gradient.resize(bits * dim, 0.0);
        kernels::matmul_nn(
            &mut batch.projection_gradient,
            &turned,
            &batch.reals,
            bits,
            dim,
            rows,
            1,
        );
    }

    /// Changes the documents' rows by the gradients of batches.
    pub(super) fn descend_documents(
        documents: &mut Table,
        batches: &[Batch],
        rate: Rate,
        threads: &Threads,
        bounds: &[usize],
    ) {
        let dim = documents.dim;
        documents.descend(threads, bounds, rate, batches, |batch, add| {
            let rows = batch.row_gradient.chunks_exact(dim);
            batch
                .documents
                .iter()
                .zip(rows)
                .for_each(|(&document, gradient)| add(document, 1.0, gradient));
        });
    }

    /// Changes all parameters by the gradients of batches.
    pub(super) fn descend(
        &mut self,
        documents: &mut Table,
        batches: &[Batch],
        rate: Rate,
        threads: &Threads,
        bounds: &Bounds,
        config: &Config,
    ) {
        let hidden = config.hidden();
        Self::descend_documents(documents, batches, rate, threads, &bounds.documents);
        let (weights, bias) = (&mut self.layer.weights, &mut self.layer.bias);
        weights.descend(threads, &bounds.outputs, rate, batches, |batch, add| {
            batch.words.weight_gradient(hidden, 1.0, add);
        });
        bias.descend(threads, &bounds.outputs, rate, batches, |batch, add| {
            batch.words.bias_gradient(1.0, add);
        });
        if let Some(context) = &mut self.context {
            // So many words move one sum, so each takes its share of the way.
            let share = match rate.descent {
                Descent::Plain => 1.0 / (2 * config.window) as f32,
                _ => 1.0,
            };
            let rate = Rate {
                learning_rate: share * rate.learning_rate,
                ..rate
            };
            // Words around are words, the first of the outputs.
            context.descend(threads, &bounds.outputs, rate, batches, |batch, add| {
                each_around(&batch.around, config, |row, at, word| {
                    let gradient = &batch.words.hidden_gradient[row * hidden + at..];
                    add(word, 1.0, &gradient[..config.bits]);
                });
            });
        }
        if let Some(projection) = &mut self.projection {
            // All documents share it, so it follows the mean of their gradients: with the
            // sum, it would move a hundred times as fast as they do.
            projection.descend(threads, &[], rate, batches, |batch, add| {
                let share = 1.0 / batch.documents.len().max(1) as f32;
                let rows = batch.projection_gradient.chunks_exact(config.real_dim);
                (0..).zip(rows).for_each(|(bit, row)| add(bit, share, row));
            });
        }
    }
}

/// Calls `with` for the words around each hidden vector: its number, where in it the
/// word's vector stands, and the word.
fn each_around(around: &[u32], config: &Config, mut with: impl FnMut(usize, usize, u32)) {
    let places = 2 * config.window;
    for (i, &word) in around.iter().enumerate() {
        let at = match config.context {
            Join::Sum => 0,
            Join::Concatenation => config.bits * (1 + i % places),
        };
        if word != NONE {
            with(i / places, at, word);
        }
    }
}

fn uniform(rows: usize, dim: usize, bound: f32, rng: &mut SmallRng) -> Table {
    let draw = |_| rng.random_range(-bound..bound);
    Table::new(dim, (0..rows * dim).map(draw).collect())
}

//! Values: what the pairs say of the classes, and how they learn it.

use keyfold_core::Progress;
use keyfold_kernels::learn::{AdamStep, adamw};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rayon::prelude::*;

use super::decoder::Network;
use super::{KeyValueBottleneckConfig, Optimizer, normal};
use crate::PredictError;
use crate::layers::Optimiser;

/// The values of all pairs.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Values {
    books: usize,
    pairs: usize,
    /// Numbers of a value: one for each class, or as many as a decoder with weights takes.
    pub(super) width: usize,
    /// `[books, pairs, width]`.
    pub(super) numbers: Vec<f32>,
}

/// Adam's averages over all values.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Moments {
    first: Vec<f32>,
    second: Vec<f32>,
    steps: u32,
}

/// The values that some rows look up, `[slots, classes]`, and where they are.
struct Slots {
    /// For each row and codebook its slot, `[rows, looked up]`.
    of: Vec<u32>,
    /// The pair of a slot, among all.
    places: Vec<usize>,
}

impl Values {
    pub(super) fn new(books: usize, pairs: usize) -> Self {
        Self {
            books,
            pairs,
            width: 0,
            numbers: Vec::new(),
        }
    }

    pub(super) fn known(books: usize, pairs: usize, width: usize, numbers: Vec<f32>) -> Self {
        Self {
            books,
            pairs,
            width,
            numbers,
        }
    }

    pub(super) fn row(&self, book: usize, pair: usize) -> &[f32] {
        &self.numbers[(book * self.pairs + pair) * self.width..][..self.width]
    }

    /// The values that a row has looked up, side by side; one of each codebook.
    pub(super) fn of(&self, found: &[u32]) -> Vec<f32> {
        let books = found.iter().enumerate();
        books
            .flat_map(|(book, pair)| self.row(book, *pair as usize))
            .copied()
            .collect()
    }

    /// Makes room for more numbers.
    pub(super) fn grow(&mut self, width: usize, deviation: f32, seed: u64) {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut numbers = Vec::with_capacity(self.books * self.pairs * width);
        for at in 0..self.books * self.pairs {
            numbers.extend(&self.numbers[at * self.width..(at + 1) * self.width]);
            for _ in self.width..width {
                numbers.push(match deviation {
                    0.0 => 0.0,
                    deviation => deviation * normal(&mut rng),
                });
            }
        }
        (self.numbers, self.width) = (numbers, width);
    }

    /// Takes a class out.
    pub(super) fn remove(&mut self, class: usize) {
        let width = self.width;
        let mut at = 0;
        self.numbers.retain(|_| {
            at += 1;
            (at - 1) % width != class
        });
        self.width -= 1;
    }

    /// Adds another table's values, whose class `i` is our `places[i]`.
    pub(super) fn add(&mut self, other: &Self, places: &[usize]) {
        if other.width == 0 {
            return;
        }
        let rows = self.numbers.chunks_exact_mut(self.width);
        for (own, their) in rows.zip(other.numbers.chunks_exact(other.width)) {
            for (value, &place) in their.iter().zip(places) {
                own[place] += value;
            }
        }
    }

    /// Mean values of what rows have looked up, `[rows, classes]`.
    pub(super) fn scores(&self, found: &[u32], per_row: usize) -> Vec<f64> {
        let mut scores = vec![0.0; found.len() / per_row * self.width];
        (scores.par_chunks_mut(self.width))
            .zip(found.par_chunks(per_row))
            .for_each(|(out, found)| {
                for (place, &pair) in found.iter().enumerate() {
                    let book = place * self.books / per_row;
                    let value = self.row(book, pair as usize);
                    out.iter_mut()
                        .zip(value)
                        .for_each(|(o, v)| *o += f64::from(*v));
                }
                out.iter_mut().for_each(|o| *o /= self.books as f64);
            });
        scores
    }

    /// Gradient steps of the cross-entropy on rows that have looked up `found`. A network that is not
    /// frozen learns too, and is then frozen.
    pub(super) fn learn(
        &mut self,
        found: &[u32],
        codes: &[usize],
        config: &KeyValueBottleneckConfig,
        (moments, network): (&mut Moments, &mut Option<Box<Network>>),
        seed: u64,
        progress: &dyn Progress,
    ) -> Result<(), PredictError> {
        let slots = match config.optimizer {
            Optimizer::Sgd => self.touched(found, config.topk),
            // Its averages move values that no row looks up.
            Optimizer::Adam => self.all(found, config.topk),
        };
        let v = self.width;
        let mut local: Vec<f32> = (slots.places.iter())
            .flat_map(|at| &self.numbers[at * v..(at + 1) * v])
            .copied()
            .collect();
        if config.optimizer == Optimizer::Adam && moments.first.len() != local.len() {
            *moments = Moments {
                first: vec![0.0; local.len()],
                second: vec![0.0; local.len()],
                steps: 0,
            };
        }
        let mut learning = Learning {
            config,
            slots: &slots,
            codes,
            width: v,
            books: self.books,
            network,
            optimiser: None,
            gradient: vec![0.0; local.len()],
        };
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut order: Vec<usize> = (0..codes.len()).collect();
        for epoch in 0..config.epochs {
            if order.len() > config.batch {
                order.shuffle(&mut rng);
            }
            let mut loss = 0.0;
            for batch in order.chunks(config.batch) {
                if progress.cancelled() {
                    return Err(PredictError::Cancelled);
                }
                loss += learning.step(batch, &mut local, moments);
            }
            progress.advance(1);
            if epoch % 50 == 0 {
                progress.status(&format!("loss {:.4}", loss / codes.len() as f64));
            }
        }
        if let Some(network) = network {
            network.frozen = true;
        }
        for (at, value) in slots.places.iter().zip(local.chunks_exact(v)) {
            self.numbers[at * v..(at + 1) * v].copy_from_slice(value);
        }
        Ok(())
    }

    /// Slots for the pairs that the rows look up, codebook by codebook.
    fn touched(&self, found: &[u32], topk: usize) -> Slots {
        let per_row = self.books * topk;
        let mut of = vec![0; found.len()];
        let mut places = Vec::new();
        let mut slot = vec![u32::MAX; self.pairs];
        for book in 0..self.books {
            let first = places.len();
            for row in 0..found.len() / per_row {
                for place in row * per_row + book * topk..row * per_row + (book + 1) * topk {
                    let pair = found[place] as usize;
                    if slot[pair] == u32::MAX {
                        slot[pair] = places.len() as u32;
                        places.push(book * self.pairs + pair);
                    }
                    of[place] = slot[pair];
                }
            }
            for at in &places[first..] {
                slot[at - book * self.pairs] = u32::MAX;
            }
        }
        Slots { of, places }
    }

    /// A slot for every pair.
    fn all(&self, found: &[u32], topk: usize) -> Slots {
        let per_row = self.books * topk;
        let place = |(i, &pair): (usize, &u32)| {
            let book = i % per_row / topk;
            (book * self.pairs) as u32 + pair
        };
        Slots {
            of: found.iter().enumerate().map(place).collect(),
            places: (0..self.books * self.pairs).collect(),
        }
    }
}

/// One call of learning.
struct Learning<'a> {
    config: &'a KeyValueBottleneckConfig,
    slots: &'a Slots,
    codes: &'a [usize],
    width: usize,
    books: usize,
    network: &'a mut Option<Box<Network>>,
    /// Of a network that is not frozen.
    optimiser: Option<Optimiser>,
    /// `[slots, width]`.
    gradient: Vec<f32>,
}

impl Learning<'_> {
    /// One step on some rows; gives the sum of their losses.
    fn step(&mut self, batch: &[usize], local: &mut [f32], moments: &mut Moments) -> f64 {
        let per_row = self.slots.of.len() / self.codes.len();
        self.gradient.fill(0.0);
        let loss = match self.network.take() {
            None => self.by_votes(batch, local, per_row),
            Some(mut network) => {
                let loss = self.by_network(batch, local, per_row, &mut network);
                *self.network = Some(network);
                loss
            }
        };
        let mut scale = 1.0;
        if self.config.clip > 0.0 {
            let squares: f64 = self.gradient.iter().map(|g| f64::from(g * g)).sum();
            scale = (f64::from(self.config.clip) / (squares.sqrt() + 1e-6)).min(1.0) as f32;
        }
        match self.config.optimizer {
            Optimizer::Sgd => {
                let by = self.config.lr * scale;
                let pairs = local.iter_mut().zip(&self.gradient);
                pairs.for_each(|(x, g)| *x -= by * g);
            }
            Optimizer::Adam => {
                self.gradient.iter_mut().for_each(|g| *g *= scale);
                moments.steps += 1;
                let step = AdamStep {
                    rate: self.config.lr,
                    beta_1: 0.9,
                    beta_2: 0.999,
                    epsilon: 1e-8,
                    weight_decay: 0.0,
                    number: moments.steps,
                };
                let (first, second) = (&mut moments.first, &mut moments.second);
                adamw(local, &self.gradient, first, second, step);
            }
        }
        loss
    }

    /// Collects the gradient of rows whose scores are the mean of their values; gives their losses.
    fn by_votes(&mut self, batch: &[usize], local: &[f32], per_row: usize) -> f64 {
        let v = self.width;
        let share = 1.0 / self.books as f32;
        let slots = self.slots;
        let of = |row: usize| &slots.of[row * per_row..(row + 1) * per_row];
        // Probability less truth, by row.
        let told: Vec<(Vec<f32>, f64)> = batch
            .par_iter()
            .with_min_len(64)
            .map(|&row| {
                let mut scores = vec![0.0f32; v];
                for &slot in of(row) {
                    let value = &local[slot as usize * v..][..v];
                    scores.iter_mut().zip(value).for_each(|(s, x)| *s += x);
                }
                scores.iter_mut().for_each(|s| *s *= share);
                residual(&scores, self.codes[row], self.config)
            })
            .collect();
        let factor = share / batch.len() as f32;
        for (&row, (residual, _)) in batch.iter().zip(&told) {
            for &slot in of(row) {
                let gradient = &mut self.gradient[slot as usize * v..][..v];
                let pairs = gradient.iter_mut().zip(residual);
                pairs.for_each(|(g, r)| *g += factor * r);
            }
        }
        told.iter().map(|(_, loss)| loss).sum()
    }

    /// The same where a network makes the scores, which learns as well unless it is frozen.
    fn by_network(
        &mut self,
        batch: &[usize],
        local: &[f32],
        per_row: usize,
        network: &mut Network,
    ) -> f64 {
        let v = self.width;
        let slots = self.slots;
        let of = |row: usize| &slots.of[row * per_row..(row + 1) * per_row];
        let found = batch.iter().flat_map(|row| of(*row));
        let values: Vec<f32> = found
            .flat_map(|slot| &local[*slot as usize * v..][..v])
            .copied()
            .collect();
        let pass = network.layers.forward(&values);
        let classes = pass.told().len() / batch.len();
        let factor = 1.0 / batch.len() as f32;
        let (mut d, mut sum) = (Vec::with_capacity(pass.told().len()), 0.0);
        for (scores, row) in pass.told().chunks_exact(classes).zip(batch) {
            let (residual, loss) = residual(scores, self.codes[*row], self.config);
            d.extend(residual.into_iter().map(|r| factor * r));
            sum += loss;
        }
        let by_values = network.layers.pull_to_rows(&pass, &d);
        let slots = batch.iter().flat_map(|row| of(*row));
        for (slot, part) in slots.zip(by_values.chunks_exact(v)) {
            let gradient = &mut self.gradient[*slot as usize * v..][..v];
            keyfold_kernels::add_assign(gradient, part);
        }
        if !network.frozen {
            let gradients = network.layers.backward(&pass, &d, None);
            let rate = self.config.decoder_lr;
            let optimiser = self
                .optimiser
                .get_or_insert_with(|| Optimiser::new(&network.layers));
            optimiser.step(&mut network.layers, &gradients, rate);
        }
        sum
    }
}

/// Probability less (smoothed) truth, and the cross-entropy.
fn residual(scores: &[f32], code: usize, config: &KeyValueBottleneckConfig) -> (Vec<f32>, f64) {
    let spread = config.label_smoothing / scores.len() as f32;
    let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = scores.iter().map(|s| f64::from(s - most).exp()).sum();
    let log = f64::from(most) + sum.ln();
    let mut loss = 0.0;
    let residual = (scores.iter().enumerate()).map(|(class, &s)| {
        let hard = if class == code {
            1.0 - config.label_smoothing
        } else {
            0.0
        };
        let truth = hard + spread;
        let below = f64::from(s) - log;
        loss -= f64::from(truth) * below;
        below.exp() as f32 - truth
    });
    let residual = residual.collect();
    (residual, loss)
}

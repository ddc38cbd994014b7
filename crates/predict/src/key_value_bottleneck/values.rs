//! Values: what the pairs say of the classes, and how they learn it.

use keyfold_core::Progress;
use keyfold_kernels::learn::{AdamStep, adamw};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rayon::prelude::*;

use super::{KeyValueBottleneckConfig, Optimizer, normal};
use crate::PredictError;

/// The values of all pairs.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Values {
    books: usize,
    pairs: usize,
    pub(super) classes: usize,
    /// `[books, pairs, classes]`.
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
            classes: 0,
            numbers: Vec::new(),
        }
    }

    pub(super) fn known(books: usize, pairs: usize, classes: usize, numbers: Vec<f32>) -> Self {
        Self {
            books,
            pairs,
            classes,
            numbers,
        }
    }

    pub(super) fn row(&self, book: usize, pair: usize) -> &[f32] {
        &self.numbers[(book * self.pairs + pair) * self.classes..][..self.classes]
    }

    /// Makes room for more classes.
    pub(super) fn grow(&mut self, classes: usize, deviation: f32, seed: u64) {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut numbers = Vec::with_capacity(self.books * self.pairs * classes);
        for at in 0..self.books * self.pairs {
            numbers.extend(&self.numbers[at * self.classes..(at + 1) * self.classes]);
            for _ in self.classes..classes {
                numbers.push(match deviation {
                    0.0 => 0.0,
                    deviation => deviation * normal(&mut rng),
                });
            }
        }
        (self.numbers, self.classes) = (numbers, classes);
    }

    /// Takes a class out.
    pub(super) fn remove(&mut self, class: usize) {
        let classes = self.classes;
        let mut at = 0;
        self.numbers.retain(|_| {
            at += 1;
            (at - 1) % classes != class
        });
        self.classes -= 1;
    }

    /// Adds another table's values, whose class `i` is our `places[i]`.
    pub(super) fn add(&mut self, other: &Self, places: &[usize]) {
        if other.classes == 0 {
            return;
        }
        let rows = self.numbers.chunks_exact_mut(self.classes);
        for (own, their) in rows.zip(other.numbers.chunks_exact(other.classes)) {
            for (value, &place) in their.iter().zip(places) {
                own[place] += value;
            }
        }
    }

    /// Mean values of what rows have looked up, `[rows, classes]`.
    pub(super) fn scores(&self, found: &[u32], per_row: usize) -> Vec<f64> {
        let mut scores = vec![0.0; found.len() / per_row * self.classes];
        (scores.par_chunks_mut(self.classes))
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

    /// Gradient steps of the cross-entropy on rows that have looked up `found`.
    pub(super) fn learn(
        &mut self,
        found: &[u32],
        codes: &[usize],
        config: &KeyValueBottleneckConfig,
        moments: &mut Moments,
        seed: u64,
        progress: &dyn Progress,
    ) -> Result<(), PredictError> {
        let slots = match config.optimizer {
            Optimizer::Sgd => self.touched(found, config.topk),
            // Its averages move values that no row looks up.
            Optimizer::Adam => self.all(found, config.topk),
        };
        let v = self.classes;
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
            classes: v,
            books: self.books,
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
    classes: usize,
    books: usize,
    /// `[slots, classes]`.
    gradient: Vec<f32>,
}

impl Learning<'_> {
    /// One step on some rows; gives the sum of their losses.
    fn step(&mut self, batch: &[usize], local: &mut [f32], moments: &mut Moments) -> f64 {
        let v = self.classes;
        let per_row = self.slots.of.len() / self.codes.len();
        let share = 1.0 / self.books as f32;
        let spread = self.config.label_smoothing / v as f32;
        let of = |row: usize| &self.slots.of[row * per_row..(row + 1) * per_row];
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
                residual(&mut scores, self.codes[row], spread, self.config)
            })
            .collect();
        self.gradient.fill(0.0);
        let factor = share / batch.len() as f32;
        for (&row, (residual, _)) in batch.iter().zip(&told) {
            for &slot in &self.slots.of[row * per_row..(row + 1) * per_row] {
                let gradient = &mut self.gradient[slot as usize * v..][..v];
                let pairs = gradient.iter_mut().zip(residual);
                pairs.for_each(|(g, r)| *g += factor * r);
            }
        }
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
        told.iter().map(|(_, loss)| loss).sum()
    }
}

/// Turns scores into probability less (smoothed) truth; gives the cross-entropy.
fn residual(
    scores: &mut [f32],
    code: usize,
    spread: f32,
    config: &KeyValueBottleneckConfig,
) -> (Vec<f32>, f64) {
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

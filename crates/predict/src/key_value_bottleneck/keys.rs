//! Keys: where they are placed, and which are found.

use keyfold_core::Progress;
use keyfold_kernels::kmeans::nearest;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rayon::prelude::*;

use super::{InitMode, KeyValueBottleneckConfig, normal, setting};
use crate::PredictError;

/// No number of a key is greater: its square times the numbers of a key must be finite.
const FARTHEST: f32 = 1e17;

/// The keys of all codebooks.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Keys {
    pub(super) books: usize,
    pub(super) pairs: usize,
    pub(super) dim: usize,
    /// `[books, pairs, dim]`.
    pub(super) keys: Vec<f32>,
    /// Moving sums of the heads of each key, `[books, pairs, dim]`.
    pub(super) sums: Vec<f32>,
    /// Moving number of the heads of each key, `[books, pairs]`.
    pub(super) sizes: Vec<f32>,
    /// Learned rows that looked a pair up, `[books, pairs]`.
    pub(super) counts: Vec<u32>,
    pub(super) placed: bool,
}

impl Keys {
    pub(super) fn random(config: &KeyValueBottleneckConfig, rng: &mut SmallRng) -> Self {
        let (books, pairs, dim) = (
            config.num_codebooks,
            config.key_value_pairs_per_codebook,
            config.dim_keys,
        );
        let keys: Vec<f32> = (0..books * pairs * dim).map(|_| normal(rng)).collect();
        Self {
            books,
            pairs,
            dim,
            sums: keys.clone(),
            keys,
            sizes: vec![0.0; books * pairs],
            counts: vec![0; books * pairs],
            placed: false,
        }
    }

    pub(super) fn replace(&mut self, keys: &[f32]) -> Result<(), PredictError> {
        if keys.len() != self.keys.len() || keys.iter().any(|x| !x.is_finite()) {
            let what = format!(
                "they must be {} finite numbers and not {}",
                self.keys.len(),
                keys.len()
            );
            return Err(setting("keys", what));
        }
        self.keys.copy_from_slice(keys);
        self.sums.copy_from_slice(keys);
        self.sizes.fill(0.0);
        self.placed = true;
        Ok(())
    }

    pub(super) fn same_places(&self, other: &Self) -> bool {
        self.keys == other.keys && self.dim == other.dim && self.books == other.books
    }

    pub(super) fn add_counts(&mut self, other: &Self) {
        let pairs = self.counts.iter_mut().zip(&other.counts);
        pairs.for_each(|(a, b)| *a = a.saturating_add(*b));
    }

    /// Passes over heads `[rows, books · dim]`, in batches, each of which moves the keys.
    pub(super) fn place(
        &mut self,
        heads: &[f32],
        config: &KeyValueBottleneckConfig,
        rng: &mut SmallRng,
        progress: &dyn Progress,
    ) -> Result<(), PredictError> {
        let width = self.books * self.dim;
        let rows = heads.len() / width;
        if !self.placed && config.init_mode == InitMode::Kmeans {
            self.by_kmeans(heads, config, rng);
        }
        let mut order: Vec<usize> = (0..rows).collect();
        let mut batch = Vec::with_capacity(config.init_batch * width);
        for epoch in 0..config.init_epochs {
            // The first pass has the rows as they come, as a stream would.
            if epoch > 0 {
                order.shuffle(rng);
            }
            for some in order.chunks(config.init_batch) {
                if progress.cancelled() {
                    return Err(PredictError::Cancelled);
                }
                batch.clear();
                some.iter()
                    .for_each(|&i| batch.extend(&heads[i * width..(i + 1) * width]));
                let threshold = config.dead_factor * config.init_batch as f32 / self.pairs as f32;
                self.step(&batch, config, threshold, rng);
            }
            progress.advance(1);
        }
        self.placed = true;
        Ok(())
    }

    /// One step of the moving averages.
    fn step(
        &mut self,
        batch: &[f32],
        config: &KeyValueBottleneckConfig,
        threshold: f32,
        rng: &mut SmallRng,
    ) {
        let (books, pairs, dim) = (self.books, self.pairs, self.dim);
        let found = self.look_up(batch, 1, false);
        let seeds: Vec<u64> = (0..books).map(|_| rng.random()).collect();
        let rows = batch.len() / (books * dim);
        (self.keys.par_chunks_mut(pairs * dim))
            .zip(self.sums.par_chunks_mut(pairs * dim))
            .zip(self.sizes.par_chunks_mut(pairs))
            .enumerate()
            .for_each(|(book, ((keys, sums), sizes))| {
                let head = |i: usize| &batch[(i * books + book) * dim..][..dim];
                let mut counts = vec![0.0f32; pairs];
                let mut totals = vec![0.0f32; pairs * dim];
                for i in 0..rows {
                    let at = found[i * books + book] as usize;
                    counts[at] += 1.0;
                    let total = &mut totals[at * dim..(at + 1) * dim];
                    total.iter_mut().zip(head(i)).for_each(|(t, x)| *t += x);
                }
                let new = 1.0 - config.decay;
                let average = |old: &mut f32, x: &f32| *old = config.decay * *old + new * x;
                sizes
                    .iter_mut()
                    .zip(&counts)
                    .for_each(|(o, x)| average(o, x));
                sums.iter_mut()
                    .zip(&totals)
                    .for_each(|(o, x)| average(o, x));
                let all: f32 = sizes.iter().sum();
                for (j, &looked_up) in sizes.iter().enumerate().take(pairs) {
                    let part = (looked_up + config.eps) / (all + pairs as f32 * config.eps);
                    let size = part * all;
                    let place = j * dim..(j + 1) * dim;
                    for (key, sum) in keys[place.clone()].iter_mut().zip(&sums[place]) {
                        // A key that nothing looks up goes far away, but stays a number.
                        *key = (sum / size).clamp(-FARTHEST, FARTHEST);
                        if key.is_nan() {
                            *key = FARTHEST;
                        }
                    }
                }
                if threshold > 0.0 && rows > 0 {
                    let mut rng = SmallRng::seed_from_u64(seeds[book]);
                    for j in (0..pairs).filter(|&j| sizes[j] < threshold) {
                        let to = head(rng.random_range(0..rows));
                        keys[j * dim..(j + 1) * dim].copy_from_slice(to);
                    }
                }
            });
    }

    /// Keys at the means of k-means.
    fn by_kmeans(&mut self, heads: &[f32], config: &KeyValueBottleneckConfig, rng: &mut SmallRng) {
        let (books, pairs, dim) = (self.books, self.pairs, self.dim);
        let rows = heads.len() / (books * dim);
        let seeds: Vec<u64> = (0..books).map(|_| rng.random()).collect();
        (self.keys.par_chunks_mut(pairs * dim))
            .zip(self.sums.par_chunks_mut(pairs * dim))
            .zip(self.sizes.par_chunks_mut(pairs))
            .enumerate()
            .for_each(|(book, ((keys, sums), sizes))| {
                let mut rng = SmallRng::seed_from_u64(seeds[book]);
                let own = head_of(heads, book, books, dim);
                for key in keys.chunks_exact_mut(dim) {
                    let i = rng.random_range(0..rows);
                    key.copy_from_slice(&own[i * dim..(i + 1) * dim]);
                }
                for _ in 0..config.kmeans_iters {
                    let found = nearest_of(&own, keys, dim);
                    sizes.fill(0.0);
                    sums.fill(0.0);
                    for (row, &at) in own.chunks_exact(dim).zip(&found) {
                        let at = at as usize;
                        sizes[at] += 1.0;
                        let sum = &mut sums[at * dim..(at + 1) * dim];
                        sum.iter_mut().zip(row).for_each(|(s, x)| *s += x);
                    }
                    for (j, size) in sizes.iter().enumerate().filter(|(_, n)| **n > 0.0) {
                        for f in j * dim..(j + 1) * dim {
                            keys[f] = sums[f] / size;
                        }
                    }
                }
                if config.compat {
                    sums.fill(0.0);
                }
            });
    }

    /// The `topk` nearest keys of each head, nearest first, `[rows, books, topk]`.
    ///
    /// With `used`, only pairs that learned rows have looked up are found.
    pub(super) fn look_up(&self, heads: &[f32], topk: usize, used: bool) -> Vec<u32> {
        let (books, dim) = (self.books, self.dim);
        let rows = heads.len() / (books * dim);
        let by_book: Vec<Vec<u32>> = (0..books)
            .into_par_iter()
            .map(|book| {
                let own = head_of(heads, book, books, dim);
                self.look_up_in(book, &own, topk, used)
            })
            .collect();
        let mut all = Vec::with_capacity(rows * books * topk);
        for i in 0..rows {
            for found in &by_book {
                all.extend(&found[i * topk..(i + 1) * topk]);
            }
        }
        all
    }

    /// [`Keys::look_up`] in one codebook, of its heads `[rows, dim]`.
    fn look_up_in(&self, book: usize, own: &[f32], topk: usize, used: bool) -> Vec<u32> {
        let (pairs, dim) = (self.pairs, self.dim);
        let keys = &self.keys[book * pairs * dim..(book + 1) * pairs * dim];
        let counts = &self.counts[book * pairs..(book + 1) * pairs];
        let mut places: Vec<u32> = Vec::new();
        let mut some = Vec::new();
        if used && counts.contains(&0) {
            for j in (0..pairs).filter(|&j| counts[j] > 0) {
                places.push(j as u32);
                some.extend(&keys[j * dim..(j + 1) * dim]);
            }
        }
        let keys = if some.is_empty() { keys } else { &some[..] };
        let found = match topk {
            1 => nearest_of(own, keys, dim),
            _ => several_of(own, keys, dim, topk),
        };
        match places.is_empty() {
            true => found,
            false => found.into_iter().map(|j| places[j as usize]).collect(),
        }
    }

    /// Counts the pairs that learned rows have looked up.
    pub(super) fn count(&mut self, found: &[u32], topk: usize) {
        for row in found.chunks_exact(self.books * topk) {
            for (place, &pair) in row.iter().enumerate() {
                let count = &mut self.counts[place / topk * self.pairs + pair as usize];
                *count = count.saturating_add(1);
            }
        }
    }

    /// Squared distance of the first row's head to a key.
    pub(super) fn distance(&self, heads: &[f32], book: usize, pair: usize) -> f32 {
        let head = &heads[book * self.dim..(book + 1) * self.dim];
        let key = &self.keys[(book * self.pairs + pair) * self.dim..][..self.dim];
        head.iter().zip(key).map(|(a, b)| (a - b) * (a - b)).sum()
    }
}

/// The heads of one codebook, `[rows, dim]`.
fn head_of(heads: &[f32], book: usize, books: usize, dim: usize) -> Vec<f32> {
    let rows = heads.chunks_exact(books * dim);
    rows.flat_map(|row| &row[book * dim..(book + 1) * dim])
        .copied()
        .collect()
}

/// `[rows, dim + 1]` and `[keys, dim + 1]` whose inner product is greatest where the
/// distance is least: `q · key - ½ |key|²`.
fn as_products(heads: &[f32], keys: &[f32], dim: usize) -> (Vec<f32>, Vec<f32>) {
    let mut points = Vec::with_capacity(heads.len() / dim * (dim + 1));
    for head in heads.chunks_exact(dim) {
        points.extend(head);
        points.push(1.0);
    }
    let mut centroids = Vec::with_capacity(keys.len() / dim * (dim + 1));
    for key in keys.chunks_exact(dim) {
        centroids.extend(key);
        let squares: f64 = key.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
        centroids.push((-0.5 * squares) as f32);
    }
    (points, centroids)
}

fn nearest_of(heads: &[f32], keys: &[f32], dim: usize) -> Vec<u32> {
    let (points, centroids) = as_products(heads, keys, dim);
    nearest(&points, &centroids, dim + 1, 1)
}

fn several_of(heads: &[f32], keys: &[f32], dim: usize, topk: usize) -> Vec<u32> {
    let (points, centroids) = as_products(heads, keys, dim);
    let n = keys.len() / dim;
    let mut all = Vec::with_capacity(heads.len() / dim * topk);
    let mut scores = vec![0.0; n];
    for point in points.chunks_exact(dim + 1) {
        keyfold_kernels::centroid_scores(&centroids, point, n, 1, dim + 1, &mut scores);
        let found = keyfold_kernels::top_k(&scores, topk);
        let first = found.first().map_or(0, |f| f.1);
        all.extend(found.iter().map(|f| f.1));
        // With fewer keys than asked for, the nearest counts again.
        all.extend(std::iter::repeat_n(first, topk - found.len()));
    }
    all
}

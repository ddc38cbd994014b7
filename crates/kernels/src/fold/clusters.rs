//! K-means of the rows of one text (CRISP).
//!
//! Squared Euclidean distance, start by k-means++ (Arthur and Vassilvitskii 2007),
//! then rounds of assignment and averaging (Lloyd 1982) until assignments repeat,
//! 20 at most. An empty cluster starts again with the row that is farthest from
//! its centroid. Publication and authors leave these choices open.
//!
//! `argmin_c |x - c|² = argmax_c <x, c> - |c|²/2`, so a round is one product of
//! matrices: `2·n·k·dim` operations.

use crate::{add_assign, dot, matmul_nt};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Rounds of assignment and averaging, at most.
pub const MOST_ROUNDS: usize = 20;

/// The cluster of each of `rows` (`[n, dim]`), numbers below `k`. Equal rows can
/// leave clusters empty.
///
/// # Panics
/// When `rows` is no whole number of rows.
pub fn kmeans(rows: &[f32], dim: usize, k: usize, seed: u64) -> Vec<u32> {
    let start = plus_plus(rows, dim, k, &mut StdRng::seed_from_u64(seed));
    kmeans_from(rows, dim, start)
}

/// [`kmeans`] from given centroids (`[k, dim]`).
///
/// # Panics
/// When a slice is no whole number of rows, or there are rows and no centroid.
pub fn kmeans_from(rows: &[f32], dim: usize, mut centroids: Vec<f32>) -> Vec<u32> {
    let n = rows.len() / dim;
    let k = centroids.len() / dim;
    assert!(n == 0 || k > 0, "kmeans_from: no centroids");
    let squares: Vec<f32> = rows.chunks_exact(dim).map(|r| dot(r, r)).collect();
    let mut nearest = Nearest::new(n, k);
    let mut codes = Vec::new();
    for _ in 0..MOST_ROUNDS {
        nearest.assign(rows, &centroids, dim);
        nearest.fill_empty(&squares, k);
        if nearest.codes == codes {
            break;
        }
        codes.clone_from(&nearest.codes);
        average(&mut centroids, rows, dim, &codes);
    }
    codes
}

/// `k` of the rows, drawn one after the other by their squared distance from
/// those before; fewer where there are fewer different ones.
fn plus_plus(rows: &[f32], dim: usize, k: usize, rng: &mut StdRng) -> Vec<f32> {
    let n = rows.len() / dim;
    let mut centroids = Vec::with_capacity(k.min(n) * dim);
    if n == 0 {
        return centroids;
    }
    let squares: Vec<f32> = rows.chunks_exact(dim).map(|r| dot(r, r)).collect();
    let mut distances = vec![f32::INFINITY; n];
    let mut products = vec![0.0; n];
    let mut next = rng.random_range(0..n);
    for chosen in 1..=k {
        let row = &rows[next * dim..(next + 1) * dim];
        centroids.extend_from_slice(row);
        if chosen == k {
            break;
        }
        matmul_nt(&mut products, row, rows, 1, n, dim, 1);
        for ((distance, product), square) in distances.iter_mut().zip(&products).zip(&squares) {
            // What is left of equal rows by rounding is no distance.
            let d = squares[next] + square - 2.0 * product;
            let d = if d < 1e-6 * square { 0.0 } else { d };
            *distance = distance.min(d);
        }
        let total: f64 = distances.iter().map(|&d| f64::from(d)).sum();
        // Numbers too great to be squared have no distances.
        if total <= 0.0 || !total.is_finite() {
            break;
        }
        let mut left = rng.random_range(0.0..total);
        let passed = distances.iter().position(|&d| {
            left -= f64::from(d);
            left < 0.0
        });
        // Rounding can leave something over: then it is the last with a distance.
        let last = || distances.iter().rposition(|&d| d > 0.0).unwrap_or(0);
        next = passed.unwrap_or_else(last);
    }
    centroids
}

/// The nearest centroid of each row.
struct Nearest {
    codes: Vec<u32>,
    /// `<x, c> - |c|²/2` of it.
    best: Vec<f32>,
    /// `[k, n]`
    products: Vec<f32>,
}

impl Nearest {
    fn new(n: usize, k: usize) -> Self {
        Self {
            codes: vec![0; n],
            best: vec![0.0; n],
            products: vec![0.0; n * k],
        }
    }

    /// The first of equals.
    fn assign(&mut self, rows: &[f32], centroids: &[f32], dim: usize) {
        let (n, k) = (self.codes.len(), centroids.len() / dim);
        matmul_nt(&mut self.products, centroids, rows, k, n, dim, 1);
        self.best.fill(f32::NEG_INFINITY);
        self.codes.fill(0);
        let products = self.products.chunks_exact(n.max(1));
        for (c, (products, centroid)) in (0..).zip(products.zip(centroids.chunks_exact(dim))) {
            let half = 0.5 * dot(centroid, centroid);
            let each = self.best.iter_mut().zip(&mut self.codes).zip(products);
            for ((best, code), product) in each {
                let score = product - half;
                let better = score > *best;
                *code = if better { c } else { *code };
                *best = if better { score } else { *best };
            }
        }
    }

    /// Gives each empty cluster the row that is farthest from its centroid, of a
    /// cluster that has others.
    fn fill_empty(&mut self, squares: &[f32], k: usize) {
        let mut members = vec![0usize; k];
        self.codes.iter().for_each(|&c| members[c as usize] += 1);
        for empty in 0..k {
            if members[empty] > 0 {
                continue;
            }
            let distance = |i: usize| squares[i] - 2.0 * self.best[i];
            let farthest = (0..self.codes.len())
                .filter(|&i| members[self.codes[i] as usize] > 1)
                .max_by(|&a, &b| distance(a).total_cmp(&distance(b)))
                // Equal rows are no farther than rounding makes them.
                .filter(|&i| distance(i) > 1e-6 * squares[i]);
            let Some(row) = farthest else { return };
            members[self.codes[row] as usize] -= 1;
            members[empty] = 1;
            self.codes[row] = empty as u32;
            self.best[row] = 0.5 * squares[row];
        }
    }
}

/// Sets every centroid to the mean of its rows; one without rows stays.
fn average(centroids: &mut [f32], rows: &[f32], dim: usize, codes: &[u32]) {
    let mut members = vec![0usize; centroids.len() / dim];
    codes.iter().for_each(|&c| members[c as usize] += 1);
    for (centroid, members) in centroids.chunks_exact_mut(dim).zip(&members) {
        if *members > 0 {
            centroid.fill(0.0);
        }
    }
    for (row, &c) in rows.chunks_exact(dim).zip(codes) {
        add_assign(&mut centroids[c as usize * dim..][..dim], row);
    }
    for (centroid, members) in centroids.chunks_exact_mut(dim).zip(members) {
        if members > 0 {
            let share = 1.0 / members as f32;
            centroid.iter_mut().for_each(|x| *x *= share);
        }
    }
}

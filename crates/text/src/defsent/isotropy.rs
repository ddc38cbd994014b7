//! How evenly vectors point in all directions.

use keyfold_kernels as kernels;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::symmetric::eigen;

/// The mean cosine of `pairs` pairs of different rows, drawn by `seed`; 0 where there are
/// fewer than two rows. Near 0 for vectors that point everywhere, near 1 for a narrow cone.
///
/// # Panics
/// When the numbers are no whole rows of `dim`.
pub fn mean_cosine(vectors: &[f32], dim: usize, pairs: usize, seed: u64) -> f64 {
    assert!(vectors.len().is_multiple_of(dim), "mean_cosine: rows");
    let n = vectors.len() / dim;
    if n < 2 || pairs == 0 {
        return 0.0;
    }
    let row = |i: usize| &vectors[i * dim..(i + 1) * dim];
    let mut rng = StdRng::seed_from_u64(seed);
    let cosine = |_| {
        let i = rng.random_range(0..n);
        let j = (i + rng.random_range(1..n)) % n;
        let (a, b) = (row(i), row(j));
        let lengths = f64::from(kernels::norm(a)) * f64::from(kernels::norm(b));
        f64::from(kernels::dot(a, b)) / lengths.max(f64::MIN_POSITIVE)
    };
    (0..pairs).map(cosine).sum::<f64>() / pairs as f64
}

/// `min Z(c) / max Z(c)` with `Z(c) = Σ_i exp(<c, v_i>)` over the eigenvectors `c` of
/// `Σ v vᵀ` and their opposites (Mu and Viswanath 2018, *All-but-the-Top*): 1 for vectors
/// that point everywhere alike, near 0 otherwise. The rows are scaled by one factor to mean
/// length one, so that the measure does not depend on their unit.
///
/// None where the vectors are not finite or there are none.
///
/// # Panics
/// When the numbers are no whole rows of `dim`.
pub fn partition_ratio(vectors: &[f32], dim: usize) -> Option<f64> {
    assert!(vectors.len().is_multiple_of(dim), "partition_ratio: rows");
    let n = vectors.len() / dim;
    let lengths = vectors.chunks_exact(dim).map(kernels::norm);
    let length = lengths.map(f64::from).sum::<f64>() / n.max(1) as f64;
    if !(length > 0.0 && length.is_finite()) {
        return None;
    }
    let axes = eigen(&second_moments(vectors, dim), dim)?.vectors;
    let axes: Vec<f32> = axes.iter().map(|x| (x / length) as f32).collect();
    // Z of each axis and of its opposite.
    let mut sums = vec![(0.0f64, 0.0f64); dim];
    let mut products = Vec::new();
    for rows in vectors.chunks(1024 * dim) {
        let count = rows.len() / dim;
        products.resize(count * dim, 0.0);
        kernels::matmul_nt(&mut products, rows, &axes, count, dim, dim, 1);
        for row in products.chunks_exact(dim) {
            for (sum, product) in sums.iter_mut().zip(row) {
                let product = f64::from(*product);
                sum.0 += product.exp();
                sum.1 += (-product).exp();
            }
        }
    }
    let both = sums.into_iter().flat_map(|(a, b)| [a, b]);
    let (least, most) = both.fold((f64::INFINITY, 0.0), |(a, b), z| {
        (f64::min(a, z), f64::max(b, z))
    });
    Some(least / most)
}

/// `Σ v vᵀ / n`, `[dim, dim]`.
pub(super) fn second_moments(vectors: &[f32], dim: usize) -> Vec<f64> {
    let mut sum = vec![0.0f64; dim * dim];
    let (mut columns, mut part) = (Vec::new(), vec![0.0; dim * dim]);
    // In blocks, so that single precision is enough within one.
    for rows in vectors.chunks(4096 * dim) {
        let count = rows.len() / dim;
        columns.clear();
        columns.extend((0..dim * count).map(|at| rows[(at % count) * dim + at / count]));
        kernels::matmul_nt(&mut part, &columns, &columns, dim, dim, count, threads());
        sum.iter_mut()
            .zip(&part)
            .for_each(|(s, p)| *s += f64::from(*p));
    }
    let n = (vectors.len() / dim).max(1) as f64;
    sum.iter_mut().for_each(|s| *s /= n);
    sum
}

/// As many threads as the machine has.
pub(super) fn threads() -> usize {
    crate::run::thread_count(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cone_and_a_cross_are_told_apart() {
        let cross = [1.0, 0.0, -1.0, 0.0, 0.0, 1.0, 0.0, -1.0];
        let cone = [1.0, 0.1, 1.0, -0.1, 1.0, 0.05, 1.0, 0.0];
        assert!((partition_ratio(&cross, 2).unwrap() - 1.0).abs() < 1e-5);
        // e^-1 against e^1 along the cone.
        let ratio = partition_ratio(&cone, 2).unwrap();
        assert!((ratio - (-2.0f64).exp()).abs() < 0.01, "{ratio}");
        let scaled: Vec<f32> = cone.iter().map(|x| x * 1e4).collect();
        assert!((partition_ratio(&scaled, 2).unwrap() - ratio).abs() < 1e-4);
        assert!(mean_cosine(&cone, 2, 500, 1) > 0.98);
        // A third of all pairs of the cross are opposite, the others orthogonal.
        assert!((mean_cosine(&cross, 2, 20_000, 1) + 1.0 / 3.0).abs() < 0.02);
        assert_eq!(mean_cosine(&cross[..2], 2, 10, 1), 0.0);
        assert_eq!(partition_ratio(&[f32::NAN, 0.0], 2), None);
        assert_eq!(partition_ratio(&[], 2), None);
    }
}

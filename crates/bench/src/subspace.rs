//! Leading directions of a symmetric matrix that is only known by its product.

use keyfold_kernels as kernels;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const ITERATIONS: usize = 20;
/// Directions that are iterated beyond those that are kept: they make the last of
/// these settle sooner.
const SPARE: usize = 20;

/// The `dim` eigenvectors of the greatest absolute eigenvalues of a symmetric
/// matrix `[n, n]`, greatest first, `[dim, n]`, by subspace iteration (Bauer 1957).
/// `times(out, x)` writes the matrix times every row of `x` into the rows of `out`.
///
/// Fewer than `dim` where `n` is smaller; zeros where the rank is.
pub(crate) fn leading(
    n: usize,
    dim: usize,
    seed: u64,
    mut times: impl FnMut(&mut [f32], &[f32]),
) -> Vec<f32> {
    let width = (dim + SPARE).min(n);
    let mut rng = StdRng::seed_from_u64(seed);
    let mut x: Vec<f32> = (0..width * n)
        .map(|_| rng.random_range(-1.0..1.0))
        .collect();
    let mut next = vec![0.0; width * n];
    for _ in 0..ITERATIONS {
        times(&mut next, &x);
        kernels::orthonormalize_rows(&mut next, n);
        std::mem::swap(&mut x, &mut next);
    }
    x.truncate(dim * n);
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directions_of_a_diagonal_matrix_are_its_axes() {
        let diagonal = [0.5f32, -4.0, 0.1, 2.0, 0.0];
        let found = leading(5, 2, 3, |out, x| {
            for (out, x) in out.chunks_exact_mut(5).zip(x.chunks_exact(5)) {
                for ((out, x), d) in out.iter_mut().zip(x).zip(diagonal) {
                    *out = d * x;
                }
            }
        });
        assert_eq!(found.len(), 10);
        for (row, axis) in found.chunks_exact(5).zip([1, 3]) {
            assert!((row[axis].abs() - 1.0).abs() < 1e-4, "{row:?}");
        }
    }
}

//! Products, lengths and sums of vectors.

use crate::vector::{Eight, Pair, Vector, simd};

/// Four registers side by side, so that one multiply-add need not wait for the
/// one before.
type Four<V> = Pair<Pair<V>>;

/// Sum of the products of two vectors of equal length.
///
/// # Panics
/// When the lengths differ.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "dot: vectors of different length");
    dot_equal(a, b)
}

simd! {
    fn dot_equal(a: &[f32], b: &[f32]) -> f32 = dot_body;
}

#[inline(always)]
pub(crate) fn dot_body<V: Eight>(a: &[f32], b: &[f32]) -> f32 {
    // The compiler then keeps one count for both.
    let b = &b[..a.len()];
    let (a_blocks, b_blocks) = (a.chunks_exact(32), b.chunks_exact(32));
    let (a_rest, b_rest) = (a_blocks.remainder(), b_blocks.remainder());
    let mut sum = Four::<V>::splat(0.0);
    for (x, y) in a_blocks.zip(b_blocks) {
        sum = Four::<V>::load(x).mul_add(Four::load(y), sum);
    }
    let (a_eights, b_eights) = (a_rest.chunks_exact(8), b_rest.chunks_exact(8));
    let (a_rest, b_rest) = (a_eights.remainder(), b_eights.remainder());
    let mut eight = V::splat(0.0);
    for (x, y) in a_eights.zip(b_eights) {
        eight = V::load(x).mul_add(V::load(y), eight);
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum();
    sum.fold().add(eight).sum() + rest
}

/// Sum of `x - shift` over `xs`.
#[inline(always)]
pub(crate) fn sum_from<V: Eight>(xs: &[f32], shift: f32) -> f32 {
    let blocks = xs.chunks_exact(32);
    let rest: f32 = blocks.remainder().iter().map(|x| x - shift).sum();
    let mut sum = Four::<V>::splat(0.0);
    for block in blocks {
        sum = sum.add(Four::<V>::load(block).sub(Four::splat(shift)));
    }
    sum.sum() + rest
}

/// Sum of `(x - shift)²` over `xs`.
#[inline(always)]
pub(crate) fn sum_of_squares_from<V: Eight>(xs: &[f32], shift: f32) -> f32 {
    let blocks = xs.chunks_exact(32);
    let rest: f32 = blocks
        .remainder()
        .iter()
        .map(|x| (x - shift) * (x - shift))
        .sum();
    let mut sum = Four::<V>::splat(0.0);
    for block in blocks {
        let x = Four::<V>::load(block).sub(Four::splat(shift));
        sum = x.mul_add(x, sum);
    }
    sum.sum() + rest
}

/// Euclidean length.
pub fn norm(a: &[f32]) -> f32 {
    dot_equal(a, a).sqrt()
}

/// Scales every row of `rows` (`[n, dim]`) to length 1: `x / max(|x|, 1e-12)`.
///
/// # Panics
/// When `rows` is no whole number of rows.
pub fn normalize_rows(rows: &mut [f32], dim: usize) {
    assert_rows(rows.len(), dim, "normalize_rows");
    normalize_checked(rows, dim);
}

simd! {
    fn normalize_checked(rows: &mut [f32], dim: usize) = normalize_body;
}

#[inline(always)]
fn normalize_body<V: Eight>(rows: &mut [f32], dim: usize) {
    for row in rows.chunks_exact_mut(dim.max(1)) {
        let scale = 1.0 / dot_body::<V>(row, row).sqrt().max(1e-12);
        row.iter_mut().for_each(|x| *x *= scale);
    }
}

/// Makes the rows of `rows` (`[n, dim]`) orthogonal and of length 1, first to last: modified
/// Gram-Schmidt, twice, since once leaves errors. A row that hangs on those before it becomes 0.
///
/// # Panics
/// When `rows` is no whole number of rows.
pub fn orthonormalize_rows(rows: &mut [f32], dim: usize) {
    for row in 0..assert_rows(rows.len(), dim, "orthonormalize_rows") {
        let (before, rest) = rows.split_at_mut(row * dim);
        let row = &mut rest[..dim];
        let whole = norm(row);
        for _ in 0..2 {
            for other in before.chunks_exact(dim) {
                let along = dot_equal(row, other);
                row.iter_mut().zip(other).for_each(|(x, o)| *x -= along * o);
            }
        }
        let left = norm(row);
        let scale = if left > 1e-6 * whole { 1.0 / left } else { 0.0 };
        row.iter_mut().for_each(|x| *x *= scale);
    }
}

/// Adds `bias` to every row of `x` (`[n, bias.len()]`).
///
/// # Panics
/// When `x` is no whole number of rows.
pub fn add_bias(x: &mut [f32], bias: &[f32]) {
    assert_rows(x.len(), bias.len(), "add_bias");
    for row in x.chunks_exact_mut(bias.len().max(1)) {
        add_assign(row, bias);
    }
}

/// Adds `y` to `x`, element by element.
///
/// # Panics
/// When the lengths differ.
pub fn add_assign(x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len(), "add_assign: vectors of different length");
    // Memory sets its speed, so the compiler's baseline vector code is enough.
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

/// Checks that `len` numbers are a whole number of rows of `dim`, and gives that number.
#[track_caller]
pub(crate) fn assert_rows(len: usize, dim: usize, who: &str) -> usize {
    if len == 0 {
        return 0;
    }
    assert!(
        dim > 0 && len.is_multiple_of(dim),
        "{who}: {len} numbers are no whole number of rows of {dim}"
    );
    len / dim
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::Portable;
    use proptest::prelude::*;

    fn exact(a: &[f32], b: &[f32]) -> f64 {
        a.iter()
            .zip(b)
            .map(|(&x, &y)| f64::from(x) * f64::from(y))
            .sum()
    }

    proptest! {
        #[test]
        fn dot_agrees_with_f64_at_every_length(
            pairs in prop::collection::vec((-1f32..1.0, -1f32..1.0), 0..200),
        ) {
            let (a, b): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
            let want = exact(&a, &b);
            for got in [dot(&a, &b), dot_body::<Portable>(&a, &b)] {
                prop_assert!((f64::from(got) - want).abs() < 1e-5, "{got} {want}");
            }
        }

        #[test]
        fn rows_get_length_one_and_keep_their_direction(
            dim in 1usize..70,
            seed in prop::collection::vec(-10f32..10.0, 70 * 3),
        ) {
            let rows = &seed[..dim * 3];
            for f in [normalize_rows, normalize_body::<Portable>] {
                let mut unit = rows.to_vec();
                f(&mut unit, dim);
                for (row, unit) in rows.chunks(dim).zip(unit.chunks(dim)) {
                    let length = exact(row, row).sqrt();
                    prop_assume!(length > 1e-6);
                    for (x, u) in row.iter().zip(unit) {
                        prop_assert!((f64::from(*x) / length - f64::from(*u)).abs() < 1e-6);
                    }
                }
            }
        }
    }

    #[test]
    fn a_zero_row_stays_zero() {
        let mut rows = [0.0, 0.0, 3.0, 4.0];
        normalize_rows(&mut rows, 2);
        assert_eq!(rows[..2], [0.0, 0.0]);
        assert!((rows[2] - 0.6).abs() < 1e-7);
        normalize_rows(&mut [], 0);
    }

    #[test]
    fn bias_goes_to_every_row() {
        let mut x = [1.0, 2.0, 3.0, 4.0];
        add_bias(&mut x, &[10.0, 20.0]);
        assert_eq!(x, [11.0, 22.0, 13.0, 24.0]);
    }

    #[test]
    #[should_panic(expected = "different length")]
    fn dot_refuses_vectors_of_different_length() {
        dot(&[1.0], &[]);
    }
}

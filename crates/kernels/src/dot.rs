//! Products, lengths and sums of vectors.

use crate::dispatch::{fma, simd};

/// How many sums run side by side: four registers of eight, so that one
/// multiply-add need not wait for the one before.
const LANES: usize = 32;

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
pub(crate) fn dot_body<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    let (a_blocks, a_rest) = a.as_chunks::<LANES>();
    let (b_blocks, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0f32; LANES];
    for (x, y) in a_blocks.iter().zip(b_blocks) {
        for l in 0..LANES {
            sums[l] = fma::<FMA>(x[l], y[l], sums[l]);
        }
    }
    let (a_eights, a_rest) = a_rest.as_chunks::<8>();
    let (b_eights, b_rest) = b_rest.as_chunks::<8>();
    for (x, y) in a_eights.iter().zip(b_eights) {
        for l in 0..8 {
            sums[l] = fma::<FMA>(x[l], y[l], sums[l]);
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum();
    fold_lanes(sums) + rest
}

/// Sum of `f(x)` over `xs`, in lanes.
#[inline(always)]
pub(crate) fn sum_by(xs: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let (blocks, rest) = xs.as_chunks::<LANES>();
    let mut sums = [0f32; LANES];
    for block in blocks {
        for l in 0..LANES {
            sums[l] += f(block[l]);
        }
    }
    fold_lanes(sums) + rest.iter().map(|&x| f(x)).sum::<f32>()
}

/// Sum of the lanes, by halves, as vector code does it.
#[inline(always)]
fn fold_lanes(mut sums: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for l in 0..width {
            sums[l] += sums[l + width];
        }
        width /= 2;
    }
    sums[0]
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
fn normalize_body<const FMA: bool>(rows: &mut [f32], dim: usize) {
    for row in rows.chunks_exact_mut(dim.max(1)) {
        let scale = 1.0 / dot_body::<FMA>(row, row).sqrt().max(1e-12);
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
            for got in [dot(&a, &b), dot_body::<false>(&a, &b)] {
                prop_assert!((f64::from(got) - want).abs() < 1e-5, "{got} {want}");
            }
        }

        #[test]
        fn rows_get_length_one_and_keep_their_direction(
            dim in 1usize..70,
            seed in prop::collection::vec(-10f32..10.0, 70 * 3),
        ) {
            let rows = &seed[..dim * 3];
            for f in [normalize_rows, normalize_body::<false>] {
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

//! Rows of a table by number: their products with one vector, and their sum. The
//! inner loops of models that look words up and learn from them.
//!
//! Rows are far apart in memory, so each kernel asks for the rows to come while it
//! works on one.

use crate::vector::{Eight, simd};

/// How many rows before its turn a row is asked for.
const AHEAD: usize = 4;

/// Adds `factor * x` to `y`, element by element.
///
/// # Panics
/// When the lengths differ.
pub fn axpy(y: &mut [f32], factor: f32, x: &[f32]) {
    assert_eq!(y.len(), x.len(), "axpy: vectors of different length");
    axpy_equal(y, factor, x);
}

simd! {
    fn axpy_equal(y: &mut [f32], factor: f32, x: &[f32]) = axpy_body;
}

#[inline(always)]
pub(crate) fn axpy_body<V: Eight>(y: &mut [f32], factor: f32, x: &[f32]) {
    let f = V::splat(factor);
    let mut blocks = y.chunks_exact_mut(8);
    let xs = x.chunks_exact(8);
    let rest = xs.remainder();
    for (y, x) in (&mut blocks).zip(xs) {
        V::load(x).mul_add(f, V::load(y)).store(y);
    }
    for (y, x) in blocks.into_remainder().iter_mut().zip(rest) {
        *y += factor * x;
    }
}

/// `out[i]` = product of `x` and row `rows[i]` of `table` (`[n, x.len()]`).
///
/// # Panics
/// When there are not as many results as rows, or `table` has no such row.
pub fn gather_dots(out: &mut [f32], table: &[f32], rows: &[u32], x: &[f32]) {
    assert_eq!(out.len(), rows.len(), "gather_dots: results and rows");
    gather_dots_body_any(out, table, rows, x);
}

simd! {
    fn gather_dots_body_any(out: &mut [f32], table: &[f32], rows: &[u32], x: &[f32]) = gather_dots_body;
}

#[inline(always)]
fn gather_dots_body<V: Eight>(out: &mut [f32], table: &[f32], rows: &[u32], x: &[f32]) {
    let row = |i: usize| &table[rows[i] as usize * x.len()..][..x.len()];
    (0..rows.len().min(AHEAD)).for_each(|i| V::prefetch(row(i)));
    for (i, out) in out.iter_mut().enumerate() {
        if i + AHEAD < rows.len() {
            V::prefetch(row(i + AHEAD));
        }
        *out = crate::dot::dot_body::<V>(row(i), x);
    }
}

/// Adds the sum of `factors[i]` times row `rows[i]` of `table` (`[n, y.len()]`) to `y`.
///
/// # Panics
/// When there are not as many factors as rows, or `table` has no such row.
pub fn gather_add(y: &mut [f32], table: &[f32], rows: &[u32], factors: &[f32]) {
    assert_eq!(rows.len(), factors.len(), "gather_add: rows and factors");
    gather_add_any(y, table, rows, factors);
}

simd! {
    fn gather_add_any(y: &mut [f32], table: &[f32], rows: &[u32], factors: &[f32]) = gather_add_body;
}

/// Numbers of `y` that stay in registers while rows are added to them.
const TILE: usize = 64;

#[inline(always)]
fn gather_add_body<V: Eight>(y: &mut [f32], table: &[f32], rows: &[u32], factors: &[f32]) {
    let dim = y.len();
    let row = |i: usize| &table[rows[i] as usize * dim..][..dim];
    let mut tiles = y.chunks_exact_mut(TILE);
    let mut first = 0;
    for tile in &mut tiles {
        let mut sums = [V::splat(0.0); TILE / 8];
        for (sum, y) in sums.iter_mut().zip(tile.chunks_exact(8)) {
            *sum = V::load(y);
        }
        for (i, &factor) in factors.iter().enumerate() {
            // The first tile brings the rest of its rows.
            if first == 0 && i + AHEAD < rows.len() {
                V::prefetch(row(i + AHEAD));
            }
            let x = &row(i)[first..first + TILE];
            let factor = V::splat(factor);
            for (sum, x) in sums.iter_mut().zip(x.chunks_exact(8)) {
                *sum = V::load(x).mul_add(factor, *sum);
            }
        }
        for (sum, y) in sums.iter().zip(tile.chunks_exact_mut(8)) {
            sum.store(y);
        }
        first += TILE;
    }
    let rest = tiles.into_remainder();
    if rest.is_empty() {
        return;
    }
    for (i, &factor) in factors.iter().enumerate() {
        if first == 0 && i + AHEAD < rows.len() {
            V::prefetch(row(i + AHEAD));
        }
        axpy_body::<V>(rest, factor, &row(i)[first..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::Portable;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn all_agree_with_sums_in_f64(
            dim in 1usize..150,
            picks in prop::collection::vec((0u32..6, -2f32..2.0), 0..9),
            numbers in prop::collection::vec(-1f32..1.0, 7 * 149),
        ) {
            let (table, x) = (&numbers[..6 * dim], &numbers[6 * 149..][..dim]);
            let (rows, factors): (Vec<u32>, Vec<f32>) = picks.into_iter().unzip();
            let row = |i: u32| &table[i as usize * dim..][..dim];
            let near = |a: f32, b: f64| (f64::from(a) - b).abs() < 1e-5;

            for dots in [gather_dots, gather_dots_body::<Portable>] {
                let mut out = vec![9.0; rows.len()];
                dots(&mut out, table, &rows, x);
                for (out, &i) in out.iter().zip(&rows) {
                    let want = row(i).iter().zip(x).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                    prop_assert!(near(*out, want));
                }
            }
            for add in [gather_add, gather_add_body::<Portable>] {
                let mut y = x.to_vec();
                add(&mut y, table, &rows, &factors);
                for d in 0..dim {
                    let parts = rows.iter().zip(&factors);
                    let sum: f64 = parts.map(|(&i, &f)| f64::from(f) * f64::from(row(i)[d])).sum();
                    prop_assert!(near(y[d], f64::from(x[d]) + sum));
                }
            }
            for axpy in [axpy, axpy_body::<Portable>] {
                let mut y = x.to_vec();
                axpy(&mut y, -0.7, row(3));
                for d in 0..dim {
                    prop_assert!(near(y[d], f64::from(x[d]) - 0.7 * f64::from(row(3)[d])));
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "range")]
    fn a_row_that_is_not_there_has_no_product() {
        gather_dots(&mut [0.0], &[1.0, 2.0], &[1], &[1.0, 2.0]);
    }
}

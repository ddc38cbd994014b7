//! What coding a row by few atoms does most: looks for the atom that goes with the rest best, and
//! moves one number after the other to its minimum.

use crate::vector::{Eight, simd};

/// The place of the number that is largest in absolute value, or of the largest when not
/// `absolute`; the first of equal ones. NaN is passed over. 0 where there is no number.
pub fn place_of_largest(numbers: &[f32], absolute: bool) -> usize {
    place(numbers, absolute)
}

simd! {
    fn place(numbers: &[f32], absolute: bool) -> usize = place_body;
}

#[inline(always)]
fn sized<V: Eight>(numbers: &[f32], absolute: bool) -> V {
    let x = V::load(numbers);
    if absolute { x.abs() } else { x }
}

#[inline(always)]
fn place_body<V: Eight>(numbers: &[f32], absolute: bool) -> usize {
    let size = |x: f32| if absolute { x.abs() } else { x };
    let (fours, blocks) = (numbers.chunks_exact(32), numbers.chunks_exact(8));
    let mut most = [V::splat(f32::NEG_INFINITY); 4];
    for four in fours.clone() {
        for (most, eight) in most.iter_mut().zip(four.chunks_exact(8)) {
            *most = sized::<V>(eight, absolute).max(*most);
        }
    }
    let mut one = most[0].max(most[1]).max(most[2].max(most[3]));
    for eight in fours.remainder().chunks_exact(8) {
        one = sized::<V>(eight, absolute).max(one);
    }
    let lanes = one.to_array();
    let rest = blocks.remainder();
    let mut largest = f32::NEG_INFINITY;
    for x in lanes {
        largest = if x > largest { x } else { largest };
    }
    for x in rest {
        let x = size(*x);
        largest = if x > largest { x } else { largest };
    }
    let bound = V::splat(largest);
    let mut next = 0;
    for eight in blocks {
        let mut mask = !sized::<V>(eight, absolute).less_mask(bound) & 0xff;
        while mask != 0 {
            let lane = mask.trailing_zeros() as usize;
            // NaN is not less either.
            if size(eight[lane]) == largest {
                return next + lane;
            }
            mask &= mask - 1;
        }
        next += 8;
    }
    let found = rest.iter().position(|x| size(*x) == largest);
    found.map_or(0, |i| next + i)
}

/// One round of coordinate descent for `½ vᵀ G v - tᵀ v + α ‖v‖₁`: every number of `values` moves to
/// the minimum along itself, with the soft threshold `S`,
///
/// `v_i ← S(c_i + g_ii v_i, α) / g_ii`, and `c` loses the move times row `i` of `G`,
///
/// where `c = t - G v` is kept. `gram` has rows of `stride` numbers, and a diagonal above 0. With
/// `positive` no number is below 0. Gives the largest move and the largest number.
///
/// # Panics
/// When `c` has another length than `values`, or `gram` not as many rows or shorter ones.
pub fn lasso_sweep(
    values: &mut [f32],
    c: &mut [f32],
    gram: &[f32],
    stride: usize,
    alpha: f32,
    positive: bool,
) -> (f32, f32) {
    let n = values.len();
    assert_eq!(c.len(), n, "lasso_sweep: products and numbers");
    assert!(
        stride >= n && gram.len() >= n * stride,
        "lasso_sweep: the Gram matrix is too small"
    );
    sweep(values, c, gram, stride, alpha, positive)
}

simd! {
    fn sweep(values: &mut [f32], c: &mut [f32], gram: &[f32], stride: usize, alpha: f32, positive: bool)
        -> (f32, f32) = sweep_body;
}

#[inline(always)]
fn sweep_body<V: Eight>(
    values: &mut [f32],
    c: &mut [f32],
    gram: &[f32],
    stride: usize,
    alpha: f32,
    positive: bool,
) -> (f32, f32) {
    let n = values.len();
    let (mut moved, mut size) = (0f32, 0f32);
    for i in 0..n {
        let row = &gram[i * stride..][..n];
        let (own, value) = (row[i], values[i]);
        let to = c[i] + own * value;
        let shrunk = (to.abs() - alpha).max(0.0).copysign(to);
        let new = if positive && to < 0.0 {
            0.0
        } else {
            shrunk / own
        };
        let by = new - value;
        if by != 0.0 {
            crate::gather::axpy_body::<V>(c, -by, row);
            values[i] = new;
            moved = moved.max(by.abs());
        }
        size = size.max(new.abs());
    }
    (moved, size)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::vector::Portable;

    fn numbers() -> impl Strategy<Value = Vec<f32>> {
        let number = prop_oneof![
            8 => (-20i32..20).prop_map(|x| x as f32 / 4.0),
            1 => Just(f32::NAN),
            1 => Just(-0.0),
            1 => Just(f32::NEG_INFINITY),
        ];
        prop::collection::vec(number, 0..100)
    }

    proptest! {
        #[test]
        fn the_largest_is_the_first_of_a_scan(numbers in numbers(), absolute: bool) {
            let size = |x: f32| if absolute { x.abs() } else { x };
            let mut want: Option<usize> = None;
            for (i, x) in numbers.iter().enumerate() {
                if !x.is_nan() && want.is_none_or(|w| size(*x) > size(numbers[w])) {
                    want = Some(i);
                }
            }
            let want = want.unwrap_or(0);
            prop_assert_eq!(place_of_largest(&numbers, absolute), want);
            prop_assert_eq!(place_body::<Portable>(&numbers, absolute), want);
        }

        #[test]
        fn a_sweep_is_that_of_one_number_after_the_other(
            n in 1usize..21,
            more in 0usize..5,
            positive: bool,
            drawn in prop::collection::vec(-1f32..1.0, 21 * 21 + 42),
        ) {
            let stride = n + more;
            let row = |i: usize| &drawn[i * 21..][..21];
            let mut gram = vec![0.0; n * stride];
            for i in 0..n {
                for j in 0..n {
                    gram[i * stride + j] = crate::dot(row(i), row(j)) + if i == j { 0.5 } else { 0.0 };
                }
            }
            let (start, products) = (&drawn[21 * 21..][..n], &drawn[21 * 21 + 21..][..n]);
            let alpha = 0.2;
            let (mut v, mut c): (Vec<f64>, Vec<f64>) = (
                start.iter().map(|x| f64::from(*x)).collect(),
                products.iter().map(|x| f64::from(*x)).collect(),
            );
            for i in 0..n {
                let own = f64::from(gram[i * stride + i]);
                let to = c[i] + own * v[i];
                let shrunk = (to.abs() - alpha).max(0.0).copysign(to);
                let new = if positive { shrunk.max(0.0) } else { shrunk } / own;
                for (j, c) in c.iter_mut().enumerate() {
                    *c -= (new - v[i]) * f64::from(gram[i * stride + j]);
                }
                v[i] = new;
            }
            for sweep in [lasso_sweep, sweep_body::<Portable>] {
                let (mut values, mut rest) = (start.to_vec(), products.to_vec());
                let (moved, size) = sweep(&mut values, &mut rest, &gram, stride, alpha as f32, positive);
                for i in 0..n {
                    prop_assert!((f64::from(values[i]) - v[i]).abs() < 1e-4 * (1.0 + v[i].abs()));
                    prop_assert!((f64::from(rest[i]) - c[i]).abs() < 1e-3 * (1.0 + c[i].abs()));
                }
                let most = |x: &mut dyn Iterator<Item = f32>| x.fold(0f32, |m, x| m.max(x.abs()));
                prop_assert_eq!(size, most(&mut values.iter().copied()));
                let by = most(&mut values.iter().zip(start).map(|(a, b)| a - b));
                prop_assert!((moved - by).abs() <= 1e-6 * (1.0 + by));
            }
        }
    }

    #[test]
    #[should_panic(expected = "too small")]
    fn a_gram_matrix_that_is_too_small_is_refused() {
        lasso_sweep(&mut [0.0; 2], &mut [0.0; 2], &[1.0; 3], 2, 0.1, false);
    }
}

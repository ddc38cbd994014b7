//! gelu with the bias before it, its gradient, and the gradient of a bias.

use crate::dot::{add_assign, assert_rows};
use crate::math;
use crate::vector::{Pair, Vector, simd};

/// Adds `bias` to every row of `x` (`[n, bias.len()]`), which stays for the gradient, and
/// writes `gelu(x)` to `out`.
///
/// # Panics
/// When a length does not fit.
pub fn bias_gelu(x: &mut [f32], bias: &[f32], out: &mut [f32]) {
    assert_rows(x.len(), bias.len(), "bias_gelu");
    assert_eq!(x.len(), out.len(), "bias_gelu: length of out");
    bias_gelu_checked(x, bias, out);
}

simd! {
    fn bias_gelu_checked(x: &mut [f32], bias: &[f32], out: &mut [f32]) = bias_gelu_body;
}

#[inline(always)]
fn bias_gelu_body<V: Vector>(x: &mut [f32], bias: &[f32], out: &mut [f32]) {
    let width = bias.len().max(1);
    for (x, out) in x.chunks_exact_mut(width).zip(out.chunks_exact_mut(width)) {
        for ((x, b), out) in x.iter_mut().zip(bias).zip(&mut *out) {
            *x += *b;
            *out = *x;
        }
        math::map::<Gelu, Pair<V>>(out);
    }
}

struct Gelu;

impl math::Map for Gelu {
    #[inline(always)]
    fn apply<V: Vector>(x: V) -> V {
        math::gelu(x)
    }
}

/// `gradient ← gradient · gelu'(x)`, element by element.
///
/// # Panics
/// When the lengths differ.
pub fn gelu_backward(x: &[f32], gradient: &mut [f32]) {
    assert_eq!(x.len(), gradient.len(), "gelu_backward: length of gradient");
    gelu_backward_checked(x, gradient);
}

simd! {
    fn gelu_backward_checked(x: &[f32], gradient: &mut [f32]) = gelu_backward_body;
}

#[inline(always)]
fn gelu_backward_body<V: Vector>(x: &[f32], gradient: &mut [f32]) {
    let (blocks, rest) = (x.chunks_exact(V::LEN), x.len() % V::LEN);
    let tail = blocks.remainder();
    let mut out = gradient.chunks_exact_mut(V::LEN);
    for (x, out) in blocks.zip(&mut out) {
        V::load(out).mul(math::gelu_slope(V::load(x))).store(out);
    }
    if rest > 0 {
        let padded = &mut [0.0; 32][..V::LEN];
        padded[..rest].copy_from_slice(tail);
        math::gelu_slope(V::load(padded)).store(padded);
        for (out, slope) in out.into_remainder().iter_mut().zip(padded) {
            *out *= *slope;
        }
    }
}

/// Adds every row of `rows` (`[n, sum.len()]`) to `sum`: the gradient of a bias.
///
/// # Panics
/// When `rows` is no whole number of rows.
pub fn add_columns(sum: &mut [f32], rows: &[f32]) {
    assert_rows(rows.len(), sum.len(), "add_columns");
    for row in rows.chunks_exact(sum.len().max(1)) {
        add_assign(sum, row);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::Portable;
    use proptest::prelude::*;

    fn gelu(x: f64) -> f64 {
        let mut y = [x as f32];
        crate::gelu(&mut y);
        f64::from(y[0])
    }

    proptest! {
        #[test]
        fn the_slope_of_gelu_is_that_of_gelu(
            x in prop::collection::vec(-6f32..6.0, 0..40),
        ) {
            for f in [gelu_backward_checked, gelu_backward_body::<Portable>] {
                let mut g = vec![2.0; x.len()];
                f(&x, &mut g);
                for (&x, &g) in x.iter().zip(&g) {
                    let (x, h) = (f64::from(x), 1e-2);
                    // Of fourth order, so that h may be large beside the rounding of gelu.
                    let slope = (8.0 * (gelu(x + h) - gelu(x - h)) - (gelu(x + 2.0 * h) - gelu(x - 2.0 * h))) / (12.0 * h);
                    prop_assert!((f64::from(g) - 2.0 * slope).abs() < 3e-4, "{x} {g} {slope}");
                }
            }
        }

        #[test]
        fn bias_comes_before_gelu_and_is_summed_after(
            width in 1usize..20,
            numbers in prop::collection::vec(-4f32..4.0, 80),
        ) {
            let (bias, rest) = numbers.split_at(width);
            let x = &rest[..3 * width];
            for f in [bias_gelu_checked, bias_gelu_body::<Portable>] {
                let (mut sum, mut out) = (x.to_vec(), vec![0.0; x.len()]);
                f(&mut sum, bias, &mut out);
                for i in 0..x.len() {
                    prop_assert_eq!(sum[i], x[i] + bias[i % width]);
                    prop_assert!((f64::from(out[i]) - gelu(f64::from(sum[i]))).abs() < 1e-6);
                }
            }
            let mut sum = bias.to_vec();
            add_columns(&mut sum, x);
            for j in 0..width {
                let want = bias[j] + x[j] + x[width + j] + x[2 * width + j];
                prop_assert!((sum[j] - want).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn known_slopes_of_gelu() {
        // torch.nn.functional.gelu in f64, its gradient.
        let x = [-3.0, -1.0, 0.0, 0.5, 1.0, 3.0, -40.0, 40.0];
        let mut g = [1.0; 8];
        gelu_backward(&x, &mut g);
        let want = [
            -0.011_945_6,
            -0.083_315_5,
            0.5,
            0.867_495,
            1.083_315_5,
            1.011_945_6,
            0.0,
            1.0,
        ];
        for (g, want) in g.iter().zip(want) {
            assert!((g - want).abs() < 1e-6, "{g} {want}");
        }
    }
}

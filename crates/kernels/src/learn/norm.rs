//! Layer norm that keeps what its gradient needs, and the gradient.

use crate::dot::{assert_rows, sum_from, sum_of_squares_from};
use crate::vector::{Eight, simd};

/// Scales every row of `x` (`[n, weight.len()]`) to mean 0 and variance 1 in place, writes
/// its factor `1 / √(var + eps)` to `scales` (`[n]`) and `x · weight + bias` to `out`.
///
/// # Panics
/// When a length does not fit.
pub fn norm_forward(
    x: &mut [f32],
    weight: &[f32],
    bias: &[f32],
    eps: f32,
    scales: &mut [f32],
    out: &mut [f32],
) {
    assert_rows(x.len(), weight.len(), "norm_forward");
    assert_eq!(bias.len(), weight.len(), "norm_forward: length of bias");
    assert_eq!(out.len(), x.len(), "norm_forward: length of out");
    assert_eq!(
        scales.len() * weight.len(),
        x.len(),
        "norm_forward: length of scales"
    );
    forward_checked(x, weight, bias, eps, scales, out);
}

simd! {
    fn forward_checked(x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32, scales: &mut [f32], out: &mut [f32]) = forward_body;
}

#[inline(always)]
fn forward_body<V: Eight>(
    x: &mut [f32],
    weight: &[f32],
    bias: &[f32],
    eps: f32,
    scales: &mut [f32],
    out: &mut [f32],
) {
    let width = weight.len().max(1);
    let rows = x.chunks_exact_mut(width).zip(out.chunks_exact_mut(width));
    for ((x, out), scale) in rows.zip(scales) {
        let mean = sum_from::<V>(x, 0.0) / width as f32;
        let variance = sum_of_squares_from::<V>(x, mean) / width as f32;
        *scale = 1.0 / (variance + eps).sqrt();
        let affine = weight.iter().zip(bias);
        for ((x, out), (w, b)) in x.iter_mut().zip(out).zip(affine) {
            *x = (*x - mean) * *scale;
            *out = *x * *w + *b;
        }
    }
}

/// The gradient of [`norm_forward`]: replaces `gradient` (of `out`) by that of the input;
/// adds those of weight and bias to `d_weight` and `d_bias`. `normal` is what `x` became.
///
/// # Panics
/// When a length does not fit.
pub fn norm_backward(
    gradient: &mut [f32],
    normal: &[f32],
    scales: &[f32],
    weight: &[f32],
    d_weight: &mut [f32],
    d_bias: &mut [f32],
) {
    let width = weight.len();
    assert_rows(gradient.len(), width, "norm_backward");
    assert_eq!(
        normal.len(),
        gradient.len(),
        "norm_backward: length of normal"
    );
    assert_eq!(
        scales.len() * width,
        gradient.len(),
        "norm_backward: length of scales"
    );
    assert!(
        d_weight.len() == width && d_bias.len() == width,
        "norm_backward: length of gradients"
    );
    backward_checked(gradient, normal, scales, weight, d_weight, d_bias);
}

simd! {
    fn backward_checked(gradient: &mut [f32], normal: &[f32], scales: &[f32], weight: &[f32], d_weight: &mut [f32], d_bias: &mut [f32]) = backward_body;
}

/// With `g` the gradient times weight: `scale · (g - mean(g) - x · mean(g · x))`.
#[inline(always)]
fn backward_body<V: Eight>(
    gradient: &mut [f32],
    normal: &[f32],
    scales: &[f32],
    weight: &[f32],
    d_weight: &mut [f32],
    d_bias: &mut [f32],
) {
    let width = weight.len().max(1);
    let (d_weight, d_bias) = (&mut d_weight[..width], &mut d_bias[..width]);
    let rows = gradient
        .chunks_exact_mut(width)
        .zip(normal.chunks_exact(width));
    for ((g, x), scale) in rows.zip(scales) {
        for i in 0..width {
            d_weight[i] += g[i] * x[i];
            d_bias[i] += g[i];
            g[i] *= weight[i];
        }
        let mean = sum_from::<V>(g, 0.0) / width as f32;
        let along = crate::dot::dot_body::<V>(g, x) / width as f32;
        for (g, x) in g.iter_mut().zip(x) {
            *g = *scale * (*g - mean - *x * along);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::Portable;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn norm_is_that_of_inference_and_its_gradient_that_of_f64(
            width in 2usize..70,
            numbers in prop::collection::vec(-2f32..2.0, 420),
        ) {
            let (x, rest) = numbers.split_at(2 * width);
            let (weight, rest) = rest.split_at(width);
            let (bias, rest) = rest.split_at(width);
            let upstream = &rest[..2 * width];
            for portable in [false, true] {
                let (mut normal, mut scales, mut out) = (x.to_vec(), [0.0; 2], vec![0.0; x.len()]);
                let (mut g, mut dw, mut db) = (upstream.to_vec(), vec![1.0; width], vec![2.0; width]);
                if portable {
                    forward_body::<Portable>(&mut normal, weight, bias, 1e-3, &mut scales, &mut out);
                    backward_body::<Portable>(&mut g, &normal, &scales, weight, &mut dw, &mut db);
                } else {
                    norm_forward(&mut normal, weight, bias, 1e-3, &mut scales, &mut out);
                    norm_backward(&mut g, &normal, &scales, weight, &mut dw, &mut db);
                }
                let mut inference = x.to_vec();
                crate::layer_norm(&mut inference, width, weight, Some(bias), 1e-3);
                for (a, b) in out.iter().zip(&inference) {
                    prop_assert!((a - b).abs() < 1e-5);
                }
                // The Jacobian in f64, row by row.
                let n = width as f64;
                for r in 0..2 {
                    let row = |s: &[f32]| -> Vec<f64> { s[r * width..][..width].iter().map(|&x| f64::from(x)).collect() };
                    let (x, up) = (row(x), row(upstream));
                    let mean = x.iter().sum::<f64>() / n;
                    let var = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
                    let s = 1.0 / (var + 1e-3).sqrt();
                    for i in 0..width {
                        let mut want = 0.0;
                        for j in 0..width {
                            let same = f64::from(i == j);
                            let d = s * (same - 1.0 / n) - (x[j] - mean) * s.powi(3) * (x[i] - mean) / n;
                            want += up[j] * f64::from(weight[j]) * d;
                        }
                        let got = f64::from(g[r * width + i]);
                        prop_assert!((got - want).abs() < 2e-4 * (1.0 + s), "{got} {want}");
                    }
                }
                for i in 0..width {
                    let want_w = 1.0 + upstream[i] * normal[i] + upstream[width + i] * normal[width + i];
                    prop_assert!((dw[i] - want_w).abs() < 1e-4);
                    prop_assert!((db[i] - (2.0 + upstream[i] + upstream[width + i])).abs() < 1e-5);
                }
            }
        }
    }
}

//! RMS norm that keeps what its gradient needs, and the gradient.

use crate::dot::{assert_rows, dot_body, sum_of_squares_from};
use crate::vector::{Eight, simd};

/// Writes `x · scale · weight` to `out`, with `scale = 1 / √(mean(x²) + eps)` of every row of
/// `x` (`[n, weight.len()]`), which goes to `scales` (`[n]`).
///
/// # Panics
/// When a length does not fit.
pub fn rms_forward(x: &[f32], weight: &[f32], eps: f32, scales: &mut [f32], out: &mut [f32]) {
    assert_rows(x.len(), weight.len(), "rms_forward");
    assert_eq!(out.len(), x.len(), "rms_forward: length of out");
    assert_eq!(
        scales.len() * weight.len(),
        x.len(),
        "rms_forward: length of scales"
    );
    forward_checked(x, weight, eps, scales, out);
}

simd! {
    fn forward_checked(x: &[f32], weight: &[f32], eps: f32, scales: &mut [f32], out: &mut [f32]) = forward_body;
}

#[inline(always)]
fn forward_body<V: Eight>(
    x: &[f32],
    weight: &[f32],
    eps: f32,
    scales: &mut [f32],
    out: &mut [f32],
) {
    let width = weight.len().max(1);
    let rows = x.chunks_exact(width).zip(out.chunks_exact_mut(width));
    for ((x, out), scale) in rows.zip(scales) {
        *scale = 1.0 / (sum_of_squares_from::<V>(x, 0.0) / width as f32 + eps).sqrt();
        for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
            *out = *x * *scale * *w;
        }
    }
}

/// The gradient of [`rms_forward`]: replaces `gradient` (of `out`) by that of the input and
/// adds that of the weight to `d_weight`.
///
/// # Panics
/// When a length does not fit.
pub fn rms_backward(
    gradient: &mut [f32],
    x: &[f32],
    scales: &[f32],
    weight: &[f32],
    d_weight: &mut [f32],
) {
    let width = weight.len();
    assert_rows(gradient.len(), width, "rms_backward");
    assert_eq!(x.len(), gradient.len(), "rms_backward: length of x");
    assert_eq!(
        scales.len() * width,
        gradient.len(),
        "rms_backward: length of scales"
    );
    assert_eq!(d_weight.len(), width, "rms_backward: length of d_weight");
    backward_checked(gradient, x, scales, weight, d_weight);
}

simd! {
    fn backward_checked(gradient: &mut [f32], x: &[f32], scales: &[f32], weight: &[f32], d_weight: &mut [f32]) = backward_body;
}

/// With `g` the gradient times weight: `scale · (g - x · scale² · mean(g · x))`.
#[inline(always)]
fn backward_body<V: Eight>(
    gradient: &mut [f32],
    x: &[f32],
    scales: &[f32],
    weight: &[f32],
    d_weight: &mut [f32],
) {
    let width = weight.len().max(1);
    let d_weight = &mut d_weight[..weight.len()];
    let rows = gradient
        .chunks_exact_mut(width)
        .zip(x.chunks_exact(width))
        .zip(scales);
    for ((g, x), &scale) in rows {
        for i in 0..width {
            d_weight[i] += g[i] * x[i] * scale;
            g[i] *= weight[i];
        }
        let along = scale * scale * dot_body::<V>(g, x) / width as f32;
        for (g, x) in g.iter_mut().zip(x) {
            *g = scale * (*g - *x * along);
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
        fn rms_norm_is_that_of_inference_and_its_gradient_that_of_f64(
            width in 1usize..70,
            numbers in prop::collection::vec(-2f32..2.0, 350),
        ) {
            let (x, rest) = numbers.split_at(2 * width);
            let (weight, rest) = rest.split_at(width);
            let upstream = &rest[..2 * width];
            for portable in [false, true] {
                let (mut scales, mut out) = ([0.0; 2], vec![0.0; x.len()]);
                let (mut g, mut dw) = (upstream.to_vec(), vec![1.0; width]);
                if portable {
                    forward_body::<Portable>(x, weight, 1e-3, &mut scales, &mut out);
                    backward_body::<Portable>(&mut g, x, &scales, weight, &mut dw);
                } else {
                    rms_forward(x, weight, 1e-3, &mut scales, &mut out);
                    rms_backward(&mut g, x, &scales, weight, &mut dw);
                }
                let mut inference = x.to_vec();
                crate::rms_norm(&mut inference, width, weight, 1e-3);
                for (a, b) in out.iter().zip(&inference) {
                    prop_assert!((a - b).abs() < 1e-5);
                }
                let n = width as f64;
                let mut want_w = vec![1.0; width];
                for r in 0..2 {
                    let row = |s: &[f32]| -> Vec<f64> { s[r * width..][..width].iter().map(|&x| f64::from(x)).collect() };
                    let (x, up) = (row(x), row(upstream));
                    let s = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / n + 1e-3).sqrt();
                    for i in 0..width {
                        want_w[i] += up[i] * x[i] * s;
                        let mut want = 0.0;
                        for j in 0..width {
                            let d = s * f64::from(i == j) - x[j] * s.powi(3) * x[i] / n;
                            want += up[j] * f64::from(weight[j]) * d;
                        }
                        let got = f64::from(g[r * width + i]);
                        prop_assert!((got - want).abs() < 2e-4 * (1.0 + s), "{got} {want}");
                    }
                }
                for (got, want) in dw.iter().zip(&want_w) {
                    prop_assert!((f64::from(*got) - want).abs() < 1e-3, "{got} {want}");
                }
            }
        }
    }
}

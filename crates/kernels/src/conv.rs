//! Convolutions along time.

use crate::vector::{Vector, simd};

/// Depthwise convolution of one sequence with itself as neighbour, zeros beyond
/// both ends: `out[t, c] = bias[c] + Σₖ weight[k, c] · x[t + k - K/2, c]`.
///
/// `x` and `out` are `[time, channels]`, `weight` is `[K, channels]`, `bias` `[channels]`.
///
/// # Panics
/// When a length is not as the shapes say.
pub fn depthwise_conv(out: &mut [f32], x: &[f32], weight: &[f32], bias: &[f32]) {
    assert_eq!(out.len(), x.len(), "depthwise_conv: length of out");
    let channels = bias.len();
    if channels == 0 {
        assert!(
            x.is_empty() && weight.is_empty(),
            "depthwise_conv: channels"
        );
        return;
    }
    assert!(
        x.len().is_multiple_of(channels) && weight.len().is_multiple_of(channels),
        "depthwise_conv: rows of x and weight have the length of bias"
    );
    depthwise_conv_checked(out, x, weight, bias);
}

simd! {
    fn depthwise_conv_checked(out: &mut [f32], x: &[f32], weight: &[f32], bias: &[f32]) = depthwise_conv_body;
}

#[inline(always)]
fn depthwise_conv_body<V: Vector>(out: &mut [f32], x: &[f32], weight: &[f32], bias: &[f32]) {
    let channels = bias.len();
    let time = x.len() / channels;
    let half = weight.len() / channels / 2;
    let whole = channels - channels % V::LEN;
    for (t, out) in out.chunks_exact_mut(channels).enumerate() {
        // Kernel rows k whose neighbour t + k - half is inside the sequence.
        let first = half.saturating_sub(t);
        let last = (weight.len() / channels).min(time + half - t);
        for c in (0..whole).step_by(V::LEN) {
            let mut sum = V::load(&bias[c..]);
            for k in first..last {
                let w = V::load(&weight[k * channels + c..]);
                sum = w.mul_add(V::load(&x[(t + k - half) * channels + c..]), sum);
            }
            sum.store(&mut out[c..]);
        }
        for c in whole..channels {
            out[c] = bias[c]
                + (first..last)
                    .map(|k| weight[k * channels + c] * x[(t + k - half) * channels + c])
                    .sum::<f32>();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plain(x: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f32> {
        let c = bias.len();
        let (time, k) = (x.len() / c, weight.len() / c);
        let mut out = Vec::new();
        for t in 0..time {
            for ch in 0..c {
                let mut sum = bias[ch];
                for j in 0..k {
                    let at = t as isize + j as isize - (k / 2) as isize;
                    if (0..time as isize).contains(&at) {
                        sum += weight[j * c + ch] * x[at as usize * c + ch];
                    }
                }
                out.push(sum);
            }
        }
        out
    }

    proptest! {
        #[test]
        fn equals_the_sum_over_neighbours(
            time in 0usize..12, channels in 1usize..20, kernel in 1usize..8, seed in 0u64..100
        ) {
            use rand::{Rng, SeedableRng};
            let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
            let mut draw = |n: usize| (0..n).map(|_| rng.random_range(-1.0..1.0)).collect::<Vec<f32>>();
            let (x, w, b) = (draw(time * channels), draw(kernel * channels), draw(channels));
            let mut out = vec![0.0; x.len()];
            depthwise_conv(&mut out, &x, &w, &b);
            for (a, b) in out.iter().zip(plain(&x, &w, &b)) {
                prop_assert!((a - b).abs() < 1e-5);
            }
        }
    }
}

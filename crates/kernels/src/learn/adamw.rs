//! A step of AdamW (Loshchilov and Hutter: Decoupled Weight Decay Regularization, 2019) in
//! one pass over weights, gradient and moments.

/// The constants of one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamStep {
    /// Learning rate.
    pub rate: f32,
    /// Decay of the mean of gradients.
    pub beta_1: f32,
    /// Decay of the mean of their squares.
    pub beta_2: f32,
    /// Added to the root of that mean.
    pub epsilon: f32,
    /// What of a weight is taken away per step, times the rate.
    pub weight_decay: f32,
    /// Number of this step, from 1: the means begin at 0 and are corrected for it.
    pub number: u32,
}

/// `m ← β₁ m + (1 - β₁) g`, `v ← β₂ v + (1 - β₂) g²`,
/// `w ← (1 - rate · decay) w - rate · m / (1 - β₁ᵗ) / (√(v / (1 - β₂ᵗ)) + ε)`.
///
/// # Panics
/// When the lengths differ.
pub fn adamw(
    weights: &mut [f32],
    gradient: &[f32],
    first: &mut [f32],
    second: &mut [f32],
    step: AdamStep,
) {
    let n = weights.len();
    assert!(
        gradient.len() == n && first.len() == n && second.len() == n,
        "adamw: lengths differ"
    );
    // In f64: β₂ᵗ is near 1 in the first steps.
    let correction = |beta: f32| 1.0 - f64::from(beta).powi(step.number.min(1 << 30) as i32);
    let constants = Constants {
        keep: 1.0 - step.rate * step.weight_decay,
        beta_1: step.beta_1,
        beta_2: step.beta_2,
        scale: (f64::from(step.rate) / correction(step.beta_1)) as f32,
        spread: (1.0 / correction(step.beta_2)) as f32,
        epsilon: step.epsilon,
    };
    checked(weights, gradient, first, second, constants);
}

#[derive(Clone, Copy)]
struct Constants {
    keep: f32,
    beta_1: f32,
    beta_2: f32,
    scale: f32,
    spread: f32,
    epsilon: f32,
}

crate::vector::simd! {
    fn checked(weights: &mut [f32], gradient: &[f32], first: &mut [f32], second: &mut [f32], c: Constants) = body;
}

/// Plain code: the compiler makes vectors of it, of the width of the unit that it is
/// compiled for.
#[inline(always)]
// `simd!` names the vector, which plain code has no use for.
#[allow(clippy::extra_unused_type_parameters)]
fn body<V>(
    weights: &mut [f32],
    gradient: &[f32],
    first: &mut [f32],
    second: &mut [f32],
    c: Constants,
) {
    let moments = first.iter_mut().zip(second);
    for ((w, g), (m, v)) in weights.iter_mut().zip(gradient).zip(moments) {
        *m = c.beta_1 * *m + (1.0 - c.beta_1) * g;
        *v = c.beta_2 * *v + (1.0 - c.beta_2) * g * g;
        *w = c.keep * *w - c.scale * *m / ((*v * c.spread).sqrt() + c.epsilon);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::Portable;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_step_agrees_with_f64(
            numbers in prop::collection::vec(-1f32..1.0, 60),
            number in 1u32..1000,
        ) {
            let n = numbers.len() / 4;
            let part = |i: usize| numbers[i * n..(i + 1) * n].to_vec();
            let squares: Vec<f32> = part(3).iter().map(|x| x * x).collect();
            let step = AdamStep { rate: 0.01, beta_1: 0.9, beta_2: 0.999, epsilon: 1e-6, weight_decay: 0.1, number };
            let (mut w, mut m, mut v) = (part(0), part(2), squares.clone());
            adamw(&mut w, &part(1), &mut m, &mut v, step);
            let t = number as i32;
            for i in 0..n {
                let f = f64::from;
                let (g, m0, v0) = (f(part(1)[i]), f(part(2)[i]), f(squares[i]));
                let (m1, v1) = (0.9 * m0 + 0.1 * g, 0.999 * v0 + 0.001 * g * g);
                let (mc, vc) = (m1 / (1.0 - 0.9f64.powi(t)), v1 / (1.0 - 0.999f64.powi(t)));
                let want = f(part(0)[i]) * (1.0 - 0.001) - 0.01 * mc / (vc.sqrt() + 1e-6);
                prop_assert!((f(m[i]) - m1).abs() < 1e-6 && (f(v[i]) - v1).abs() < 1e-6);
                let size = 1.0 + (want - f(part(0)[i])).abs() * 10.0;
                prop_assert!((f(w[i]) - want).abs() < 1e-5 * size, "{} {want}", w[i]);
            }
            let constants = Constants { keep: 0.999, beta_1: 0.9, beta_2: 0.999, scale: 0.02, spread: 3.0, epsilon: 1e-6 };
            let (mut here, mut twin) = ([part(0), part(2), squares.clone()], [part(0), part(2), squares]);
            for (which, [w, m, v]) in [(true, &mut here), (false, &mut twin)] {
                if which {
                    checked(w, &part(1), m, v, constants);
                } else {
                    body::<Portable>(w, &part(1), m, v, constants);
                }
            }
            for (a, b) in here.iter().flatten().zip(twin.iter().flatten()) {
                prop_assert!((a - b).abs() <= 1e-5 * (1.0 + a.abs()), "{a} {b}");
            }
        }
    }
}

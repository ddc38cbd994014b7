//! Element-wise functions of encoders.

use crate::math::{self, Map};
use crate::vector::{Pair, Vector, simd};

/// `max(x, 0)`; NaN stays NaN.
pub fn relu(x: &mut [f32]) {
    // One comparison a number: the compiler needs no help here.
    x.iter_mut()
        .for_each(|x| *x = if *x < 0.0 { 0.0 } else { *x });
}

simd! {
    /// Hyperbolic tangent, relative error below 4e-7.
    pub fn tanh(x: &mut [f32]) = tanh_body;
}

#[inline(always)]
fn tanh_body<V: Vector>(x: &mut [f32]) {
    math::map::<Tanh, Pair<V>>(x);
}

struct Tanh;

impl Map for Tanh {
    #[inline(always)]
    fn apply<V: Vector>(x: V) -> V {
        math::tanh(x)
    }
}

simd! {
    /// `exp(x)`, relative error below 2e-7; 0 below -86.6.
    pub fn exp(x: &mut [f32]) = exp_body;
}

#[inline(always)]
fn exp_body<V: Vector>(x: &mut [f32]) {
    math::map::<Exp, V>(x);
}

struct Exp;

impl Map for Exp {
    #[inline(always)]
    fn apply<V: Vector>(x: V) -> V {
        math::exp(x)
    }
}

simd! {
    /// `1 / (1 + exp(-x))`.
    pub fn sigmoid(x: &mut [f32]) = sigmoid_body;
}

#[inline(always)]
fn sigmoid_body<V: Vector>(x: &mut [f32]) {
    math::map::<Sigmoid, V>(x);
}

struct Sigmoid;

impl Map for Sigmoid {
    #[inline(always)]
    fn apply<V: Vector>(x: V) -> V {
        math::sigmoid(x)
    }
}

simd! {
    /// `x / (1 + exp(-x))`.
    pub fn silu(x: &mut [f32]) = silu_body;
}

#[inline(always)]
fn silu_body<V: Vector>(x: &mut [f32]) {
    math::map::<Silu, Pair<V>>(x);
}

pub(crate) struct Silu;

impl Map for Silu {
    #[inline(always)]
    fn apply<V: Vector>(x: V) -> V {
        x.mul(math::sigmoid(x))
    }
}

simd! {
    /// `ln(1 + exp(x))`, relative error below 1e-6 where it is no smaller than 1e-37.
    pub fn softplus(x: &mut [f32]) = softplus_body;
}

#[inline(always)]
fn softplus_body<V: Vector>(x: &mut [f32]) {
    math::map::<Softplus, Pair<V>>(x);
}

struct Softplus;

impl Map for Softplus {
    #[inline(always)]
    fn apply<V: Vector>(x: V) -> V {
        math::softplus(x)
    }
}

/// `gate = silu(gate) * up`, element by element: the gated unit of Llama's kind.
///
/// # Panics
/// When the lengths differ.
pub fn silu_mul(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "silu_mul: lengths differ");
    silu_mul_equal(gate, up);
}

simd! {
    fn silu_mul_equal(gate: &mut [f32], up: &[f32]) = silu_mul_body;
}

#[inline(always)]
fn silu_mul_body<V: Vector>(gate: &mut [f32], up: &[f32]) {
    let whole = gate.len() - gate.len() % V::LEN;
    let (gates, gate) = gate.split_at_mut(whole);
    let (ups, up) = up.split_at(whole);
    for (gate, up) in gates.chunks_exact_mut(V::LEN).zip(ups.chunks_exact(V::LEN)) {
        Silu::apply(V::load(gate)).mul(V::load(up)).store(gate);
    }
    silu_body::<V>(gate);
    gate.iter_mut().zip(up).for_each(|(g, u)| *g *= u);
}

simd! {
    /// `x Φ(x)` with the normal distribution function `Φ(x) = (1 + erf(x / √2)) / 2`;
    /// absolute error below 5e-7 (times `x` where `x` is above 1).
    pub fn gelu(x: &mut [f32]) = gelu_body;
}

#[inline(always)]
fn gelu_body<V: Vector>(x: &mut [f32]) {
    math::map::<Gelu, Pair<V>>(x);
}

struct Gelu;

impl Map for Gelu {
    #[inline(always)]
    fn apply<V: Vector>(x: V) -> V {
        math::gelu(x)
    }
}

simd! {
    /// `x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2`, the approximation of
    /// [`gelu`] that some checkpoints were trained with.
    pub fn gelu_tanh(x: &mut [f32]) = gelu_tanh_body;
}

#[inline(always)]
fn gelu_tanh_body<V: Vector>(x: &mut [f32]) {
    math::map::<GeluTanh, Pair<V>>(x);
}

struct GeluTanh;

impl Map for GeluTanh {
    #[inline(always)]
    fn apply<V: Vector>(x: V) -> V {
        // (1 + tanh(u)) / 2 = 1 / (1 + exp(-2u)), 2u = x (c + 0.044715 c x²), c = 2 √(2/π).
        let inner = x
            .mul(x)
            .mul_add(V::splat(0.071_354_82), V::splat(1.595_769_1));
        x.mul(math::sigmoid(x.mul(inner)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::Portable;
    use proptest::prelude::*;

    /// `Φ(x)` by integrating the density from 0 with Simpson's rule.
    fn normal(x: f64) -> f64 {
        let n = 2000;
        let h = x.clamp(-9.0, 9.0) / f64::from(n);
        let density = |t: f64| (-0.5 * t * t).exp() / (2.0 * std::f64::consts::PI).sqrt();
        let mut sum = density(0.0) + density(h * f64::from(n));
        for i in 1..n {
            sum += density(h * f64::from(i)) * f64::from(2 + 2 * (i % 2));
        }
        0.5 + sum * h / 3.0
    }

    type Slices = fn(&mut [f32]);

    /// Compares the dispatched function and its portable twin with the truth.
    fn check(x: &[f32], functions: [Slices; 2], truth: impl Fn(f64) -> f64) {
        for f in functions {
            let mut y = x.to_vec();
            f(&mut y);
            for (&x, &y) in x.iter().zip(&y) {
                let want = truth(f64::from(x));
                let error = (f64::from(y) - want).abs();
                assert!(
                    error < 5e-7 * want.abs().max(1.0),
                    "f({x}) = {y}, not {want}"
                );
            }
        }
    }

    /// The same, but small results must be as exact as large ones.
    fn check_relative(x: &[f32], functions: [Slices; 2], truth: impl Fn(f64) -> f64) {
        for f in functions {
            let mut y = x.to_vec();
            f(&mut y);
            for (&x, &y) in x.iter().zip(&y) {
                let want = truth(f64::from(x));
                assert!(
                    (f64::from(y) - want).abs() <= 4e-7 * want.abs(),
                    "f({x}) = {y}, not {want}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn a_gated_unit_is_silu_times_the_other(
            pairs in prop::collection::vec((-20f32..20.0, -3f32..3.0), 0..40),
        ) {
            let (gate, up): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
            let (mut here, mut twin) = (gate.clone(), gate.clone());
            silu_mul(&mut here, &up);
            silu_mul_body::<Portable>(&mut twin, &up);
            for i in 0..gate.len() {
                let x = f64::from(gate[i]);
                let want = x / (1.0 + (-x).exp()) * f64::from(up[i]);
                for got in [here[i], twin[i]] {
                    prop_assert!((f64::from(got) - want).abs() < 1e-6 * (1.0 + want.abs()));
                }
            }
        }
    }

    proptest! {
        #[test]
        fn activations_agree_with_their_definitions(
            x in prop::collection::vec(prop_oneof![-6f32..6.0, -100f32..100.0], 0..40),
        ) {
            let cubic = |x: f64| (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            check(&x, [gelu, gelu_body::<Portable>], |x| x * normal(x));
            check(&x, [gelu_tanh, gelu_tanh_body::<Portable>], |x| 0.5 * x * (1.0 + cubic(x).tanh()));
            check(&x, [silu, silu_body::<Portable>], |x| x / (1.0 + (-x).exp()));
            let low: Vec<f32> = x.iter().map(|x| x.min(80.0)).collect();
            check(&low, [exp, exp_body::<Portable>], f64::exp);
            check(&x, [softplus, softplus_body::<Portable>], |x| x.max(0.0) + (-x.abs()).exp().ln_1p());
            let low: Vec<f32> = x.iter().map(|x| x.max(-80.0)).collect();
            for f in [softplus, softplus_body::<Portable>] {
                let mut y = low.clone();
                f(&mut y);
                for (&x, &y) in low.iter().zip(&y) {
                    let x = f64::from(x);
                    let want = x.max(0.0) + (-x.abs()).exp().ln_1p();
                    prop_assert!((f64::from(y) - want).abs() <= 1e-6 * want, "softplus({x}) = {y}");
                }
            }
            check(&x, [sigmoid, sigmoid_body::<Portable>], |x| 1.0 / (1.0 + (-x).exp()));
            check(&x, [tanh, tanh_body::<Portable>], f64::tanh);
            check_relative(&x, [tanh, tanh_body::<Portable>], f64::tanh);
            check(&x, [relu, relu], |x| x.max(0.0));
        }
    }

    #[test]
    fn known_values_of_gelu() {
        // torch.nn.functional.gelu in f64.
        let mut x = [-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0];
        gelu(&mut x);
        let want = [
            -0.004_049_694_1,
            -0.158_655_25,
            -0.154_268_77,
            0.0,
            0.345_731_23,
            0.841_344_75,
            2.995_950_3,
        ];
        for (x, want) in x.iter().zip(want) {
            assert!((x - want).abs() < 3e-7, "{x} {want}");
        }
    }

    #[test]
    fn infinities_have_limits_and_nan_stays() {
        for f in [gelu as Slices, gelu_tanh, silu, tanh, relu, softplus] {
            let mut x = [f32::INFINITY, f32::NAN, f32::MAX, 1e30, -1e30];
            f(&mut x);
            assert!(x[0] >= 1.0, "{x:?}");
            assert!(x[1].is_nan(), "{x:?}");
            assert!(x[2] >= 1.0 && x[3] >= 1.0, "{x:?}");
            assert!(x[4] == 0.0 || x[4] == -1.0, "{x:?}");
        }
    }
}

//! exp, tanh, the logistic function and gelu, on several numbers at once and
//! without branches.

use crate::vector::Vector;

/// A function of one number, applied to many.
pub(crate) trait Map {
    fn apply<V: Vector>(x: V) -> V;
}

/// Applies `F` to every number of `x`.
#[inline(always)]
pub(crate) fn map<F: Map, V: Vector>(x: &mut [f32]) {
    let mut blocks = x.chunks_exact_mut(V::LEN);
    for block in &mut blocks {
        F::apply(V::load(block)).store(block);
    }
    let rest = blocks.into_remainder();
    if !rest.is_empty() {
        let padded = &mut [0.0; 32][..V::LEN];
        padded[..rest.len()].copy_from_slice(rest);
        F::apply(V::load(padded)).store(padded);
        rest.copy_from_slice(&padded[..rest.len()]);
    }
}

/// Value of a polynomial, highest coefficient first.
#[inline(always)]
fn polynomial<V: Vector, const N: usize>(x: V, coefficients: [f32; N]) -> V {
    let mut sum = V::splat(coefficients[0]);
    for &c in &coefficients[1..] {
        sum = sum.mul_add(x, V::splat(c));
    }
    sum
}

/// `exp(x)`, relative error below 2e-7. Below -86.6 it is 0, above 88.7 `inf`.
///
/// `x = n ln 2 + r`, `exp(x) = 2^n exp(r)` with Cephes' polynomial for `|r| <= ln 2 / 2`.
#[inline(always)]
pub(crate) fn exp<V: Vector>(x: V) -> V {
    const LOWEST: f32 = -86.6;
    const HIGHEST: f32 = 88.722_84;
    // Adding it rounds to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let (lowest, highest) = (V::splat(LOWEST), V::splat(HIGHEST));
    // The limits come first, so that NaN goes through.
    let y = lowest.max(highest.min(x));
    let shifted = y.mul_add(V::splat(std::f32::consts::LOG2_E), V::splat(ROUND));
    let n = shifted.sub(V::splat(ROUND));
    // ln 2 in two parts, the first exact in few bits.
    let r = n.mul_add(V::splat(-0.693_359_4), y);
    let r = n.mul_add(V::splat(2.121_944_4e-4), r);
    let p = polynomial(
        r,
        [
            1.987_569_1e-4,
            1.398_2e-3,
            8.333_452e-3,
            4.166_579_6e-2,
            1.666_666_5e-1,
            5.000_000_1e-1,
        ],
    );
    let p = p.mul_add(r.mul(r), r).add(V::splat(1.0));
    // 2^(n-1), since 2^128 is not a number; n - 1 >= -126.
    let half = shifted.shift_bits(126, 23);
    let value = p.add(p).mul(half);
    let value = highest.if_less(x, V::splat(f32::INFINITY), value);
    x.if_less(lowest, V::splat(0.0), value)
}

/// Hyperbolic tangent, relative error below 4e-7.
#[inline(always)]
pub(crate) fn tanh<V: Vector>(x: V) -> V {
    let (one, two) = (V::splat(1.0), V::splat(2.0));
    let size = x.abs();
    let far = one.sub(two.div(exp(size.add(size)).add(one)));
    let far = x.if_less(V::splat(0.0), V::splat(0.0).sub(far), far);
    let square = x.mul(x);
    // Cephes' polynomial; the formula above loses digits near 0.
    let p = polynomial(
        square,
        [
            -5.704_988_7e-3,
            2.063_908_9e-2,
            -5.373_971_6e-2,
            1.333_144_2e-1,
            -3.333_328_2e-1,
        ],
    );
    let near = p.mul(square).mul_add(x, x);
    size.if_less(V::splat(0.625), near, far)
}

/// `1 / (1 + exp(-x))`.
#[inline(always)]
pub(crate) fn sigmoid<V: Vector>(x: V) -> V {
    let one = V::splat(1.0);
    one.div(exp(V::splat(0.0).sub(x)).add(one))
}

/// `ln(1 + exp(x)) = max(x, 0) + ln(1 + u)` with `u = exp(-|x|)`.
///
/// `ln(1 + u) = 2 artanh(s)` with `s = u / (2 + u)`, at most 1/3.
#[inline(always)]
pub(crate) fn softplus<V: Vector>(x: V) -> V {
    let (zero, two) = (V::splat(0.0), V::splat(2.0));
    let u = exp(zero.sub(x.abs()));
    let s = u.div(u.add(two));
    let p = polynomial(
        s.mul(s),
        [
            1.0 / 13.0,
            1.0 / 11.0,
            1.0 / 9.0,
            1.0 / 7.0,
            1.0 / 5.0,
            1.0 / 3.0,
            1.0,
        ],
    );
    // NaN goes through: the greater of two is the second where one is NaN.
    zero.max(x).add(s.add(s).mul(p))
}

/// `x Φ(x)` with the normal distribution function `Φ`.
///
/// `x Φ(x) = max(x, 0) - |x| (1 - Φ(|x|))`.
#[inline(always)]
pub(crate) fn gelu<V: Vector>(x: V) -> V {
    let half = V::splat(0.5);
    let (size, upper, _) = upper_tail(x);
    half.mul_add(x, half.mul(x.abs())).sub(size.mul(upper))
}

/// The derivative of [`gelu`], `Φ(x) + x φ(x)` with the normal density `φ`.
#[inline(always)]
pub(crate) fn gelu_slope<V: Vector>(x: V) -> V {
    let (size, upper, density) = upper_tail(x);
    // 1 / √(2π)
    let rise = size.mul(density).mul(V::splat(0.398_942_28));
    let (zero, one) = (V::splat(0.0), V::splat(1.0));
    // For x below 0: 1 - Φ(|x|) - |x| φ(x); above, that from 1.
    let below = upper.sub(rise);
    x.if_less(zero, below, one.sub(below))
}

/// `|x|` up to 14, `1 - Φ(|x|)` and `exp(-x² / 2)`.
///
/// `1 - Φ(|x|) = erfc(|x| / √2) / 2`, and `erfc(z) = exp(-z²) t P(t)` with
/// `t = 1 / (1 + 0.4 z)`; `P` is our own fit (error 1.3e-8 in gelu).
#[inline(always)]
fn upper_tail<V: Vector>(x: V) -> (V, V, V) {
    let half = V::splat(0.5);
    // Beyond 14 the tail is 0; without the limit inf would give inf * 0.
    let size = V::splat(14.0).min(x.abs());
    // 0.4 / √2
    let t = V::splat(1.0).div(size.mul_add(V::splat(0.282_842_7), V::splat(1.0)));
    let p = polynomial(
        t,
        [
            -0.203_119_93,
            0.721_015_67,
            -0.390_474_49,
            0.484_292_24,
            0.155_314_26,
            0.232_972_2,
        ],
    );
    let half_size = half.mul(size);
    let density = exp(V::splat(0.0).sub(half_size).mul(size));
    (size, half.mul(t).mul(p).mul(density), density)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::{Pair, Portable, simd};
    use proptest::prelude::*;

    simd! { fn exp_here(x: &mut [f32]) = exp_body; }

    struct Exp;

    impl Map for Exp {
        #[inline(always)]
        fn apply<V: Vector>(x: V) -> V {
            exp(x)
        }
    }

    #[inline(always)]
    fn exp_body<V: Vector>(x: &mut [f32]) {
        map::<Exp, Pair<V>>(x);
    }

    proptest! {
        #[test]
        fn exp_is_within_2e_7_of_the_true_value(x in prop::collection::vec(-86.6f32..88.7, 1000)) {
            for f in [exp_here, exp_body::<Portable>] {
                let mut y = x.clone();
                f(&mut y);
                for (x, y) in x.iter().zip(y) {
                    let ratio = f64::from(y) / f64::from(*x).exp();
                    prop_assert!((ratio - 1.0).abs() < 2e-7, "exp({x}) = {y}");
                }
            }
        }
    }

    #[test]
    fn exp_at_its_ends() {
        let inf = f32::INFINITY;
        for f in [exp_here, exp_body::<Portable>] {
            let mut x = [-inf, -1000.0, 0.0, 89.0, inf, f32::NAN];
            f(&mut x);
            assert_eq!(x[..5], [0.0, 0.0, 1.0, inf, inf]);
            assert!(x[5].is_nan());
        }
    }
}

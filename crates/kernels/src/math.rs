//! Polynomials for exp, tanh, and the tail of the normal distribution, one
//! number at a time and without branches, so that loops over them become vector code.

use crate::dispatch::fma;

/// Value of a polynomial, highest coefficient first.
#[inline(always)]
fn polynomial<const FMA: bool, const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    let mut sum = coefficients[0];
    for &c in &coefficients[1..] {
        sum = fma::<FMA>(sum, x, c);
    }
    sum
}

/// `exp(x)`, relative error below 2e-7. Below -86.6 it is 0, above 88.7 `inf`.
///
/// `x = n ln 2 + r`, `exp(x) = 2^n exp(r)` with Cephes' polynomial for `|r| <= ln 2 / 2`.
#[inline(always)]
pub(crate) fn exp<const FMA: bool>(x: f32) -> f32 {
    const LOWEST: f32 = -86.6;
    const HIGHEST: f32 = 88.722_84;
    // Adding it rounds to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // The comparisons are false for NaN, which so goes through.
    let y = if x > HIGHEST { HIGHEST } else { x };
    let y = if y < LOWEST { LOWEST } else { y };
    let shifted = fma::<FMA>(y, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = fma::<FMA>(n, -0.693_359_4, y);
    let r = fma::<FMA>(n, 2.121_944_4e-4, r);
    let p = polynomial::<FMA, 6>(
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
    let p = fma::<FMA>(p, r * r, r) + 1.0;
    // 2^(n-1), since 2^128 is not a number; n - 1 >= -126.
    let half = f32::from_bits(shifted.to_bits().wrapping_add(126) << 23);
    let value = (p + p) * half;
    let value = if x > HIGHEST { f32::INFINITY } else { value };
    if x < LOWEST { 0.0 } else { value }
}

/// Hyperbolic tangent, relative error below 4e-7.
#[inline(always)]
pub(crate) fn tanh<const FMA: bool>(x: f32) -> f32 {
    let far = 1.0 - 2.0 / (exp::<FMA>(2.0 * x.abs()) + 1.0);
    let square = x * x;
    // Cephes' polynomial; the formula above loses digits near 0.
    let p = polynomial::<FMA, 5>(
        square,
        [
            -5.704_988_7e-3,
            2.063_908_9e-2,
            -5.373_971_6e-2,
            1.333_144_2e-1,
            -3.333_328_2e-1,
        ],
    );
    let near = fma::<FMA>(p * square, x, x);
    if x.abs() < 0.625 {
        near
    } else {
        far.copysign(x)
    }
}

/// `1 / (1 + exp(-x))`.
#[inline(always)]
pub(crate) fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FMA>(-x))
}

/// `x Φ(x)`, absolute error below 3e-7 for `|x| < 4`, and relative error below
/// 2e-7 above.
///
/// `x Φ(x) = max(x, 0) - |x| erfc(|x| / √2) / 2`, and `erfc(z) = exp(-z²) t P(t)`
/// with `t = 1 / (1 + 0.4 z)`; `P` is our own fit (error 1.3e-8 in the result).
#[inline(always)]
pub(crate) fn gelu<const FMA: bool>(x: f32) -> f32 {
    // Beyond 14 the tail is 0; without the limit inf would give inf * 0.
    let size = if x.abs() > 14.0 { 14.0 } else { x.abs() };
    let z = size * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / fma::<FMA>(z, 0.4, 1.0);
    let p = polynomial::<FMA, 6>(
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
    let tail = 0.5 * size * t * p * exp::<FMA>(-0.5 * size * size);
    fma::<FMA>(0.5, x, 0.5 * x.abs()) - tail
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn both(x: f32, f: impl Fn(f32) -> (f32, f32)) -> [f32; 2] {
        let (fused, plain) = f(x);
        [fused, plain]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn exp_is_within_2e_7_of_the_true_value(x in -86.6f32..88.7) {
            let true_value = f64::from(x).exp();
            for y in both(x, |x| (exp::<true>(x), exp::<false>(x))) {
                prop_assert!((f64::from(y) / true_value - 1.0).abs() < 2e-7, "exp({x}) = {y}");
            }
        }

        #[test]
        fn tanh_is_within_4e_7_of_the_true_value(x in -12f32..12.0) {
            let true_value = f64::from(x).tanh();
            for y in both(x, |x| (tanh::<true>(x), tanh::<false>(x))) {
                prop_assert!((f64::from(y) - true_value).abs() <= 4e-7 * true_value.abs(), "tanh({x}) = {y}");
            }
        }
    }

    #[test]
    fn exp_at_its_ends() {
        assert_eq!(exp::<true>(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp::<true>(-1000.0), 0.0);
        assert_eq!(exp::<true>(0.0), 1.0);
        assert_eq!(exp::<true>(89.0), f32::INFINITY);
        assert_eq!(exp::<true>(f32::INFINITY), f32::INFINITY);
        assert!(exp::<true>(f32::NAN).is_nan());
        assert!(exp::<false>(f32::NAN).is_nan());
    }
}

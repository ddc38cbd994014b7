//! The gradient of the gated unit `silu(gate) · up`.

use crate::math;
use crate::vector::{Vector, simd};

/// The gradients of `silu(gate) · up` (see [`silu_mul`](crate::silu_mul)), element by
/// element: replaces `gate` by that of the gate and `up` by that of `up`, from `gradient`,
/// that of the result.
///
/// # Panics
/// When the lengths differ.
pub fn silu_mul_backward(gate: &mut [f32], up: &mut [f32], gradient: &[f32]) {
    assert!(
        gate.len() == up.len() && up.len() == gradient.len(),
        "silu_mul_backward: lengths differ"
    );
    backward_checked(gate, up, gradient);
}

simd! {
    fn backward_checked(gate: &mut [f32], up: &mut [f32], gradient: &[f32]) = backward_body;
}

/// With `s = σ(gate)`: `g · up · s (1 + gate (1 - s))` and `g · gate · s`, of one register.
#[inline(always)]
fn step<V: Vector>(gate: &mut [f32], up: &mut [f32], g: &[f32]) {
    let (x, y, g) = (V::load(gate), V::load(up), V::load(g));
    let one = V::splat(1.0);
    let s = math::sigmoid(x);
    let slope = s.mul(x.mul_add(one.sub(s), one));
    g.mul(y).mul(slope).store(gate);
    g.mul(x.mul(s)).store(up);
}

#[inline(always)]
fn backward_body<V: Vector>(gate: &mut [f32], up: &mut [f32], gradient: &[f32]) {
    let whole = gate.len() - gate.len() % V::LEN;
    let (gates, gate) = gate.split_at_mut(whole);
    let (ups, up) = up.split_at_mut(whole);
    let (gradients, gradient) = gradient.split_at(whole);
    let blocks = gates
        .chunks_exact_mut(V::LEN)
        .zip(ups.chunks_exact_mut(V::LEN))
        .zip(gradients.chunks_exact(V::LEN));
    // A loop and no closure: a closure is compiled for the oldest processors.
    for ((gate, up), g) in blocks {
        step::<V>(gate, up, g);
    }
    let rest = gate.len();
    if rest > 0 {
        let mut padded = [[0.0f32; 32]; 3];
        padded[0][..rest].copy_from_slice(gate);
        padded[1][..rest].copy_from_slice(up);
        padded[2][..rest].copy_from_slice(gradient);
        let [x, y, g] = &mut padded;
        step::<V>(&mut x[..V::LEN], &mut y[..V::LEN], &g[..V::LEN]);
        gate.copy_from_slice(&x[..rest]);
        up.copy_from_slice(&y[..rest]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::Portable;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn gradients_of_the_gated_unit_are_those_of_f64(
            x in prop::collection::vec((-8f32..8.0, -3f32..3.0, -3f32..3.0), 0..40),
        ) {
            for f in [backward_checked, backward_body::<Portable>] {
                let (mut gate, mut up): (Vec<f32>, Vec<f32>) = x.iter().map(|x| (x.0, x.1)).unzip();
                let g: Vec<f32> = x.iter().map(|x| x.2).collect();
                f(&mut gate, &mut up, &g);
                for (i, &(x, y, g)) in x.iter().enumerate() {
                    let (x, y, g) = (f64::from(x), f64::from(y), f64::from(g));
                    let s = 1.0 / (1.0 + (-x).exp());
                    let d_gate = g * y * (s + x * s * (1.0 - s));
                    prop_assert!((f64::from(gate[i]) - d_gate).abs() < 2e-5, "{i}");
                    prop_assert!((f64::from(up[i]) - g * x * s).abs() < 2e-5, "{i}");
                }
            }
        }
    }
}

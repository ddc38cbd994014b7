//! Element-wise functions of encoders.

/// `max(x, 0)`; NaN stays NaN.
pub fn relu(x: &mut [f32]) {
    x.iter_mut()
        .for_each(|x| *x = if *x < 0.0 { 0.0 } else { *x });
}

/// Hyperbolic tangent.
pub fn tanh(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = x.tanh());
}

/// `x / (1 + exp(-x))`.
pub fn silu(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x /= 1.0 + (-*x).exp());
}

/// `x Φ(x)` with the normal distribution function, `Φ(x) = (1 + erf(x / √2)) / 2`.
pub fn gelu(x: &mut [f32]) {
    for x in x {
        // Simpson's rule is exact enough until the vector version stands here.
        let (n, z) = (256, f64::from(*x).clamp(-10.0, 10.0));
        let h = z / n as f64;
        let density = |t: f64| (-0.5 * t * t).exp() / (2.0 * std::f64::consts::PI).sqrt();
        let mut sum = density(0.0) + density(z);
        for i in 1..n {
            sum += density(h * i as f64) * if i % 2 == 1 { 4.0 } else { 2.0 };
        }
        *x = (f64::from(*x) * (0.5 + sum * h / 3.0)) as f32;
    }
}

/// `x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2`, the approximation that some checkpoints were trained with.
pub fn gelu_tanh(x: &mut [f32]) {
    for x in x {
        let inner = (2.0 / std::f32::consts::PI).sqrt() * (*x + 0.044_715 * *x * *x * *x);
        *x *= 0.5 * (1.0 + inner.tanh());
    }
}

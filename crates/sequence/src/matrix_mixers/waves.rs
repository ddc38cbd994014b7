//! Cosines and sines of the multiples of angles, by turning a point step by step.
//!
//! In double precision, so that a thousand turns lose nothing that single precision would show.

/// Points that turn by their angles.
struct Turning {
    cos: Vec<f64>,
    sin: Vec<f64>,
    by: Vec<(f64, f64)>,
}

impl Turning {
    fn new(angles: &[f64]) -> Self {
        Self {
            cos: vec![1.0; angles.len()],
            sin: vec![0.0; angles.len()],
            by: angles.iter().map(|a| (a.cos(), a.sin())).collect(),
        }
    }

    fn turn(&mut self) {
        for ((c, s), (by_c, by_s)) in self.cos.iter_mut().zip(&mut self.sin).zip(&self.by) {
            (*c, *s) = (*c * by_c - *s * by_s, *s * by_c + *c * by_s);
        }
    }
}

/// Adds `factor · cos(step · angle)` to `out` `[steps, angles]`.
pub(super) fn add_cosines(angles: &[f64], factor: f32, out: &mut [f32]) {
    let mut points = Turning::new(angles);
    for row in out.chunks_exact_mut(angles.len()) {
        for (out, &cos) in row.iter_mut().zip(&points.cos) {
            *out += factor * cos as f32;
        }
        points.turn();
    }
}

/// The gradient by each angle of `Σ g[step, angle] cos(step · angle)`.
pub(super) fn cosine_gradients(angles: &[f64], g: &[f32]) -> Vec<f64> {
    let mut points = Turning::new(angles);
    let mut out = vec![0.0; angles.len()];
    for (step, row) in g.chunks_exact(angles.len()).enumerate() {
        for ((out, &g), &sin) in out.iter_mut().zip(row).zip(&points.sin) {
            *out -= f64::from(g) * step as f64 * sin;
        }
        points.turn();
    }
    out
}

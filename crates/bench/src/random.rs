//! Random numbers that several experiments draw.

use rand::Rng;
use rand::rngs::StdRng;

/// A number of mean 0 and variance 1 (Box and Muller 1958).
pub(crate) fn normal(rng: &mut StdRng) -> f32 {
    let (radius, angle): (f64, f64) = (rng.random(), rng.random());
    let radius = (-2.0 * (1.0 - radius).ln()).sqrt();
    (radius * (std::f64::consts::TAU * angle).cos()) as f32
}

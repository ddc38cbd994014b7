//! Random numbers that several experiments draw.

use rand::Rng;
use rand::rngs::StdRng;

/// A number of mean 0 and variance 1.
pub(crate) fn normal(rng: &mut StdRng) -> f32 {
    keyfold_core::normal(|| rng.random()) as f32
}

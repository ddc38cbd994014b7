//! Functions of a query and a set that are known, with examples.

use keyfold_kernels as kernels;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};

use super::Example;
use crate::random::normal;

/// A function of query and set that can be learned: `1/N Σ_i <x_0, x_i>^p <β, x_i>^q`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Power of the product with the query.
    pub query_power: u32,
    /// Power of the product with a direction `β` that is the same in all examples.
    pub direction_power: u32,
}

/// Examples with vectors drawn from the sphere; `β` depends on `seed` alone, the examples also
/// on `draw`.
pub fn synthetic(
    target: Target,
    (d, set): (usize, usize),
    count: usize,
    seed: u64,
    draw: u64,
) -> Vec<Example> {
    let beta = on_sphere(d, &mut StdRng::seed_from_u64(seed));
    let mut rng = StdRng::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(draw + 1));
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter()
            .zip(b)
            .map(|(a, b)| f64::from(*a) * f64::from(*b))
            .sum()
    };
    let mut example = || {
        let q = on_sphere(d, &mut rng);
        let set: Vec<Vec<f32>> = (0..set).map(|_| on_sphere(d, &mut rng)).collect();
        let term = |x: &Vec<f32>| {
            dot(&q, x).powi(target.query_power as i32)
                * dot(&beta, x).powi(target.direction_power as i32)
        };
        let y = set.iter().map(term).sum::<f64>() / set.len() as f64;
        Example { q, set, y }
    };
    (0..count).map(|_| example()).collect()
}

fn on_sphere(d: usize, rng: &mut StdRng) -> Vec<f32> {
    let mut x: Vec<f32> = (0..d).map(|_| normal(rng) as f32).collect();
    kernels::normalize_rows(&mut x, d);
    x
}

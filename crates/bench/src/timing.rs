//! The least of several times, which other programs disturb least.

use std::hint::black_box;
use std::time::Instant;

/// Milliseconds of the shortest of some runs.
pub(crate) fn shortest<T>(runs: usize, mut work: impl FnMut() -> T) -> f64 {
    let time = |_| {
        let clock = Instant::now();
        black_box(work());
        1e3 * clock.elapsed().as_secs_f64()
    };
    (0..runs).map(time).fold(f64::INFINITY, f64::min)
}

/// The training step whose parts (forward pass, backward pass, optimiser) took least together;
/// no number where there is none.
pub(crate) fn shortest_step(steps: &[[f64; 3]]) -> [f64; 3] {
    let sum = |step: &[f64; 3]| step.iter().sum::<f64>();
    let best = steps.iter().min_by(|a, b| sum(a).total_cmp(&sum(b)));
    best.copied().unwrap_or([f64::NAN; 3])
}

//! What this machine can do at best, measured: the yardstick of the benches.

use std::hint::black_box;
use std::time::Instant;

use crate::Pages;
use crate::vector::{Eight, simd};

/// Floating-point operations per second (a multiply-add counts two) that
/// `threads` threads reach together on data in registers. Takes about 0.1 s.
pub fn peak_flops(threads: usize) -> f64 {
    const ROUNDS: usize = 1 << 19;
    let operations = ROUNDS * 2 * CHAINS;
    // The best of several, since other programs may run.
    on_threads(threads, || {
        best_rate(20, operations, || multiply_add(ROUNDS))
    })
}

/// Numbers that are worked on at once: twelve registers of eight, enough to
/// keep two units of latency 4 or 5 busy.
const CHAINS: usize = 96;

simd! {
    fn multiply_add(rounds: usize) -> f32 = multiply_add_body;
}

#[inline(always)]
fn multiply_add_body<V: Eight>(rounds: usize) -> f32 {
    let mut sums = [V::splat(0.0); CHAINS / 8];
    // Unknown to the compiler, or it would do the sums itself.
    let (factor, term) = (V::splat(black_box(0.999)), V::splat(black_box(0.001)));
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = sum.mul_add(factor, term);
        }
    }
    sums.iter().map(|s| s.sum()).sum()
}

/// Bytes per second that `threads` threads together read from memory, over
/// buffers much larger than a cache (256 MiB each), on large pages where the system gives them.
/// Takes about half a second.
pub fn read_bandwidth(threads: usize) -> f64 {
    on_threads(threads, || {
        let mut pages = Pages::zeroed(256 << 20);
        // SAFETY: all bytes are numbers.
        let (_, buffer, _) = unsafe { pages.align_to_mut::<f32>() };
        // Pages that are not written are all the same one.
        buffer.fill(1.0);
        best_rate(4, size_of_val(buffer), || sum(buffer))
    })
}

simd! {
    fn sum(buffer: &[f32]) -> f32 = sum_body;
}

#[inline(always)]
fn sum_body<V: Eight>(buffer: &[f32]) -> f32 {
    crate::dot::sum_from::<V>(buffer, 0.0)
}

/// Amount per second in the fastest of several runs.
fn best_rate(runs: usize, amount: usize, work: impl Fn() -> f32) -> f64 {
    let seconds = (0..runs).map(|_| {
        let start = Instant::now();
        black_box(work());
        start.elapsed().as_secs_f64()
    });
    amount as f64 / seconds.fold(f64::INFINITY, f64::min)
}

/// Sum of the rates of that many threads at work at once.
fn on_threads(threads: usize, work: impl Fn() -> f64 + Sync) -> f64 {
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(&work)).collect();
        handles.into_iter().filter_map(|h| h.join().ok()).sum()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::Portable;

    #[test]
    fn the_arithmetic_that_is_timed_really_happens() {
        // x -> 0.999 x + 0.001 has the fixed point 1.
        for f in [multiply_add, multiply_add_body::<Portable>] {
            let far = f(100_000);
            assert!((far - CHAINS as f32).abs() < 0.1, "{far}");
            assert!((f(1) - 0.001 * CHAINS as f32).abs() < 1e-6);
        }
    }
}

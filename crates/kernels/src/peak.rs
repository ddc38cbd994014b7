//! What this machine can do at best, measured: the yardstick of the benches.

use std::hint::black_box;
use std::time::Instant;

/// Floating-point operations per second (a multiply-add counts two) of
/// `threads` threads on data in registers. Takes about 0.1 s.
pub fn peak_flops(threads: usize) -> f64 {
    let rates = on_threads(threads, || {
        let mut acc = [1f32; 64];
        let start = Instant::now();
        let rounds = 1 << 20;
        for _ in 0..rounds {
            let m = black_box(0.5f32);
            acc.iter_mut().for_each(|x| *x = *x * m + 1.0);
        }
        black_box(acc);
        (rounds * 64 * 2) as f64 / start.elapsed().as_secs_f64()
    });
    rates.iter().sum()
}

/// Bytes per second that `threads` threads read from memory, over buffers much
/// larger than the last cache. Takes about a second.
pub fn read_bandwidth(threads: usize) -> f64 {
    let rates = on_threads(threads, || {
        let buffer = vec![1f32; (128 << 20) / 4];
        let start = Instant::now();
        black_box(crate::dot(&buffer, &buffer));
        (buffer.len() * 4) as f64 / start.elapsed().as_secs_f64()
    });
    rates.iter().sum()
}

/// Runs `work` on that many threads at once.
fn on_threads(threads: usize, work: impl Fn() -> f64 + Sync) -> Vec<f64> {
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(&work)).collect();
        handles.into_iter().filter_map(|h| h.join().ok()).collect()
    })
}

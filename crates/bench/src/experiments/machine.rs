//! What this machine can do at best, and how near the kernels come.

use std::hint::black_box;
use std::time::{Duration, Instant};

use keyfold_core::Progress;
use keyfold_kernels::{self as kernels, MaxSim, peak};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;

use crate::plot;
use crate::report::{Report, Table};
use crate::{BenchError, BenchOptions, Experiment, Scale};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "machine",
    about: "read bandwidth and peak arithmetic of this machine, and the share that the kernels reach",
    run,
};

/// Rows of a usual query and a usual passage of the built-in model.
const SHAPE: (usize, usize, usize) = (16, 128, 96);

fn run(options: &BenchOptions, progress: &dyn Progress) -> Result<Report, BenchError> {
    let threads = options.thread_count();
    let mut counts = vec![1, threads];
    counts.dedup();
    progress.start("measure", "parts", Some(counts.len() as u64 + 3));
    let mut ceilings = Table::new(
        "what this machine reaches at best",
        &["threads", "arithmetic, Gflop/s", "read from memory, GB/s"],
    );
    let mut peaks = Vec::new();
    let mut peak_of_one = f64::NAN;
    for n in counts {
        let (flops, bytes) = (peak::peak_flops(n), peak::read_bandwidth(n));
        if n == 1 {
            peak_of_one = flops;
        }
        progress.advance(1);
        ceilings.row([
            n.to_string(),
            plot::shown(flops / 1e9),
            plot::shown(bytes / 1e9),
        ]);
        peaks.push(json!({"threads": n, "flops": flops, "bytes": bytes}));
    }
    let mut kernels_table = Table::new(
        "kernels, one thread",
        &["kernel", "Gflop/s", "share of the peak"],
    );
    let mut shares = Vec::new();
    let time = match options.scale {
        Scale::Smoke => Duration::from_millis(20),
        _ => Duration::from_millis(500),
    };
    for (name, flops) in kernel_rates(options.seed, time) {
        if progress.cancelled() {
            return Err(BenchError::Cancelled);
        }
        progress.advance(1);
        let share = flops / peak_of_one;
        kernels_table.row([
            name.clone(),
            plot::shown(flops / 1e9),
            format!("{:.0} %", share * 100.0),
        ]);
        shares.push((name, share));
    }
    progress.finish();
    let (nq, nd, dim) = SHAPE;
    Ok(Report {
        name: EXPERIMENT.name.to_owned(),
        findings: vec![format!(
            "MaxSim is of {nq} query rows with {nd} passage rows of {dim} numbers."
        )],
        values: json!({
            "ceilings": peaks,
            "kernels": shares.iter().map(|(n, s)| json!({"name": n, "share": s})).collect::<Vec<_>>(),
        }),
        svg: plot::bars(
            "Share of peak arithmetic, one thread",
            "share",
            &shares,
            Some(1.0),
        )?,
        tables: vec![ceilings, kernels_table],
    })
}

/// Floating-point operations per second of the kernels of a search.
fn kernel_rates(seed: u64, time: Duration) -> Vec<(String, f64)> {
    let (nq, nd, dim) = SHAPE;
    let mut rng = StdRng::seed_from_u64(seed);
    let mut draw = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.random_range(-1.0..1.0)).collect() };
    let (query, passage) = (draw(nq * dim), draw(nd * dim));
    let mut maxsim = MaxSim::new(&query, dim);
    let maxsim_rate = rate(time, 2 * nq * nd * dim, || {
        black_box(maxsim.score(black_box(&passage)));
    });
    let dot_rate = rate(time, 2 * nd * dim, || {
        for row in passage.chunks_exact(dim) {
            black_box(kernels::dot(black_box(&query[..dim]), row));
        }
    });
    let (m, n, k) = (256, 256, 256);
    let (a, b, mut out) = (draw(m * k), draw(n * k), vec![0.0; m * n]);
    let matmul_rate = rate(time, 2 * m * n * k, || {
        kernels::matmul_nt(black_box(&mut out), &a, &b, m, n, k, 1);
    });
    vec![
        ("MaxSim".to_owned(), maxsim_rate),
        ("dot product, in cache".to_owned(), dot_rate),
        ("matrix product 256".to_owned(), matmul_rate),
    ]
}

/// Operations per second of the fastest call within `time`.
fn rate(time: Duration, operations: usize, mut work: impl FnMut()) -> f64 {
    let begun = Instant::now();
    let mut best = f64::INFINITY;
    loop {
        let call = Instant::now();
        work();
        best = best.min(call.elapsed().as_secs_f64());
        if begun.elapsed() > time {
            return operations as f64 / best;
        }
    }
}

//! Attention over pairs of positions: exact, and by a polynomial where entries are bounded.
//!
//! J. Alman and Z. Song, 2024. Measured: the error of the polynomial for entries in `[-B, B]`,
//! beside what its certificate allows; the time of both as the sequence grows; and Match3,
//! which pairs solve by construction, and learn ([`learned`]).

mod learned;

use std::time::Instant;

use keyfold_core::Progress;
use keyfold_kernels::Team;
use keyfold_sequence::SequenceError;
use keyfold_sequence::tensor_attention::Attention;
use keyfold_sequence::tensor_attention::match3::match3;
use keyfold_sequence::tensor_attention::polynomial::{Fit, Polynomial};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::long_context::holds;
use crate::plot::{self, Line};
use crate::report::{Report, Table, reached};
use crate::{BenchError, BenchOptions, Experiment, Scale};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "tensor-attention",
    about: "attention over pairs: error and time of a polynomial in place of exp, and Match3",
    run,
};

/// Numbers of a vector.
const DIM: usize = 8;

/// Bounds of the entries.
const BOUNDS: [f64; 4] = [0.5, 1.0, 1.5, 2.0];

/// Degrees of the polynomial.
const DEGREES: [usize; 4] = [1, 2, 3, 4];

fn failed(e: SequenceError) -> BenchError {
    BenchError::data("tensor-attention", e.to_string())
}

fn run(options: &BenchOptions, progress: &dyn Progress) -> Result<Report, BenchError> {
    let team = Team::new(options.thread_count());
    let (mut tables, mut findings) = (Vec::new(), Vec::new());
    progress.start("attention over pairs", "parts", None);
    let errors = errors(options, &team, &mut tables, &mut findings)?;
    progress.advance(1);
    let (times, lines) = times(options, &team, progress, &mut tables, &mut findings)?;
    progress.advance(1);
    let matches = matches(options, &team, &mut findings)?;
    progress.advance(1);
    let learned = learned::learned(options, progress, &mut tables, &mut findings)?;
    progress.finish();
    Ok(Report {
        name: EXPERIMENT.name.to_owned(),
        tables,
        findings,
        values: json!({"errors": errors, "times": times, "match3": matches, "match3_learned": learned}),
        svg: plot::log_lines("Attention over pairs", "positions", "milliseconds", &lines)?,
    })
}

/// Queries, two keys and two values with entries in `[-bound, bound]`.
fn numbers(n: usize, bound: f64, seed: u64) -> [Vec<f64>; 5] {
    let mut rng = StdRng::seed_from_u64(seed);
    std::array::from_fn(|_| {
        (0..n * DIM)
            .map(|_| rng.random_range(-bound..=bound))
            .collect()
    })
}

fn attention(numbers: &[Vec<f64>; 5]) -> Result<Attention<'_>, BenchError> {
    let [q, k1, k2, v1, v2] = numbers;
    Attention::new(q, vec![k1, k2], vec![v1, v2], DIM).map_err(failed)
}

/// The largest difference as a share of the largest number.
fn relative(found: &[f64], exact: &[f64]) -> f64 {
    let far = found.iter().zip(exact).map(|(a, b)| (a - b).abs());
    far.fold(0.0, f64::max) / exact.iter().map(|x| x.abs()).fold(0.0, f64::max)
}

fn errors(
    options: &BenchOptions,
    team: &Team,
    tables: &mut Vec<Table>,
    findings: &mut Vec<String>,
) -> Result<Vec<Value>, BenchError> {
    let n = if options.scale == Scale::Smoke {
        24
    } else {
        128
    };
    let mut table = Table::new(
        &format!("error of the polynomial on {n} random positions of {DIM} numbers in [-B, B]"),
        &[
            "B",
            "degree",
            "largest score at most",
            "Taylor: error",
            "allowed",
            "minimax: error",
            "allowed",
        ],
    );
    let (mut values, mut held, mut at_one, mut at_two) = (Vec::new(), true, f64::NAN, f64::NAN);
    for bound in BOUNDS {
        let numbers = numbers(n, bound, options.seed);
        let attention = attention(&numbers)?;
        let exact = attention.exact(team).map_err(failed)?;
        for degree in DEGREES {
            let mut cells = Vec::new();
            let mut by_fit = Vec::new();
            for fit in [Fit::Taylor, Fit::Minimax] {
                let polynomial = Polynomial::new(&attention, degree, fit, true).map_err(failed)?;
                let certificate = polynomial.certificate(&attention);
                let found = polynomial.apply(&attention);
                let far = found.iter().zip(&exact).map(|(a, b)| (a - b).abs());
                held &= far.fold(0.0, f64::max) <= certificate.output_error;
                let error = relative(&found, &exact);
                cells.push(format!("{error:.1e}"));
                cells.push(format!("{:.1e}", certificate.relative_error));
                by_fit.push(json!({"error": error, "certificate": certificate.relative_error}));
                if fit == Fit::Taylor && degree == 2 {
                    if bound == 1.0 {
                        at_one = error;
                    } else if bound == 2.0 {
                        at_two = error;
                    }
                }
            }
            let score = attention.score_bound();
            let [a, b, c, d] = <[String; 4]>::try_from(cells).unwrap_or_default();
            table.row([
                bound.to_string(),
                degree.to_string(),
                plot::shown(score),
                a,
                b,
                c,
                d,
            ]);
            values.push(
                json!({"bound": bound, "degree": degree, "score_bound": score, "fits": by_fit}),
            );
        }
    }
    tables.push(table);
    findings.push(format!(
        "At degree 2 the error is {at_one:.1e} for entries up to 1 and {at_two:.1e} for entries up to 2; the \
         theorem, that the fast way needs small entries: {}.",
        holds(at_two > 10.0 * at_one)
    ));
    findings.push(format!(
        "No error was larger than its certificate allows: {}.",
        if held { "held" } else { "broken" }
    ));
    Ok(values)
}

fn times(
    options: &BenchOptions,
    team: &Team,
    progress: &dyn Progress,
    tables: &mut Vec<Table>,
    findings: &mut Vec<String>,
) -> Result<(Vec<Value>, Vec<Line>), BenchError> {
    let (exact_at, fast_at): (&[usize], &[usize]) = match options.scale {
        Scale::Smoke => (&[16, 32], &[16, 32, 64]),
        Scale::Small => (&[64, 128, 256, 512], &[64, 128, 256, 512, 2_048, 8_192]),
        Scale::Full => (
            &[128, 256, 512, 1_024],
            &[128, 256, 512, 1_024, 10_000, 100_000],
        ),
    };
    let mut table = Table::new(
        "time, entries in [-1, 1]; the polynomial of degree 3 on one thread",
        &["positions", "exact, ms", "polynomial, ms"],
    );
    let mut lines: Vec<Line> = vec![
        ("exact".into(), Vec::new()),
        ("polynomial".into(), Vec::new()),
    ];
    let mut values = Vec::new();
    for &n in fast_at {
        if progress.cancelled() {
            return Err(BenchError::Cancelled);
        }
        let numbers = numbers(n, 1.0, options.seed);
        let attention = attention(&numbers)?;
        let exact = exact_at.contains(&n).then(|| {
            let clock = Instant::now();
            let out = attention.exact(team).map_err(failed);
            out.map(|_| 1e3 * clock.elapsed().as_secs_f64())
        });
        let exact = exact.transpose()?;
        let clock = Instant::now();
        let polynomial = Polynomial::new(&attention, 3, Fit::Taylor, false).map_err(failed)?;
        let _ = polynomial.apply(&attention);
        let fast = 1e3 * clock.elapsed().as_secs_f64();
        lines[0].1.extend(exact.map(|ms| (n as f64, ms)));
        lines[1].1.push((n as f64, fast));
        table.row([
            n.to_string(),
            exact.map_or(String::new(), plot::shown),
            plot::shown(fast),
        ]);
        values.push(json!({"positions": n, "exact_ms": exact, "polynomial_ms": fast}));
    }
    tables.push(table);
    let slope = |line: &Line| -> Option<f64> {
        let (first, last) = (line.1.first()?, line.1.last()?);
        Some((last.1 / first.1).ln() / (last.0 / first.0).ln())
    };
    if let (Some(exact), Some(fast)) = (slope(&lines[0]), slope(&lines[1])) {
        findings.push(format!(
            "The time of exact attention grows as n^{exact:.1}, that of the polynomial as n^{fast:.1}; the paper: \
             n^3 and nearly n."
        ));
    }
    Ok((values, lines))
}

fn matches(
    options: &BenchOptions,
    team: &Team,
    findings: &mut Vec<String>,
) -> Result<Value, BenchError> {
    let instances = if options.scale == Scale::Smoke {
        10
    } else {
        200
    };
    let mut rng = StdRng::seed_from_u64(options.seed);
    let (mut right, mut all, mut yes) = (0, 0, 0);
    for _ in 0..instances {
        let modulus = rng.random_range(2..60);
        let x: Vec<u64> = (0..rng.random_range(1..12))
            .map(|_| rng.random_range(0..modulus))
            .collect();
        let found = match3(&x, modulus, team).map_err(failed)?;
        for (found, x_i) in found.iter().zip(&x) {
            let want = x
                .iter()
                .any(|j| x.iter().any(|k| (x_i + j + k).is_multiple_of(modulus)));
            right += usize::from(*found == want);
            yes += usize::from(want);
            all += 1;
        }
    }
    findings.push(format!(
        "Match3 by construction: {right} of {all} positions right ({yes} have a match); aim: all, {}.",
        reached(right == all && yes > 0)
    ));
    Ok(json!({"instances": instances, "positions": all, "right": right}))
}

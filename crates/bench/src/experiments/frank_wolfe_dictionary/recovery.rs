//! How near the atoms come to those that made the rows.

use faer::Mat;
use keyfold_core::Progress;
use keyfold_dictionary::frank_wolfe::recovery_error;
use keyfold_dictionary::{FrankWolfe, FrankWolfeConfig, Learner, Online, OnlineConfig, Schedule};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::{by_scale, failed};
use crate::random::normal;
use crate::report::Table;
use crate::{BenchError, BenchOptions, Scale, plot};

/// A schedule that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Reference,
    Clamped,
    Sfw,
}

const WAYS: [(Way, &str, Schedule); 3] = [
    (Way::Reference, "as published", Schedule::Reference),
    (Way::Clamped, "at most 1", Schedule::Clamped),
    (Way::Sfw, "of convex problems", Schedule::Sfw),
];

/// Numbers of batches after which the error is told.
const AFTER: [usize; 4] = [100, 300, 1000, 3000];

/// One setting.
pub(super) struct Case {
    pub(super) n: usize,
    pub(super) theta: f64,
    pub(super) batch: usize,
    /// For each way the median error after each number of batches.
    errors: Vec<Vec<(usize, f64)>>,
}

impl Case {
    /// The error after the last batch.
    pub(super) fn last(&self, way: Way) -> f64 {
        let place = WAYS.iter().position(|(w, ..)| *w == way);
        let errors = place.and_then(|place| self.errors[place].last());
        errors.map_or(f64::NAN, |(_, error)| *error)
    }
}

pub(super) struct Recovery {
    pub(super) cases: Vec<Case>,
    /// The online learner's error at each weight of the lasso.
    pub(super) online: Vec<(f32, f64)>,
    /// Ours on the same stream.
    pub(super) ours: f64,
}

/// A random orthogonal matrix, and rows of its columns.
struct Stream {
    truth: Mat<f64>,
    rows: Mat<f64>,
}

impl Stream {
    fn new(n: usize, theta: f64, rows: usize, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let random = Mat::from_fn(n, n, |_, _| f64::from(normal(&mut rng)));
        let truth = random.qr().compute_thin_Q();
        let x = Mat::from_fn(rows, n, |_, _| match rng.random_bool(theta) {
            true => f64::from(normal(&mut rng)),
            false => 0.0,
        });
        let rows = &x * truth.transpose();
        Self { truth, rows }
    }
}

pub(super) fn run(options: &BenchOptions, progress: &dyn Progress) -> Result<Recovery, BenchError> {
    let settings: &[(usize, f64, usize)] = match options.scale {
        Scale::Smoke => &[(10, 0.3, 10)],
        _ => &[(10, 0.3, 10), (10, 0.5, 10), (50, 0.3, 10), (50, 0.3, 1)],
    };
    let seeds = by_scale(options.scale, 2, 5, 100) as u64;
    let batches = by_scale(options.scale, 300, 3000, 10_000);
    let after: Vec<usize> = AFTER.into_iter().filter(|n| *n <= batches).collect();
    progress.start("recovery", "streams", Some(settings.len() as u64 * seeds));
    let mut cases = Vec::new();
    for &(n, theta, batch) in settings {
        // Wide ones take long: fewer seeds, as in the sheet's own measurements.
        let seeds = if n > 20 {
            seeds.min(3.max(seeds / 2))
        } else {
            seeds
        };
        let mut all = vec![vec![Vec::new(); after.len()]; WAYS.len()];
        for seed in 0..seeds {
            if progress.cancelled() {
                return Err(BenchError::Cancelled);
            }
            let seed = options.seed.wrapping_add(seed);
            let stream = Stream::new(n, theta, batch * batches.min(3000), seed);
            for (way, (.., schedule)) in WAYS.iter().enumerate() {
                let errors = errors(&stream, batch, *schedule, &after, seed)?;
                for (place, error) in errors.into_iter().enumerate() {
                    all[way][place].push(error);
                }
            }
            progress.advance(1);
        }
        let medians = |runs: &Vec<Vec<f64>>| -> Vec<(usize, f64)> {
            let medians = runs.iter().map(|errors| median(errors));
            after.iter().copied().zip(medians).collect()
        };
        cases.push(Case {
            n,
            theta,
            batch,
            errors: all.iter().map(medians).collect(),
        });
    }
    progress.finish();
    let (online, ours) = online(options)?;
    Ok(Recovery {
        cases,
        online,
        ours,
    })
}

/// Errors after so many batches.
fn errors(
    stream: &Stream,
    batch: usize,
    schedule: Schedule,
    after: &[usize],
    seed: u64,
) -> Result<Vec<f64>, BenchError> {
    let config = FrankWolfeConfig {
        schedule,
        batch_size: batch,
        center: false,
        seed,
        ..FrankWolfeConfig::default()
    };
    let mut learner = FrankWolfe::new(config, stream.truth.nrows()).map_err(failed)?;
    let mut found = Vec::new();
    for number in 0..after.last().copied().unwrap_or(0) {
        learner
            .step(stream.rows.subrows(number * batch, batch))
            .map_err(failed)?;
        if after.contains(&(number + 1)) {
            let atoms = learner.atoms().map_err(failed)?;
            found.push(recovery_error(atoms.as_ref(), stream.truth.as_ref()));
        }
    }
    Ok(found)
}

/// The online alternating learner in one pass of batches of 10, at several weights, and ours.
fn online(options: &BenchOptions) -> Result<(Vec<(f32, f64)>, f64), BenchError> {
    let n = 10;
    let batches = by_scale(options.scale, 300, 2000, 2000);
    let stream = Stream::new(n, 0.3, 10 * batches, options.seed);
    let rows: Vec<f32> = (0..stream.rows.nrows())
        .flat_map(|i| (0..n).map(move |j| (i, j)))
        .map(|(i, j)| stream.rows[(i, j)] as f32)
        .collect();
    let mut found = Vec::new();
    for alpha in [0.01, 0.1, 0.5] {
        let config = OnlineConfig {
            alpha,
            batch_size: 10,
            seed: options.seed,
            ..OnlineConfig::default()
        };
        let mut learner = Online::new(config, n).map_err(failed)?;
        learner.partial_fit(&rows).map_err(failed)?;
        let mut atoms = learner.dictionary().map_err(failed)?.components;
        keyfold_kernels::normalize_rows(&mut atoms, n);
        let atoms = Mat::from_fn(n, n, |i, j| f64::from(atoms[i * n + j]));
        found.push((alpha, recovery_error(atoms.as_ref(), stream.truth.as_ref())));
    }
    let ours = errors(&stream, 10, Schedule::Clamped, &[batches], options.seed)?;
    Ok((found, ours.first().copied().unwrap_or(f64::NAN)))
}

fn median(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Recovery {
    pub(super) fn table(&self) -> Table {
        let mut table = Table::new(
            "error of the atoms after so many batches (median)",
            &[
                "columns, activity, batch",
                "steps",
                "100",
                "300",
                "1000",
                "3000",
            ],
        );
        for case in &self.cases {
            for ((_, name, _), errors) in WAYS.iter().zip(&case.errors) {
                let cell = |place: usize| {
                    let error = errors.get(place).map(|(_, e)| format!("{e:.4}"));
                    error.unwrap_or_else(|| "-".to_owned())
                };
                table.row([
                    format!("{}, {}, {}", case.n, case.theta, case.batch),
                    (*name).to_owned(),
                    cell(0),
                    cell(1),
                    cell(2),
                    cell(3),
                ]);
            }
        }
        table
    }

    pub(super) fn online_table(&self) -> Table {
        let mut table = Table::new(
            "one pass over one stream of 10 columns, activity 0.3, batches of 10",
            &["learner", "error"],
        );
        for (alpha, error) in &self.online {
            table.row([
                format!("online alternating, alpha {alpha}"),
                format!("{error:.4}"),
            ]);
        }
        table.row(["Frank-Wolfe".to_owned(), format!("{:.4}", self.ours)]);
        table
    }

    pub(super) fn lines(&self) -> Vec<plot::Line> {
        let case = |case: &Case| -> Vec<plot::Line> {
            let ways = WAYS.iter().zip(&case.errors);
            ways.map(|((_, name, _), errors)| {
                let name = format!("{name} ({}, {}, {})", case.n, case.theta, case.batch);
                (name, errors.iter().map(|(n, e)| (*n as f64, *e)).collect())
            })
            .collect()
        };
        self.cases.iter().flat_map(case).collect()
    }

    pub(super) fn values(&self) -> Vec<Value> {
        let case = |case: &Case| -> Vec<Value> {
            let ways = WAYS.iter().zip(&case.errors);
            ways.map(|((_, name, _), errors)| {
                json!({"n": case.n, "theta": case.theta, "batch": case.batch, "steps": name, "errors": errors})
            })
            .collect()
        };
        self.cases.iter().flat_map(case).collect()
    }
}

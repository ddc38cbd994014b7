//! Pointer networks: hulls, triangulations and tours at the lengths that they learned and beyond.
//!
//! O. Vinyals, M. Fortunato and N. Jaitly, 2015. Measured: the networks that are part of the
//! program beside the truth and beside simple ways to a tour; a network that is trained here to
//! sort; and, trained here for as many steps, a network that points beside one with a fixed output
//! for each place.

use keyfold_core::Progress;
use keyfold_inspect::route::tours;
use keyfold_inspect::route::training::{Optimizer, PointerTraining, draw, train_in_memory};
use keyfold_inspect::route::{Points, RouteModel, Worth, target, worth};
use keyfold_kernels::learn::{AdamStep, adamw};
use keyfold_sequence::pointer::PointerConfig;
use keyfold_sequence::pointer::beam::Task;
use keyfold_sequence::pointer::fixed::FixedOutputs;
use keyfold_sequence::pointer::learn::{Problem, clip};
use keyfold_train::{Decay, Schedule};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rayon::prelude::*;
use serde_json::{Value, json};

use crate::plot::{self, Line};
use crate::report::{Report, Table, reached};
use crate::{BenchError, BenchOptions, Experiment, Scale};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "pointer-networks",
    about: "networks that point: hulls, triangulations and tours at learned lengths and beyond",
    run,
};

/// Answers that are followed at once, as in the replication.
const BEAM: usize = 3;

/// Problems that go through a network together.
const BLOCK: usize = 32;

fn failed(e: impl std::fmt::Display) -> BenchError {
    BenchError::data("pointer-networks", e.to_string())
}

fn run(options: &BenchOptions, progress: &dyn Progress) -> Result<Report, BenchError> {
    let (mut tables, mut findings) = (Vec::new(), Vec::new());
    let mut lines: Vec<Line> = Vec::new();
    let mut values = serde_json::Map::new();
    progress.start("pointer networks", "parts", None);
    for task in Task::PLANE {
        let measured = lengths(options, task, progress)?;
        tables.push(table(task, &measured));
        lines.push((
            format!("{task}, right"),
            measured
                .iter()
                .map(|m| (m.points as f64, m.right))
                .collect(),
        ));
        findings.push(finding(task, &measured));
        let all = measured.iter().map(Measured::json);
        values.insert(task.name().to_owned(), all.collect());
    }
    let (sorting, line) = sorting(options, progress, &mut tables, &mut findings)?;
    values.insert("sorting".to_owned(), sorting);
    lines.push(line);
    let beside = beside_fixed_outputs(options, progress, &mut tables, &mut findings)?;
    values.insert("beside_fixed_outputs".to_owned(), beside);
    progress.finish();
    Ok(Report {
        name: EXPERIMENT.name.to_owned(),
        tables,
        findings,
        values: Value::Object(values),
        svg: plot::lines("Pointer networks", "points", "share of problems", &lines)?,
    })
}

/// What a network is worth on problems of one length.
struct Measured {
    points: usize,
    learned: bool,
    right: f64,
    valid: f64,
    /// Mean of [`Worth::share`] over valid answers.
    share: f64,
    /// Mean lengths of tours.
    tours: Option<Tours>,
}

struct Tours {
    network: f64,
    best: f64,
    nearest: f64,
    insertion: f64,
    random: f64,
}

impl Measured {
    fn json(&self) -> Value {
        json!({
            "points": self.points, "learned": self.learned, "right": self.right,
            "valid": self.valid, "share": self.share,
            "tours": self.tours.as_ref().map(|t| json!({
                "network": t.network, "best_known": t.best, "nearest_neighbour": t.nearest,
                "farthest_insertion": t.insertion, "random": t.random,
            })),
        })
    }
}

fn mean(numbers: impl Iterator<Item = f64>) -> f64 {
    let (count, sum) = numbers.fold((0, 0.0), |(count, sum), x| (count + 1, sum + x));
    sum / f64::from(count)
}

fn measured(points: usize, learned: bool, all: &[Worth], tours: Option<Tours>) -> Measured {
    let share_of =
        |is: &dyn Fn(&Worth) -> bool| mean(all.iter().map(|w| f64::from(u8::from(is(w)))));
    Measured {
        points,
        learned,
        right: share_of(&|w| w.right),
        valid: share_of(&|w| w.valid),
        share: mean(all.iter().filter_map(|w| w.share)),
        tours,
    }
}

/// The network that is part of the program, at several lengths.
fn lengths(
    options: &BenchOptions,
    task: Task,
    progress: &dyn Progress,
) -> Result<Vec<Measured>, BenchError> {
    let model = RouteModel::builtin(task).map_err(failed)?;
    let [least, most] = model.points;
    let (problems, lengths): (usize, Vec<usize>) = match options.scale {
        Scale::Smoke => (8, vec![5, 12]),
        Scale::Small => (500, vec![5, 6, 8, 10, 12, 15, 20, 30, 50]),
        Scale::Full => (
            1000,
            vec![5, 6, 7, 8, 9, 10, 12, 15, 20, 30, 50, 100, 200, 500],
        ),
    };
    let mut all = Vec::new();
    for n in lengths {
        if progress.cancelled() {
            return Err(BenchError::Cancelled);
        }
        let solved = (0..problems).into_par_iter().map(|number| {
            let problem = ((n as u64) << 32) + number as u64;
            let seed = options.seed.wrapping_add(problem);
            let mut rng = StdRng::seed_from_u64(seed);
            let points = drawn(n, &mut rng).map_err(failed)?;
            let solved = model.solve(&points, BEAM, true, seed).map_err(failed)?;
            let ways = (task == Task::Tour).then(|| {
                let mut random: Vec<usize> = (0..n).collect();
                random.shuffle(&mut rng);
                let of = |order: &[usize]| tours::length(&points, order);
                [
                    of(&solved.answer),
                    of(&solved.truth),
                    of(&tours::nearest_neighbour(&points)),
                    of(&tours::farthest_insertion(&points)),
                    of(&random),
                ]
            });
            Ok((solved.worth, ways))
        });
        let solved = solved.collect::<Result<Vec<_>, BenchError>>()?;
        let worths: Vec<Worth> = solved.iter().map(|s| s.0).collect();
        let ways: Vec<[f64; 5]> = solved.iter().filter_map(|s| s.1).collect();
        let tours = (task == Task::Tour).then(|| {
            let of = |way: usize| mean(ways.iter().map(|w| w[way]));
            Tours {
                network: of(0),
                best: of(1),
                nearest: of(2),
                insertion: of(3),
                random: of(4),
            }
        });
        all.push(measured(n, (least..=most).contains(&n), &worths, tours));
        progress.advance(1);
    }
    Ok(all)
}

fn drawn(n: usize, rng: &mut StdRng) -> Result<Points, keyfold_inspect::InspectError> {
    Points::new((0..n).map(|_| [rng.random(), rng.random()]).collect())
}

/// What the paper and its replication say.
fn claims(task: Task, n: usize) -> &'static str {
    match (task, n) {
        (Task::Hull, 5) => "92.0 / 93.8",
        (Task::Hull, 10) => "87.0 / 87.9",
        (Task::Hull, 50) => "69.6 / 63.1",
        (Task::Hull, 200) => "22.1 / 10.1",
        (Task::Hull, 500) => "1.3 / 0.1",
        (Task::Delaunay, 5) => "80.7 (93.0)",
        (Task::Delaunay, 10) => "22.6 (81.3)",
        (Task::Delaunay, 50) => "0 (52.8)",
        (Task::Tour, 5) => "2.12 (2.12)",
        (Task::Tour, 10) => "2.88 (2.87)",
        (Task::Tour, 20) => "3.88 (3.83)",
        (Task::Tour, 50) => "7.66",
        _ => "",
    }
}

fn percent(share: f64) -> String {
    format!("{:.1}", 100.0 * share)
}

fn table(task: Task, all: &[Measured]) -> Table {
    let title = format!("{task}, beam of {BEAM}; points drawn evenly from a square");
    let named = |m: &Measured| match m.learned {
        true => format!("{} (learned)", m.points),
        false => m.points.to_string(),
    };
    match task {
        Task::Tour => {
            let columns = [
                "points",
                "network",
                "best known",
                "nearest neighbour",
                "farthest insertion",
                "random order",
                "paper (optimal)",
            ];
            let mut table = Table::new(&format!("{title}: mean length"), &columns);
            for m in all {
                let Some(t) = &m.tours else { continue };
                let [a, b, c, d, e] = [t.network, t.best, t.nearest, t.insertion, t.random]
                    .map(|x| format!("{x:.3}"));
                table.row([named(m), a, b, c, d, e, claims(task, m.points).to_owned()]);
            }
            table
        }
        _ => {
            let (share, paper) = match task {
                Task::Hull => ("area of valid ones, %", "paper / replication, right, %"),
                _ => ("triangles found, %", "paper, right (found), %"),
            };
            let columns = ["points", "right, %", "valid, %", share, paper];
            let mut table = Table::new(&title, &columns);
            for m in all {
                let [a, b, c] = [m.right, m.valid, m.share].map(percent);
                table.row([named(m), a, b, c, claims(task, m.points).to_owned()]);
            }
            table
        }
    }
}

fn finding(task: Task, all: &[Measured]) -> String {
    let learned = all.iter().rfind(|m| m.learned);
    let beyond = all.iter().rfind(|m| !m.learned);
    let (Some(at), Some(beyond)) = (learned, beyond) else {
        return format!("{task}: no lengths within and beyond what was learned.");
    };
    match (task, &at.tours, &beyond.tours) {
        (Task::Tour, Some(a), Some(b)) => format!(
            "Tours of {} points, as learned, are {:.1} % longer than the shortest, nearest neighbour {:.1} %; at {} \
             points, beyond it, {:.0} % longer than the best known, nearest neighbour {:.0} %. The paper, \
             trained on 5 to 20: 1.3 % at 20.",
            at.points,
            100.0 * (a.network / a.best - 1.0),
            100.0 * (a.nearest / a.best - 1.0),
            beyond.points,
            100.0 * (b.network / b.best - 1.0),
            100.0 * (b.nearest / b.best - 1.0),
        ),
        (Task::Hull, ..) => format!(
            "Hulls of {} points, as learned: {} % right, {} % of the area; of {} points, beyond it: {} % right, {} % \
             of the area, {} % valid. The paper, trained on 5 to 50: 87.0 % at 10, and at 200, beyond it, \
             22.1 % with 99.2 % of the area or more.",
            at.points,
            percent(at.right),
            percent(at.share),
            beyond.points,
            percent(beyond.right),
            percent(beyond.share),
            percent(beyond.valid),
        ),
        _ => format!(
            "Triangulations of {} points, as learned: {} % right, {} % of the triangles found; of {} points, beyond \
             it: {} % and {} %. The paper: 22.6 % and 81.3 % at 10 points.",
            at.points,
            percent(at.right),
            percent(at.share),
            beyond.points,
            percent(beyond.right),
            percent(beyond.share),
        ),
    }
}

/// Of sorted sequences of ten numbers so many shall be right.
const SORTED: f64 = 0.95;

/// What the trainings of the experiment itself share: 5 to 10 points and short runs.
fn small_training(options: &BenchOptions) -> PointerTraining {
    PointerTraining {
        points: [5, 10],
        init_range: 0.2,
        batch_size: match options.scale {
            Scale::Smoke => 32,
            _ => 128,
        },
        optimizer: Optimizer::Adam,
        decay: Decay::Cosine,
        seed: options.seed,
        ..PointerTraining::default()
    }
}

/// Numbers in rising order.
fn sorting(
    options: &BenchOptions,
    progress: &dyn Progress,
    tables: &mut Vec<Table>,
    findings: &mut Vec<String>,
) -> Result<(Value, Line), BenchError> {
    let (hidden_size, steps, tests) = match options.scale {
        Scale::Smoke => (16, 10, 16),
        Scale::Small => (64, 4_000, 500),
        Scale::Full => (256, 20_000, 1_000),
    };
    let config = PointerTraining {
        task: Task::Sort.name().to_owned(),
        hidden_size,
        steps,
        learning_rate: 3e-3,
        ..small_training(options)
    };
    let model = train_in_memory(&config, progress).map_err(failed)?;
    let model = model.ok_or(BenchError::Cancelled)?;
    let mut table = Table::new(
        &format!(
            "5 to 10 numbers sorted, learned in {steps} steps of {} problems, {hidden_size} hidden numbers, beam of {BEAM}",
            config.batch_size
        ),
        &["numbers", "sequences right, %", "places right, %"],
    );
    let (mut values, mut at_ten) = (Vec::new(), 0.0);
    let mut line: Line = ("sorting, right".into(), Vec::new());
    for n in [5, 8, 10, 12, 15, 20] {
        let mut rng = StdRng::seed_from_u64(options.seed ^ (n as u64) << 20);
        let (mut right, mut places) = (0.0, 0.0);
        for _ in 0..tests {
            let numbers: Vec<f32> = (0..n).map(|_| rng.random()).collect();
            let pointed = model.point(&numbers, BEAM, true).map_err(failed)?;
            if let Some(worth) = pointed.worth {
                right += f64::from(u8::from(worth.right)) / f64::from(tests);
                places += worth.share.unwrap_or(0.0) / f64::from(tests);
            }
        }
        if n == 10 {
            at_ten = right;
        }
        let name = match n <= 10 {
            true => format!("{n} (learned)"),
            false => n.to_string(),
        };
        table.row([name, percent(right), percent(places)]);
        line.1.push((n as f64, right));
        values.push(json!({"numbers": n, "right": right, "places": places}));
    }
    tables.push(table);
    findings.push(format!(
        "Of sequences of 10 numbers {} % are sorted without a mistake; expected: above 95, {}.",
        percent(at_ten),
        reached(at_ten > SORTED)
    ));
    Ok((json!(values), line))
}

/// Hulls by a network that points and one with fixed outputs, trained for as many steps.
fn beside_fixed_outputs(
    options: &BenchOptions,
    progress: &dyn Progress,
    tables: &mut Vec<Table>,
    findings: &mut Vec<String>,
) -> Result<Value, BenchError> {
    let (hidden_size, steps, tests) = match options.scale {
        Scale::Smoke => (16, 10, 16),
        Scale::Small => (64, 2_500, 500),
        Scale::Full => (256, 20_000, 1_000),
    };
    let config = PointerTraining {
        hidden_size,
        steps,
        learning_rate: 2e-3,
        ..small_training(options)
    };
    let pointing = train_in_memory(&config, progress).map_err(failed)?;
    let pointing = pointing.ok_or(BenchError::Cancelled)?;
    let fixed = train_fixed(&config, progress)?;
    let mut table = Table::new(
        &format!(
            "hulls of 5 to 10 points learned in {steps} steps, {hidden_size} hidden numbers: right, %"
        ),
        &["points", "pointer network, no rules", "fixed outputs"],
    );
    let (mut values, mut at_ten) = (Vec::new(), None);
    for n in [5, 10, 15] {
        let mut rng = StdRng::seed_from_u64(options.seed ^ (n as u64) << 20);
        let mut right = [0.0; 2];
        for _ in 0..tests {
            let (points, truth) = draw(n, Task::Hull, &mut rng).map_err(failed)?;
            let of = |places: &[usize]| {
                let mut ring: Vec<usize> = places.iter().map(|p| p - 1).collect();
                if ring.len() > 1 && ring.first() == ring.last() {
                    ring.pop();
                }
                f64::from(u8::from(worth(&points, Task::Hull, &ring, &truth).right))
            };
            let flat: Vec<f32> = points.all().iter().flatten().map(|x| *x as f32).collect();
            let answer = pointing.network.answer(&flat, Task::Hull, 1, false);
            right[0] += of(&answer.map_err(failed)?.places);
            if let Ok(answer) = fixed.answer(&flat, n + 1) {
                right[1] += of(&answer);
            }
        }
        let [a, b] = right.map(|r| r / f64::from(tests));
        if n == 10 {
            at_ten = Some((a, b));
        }
        let beyond = if n > 10 {
            "has no such output".into()
        } else {
            percent(b)
        };
        table.row([n.to_string(), percent(a), beyond]);
        values.push(json!({"points": n, "pointer": a, "fixed_outputs": b}));
    }
    tables.push(table);
    if let Some((a, b)) = at_ten {
        findings.push(format!(
            "After as many steps a network that points has {} % of hulls of 10 points right, one with fixed outputs \
             {} %; the paper at 50 points: 72.6 % and 1.9 % (38.9 % with attention that blends).",
            percent(a),
            percent(b)
        ));
    }
    Ok(json!(values))
}

fn train_fixed(
    config: &PointerTraining,
    progress: &dyn Progress,
) -> Result<FixedOutputs, BenchError> {
    let sizes = PointerConfig {
        input_size: 2,
        hidden_size: config.hidden_size,
    };
    let [least, most] = config.points;
    let mut network =
        FixedOutputs::init(sizes, most, config.init_range, config.seed).map_err(failed)?;
    let schedule = Schedule {
        learning_rate: config.learning_rate,
        warmup_steps: config.warmup_steps,
        decay: config.decay,
        steps: config.steps,
    };
    let mut moments: [[Vec<f32>; 2]; 2] = network
        .parts_mut()
        .map(|part| [vec![0.0; part.len()], vec![0.0; part.len()]]);
    for number in 1..=config.steps {
        if progress.cancelled() {
            return Err(BenchError::Cancelled);
        }
        let blocks = (0..config.batch_size.div_ceil(BLOCK))
            .into_par_iter()
            .map(|block| {
                let seed = config.seed.wrapping_add((number << 16) + block as u64);
                let mut rng = StdRng::seed_from_u64(seed);
                let n = rng.random_range(least..=most);
                let problems = (0..BLOCK).map(|_| {
                    let (points, answer) = draw(n, Task::Hull, &mut rng).map_err(failed)?;
                    Ok(Problem {
                        points: points.all().iter().flatten().map(|x| *x as f32).collect(),
                        target: target(&answer, Task::Hull),
                    })
                });
                let problems = problems.collect::<Result<Vec<_>, BenchError>>()?;
                network.gradient(&problems).map_err(failed)
            });
        let blocks = blocks.collect::<Result<Vec<_>, BenchError>>()?;
        let places: usize = blocks.iter().map(|b| b.0.places).sum();
        let mut sums = [
            vec![0.0; moments[0][0].len()],
            vec![0.0; moments[1][0].len()],
        ];
        for (gradient, of_outputs) in &blocks {
            keyfold_kernels::axpy(&mut sums[0], 1.0 / places as f32, &gradient.by_weights);
            keyfold_kernels::axpy(&mut sums[1], 1.0 / places as f32, of_outputs);
        }
        let step = AdamStep {
            rate: schedule.at(number) as f32,
            beta_1: 0.9,
            beta_2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            number: number as u32,
        };
        let parts = network
            .parts_mut()
            .into_iter()
            .zip(&mut sums)
            .zip(&mut moments);
        for ((weights, gradient), [first, second]) in parts {
            clip(gradient, config.max_grad_norm as f32);
            adamw(weights, gradient, first, second, step);
        }
        progress.advance(1);
    }
    Ok(network)
}

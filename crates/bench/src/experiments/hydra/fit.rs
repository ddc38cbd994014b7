//! How near families of matrices come to random quasiseparable matrices.
//!
//! A target has order 4 on either side of its diagonal: `M_ij = c_i · (Π a) b_j` below, the same
//! with other numbers above. The quasiseparable family is fitted by gradients through the scans;
//! the nearest matrix of low rank and the nearest Toeplitz matrix are computed exactly.
//!
//! Steps of a target are drawn as a fresh layer of Hydra has them, from 0.001 to 0.1, so that its
//! memory is long; those of the second kind are 0.2, so that what is twenty positions away counts
//! little. A fit begins with hardly any decay: parts of a matrix that fade before they meet are
//! free to choose their numbers in mirrored ways, and gradients do not turn them over later. Some
//! beginnings end so all the same, and the best of a few counts.

use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, TensorData};
use faer::Mat;
use keyfold_core::Progress;
use keyfold_nn::ops::{self, Course, SsdInputs};
use keyfold_nn::{AdamW, random};
use serde_json::{Value, json};

use super::failed;
use crate::report::{Table, reached};
use crate::{BenchError, BenchOptions, Scale};

/// Numbers of the state.
const ORDER: usize = 4;

/// A quasiseparable matrix.
#[derive(Module, Debug)]
struct Quasiseparable {
    /// By direction, `[T, ORDER]`.
    b: Vec<Param<Tensor<2>>>,
    c: Vec<Param<Tensor<2>>>,
    /// Steps before softplus, `[T, 1]`.
    dt: Vec<Param<Tensor<2>>>,
    /// `[T, 1]`.
    diagonal: Param<Tensor<2>>,
}

/// How long steps are.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Steps {
    /// As in a fresh layer: evenly on a scale of logarithms.
    Fresh,
    /// About this.
    About(f64),
}

/// Bounds of the steps of a fresh layer.
const FRESH: [f64; 2] = [1e-3, 1e-1];

/// What a fit begins with: decays of nearly 1.
const BEGIN: Steps = Steps::About(1e-4);

/// What softplus makes `step` of.
fn before_softplus(step: f64) -> f32 {
    (step + (-(-step).exp_m1()).ln()) as f32
}

impl Quasiseparable {
    fn random(t: usize, steps: Steps, seed: u64, device: &Device) -> Self {
        let draw = |part: u64, width: usize| {
            let numbers = random::normal(random::derive(seed, part), t * width, 0.5);
            Param::from_data(TensorData::new(numbers, [t, width]), device)
        };
        let sides = |first: u64, width: usize| [0, 1].map(|side| draw(first + side, width)).into();
        let dt = |part: u64| {
            let each = (0..t as u64).map(|i| match steps {
                Steps::About(step) => before_softplus(step),
                Steps::Fresh => {
                    let [low, high] = FRESH.map(f64::ln);
                    let place = random::unit(random::derive(seed, part), i);
                    before_softplus((low + place * (high - low)).exp())
                }
            });
            Param::from_data(TensorData::new(each.collect::<Vec<_>>(), [t, 1]), device)
        };
        Self {
            b: sides(0, ORDER),
            c: sides(2, ORDER),
            dt: vec![dt(4), dt(5)],
            diagonal: draw(6, 1),
        }
    }

    /// `[T, T]`: what the scans make of the unit matrix.
    fn matrix(&self) -> Tensor<2> {
        let t = self.diagonal.dims()[0];
        let device = self.diagonal.device();
        let unit = || {
            let numbers = (0..t * t).map(|i| f32::from(u8::from(i / t == i % t)));
            let data = TensorData::new(numbers.collect::<Vec<f32>>(), [t, t]);
            Tensor::<2>::from_data(data, &device)
        };
        let sides = (0..2).map(|side| {
            let inputs = SsdInputs {
                x: unit(),
                dt: ops::softplus(self.dt[side].val(), Tensor::zeros([1], &device)),
                a: Tensor::from_data([-1.0f32], &device),
                b: self.b[side].val(),
                c: self.c[side].val(),
                d: None,
                groups: 1,
            };
            let course = Course {
                backward: side == 1,
                strict: true,
            };
            ops::ssd_scan(inputs, &[0, t], course)
        });
        sides.fold(unit() * self.diagonal.val(), |sum, side| sum + side)
    }

    fn numbers(t: usize) -> usize {
        2 * (2 * ORDER + 1) * t + t
    }
}

/// Relative errors by family.
struct Errors {
    /// Of every beginning.
    quasiseparable: Vec<f64>,
    low_rank: f64,
    toeplitz: f64,
}

impl Errors {
    fn best(&self) -> f64 {
        let all = self.quasiseparable.iter().copied();
        all.fold(f64::INFINITY, f64::min)
    }
}

/// How near is near enough.
const AIM: f64 = 1e-3;

/// How often a fit may begin anew.
const BEGINNINGS: u64 = 3;

pub(super) fn fit(
    options: &BenchOptions,
    progress: &dyn Progress,
    tables: &mut Vec<Table>,
    findings: &mut Vec<String>,
) -> Result<Value, BenchError> {
    let (t, steps, targets) = match options.scale {
        Scale::Smoke => (16, 20, 1),
        Scale::Small => (64, 4000, 3),
        Scale::Full => (64, 20_000, 5),
    };
    // As many numbers in both factors as the quasiseparable matrix has.
    let rank = Quasiseparable::numbers(t) / (2 * t);
    let kinds = [
        ("of fresh layers", Steps::Fresh),
        ("short memory", Steps::About(0.2)),
    ];
    let mut table = Table::new(
        &format!(
            "relative error of the nearest matrix to random quasiseparable ones of order {ORDER}, {t} positions, {targets} targets; {steps} steps by gradients, the best of up to {BEGINNINGS} beginnings"
        ),
        &["targets", "family", "numbers", "error, mean", "worst"],
    );
    let mut found = Vec::new();
    progress.start("matrices", "targets", Some(targets * kinds.len() as u64));
    for (kind, made_of) in kinds {
        let mut all = Vec::new();
        for target in 0..targets {
            if progress.cancelled() {
                return Err(BenchError::Cancelled);
            }
            all.push(errors(
                t,
                made_of,
                steps,
                rank,
                options.seed + 100 * target,
            )?);
            progress.advance(1);
        }
        let families: [Family; 3] = [
            (
                "quasiseparable, by gradients",
                Quasiseparable::numbers(t),
                Errors::best,
            ),
            ("low rank, nearest", 2 * rank * t, |e| e.low_rank),
            ("Toeplitz, nearest", 2 * t - 1, |e| e.toeplitz),
        ];
        for (name, numbers, of) in families {
            let most = all.iter().map(of).fold(0.0, f64::max);
            let mean = all.iter().map(of).sum::<f64>() / all.len() as f64;
            table.row([
                kind.to_owned(),
                name.to_owned(),
                numbers.to_string(),
                format!("{mean:.1e}"),
                format!("{most:.1e}"),
            ]);
        }
        found.push(all);
    }
    progress.finish();
    tables.push(table);
    let worst = |all: &[Errors]| all.iter().map(Errors::best).fold(0.0, f64::max);
    let least = |all: &[Errors]| all.iter().map(|e| e.low_rank).fold(f64::INFINITY, f64::min);
    let [fresh, short] = &found[..] else {
        return Err(failed("two kinds of targets were fitted"));
    };
    let begun: usize = fresh.iter().map(|e| e.quasiseparable.len()).sum();
    let near = fresh.iter().flat_map(|e| &e.quasiseparable);
    let near = near.filter(|error| **error < AIM).count();
    findings.push(format!(
        "expected: quasiseparable below 1e-3, low rank of as many numbers above 1e-1; measured {:.1e} at worst, {near} of {begun} beginnings of {steps} steps below 1e-3, and {:.2} at best: {}.",
        worst(fresh),
        least(fresh),
        reached(worst(fresh) < AIM && least(fresh) > 0.1)
    ));
    findings.push(format!(
        "where memory is short (steps of 0.2) gradients end at {:.1e} at worst: what fades before it meets is fitted in ways that do not fit together.",
        worst(short)
    ));
    let json_of = |all: &[Errors]| -> Value {
        let each = all.iter().map(|e| {
            json!({"quasiseparable": e.quasiseparable, "low_rank": e.low_rank, "toeplitz": e.toeplitz})
        });
        each.collect()
    };
    Ok(
        json!({"positions": t, "rank": rank, "errors": json_of(fresh), "errors_of_short_memory": json_of(short)}),
    )
}

/// A family's name, its numbers, and its error.
type Family = (&'static str, usize, fn(&Errors) -> f64);

fn errors(
    t: usize,
    made_of: Steps,
    steps: u64,
    rank: usize,
    seed: u64,
) -> Result<Errors, BenchError> {
    let device = Device::flex().autodiff();
    let target = Quasiseparable::random(t, made_of, seed, &device);
    let target = target.matrix().detach();
    let numbers = keyfold_nn::checkpoint::numbers(&target);
    let length = numbers.iter().map(|x| f64::from(x * x)).sum::<f64>().sqrt();
    let matrix = Mat::from_fn(t, t, |i, j| f64::from(numbers[i * t + j]));
    let singular = matrix
        .singular_values()
        .map_err(|_| failed("singular values were not found"))?;
    let left: f64 = singular.iter().skip(rank).map(|s| s * s).sum();
    let mut beside = 0.0;
    for distance in 1 - t as isize..t as isize {
        let places = (0..t).filter_map(|i| {
            let j = i as isize - distance;
            (0..t as isize)
                .contains(&j)
                .then(|| f64::from(numbers[i * t + j as usize]))
        });
        let places: Vec<f64> = places.collect();
        let mean = places.iter().sum::<f64>() / places.len() as f64;
        beside += places.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
    }
    let mut quasiseparable = Vec::new();
    for beginning in 1..=BEGINNINGS {
        let model = Quasiseparable::random(t, BEGIN, seed + beginning, &device);
        quasiseparable.push(fitted(model, &target, length, steps));
        if quasiseparable.last().is_some_and(|error| *error < AIM) {
            break;
        }
    }
    Ok(Errors {
        quasiseparable,
        low_rank: left.sqrt() / length,
        toeplitz: beside.sqrt() / length,
    })
}

/// The least relative error on the way down the gradients.
fn fitted(mut model: Quasiseparable, target: &Tensor<2>, length: f64, steps: u64) -> f64 {
    let mut optimizer = AdamW {
        beta_2: 0.99,
        weight_decay: 0.0,
        ..AdamW::default()
    }
    .init();
    let mut best = f64::INFINITY;
    for step in 0..steps {
        let lost = (model.matrix() - target.clone()).square().sum();
        let error = f64::from(lost.clone().into_scalar::<f32>()).sqrt() / length;
        best = best.min(error);
        let gradients = GradientsParams::from_grads(lost.backward(), &model);
        let angle = std::f64::consts::PI * step as f64 / steps as f64;
        let rate = 0.03 * 0.5 * (1.0 + angle.cos());
        model = optimizer.step(rate, model, gradients);
    }
    best
}

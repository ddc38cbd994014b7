//! How near families of matrices come to random quasiseparable matrices.
//!
//! A target has order 4 on either side of its diagonal: `M_ij = c_i · (Π a) b_j` below, the same
//! with other numbers above. The quasiseparable family is fitted by gradients through the scans;
//! the nearest matrix of low rank and the nearest Toeplitz matrix are computed exactly.

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

impl Quasiseparable {
    fn random(t: usize, seed: u64, device: &Device) -> Self {
        let draw = |part: u64, width: usize, mean: f32| {
            let numbers = random::normal(random::derive(seed, part), t * width, 0.5);
            let numbers: Vec<f32> = numbers.iter().map(|x| x + mean).collect();
            Param::from_data(TensorData::new(numbers, [t, width]), device)
        };
        let sides = |first: u64, width: usize, mean: f32| {
            [0, 1].map(|side| draw(first + side, width, mean)).into()
        };
        Self {
            b: sides(0, ORDER, 0.0),
            c: sides(2, ORDER, 0.0),
            // Decays of about 0.8.
            dt: sides(4, 1, -1.5),
            diagonal: draw(6, 1, 0.0),
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

/// A family's name, its numbers, and its error.
type Family = (&'static str, usize, fn(&Errors) -> f64);

/// Relative errors by family.
struct Errors {
    quasiseparable: f64,
    low_rank: f64,
    toeplitz: f64,
}

pub(super) fn fit(
    options: &BenchOptions,
    progress: &dyn Progress,
    tables: &mut Vec<Table>,
    findings: &mut Vec<String>,
) -> Result<Value, BenchError> {
    let (t, steps, targets) = match options.scale {
        Scale::Smoke => (16, 20, 1),
        Scale::Small => (64, 4000, 2),
        Scale::Full => (64, 20_000, 5),
    };
    // As many numbers in both factors as the quasiseparable matrix has.
    let rank = Quasiseparable::numbers(t) / (2 * t);
    let mut all = Vec::new();
    progress.start("matrices", "targets", Some(targets));
    for target in 0..targets {
        if progress.cancelled() {
            return Err(BenchError::Cancelled);
        }
        all.push(errors(t, steps, rank, options.seed + 100 * target)?);
        progress.advance(1);
    }
    progress.finish();
    let mut table = Table::new(
        &format!(
            "relative error of the nearest matrix to random quasiseparable ones of order {ORDER}, {t} positions, {targets} targets; {steps} steps by gradients"
        ),
        &["family", "numbers", "error, mean", "worst"],
    );
    let mut worst = Vec::new();
    let families: [Family; 3] = [
        (
            "quasiseparable, by gradients",
            Quasiseparable::numbers(t),
            |e| e.quasiseparable,
        ),
        ("low rank, nearest", 2 * rank * t, |e| e.low_rank),
        ("Toeplitz, nearest", 2 * t - 1, |e| e.toeplitz),
    ];
    for (name, numbers, of) in families {
        let most = all.iter().map(of).fold(0.0, f64::max);
        let mean = all.iter().map(of).sum::<f64>() / all.len() as f64;
        table.row([
            name.to_owned(),
            numbers.to_string(),
            format!("{mean:.5}"),
            format!("{most:.5}"),
        ]);
        worst.push(most);
    }
    tables.push(table);
    let least = all.iter().map(|e| e.low_rank).fold(f64::INFINITY, f64::min);
    findings.push(format!(
        "expected: quasiseparable below 1e-3, low rank of as many numbers above 1e-1; measured {:.5} at worst after {steps} steps and {least:.3} at best: {}.",
        worst[0],
        reached(worst[0] < 1e-3 && least > 0.1)
    ));
    let values = all.iter().map(|e| {
        json!({"quasiseparable": e.quasiseparable, "low_rank": e.low_rank, "toeplitz": e.toeplitz})
    });
    Ok(json!({"positions": t, "rank": rank, "errors": values.collect::<Vec<_>>()}))
}

fn errors(t: usize, steps: u64, rank: usize, seed: u64) -> Result<Errors, BenchError> {
    let device = Device::flex().autodiff();
    let target = Quasiseparable::random(t, seed, &device).matrix().detach();
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
    let mut model = Quasiseparable::random(t, seed + 1, &device);
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
    Ok(Errors {
        quasiseparable: best,
        low_rank: left.sqrt() / length,
        toeplitz: beside.sqrt() / length,
    })
}

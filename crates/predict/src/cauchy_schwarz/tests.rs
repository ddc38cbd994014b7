#![allow(clippy::unwrap_used)]

use keyfold_core::{NoProgress, StopAfter};
use proptest::prelude::*;
use rand::Rng;

use super::divergence::*;
use super::*;

fn uniform(n: usize, seed: u64) -> Vec<f64> {
    let mut rng = SmallRng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
}

fn small() -> CauchySchwarzConfig {
    CauchySchwarzConfig {
        hidden: 16,
        code_dim: 6,
        epochs: 60,
        batch: 32,
        lr: 5e-3,
        ..Default::default()
    }
}

/// A curve with noise, and now and then a target that is far off.
fn curve(n: usize, far: f64, seed: u64) -> (Table, Vec<f64>) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let x = uniform(n * 3, seed);
    let y = x.chunks(3).map(|r| {
        let off = if rng.random_bool(0.1) { far } else { 0.0 };
        2.0 * r[0] - r[1] * r[1] + 0.1 * rng.random_range(-1.0..1.0) + off
    });
    let y = y.collect();
    (Table::new(3, x).unwrap(), y)
}

proptest! {
    #[test]
    fn a_divergence_is_never_negative_and_nothing_from_itself(
        a in prop::collection::vec(-2f64..2.0, 20),
        b in prop::collection::vec(-2f64..2.0, 14),
        sigma in 0.2f64..3.0,
    ) {
        let (a, b) = (Table::new(2, a).unwrap(), Table::new(2, b).unwrap());
        let sigma = Sigma::Fixed(sigma);
        prop_assert!(cs_divergence(&a, &a, sigma).unwrap().abs() < 1e-9);
        let there = cs_divergence(&a, &b, sigma).unwrap();
        prop_assert!(there > -1e-9);
        prop_assert!((there - cs_divergence(&b, &a, sigma).unwrap()).abs() < 1e-9);
        // Cauchy-Schwarz, for rows and codes.
        let t = Table::new(1, a.numbers().iter().step_by(2).copied().collect()).unwrap();
        prop_assert!(cs_qmi(&a, &t, sigma).unwrap() > -1e-9);
    }

    #[test]
    fn gradients_agree_with_differences(seed: u64, median: bool) {
        let n = 9;
        let x = Table::new(2, uniform(n * 2, seed)).unwrap();
        let (y, told) = (uniform(n, seed ^ 1), uniform(n, seed ^ 2));
        // With the median the width moves along, which the gradient leaves out.
        let sigma = if median { Sigma::Fixed(3.0) } else { Sigma::Fixed(0.7) };
        let (_, gradient) = cs_conditional_gradient(&x, &y, &told, sigma).unwrap();
        let codes = uniform(n * 3, seed ^ 3);
        let table = |codes: &[f64]| Table::new(3, codes.to_vec()).unwrap();
        let (_, pulled) = cs_qmi_normalised_gradient(&x, &table(&codes), sigma).unwrap();
        let h = 1e-5;
        let moved = |all: &[f64], i: usize, by: f64| -> Vec<f64> {
            let mut all = all.to_vec();
            all[i] += by;
            all
        };
        for (i, g) in gradient.iter().enumerate() {
            let at = |by: f64| cs_conditional(&x, &y, &moved(&told, i, by), sigma).unwrap();
            let want = (at(h) - at(-h)) / (2.0 * h);
            prop_assert!((g - want).abs() < 1e-6, "{} {}", g, want);
        }
        for (i, g) in pulled.iter().enumerate() {
            let at = |by: f64| cs_qmi_normalised(&x, &table(&moved(&codes, i, by)), sigma).unwrap();
            let want = (at(h) - at(-h)) / (2.0 * h);
            prop_assert!((g - want).abs() < 1e-6 * (1.0 + want.abs()), "{} {}", g, want);
        }
    }
}

#[test]
fn targets_that_are_told_exactly_have_no_divergence_and_far_ones_a_finite_one() {
    let x = Table::new(2, uniform(20, 1)).unwrap();
    let y = uniform(10, 2);
    let same = cs_conditional(&x, &y, &y, Sigma::Fixed(1.0)).unwrap();
    assert!(same.abs() < 1e-12);
    // So far that the kernel is 0 in double precision.
    let far: Vec<f64> = y.iter().map(|y| y + 200.0).collect();
    let (value, gradient) = cs_conditional_gradient(&x, &y, &far, Sigma::Fixed(1.0)).unwrap();
    assert!(value > 1e4 && value.is_finite());
    // It still says in which direction.
    assert!(gradient.iter().sum::<f64>() > 1.0, "{gradient:?}");
}

#[test]
fn gradients_of_the_network_agree_with_differences() {
    let mut rng = SmallRng::seed_from_u64(3);
    let network = network::random((3, 7, 4), &mut rng);
    let rows: Vec<f32> = uniform(15, 4).iter().map(|&x| x as f32).collect();
    let y = uniform(5, 5);
    let loss = |rows: &[f32]| -> f64 {
        let pass = network.forward(rows);
        let pairs = pass.told().iter().zip(&y);
        pairs.map(|(t, y)| 0.5 * (f64::from(*t) - y).powi(2)).sum()
    };
    let pass = network.forward(&rows);
    let told: Vec<f32> = pass
        .told()
        .iter()
        .zip(&y)
        .map(|(t, y)| t - *y as f32)
        .collect();
    let pulled = network.pull_to_rows(&pass, &told);
    for i in 0..15 {
        let at = |by: f32| {
            let mut moved = rows.clone();
            moved[i] += by;
            loss(&moved)
        };
        let want = (at(1e-2) - at(-1e-2)) / 2e-2;
        assert!(
            (f64::from(pulled[i]) - want).abs() < 2e-3,
            "{} {want}",
            pulled[i]
        );
    }
    // Weights: a small step against the gradient makes the loss smaller by its length.
    let gradient = network.backward(&pass, &told, None);
    let mut stepped = network.clone();
    let mut optimiser = Optimiser::new(&network);
    optimiser.step(&mut stepped, &gradient, 1e-3);
    let after = stepped.forward(&rows);
    let pairs = after.told().iter().zip(&y);
    let after: f64 = pairs.map(|(t, y)| 0.5 * (f64::from(*t) - y).powi(2)).sum();
    assert!(after < loss(&rows));
}

#[test]
fn all_losses_learn_a_curve_and_outliers_do_not_move_the_kernel_losses() {
    let (clean, truth) = curve(300, 0.0, 7);
    let fit = |loss: Loss, x: &Table, y: &[f64]| {
        let config = CauchySchwarzConfig {
            loss,
            beta: 0.0,
            ..small()
        };
        CauchySchwarz::fit(x, y, &config, &NoProgress).unwrap()
    };
    for loss in [Loss::Cs, Loss::Mse, Loss::Huber, Loss::SseCompat] {
        let model = fit(loss, &clean, &truth);
        let score = model.score(&clean, &truth).unwrap();
        assert!(score > 0.9, "{loss:?}: {score}");
    }
    let (x, y) = curve(300, 15.0, 8);
    let robust = fit(Loss::Cs, &x, &y).standing(&clean, &truth).unwrap();
    let squared = fit(Loss::Mse, &x, &y).standing(&clean, &truth).unwrap();
    assert!(robust.rmse < 0.5 * squared.rmse, "{robust:?} {squared:?}");
}

#[test]
fn a_larger_beta_keeps_less_of_the_rows() {
    let (x, y) = curve(256, 0.0, 9);
    let kept: Vec<f64> = [0.0, 1.0, 10.0]
        .into_iter()
        .map(|beta| {
            let config = CauchySchwarzConfig { beta, ..small() };
            let model = CauchySchwarz::fit(&x, &y, &config, &NoProgress).unwrap();
            model.standing(&x, &y).unwrap().compression
        })
        .collect();
    assert!(kept[0] > kept[1] && kept[1] > kept[2], "{kept:?}");
}

#[test]
fn an_attack_makes_errors_grow_and_stays_in_its_bounds() {
    let (x, y) = curve(200, 0.0, 10);
    let model = CauchySchwarz::fit(&x, &y, &small(), &NoProgress).unwrap();
    let rmse = |x: &Table| model.standing(x, &y).unwrap().rmse;
    let once = model.attacked(&x, &y, 0.2).unwrap();
    let steps = model.attacked_in_steps(&x, &y, 0.2, 0.05, 5).unwrap();
    assert!(rmse(&once) > 1.3 * rmse(&x));
    assert!(rmse(&steps) >= 0.95 * rmse(&once));
    for moved in [&once, &steps] {
        let pairs = moved.numbers().iter().zip(x.numbers());
        assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() < 0.2 + 1e-12));
    }
}

#[test]
fn what_cannot_be_learned_is_refused_by_name() {
    let (x, y) = curve(40, 0.0, 11);
    let fit = |x: &Table, y: &[f64], config: &CauchySchwarzConfig| {
        CauchySchwarz::fit(x, y, config, &NoProgress).unwrap_err()
    };
    let few = CauchySchwarzConfig {
        batch: 7,
        ..small()
    };
    assert!(fit(&x, &y, &few).to_string().contains("batch"));
    let narrow = CauchySchwarzConfig {
        sigma: Some(0.0),
        ..small()
    };
    assert!(fit(&x, &y, &narrow).to_string().contains("sigma"));
    let constant = fit(&x, &[2.0; 40], &small());
    assert!(matches!(
        constant,
        PredictError::ConstantTarget { value: 2.0 }
    ));
    assert!(matches!(
        fit(&x, &y[1..], &small()),
        PredictError::LabelCount { .. }
    ));
    let mut hole = y.clone();
    hole[3] = f64::NAN;
    assert!(matches!(
        fit(&x, &hole, &small()),
        PredictError::NotFinite { row: 3, .. }
    ));
    assert!(
        fit(&x.select(&[0, 1, 2]), &y[..3], &small())
            .to_string()
            .contains("rows")
    );
    let stopped = CauchySchwarz::fit(&x, &y, &small(), &StopAfter::new(2));
    assert!(matches!(stopped, Err(PredictError::Cancelled)));
    // The low-level functions too: lists of different length are not broadcast.
    assert!(cs_conditional(&x, &y, &y[..1], Sigma::Fixed(1.0)).is_err());
}

#[test]
fn constant_columns_and_codes_are_no_trouble() {
    let (x, y) = curve(64, 0.0, 12);
    let flat = Table::new(2, vec![1.0; 128]).unwrap();
    let model = CauchySchwarz::fit(&flat, &y, &small(), &NoProgress).unwrap();
    let standing = model.standing(&flat, &y).unwrap();
    assert!(standing.rmse.is_finite() && standing.compression.is_finite());
    let (value, pulled) = cs_qmi_normalised_gradient(&x, &flat, Sigma::Fixed(1.0)).unwrap();
    assert!(value.abs() < 1e-3 && pulled.iter().all(|g| g.is_finite()));
    // What is left over of a batch and too few goes with the one before.
    let order: Vec<usize> = (0..70).collect();
    let sizes: Vec<usize> = batches(&order, 32).iter().map(|b| b.len()).collect();
    assert_eq!(sizes, [32, 38]);
}

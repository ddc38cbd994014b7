#![allow(clippy::unwrap_used)]

use super::*;
use crate::algebra::softmax;
use keyfold_core::{NoProgress, StopAfter};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

fn noisy(n: usize, columns: usize, classes: usize, seed: u64) -> (Table, Labels) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let codes: Vec<usize> = (0..n).map(|i| i % classes).collect();
    let numbers = (0..n * columns).map(|i| {
        let at = f64::from(u8::from(i % columns == codes[i / columns]));
        at + rng.random_range(-2.0..2.0)
    });
    let x = Table::new(columns, numbers.collect()).unwrap();
    let names: Vec<String> = codes.iter().map(ToString::to_string).collect();
    (x, Labels::new(&names))
}

fn loss(x: &Table, labels: &Labels, linear: &Linear, c: f64) -> f64 {
    let k = labels.classes().len();
    let mut logits = linear.logits(x).unwrap();
    let rows = logits.chunks_exact_mut(k).zip(labels.codes());
    let data: f64 = rows
        .map(|(row, &y)| {
            let s = row[y];
            softmax(row) - s
        })
        .sum();
    c * data + 0.5 * linear.coef.iter().map(|w| w * w).sum::<f64>()
}

#[test]
fn no_step_in_any_direction_makes_the_loss_smaller() {
    for classes in [2, 4] {
        let (x, labels) = noisy(120, 5, classes, 1);
        let config = LogisticConfig {
            c: 0.7,
            tol: 1e-9,
            ..Default::default()
        };
        let model = Logistic::fit(&x, &labels, &config, &NoProgress).unwrap();
        assert!(model.told().stopped.is_converged(), "{:?}", model.told());
        let best = loss(&x, &labels, model.linear(), 0.7);
        assert!((best / 0.7 / 120.0 - model.told().loss).abs() < 1e-8);
        let mut rng = SmallRng::seed_from_u64(2);
        for _ in 0..50 {
            let mut moved = model.linear().clone();
            let all = moved.coef.iter_mut().chain(&mut moved.intercept);
            all.for_each(|w| *w += rng.random_range(-0.01..0.01));
            assert!(loss(&x, &labels, &moved, 0.7) > best);
        }
    }
}

#[test]
fn columns_of_any_scale_converge_to_the_same_classes() {
    let (x, labels) = noisy(200, 4, 3, 3);
    let config = LogisticConfig {
        c: f64::INFINITY,
        tol: 1e-10,
        max_iter: 300,
    };
    let plain = Logistic::fit(&x, &labels, &config, &NoProgress).unwrap();
    let scales = [1.0, 1e4, 1e-3, 50.0];
    let numbers = x.numbers().iter().enumerate();
    let wild = numbers.map(|(i, v)| v * scales[i % 4] + 10.0 * scales[i % 4]);
    let wild = Table::new(4, wild.collect()).unwrap();
    let scaled = Logistic::fit(&wild, &labels, &config, &NoProgress).unwrap();
    assert!(scaled.told().iterations < 60, "{:?}", scaled.told());
    let (a, b) = (
        plain.predict_proba(&x).unwrap(),
        scaled.predict_proba(&wild).unwrap(),
    );
    assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-5));
}

#[test]
fn constant_columns_more_columns_than_rows_and_a_class_of_one_row_are_no_trouble() {
    let x = Table::new(
        4,
        vec![
            1.0, 0.0, 7.0, 7.0, //
            1.0, 1.0, 7.0, 7.0, //
            1.0, 5.0, 7.0, 7.0,
        ],
    )
    .unwrap();
    let labels = Labels::new(&["a", "b", "c"]);
    let model = Logistic::fit(&x, &labels, &LogisticConfig::default(), &NoProgress).unwrap();
    assert!(model.told().stopped.is_converged());
    // Nothing can be learned from a constant column.
    for row in model.linear().coef.chunks(4) {
        assert!(row[0].abs() < 1e-9 && row[2].abs() < 1e-9 && row[3].abs() < 1e-9);
    }
    assert_eq!(model.predict(&x).unwrap()[2], 2);
}

#[test]
fn what_cannot_be_fitted_is_refused_by_name() {
    let x = Table::new(1, vec![0.0, 1.0]).unwrap();
    let (one, two) = (Labels::new(&["a", "a"]), Labels::new(&["a", "b"]));
    let fit = |labels, config: &LogisticConfig| Logistic::fit(&x, labels, config, &NoProgress);
    let config = LogisticConfig::default();
    assert!(matches!(
        fit(&one, &config),
        Err(PredictError::OneClass { .. })
    ));
    let bad = LogisticConfig { c: -1.0, ..config };
    assert!(matches!(
        fit(&two, &bad),
        Err(PredictError::Setting { setting: "c", .. })
    ));
    let model = fit(&two, &config).unwrap();
    let wide = Table::new(2, vec![0.0; 4]).unwrap();
    assert!(matches!(
        model.predict(&wide),
        Err(PredictError::Width {
            expected: 1,
            found: 2
        })
    ));
    let stopped = Logistic::fit(&x, &two, &config, &StopAfter::new(0));
    assert!(matches!(stopped, Err(PredictError::Cancelled)));
    // Without a ridge the two are parted ever better; it must not claim to be done.
    let free = LogisticConfig {
        c: f64::INFINITY,
        tol: 0.0,
        max_iter: 8,
    };
    assert_eq!(
        fit(&two, &free).unwrap().told().stopped,
        Stopped::Iterations
    );
}

#[test]
fn a_start_that_is_near_needs_fewer_steps_and_ends_at_the_same_place() {
    let (x, labels) = noisy(300, 6, 3, 5);
    let config = LogisticConfig {
        tol: 1e-8,
        ..Default::default()
    };
    let cold = Logistic::fit(&x, &labels, &config, &NoProgress).unwrap();
    let near = LogisticConfig { c: 1.1, ..config };
    let direct = Logistic::fit(&x, &labels, &near, &NoProgress).unwrap();
    let warm = Logistic::fit_from(&x, &labels, &near, Some(cold.linear()), &NoProgress).unwrap();
    assert!(warm.told().iterations < direct.told().iterations);
    let pairs = warm.linear().coef.iter().zip(&direct.linear().coef);
    assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() < 1e-5));
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let (x, labels) = noisy(3000, 8, 3, 7);
    let fit = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        let pool = pool.build().unwrap();
        pool.install(|| {
            Logistic::fit(&x, &labels, &LogisticConfig::default(), &NoProgress).unwrap()
        })
    };
    assert_eq!(fit(1), fit(3));
}

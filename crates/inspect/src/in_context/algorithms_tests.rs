use proptest::prelude::*;

use super::*;
use crate::in_context::{Distribution, Task};

fn task(d: usize, n: usize, noise: f64) -> Task {
    Task {
        d,
        n,
        x: Distribution::default(),
        w: Distribution::default(),
        noise,
    }
}

/// The weights before the last pair, solved at once.
fn direct(sequence: &Sequence, alpha: f64) -> Vec<f64> {
    let (d, n) = (sequence.d, sequence.y.len() - 1);
    let x = Mat::from_fn(n, d, |i, j| sequence.x[i * d + j]);
    let y = Mat::from_fn(n, 1, |i, _| sequence.y[i]);
    let w = match alpha > 0.0 {
        true => {
            let gram = x.transpose() * &x;
            let right = x.transpose() * &y;
            algebra::solve_symmetric(gram.as_ref(), right.as_ref(), alpha).unwrap()
        }
        false => algebra::least_squares(x.as_ref(), y.as_ref()).unwrap(),
    };
    (0..d).map(|j| w[(j, 0)]).collect()
}

proptest! {
    #[test]
    fn updates_of_rank_one_give_what_solving_at_once_gives(
        seed in 0u64..1000, d in 1usize..6, n in 2usize..12, alpha in 0.01f64..2.0,
    ) {
        let sequence = &task(d, n, 0.3).sample(1, seed)[0];
        for (predictor, alpha) in [(Predictor::LeastSquares, 0.0), (Predictor::Ridge(alpha), alpha)] {
            let found = predictor.weights(sequence);
            let last = found.last().unwrap();
            for (a, b) in last.iter().zip(direct(sequence, alpha)) {
                prop_assert!((a - b).abs() < 1e-6 * (1.0 + b.abs()), "{predictor}: {a} {b}");
            }
        }
    }
}

#[test]
fn least_squares_is_exact_once_pairs_are_as_many_as_numbers() {
    for sequence in task(4, 8, 0.0).sample(20, 3) {
        let told = Predictor::LeastSquares.predict(&sequence);
        for (told, truth) in told.iter().zip(&sequence.y).skip(4) {
            assert!((told - truth).abs() < 1e-6, "{told} {truth}");
        }
    }
}

#[test]
fn one_step_on_the_mean_is_the_constant_covariance_at_half_the_rate() {
    for sequence in task(3, 6, 0.2).sample(5, 1) {
        let a = Predictor::Steps(1, 0.5).predict(&sequence);
        let b = Predictor::ConstantCovariance.predict(&sequence);
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-12));
    }
}

#[test]
fn gradients_are_clamped() {
    let sequence = Sequence {
        d: 1,
        x: vec![10.0, 1.0],
        y: vec![10.0, 0.0],
        w: vec![1.0],
    };
    // The gradient is -200, of which 20 are taken.
    assert_eq!(Predictor::Sgd(0.01).predict(&sequence)[1], 0.2);
    assert_eq!(Predictor::Gd(0.01).predict(&sequence)[1], 0.2);
}

#[test]
fn neighbours_weigh_by_distance_where_they_are_asked_to() {
    let sequence = Sequence {
        d: 1,
        x: vec![0.0, 3.0, 1.0],
        y: vec![6.0, 3.0, 0.0],
        w: vec![0.0],
    };
    assert_eq!(Predictor::Neighbours(5).predict(&sequence)[2], 4.5);
    // Distances 1 and 2: (6 + 3/2) / (1 + 1/2).
    assert_eq!(Predictor::NearNeighbours(5).predict(&sequence)[2], 5.0);
    assert_eq!(Predictor::Neighbours(1).predict(&sequence)[2], 6.0);
}

#[test]
fn the_bayes_answer_errs_least_with_noise() {
    let sequences = task(4, 10, 0.5).sample(2000, 7);
    let truth: Vec<Vec<f64>> = sequences.iter().map(|s| s.y.clone()).collect();
    let error = |p: Predictor| {
        let told: Vec<Vec<f64>> = sequences.iter().map(|s| p.predict(s)).collect();
        spd(&told, &truth)[6]
    };
    let best = error(Predictor::Ridge(0.25));
    for other in [0.0, 0.02, 2.0] {
        assert!(best < error(Predictor::Ridge(other)), "{other}");
    }
}

#[test]
fn implied_weights_are_those_of_a_linear_predictor() {
    let sequence = &task(3, 20, 0.0).sample(1, 4)[0];
    let told: Vec<f64> = sequence
        .pairs()
        .map(|(x, _)| dot(x, &[1.0, -2.0, 0.5]) + 3.0)
        .collect();
    let implied = implied_weights(&sequence.x, 3, &told).unwrap();
    assert!((implied.r2 - 1.0).abs() < 1e-9);
    for (a, b) in implied.w.iter().zip([1.0, -2.0, 0.5]) {
        assert!((a - b).abs() < 1e-9);
    }
    assert!(implied_weights(&sequence.x[..9], 3, &told[..3]).is_err());
}

#[test]
fn a_predictor_is_nearest_to_itself() {
    let sequences = task(3, 6, 0.5).sample(50, 2);
    let model: Vec<Vec<f64>> = sequences
        .iter()
        .map(|s| Predictor::Ridge(0.5).predict(s))
        .collect();
    let all = [
        "ols",
        "ridge:0.1",
        "ridge:0.5",
        "gd:0.02",
        "sgd:0.01",
        "constant",
        "knn:3",
        "steps:2x0.1",
    ];
    let all: Vec<Predictor> = all.iter().map(|p| p.parse().unwrap()).collect();
    let found = compare(&sequences, &model, &all).unwrap();
    assert_eq!(found.predictors[0].name, "ridge:0.5");
    assert_eq!(found.predictors[0].mean_spd, 0.0);
    assert_eq!(found.model, found.predictors[0].mse);
    assert!(compare(&sequences[1..], &model, &all).is_err());
}

#[test]
fn predictors_are_written_as_they_are_read() {
    for text in [
        "ols",
        "ridge:0.5",
        "constant",
        "sgd:0.01",
        "gd:0.02",
        "steps:3x0.1",
        "knn:5",
        "knn-near:2",
    ] {
        assert_eq!(text.parse::<Predictor>().unwrap().to_string(), text);
    }
    for text in [
        "",
        "ols:1",
        "ridge",
        "ridge:-1",
        "ridge:nan",
        "knn:0",
        "steps:3",
        "svm",
    ] {
        let error = text.parse::<Predictor>().unwrap_err().to_string();
        assert!(error.contains("no predictor"), "{error}");
    }
}

#[test]
fn distributions_shift_and_scale() {
    let from: Distribution = "normal*2.5+1".parse().unwrap();
    assert_eq!(from, Distribution::normal(2.5, 1.0));
    assert!("uniform".parse::<Distribution>().is_err());
    let wide = Task {
        x: from,
        ..task(2, 50, 0.0)
    };
    let x: Vec<f64> = wide.sample(100, 1).into_iter().flat_map(|s| s.x).collect();
    let mean = x.iter().sum::<f64>() / x.len() as f64;
    let spread = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64;
    assert!(
        (mean - 1.0).abs() < 0.1 && (spread.sqrt() - 2.5).abs() < 0.1,
        "{mean} {spread}"
    );
}

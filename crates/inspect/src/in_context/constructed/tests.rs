#![allow(clippy::unwrap_used)]

use super::*;
use crate::in_context::Distribution;
use crate::in_context::algorithms::Predictor;

fn task(d: usize, n: usize) -> Task {
    Task {
        d,
        n,
        x: Distribution::normal(0.5, 0.0),
        w: Distribution::normal(0.5, 0.0),
        noise: 0.1,
    }
}

#[test]
fn two_layers_of_each_pair_are_gradient_descent() {
    let task = task(3, 6);
    let model = gradient_descent(&task, 0.1, 0.0).unwrap();
    assert_eq!(model.layers(), 2 * 5 + 1);
    for sequence in task.sample(20, 1) {
        let want = Predictor::Sgd(0.1).predict(&sequence)[5];
        let found = model.predict(&sequence).unwrap();
        assert!((found - want).abs() < 1e-3, "{found} {want}");
    }
}

#[test]
fn a_program_is_ridge_regression() {
    let task = task(2, 4);
    let model = ridge(&task, 0.5, 4.0).unwrap();
    for sequence in task.sample(20, 2) {
        let fits = sequence.pairs().all(|(x, _)| super::super::dot(x, x) < 4.0);
        if !fits {
            continue;
        }
        let want = Predictor::Ridge(0.5).predict(&sequence)[3];
        let found = model.predict(&sequence).unwrap();
        assert!((found - want).abs() < 1e-3, "{found} {want}");
    }
}

#[test]
fn a_sequence_of_another_length_is_refused() {
    let model = gradient_descent(&task(3, 6), 0.1, 0.0).unwrap();
    assert!(model.predict(&task(3, 5).sample(1, 0)[0]).is_err());
    assert!(gradient_descent(&task(3, 1), 0.1, 0.0).is_err());
}

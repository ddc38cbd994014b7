#![allow(clippy::unwrap_used)]

use keyfold_core::{NoProgress, StopAfter};

use super::*;

/// The sheet's case in small: rows rebuilt best by large parts that say nothing of the
/// class, which a small part tells.
fn rows(n: usize, seed: u64) -> (Table, Labels) {
    let (p, r) = (12, 3);
    let mut rng = SmallRng::seed_from_u64(seed);
    let w: Vec<f64> = (0..p * r).map(|_| rng.random()).collect();
    let (mut numbers, mut names) = (Vec::new(), Vec::new());
    for _ in 0..n {
        let h: Vec<f64> = [10.0, 8.0, 6.0].map(|s| s * rng.random::<f64>()).to_vec();
        let s = 2.0 * rng.random::<f64>();
        for f in 0..p {
            let large: f64 = (0..r).map(|j| w[f * r + j] * h[j]).sum();
            let small = if f < 3 { s } else { 0.0 };
            numbers.push((large + small + 0.1 * rng.random::<f64>()) / 25.0);
        }
        names.push(if s > 1.0 { "high" } else { "low" });
    }
    (Table::new(p, numbers).unwrap(), Labels::new(&names))
}

fn config(variant: Variant, solver: Solver) -> SupervisedDictionaryConfig {
    SupervisedDictionaryConfig {
        n_components: 4,
        variant,
        solver,
        iter: 150,
        ..Default::default()
    }
}

#[test]
fn all_variants_learn_what_reconstruction_alone_does_not_show() {
    let (all, names) = rows(640, 1);
    let (learn, tell): (Vec<usize>, Vec<usize>) = (0..640).partition(|i| *i < 240);
    let (x, labels) = (all.select(&learn), names.select(&learn));
    let (tested, truth) = (all.select(&tell), names.select(&tell));
    for (variant, solver, least) in [
        (Variant::Filter, Solver::Bcd, 0.75),
        (Variant::Filter, Solver::Lpgd, 0.8),
        (Variant::Feature, Solver::Bcd, 0.5),
        (Variant::Feature, Solver::Lpgd, 0.5),
    ] {
        let config = config(variant, solver);
        let model = SupervisedDictionary::fit(&x, &labels, &config, &NoProgress).unwrap();
        let told = model.told();
        let accuracy = model.score(&tested, &truth).unwrap();
        assert!(
            accuracy > least,
            "{variant:?} {solver:?}: {accuracy} {told:?}"
        );
        assert!(
            told.reconstruction < 0.5,
            "{variant:?} {solver:?}: {told:?}"
        );
        let (first, last) = (told.losses[0], *told.losses.last().unwrap());
        assert!(last < first, "{variant:?} {solver:?}: {told:?}");
        let length = norm(&model.components());
        assert!((length - 1.0).abs() < 1e-9, "{length}");
        if solver == Solver::Bcd {
            assert!(model.components().iter().all(|w| *w >= 0.0));
        }
    }
}

#[test]
fn the_lifted_loss_falls_from_step_to_step() {
    let (x, labels) = rows(60, 2);
    for variant in [Variant::Filter, Variant::Feature] {
        let mut last = f64::INFINITY;
        for iter in [1, 11, 21, 61, 201] {
            let config = SupervisedDictionaryConfig {
                iter,
                ..config(variant, Solver::Lpgd)
            };
            let model = SupervisedDictionary::fit(&x, &labels, &config, &NoProgress).unwrap();
            let loss = *model.told().losses.last().unwrap();
            assert!(loss < last, "{variant:?} after {iter}: {loss} {last}");
            last = loss;
        }
    }
}

#[test]
fn three_classes_and_covariates_are_learned_together() {
    // The class shows in a covariate alone.
    let (x, _) = rows(90, 3);
    let mut numbers = Vec::new();
    for i in 0..90 {
        numbers.extend(x.row(i));
        numbers.push((i % 3) as f64);
    }
    let names: Vec<String> = (0..90).map(|i| format!("c{}", i % 3)).collect();
    let (wide, labels) = (Table::new(13, numbers).unwrap(), Labels::new(&names));
    for solver in [Solver::Bcd, Solver::Lpgd] {
        let config = SupervisedDictionaryConfig {
            covariates: 1,
            iter: 300,
            ..config(Variant::Filter, solver)
        };
        let model = SupervisedDictionary::fit(&wide, &labels, &config, &NoProgress).unwrap();
        let accuracy = model.score(&wide, &labels).unwrap();
        assert!(accuracy > 0.95, "{solver:?}: {accuracy}");
        // The dictionary does not rebuild covariates, but without them nothing is told.
        assert_eq!(model.components().len(), 4 * 12);
        assert_eq!(model.transform(&x).unwrap().len(), 90 * 4);
        assert!(matches!(
            model.predict(&x),
            Err(PredictError::Width { expected: 13, .. })
        ));
    }
}

#[test]
fn codes_rebuild_rows_that_atoms_made() {
    let (x, labels) = rows(60, 4);
    let config = config(Variant::Filter, Solver::Bcd);
    let model = SupervisedDictionary::fit(&x, &labels, &config, &NoProgress).unwrap();
    let codes = [0.0, 1.0, 2.0, 0.5, 3.0, 0.0, 0.0, 0.25];
    let made = Table::new(12, model.inverse_transform(&codes)).unwrap();
    let found = model.transform(&made).unwrap();
    let back = model.inverse_transform(&found);
    assert!(
        made.numbers()
            .iter()
            .zip(&back)
            .all(|(a, b)| (a - b).abs() < 1e-6)
    );
    assert!(found.iter().all(|c| *c >= 0.0));
}

#[test]
fn telling_by_code_and_class_together_is_as_good_as_naive() {
    let (x, labels) = rows(120, 5);
    let mut scores = Vec::new();
    for prediction in [Telling::Naive, Telling::Alt, Telling::Exhaustive] {
        let config = SupervisedDictionaryConfig {
            prediction,
            nonneg: [false, false],
            ..config(Variant::Feature, Solver::Lpgd)
        };
        let model = SupervisedDictionary::fit(&x, &labels, &config, &NoProgress).unwrap();
        scores.push(model.score(&x, &labels).unwrap());
    }
    assert!(scores.iter().all(|s| *s > scores[0] - 0.1), "{scores:?}");
}

#[test]
fn the_threshold_is_that_of_the_training_rows() {
    // One row of ten is of the second class, and parts badly.
    let (x, labels) = rows(100, 6);
    let names: Vec<&str> = (0..100)
        .map(|i| {
            if i % 10 == 0 && labels.codes()[i] == 0 {
                "rare"
            } else {
                "common"
            }
        })
        .collect();
    let labels = Labels::new(&names);
    let config = config(Variant::Filter, Solver::Bcd);
    let model = SupervisedDictionary::fit(&x, &labels, &config, &NoProgress).unwrap();
    let told = model.predict(&x).unwrap();
    // At a half none would be told to be rare.
    assert!(model.threshold() < 0.5);
    assert!(told.contains(&1));
}

#[test]
fn the_radius_bounds_what_a_step_changes() {
    let (x, labels) = rows(40, 7);
    let config = SupervisedDictionaryConfig {
        iter: 1,
        search_radius_const: 1e-6,
        ..config(Variant::Filter, Solver::Bcd)
    };
    let mut start = random(&config, 12, 40, 1);
    let length = norm(&start.atoms);
    start.atoms.iter_mut().for_each(|w| *w /= length);
    let from = start.clone();
    let (model, codes) =
        SupervisedDictionary::fit_from(&x, &labels, &config, Some(start), &NoProgress).unwrap();
    let radius = 1e-6 / 2f64.ln();
    let apart: Vec<f64> = codes.iter().zip(&from.codes).map(|(a, b)| a - b).collect();
    // Two passes over four rows of codes.
    assert!(norm(&apart) <= 8.0 * radius && norm(&apart) > 0.0);
    let apart: Vec<f64> = (model.atoms.iter().zip(&from.atoms))
        .map(|(a, b)| a - b)
        .collect();
    assert!(blocks::spectral_norm(&apart, 4) <= 2.0 * radius);
}

#[test]
fn what_does_not_go_is_refused_by_name() {
    let (x, labels) = rows(20, 8);
    let fit = |config: &SupervisedDictionaryConfig| {
        SupervisedDictionary::fit(&x, &labels, config, &NoProgress)
    };
    let plain = config(Variant::Filter, Solver::Bcd);
    let more_than_columns = SupervisedDictionaryConfig {
        n_components: 13,
        ..plain
    };
    let error = fit(&more_than_columns).unwrap_err().to_string();
    assert!(
        error.contains("n_components") && error.contains("1 to 12"),
        "{error}"
    );
    let all_covariates = SupervisedDictionaryConfig {
        covariates: 12,
        ..plain
    };
    assert!(
        fit(&all_covariates)
            .unwrap_err()
            .to_string()
            .contains("covariates")
    );
    let negative = Table::new(2, vec![1.0, -1.0, 2.0, 3.0]).unwrap();
    let two = Labels::new(&["a", "b"]);
    let one_atom = SupervisedDictionaryConfig {
        n_components: 1,
        ..plain
    };
    let found = SupervisedDictionary::fit(&negative, &two, &one_atom, &NoProgress);
    assert!(matches!(
        found,
        Err(PredictError::Negative {
            row: 0,
            column: 1,
            ..
        })
    ));
    let signed = SupervisedDictionaryConfig {
        nonneg: [false, true],
        ..one_atom
    };
    SupervisedDictionary::fit(&negative, &two, &signed, &NoProgress).unwrap();
    let stopped = SupervisedDictionary::fit(&x, &labels, &plain, &StopAfter::new(2));
    assert!(matches!(stopped, Err(PredictError::Cancelled)));
    let same = Labels::new(&["a"; 20]);
    assert!(matches!(
        SupervisedDictionary::fit(&x, &same, &plain, &NoProgress),
        Err(PredictError::OneClass { .. })
    ));
}

#[test]
fn rank_deficient_rows_and_constant_columns_are_no_trouble() {
    // Every row is a multiple of one, and a column is constant.
    let numbers = (0..30).flat_map(|i| {
        let s = f64::from(i % 10) / 10.0;
        [s, 2.0 * s, 3.0 * s, 0.5]
    });
    let x = Table::new(4, numbers.collect()).unwrap();
    let names: Vec<&str> = (0..30)
        .map(|i| if i % 10 < 5 { "a" } else { "b" })
        .collect();
    for solver in [Solver::Bcd, Solver::Lpgd] {
        for variant in [Variant::Filter, Variant::Feature] {
            let config = SupervisedDictionaryConfig {
                n_components: 3,
                ..config(variant, solver)
            };
            let model =
                SupervisedDictionary::fit(&x, &Labels::new(&names), &config, &NoProgress).unwrap();
            let p = model.predict_proba(&x).unwrap();
            assert!(p.iter().all(|p| p.is_finite()), "{solver:?} {variant:?}");
        }
    }
}

#![allow(clippy::unwrap_used)]

use super::*;
use proptest::prelude::*;

fn rows(numbers: &[f64], columns: usize) -> Table {
    Table::new(columns, numbers.to_vec()).unwrap()
}

#[test]
fn known_answer_of_four_rows() {
    let x = rows(&[0.0, 2.0, 10.0, 14.0], 1);
    let labels = Labels::new(&["a", "a", "b", "b"]);
    let model = NaiveBayes::fit(&x, &labels, &NaiveBayesConfig::reference()).unwrap();
    assert_eq!(model.means(), [1.0, 12.0]);
    // Variances 1 and 4, in equal parts.
    assert!((model.variances()[0] - 2.5 - 1e-9).abs() < 1e-12);
    // Half way between the means both are equal.
    let p = model.predict_proba(&rows(&[6.5, 7.5], 1)).unwrap();
    assert!((p[0] - 0.5).abs() < 1e-9 && p[3] > 0.98);
}

proptest! {
    #[test]
    fn rows_in_any_parts_give_what_all_at_once_give(
        numbers in prop::collection::vec(-100f64..100.0, 3 * 12),
        codes in prop::collection::vec(0usize..3, 12),
        cut in 1usize..11,
        per_class: bool,
    ) {
        let variances = if per_class { Variances::PerClass } else { Variances::Shared };
        let config = NaiveBayesConfig { variances, floor: 1e-3, ..Default::default() };
        let names: Vec<&str> = codes.iter().map(|&c| ["x", "y", "z"][c]).collect();
        prop_assume!(codes.iter().any(|&c| c != codes[0]));
        let x = rows(&numbers, 3);
        let whole = NaiveBayes::fit(&x, &Labels::new(&names), &config).unwrap();
        let mut parts = NaiveBayes::new(3, &config).unwrap();
        let all: Vec<usize> = (0..12).collect();
        for part in [&all[..cut], &all[cut..]] {
            let some: Vec<&str> = part.iter().map(|&i| names[i]).collect();
            parts.partial_fit(&x.select(part), &Labels::new(&some)).unwrap();
        }
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-9 * (1.0 + a.abs());
        for (k, class) in whole.classes().iter().enumerate() {
            let j = parts.classes().iter().position(|c| c == class).unwrap();
            prop_assert_eq!(whole.counts[k], parts.counts[j]);
            for f in 0..3 {
                prop_assert!(near(whole.means[k * 3 + f], parts.means[j * 3 + f]));
                prop_assert!(near(whole.squares[k * 3 + f], parts.squares[j * 3 + f]));
            }
        }
        // And forgetting the second part leaves the first.
        let some: Vec<&str> = names[cut..].to_vec();
        let mut back = parts.clone();
        back.forget(&x.select(&all[cut..]), &Labels::new(&some)).unwrap();
        let mut first = NaiveBayes::new(3, &config).unwrap();
        first.partial_fit(&x.select(&all[..cut]), &Labels::new(&names[..cut])).unwrap();
        for (k, class) in first.classes().iter().enumerate() {
            let j = back.classes().iter().position(|c| c == class).unwrap();
            prop_assert_eq!(first.counts[k], back.counts[j]);
            for f in 0..3 {
                prop_assert!((first.means[k * 3 + f] - back.means[j * 3 + f]).abs() < 1e-9);
                prop_assert!((first.squares[k * 3 + f] - back.squares[j * 3 + f]).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn shared_variances_make_the_linear_layer_that_the_definition_gives(
        numbers in prop::collection::vec(-5f64..5.0, 2 * 9),
        at in prop::collection::vec(-5f64..5.0, 2),
    ) {
        let names: Vec<String> = (0..9).map(|i| (i % 3).to_string()).collect();
        let config = NaiveBayesConfig { floor: 0.1, ..Default::default() };
        let model = NaiveBayes::fit(&rows(&numbers, 2), &Labels::new(&names), &config).unwrap();
        let v = model.variances();
        let mut want: Vec<f64> = (0..3).map(|k| {
            let sum: f64 = (0..2).map(|f| (at[f] - model.means[k * 2 + f]).powi(2) / v[f]).sum();
            (1f64 / 3.0).ln() - 0.5 * sum
        }).collect();
        crate::algebra::softmax(&mut want);
        let got = model.predict_proba(&rows(&at, 2)).unwrap();
        prop_assert!(want.iter().zip(&got).all(|(a, b)| (a - b).abs() < 1e-9));
    }
}

#[test]
fn constant_columns_a_class_of_one_row_and_one_class() {
    let x = rows(&[1.0, 5.0, 1.0, 5.0, 1.0, 6.0], 2);
    let labels = Labels::new(&["a", "a", "b"]);
    for variances in [Variances::Shared, Variances::PerClass] {
        let config = NaiveBayesConfig {
            variances,
            ..Default::default()
        };
        let model = NaiveBayes::fit(&x, &labels, &config).unwrap();
        let p = model.predict_proba(&x).unwrap();
        assert!(p.iter().all(|p| p.is_finite()), "{p:?}");
        assert_eq!(model.predict(&x).unwrap(), [0, 0, 1]);
    }
    // Nothing varies: the more frequent class is all that is known.
    let same = rows(&[1.0, 1.0, 1.0], 1);
    let model = NaiveBayes::fit(&same, &labels, &NaiveBayesConfig::default()).unwrap();
    let p = model.predict_proba(&rows(&[9.0], 1)).unwrap();
    assert!((p[0] - 2.0 / 3.0).abs() < 1e-12, "{p:?}");
    let one = Labels::new(&["a", "a", "a"]);
    assert!(matches!(
        NaiveBayes::fit(&x, &one, &NaiveBayesConfig::default()),
        Err(PredictError::OneClass { .. })
    ));
}

#[test]
fn a_forgotten_class_is_never_predicted_and_too_much_is_not_forgotten() {
    let x = rows(&[0.0, 1.0, 5.0, 6.0], 1);
    let labels = Labels::new(&["a", "a", "b", "b"]);
    let mut model = NaiveBayes::fit(&x, &labels, &NaiveBayesConfig::default()).unwrap();
    let (last, names) = (x.select(&[2, 3]), labels.select(&[2, 3]));
    model.forget(&last, &names).unwrap();
    assert_eq!(model.predict(&x).unwrap(), [0; 4]);
    assert!(model.forget(&last, &names).is_err());
    assert!(
        NaiveBayes::new(1, &NaiveBayesConfig::default())
            .unwrap()
            .predict(&x)
            .is_err()
    );
}

#[test]
fn a_large_mean_with_a_small_variance_keeps_its_digits() {
    let x = rows(&[1e8, 1e8 + 1.0, 1e8 + 2.0, 0.0], 1);
    let labels = Labels::new(&["a", "a", "a", "b"]);
    let model = NaiveBayes::fit(&x, &labels, &NaiveBayesConfig::default()).unwrap();
    assert!((model.squares()[0] - 2.0).abs() < 1e-12);
}

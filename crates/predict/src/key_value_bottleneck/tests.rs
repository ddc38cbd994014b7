#![allow(clippy::unwrap_used)]

use keyfold_core::{NoProgress, StopAfter};
use proptest::prelude::*;

use super::*;

fn config() -> KeyValueBottleneckConfig {
    KeyValueBottleneckConfig {
        num_codebooks: 8,
        key_value_pairs_per_codebook: 32,
        dim_keys: 4,
        init_batch: 40,
        epochs: 60,
        ..Default::default()
    }
}

/// Groups of rows, one for each class, apart from each other.
fn groups(classes: &[usize], each: usize, seed: u64) -> (Table, Vec<String>) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let (mut numbers, mut names) = (Vec::new(), Vec::new());
    for _ in 0..each {
        for &class in classes {
            names.push(format!("c{class}"));
            for f in 0..6 {
                let center = f64::from(u8::from(f == class)) * 3.0;
                numbers.push(center + 0.3 * f64::from(normal(&mut rng)));
            }
        }
    }
    (Table::new(6, numbers).unwrap(), names)
}

#[test]
fn classes_that_come_later_leave_the_old_ones_as_they_were() {
    let (all, _) = groups(&[0, 1, 2, 3, 4, 5], 20, 1);
    let mut model = KeyValueBottleneck::new(6, &config()).unwrap();
    model.fit_keys(&all, &NoProgress).unwrap();
    for task in [[0, 1], [2, 3], [4, 5]] {
        let (x, names) = groups(&task, 25, 2);
        model
            .partial_fit(&x, &Labels::new(&names), &NoProgress)
            .unwrap();
    }
    assert_eq!(model.classes(), ["c0", "c1", "c2", "c3", "c4", "c5"]);
    let (x, names) = groups(&[0, 1, 2, 3, 4, 5], 30, 3);
    let accuracy = model.score(&x, &Labels::new(&names)).unwrap();
    assert!(accuracy > 0.97, "{accuracy}");
    // A class can be taken out; the others are told as before.
    model.forget("c2").unwrap();
    let told = model.predict(&x).unwrap();
    let right = told
        .iter()
        .zip(&names)
        .filter(|(t, n)| model.classes()[**t] == **n);
    assert!(right.count() as f64 / names.len() as f64 > 0.8);
    assert!(!model.classes().contains(&"c2".to_owned()));
    assert!(model.forget("c2").is_err());
}

#[test]
fn only_values_that_are_looked_up_move() {
    let (x, names) = groups(&[0, 1], 20, 4);
    let mut model =
        KeyValueBottleneck::fit(&x, &Labels::new(&names), &config(), &NoProgress).unwrap();
    let before = model.values().to_vec();
    let (more, names) = groups(&[0, 1], 3, 5);
    let found = model.look_up(&more, false).unwrap();
    model
        .partial_fit(&more, &Labels::new(&names), &NoProgress)
        .unwrap();
    for book in 0..8 {
        for pair in 0..32 {
            let touched = found.chunks(8).any(|row| row[book] == pair as u32);
            let place = (book * 32 + pair) * 2;
            let same = before[place..place + 2] == model.values()[place..place + 2];
            assert!(touched || same, "{book} {pair}");
        }
    }
}

#[test]
fn an_explanation_names_the_pairs_and_the_rows_that_filled_them() {
    let (x, names) = groups(&[0, 1, 2], 20, 6);
    let labels = Labels::new(&names);
    let model = KeyValueBottleneck::fit(&x, &labels, &config(), &NoProgress).unwrap();
    let told = model.explain(x.row(7), 5).unwrap();
    assert_eq!(told.votes.len(), 8);
    let class = model.decide(&told.scores);
    assert_eq!(model.classes()[class], names[7]);
    // The mean of the votes is the score.
    let mean: f64 = told.votes.iter().map(|v| f64::from(v.value)).sum::<f64>() / 8.0;
    assert!((mean - told.scores[class]).abs() < 1e-6);
    // The row itself shares all pairs, and so do others of its class before any stranger.
    assert_eq!(told.rows[0].1, 8);
    assert!(told.rows.iter().any(|(row, _)| *row == 7));
    assert!(told.rows.iter().all(|(row, _)| names[*row] == names[7]));
    assert!(
        told.votes
            .iter()
            .all(|v| v.count > 0 && v.distance.is_finite())
    );
}

#[test]
fn two_tables_with_the_same_keys_become_one() {
    let (all, _) = groups(&[0, 1, 2, 3], 20, 7);
    let mut keys = KeyValueBottleneck::new(6, &config()).unwrap();
    keys.fit_keys(&all, &NoProgress).unwrap();
    let learn = |task: &[usize]| {
        let (x, names) = groups(task, 20, 8);
        let mut model = keys.clone();
        model
            .partial_fit(&x, &Labels::new(&names), &NoProgress)
            .unwrap();
        model
    };
    let mut both = learn(&[0, 1]);
    both.merge(&learn(&[2, 3])).unwrap();
    let (x, names) = groups(&[0, 1, 2, 3], 20, 9);
    let accuracy = both.score(&x, &Labels::new(&names)).unwrap();
    assert!(accuracy > 0.95, "{accuracy}");
    let other = KeyValueBottleneck::new(
        6,
        &KeyValueBottleneckConfig {
            seed: 9,
            ..config()
        },
    );
    assert!(both.merge(&other.unwrap()).is_err());
}

#[test]
fn keys_of_all_kinds_are_placed_where_rows_are() {
    let (x, names) = groups(&[0, 1, 2], 40, 10);
    let labels = Labels::new(&names);
    for init_mode in [InitMode::Random, InitMode::Kmeans] {
        for (topk, optimizer, lr) in [(1, Optimizer::Sgd, 0.3), (3, Optimizer::Adam, 0.05)] {
            let config = KeyValueBottleneckConfig {
                init_mode,
                topk,
                optimizer,
                lr,
                init_values: 0.001,
                // The random start takes some steps to wear off.
                init_epochs: 40,
                ..config()
            };
            let model = KeyValueBottleneck::fit(&x, &labels, &config, &NoProgress).unwrap();
            let again = KeyValueBottleneck::fit(&x, &labels, &config, &NoProgress).unwrap();
            assert_eq!(model, again);
            let accuracy = model.score(&x, &labels).unwrap();
            assert!(accuracy > 0.97, "{init_mode:?} {topk}: {accuracy}");
            let unused = model.unused();
            assert!(unused < 0.7, "{init_mode:?} {topk}: {unused}");
        }
    }
}

#[test]
fn cut_rows_look_up_the_nearest_key_of_each_part() {
    let config = KeyValueBottleneckConfig {
        num_codebooks: 2,
        key_value_pairs_per_codebook: 2,
        dim_keys: 1,
        splitting_mode: Split::Chunk,
        ..config()
    };
    let model = KeyValueBottleneck::new(2, &config).unwrap();
    let model = model.with_keys(None, &[0.0, 1.0, 10.0, 20.0]).unwrap();
    let x = Table::new(2, vec![0.4, 16.0, 0.6, 14.0]).unwrap();
    assert_eq!(model.look_up(&x, false).unwrap(), [0, 1, 1, 0]);
}

#[test]
fn what_comes_in_the_wrong_order_or_shape_is_refused_by_name() {
    let (x, names) = groups(&[0, 1], 5, 11);
    let labels = Labels::new(&names);
    let mut model = KeyValueBottleneck::new(6, &config()).unwrap();
    let early = model.partial_fit(&x, &labels, &NoProgress).unwrap_err();
    assert!(early.to_string().contains("fit_keys"), "{early}");
    assert!(matches!(model.logits(&x), Err(PredictError::NotReady(_))));
    let cut = KeyValueBottleneckConfig {
        splitting_mode: Split::Chunk,
        ..config()
    };
    let error = KeyValueBottleneck::new(6, &cut).unwrap_err().to_string();
    assert!(error.contains("32 columns"), "{error}");
    let none = KeyValueBottleneckConfig {
        topk: 0,
        ..config()
    };
    assert!(KeyValueBottleneck::new(6, &none).is_err());
    let mut fixed = model.clone().with_classes(&["c0".to_owned()]);
    fixed.fit_keys(&x, &NoProgress).unwrap();
    let error = fixed.partial_fit(&x, &labels, &NoProgress).unwrap_err();
    assert!(matches!(error, PredictError::UnknownClass { .. }));
    let stopped = KeyValueBottleneck::fit(&x, &labels, &config(), &StopAfter::new(3));
    assert!(matches!(stopped, Err(PredictError::Cancelled)));
    let mut learned = KeyValueBottleneck::fit(&x, &labels, &config(), &NoProgress).unwrap();
    assert!(learned.fit_keys(&x, &NoProgress).is_err());
    let one = KeyValueBottleneck::fit(&x, &Labels::new(&["a"; 10]), &config(), &NoProgress);
    assert!(matches!(one, Err(PredictError::OneClass { .. })));
}

#[test]
fn a_table_larger_than_the_rows_and_constant_rows_are_no_trouble() {
    let x = Table::new(6, vec![0.5; 6 * 4]).unwrap();
    let labels = Labels::new(&["a", "b", "a", "b"]);
    for dead_factor in [0.0, 0.1] {
        let config = KeyValueBottleneckConfig {
            dead_factor,
            eps: 0.0,
            ..config()
        };
        let model = KeyValueBottleneck::fit(&x, &labels, &config, &NoProgress).unwrap();
        let p = model.predict_proba(&x).unwrap();
        assert!(p.iter().all(|p| (p - 0.5).abs() < 1e-3), "{p:?}");
        assert!(model.keys().iter().all(|k| k.is_finite()));
    }
}

#[test]
fn decoders_with_weights_learn_first_and_then_hold_still() {
    let (all, _) = groups(&[0, 1, 2, 3], 20, 1);
    for decoder in [Decoder::LinearProbe, Decoder::Mlp] {
        let config = KeyValueBottleneckConfig {
            decoder,
            dim_values: 6,
            decoder_hidden: 16,
            decoder_lr: 1e-2,
            ..config()
        };
        let mut model = KeyValueBottleneck::new(6, &config).unwrap();
        model.fit_keys(&all, &NoProgress).unwrap();
        let mut networks = Vec::new();
        for task in [[0, 1], [2, 3]] {
            let (x, names) = groups(&task, 25, 2);
            let labels = Labels::new(&names);
            model.partial_fit(&x, &labels, &NoProgress).unwrap();
            networks.push(model.network.clone().unwrap());
        }
        // What was learned with the first classes is as it was; those that came later were drawn.
        let mut grown = networks[1].clone();
        grown.layers.remove(3);
        grown.layers.remove(2);
        assert_eq!(grown, networks[0], "{decoder:?}");
        assert_eq!(model.values().len(), 8 * 32 * 6);
        let (x, names) = groups(&[0, 1, 2, 3], 30, 3);
        let accuracy = model.score(&x, &Labels::new(&names)).unwrap();
        assert!(accuracy > 0.95, "{decoder:?}: {accuracy}");
        // What pairs say explains the class that is told.
        let told = model.explain(x.row(5), 3).unwrap();
        let class = model.decide(&told.scores);
        let for_it = told
            .votes
            .iter()
            .filter(|v| v.class == model.classes()[class]);
        assert!(for_it.count() >= 4, "{:?}", told.votes);
        let mut tensors = crate::tensors::Tensors::default();
        model.save(&mut tensors);
        let classes = model.classes().to_vec();
        let again = KeyValueBottleneck::load(config, classes, 6, model.progress(), &mut tensors);
        let again = again.unwrap();
        assert_eq!(again.logits(&x).unwrap(), model.logits(&x).unwrap());
        assert_eq!(again.network, model.network);
        assert!(model.clone().merge(&again).is_err());
        model.forget("c3").unwrap();
        assert_eq!(model.logits(&x).unwrap().len(), 3 * x.rows());
    }
    let wrong = KeyValueBottleneckConfig {
        decoder: Decoder::Mlp,
        topk: 2,
        ..config()
    };
    assert!(KeyValueBottleneck::new(6, &wrong).is_err());
}

#[test]
fn a_learned_projection_is_read_as_the_authors_keep_it() {
    let config = KeyValueBottleneckConfig {
        num_codebooks: 2,
        key_value_pairs_per_codebook: 2,
        dim_keys: 2,
        splitting_mode: Split::LearnedProjection,
        ..config()
    };
    let model = KeyValueBottleneck::new(3, &config).unwrap();
    // Outputs in the order (number of the key, codebook): book 0 sees columns 0 and 2, book 1
    // columns 1 and 0.
    let projection = [1., 0., 0., 0., 1., 0., 0., 0., 1., 1., 0., 0.];
    let keys = [0., 0., 9., 9., 0., 0., 9., 9.];
    let model = model.with_keys(Some(&projection), &keys).unwrap();
    let x = Table::new(3, vec![9.0, 1.0, 9.0, 1.0, 9.0, 1.0]).unwrap();
    assert_eq!(model.heads(&x).unwrap(), [9., 9., 1., 9., 1., 1., 9., 1.]);
    assert_eq!(model.look_up(&x, false).unwrap()[0], 1);
    let mut tensors = crate::tensors::Tensors::default();
    model.save(&mut tensors);
    let kept: Vec<f32> = tensors.shaped("splitter.proj.weight", &[4, 3]).unwrap();
    assert_eq!(kept, projection);
}

proptest! {
    #[test]
    fn the_pair_found_is_the_nearest(
        numbers in prop::collection::vec(-3f32..3.0, 2 * 9 * 2),
        heads in prop::collection::vec(-3f64..3.0, 4),
    ) {
        let config = KeyValueBottleneckConfig {
            num_codebooks: 2,
            key_value_pairs_per_codebook: 9,
            dim_keys: 2,
            splitting_mode: Split::Chunk,
            topk: 3,
            ..config()
        };
        let model = KeyValueBottleneck::new(4, &config).unwrap().with_keys(None, &numbers).unwrap();
        let found = model.look_up(&Table::new(4, heads.clone()).unwrap(), false).unwrap();
        for book in 0..2 {
            let distance = |pair: usize| -> f64 {
                let at = (book * 9 + pair) * 2;
                (0..2).map(|f| (f64::from(numbers[at + f]) - heads[book * 2 + f]).powi(2)).sum()
            };
            let mut all: Vec<f64> = (0..9).map(distance).collect();
            all.sort_by(f64::total_cmp);
            for (i, want) in all.iter().take(3).enumerate() {
                let got = distance(found[book * 3 + i] as usize);
                prop_assert!((got - want).abs() < 1e-4, "{got} {want}");
            }
        }
    }
}

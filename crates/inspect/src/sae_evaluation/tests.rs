use keyfold_core::NoProgress;
use keyfold_dictionary::sae::{Activation, Normalize};

use super::*;
use crate::random::normal;

/// Rows `b + u_f(v) + noise` of two attributes with 4 and 2 values.
fn planted(n: usize, noise: f64, seed: u64) -> (Vec<f32>, Vec<Attribute>, Vec<Vec<f32>>) {
    let d = 8;
    let mut rng = StdRng::seed_from_u64(seed);
    let mut vectors =
        |count: usize| -> Vec<f32> { (0..count * d).map(|_| normal(&mut rng) as f32).collect() };
    let codes = vec![vectors(4), vectors(2)];
    let b = vectors(1);
    let of: [Vec<usize>; 2] = [
        (0..n).map(|i| (i * 7 + i / 3) % 4).collect(),
        (0..n).map(|i| (i / 2) % 2).collect(),
    ];
    let mut rows = Vec::new();
    for i in 0..n {
        for j in 0..d {
            let sum = b[j] + codes[0][of[0][i] * d + j] + codes[1][of[1][i] * d + j];
            rows.push(sum + (noise * normal(&mut rng)) as f32);
        }
    }
    let [first, second] = of;
    let attributes = vec![
        Attribute::numbered("a", 4, first),
        Attribute::numbered("b", 2, second),
    ];
    (rows, attributes, codes)
}

#[test]
fn least_squares_codes_leave_nothing_of_a_planted_dictionary() {
    let (rows, attributes, codes) = planted(200, 0.0, 1);
    let mse = SupervisedDictionary::mse_codes(&rows, 8, &attributes).unwrap();
    assert!(unexplained(&rows, &mse.reconstruct(&attributes), 8) < 1e-9);
    let mean = SupervisedDictionary::mean_codes(&rows, 8, &attributes).unwrap();
    let left = unexplained(&rows, &mean.reconstruct(&attributes), 8);
    assert!(left < 0.05, "{left}");
    // An edit moves a row by the difference of two codes.
    let mut row = rows[..8].to_vec();
    let old = attributes[0].of[0];
    mse.edit(&mut row, 0, old, (old + 1) % 4);
    for j in 0..8 {
        let moved = codes[0][(old + 1) % 4 * 8 + j] - codes[0][old * 8 + j];
        assert!((row[j] - rows[j] - moved).abs() < 1e-4);
    }
    let weights = mse.weights(&[0, 1]);
    assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-6);
}

#[test]
fn mean_codes_are_means() {
    let rows = [1.0, 3.0, 8.0];
    let attribute = Attribute::numbered("a", 3, vec![0, 0, 1]);
    let found = SupervisedDictionary::mean_codes(&rows, 1, &[attribute]).unwrap();
    assert_eq!(
        (found.b[0], &found.codes[0][..]),
        (4.0, &[-2.0, 4.0, 0.0][..])
    );
    let short = Attribute::numbered("a", 3, vec![0]);
    assert!(SupervisedDictionary::mean_codes(&rows, 1, &[short]).is_err());
    let outside = Attribute::numbered("a", 1, vec![0, 0, 1]);
    assert!(SupervisedDictionary::mse_codes(&rows, 1, &[outside]).is_err());
}

/// An autoencoder whose features are the axes, both ways.
fn axes(d: usize, scale: f32) -> ScaledSae {
    let mut w = vec![0.0; 2 * d * d];
    for i in 0..d {
        w[i * d + i] = 1.0;
        w[(d + i) * d + i] = -1.0;
    }
    let sae = Sae {
        d_in: d,
        d_sae: 2 * d,
        d_out: d,
        activation: Activation::Relu,
        normalize: Normalize::None,
        apply_b_dec_to_input: true,
        rescale_acts_by_decoder_norm: false,
        w_enc: w.clone(),
        b_enc: vec![0.0; 2 * d],
        w_dec: w,
        b_dec: vec![0.0; d],
        w_skip: Vec::new(),
    };
    ScaledSae { sae, scale }
}

#[test]
fn a_greedy_edit_takes_the_largest_changes_first() {
    for scale in [1.0, 4.0] {
        let sae = axes(3, scale);
        let (clean, target) = ([1.0, 2.0, 0.0], [1.0, -1.0, 0.5]);
        let (a, b) = (sae.code(&clean).unwrap(), sae.code(&target).unwrap());
        assert_eq!(a.rows, clean);
        let edit = edits::greedy(&sae, (&clean, &a), (&target, &b), 0, 1);
        assert_eq!((edit.features, edit.row), (vec![1], vec![1.0, 0.0, 0.0]));
        assert!((edit.weight - 0.8).abs() < 1e-6, "4 of 5");
        let edit = edits::greedy(&sae, (&clean, &a), (&target, &b), 0, 8);
        assert_eq!((edit.features, edit.row), (vec![1, 4, 2], target.to_vec()));
    }
}

#[test]
fn an_edit_by_meaning_takes_out_and_puts_in() {
    let sae = axes(3, 2.0);
    let (clean, target) = ([1.0, 2.0, 0.0], [1.0, 0.0, 3.0]);
    let (a, b) = (sae.code(&clean).unwrap(), sae.code(&target).unwrap());
    let (old, new): (Vec<u32>, Vec<u32>) = ((0..6).rev().collect(), vec![2, 0, 1, 3, 4, 5]);
    let edit = edits::by_score(&sae, (&clean, &a), &b, 0, (&old, &new), 1);
    assert_eq!((edit.features, edit.added), (vec![1], vec![2]));
    assert_eq!(edit.row, [1.0, 0.0, 3.0]);
}

#[test]
fn scores_are_counts() {
    // Feature 0 is on for value 0 alone; 1 for both; 2 for half of value 1; 3 never.
    let dense = [
        [1.0, 1.0, 0.0, 0.0],
        [2.0, 1.0, 0.0, 0.0],
        [0.0, 1.0, 1.0, 0.0],
        [0.0, 1.0, 0.0, 0.0],
    ];
    let codes = Codes::from_dense(dense.as_flattened(), 4);
    let found = scores::Scores::of(&codes, &Attribute::numbered("a", 2, vec![0, 0, 1, 1]));
    assert_eq!(found.get(0, 0).f1, 1.0);
    let all = found.get(1, 0);
    assert!(all.precision == 0.5 && all.recall == 1.0 && (all.f1 - 2.0 / 3.0).abs() < 1e-12);
    assert!((found.get(2, 1).f1 - 2.0 / 3.0).abs() < 1e-12);
    assert_eq!(found.get(3, 0).f1, f64::NEG_INFINITY);
    assert_eq!(found.ranking()[0][..2], [0, 1]);
    assert_eq!(found.ranking()[1].last(), Some(&3));
    // Feature 1 stands for both values together.
    let meanings = found.meanings(0.8);
    let of: Vec<(usize, usize)> = meanings
        .iter()
        .map(|m| (m.feature, m.values.len()))
        .collect();
    assert_eq!(of, [(0, 1), (1, 2)]);
    let splitting = found.splitting();
    assert_eq!((splitting[0].precise, splitting[0].needed), (1, Some(1)));
    assert_eq!((splitting[1].precise, splitting[1].needed), (1, None));
}

#[test]
fn weights_of_features_sum_to_one() {
    let (rows, ..) = planted(64, 0.1, 2);
    let config = SaeConfig {
        d_sae: 16,
        k: 4,
        batch_size: 32,
        lr: 1e-3,
        ..SaeConfig::default()
    };
    let sae = train_sae(&rows, 8, None, config, 5, &NoProgress).unwrap();
    let coded = sae.code(&rows).unwrap();
    for row in 0..64 {
        let sum: f64 = sae.weights(&coded, row).iter().sum();
        let any = !coded.codes.row(row).0.is_empty();
        assert!(!any || (sum - 1.0).abs() < 1e-3, "{sum}");
    }
    assert!(sae.check(7).is_err());
}

#[test]
fn the_scale_makes_the_mean_length_that_of_the_width() {
    let rows = [3.0, 4.0, 0.0, 15.0];
    let scale = scale_of(&rows, 2).unwrap();
    assert!((scale - 10.0 / 2f32.sqrt()).abs() < 1e-5);
    assert!(scale_of(&[0.0, 0.0], 2).is_err());
}

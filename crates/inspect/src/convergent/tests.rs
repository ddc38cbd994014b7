use proptest::prelude::*;
use rand::Rng;

use super::*;

fn random(samples: usize, width: usize, seed: u64) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..samples * width)
        .map(|_| rng.random_range(-1.0..1.0))
        .collect()
}

fn activations(values: Vec<f32>, width: usize) -> Activations {
    Activations::new("test", values, width).unwrap()
}

/// Every way to give columns to rows, by their sums.
fn best_sum(scores: &Mat<f64>, row: usize, taken: &mut Vec<bool>) -> f64 {
    if row == scores.nrows() {
        return 0.0;
    }
    let mut best = f64::NEG_INFINITY;
    for j in 0..scores.ncols() {
        if !taken[j] {
            taken[j] = true;
            best = best.max(scores[(row, j)] + best_sum(scores, row + 1, taken));
            taken[j] = false;
        }
    }
    best
}

proptest! {
    #[test]
    fn the_assignment_has_the_greatest_sum(
        rows in 1usize..6, more in 0usize..3,
        numbers in prop::collection::vec(-1.0f64..1.0, 48),
    ) {
        let scores = Mat::from_fn(rows, rows + more, |i, j| numbers[i * 8 + j]);
        let want = best_sum(&scores, 0, &mut vec![false; rows + more]);
        for (scores, pairs) in [
            (scores.clone(), matching(scores.as_ref())),
            (scores.transpose().to_owned(), matching(scores.transpose())),
        ] {
            prop_assert_eq!(pairs.len(), rows);
            let mut partners: Vec<usize> = pairs.iter().map(|p| p.partner).collect();
            partners.sort_unstable();
            partners.dedup();
            prop_assert_eq!(partners.len(), rows, "no unit twice");
            let sum: f64 = pairs.iter().map(|p| scores[(p.unit, p.partner)]).sum();
            prop_assert!((sum - want).abs() < 1e-9, "{} {}", sum, want);
        }
    }

    #[test]
    fn correlations_do_not_see_scale_and_shift(
        seed in 0u64..1000, scale in 0.1f32..100.0, shift in -50.0f32..50.0,
    ) {
        let x = random(40, 3, seed);
        let y: Vec<f32> = x.iter().map(|x| x * scale + shift).collect();
        let c = correlations(&activations(x, 3), &activations(y, 3)).unwrap();
        for i in 0..3 {
            prop_assert!((c.between()[(i, i)] - 1.0).abs() < 1e-4);
        }
    }
}

#[test]
fn a_network_is_found_in_its_permuted_self() {
    let x = random(300, 5, 1);
    let order = [3, 1, 4, 0, 2];
    let y = x.chunks_exact(5).flat_map(|row| order.map(|j| row[j]));
    let c = correlations(&activations(x.clone(), 5), &activations(y.collect(), 5)).unwrap();
    for pairs in [greedy(c.between()), matching(c.between())] {
        assert!(
            pairs
                .iter()
                .all(|p| order[p.partner] == p.unit && p.score > 0.999)
        );
    }
    let found = OneToOne::of(c.between());
    assert!(found.same == 1.0 && found.greedy > 0.999);
}

#[test]
fn shuffled_samples_lose_what_units_share() {
    let x = activations(random(2000, 5, 1), 5);
    let c = correlations(&x, &x.shuffled(1)).unwrap();
    assert!(OneToOne::of(c.between()).greedy < 0.1);
    assert_eq!(x.shuffled(1), x.shuffled(1));
}

#[test]
fn large_means_lose_no_digits() {
    let x: Vec<f32> = random(5000, 2, 1).iter().map(|x| x + 1000.0).collect();
    let c = correlations(&activations(x.clone(), 2), &activations(x, 2)).unwrap();
    assert!((c.between()[(0, 0)] - 1.0).abs() < 1e-9);
    assert!(
        (c.a.deviation[0] - 1.0 / 3f64.sqrt()).abs() < 0.01,
        "{:?}",
        c.a
    );
}

#[test]
fn units_that_stand_still_are_named_and_left_out() {
    let mut x = random(50, 3, 1);
    x.iter_mut().skip(1).step_by(3).for_each(|x| *x = 7.0);
    let c = correlations(&activations(x, 3), &activations(random(50, 2, 2), 2)).unwrap();
    assert_eq!((&c.a.live[..], &c.a.dead[..]), (&[0, 2][..], &[1][..]));
    assert_eq!(c.between().nrows(), 2);
    assert!((0..2).all(|i| (0..2).all(|j| c.between()[(i, j)].is_finite())));
    let still = activations(vec![1.0; 50], 1);
    let error = correlations(&still, &still).unwrap_err().to_string();
    assert!(error.contains("no unit of the first"), "{error}");
}

#[test]
fn few_samples_and_unequal_numbers_are_refused() {
    assert!(Activations::new("a", vec![1.0; 4], 2).is_err());
    assert!(Activations::new("a", vec![1.0, f32::NAN, 0.0], 1).is_err());
    let (a, b) = (
        activations(random(5, 2, 1), 2),
        activations(random(6, 2, 1), 2),
    );
    let error = correlations(&a, &b).unwrap_err().to_string();
    assert!(error.contains("5 against 6"), "{error}");
}

#[test]
fn maps_become_samples_or_means() {
    // Two rows of two maps of three places.
    let rows: Vec<f32> = (0..12).map(|i| i as f32).collect();
    let places = Activations::from_maps("a", &rows, 6, 2, false).unwrap();
    assert_eq!(places.values()[..4], [0.0, 3.0, 1.0, 4.0]);
    assert_eq!(places.samples(), 6);
    let rows: Vec<f32> = (0..18).map(|i| i as f32).collect();
    let pooled = Activations::from_maps("a", &rows, 6, 2, true).unwrap();
    assert_eq!(pooled.values()[..4], [1.0, 4.0, 7.0, 10.0]);
    assert!(Activations::from_maps("a", &rows, 6, 4, true).is_err());
}

#[test]
fn information_sees_what_correlation_does_not() {
    // y is large where x is far from the middle: no correlation, but information.
    let x: Vec<f32> = random(4000, 1, 1).iter().map(|x| x + 1.0).collect();
    let y: Vec<f32> = x.iter().map(|x| (x - 1.0).powi(2)).collect();
    let (x, y, z) = (
        activations(x, 1),
        activations(y, 1),
        activations(random(4000, 1, 9), 1),
    );
    let of = |a: &Activations, b: &Activations| {
        let c = correlations(a, b).unwrap();
        let found = mutual_information((a, &c.a), (b, &c.b)).unwrap();
        (c.between()[(0, 0)].abs(), found.nats[(0, 0)], found.bias)
    };
    let (correlation, nats, bias) = of(&x, &y);
    assert!(correlation < 0.06 && nats > 1.0, "{correlation} {nats}");
    let (_, nothing, _) = of(&x, &z);
    assert!(nothing < 2.0 * bias, "{nothing} {bias}");
    let (_, all, _) = of(&x, &x);
    assert!(all > nats);
}

#[test]
fn a_unit_that_is_a_sum_of_two_is_found_by_the_lasso() {
    let x = random(600, 6, 1);
    let sum: Vec<f32> = x.chunks_exact(6).map(|r| r[1] - 0.5 * r[4]).collect();
    let (a, b) = (activations(x, 6), activations(sum, 1));
    let found = sparse_prediction(&a, &b, 400, &[1e-3, 10.0]).unwrap();
    let (single, sparse, nothing) = (&found[0], &found[1], &found[2]);
    assert!(
        single.alpha.is_none() && (0.1..0.4).contains(&single.error),
        "{single:?}"
    );
    assert!(sparse.error < 1e-3 && sparse.weights == 2.0, "{sparse:?}");
    let from: Vec<usize> = sparse.units[0].from.iter().map(|f| f.0).collect();
    assert_eq!(from, [1, 4]);
    assert!(
        nothing.weights == 0.0 && (nothing.error - 1.0).abs() < 0.05,
        "{nothing:?}"
    );
    assert!(sparse_prediction(&a, &b, 599, &[0.1]).is_err());
}

#[test]
fn groups_of_units_are_found_over_both_networks() {
    // Three hidden numbers; each network has two noisy units of each.
    let hidden = random(500, 3, 1);
    let mut rng = StdRng::seed_from_u64(2);
    let mut units = || -> Vec<f32> {
        let row = |h: &[f32]| -> Vec<f32> {
            (0..6)
                .map(|j| h[j % 3] + rng.random_range(-0.2..0.2))
                .collect()
        };
        hidden.chunks_exact(3).flat_map(row).collect()
    };
    let c = correlations(&activations(units(), 6), &activations(units(), 6)).unwrap();
    let found = clusters(&c, 3).unwrap();
    assert_eq!(found.len(), 3);
    for cluster in &found {
        assert_eq!((cluster.a.len(), &cluster.a), (2, &cluster.b));
        assert_eq!(cluster.a[0] % 3, cluster.a[1] % 3);
        assert!(cluster.coherence > 0.8);
    }
    assert_eq!(clusters(&c, 100).unwrap().len(), 12);
    assert!(clusters(&c, 0).is_err());
}

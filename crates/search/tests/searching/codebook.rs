//! Token vectors as few bytes.

use keyfold_core::Vectors;
use keyfold_kernels::{MaxSim, dot};
use keyfold_search::codebook::{Bits, Codebook, CodebookError, centroids_for, sample_size};
use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const ALL: [Bits; 3] = [Bits::Two, Bits::Four, Bits::Eight];

/// Rows around a few directions, as token vectors are.
pub(crate) fn rows(n: usize, dim: usize, seed: u64) -> Vec<f32> {
    let mut rng = SmallRng::seed_from_u64(99);
    let types: Vec<Vec<f32>> = (0..40)
        .map(|_| (0..dim).map(|_| rng.random_range(-1.0..1.0)).collect())
        .collect();
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut out = Vec::new();
    for _ in 0..n {
        let direction = &types[rng.random_range(0..types.len())];
        out.extend(direction.iter().map(|x| x + rng.random_range(-0.6..0.6)));
    }
    Vectors::new(dim, out).unwrap().normalized().into_vec()
}

fn decode(book: &Codebook, rows: &[f32]) -> Vec<f32> {
    let coded = book.quantize(rows, 1);
    let mut out = Vec::new();
    book.decode(&coded.codes, &coded.packed, &mut out);
    out
}

#[test]
fn more_bits_lose_less_and_the_loss_is_small() {
    let sample = rows(3000, 32, 1);
    let fresh = rows(600, 32, 2);
    let mut before = 0.0;
    for (bits, at_least) in [(Bits::Two, 0.93), (Bits::Four, 0.99), (Bits::Eight, 0.9999)] {
        let book = Codebook::train(&sample, 32, bits, 3000, 0, 2).unwrap();
        let loss = book.loss(&sample, 2).unwrap();
        assert!(loss.mean_cosine > at_least, "{bits}: {loss:?}");
        assert!(loss.mean_cosine > before, "{bits}: {loss:?}");
        assert!(loss.top10_agreement > 0.6, "{bits}: {loss:?}");
        before = loss.mean_cosine;
        // Rows that it was not made from lose hardly more.
        let elsewhere = book.loss(&fresh, 1).unwrap().mean_cosine;
        assert!(elsewhere > at_least - 0.05, "{bits}: {elsewhere}");
    }
}

#[test]
fn codes_name_the_nearest_centroid() {
    let sample = rows(2000, 24, 3);
    let book = Codebook::train(&sample, 24, Bits::Four, 2000, 0, 2).unwrap();
    let coded = book.quantize(&sample, 2);
    for (row, code) in sample.chunks_exact(24).zip(&coded.codes) {
        let scores = book.centroids().chunks_exact(24).map(|c| dot(row, c));
        let best = scores.clone().fold(f32::NEG_INFINITY, f32::max);
        let chosen = scores.clone().nth(usize::from(*code)).unwrap();
        assert!(chosen >= best - 1e-5);
    }
}

#[test]
fn many_centroids_are_nearly_as_near_as_an_exhaustive_search_finds() {
    let sample = rows(20_000, 16, 4);
    let book = Codebook::train(&sample, 16, Bits::Eight, 1_000_000, 0, 2).unwrap();
    assert!(book.count() > 1000, "{}", book.count());
    let some = &sample[..16 * 500];
    let coded = book.quantize(some, 2);
    let mut lost = 0.0;
    for (row, code) in some.chunks_exact(16).zip(&coded.codes) {
        let scores: Vec<f32> = book
            .centroids()
            .chunks_exact(16)
            .map(|c| dot(row, c))
            .collect();
        lost +=
            scores.iter().fold(f32::NEG_INFINITY, |m, &s| m.max(s)) - scores[usize::from(*code)];
    }
    assert!(lost / 500.0 < 0.01, "{}", lost / 500.0);
}

#[test]
fn small_and_uniform_samples_work() {
    for bits in ALL {
        for dim in [1, 5, 8, 13] {
            for n in [1, 2, 5, 70] {
                let sample = rows(n, dim, 5);
                let book = Codebook::train(&sample, dim, bits, 10_000_000, 0, 1).unwrap();
                assert!(book.count() <= n);
                assert_eq!(decode(&book, &sample).len(), sample.len());
                // Rows that come later are still told apart.
                let later = rows(50, dim, 6);
                let loss = book.loss(&later, 1).unwrap();
                assert!(
                    dim == 1 || loss.mean_cosine > 0.5,
                    "{bits} {dim} {n}: {loss:?}"
                );
            }
            let equal = rows(1, dim, 7).repeat(300);
            let book = Codebook::train(&equal, dim, bits, 300, 0, 1).unwrap();
            assert!(
                book.loss(&equal, 1).unwrap().mean_cosine > 0.999,
                "{bits} {dim}"
            );
            let zeros = vec![0.0; dim * 10];
            let book = Codebook::train(&zeros, dim, bits, 10, 0, 1).unwrap();
            assert!(decode(&book, &zeros).iter().all(|x| x.is_finite()));
        }
    }
    for (len, dim) in [(0, 4), (5, 4), (4, 0)] {
        let refused = Codebook::train(&vec![0.5; len], dim, Bits::Four, 1, 0, 1);
        assert!(matches!(refused, Err(CodebookError::Sample { .. })));
    }
    assert_eq!(
        Codebook::train(&[1.0], 1, Bits::Two, 1, 0, 1)
            .unwrap()
            .loss(&[], 1),
        None
    );
}

#[test]
fn the_number_of_centroids_follows_the_rule() {
    assert_eq!(centroids_for(0), 16);
    assert_eq!(centroids_for(100_000), 4096);
    assert_eq!(centroids_for(1_000_000), 8192);
    assert!(centroids_for(u64::MAX) <= 1 << 16);
    assert!(sample_size(1000) <= 1000);
    assert!(sample_size(u64::MAX) < 1 << 21);
}

#[test]
fn threads_change_nothing_and_seeds_do() {
    let sample = rows(5000, 16, 8);
    let train =
        |seed, threads| Codebook::train(&sample, 16, Bits::Four, 100_000, seed, threads).unwrap();
    assert_eq!(train(1, 1), train(1, 2));
    assert_ne!(train(1, 1), train(2, 1));
    let book = train(1, 1);
    assert_eq!(book.quantize(&sample, 1), book.quantize(&sample, 2));
    // A row is coded by itself.
    let one = book.quantize(&sample[16 * 100..16 * 101], 1);
    let all = book.quantize(&sample, 2);
    assert_eq!(one.codes[0], all.codes[100]);
    assert_eq!(
        one.packed,
        all.packed[100 * book.bytes_per_row()..][..book.bytes_per_row()]
    );
}

#[test]
fn bits_are_named_by_their_number() {
    for bits in ALL {
        assert_eq!(bits.to_string().parse::<Bits>().unwrap(), bits);
    }
    let error = "3".parse::<Bits>().unwrap_err().to_string();
    assert!(
        error.contains("'3'") && error.contains("2, 4 or 8"),
        "{error}"
    );
}

#[test]
fn comes_back_from_bytes_and_damage_is_noticed() {
    for bits in ALL {
        let book = Codebook::train(&rows(500, 13, 9), 13, bits, 500, 0, 1).unwrap();
        let bytes = book.to_bytes();
        assert_eq!(Codebook::from_bytes(&bytes).unwrap(), book);
        for at in (0..bytes.len()).step_by(7) {
            let mut bad = bytes.clone();
            bad[at] ^= 4;
            assert!(Codebook::from_bytes(&bad).is_err(), "byte {at}");
            assert!(Codebook::from_bytes(&bytes[..at]).is_err(), "cut at {at}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn packed_maxsim_is_that_of_the_decoded_rows_and_near_the_true_one(
        seed: u64, queries in 1usize..12, n in 1usize..150, which in 0usize..3, dim in 5usize..40,
    ) {
        let sample = rows(800, dim, 11);
        let book = Codebook::train(&sample, dim, ALL[which], 800, 0, 1).unwrap();
        let mut rng = SmallRng::seed_from_u64(seed);
        let first = rng.random_range(0..800 - n);
        let passage = &sample[first * dim..(first + n) * dim];
        let query = rows(queries, dim, 11);
        let coded = book.quantize(passage, 1);
        let mut wide = MaxSim::new(&book.widen(&query), book.width());
        let packed = book.maxsim(&mut wide, &coded.codes, &coded.packed);
        let decoded = MaxSim::new(&query, dim).score(&decode(&book, passage));
        prop_assert!((packed - decoded).abs() < 1e-3 * queries as f32, "{packed} {decoded}");
        // A row that is read back at cosine c is off by sqrt(2 - 2c) at most,
        // and so is every product with it.
        let worst = passage
            .chunks_exact(dim)
            .zip(decode(&book, passage).chunks_exact(dim))
            .map(|(a, b)| a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt())
            .fold(0.0, f32::max);
        let exact = MaxSim::new(&query, dim).score(passage);
        prop_assert!((packed - exact).abs() <= worst * queries as f32 + 1e-3);
    }
}

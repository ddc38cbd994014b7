//! The right passages are found without scoring all.

use keyfold_core::{Role, Vectors};
use keyfold_kernels::maxsim;
use keyfold_search::candidates::{CandidateOptions, nearest};
use keyfold_search::codebook::Bits;
use keyfold_search::filter::{Allowed, Filters};
use keyfold_search::fuse::Ranked;
use keyfold_search::store::Snapshot;
use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::world::{World, file};

fn exhaustive() -> CandidateOptions {
    CandidateOptions {
        exhaustive: true,
        threads: 1,
        ..CandidateOptions::default()
    }
}

fn find(snapshot: &Snapshot, query: &Vectors, k: usize, options: &CandidateOptions) -> Vec<Ranked> {
    nearest(snapshot.segments(), query, k, None, options)
        .unwrap()
        .0
}

/// Texts of random words, some frequent and many rare.
fn texts(n: usize, seed: u64) -> Vec<String> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut word = || format!("w{}", (400.0 * rng.random::<f32>().powi(3)) as u32);
    (0..n)
        .map(|_| (0..12).map(|_| word()).collect::<Vec<_>>().join(" "))
        .collect()
}

fn world(n: usize, seed: u64, bits: Bits) -> (World, Vec<String>) {
    let texts = texts(n, seed);
    // Two commits, so that there are two segments.
    let (first, second) = texts.split_at(n / 2);
    let refs = |t: &'static str, some: &[String]| -> World {
        let some: Vec<&str> = some.iter().map(String::as_str).collect();
        World::with_bits(bits, &[file(t, &some)])
    };
    let world = refs("a.md", first);
    let second: Vec<&str> = second.iter().map(String::as_str).collect();
    world.change(&[file("b.md", &second)], &[]);
    (world, texts)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn full_probing_gives_the_exhaustive_list(
        seed in 0u64..1000, n in 4usize..200, k in 1usize..30, which in 0usize..3, threads in 1usize..3,
    ) {
        let (world, texts) = world(n, seed, [Bits::Two, Bits::Four, Bits::Eight][which]);
        let snapshot = world.snapshot();
        let query = world.model.one(&format!("the {}", &texts[0][..20]), Role::Query);
        let thorough = CandidateOptions {
            probes: 1 << 16,
            // Fewer than there are, so that probing must choose.
            exact: n.saturating_sub(1).max(2 * k),
            estimated: n - 1,
            threads,
            ..CandidateOptions::default()
        };
        let found = find(&snapshot, &query, k, &thorough);
        let all = find(&snapshot, &query, k, &exhaustive());
        prop_assert_eq!(found.len(), k.min(n));
        prop_assert!(all.windows(2).all(|w| w[0].score >= w[1].score));
        // The very last one may be left out, at the end of the list.
        let sure = k.min(n - 1);
        prop_assert_eq!(&found[..sure], &all[..sure]);
    }

    #[test]
    fn filters_hold_whether_passages_are_many_or_few(seed in 0u64..1000, n in 50usize..300, allowed in 0usize..50) {
        let (world, texts) = world(n, seed, Bits::Four);
        let some: Vec<&str> = texts[..allowed].iter().map(String::as_str).collect();
        world.change(&[file("allowed.txt", &some)], &[]);
        let snapshot = world.snapshot();
        let filters = Filters { globs: vec!["*.txt".into()], ..Filters::default() };
        let filter = Allowed::new(&snapshot, &filters).unwrap().unwrap();
        prop_assert_eq!(filter.count(), allowed);
        let query = world.model.one(&texts[0], Role::Query);
        for exact in [256, 20, 8] {
            let options = CandidateOptions { exact, estimated: exact, ..CandidateOptions::default() };
            let found = nearest(snapshot.segments(), &query, 4, Some(&filter), &options).unwrap().0;
            prop_assert_eq!(found.len(), allowed.min(4));
            for ranked in found {
                let passage = snapshot.passage(ranked.passage).unwrap().unwrap();
                prop_assert_eq!(passage.key, "allowed.txt");
            }
        }
    }
}

#[test]
fn scores_are_maxsim_up_to_what_coding_loses() {
    for (bits, tolerance) in [(Bits::Two, 0.12), (Bits::Four, 0.04), (Bits::Eight, 0.005)] {
        let (world, _) = world(200, 1, bits);
        let snapshot = world.snapshot();
        let query = world.model.one("w1 w50 w200 the w399", Role::Query);
        for ranked in find(&snapshot, &query, 50, &exhaustive()) {
            let text = snapshot
                .passage(ranked.passage)
                .unwrap()
                .unwrap()
                .passage
                .text;
            let rows = world.model.one(&text, Role::Document);
            let exact = maxsim(query.as_slice(), rows.as_slice(), query.dim());
            let off = (ranked.score - exact).abs() / query.rows() as f32;
            assert!(off < tolerance, "{bits}: {off} a row");
        }
    }
}

#[test]
fn the_usual_choice_finds_nearly_all_of_the_best_ten() {
    let (world, texts) = world(3000, 2, Bits::Four);
    let snapshot = world.snapshot();
    let usual = CandidateOptions {
        estimated: 300,
        exact: 30,
        ..CandidateOptions::default()
    };
    let mut same = 0;
    for text in texts.iter().step_by(100) {
        let words: Vec<&str> = text.split(' ').skip(3).take(6).collect();
        let query = world.model.one(&words.join(" "), Role::Query);
        let all = find(&snapshot, &query, 10, &exhaustive());
        let found = find(&snapshot, &query, 10, &usual);
        same += all
            .iter()
            .filter(|a| found.iter().any(|f| f.passage == a.passage))
            .count();
    }
    assert!(same >= 285, "{same} of 300");
}

#[test]
fn passages_without_rows_and_queries_without_rows_are_no_candidates() {
    let world = World::new(&[file("a.md", &["!", "car", "?"])]);
    let snapshot = world.snapshot();
    let car = world.model.one("car", Role::Query);
    for options in [
        exhaustive(),
        CandidateOptions {
            exact: 1,
            ..exhaustive()
        },
    ] {
        assert_eq!(find(&snapshot, &car, 10, &options).len(), 1);
    }
    let nothing = world.model.one("!", Role::Query);
    assert!(find(&snapshot, &nothing, 10, &exhaustive()).is_empty());
}

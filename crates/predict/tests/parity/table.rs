//! The key-value bottleneck against the authors' module.

use keyfold_core::NoProgress;
use keyfold_predict::Labels;
use keyfold_predict::key_value_bottleneck::{KeyValueBottleneck, KeyValueBottleneckConfig, Split};

use super::{close, fixture, numbers, table};

fn single(numbers: Vec<f64>) -> Vec<f32> {
    numbers.into_iter().map(|x| x as f32).collect()
}

fn double(numbers: &[f32]) -> Vec<f64> {
    numbers.iter().map(|&x| f64::from(x)).collect()
}

#[test]
fn keys_pairs_and_values_are_the_authors() {
    let all = fixture("key_value_bottleneck");
    let rows = table(&all["rows"]);
    let config = KeyValueBottleneckConfig {
        num_codebooks: 4,
        key_value_pairs_per_codebook: 32,
        dim_keys: 8,
        dead_factor: 0.0,
        init_epochs: 1,
        init_batch: 10,
        epochs: 3,
        ..Default::default()
    };
    let projection = single(numbers(&all["projection"]));
    let start = single(numbers(&all["start"]));
    let begin = || {
        let model = KeyValueBottleneck::new(20, &config).unwrap();
        model.with_keys(Some(&projection), &start).unwrap()
    };
    let mut first = begin();
    let ten: Vec<usize> = (0..10).collect();
    first.fit_keys(&rows.select(&ten), &NoProgress).unwrap();
    // Keys that nothing looked up are far away, where only their size is comparable.
    let near = |got: &[f32], want: Vec<f64>| {
        for (i, (g, w)) in got.iter().zip(&want).enumerate() {
            let apart = (f64::from(*g) - w).abs();
            assert!(
                apart <= 2e-5 * (1.0 + w.abs()),
                "number {i} is {g}, not {w}"
            );
        }
    };
    near(first.keys(), numbers(&all["after_first"]));
    let mut model = begin();
    model.fit_keys(&rows, &NoProgress).unwrap();
    near(model.keys(), numbers(&all["keys"]));

    let keys = single(numbers(&all["placed"]));
    let mut model = begin().with_keys(Some(&projection), &keys).unwrap();
    let classes: Vec<String> = (0..5).map(|c| c.to_string()).collect();
    model = model.with_classes(&classes);
    let names: Vec<String> = (0..40).map(|i| (i % 5).to_string()).collect();
    let learned = table(&all["learned"]);
    model
        .partial_fit(&learned, &Labels::new(&names), &NoProgress)
        .unwrap();
    let counts: Vec<f64> = model.counts().iter().map(|&n| f64::from(n)).collect();
    assert_eq!(counts, numbers(&all["counts"]));
    close(
        "values",
        &double(model.values()),
        &numbers(&all["values"]),
        1e-5,
    );
    let asked = table(&all["asked"]);
    for (learned, name) in [(false, "indices"), (true, "used_only")] {
        let found = model.look_up(&asked, learned).unwrap();
        let found: Vec<f64> = found.into_iter().map(f64::from).collect();
        assert_eq!(found, numbers(&all[name]), "{name}");
    }
}

#[test]
fn a_learned_projection_makes_the_authors_heads() {
    let all = fixture("key_value_bottleneck");
    let asked = table(&all["asked"]);
    let config = KeyValueBottleneckConfig {
        num_codebooks: 4,
        dim_keys: 8,
        splitting_mode: Split::LearnedProjection,
        ..Default::default()
    };
    let projection = single(numbers(&all["learned_projection"]));
    let heads = numbers(&all["learned_heads"]);
    // With a key at each of the authors' heads, every row finds the one of its own.
    let rows = heads.len() / 32;
    let mut keys = Vec::new();
    for book in 0..4 {
        for heads in heads.chunks_exact(32) {
            keys.extend(heads[book * 8..][..8].iter().map(|x| *x as f32));
        }
    }
    let config = KeyValueBottleneckConfig {
        key_value_pairs_per_codebook: rows,
        ..config
    };
    let model = KeyValueBottleneck::new(20, &config).unwrap();
    let model = model.with_keys(Some(&projection), &keys).unwrap();
    let found = model.look_up(&asked, false).unwrap();
    for (row, found) in found.chunks_exact(4).enumerate() {
        assert_eq!(found, [row as u32; 4]);
    }
}

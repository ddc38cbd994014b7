use std::cell::Cell;

use super::*;
use crate::test_store::{Fixture, TestStore, assert_near, dims, normal, numbers};

fn small() -> HyperConfig {
    HyperConfig {
        lsh_num_projs: 5,
        block_size: 64,
        sample_size: 48,
        min_seq_len: 256,
        ..HyperConfig::default()
    }
}

#[test]
fn the_authors_class_gives_the_same_numbers() {
    let fixture = Fixture::open("hyper.safetensors");
    let (dim, heads) = (16, 2);
    let cases = [
        (1024, false, false),
        (1024, true, false),
        (1024, false, true),
        (1024, true, true),
        (1000, false, true),
    ];
    for (case, (n, causal, mask)) in cases.into_iter().enumerate() {
        let config = HyperConfig {
            count_block_twice: !mask,
            count_padding: true,
            ..small()
        };
        let name = |part: &str| format!("{case}.{part}");
        let directions = fixture.floats(&name("directions"));
        let lsh = AngularLsh::with_directions(directions, dim, Gray::Code);
        let inputs: Vec<Vec<f32>> = (0..3)
            .map(|i| {
                let mut all = numbers(500 + 10 * case as u64 + i, heads * n * dim);
                let size = if i < 2 { 3.0 } else { 1.0 };
                all.iter_mut().for_each(|x| *x *= size);
                all
            })
            .collect();
        let expected = fixture.floats(&name("out"));
        let kept = n.div_ceil(16) * dim;
        for head in 0..heads {
            let part = |i: usize| &inputs[i][head * n * dim..(head + 1) * n * dim];
            let draws = Cell::new(0);
            let draw = |first: usize, keys: usize| {
                draws.set(draws.get() + 1);
                // The smallest parts are drawn first, all heads and parts together.
                let (depth, part) = match causal {
                    false => (0, 0),
                    true => (usize::from(keys == 512), first / (2 * keys)),
                };
                let parts = if causal && depth == 0 { 2 } else { 1 };
                let sample = fixture.integers(&name(&format!("sample.{depth}")));
                sample[(head * parts + part) * 48..][..48].to_vec()
            };
            let head_in = Head {
                queries: part(0),
                keys: part(1),
                values: part(2),
                dim,
            };
            let got = attention_of(head_in, causal, &config, &lsh, &draw).unwrap();
            assert_eq!(draws.get(), if causal { 3 } else { 1 });
            let rows = got.chunks(dim).step_by(16);
            let got: Vec<f32> = rows.flatten().copied().collect();
            let expected = &expected[head * kept..][..kept];
            assert_near(&got, expected, 1e-4, &format!("case {case}, head {head}"));
        }
    }
}

/// Relative error of an approximation of `head` without a mask.
fn error(head: Head, config: &HyperConfig) -> f32 {
    let lsh = AngularLsh::new(head.dim, config.lsh_num_projs.max(1), Gray::Code, 7);
    let got = hyper_attention(head, false, config, &lsh, 0).unwrap();
    let all = HyperConfig {
        min_seq_len: usize::MAX,
        ..config.clone()
    };
    let exact = hyper_attention(head, false, &all, &lsh, 0).unwrap();
    let square = |x: f32| x * x;
    let off: f32 = got.iter().zip(&exact).map(|(a, b)| square(a - b)).sum();
    (off / exact.iter().copied().map(square).sum::<f32>()).sqrt()
}

#[test]
fn errors_on_clustered_data_are_those_that_were_measured() {
    let (n, dim, centres) = (4096, 64, 64);
    // Sharpness, noise; error of both parts, of the blocks alone, of a sample of twice the size.
    for (sharp, noise, measured) in [
        (6.0, 0.1, [0.24, 0.38, 0.35]),
        (2.0, 0.5, [0.55, 1.63, 0.50]),
    ] {
        let mut rng = StdRng::seed_from_u64(1);
        let mut unit = normal(&mut rng, centres * dim);
        keyfold_kernels::normalize_rows(&mut unit, dim);
        let meaning = normal(&mut rng, centres * dim);
        let mut rows = |values: bool| {
            let mut which = Vec::new();
            let mut all = Vec::with_capacity(n * dim);
            for _ in 0..n {
                let centre = rng.random_range(0..centres);
                let off = normal(&mut rng, dim);
                let mut row: Vec<f32> = unit[centre * dim..][..dim].to_vec();
                keyfold_kernels::axpy(&mut row, noise / (dim as f32).sqrt(), &off);
                keyfold_kernels::normalize_rows(&mut row, dim);
                row.iter_mut()
                    .for_each(|x| *x *= sharp * (dim as f32).powf(0.25));
                all.extend(row);
                which.push(centre);
            }
            let meant = which
                .iter()
                .flat_map(|c| &meaning[c * dim..][..dim])
                .copied();
            let mut meant: Vec<f32> = meant.collect();
            if values {
                let off = normal(&mut rng, n * dim);
                keyfold_kernels::axpy(&mut meant, 0.5, &off);
            }
            (all, meant)
        };
        let (queries, _) = rows(false);
        let (keys, values) = rows(true);
        let head = Head {
            queries: &queries,
            keys: &keys,
            values: &values,
            dim,
        };
        let config = |block_size, sample_size| HyperConfig {
            block_size,
            sample_size,
            min_seq_len: 1,
            ..HyperConfig::default()
        };
        let got = [(128, 128), (128, 0), (0, 256)].map(|(b, m)| error(head, &config(b, m)));
        for (got, measured) in got.iter().zip(measured) {
            assert!(
                (got / measured - 1.0).abs() < 0.35,
                "{sharp}: {got} {measured}"
            );
        }
    }
}

/// Everything exact but for what the settings say.
fn prefill(config: HyperConfig, n: usize, seed: u64, change_from: usize) -> Vec<f32> {
    let dims = dims(2, 4, 2, 16);
    let mut store = TestStore::random(dims, n, seed);
    if change_from < n {
        for head in 0..2 {
            let rows: Vec<u32> = (change_from as u32..n as u32).collect();
            let new = vec![0.5; rows.len() * 16];
            store.write(1, head, &rows, &new, &new);
        }
    }
    let queries = normal(&mut StdRng::seed_from_u64(seed + 1), n * 64);
    let positions: Vec<u32> = (0..n as u32).collect();
    let mut out = vec![0.0; n * 64];
    let mut hyper = HyperPrefill::new(config, dims).unwrap();
    let team = Team::new(2);
    hyper.attend(1, &queries, &positions, &*store, &team, &mut out, &mut []);
    out
}

#[test]
fn short_prompts_other_layers_and_whole_blocks_are_exact() {
    let exact = prefill(HyperConfig::default(), 200, 1, 200);
    let never = HyperConfig {
        layers: Layers::First(1),
        min_seq_len: 16,
        ..small()
    };
    assert_near(&prefill(never, 200, 1, 200), &exact, 1e-5, "another layer");
    // One block holds all keys.
    let whole = HyperConfig {
        block_size: 200,
        min_seq_len: 16,
        ..small()
    };
    assert_near(&prefill(whole, 200, 1, 200), &exact, 1e-5, "one block");
    let odd = HyperConfig {
        block_size: 256,
        min_seq_len: 10,
        ..small()
    };
    let exact = prefill(HyperConfig::default(), 177, 2, 177);
    assert_near(&prefill(odd, 177, 2, 177), &exact, 1e-5, "odd");
}

#[test]
fn no_token_sees_a_later_half() {
    let config = HyperConfig {
        min_seq_len: 40,
        block_size: 16,
        sample_size: 16,
        ..small()
    };
    let (a, b) = (
        prefill(config.clone(), 400, 3, 400),
        prefill(config, 400, 3, 200),
    );
    assert_eq!(a[..200 * 64], b[..200 * 64]);
    assert_ne!(a[200 * 64..], b[200 * 64..]);
}

#[test]
fn older_rows_are_seen_and_mass_is_exact_where_it_is_asked_for() {
    let dims = dims(1, 2, 1, 16);
    let store = TestStore::random(dims, 300, 4);
    let queries = normal(&mut StdRng::seed_from_u64(9), 300 * 32);
    let positions: Vec<u32> = (0..300).collect();
    let team = Team::new(2);
    let run = |config: HyperConfig, from: usize, mass: &mut [f32]| {
        let mut out = vec![0.0; (300 - from) * 32];
        let mut hyper = HyperPrefill::new(config, dims).unwrap();
        let (queries, positions) = (&queries[from * 32..], &positions[from..]);
        hyper.attend(0, queries, positions, &*store, &team, &mut out, mass);
        out
    };
    let exact = run(HyperConfig::default(), 0, &mut []);
    let one_block = HyperConfig {
        block_size: 300,
        min_seq_len: 20,
        ..small()
    };
    let late = run(one_block.clone(), 150, &mut []);
    assert_near(&late, &exact[150 * 32..], 1e-5, "the second half");
    let mut mass = vec![0.0; 300];
    let approximate = HyperConfig {
        min_seq_len: 20,
        ..small()
    };
    let with_mass = run(approximate, 0, &mut mass);
    assert_near(&with_mass, &exact, 1e-5, "mass");
    // Two heads give 1 for each of 300 queries.
    assert!((mass.iter().sum::<f32>() - 600.0).abs() < 1e-2);
    assert!(mass[0] > mass[299]);
}

#[test]
fn unfit_settings_are_refused_by_name() {
    let refused = |change: &dyn Fn(&mut HyperConfig), says: &str| {
        let mut config = HyperConfig::default();
        change(&mut config);
        let error = HyperPrefill::new(config, dims(1, 2, 1, 8))
            .unwrap_err()
            .to_string();
        assert!(error.contains(says), "{error}");
    };
    refused(&|c| c.lsh_num_projs = 0, "lsh_num_projs = 0");
    refused(&|c| c.lsh_num_projs = 17, "lsh_num_projs = 17");
    refused(
        &|c| {
            c.block_size = 0;
            c.sample_size = 0;
        },
        "both 0",
    );
    refused(&|c| c.min_seq_len = 0, "min_seq_len");
    let rows = vec![0.0; 64];
    let head = Head {
        queries: &rows[..32],
        keys: &rows,
        values: &rows,
        dim: 8,
    };
    let lsh = AngularLsh::new(8, 7, Gray::Code, 1);
    let error = hyper_attention(head, true, &HyperConfig::default(), &lsh, 0).unwrap_err();
    assert!(
        error.to_string().contains("4 queries and 8 keys"),
        "{error}"
    );
    assert_eq!("last:12".parse::<Layers>().unwrap(), Layers::Last(12));
    assert!(Layers::Last(12).contains(20, 32) && !Layers::Last(12).contains(19, 32));
    assert!("last".parse::<Layers>().is_err());
}

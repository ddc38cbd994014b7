use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::recall::RecallConfig;
use crate::select::baselines::OracleTopK;
use crate::select::pick;
use crate::test_store::{Fixture, TestStore, assert_near, choose, dims, normal};

#[test]
fn the_authors_layer_gives_the_same_numbers() {
    let fixture = Fixture::open("double_sparsity.safetensors");
    let rankings = Rankings::from_json(Fixture::open("double_sparsity.json").text()).unwrap();
    let dims = dims(3, 4, 2, 32);
    let (keys, values) = (fixture.floats("keys"), fixture.floats("values"));
    for (bits, tolerance) in [(16, 1e-5), (4, 1e-4)] {
        let config = DoubleSparsityConfig {
            heavy_const: Budget::Tokens(12),
            group_factor: 4,
            label_bits: bits,
            ..DoubleSparsityConfig::authors()
        };
        let mut sparse = DoubleSparsity::new(config, dims, &rankings).unwrap();
        let mut store = TestStore::new(dims);
        let expected = fixture.floats(&format!("out.{bits}"));
        let queries = fixture.floats("queries");
        for token in 0..96 {
            let row = |rows: &[f32]| rows[token * 64..][..64].to_vec();
            store.append(2, &[token as u32], &row(&keys), &row(&values));
            sparse.on_append(2, &[token as u32], &row(&keys));
            if token < 60 {
                continue;
            }
            let of_token = (token - 60) * 128..(token - 59) * 128;
            let query = &queries[of_token.clone()];
            let rows = choose(&mut sparse, 2, query, &store, &mut StepCtx::default());
            assert!(rows.lists.iter().all(|list| list.len() == 12));
            let got = store.attend(2, query, &rows);
            assert_near(
                &got,
                &expected[of_token],
                tolerance,
                &format!("{bits} bits, {token}"),
            );
        }
    }
}

/// Share of contexts of the recall model, 8192 tokens long, in which the right row is among
/// the `k` best by scores on `channels` channels, for each `k`.
fn recall(rankings: &dyn Fn(&Dims, u64) -> Rankings, channels: usize) -> [f64; 3] {
    const RUNS: u64 = 40;
    let mut found = [0u32; 3];
    for run in 0..RUNS {
        let model = RecallConfig {
            seed: run,
            ..RecallConfig::default()
        };
        let dims = Dims {
            layers: 1,
            heads: 1,
            kv_heads: 1,
            ..model.dims()
        };
        let codes = model.codes();
        let code = |token: usize| &codes[token * 64..][..64];
        let mut rng = StdRng::seed_from_u64(run);
        let (key, needle) = (rng.random_range(0..16), rng.random_range(0..8192));
        let config = DoubleSparsityConfig {
            channels: Some(channels),
            label_bits: 16,
            dense_layers: 0,
            keep_newest: false,
            ..DoubleSparsityConfig::default()
        };
        let sparse = DoubleSparsity::new(config, dims, &rankings(&dims, run)).unwrap();
        let channels = sparse.cache.of(0, 0).0[0].channels().to_vec();
        let mut labels = Labels::new(LabelParts::Channels(channels), 16, false);
        for row in 0..8192 {
            let token = if row == needle {
                key
            } else {
                rng.random_range(32..64)
            };
            labels.push(code(token));
        }
        let (mut label, mut scores) = (Vec::new(), Vec::new());
        labels.of_query(code(key), &mut label);
        labels.scores(&label, &mut scores);
        for (found, k) in found.iter_mut().zip([32, 256, 1024]) {
            let mut rows = Vec::new();
            pick(&scores, k, false, &mut Vec::new(), &mut rows);
            *found += u32::from(rows.contains(&(needle as u32)));
        }
    }
    found.map(|found| f64::from(found) / RUNS as f64)
}

#[test]
fn calibrated_channels_find_the_row_where_random_and_first_ones_do_not() {
    let calibrated = |dims: &Dims, seed: u64| {
        let model = RecallConfig {
            seed,
            ..RecallConfig::default()
        };
        let mut calibration = super::super::rankings::Calibration::new(*dims);
        let codes = model.codes();
        calibration.add(0, &codes, &codes, &codes, &codes);
        calibration.rankings()
    };
    // Shares that were measured with other code on the same model: r = 4, k = 32, 256, 1024.
    for (name, got, measured) in [
        ("calibrated", recall(&calibrated, 4), [0.20, 0.68, 0.98]),
        ("random", recall(&Rankings::random, 4), [0.11, 0.42, 0.88]),
        (
            "first",
            recall(&|dims, _| Rankings::first(dims), 4),
            [0.0, 0.02, 0.09],
        ),
        ("calibrated, 8", recall(&calibrated, 8), [0.88, 1.0, 1.0]),
        ("random, 8", recall(&Rankings::random, 8), [0.72, 0.92, 1.0]),
        ("calibrated, 16", recall(&calibrated, 16), [1.0, 1.0, 1.0]),
    ] {
        for (got, measured) in got.iter().zip(measured) {
            // Three deviations of a mean of 40 runs.
            let measured: f64 = measured;
            let spread = 3.0 * (measured * (1.0 - measured) / 40.0).sqrt();
            assert!(
                (got - measured).abs() <= spread + 0.08,
                "{name}: {got} {measured}"
            );
        }
    }
}

#[test]
fn all_channels_choose_as_the_oracle_does() {
    let dims = dims(1, 4, 2, 16);
    let store = TestStore::random(dims, 100, 4);
    let config = DoubleSparsityConfig {
        heavy_const: Budget::Tokens(9),
        channels: Some(16),
        label_bits: 16,
        dense_layers: 0,
        ..DoubleSparsityConfig::default()
    };
    let mut sparse = DoubleSparsity::new(config, dims, &Rankings::random(&dims, 1)).unwrap();
    let positions: Vec<u32> = (0..100).collect();
    sparse.on_append(0, &positions, &store.keys(0));
    let mut oracle = OracleTopK::new(Budget::Tokens(9), 0, dims).unwrap();
    let mut rng = StdRng::seed_from_u64(8);
    for _ in 0..10 {
        let query = normal(&mut rng, 64);
        let rows = |selector: &mut dyn Selector| {
            choose(selector, 0, &query, &store, &mut StepCtx::default()).lists
        };
        assert_eq!(rows(&mut sparse), rows(&mut oracle));
    }
    // 100 labels of 16 numbers of 16 bits for each of two KV heads.
    let mut ctx = StepCtx::default();
    choose(&mut sparse, 0, &[0.0; 64], &store, &mut ctx);
    assert_eq!(ctx.bytes_read, 100 * 16 * 2 * 2);
    assert_eq!(sparse.bytes(), ctx.bytes_read);
}

#[test]
fn first_layers_are_dense_and_have_no_labels() {
    let dims = dims(4, 2, 1, 16);
    let rankings = Rankings::random(&dims, 1);
    let mut sparse = DoubleSparsity::new(
        DoubleSparsityConfig {
            heavy_const: Budget::Tokens(3),
            ..DoubleSparsityConfig::default()
        },
        dims,
        &rankings,
    )
    .unwrap();
    let store = TestStore::random(dims, 20, 4);
    let positions: Vec<u32> = (0..20).collect();
    for layer in 0..4 {
        sparse.on_append(layer, &positions, &store.keys(layer));
        let rows = choose(
            &mut sparse,
            layer,
            &[0.5; 32],
            &store,
            &mut StepCtx::default(),
        );
        assert_eq!(rows.reads == Reads::All, layer < 2);
    }
}

#[test]
fn unfit_settings_are_refused_by_name() {
    let dims = dims(3, 2, 1, 16);
    let rankings = Rankings::random(&dims, 1);
    let refused = |change: &dyn Fn(&mut DoubleSparsityConfig), says: &str| {
        let mut config = DoubleSparsityConfig::default();
        change(&mut config);
        let error = DoubleSparsity::new(config, dims, &rankings).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    };
    refused(&|c| c.heavy_const = Budget::Tokens(0), "heavy_const");
    refused(&|c| c.heavy_const = Budget::Share(1.5), "heavy_const");
    refused(&|c| c.channels = Some(0), "channels = 0");
    refused(&|c| c.channels = Some(17), "channels = 17");
    refused(&|c| c.group_factor = 3, "group_factor = 3");
    refused(&|c| c.group_factor = 0, "group_factor = 0");
    refused(&|c| c.label_bits = 8, "label_bits = 8");
    let other = Dims { heads: 4, ..dims };
    let error = DoubleSparsity::new(DoubleSparsityConfig::default(), other, &rankings).unwrap_err();
    assert!(error.to_string().contains("2 heads"), "{error}");
}

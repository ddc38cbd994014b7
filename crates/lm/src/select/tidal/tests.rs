use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::test_store::{Fixture, TestStore, assert_near, choose, dims, normal};

#[test]
fn the_authors_layers_give_the_same_numbers() {
    let fixture = Fixture::open("tidal.safetensors");
    let dims = dims(8, 4, 2, 16);
    let config = TidalConfig {
        top_k: Budget::Tokens(6),
        correction_layers: vec![5],
        ..TidalConfig::authors()
    };
    let mut tidal = Tidal::new(config, dims).unwrap();
    for step in 0..3 {
        let mut store = TestStore::new(dims);
        let rows = 48 + step + 1;
        let positions: Vec<u32> = (0..rows as u32).collect();
        let mut ctx = StepCtx::default();
        for layer in 0..8 {
            let part =
                |name: &str| fixture.floats(&format!("{name}.{layer}"))[..rows * 32].to_vec();
            store.append(layer, &positions, &part("keys"), &part("values"));
            let query = fixture.floats(&format!("query.{step}.{layer}"));
            let rows = choose(&mut tidal, layer, &query, &store, &mut ctx);
            assert_eq!(rows.reads == Reads::All, [0, 1, 2, 5].contains(&layer));
            let got = store.attend(layer, &query, &rows);
            let expected = fixture.floats(&format!("out.{step}.{layer}"));
            assert_near(
                &got,
                &expected,
                1e-5,
                &format!("step {step}, layer {layer}"),
            );
        }
    }
}

#[test]
fn layers_read_what_the_last_noting_layer_noted() {
    let dims = dims(7, 2, 1, 8);
    let store = TestStore::random(dims, 50, 1);
    let config = TidalConfig {
        top_k: Budget::Tokens(6),
        sparse_layer_start: 1,
        correction_layers: vec![3, 5],
        keep_newest: false,
        ..TidalConfig::default()
    };
    let mut tidal = Tidal::new(config, dims).unwrap();
    let mut rng = StdRng::seed_from_u64(2);
    let mut ctx = StepCtx::default();
    let mut noted = Vec::new();
    for layer in 0..7 {
        let query = normal(&mut rng, 16);
        let rows = choose(&mut tidal, layer, &query, &store, &mut ctx);
        if [0, 1, 3, 5].contains(&layer) {
            assert_eq!(rows.reads, Reads::All);
        } else {
            assert_eq!(rows.lists, noted, "layer {layer}");
        }
        // What the layer would choose: the union of its two heads' best rows.
        let mut scores = vec![0.0; 100];
        store.dot(
            layer,
            0,
            &query,
            crate::roles::RowSet::Range(0, 50),
            &mut scores,
        );
        if layer > 0 && rows.reads == Reads::All {
            let mut own = Vec::new();
            for scores in scores.chunks(50) {
                pick(scores, 6, false, &mut Vec::new(), &mut own);
            }
            sort_unique(&mut own);
            noted = vec![own];
        }
    }
    assert_eq!(ctx.bytes_read, 3 * 50 * 32);
}

#[test]
fn the_group_s_mass_weighs_sharp_heads_by_their_softmax() {
    // Head 0 is sharp on row 1, head 1 flat but for a little on row 2.
    let mut scores = vec![0.0, 9.0, 0.0, 0.0, 1.0, 1.0, 1.5, 1.0];
    group_mass(&mut scores, 4, 1.0);
    assert!((scores[..4].iter().sum::<f32>() - 2.0).abs() < 1e-5);
    assert!(scores[1] > 1.0 && scores[2] > scores[0] && scores[2] < 0.5);
}

#[test]
fn rows_that_a_layer_lacks_are_left_out() {
    let mut rows = Vec::new();
    to_rows(&[2, 5, 9, 12], &[0, 2, 4, 5, 12, 30], &mut rows);
    assert_eq!(rows, [1, 3, 4]);
    rows.clear();
    to_rows(&[0, 2], &[0, 1, 2], &mut rows);
    assert_eq!(rows, [0, 2]);
    rows.clear();
    to_rows(&[7], &[], &mut rows);
    assert!(rows.is_empty());
}

#[test]
fn few_layers_are_read_densely_and_said_so() {
    let dims = dims(4, 2, 1, 8);
    let mut tidal = Tidal::new(TidalConfig::for_layers(4), dims).unwrap();
    assert!(tidal.notices(10)[0].contains("4 layers"));
    let store = TestStore::random(dims, 2000, 1);
    for layer in 0..4 {
        let rows = choose(
            &mut tidal,
            layer,
            &[0.5; 16],
            &store,
            &mut StepCtx::default(),
        );
        assert_eq!(rows.reads, Reads::All);
    }
    let of_30 = TidalConfig::for_layers(30);
    assert_eq!(of_30.correction_layers, [13]);
    assert_eq!(TidalConfig::for_layers(32), TidalConfig::default());
    for layers in 5..64 {
        TidalConfig::for_layers(layers)
            .validate(&Dims { layers, ..dims })
            .unwrap();
    }
}

#[test]
fn corrections_are_due_after_so_many_tokens() {
    let dims = dims(8, 2, 1, 8);
    let config = TidalConfig {
        correction_layers: vec![4],
        ..TidalConfig::default()
    };
    let never = Tidal::new(config.clone(), dims).unwrap();
    assert_eq!(never.due_correction(100_000), None);
    assert!(never.notices(100).is_empty() && never.notices(10_000)[0].contains("correction"));
    let config = TidalConfig {
        correct_every: Some(32),
        ..config
    };
    let tidal = Tidal::new(config, dims).unwrap();
    let due: Vec<Option<usize>> = [0, 31, 32, 33, 64]
        .map(|n| tidal.due_correction(n))
        .to_vec();
    assert_eq!(due, [None, None, Some(32), None, Some(32)]);
    assert!(tidal.notices(10_000).is_empty());
}

#[test]
fn the_probe_finds_the_layer_that_is_like_those_after_it() {
    let dims = dims(6, 2, 1, 8);
    let mut store = TestStore::new(dims);
    let mut rng = StdRng::seed_from_u64(3);
    let positions: Vec<u32> = (0..64).collect();
    // Layers 3, 4 and 5 have the same keys, the others each their own.
    let late = normal(&mut rng, 64 * 8);
    for layer in 0..6 {
        let keys = if layer < 3 {
            normal(&mut rng, 64 * 8)
        } else {
            late.clone()
        };
        store.append(layer, &positions, &keys, &keys);
    }
    let mut probe = OverlapProbe::new(Budget::Tokens(8), dims);
    let overlap = probe.overlap();
    assert_eq!(overlap.lock().unwrap().best_correction_layer(0), None);
    for _ in 0..5 {
        let query = normal(&mut rng, 16);
        for layer in 0..6 {
            let rows = choose(&mut probe, layer, &query, &store, &mut StepCtx::default());
            assert_eq!(rows.reads, Reads::All);
        }
    }
    let overlap = overlap.lock().unwrap();
    let matrix = overlap.matrix();
    for layer in 0..6 {
        assert!((matrix[layer * 6 + layer] - 1.0).abs() < 1e-6);
    }
    assert!((matrix[3 * 6 + 5] - 1.0).abs() < 1e-6 && matrix[6 + 5] < 0.5);
    assert_eq!(overlap.best_correction_layer(0), Some(3));
}

#[test]
fn unfit_settings_are_refused_by_name() {
    let dims = dims(8, 2, 1, 8);
    let refused = |change: &dyn Fn(&mut TidalConfig), says: &str| {
        let mut config = TidalConfig::for_layers(8);
        change(&mut config);
        let error = Tidal::new(config, dims).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    };
    refused(&|c| c.top_k = Budget::Tokens(0), "top_k");
    refused(&|c| c.correction_layers = vec![2], "correction layer 2");
    refused(&|c| c.correction_layers = vec![4, 4], "correction layer 4");
    refused(&|c| c.correction_layers = vec![8], "0 to 7");
    refused(&|c| c.correct_every = Some(0), "correct_every");
    refused(
        &|c| {
            c.correction_layers = vec![];
            c.sparse_layer_start = 8;
        },
        "sparse_layer_start = 8",
    );
}

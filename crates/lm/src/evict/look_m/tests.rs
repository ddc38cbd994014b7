use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::evict::h2o::{H2o, H2oConfig};
use crate::roles::Rows;
use crate::test_store::{Fixture, TestStore, assert_near, dims, normal, numbers};

const HEADS: usize = 2;
const ROWS: usize = 640;
const DIM: usize = 128;

/// The store of `parity/caches.py`.
fn authors() -> TestStore {
    let mut store = TestStore::new(dims(1, HEADS, HEADS, DIM));
    let (random, values) = (
        numbers(21, HEADS * ROWS * DIM),
        numbers(22, HEADS * ROWS * DIM),
    );
    let alike = numbers(23, HEADS * 8 * DIM);
    // They have [heads, rows, dim].
    let order = |at: &dyn Fn(usize, usize, usize) -> f32| -> Vec<f32> {
        let mut all = Vec::new();
        for row in 0..ROWS {
            for head in 0..HEADS {
                all.extend((0..DIM).map(|c| at(head, row, c)));
            }
        }
        all
    };
    let keys =
        order(&|h, r, c| random[(h * ROWS + r) * DIM + c] * 0.3 + alike[(h * 8 + r % 8) * DIM + c]);
    let values = order(&|h, r, c| values[(h * ROWS + r) * DIM + c]);
    let positions: Vec<u32> = (0..ROWS as u32).collect();
    store.append(0, &positions, &keys, &values);
    store
}

#[test]
fn rows_are_kept_and_merged_as_the_authors_do() {
    let fixture = Fixture::open("look_m.safetensors");
    let mass = fixture.floats("mass");
    let kinds = TokenKinds {
        images: vec![(20, 20 + 576)],
    };
    let dims = dims(1, HEADS, HEADS, DIM);
    let look_m = |merge| {
        let config = LookMConfig {
            merge,
            ..LookMConfig::default()
        };
        Box::new(LookM::new(config, dims).unwrap()) as Box<dyn Evictor>
    };
    for (name, mut evictor) in [
        ("TextPivotMerge", look_m(Merge::Pivotal)),
        ("TextWeightedMerge", look_m(Merge::Weighted)),
        (
            "H2OKVCache",
            Box::new(H2o::new(H2oConfig::default(), dims).unwrap()) as Box<dyn Evictor>,
        ),
    ] {
        let mut store = authors();
        evictor.after_prefill(0, &mass, &kinds, &mut *store);
        let of = |part: &str| fixture.floats(&format!("{name}.{part}"));
        let (keys, values) = (of("keys"), of("values"));
        let rows = store.len(0, 0);
        assert_eq!(keys.len(), HEADS * rows * DIM / 8, "{name}");
        for head in 0..HEADS {
            let (mut own_keys, mut own_values) = (vec![0.0; rows * DIM], vec![0.0; rows * DIM]);
            store.read(0, head, 0..rows, &mut own_keys, &mut own_values);
            let every: Vec<f32> = own_keys.iter().step_by(8).copied().collect();
            let span = head * rows * DIM / 8..(head + 1) * rows * DIM / 8;
            assert_near(&every, &keys[span.clone()], 1e-5, name);
            let every: Vec<f32> = own_values.iter().step_by(8).copied().collect();
            assert_near(&every, &values[span], 1e-5, name);
        }
    }
}

/// A prompt of `text` rows, then images, of which every one is one of a few kinds.
fn pictures(text: usize, rows: usize, kinds: usize) -> (TestStore, TokenKinds) {
    let dims = dims(1, 2, 1, 16);
    let mut rng = StdRng::seed_from_u64(3);
    let mut store = TestStore::new(dims);
    let own = |n: usize, rng: &mut StdRng| (normal(rng, n * 16), normal(rng, n * 16));
    let (mut keys, mut values) = own(text, &mut rng);
    let (of_keys, of_values) = own(kinds, &mut rng);
    for row in 0..rows {
        let at = row % kinds * 16..(row % kinds + 1) * 16;
        keys.extend_from_slice(&of_keys[at.clone()]);
        values.extend_from_slice(&of_values[at]);
    }
    let positions: Vec<u32> = (0..(text + rows) as u32).collect();
    store.append(0, &positions, &keys, &values);
    let images = vec![(text as u32, (text + rows) as u32)];
    (store, TokenKinds { images })
}

fn evict(store: &mut TestStore, kinds: &TokenKinds, config: LookMConfig, mass: &[f32]) {
    let mut evictor = LookM::new(config, store.dims).unwrap();
    evictor.after_prefill(0, mass, kinds, &mut **store);
}

#[test]
fn rows_that_stand_for_others_weigh_as_much_as_they_did() {
    let (mut store, kinds) = pictures(10, 190, 5);
    let queries = normal(&mut StdRng::seed_from_u64(4), 2 * 16);
    let before = store.attend(0, &queries, &Rows::default());
    // The newest fifteen rows have every kind three times.
    let config = LookMConfig {
        ratios: Ratios {
            hh_ratio: 0.05,
            recent_ratio: 0.075,
        },
        merge: Merge::Average,
        merge_mass: true,
    };
    evict(&mut store, &kinds, config, &[0.0; 200]);
    assert_eq!(store.len(0, 0), 25);
    let mut team = crate::attention::DecodeAttention::default();
    let mut attend = |store: &TestStore| {
        let mut out = vec![0.0; 32];
        let (rows, one) = (Rows::default(), keyfold_kernels::Team::new(1));
        let dims = store.dims;
        team.attend(
            0, &dims, &queries, 200, None, &**store, &rows, None, &one, &mut out,
        );
        out
    };
    // Exactly the attention before, from an eighth of the rows.
    assert_near(&attend(&store), &before, 2e-5, "with the bias");
    store.set_bias(0, 0, Vec::new());
    let without = attend(&store);
    let far = without
        .iter()
        .zip(&before)
        .any(|(a, b)| (a - b).abs() > 1e-2);
    assert!(far, "without it the images weigh too little");
}

#[test]
fn text_stays_and_images_go_by_their_attention() {
    let (mut store, kinds) = pictures(10, 90, 7);
    let mut mass = vec![0.0; 100];
    (mass[40], mass[70], mass[3]) = (5.0, 9.0, -1.0);
    let config = LookMConfig {
        ratios: Ratios {
            hh_ratio: 0.12,
            recent_ratio: 0.05,
        },
        merge: Merge::None,
        merge_mass: false,
    };
    evict(&mut store, &kinds, config, &mass);
    let kept: Vec<u32> = (0..10).chain([40, 70]).chain(95..100).collect();
    assert_eq!(store.positions(0, 0), kept);
    // Once is enough: a text that goes on is not thinned again.
    store.append(0, &[100], &[0.0; 16], &[0.0; 16]);
    evict(&mut store, &kinds, config, &[0.0; 18]);
    assert_eq!(store.len(0, 0), 18);
}

#[test]
fn merges_are_those_of_the_formulas() {
    let keys = [[1.0, 0.0], [0.0, 1.0], [2.0, 0.2], [0.9, 0.0], [3.0, 3.1]];
    let run = |merge| {
        let mut store = TestStore::new(dims(1, 1, 1, 2));
        let flat = keys.concat();
        let values: Vec<f32> = (0..10).map(|i| i as f32).collect();
        store.append(0, &[0, 1, 2, 3, 4], &flat, &values);
        let config = LookMConfig {
            ratios: Ratios {
                hh_ratio: 0.4,
                recent_ratio: 0.0,
            },
            merge,
            merge_mass: false,
        };
        // Two text rows stay; 2 and 3 go to the first, 4 to the second.
        let kinds = TokenKinds {
            images: vec![(2, 5)],
        };
        evict(&mut store, &kinds, config, &[0.0; 5]);
        (store.keys(0), store.values(0))
    };
    let (keys, values) = run(Merge::Average);
    assert_near(&keys, &[3.9 / 3.0, 0.2 / 3.0, 1.5, 2.05], 1e-6, "average");
    assert_near(
        &values,
        &[10.0 / 3.0, 13.0 / 3.0, 5.0, 6.0],
        1e-6,
        "average",
    );
    let (keys, _) = run(Merge::Pivotal);
    assert_near(
        &keys,
        &[(1.0 + 1.5 + 0.95) / 3.0, 0.1 / 3.0, 0.75, 1.525],
        1e-6,
        "pivotal",
    );
    // The third goes nowhere: it is less like its row than the mean of all.
    let (keys, _) = run(Merge::Weighted);
    let like = 2.0 / (4.0f32 + 0.04).sqrt();
    let first = [(1.0 + 2.0 * like + 0.9) / 3.0, 0.2 * like / 3.0];
    assert_near(&keys, &[first[0], first[1], 0.0, 1.0], 1e-5, "weighted");
}

#[test]
fn unfit_settings_are_refused() {
    let dims = dims(1, 2, 1, 8);
    let with = |hh_ratio, recent_ratio| LookMConfig {
        ratios: Ratios {
            hh_ratio,
            recent_ratio,
        },
        ..LookMConfig::default()
    };
    for config in [with(0.7, 0.4), with(-0.1, 0.1), with(0.1, f64::NAN)] {
        assert!(
            LookM::new(config, dims)
                .unwrap_err()
                .to_string()
                .contains("at most 1")
        );
        let h2o = H2oConfig {
            ratios: config.ratios,
        };
        assert!(H2o::new(h2o, dims).is_err());
    }
    let config = LookMConfig {
        merge: Merge::None,
        merge_mass: true,
        ..LookMConfig::default()
    };
    assert!(LookM::new(config, dims).is_err());
    assert!(
        "some"
            .parse::<Merge>()
            .unwrap_err()
            .to_string()
            .contains("pivotal")
    );
    assert_eq!("average".parse::<Merge>().unwrap(), Merge::Average);
    let says = |images: &[(u32, u32)], what: &str| {
        let kinds = TokenKinds {
            images: images.to_vec(),
        };
        assert!(kinds.validate(100).unwrap_err().contains(what));
    };
    says(&[(5, 9), (8, 12)], "overlaps");
    says(&[(90, 101)], "100 tokens");
    says(&[(9, 9)], "empty");
    let kinds = TokenKinds {
        images: vec![(5, 9), (9, 12)],
    };
    assert!(kinds.validate(12).is_ok());
    let images: Vec<u32> = (0..20).filter(|&p| kinds.is_image(p)).collect();
    assert_eq!(images, (5..12).collect::<Vec<u32>>());
}

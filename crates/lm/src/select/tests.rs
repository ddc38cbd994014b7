use keyfold_kernels::Team;
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::baselines::{OracleTopK, PooledChannels, QuestPages, SlidingWindow};
use super::double_sparsity::{DoubleSparsity, DoubleSparsityConfig, LabelHeads};
use super::power::PowerSelect;
use super::rankings::Rankings;
use super::tidal::{GroupRule, Tidal, TidalConfig};
use super::*;
use keyfold_core::block_mask::BlockMask;

use crate::block_mask::PowerConfig;
use crate::roles::{Selector, StepCtx};
use crate::test_store::{TestStore, choose, dims, normal};

/// Every selector that chooses by scores, with `tokens` rows for each query head.
fn selectors(dims: Dims, tokens: Budget) -> Vec<(&'static str, Box<dyn Selector>)> {
    let rankings = Rankings::random(&dims, 3);
    let sparse = |labels, label_bits| {
        let config = DoubleSparsityConfig {
            heavy_const: tokens,
            channels: Some(4),
            dense_layers: 0,
            labels,
            label_bits,
            ..DoubleSparsityConfig::default()
        };
        Box::new(DoubleSparsity::new(config, dims, &rankings).unwrap())
    };
    let tidal = |group| {
        let config = TidalConfig {
            top_k: tokens,
            sparse_layer_start: 0,
            correction_layers: vec![3],
            group,
            ..TidalConfig::default()
        };
        Box::new(Tidal::new(config, dims).unwrap())
    };
    vec![
        ("sparse", sparse(LabelHeads::PerKvHead, 4)),
        ("sparse, 16 bits", sparse(LabelHeads::PerKvHead, 16)),
        ("sparse, per head", sparse(LabelHeads::PerHead, 4)),
        ("tidal", tidal(GroupRule::Union)),
        ("tidal, mass", tidal(GroupRule::Mass)),
        ("tidal, per head", tidal(GroupRule::PerHead)),
        (
            "oracle",
            Box::new(OracleTopK::new(tokens, 0, dims).unwrap()),
        ),
        (
            "quest",
            Box::new(QuestPages::new(4, tokens, 0, dims).unwrap()),
        ),
        (
            "pooled",
            Box::new(PooledChannels::new(2, tokens, 0, dims).unwrap()),
        ),
    ]
}

/// What a selector chooses in all layers for queries of this seed.
fn step(selector: &mut dyn Selector, store: &TestStore, seed: u64) -> Vec<Rows> {
    let dims = store.dims;
    let mut rng = StdRng::seed_from_u64(seed);
    let mut ctx = StepCtx::default();
    (0..dims.layers)
        .map(|layer| {
            let queries = normal(&mut rng, dims.heads * dims.head_dim);
            choose(selector, layer, &queries, store, &mut ctx)
        })
        .collect()
}

fn feed(selector: &mut dyn Selector, store: &TestStore) {
    let dims = store.dims;
    for layer in 0..dims.layers {
        let positions = store.positions(layer, 0).to_vec();
        selector.on_append(layer, &positions, &store.keys(layer));
    }
}

#[test]
fn budgets_are_numbers_or_shares() {
    assert_eq!("1024".parse::<Budget>().unwrap().of(5000), 1024);
    assert_eq!("1024".parse::<Budget>().unwrap().of(50), 50);
    assert_eq!("1/16".parse::<Budget>().unwrap().of(4096), 256);
    assert_eq!("0.1".parse::<Budget>().unwrap().of(101), 11);
    assert_eq!("1/16".parse::<Budget>().unwrap().of(3), 1);
    assert_eq!("1/16".parse::<Budget>().unwrap().of(0), 0);
    for bad in ["0", "", "a", "1/0", "2/1", "-1", "1/x", "nan"] {
        assert!(bad.parse::<Budget>().is_err(), "{bad}");
    }
    let read: Budget = serde_json::from_str("0.25").unwrap();
    assert_eq!(read, Budget::Share(0.25));
}

proptest! {
    #[test]
    fn the_greatest_scores_are_picked_in_order_of_rows(
        scores in prop::collection::vec(prop_oneof![-2.0f32..2.0, Just(f32::NAN), Just(0.5)], 1..80),
        k in 0usize..90,
    ) {
        let mut picked = Vec::new();
        pick(&scores, k, false, &mut Vec::new(), &mut picked);
        let mut order: Vec<u32> = (0..scores.len() as u32).collect();
        let key = |row: &u32| {
            let score = scores[*row as usize];
            if score.is_nan() { f32::NEG_INFINITY } else { score }
        };
        order.sort_by(|a, b| key(b).total_cmp(&key(a)).then(a.cmp(b)));
        order.truncate(k);
        order.sort_unstable();
        prop_assert_eq!(picked, order);
    }

    #[test]
    fn lists_are_ascending_rows_with_the_newest_and_not_too_many(
        rows in 8usize..60, tokens in 2usize..7, seed in 0u64..1000,
    ) {
        let dims = dims(5, 4, 2, 8);
        let store = TestStore::random(dims, rows, seed);
        for (name, mut selector) in selectors(dims, Budget::Tokens(tokens)) {
            feed(&mut *selector, &store);
            for (layer, rows_of) in step(&mut *selector, &store, seed).into_iter().enumerate() {
                let dense = name.starts_with("tidal") && (layer == 0 || layer == 3);
                prop_assert_eq!(rows_of.reads == Reads::All, dense, "{} {}", name, layer);
                let lists = match rows_of.reads {
                    Reads::All => continue,
                    Reads::PerKvHead => 2,
                    Reads::PerHead => 4,
                };
                prop_assert_eq!(rows_of.lists.len(), lists);
                for list in &rows_of.lists {
                    prop_assert!(list.windows(2).all(|w| w[0] < w[1]), "{} {:?}", name, list);
                    prop_assert_eq!(list.last(), Some(&(rows as u32 - 1)), "{}", name);
                    let most = match (name, rows_of.reads) {
                        ("quest", _) => 2 * tokens.div_ceil(4) * 4,
                        ("pooled", _) => 2 * tokens + 1,
                        ("tidal, mass", _) => tokens,
                        (_, Reads::PerHead) => tokens,
                        _ => 2 * tokens,
                    };
                    prop_assert!(list.len() <= most, "{} {:?}", name, list);
                }
            }
        }
    }
}

#[test]
fn a_budget_of_all_rows_reads_all() {
    let dims = dims(5, 4, 2, 8);
    let store = TestStore::random(dims, 20, 1);
    for tokens in [Budget::Tokens(20), Budget::Tokens(500), Budget::Share(1.0)] {
        for (name, mut selector) in selectors(dims, tokens) {
            feed(&mut *selector, &store);
            let steps = step(&mut *selector, &store, 2);
            assert!(steps.iter().all(|rows| rows.reads == Reads::All), "{name}");
        }
    }
}

/// Appends the same random rows to both.
fn grow(store: &mut TestStore, selector: &mut dyn Selector, position: u32, seed: u64) {
    let dims = store.dims;
    let wide = dims.kv_heads * dims.head_dim;
    let mut rng = StdRng::seed_from_u64(seed);
    for layer in 0..dims.layers {
        let (keys, values) = (normal(&mut rng, wide), normal(&mut rng, wide));
        store.append(layer, &[position], &keys, &values);
        selector.on_append(layer, &[position], &keys);
    }
}

#[test]
fn what_was_taken_back_leaves_no_trace() {
    let dims = dims(5, 4, 2, 8);
    let tokens = Budget::Tokens(5);
    let mut store = TestStore::random(dims, 40, 1);
    for ((name, mut selector), (_, mut fresh)) in selectors(dims, tokens)
        .into_iter()
        .zip(selectors(dims, tokens))
    {
        feed(&mut *selector, &store);
        for (position, seed) in [(40, 8), (41, 9)] {
            grow(&mut store, &mut *selector, position, seed);
        }
        step(&mut *selector, &store, 3);
        store.truncate(40);
        selector.truncate(40);
        grow(&mut store, &mut *selector, 40, 10);
        feed(&mut *fresh, &store);
        let (got, expected) = (
            step(&mut *selector, &store, 4),
            step(&mut *fresh, &store, 4),
        );
        for (got, expected) in got.iter().zip(&expected) {
            if name != "quest" {
                assert_eq!(got.lists, expected.lists, "{name}");
            }
        }
        store.truncate(40);
    }
}

#[test]
fn after_rows_were_evicted_and_changed_the_choice_is_that_of_the_rows_that_are_there() {
    let dims = dims(5, 4, 2, 8);
    let tokens = Budget::Tokens(5);
    for (which, (name, mut selector)) in selectors(dims, tokens).into_iter().enumerate() {
        let mut store = TestStore::random(dims, 40, 1);
        feed(&mut *selector, &store);
        // Every layer and head keeps other rows.
        for layer in 0..dims.layers {
            for head in 0..dims.kv_heads {
                let keep: Vec<u32> = (0..40)
                    .filter(|row| !(row * 7 + layer as u32 + 3 * head as u32).is_multiple_of(4))
                    .collect();
                store.keep(layer, head, &keep);
                selector.changed(layer, head, 0);
                store.write(layer, head, &[11], &[0.25; 8], &[0.0; 8]);
                selector.changed(layer, head, 11);
            }
        }
        for position in [40, 41, 42] {
            grow(&mut store, &mut *selector, position, u64::from(position));
        }
        let got = step(&mut *selector, &store, 5);
        let (_, mut fresh) = selectors(dims, tokens).swap_remove(which);
        // A selector that never saw an append reads all keys from the store.
        for layer in 0..dims.layers {
            for head in 0..dims.kv_heads {
                fresh.changed(layer, head, 0);
            }
        }
        let expected = step(&mut *fresh, &store, 5);
        for (layer, (got, expected)) in got.iter().zip(&expected).enumerate() {
            assert_eq!(got.lists, expected.lists, "{name}, layer {layer}");
            for (i, list) in got.lists.iter().enumerate() {
                let head = i * dims.kv_heads / got.lists.len();
                let len = store.len(layer, head);
                assert!(list.iter().all(|&row| (row as usize) < len), "{name}");
            }
        }
        // Taken back beyond what was kept.
        store.truncate(41);
        selector.truncate(41);
        fresh.truncate(41);
        let (got, expected) = (
            step(&mut *selector, &store, 6),
            step(&mut *fresh, &store, 6),
        );
        for (got, expected) in got.iter().zip(&expected) {
            assert_eq!(got.lists, expected.lists, "{name}");
        }
    }
}

#[test]
fn the_oracle_reads_the_rows_of_most_attention_and_says_what_it_cost() {
    let dims = dims(1, 2, 1, 4);
    let mut store = TestStore::new(dims);
    let keys = [
        1.0, 0.0, 0.0, 0.0, 0.0, 3.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0,
        0.0, 0.0,
    ];
    store.append(0, &[0, 1, 2, 3, 4], &keys, &keys);
    let mut oracle = OracleTopK::new(Budget::Tokens(2), 0, dims).unwrap();
    let mut ctx = StepCtx::default();
    let queries = [1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0];
    let rows = choose(&mut oracle, 0, &queries, &store, &mut ctx);
    assert_eq!(rows.lists, [[1, 2, 4]]);
    assert_eq!(ctx.bytes_read, 5 * 16);
}

#[test]
fn a_window_reads_the_newest_and_the_first_rows() {
    let dims = dims(2, 2, 1, 4);
    let mut store = TestStore::random(dims, 30, 1);
    let mut window = SlidingWindow::new(5, 2, 1, dims).unwrap();
    let rows = step(&mut window, &store, 1);
    assert_eq!(rows[0].reads, Reads::All);
    assert_eq!(rows[1].lists, [[0, 1, 25, 26, 27, 28, 29]]);
    store.keep(1, 0, &[1, 3, 24, 25, 28, 29]);
    assert_eq!(step(&mut window, &store, 1)[1].lists, [[0, 3, 4, 5]]);
    // A window that reaches the first rows reads none twice.
    let mut wide = SlidingWindow::new(29, 5, 0, dims).unwrap();
    assert_eq!(step(&mut wide, &store, 1)[0].lists[0].len(), 30);
}

#[test]
fn quest_never_misses_a_page_whose_bound_is_greatest() {
    let dims = dims(1, 1, 1, 8);
    let store = TestStore::random(dims, 64, 5);
    let mut quest = QuestPages::new(8, Budget::Tokens(16), 0, dims).unwrap();
    feed(&mut quest, &store);
    let mut ctx = StepCtx::default();
    // Only one key of page 3 is large along the query.
    let mut query = vec![0.0; 8];
    query[2] = 1.0;
    let keys = store.keys(0);
    let best = (0..64)
        .max_by(|a, b| keys[a * 8 + 2].total_cmp(&keys[b * 8 + 2]))
        .unwrap();
    let rows = choose(&mut quest, 0, &query, &store, &mut ctx);
    assert!(rows.lists[0].contains(&(best as u32)));
    assert_eq!(rows.lists[0].len(), 16);
    assert_eq!(ctx.bytes_read, 8 * 2 * 8 * 4);
}

#[test]
fn the_power_mask_reads_the_blocks_that_it_shows() {
    let dims = dims(3, 2, 1, 4);
    let mut store = TestStore::random(dims, 20 * 64 + 7, 1);
    let mask = BlockMask {
        block: 64,
        window: 2,
        ..BlockMask::default()
    };
    let config = PowerConfig {
        mask,
        dense_layers: "1".parse().unwrap(),
        ..PowerConfig::default()
    };
    let mut power = PowerSelect::new(config, dims).unwrap();
    let rows = step(&mut power, &store, 1);
    assert_eq!(rows[1].reads, Reads::All);
    // Block 20 sees 20, 19 (window), 18, 16, 12, 4 (powers of two) and 0.
    let blocks = [0, 4, 12, 16, 18, 19, 20];
    let expected: Vec<u32> = (0..20 * 64 + 7)
        .filter(|row| blocks.contains(&(row / 64)))
        .collect();
    assert_eq!(rows[0].lists[0], expected);
    store.keep(0, 0, &[0, 1, 70, 64 * 4 + 1, 64 * 5, 64 * 20 + 6]);
    assert_eq!(step(&mut power, &store, 1)[0].lists, [[0, 1, 3, 5]]);
    // A later token of the next block sees other blocks.
    let team = Team::new(1);
    let mut rows = Rows::default();
    let mut ctx = StepCtx {
        position: 21 * 64,
        ..StepCtx::default()
    };
    power.select(2, &[0.0; 8], &*store, &mut ctx, &team, &mut rows);
    assert!(rows.lists[0].contains(&(5 * 64)) && !rows.lists[0].contains(&(4 * 64)));
}

#[test]
fn a_union_has_every_row_once_and_in_order() {
    let lists: [&[u32]; 4] = [&[0, 5, 63, 64, 700], &[], &[5, 64, 65], &[1, 699]];
    let mut rows = vec![9; 3];
    for _ in 0..2 {
        union(lists.into_iter(), &mut rows);
        assert_eq!(rows, [0, 1, 5, 63, 64, 65, 699, 700]);
    }
    union(lists[1..2].iter().copied(), &mut rows);
    assert!(rows.is_empty());
}

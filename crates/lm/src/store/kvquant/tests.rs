use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::calibration::Fitted;
use super::*;
use crate::roles::{KvStore, RowSet, WholeAttention};
use crate::select::act_qkv::{ActQkv, ActQkvConfig};
use crate::store::{CacheType, DenseStore};
use crate::test_store::{Fixture, assert_near, dims, normal, numbers};
use keyfold_kernels::Team;

const WIDTH: usize = 64;
const TOKENS: usize = 512;

/// The numbers that `parity/caches.py` makes, and the squares of gradients.
fn data() -> (Vec<f32>, Vec<f32>) {
    let scale: Vec<f32> = numbers(11, WIDTH).iter().map(|x| (1.5 * x).exp()).collect();
    let shift = numbers(13, WIDTH);
    let data = numbers(12, TOKENS * WIDTH).into_iter().enumerate();
    let data =
        data.map(|(i, x)| x * x * x * scale[i % WIDTH] + 0.5 * scale[i % WIDTH] * shift[i % WIDTH]);
    let fisher = numbers(14, TOKENS * WIDTH).iter().map(|x| x * x).collect();
    (data.collect(), fisher)
}

fn config(bits: u8) -> KvQuantConfig {
    KvQuantConfig {
        abits: bits,
        ..KvQuantConfig::default()
    }
}

fn calibrated(fisher: bool) -> Calibration {
    let (data, weights) = data();
    let mut statistics = Statistics::new(dims(1, 2, 2, 32), 0, false);
    let weights = fisher.then_some(&weights[..]);
    statistics
        .observe(0, &data, &data, weights, weights)
        .unwrap();
    let config = CalibrationConfig {
        weighting: Weighting::Fisher,
        ..CalibrationConfig::default()
    };
    statistics
        .calibrate(&config, Some(7), &Team::new(1))
        .unwrap()
}

/// Σ w (x' - nearest)² over the numbers within the ends.
fn objective(table: &[f32], weights: Option<&[f32]>, ends: impl Fn(usize) -> (f32, f32)) -> f64 {
    let (data, _) = data();
    let terms = data.iter().enumerate().filter_map(|(i, x)| {
        let (upper, lower) = ends(i);
        let scaled = (x - 0.5 * (upper + lower)) / (0.5 * (upper - lower));
        let near = table
            .iter()
            .map(|t| (t - scaled).abs())
            .fold(f32::INFINITY, f32::min);
        let weight = weights.map_or(1.0, |w| f64::from(w[i]));
        (scaled.abs() <= 1.0).then_some(weight * f64::from(near).powi(2))
    });
    terms.sum()
}

#[test]
fn calibration_is_as_good_as_the_authors() {
    let fixture = Fixture::open("kvquant.safetensors");
    for (kind, fisher) in [("plain", false), ("fisher", true)] {
        let ours = calibrated(fisher);
        let layer = &ours.layers()[0];
        let upper = fixture.floats(&format!("k.3.{kind}.upper"));
        let lower = fixture.floats(&format!("k.3.{kind}.lower"));
        assert_near(&layer.upper, &upper, 1e-5, "upper thresholds");
        assert_near(&layer.lower, &lower, 1e-5, "lower thresholds");
        let of_tokens = ["upper", "lower"].map(|e| fixture.floats(&format!("v.3.{kind}.{e}")));
        let weights = data().1;
        let weights = fisher.then_some(&weights[..]);
        for bits in [2, 3, 4] {
            if fisher && bits != 3 {
                continue;
            }
            for part in ["k", "v"] {
                let ends = |i: usize| match part {
                    "k" => (upper[i % WIDTH], lower[i % WIDTH]),
                    _ => (of_tokens[0][i / WIDTH], of_tokens[1][i / WIDTH]),
                };
                let name = |what: &str| format!("{part}.{bits}.{kind}.{what}");
                let theirs = objective(&fixture.floats(&name("table")), weights, ends);
                // They say the same of their own.
                let told = f64::from(fixture.floats(&name("objective"))[0]);
                assert!((theirs / told - 1.0).abs() < 1e-3, "{theirs} {told}");
                let tables = if part == "k" {
                    &layer.keys
                } else {
                    &layer.values
                };
                let own = objective(&tables[bits - 2].centroids, weights, ends);
                assert!(own < 1.001 * theirs, "{part} {bits}: {own} and {theirs}");
            }
        }
    }
}

#[test]
fn numbers_are_rounded_as_the_authors_do() {
    let fixture = Fixture::open("kvquant.safetensors");
    let (data, _) = data();
    for bits in [2, 3, 4] {
        let of = |part: &str, what: &str| fixture.floats(&format!("{part}.{bits}.plain.{what}"));
        for normed in [false, true] {
            let expected = if normed { "normed" } else { "rounded" };
            let table = |part: &str| {
                let norm = of(part, "norm");
                Table::new(&of(part, "table"), normed.then_some([norm[0], norm[1]]))
            };
            let keys =
                KeyQuantizer::new(&of("k", "upper"), &of("k", "lower"), table("k"), true, None);
            let values = ValueQuantizer::new(table("v"), 0.99, false);
            let (mut work, mut codes, mut outliers) = (Vec::new(), vec![0; WIDTH], Vec::new());
            let (of_keys, of_values) = (of("k", expected), of("v", expected));
            for (r, row) in data.chunks(WIDTH).take(of_keys.len() / WIDTH).enumerate() {
                keys.encode(0, row, &mut work, &mut codes, &mut outliers);
                let mut got: Vec<f32> = (0..WIDTH)
                    .map(|c| {
                        keys.table.entries[usize::from(codes[c])] * keys.range[c] + keys.zero[c]
                    })
                    .collect();
                outliers.iter().for_each(|o| got[o.channel] += o.residual);
                assert_near(&got, &of_keys[r * WIDTH..][..WIDTH], 3e-6, "keys");
                let [scale, zero] = values.encode(row, &mut work, &mut codes, &mut outliers);
                let entry = |c: &u8| values.table.entries[usize::from(*c)];
                let mut got: Vec<f32> = codes
                    .iter()
                    .map(|c| entry(c) * scale.to_f32() + zero.to_f32())
                    .collect();
                outliers.iter().for_each(|o| got[o.channel] += o.residual);
                // Scale and zero are kept in 16 bits; at a middle a code may be the other one.
                let theirs = &of_values[r * WIDTH..][..WIDTH];
                let far = got
                    .iter()
                    .zip(theirs)
                    .filter(|(a, b)| (*a - *b).abs() > 3e-3);
                assert!(far.count() <= 1, "values of row {r}");
            }
        }
    }
}

#[test]
fn normal_floats_are_the_authors() {
    let fixture = Fixture::open("kvquant.safetensors");
    for bits in [2, 3, 4] {
        let theirs = fixture.floats(&format!("nf.{bits}"));
        assert_near(&tables::normal_float(bits), &theirs, 2e-6, "normal floats");
    }
}

/// A store with random rows, and what was put into it (keys before rotary embedding).
struct Filled {
    store: KvQuantStore,
    rotary: Rotary,
    keys: Vec<f32>,
    values: Vec<f32>,
}

const DIM: usize = 16;

fn filled(
    config: KvQuantConfig,
    rows: usize,
    interleaved: bool,
    turned: usize,
    seed: u64,
) -> Filled {
    let dims = dims(1, 4, 2, DIM);
    let mut rng = StdRng::seed_from_u64(seed);
    let width = 2 * DIM;
    let mut draw = |n: usize| -> Vec<f32> {
        let mut rows = normal(&mut rng, n * width);
        // Channels differ, and few numbers are far out.
        for (i, x) in rows.iter_mut().enumerate() {
            *x = x.powi(3) * (1.0 + (i % width) as f32 / 8.0) + (i % 3) as f32;
        }
        rows
    };
    let mut statistics = Statistics::new(dims, 0, interleaved);
    let (keys, values) = (draw(300), draw(300));
    statistics.observe(0, &keys, &values, None, None).unwrap();
    let of = CalibrationConfig {
        sparsity_threshold: config.sparsity_threshold,
        ..CalibrationConfig::default()
    };
    let calibration = statistics.calibrate(&of, None, &Team::new(1)).unwrap();
    let inv_freq = (0..turned).map(|i| 0.9f32.powi(3 * i as i32)).collect();
    let rotary = Rotary::with(inv_freq, 1.25, interleaved, vec![turned > 0]);
    let mut store = KvQuantStore::with(dims, config, &calibration, rotary.clone()).unwrap();
    let (keys, values) = (draw(rows), draw(rows));
    let positions: Vec<u32> = (0..rows as u32).collect();
    // In parts, as sessions do.
    for part in [0..rows / 3, rows / 3..rows] {
        let numbers = part.start * width..part.end * width;
        store.append(
            0,
            &positions[part],
            &keys[numbers.clone()],
            &values[numbers],
        );
    }
    Filled {
        store,
        rotary,
        keys,
        values,
    }
}

/// All rows of a head, as `read` gives them.
fn dense(store: &KvQuantStore, head: usize) -> (Vec<f32>, Vec<f32>) {
    let rows = store.len(0, head);
    let (mut keys, mut values) = (vec![0.0; rows * DIM], vec![0.0; rows * DIM]);
    store.read(0, head, 0..rows, &mut keys, &mut values);
    (keys, values)
}

/// Products and sums are those of the rows that `read` gives, for runs and lists.
fn consistent(store: &KvQuantStore, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    for head in 0..2 {
        let (keys, values) = dense(store, head);
        let rows = store.len(0, head);
        let queries = normal(&mut rng, 3 * DIM);
        let list: Vec<u32> = (0..rows as u32)
            .filter(|r| r % 5 != 1 && r % 11 > 2)
            .collect();
        for set in [
            RowSet::Range(0, rows),
            RowSet::Range(rows / 3, rows),
            RowSet::Range(rows / 7, rows / 2),
            RowSet::List(&list),
        ] {
            let at = |i: usize| match set {
                RowSet::Range(from, _) => from + i,
                RowSet::List(list) => list[i] as usize,
            };
            let n = set.len();
            let mut scores = vec![9.0; 3 * n];
            store.dot(0, head, &queries, set, &mut scores);
            let weights = normal(&mut rng, 3 * n);
            let mut out = vec![0.5; 3 * DIM];
            store.mix(0, head, &weights, set, &mut out);
            let mut expected = vec![0.5f64; 3 * DIM];
            for q in 0..3 {
                for i in 0..n {
                    let key = &keys[at(i) * DIM..][..DIM];
                    let pairs = queries[q * DIM..][..DIM].iter().zip(key);
                    let (want, size) = pairs.fold((0.0, 1.0), |(w, s), (a, b)| {
                        let term = f64::from(a * b);
                        (w + term, s + term.abs())
                    });
                    let got = f64::from(scores[q * n + i]);
                    assert!((got - want).abs() < 2e-5 * size, "{got} {want}");
                    for c in 0..DIM {
                        let term = f64::from(weights[q * n + i] * values[at(i) * DIM + c]);
                        expected[q * DIM + c] += term;
                    }
                }
            }
            for (got, want) in out.iter().zip(&expected) {
                assert!((f64::from(*got) - want).abs() < 2e-3 * (1.0 + want.abs()).sqrt());
            }
        }
    }
}

/// What is lost at most in 2, 3 and 4 bits of numbers with long tails. Rows turned wrongly would
/// lose 1.4.
const LIMITS: [f32; 3] = [0.95, 0.6, 0.35];

/// `|got - want| / |want|` over all numbers.
fn error(got: &[f32], want: &[f32]) -> f32 {
    let apart: f32 = got.iter().zip(want).map(|(a, b)| (a - b).powi(2)).sum();
    (apart / want.iter().map(|x| x * x).sum::<f32>()).sqrt()
}

impl Filled {
    /// Keys of a head as they should be read: turned by their positions.
    fn keys_of(&self, head: usize, rows: &[u32]) -> Vec<f32> {
        let mut all = Vec::new();
        for &row in rows {
            let mut key = self.keys[(row as usize * 2 + head) * DIM..][..DIM].to_vec();
            if self.store.rotary.turns(0) {
                let mut rotary = self.rotary.clone();
                rotary.reach(row);
                rotary.turn(row, &mut key);
            }
            all.extend(key);
        }
        all
    }

    fn values_of(&self, head: usize, rows: &[u32]) -> Vec<f32> {
        let row = |&r: &u32| self.values[(r as usize * 2 + head) * DIM..][..DIM].to_vec();
        rows.iter().flat_map(row).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn what_is_stored_is_read_turned_and_near(
        bits in 2u8..5,
        rows in 30usize..200,
        interleaved: bool,
        turned in prop::sample::select(vec![0, 3, DIM / 2]),
        sinks in 0usize..4,
        sparse: bool,
        seed: u64,
    ) {
        let config = KvQuantConfig {
            first_few_fp16: sinks,
            sparsity_threshold: if sparse { 0.98 } else { 1.0 },
            ..config(bits)
        };
        let filled = filled(config, rows, interleaved, turned, seed);
        let all: Vec<u32> = (0..rows as u32).collect();
        for head in 0..2 {
            let (keys, values) = dense(&filled.store, head);
            // Without outliers what lies beyond the calibration's ends is lost.
            let limit = if sparse { LIMITS[usize::from(bits - 2)] } else { 1.1 };
            let (e, f) = (error(&keys, &filled.keys_of(head, &all)), error(&values, &filled.values_of(head, &all)));
            prop_assert!(e < limit && f < limit, "{bits} bits: {e} {f}");
            prop_assert!(e > 1e-4 && f > 1e-4);
            let first = &all[..sinks];
            assert_near(&keys[..sinks * DIM], &filled.keys_of(head, first), 0.1, "first keys");
            if sinks > 0 {
                let (e, f) = (
                    error(&keys[..sinks * DIM], &filled.keys_of(head, first)),
                    error(&values[..sinks * DIM], &filled.values_of(head, first)),
                );
                prop_assert!(e < 1e-3 && f < 1e-3);
            }
        }
        consistent(&filled.store, seed);
    }

    #[test]
    fn rows_are_dropped_and_written_anew(
        bits in 2u8..5,
        rows in 30usize..150,
        interleaved: bool,
        sinks in 0usize..3,
        seed: u64,
    ) {
        let config = KvQuantConfig { first_few_fp16: sinks, ..config(bits) };
        let mut filled = filled(config, rows, interleaved, DIM / 2, seed);
        let before = [dense(&filled.store, 0), dense(&filled.store, 1)];
        let keep: Vec<u32> = (0..rows as u32).filter(|r| (r * r + seed as u32 % 7) % 5 < 3).collect();
        filled.store.keep(0, 1, &keep);
        prop_assert_eq!(filled.store.positions(0, 1), &keep[..]);
        let after = dense(&filled.store, 1);
        for (i, &row) in keep.iter().enumerate() {
            let (from, to) = (row as usize * DIM, i * DIM);
            assert_near(&after.0[to..to + DIM], &before[1].0[from..from + DIM], 2e-4, "kept keys");
            assert_near(&after.1[to..to + DIM], &before[1].1[from..from + DIM], 0.0, "kept values");
        }
        prop_assert_eq!(&dense(&filled.store, 0), &before[0]);
        consistent(&filled.store, seed);

        // Written rows come back as near as stored ones, the others as they were.
        let new = keep.len() as u32 / 2;
        let written = [new, keep.len() as u32 - 1];
        let (keys, values) = (filled.keys_of(0, &[5, 9]), filled.values_of(0, &[5, 9]));
        filled.store.write(0, 1, &written, &keys, &values);
        let read = dense(&filled.store, 1);
        for (i, &row) in written.iter().enumerate() {
            let at = row as usize * DIM..(row as usize + 1) * DIM;
            let own = i * DIM..(i + 1) * DIM;
            let limit = 1.5 * LIMITS[usize::from(bits - 2)];
            // As a part of what rows have on average: this one may be a small one.
            let lost = |got: &[f32], want: &[f32], all: &[f32]| {
                let square = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>();
                let apart: Vec<f32> = got.iter().zip(want).map(|(a, b)| a - b).collect();
                (square(&apart) / square(all) * (all.len() / DIM) as f32).sqrt()
            };
            let far = lost(&read.1[at.clone()], &values[own.clone()], &filled.values);
            prop_assert!(far < limit, "{far}");
            let far = lost(&read.0[at], &keys[own], &filled.keys);
            prop_assert!(far < limit, "{far}");
        }
        for row in (0..keep.len()).filter(|r| !written.contains(&(*r as u32))) {
            let at = row * DIM..(row + 1) * DIM;
            prop_assert_eq!(&read.0[at.clone()], &after.0[at.clone()]);
            prop_assert_eq!(&read.1[at.clone()], &after.1[at]);
        }
        consistent(&filled.store, seed);

        // A text goes on after it is cut, as if the rest had never been.
        let cut = rows as u32 / 2;
        filled.store.truncate(cut);
        prop_assert!(filled.store.positions(0, 0).iter().chain(filled.store.positions(0, 1)).all(|&p| p < cut));
        let width = 2 * DIM;
        let again: Vec<u32> = (cut..rows as u32).collect();
        let numbers = cut as usize * width..rows * width;
        filled.store.append(0, &again, &filled.keys[numbers.clone()], &filled.values[numbers]);
        let (keys, values) = dense(&filled.store, 0);
        assert_near(&keys, &before[0].0, 1e-4, "keys");
        assert_near(&values, &before[0].1, 1e-4, "values");
        consistent(&filled.store, seed);
    }

    #[test]
    fn a_saved_head_is_restored_and_damage_is_refused(bits in 2u8..5, rows in 0usize..60, at: prop::sample::Index, seed: u64) {
        let filled = filled(config(bits), rows.max(4), false, 4, seed);
        let (positions, bytes) = filled.store.save(0, 1);
        let mut other = filled.store.clone();
        other.truncate(0);
        prop_assert!(other.restore(0, 1, &positions, &bytes));
        prop_assert_eq!(dense(&other, 1), dense(&filled.store, 1));
        prop_assert!(!other.restore(0, 1, &positions, &bytes[..at.index(bytes.len())]));
        // Whatever stands there, nothing is read that is not there.
        let mut wrong = bytes.clone();
        wrong[at.index(bytes.len())] ^= 0x40;
        if other.restore(0, 1, &positions, &wrong) {
            let _ = dense(&other, 1);
        }
    }
}

#[test]
fn a_capped_token_has_few_numbers_beside_its_codes() {
    let share = |cap_outliers| {
        let config = KvQuantConfig {
            sparsity_threshold: 0.9,
            cap_outliers,
            ..config(3)
        };
        filled(config, 200, false, 8, 3).store.outlier_shares()
    };
    // 32 channels: 1.6 at each end, so 2.
    let (keys, values) = share(true);
    assert!(values <= 4.0 / 32.0 + 1e-9 && values > 0.1, "{values}");
    assert!(keys <= 4.0 / 32.0 && keys > 0.05, "{keys}");
    let (free, _) = share(false);
    assert!(free > keys);
    assert_eq!(quantizer::cap(0.99, 4096), 21);
}

#[test]
fn bytes_are_those_of_the_formula() {
    for bits in [2, 3, 4] {
        let rows = 160;
        let config = KvQuantConfig {
            first_few_fp16: 0,
            ..config(bits)
        };
        let store = filled(config, rows, false, 8, 1).store;
        let (keys, values) = store.outlier_shares();
        let codes = 2 * DIM * usize::from(bits) / 8;
        let beside = (keys + values) * DIM as f64 * 4.0;
        // Scale and zero, position, and where the numbers beside the codes begin.
        let per_row = codes as f64 + beside + 4.0 + 4.0 + 1.0;
        let told = store.bytes() as f64 / (2 * rows) as f64;
        assert!((told - per_row).abs() < 0.2, "{told} {per_row}");
        let (key, value) = store.row_bytes();
        assert!((key + value) as f64 <= told && (key + value) as f64 > told - 6.0);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let calibration = calibrated(false);
    let said = |config: KvQuantConfig, dims: Dims| {
        let rotary = Rotary::with(Vec::new(), 1.0, false, vec![false; dims.layers]);
        let made = KvQuantStore::with(dims, config, &calibration, rotary);
        made.unwrap_err().to_string()
    };
    let fits = dims(1, 2, 2, 32);
    assert!(said(config(5), fits).contains("5 bits"));
    assert!(said(config(3), dims(2, 2, 2, 32)).contains("2"));
    assert!(said(config(3), dims(1, 2, 1, 32)).contains("64 channels"));
    assert!(said(config(3), dims(1, 2, 2, 36)).contains("36"));
    let other = KvQuantConfig {
        sparsity_threshold: 0.95,
        ..config(3)
    };
    assert!(said(other, fits).contains("1.00 % outliers"));
    assert!(calibration.check_model(7).is_ok());
    assert!(
        calibration
            .check_model(8)
            .unwrap_err()
            .to_string()
            .contains("another model")
    );

    let mut statistics = Statistics::new(fits, 0, false);
    let rows = |n: usize| vec![0.5; n * WIDTH];
    let team = Team::new(1);
    statistics
        .observe(0, &rows(31), &rows(31), None, None)
        .unwrap();
    let few = statistics.calibrate(&CalibrationConfig::default(), None, &team);
    assert!(few.unwrap_err().to_string().contains("31"));
    let mut bad = rows(1);
    bad[3] = f32::NAN;
    let error = statistics
        .observe(0, &bad, &rows(1), None, None)
        .unwrap_err();
    assert!(error.to_string().contains("not finite"));
    assert!(
        statistics
            .observe(0, &rows(1), &rows(2), None, None)
            .is_err()
    );
    assert!(
        statistics
            .observe(1, &rows(1), &rows(1), None, None)
            .is_err()
    );
    let gradients = rows(1);
    let mixed = statistics.observe(0, &rows(1), &rows(1), Some(&gradients), Some(&gradients));
    assert!(mixed.is_err());
    // Channels that never change are no harm.
    statistics
        .observe(0, &rows(33), &rows(33), None, None)
        .unwrap();
    let flat = statistics
        .calibrate(&CalibrationConfig::default(), None, &team)
        .unwrap();
    assert!(
        flat.layers()[0].keys[0]
            .centroids
            .iter()
            .all(|x| x.is_finite())
    );
}

#[test]
fn first_tokens_of_every_sequence_are_left_out() {
    let fits = dims(1, 2, 2, 32);
    let mut statistics = Statistics::new(fits, 5, false);
    let rows = vec![0.5; 4 * WIDTH];
    for _ in 0..2 {
        statistics.begin_sequence();
        for _ in 0..3 {
            statistics.observe(0, &rows, &rows, None, None).unwrap();
        }
    }
    assert_eq!(statistics.tokens(), 2 * 7);
}

#[test]
fn a_calibration_is_a_file_that_notices_damage() {
    let calibration = calibrated(true);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.safetensors");
    calibration.save(&path).unwrap();
    assert_eq!(Calibration::load(&path).unwrap(), calibration);
    let bytes = std::fs::read(&path).unwrap();
    for at in (0..bytes.len()).step_by(bytes.len() / 200 + 1) {
        let mut changed = bytes.clone();
        changed[at] ^= 0x11;
        // Spaces that fill the header up may change.
        if let Ok(read) = Calibration::from_bytes(&changed) {
            assert_eq!(read, calibration, "byte {at}");
        }
        assert!(Calibration::from_bytes(&bytes[..at]).is_err());
    }
    // What the header says is covered, not the numbers alone.
    for name in ["model", "sparsity_threshold", "tokens", "fisher"] {
        let entry = format!("\"{name}\":\"");
        let mut entries = bytes.windows(entry.len());
        let at = entries.position(|w| w == entry.as_bytes()).unwrap() + entry.len();
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        let wrong = Calibration::from_bytes(&changed).unwrap_err();
        assert!(wrong.contains("checksum"), "{name}: {wrong}");
    }
    assert!(Calibration::load(&folder.path().join("none")).is_err());
    assert!(
        Calibration::from_bytes(b"{}")
            .unwrap_err()
            .contains("calibrate")
    );
}

#[test]
fn the_authors_file_is_taken_without_running_it() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures-long-context/quantizers.pickle"
    );
    let taken = Calibration::from_pickle(path.as_ref(), 0.99).unwrap();
    let fixture = Fixture::open("kvquant.safetensors");
    let layer = &taken.layers()[0];
    assert_near(
        &layer.upper,
        &fixture.floats("k.3.plain.upper"),
        1e-6,
        "upper",
    );
    let Fitted { centroids, norm } = &layer.keys[1];
    assert_near(centroids, &fixture.floats("k.3.plain.table"), 1e-6, "table");
    assert_near(norm, &fixture.floats("k.3.plain.norm"), 1e-6, "norm");
    assert_near(
        &layer.values[1].centroids,
        &fixture.floats("v.3.plain.table"),
        1e-6,
        "values",
    );
    let fits = dims(1, 2, 2, 32);
    let rotary = || Rotary::with(Vec::new(), 1.0, false, vec![false]);
    assert!(KvQuantStore::with(fits, config(3), &taken, rotary()).is_ok());
    let lacks = KvQuantStore::with(fits, config(4), &taken, rotary());
    assert!(lacks.unwrap_err().to_string().contains("4 bits"));
}

#[test]
fn channels_are_numbered_as_published_and_as_the_model_has_them() {
    let model: Vec<f32> = (0..16).map(|i| i as f32).collect();
    let published = calibration::published(&model, 8, true);
    assert_eq!(published[..8], [0.0, 2.0, 4.0, 6.0, 1.0, 3.0, 5.0, 7.0]);
    assert_eq!(calibration::channels(&published, 8, true), model);
}

/// Old tokens in few bits beside 16: the output of a decoded token that looks them up.
#[test]
fn blocks_of_far_keys_are_kept_in_few_bits() {
    let dims = dims(1, 2, 2, 32);
    let (rows, _) = data();
    let width = 2 * 32;
    let angles = crate::select::act_qkv::Rotary {
        inv_freq: (0..16).map(|i| 1e4f32.powf(-(i as f32) / 16.0)).collect(),
        scale: 1.0,
        interleaved: false,
    };
    let settings = ActQkvConfig {
        block_size: 8,
        n_init: 4,
        n_local: 32,
        topk: 8,
        repr_topk: 2,
        exc_block_size: 16,
        ..ActQkvConfig::default()
    };
    let frequencies = angles.inv_freq.clone();
    let run = |store: Box<dyn KvStore>| {
        let mut act = ActQkv::with_store(settings.clone(), dims, angles.clone(), store).unwrap();
        let (team, positions): (_, Vec<u32>) = (Team::new(2), (0..TOKENS as u32).collect());
        let mut out = vec![0.0; rows.len()];
        let queries = numbers(3, rows.len());
        act.attend(
            0, &queries, &rows, &rows, &positions, false, &team, &mut out,
        );
        (out[200 * width..].to_vec(), act.bytes())
    };
    let error = |a: &[f32], b: &[f32]| {
        let square = |x: f32| f64::from(x * x);
        let off: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
        (off / b.iter().map(|&b| square(b)).sum::<f64>()).sqrt()
    };
    let plain = || Box::new(DenseStore::new(dims, CacheType::F16, 0).unwrap());
    let (half, half_bytes) = run(plain());
    let few = |bits: u8| {
        let all = vec![true];
        let rotary = Rotary::with(frequencies.clone(), 1.0, false, all);
        KvQuantStore::with(dims, config(bits), &calibrated(false), rotary).unwrap()
    };
    let eight = DenseStore::new(dims, CacheType::Q8_0, 0).unwrap();
    let (of_eight, bytes) = run(Box::new(eight));
    assert!(error(&of_eight, &half) < 0.02 && bytes < half_bytes);
    let (four, bytes) = run(Box::new(few(4).unrotated()));
    let (two, less) = run(Box::new(few(2).unrotated()));
    let (turned, _) = run(Box::new(few(4)));
    let [four, two, turned] = [four, two, turned].map(|out| error(&out, &half));
    assert!(four < 0.15 && four < two, "{four} {two}");
    // Keys that are turned by their positions are not what a far query is made for.
    assert!(turned > 2.0 * four, "{turned} {four}");
    assert!(
        less < bytes && bytes < half_bytes,
        "{less} {bytes} {half_bytes}"
    );
}

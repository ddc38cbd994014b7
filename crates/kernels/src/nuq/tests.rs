use std::ops::Range;

use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::attention::{Rotation, RowSet};
use crate::vector::Portable;

fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = SmallRng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
}

fn codes(n: usize, bits: u32, seed: u64) -> Vec<u8> {
    let mut rng = SmallRng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(0..1 << bits)).collect()
}

fn near(got: f32, want: f64) -> bool {
    (f64::from(got) - want).abs() < 2e-5 * (1.0 + want.abs())
}

/// How pairs of channels are turned: random angles for `stride` columns.
struct Turns {
    pairs: usize,
    rotation: Rotation,
    stride: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Turns {
    /// Of no, some, or all channels: `part` is 0 to 3.
    fn new(dim: usize, part: usize, interleaved: bool, stride: usize, seed: u64) -> Self {
        let pairs = dim / 2 * part / 3;
        let angles = numbers(pairs * stride, seed);
        Self {
            pairs,
            rotation: if interleaved {
                Rotation::Interleaved
            } else {
                Rotation::Half
            },
            stride,
            cos: angles.iter().map(|a| a.cos()).collect(),
            sin: angles.iter().map(|a| a.sin()).collect(),
        }
    }

    fn angles(&self) -> Angles<'_> {
        Angles {
            cos: &self.cos,
            sin: &self.sin,
            stride: self.stride,
        }
    }

    /// Turns a key by the angles of a column.
    fn turn(&self, key: &mut [f64], column: usize) {
        for pair in 0..self.pairs {
            let (a, b) = match self.rotation {
                Rotation::Interleaved => (2 * pair, 2 * pair + 1),
                Rotation::Half => (pair, pair + self.pairs),
            };
            let at = pair * self.stride + column;
            let (c, s) = (f64::from(self.cos[at]), f64::from(self.sin[at]));
            (key[a], key[b]) = (key[a] * c - key[b] * s, key[b] * c + key[a] * s);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn products_with_keys_are_those_of_the_turned_numbers(
        bits in 2u32..5,
        granules in 0usize..6,
        dim in 1usize..70,
        part in 0usize..4,
        g in 1usize..7,
        column in 0usize..20,
        interleaved: bool,
        seed: u64,
    ) {
        let rows = granules * GRANULE;
        let codes = codes(rows * dim, bits, seed);
        let tables = numbers(dim << bits, !seed);
        let mut packed = vec![0xff; granules * dim * bits as usize + BEHIND];
        for (at, &code) in codes.iter().enumerate() {
            let (row, channel) = (at / dim, at % dim);
            let group = (row / GRANULE * dim + channel) * bits as usize;
            Group::new(&mut packed[group..][..bits as usize]).set(row % GRANULE, code);
        }
        for (at, &code) in codes.iter().enumerate() {
            let (row, channel) = (at / dim, at % dim);
            let group = (row / GRANULE * dim + channel) * bits as usize;
            prop_assert_eq!(Group::new(&mut packed[group..][..bits as usize]).get(row % GRANULE), code);
        }
        let mut padded = vec![0.0; dim * table_len(bits)];
        for (channel, to) in padded.chunks_mut(table_len(bits)).enumerate() {
            fill_table(to, bits, |i| tables[(channel << bits) + i]);
        }
        let turns = Turns::new(dim, part, interleaved, column + rows + 3, seed / 2);
        let (angles, rotation) = (turns.angles(), turns.rotation);
        let keys = KeyCodes { bits, dim, bytes: &packed, tables: &padded, rotation };

        // Dense, row by row.
        let mut dense: Vec<f64> = codes
            .iter()
            .enumerate()
            .map(|(at, &code)| f64::from(tables[((at % dim) << bits) + usize::from(code)]))
            .collect();
        for (row, key) in dense.chunks_mut(dim).enumerate() {
            turns.turn(key, column + row);
        }
        let queries = numbers(g * dim, seed / 3);
        let (mut here, mut twin) = (vec![9.0; g * rows], vec![9.0; g * rows]);
        dot_keys(keys, angles, 0..granules, column, &queries, &mut here);
        keys::dot_with::<Portable>(keys, angles, 0..granules, column, &queries, &mut twin);
        let mut narrow = vec![9.0; g * rows];
        keys::dot_narrow(keys, angles, 0..granules, column, &queries, &mut narrow);
        for q in 0..g {
            for row in 0..rows {
                let pairs = queries[q * dim..][..dim].iter().zip(&dense[row * dim..][..dim]);
                let want: f64 = pairs.map(|(&q, k)| f64::from(q) * k).sum();
                prop_assert!(near(here[q * rows + row], want), "{} {want}", here[q * rows + row]);
                prop_assert!(near(twin[q * rows + row], want));
                prop_assert!(near(narrow[q * rows + row], want));
            }
        }
        for granule in 0..granules {
            let (mut here, mut twin) = (vec![0.0; GRANULE * dim], vec![0.0; GRANULE * dim]);
            read_keys(keys, angles, granule, column + granule * GRANULE, &mut here);
            keys::read_with::<Portable>(keys, angles, granule, column + granule * GRANULE, &mut twin);
            let want = &dense[granule * GRANULE * dim..][..GRANULE * dim];
            prop_assert!(here.iter().zip(want).all(|(&x, &y)| near(x, y)));
            prop_assert!(twin.iter().zip(want).all(|(&x, &y)| near(x, y)));
        }
    }

    #[test]
    fn sums_of_values_are_those_of_the_numbers(
        bits in 2u32..5,
        count in 0usize..60,
        groups in 1usize..18,
        g in 1usize..7,
        listed: bool,
        seed: u64,
    ) {
        let dim = 8 * groups;
        let codes = codes(count * dim, bits, seed);
        let table = numbers(1 << bits, !seed);
        let mut padded = vec![0.0; table_len(bits)];
        fill_table(&mut padded, bits, |i| table[i]);
        let mut packed = vec![0; count * groups * bits as usize + BEHIND];
        for (at, &code) in codes.iter().enumerate() {
            let group = at / 8 * bits as usize;
            Group::new(&mut packed[group..][..bits as usize]).set(at % 8, code);
        }
        let values = ValueCodes { bits, dim, bytes: &packed, table: &padded };
        let list: Vec<u32> = (0..count as u32).filter(|i| i % 3 != 1).collect();
        let set = if listed { RowSet::List(&list) } else { RowSet::Range(count / 5, count) };
        let rows: Vec<usize> = if listed {
            list.iter().map(|&r| r as usize).collect()
        } else {
            (count / 5..count).collect()
        };
        let weights = numbers(g * rows.len(), seed / 2);
        let start = numbers(g * dim, seed / 3);
        let (mut here, mut twin) = (start.clone(), start.clone());
        mix_values(values, &weights, set, &mut here);
        values::mix_body::<Portable>(values, &weights, set, &mut twin);
        let mut narrow = start.clone();
        values::mix(values, &weights, set, &mut narrow);
        let number = |row: usize, c: usize| f64::from(table[usize::from(codes[row * dim + c])]);
        for q in 0..g {
            for c in 0..dim {
                let term = |(i, &row): (usize, &usize)| {
                    f64::from(weights[q * rows.len() + i]) * number(row, c)
                };
                let want = f64::from(start[q * dim + c]) + rows.iter().enumerate().map(term).sum::<f64>();
                prop_assert!(near(here[q * dim + c], want));
                prop_assert!(near(twin[q * dim + c], want));
                prop_assert!(near(narrow[q * dim + c], want));
            }
        }
        let scales: Vec<[f32; 2]> = (0..count).map(|i| [1.0 + i as f32, -0.5 * i as f32]).collect();
        let (mut here, mut twin) = (vec![0.0; count * dim], vec![0.0; count * dim]);
        read_values(values, 0, &scales, &mut here);
        values::unpack_body::<Portable>(values, 0, &scales, &mut twin);
        for (at, (&x, &y)) in here.iter().zip(&twin).enumerate() {
            let [scale, zero] = scales[at / dim];
            let want = number(at / dim, at % dim) * f64::from(scale) + f64::from(zero);
            prop_assert!(near(x, want) && near(y, want));
        }
    }

    #[test]
    fn codes_are_the_places_of_the_nearest_entries(
        values in prop::collection::vec(-2f32..2.0, 0..70),
        mut table in prop::collection::vec(-1f32..1.0, 16),
    ) {
        table.sort_by(f32::total_cmp);
        let bounds: Vec<f32> = table.windows(2).map(|w| 0.5 * (w[0] + w[1])).collect();
        let (mut here, mut twin) = (vec![9; values.len()], vec![9; values.len()]);
        nearest_codes(&values, &bounds, &mut here);
        encode::nearest_body::<Portable>(&values, &bounds, &mut twin);
        prop_assert_eq!(&here, &twin);
        for (&x, &code) in values.iter().zip(&here) {
            let own = (table[usize::from(code)] - x).abs();
            prop_assert!(table.iter().all(|t| own <= (t - x).abs() + 1e-6));
        }
    }
}

#[test]
fn what_is_no_number_has_the_first_code() {
    let mut codes = [9; 3];
    nearest_codes(
        &[f32::NAN, f32::INFINITY, f32::NEG_INFINITY],
        &[-0.5, 0.0, 0.5],
        &mut codes,
    );
    assert_eq!(codes, [0, 3, 0]);
}

#[test]
#[should_panic(expected = "granule 2 is not there")]
fn keys_that_are_not_there_are_refused() {
    let keys = KeyCodes {
        bits: 3,
        dim: 2,
        bytes: &[0; 15],
        tables: &[0.0; 16],
        rotation: Rotation::Half,
    };
    let none = Angles {
        cos: &[],
        sin: &[],
        stride: 0,
    };
    dot_keys(keys, none, 1..2, 0, &[1.0, 1.0], &mut [0.0; 8]);
}

#[test]
#[should_panic(expected = "row 1 is not there")]
fn values_that_are_not_there_are_refused() {
    let values = ValueCodes {
        bits: 2,
        dim: 8,
        bytes: &[0; 7],
        table: &[0.0; 8],
    };
    mix_values(values, &[1.0], RowSet::List(&[1]), &mut [0.0; 8]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn what_lies_beside_the_codes_is_added(
        rows in 1usize..70,
        dim in 1usize..40,
        part in 0usize..4,
        g in 1usize..7,
        column in 0usize..20,
        interleaved: bool,
        of_rows in (0usize..70, 0usize..70),
        seed: u64,
    ) {
        let granules = rows.div_ceil(GRANULE);
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut all = vec![0.0f64; granules * GRANULE * dim];
        let (mut beside, mut starts) = (Vec::new(), Vec::new());
        for row in 0..rows {
            if row % GRANULE == 0 {
                starts.push(beside.len() as u32);
            }
            for channel in 0..dim {
                if rng.random_range(0..6) == 0 {
                    let number = Beside::new(row % GRANULE, channel, rng.random_range(-2.0..2.0));
                    all[row * dim + channel] = f64::from(number.residual());
                    beside.push(number);
                }
            }
        }
        let beside = BesideRows { numbers: &beside, starts: &starts };
        // Values: rows from one to another.
        let (from, to) = (of_rows.0.min(of_rows.1).min(rows), of_rows.0.max(of_rows.1).min(rows));
        let weights = numbers(g * (to - from), !seed);
        let mut out = numbers(g * dim, seed / 5);
        let before = out.clone();
        mix_beside(beside, dim, &weights, (from, to), &mut out);
        for q in 0..g {
            for channel in 0..dim {
                let of_row = |row: usize| {
                    f64::from(weights[q * (to - from) + row - from]) * all[row * dim + channel]
                };
                let want = f64::from(before[q * dim + channel]) + (from..to).map(of_row).sum::<f64>();
                prop_assert!(near(out[q * dim + channel], want), "{} {want}", out[q * dim + channel]);
            }
        }
        // Keys: turned, all granules but the first.
        let run = granules.min(1)..granules;
        let count = run.len() * GRANULE;
        let turns = Turns::new(dim, part, interleaved, column + count + 2, seed / 2);
        let (angles, rotation) = (turns.angles(), turns.rotation);
        let queries = numbers(g * dim, seed / 3);
        let mut out = numbers(g * count, seed / 7);
        let before = out.clone();
        dot_beside(beside, run.clone(), dim, rotation, angles, column, &queries, &mut out);
        for row in 0..count {
            let mut key = all[(run.start * GRANULE + row) * dim..][..dim].to_vec();
            turns.turn(&mut key, column + row);
            for q in 0..g {
                let of_query = queries[q * dim..][..dim].iter().zip(&key);
                let add: f64 = of_query.map(|(&q, k)| f64::from(q) * k).sum();
                let want = f64::from(before[q * count + row]) + add;
                prop_assert!(near(out[q * count + row], want), "{} {want}", out[q * count + row]);
            }
        }
    }

    #[test]
    fn scales_and_zeros_are_split(rows in prop::collection::vec(any::<(i16, i16)>(), 0..40)) {
        let half = |x: i16| half::f16::from_f32(f32::from(x) / 64.0);
        let halves: Vec<[half::f16; 2]> = rows.iter().map(|&(a, b)| [half(a), half(b)]).collect();
        let (mut scales, mut zeros) = (vec![9.0; rows.len()], vec![9.0; rows.len()]);
        widen_scales(&halves, &mut scales, &mut zeros);
        for ([a, b], (scale, zero)) in halves.iter().zip(scales.iter().zip(&zeros)) {
            prop_assert_eq!((a.to_f32(), b.to_f32()), (*scale, *zero));
        }
    }
}

fn one_beside(granules: Range<usize>, column: usize, channel: usize) {
    let beside = BesideRows {
        numbers: &[Beside::new(0, channel, 1.0)],
        starts: &[0],
    };
    let angles = Angles {
        cos: &[1.0; 8],
        sin: &[0.0; 8],
        stride: 8,
    };
    let (half, ones, mut out) = (Rotation::Half, [1.0; 2], [0.0; 8]);
    dot_beside(beside, granules, 2, half, angles, column, &ones, &mut out);
}

#[test]
#[should_panic(expected = "granule 2 is not there")]
fn granules_that_are_not_there_have_nothing_beside_them() {
    one_beside(1..2, 0, 0);
}

#[test]
#[should_panic(expected = "shapes do not fit")]
fn columns_beyond_all_counting_are_refused() {
    one_beside(0..1, usize::MAX - 3, 0);
}

#[test]
#[should_panic(expected = "no channel 2")]
fn channels_that_no_key_has_are_refused() {
    one_beside(0..1, 0, 2);
}

#[test]
#[should_panic(expected = "no channel 2")]
fn channels_that_no_value_has_are_refused() {
    let beside = BesideRows {
        numbers: &[Beside::new(0, 2, 1.0)],
        starts: &[0],
    };
    mix_beside(beside, 2, &[1.0], (0, 1), &mut [0.0; 2]);
}

use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::blocks::{BlockType, quantize};
use crate::vector::Portable;

const KINDS: [BlockType; 5] = [
    BlockType::F32,
    BlockType::F16,
    BlockType::Bf16,
    BlockType::Q8_0,
    BlockType::Q4_0,
];

fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = SmallRng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// Rows of a cache with a gap behind each.
fn cache(kind: BlockType, rows: usize, dim: usize, gap: usize, seed: u64) -> (Vec<u8>, usize) {
    let row_bytes = kind.row_bytes(dim).unwrap();
    let stride = row_bytes + gap;
    let mut bytes = vec![0xa5; rows * stride];
    for (i, row) in bytes.chunks_exact_mut(stride).enumerate() {
        let values = numbers(dim, seed ^ i as u64);
        quantize(kind, &values, &mut row[..row_bytes]);
    }
    // The last row needs nothing behind it.
    bytes.truncate((rows * stride).saturating_sub(gap));
    (bytes, stride)
}

fn near(got: f32, want: f64, size: f64) -> bool {
    (f64::from(got) - want).abs() < 1e-6 * size + 1e-6
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn products_and_sums_of_rows_are_those_of_the_unpacked_ones(
        kind in prop::sample::select(KINDS.to_vec()),
        count in 0usize..150,
        dim in prop_oneof![Just(32usize), Just(64), Just(96), Just(128), 1usize..80],
        g in 1usize..9,
        gap in 0usize..5,
        listed: bool,
        seed: u64,
    ) {
        let dim = dim.next_multiple_of(kind.block_len());
        let (bytes, stride) = cache(kind, count, dim, gap, seed);
        let rows = CacheRows { kind, dim, stride, bytes: &bytes };
        let list: Vec<u32> = (0..count as u32).filter(|i| i % 3 != 1).collect();
        let set = if listed {
            RowSet::List(&list)
        } else {
            RowSet::Range(count / 5, count)
        };
        let n = set.len();
        prop_assert_eq!(set.is_empty(), n == 0);
        let mut dense = vec![0.0; n * dim];
        read_rows(rows, set, &mut dense);

        let queries = numbers(g * dim, !seed);
        let (mut here, mut twin) = (vec![9.0; g * n], vec![9.0; g * n]);
        let mut narrow = here.clone();
        dot_rows(rows, &queries, set, &mut here);
        rows::dots(rows, &queries, set, &mut narrow);
        rows::dots_body::<Portable>(rows, &queries, set, &mut twin);
        for q in 0..g {
            for r in 0..n {
                let pairs = queries[q * dim..][..dim].iter().zip(&dense[r * dim..][..dim]);
                let terms: Vec<f64> = pairs.map(|(&a, &b)| f64::from(a) * f64::from(b)).collect();
                let (want, size): (f64, f64) = (terms.iter().sum(), terms.iter().map(|t| t.abs()).sum());
                prop_assert!(near(here[q * n + r], want, size));
                prop_assert!(near(twin[q * n + r], want, size));
                prop_assert!(near(narrow[q * n + r], want, size));
            }
        }

        let weights = numbers(g * n, seed / 2);
        let start = numbers(g * dim, seed / 3);
        let (mut here, mut twin) = (start.clone(), start.clone());
        let mut narrow = start.clone();
        mix_rows(rows, &weights, set, &mut here);
        rows::mix(rows, &weights, set, &mut narrow);
        rows::mix_body::<Portable>(rows, &weights, set, &mut twin);
        for q in 0..g {
            for i in 0..dim {
                let term = |r: usize| f64::from(weights[q * n + r]) * f64::from(dense[r * dim + i]);
                let want = f64::from(start[q * dim + i]) + (0..n).map(term).sum::<f64>();
                let size = (0..n).map(|r| term(r).abs()).sum::<f64>();
                prop_assert!(near(here[q * dim + i], want, size));
                prop_assert!(near(twin[q * dim + i], want, size));
                prop_assert!(near(narrow[q * dim + i], want, size));
            }
        }
    }

    #[test]
    fn heads_turn_by_the_angles_and_keep_their_length(
        heads in 0usize..4,
        pairs in 0usize..33,
        rest in 0usize..7,
        seed: u64,
    ) {
        let dim = 2 * pairs + rest;
        prop_assume!(dim > 0);
        let x = numbers(heads * dim, seed);
        let angles = numbers(pairs, !seed);
        let cos: Vec<f32> = angles.iter().map(|a| a.cos()).collect();
        let sin: Vec<f32> = angles.iter().map(|a| a.sin()).collect();
        for rotation in [Rotation::Half, Rotation::Interleaved] {
            let place = |i: usize| match rotation {
                Rotation::Half => (i, i + pairs),
                Rotation::Interleaved => (2 * i, 2 * i + 1),
            };
            let mut turned = x.clone();
            rotate(&mut turned, dim, &cos, &sin, rotation);
            let mut twin = x.clone();
            match rotation {
                Rotation::Half => rotary::halves_body::<Portable>(&mut twin, dim, &cos, &sin),
                Rotation::Interleaved => rotary::neighbours_body::<Portable>(&mut twin, dim, &cos, &sin),
            }
            prop_assert_eq!(&turned, &twin);
            for (before, after) in x.chunks(dim).zip(turned.chunks(dim)) {
                for (i, angle) in angles.iter().enumerate() {
                    let (a, b) = place(i);
                    // As complex numbers: multiplied with exp(i angle).
                    let (s, c) = angle.sin_cos();
                    prop_assert!((after[a] - (before[a] * c - before[b] * s)).abs() < 1e-6);
                    prop_assert!((after[b] - (before[a] * s + before[b] * c)).abs() < 1e-6);
                }
                prop_assert_eq!(&before[2 * pairs..], &after[2 * pairs..]);
            }
        }
    }

    #[test]
    fn a_softmax_in_parts_is_the_whole_one(
        scores in prop::collection::vec(-30f32..30.0, 0..60),
        cut in 0usize..60,
        masked in 0usize..60,
        seed: u64,
    ) {
        let dim = 5;
        let mut scores = scores;
        if let Some(s) = scores.get_mut(masked) {
            *s = f32::NEG_INFINITY;
        }
        let values = numbers(scores.len() * dim, seed);
        let cut = cut.min(scores.len());
        let part = |range: std::ops::Range<usize>| {
            let mut weights = scores[range.clone()].to_vec();
            let partial = Partial::of(&mut weights, 0.5);
            let mut twin = scores[range.clone()].to_vec();
            let (max, sum) = partial::part_body::<Portable>(&mut twin, 0.5);
            assert!(max == partial.max && (sum - partial.sum).abs() <= 1e-5 * sum);
            let mut out = vec![0.0; dim];
            for (w, v) in weights.iter().zip(values[range.start * dim..].chunks(dim)) {
                crate::axpy(&mut out, *w, v);
            }
            (partial, out)
        };
        let (mut whole, mut out) = part(0..cut);
        let (rest, rest_out) = part(cut..scores.len());
        whole.merge(&mut out, rest, &rest_out);
        let exp = |s: &f32| (0.5 * f64::from(*s)).exp();
        let sum: f64 = scores.iter().map(exp).sum();
        if sum > 0.0 {
            prop_assert!((f64::from(whole.log_sum_exp()) - sum.ln()).abs() < 1e-4);
        }
        whole.finish(&mut out);
        for (i, &x) in out.iter().enumerate() {
            let term = |(s, v): (&f32, &[f32])| exp(s) * f64::from(v[i]);
            let want: f64 = scores.iter().zip(values.chunks(dim)).map(term).sum();
            let want = if sum > 0.0 { want / sum } else { 0.0 };
            prop_assert!((f64::from(x) - want).abs() < 1e-5, "{x} {want}");
        }
    }

    #[test]
    fn tiles_together_are_attention_under_a_mask(
        nq in 1usize..20,
        tiles in 1usize..4,
        nk in 1usize..40,
        dim in 1usize..40,
        biased in 0usize..60,
        seed: u64,
    ) {
        let mut rng = SmallRng::seed_from_u64(seed);
        let (stride, out_stride, keys) = (dim + 3, dim + 2, tiles * nk);
        let queries = numbers(nq * stride, seed);
        let (k, v) = (numbers(keys * dim, !seed), numbers(keys * dim, seed / 2));
        // Every query sees a run of keys, some of them none, some up to the end.
        let sees: Vec<(usize, usize)> = (0..nq)
            .map(|_| {
                let from = rng.random_range(0..=keys);
                (from, rng.random_range(from..=keys))
            })
            .collect();
        let bias = numbers(biased.min(keys), seed / 3);
        let mut partials = vec![Partial::EMPTY; nq];
        let mut out = vec![0.0; nq * out_stride];
        let mut scratch = Vec::new();
        let visible: Vec<Vec<(u32, u32)>> = (0..tiles)
            .map(|t| {
                let place = |i: usize| i.saturating_sub(t * nk).min(nk) as u32;
                sees.iter().map(|&(a, b)| (place(a), place(b))).collect()
            })
            .collect();
        let tile = |t: usize| Tile {
            queries: &queries,
            query_stride: stride,
            keys: &k[t * nk * dim..][..nk * dim],
            values: &v[t * nk * dim..][..nk * dim],
            dim,
            scale: 0.7,
            visible: &visible[t],
            bias: bias.get(t * nk..).unwrap_or_default(),
        };
        for t in 0..tiles {
            attend_tile(&tile(t), &mut partials, &mut out, out_stride, &mut scratch);
        }
        let mut mass = vec![0.0; keys];
        for (t, mass) in mass.chunks_mut(nk).enumerate() {
            add_mass(&tile(t), &partials, mass, &mut scratch);
        }
        let mut want_mass = vec![0f64; keys];
        for q in 0..nq {
            let (from, to) = sees[q];
            let score = |r: usize| {
                let pairs = queries[q * stride..][..dim].iter().zip(&k[r * dim..][..dim]);
                let dot: f64 = pairs.map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
                (0.7 * dot + f64::from(bias.get(r).copied().unwrap_or(0.0))).exp()
            };
            let sum: f64 = (from..to).map(score).sum();
            let row = &mut out[q * out_stride..][..out_stride];
            prop_assert_eq!(row[dim], 0.0);
            partials[q].finish(&mut row[..dim]);
            for i in 0..dim {
                let term = |r: usize| score(r) * f64::from(v[r * dim + i]);
                let want = if from < to { (from..to).map(term).sum::<f64>() / sum } else { 0.0 };
                prop_assert!((f64::from(row[i]) - want).abs() < 1e-5, "{} {want}", row[i]);
            }
            for (r, want) in want_mass.iter_mut().enumerate().take(to).skip(from) {
                *want += score(r) / sum;
            }
        }
        for (got, want) in mass.iter().zip(&want_mass) {
            prop_assert!((f64::from(*got) - want).abs() < 1e-5 * (1.0 + want));
        }
    }

    #[test]
    fn the_twin_joins_scores_alike(scores in prop::collection::vec(-9f32..9.0, 0..40), max in -9f32..9.0) {
        let (mut here, mut twin) = (scores.clone(), scores);
        // Through a tile of one dimension: its queries are 1, its keys the scores.
        let (max_twin, sum) = tile::join_body::<Portable>(&mut twin, 0.5, max);
        let visible = [(0, here.len() as u32)];
        let keys = here.clone();
        let tile = Tile { queries: &[1.0], query_stride: 1, keys: &keys, values: &keys, dim: 1, scale: 0.5, visible: &visible, bias: &[] };
        let mut partial = [Partial { max, sum: 0.0 }];
        attend_tile(&tile, &mut partial, &mut [0.0], 1, &mut here);
        prop_assert!(keys.is_empty() || partial[0].max == max_twin);
        prop_assert!((partial[0].sum - sum).abs() <= 1e-5 * sum);
    }
}

#[test]
#[should_panic(expected = "rows of 48 numbers as Q8_0")]
fn rows_that_are_no_whole_blocks_are_refused() {
    let rows = CacheRows {
        kind: BlockType::Q8_0,
        dim: 48,
        stride: 68,
        bytes: &[0; 68],
    };
    dot_rows(rows, &[0.0; 48], RowSet::Range(0, 1), &mut [0.0]);
}

#[test]
#[should_panic]
fn a_row_that_is_not_there_is_refused() {
    let rows = CacheRows {
        kind: BlockType::F32,
        dim: 1,
        stride: 4,
        bytes: &[0; 8],
    };
    dot_rows(rows, &[1.0], RowSet::List(&[0, 2]), &mut [0.0; 2]);
}

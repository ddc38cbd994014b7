//! Short labels of many keys, packed in 4 or 7 bits, and their products with a query: a
//! first look at a long context that reads a sixteenth of its bytes or less (Yang et al.,
//! "Post-Training Sparse Attention with Double Sparsity", 2024).
//!
//! Per row `x_c = min + scale q_c` over `r` channels, so that
//! `x · y = scale Σ q_c y_c + min Σ y_c`; the query is rounded to 8 bits and the sum is one
//! of integers. Rows lie in blocks of 32: `scale` and `min` of all, then for every two
//! bytes of a row (four channels of 4 bits, or two of 7) the 32 rows next to each other.

use half::f16;

use crate::dot::assert_rows;
use crate::vector::{Eight, simd};

/// Rows of a block.
const BLOCK: usize = 32;

/// Bytes of the scales and minima of a block.
const HEAD: usize = 4 * BLOCK;

/// Precision of a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LabelBits {
    /// 16 levels, two channels in a byte.
    Four,
    /// 128 levels, a channel in a byte.
    Seven,
}

impl LabelBits {
    /// Channels in two bytes.
    fn group(self) -> usize {
        match self {
            Self::Four => 4,
            Self::Seven => 2,
        }
    }

    /// The greatest code.
    fn highest(self) -> f32 {
        match self {
            Self::Four => 15.0,
            Self::Seven => 127.0,
        }
    }
}

/// Labels of the keys of one layer and head.
#[derive(Debug, Clone)]
pub struct LabelBlocks {
    channels: usize,
    bits: LabelBits,
    rows: usize,
    /// Whole blocks; what stands behind the last row is anything.
    bytes: Vec<u8>,
}

impl LabelBlocks {
    /// No labels yet, of `channels` numbers each.
    ///
    /// # Panics
    /// When there are no channels or more than 256.
    pub fn new(channels: usize, bits: LabelBits) -> Self {
        assert!(
            (1..=MOST).contains(&channels),
            "labels of {channels} channels"
        );
        Self {
            channels,
            bits,
            rows: 0,
            bytes: Vec::new(),
        }
    }

    /// How many rows.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Numbers of a label.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Bytes that [`scores`](Self::scores) reads.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Pairs of bytes of a row.
    fn groups(&self) -> usize {
        self.channels.div_ceil(self.bits.group())
    }

    fn block_bytes(&self) -> usize {
        HEAD + 2 * BLOCK * self.groups()
    }

    /// Appends the label of a row. NaN becomes anything.
    ///
    /// # Panics
    /// When it has another number of channels.
    pub fn push(&mut self, label: &[f32]) {
        assert_eq!(label.len(), self.channels, "LabelBlocks::push: channels");
        let (place, size) = (self.rows % BLOCK, self.block_bytes());
        if place == 0 {
            self.bytes.resize(self.bytes.len() + size, 0);
        }
        self.rows += 1;
        let start = self.bytes.len() - size;
        let block = &mut self.bytes[start..];
        let min = label.iter().copied().fold(f32::INFINITY, f32::min);
        let max = label.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let scale = f16::from_f32((max - min) / self.bits.highest());
        let min = f16::from_f32(min);
        block[2 * place..][..2].copy_from_slice(&scale.to_le_bytes());
        block[2 * (BLOCK + place)..][..2].copy_from_slice(&min.to_le_bytes());
        let (scale, min) = (scale.to_f32(), min.to_f32());
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        let highest = self.bits.highest();
        let code = |x: f32| ((x - min) * inverse).round().clamp(0.0, highest) as u8;
        for (i, group) in label.chunks(self.bits.group()).enumerate() {
            let mut two = [0u8; 2];
            for (c, &x) in group.iter().enumerate() {
                two[c % 2] |= code(x) << (4 * (c / 2));
            }
            block[HEAD + 2 * (BLOCK * i + place)..][..2].copy_from_slice(&two);
        }
    }

    /// Drops all rows from `rows` on.
    pub fn truncate(&mut self, rows: usize) {
        self.rows = self.rows.min(rows);
        self.bytes
            .truncate(self.rows.div_ceil(BLOCK) * self.block_bytes());
    }

    /// `out[q, r]` = product of query `q` with the label of row `r`; `queries`
    /// `[g, channels]`, `out` `[g, len]`. Labels are read once for each four queries.
    ///
    /// # Panics
    /// When the shapes do not fit.
    pub fn scores(&self, queries: &[f32], out: &mut [f32]) {
        let g = assert_rows(queries.len(), self.channels, "LabelBlocks::scores");
        assert_eq!(
            out.len(),
            g * self.rows,
            "LabelBlocks::scores: length of out"
        );
        let mut few = [Query::EMPTY; AT_ONCE];
        for first in (0..g).step_by(AT_ONCE) {
            let count = (g - first).min(AT_ONCE);
            let queries = queries[first * self.channels..].chunks_exact(self.channels);
            for (query, y) in few[..count].iter_mut().zip(queries) {
                *query = Query::new(y);
            }
            let out = &mut out[first * self.rows..][..count * self.rows];
            meet(self, &few[..count], out);
        }
    }
}

/// The most channels of a label.
const MOST: usize = 256;

/// Queries that are worked on while a block is in the first cache.
const AT_ONCE: usize = 4;

/// A query rounded to 8 bits.
#[derive(Clone, Copy)]
struct Query {
    /// 0 where labels have no channel.
    codes: [i8; MOST],
    /// What products of codes are multiplied with.
    scale: f32,
    /// Sum of the query's numbers.
    sum: f32,
}

impl Query {
    const EMPTY: Self = Self {
        codes: [0; MOST],
        scale: 0.0,
        sum: 0.0,
    };

    fn new(y: &[f32]) -> Self {
        let mut query = Self::EMPTY;
        let max = y.iter().fold(0f32, |m, y| m.max(y.abs()));
        let inverse = if max > 0.0 { 127.0 / max } else { 0.0 };
        for (code, y) in query.codes.iter_mut().zip(y) {
            *code = (y * inverse).round() as i8;
        }
        query.scale = max / 127.0;
        query.sum = y.iter().sum();
        query
    }
}

simd! {
    fn meet(labels: &LabelBlocks, queries: &[Query], out: &mut [f32]) = meet_body;
}

#[inline(always)]
fn meet_body<V: Eight>(labels: &LabelBlocks, queries: &[Query], out: &mut [f32]) {
    let blocks = labels.bytes.chunks_exact(labels.block_bytes());
    for (b, block) in blocks.enumerate() {
        let (head, codes) = block.split_at(HEAD);
        let from = b * BLOCK;
        let count = (labels.rows - from).min(BLOCK);
        for (q, query) in queries.iter().enumerate() {
            let products = V::label_products(codes, &query.codes, labels.bits == LabelBits::Four);
            let mut scores = [0.0; BLOCK];
            for i in (0..BLOCK).step_by(8) {
                // SAFETY: scales and minima are 32 halves each.
                let (scale, min) = unsafe {
                    let at = head.as_ptr().add(2 * i);
                    (V::load_f16_at(at), V::load_f16_at(at.add(HEAD / 2)))
                };
                let mut dots = [0.0; 8];
                for (dot, &product) in dots.iter_mut().zip(&products[i..]) {
                    *dot = product as f32;
                }
                let dot = V::load(&dots).mul(V::splat(query.scale));
                let score = dot.mul_add(scale, min.mul(V::splat(query.sum)));
                score.store(&mut scores[i..]);
            }
            out[q * labels.rows + from..][..count].copy_from_slice(&scores[..count]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::Portable;
    use proptest::prelude::*;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    fn numbers(n: usize, seed: u64) -> Vec<f32> {
        let mut rng = SmallRng::seed_from_u64(seed);
        (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
    }

    proptest! {
        #[test]
        fn scores_are_those_of_the_labels_within_their_precision(
            channels in 1usize..70,
            rows in 0usize..100,
            g in 0usize..7,
            four: bool,
            keep in 0usize..120,
            seed: u64,
        ) {
            let bits = if four { LabelBits::Four } else { LabelBits::Seven };
            let labels = numbers(rows * channels, seed);
            let queries = numbers(g * channels, !seed);
            let mut blocks = LabelBlocks::new(channels, bits);
            for row in 0..rows {
                blocks.push(&labels[row * channels..][..channels]);
            }
            // Rows that are dropped leave nothing behind.
            blocks.truncate(keep);
            prop_assert_eq!(blocks.len(), rows.min(keep));
            for row in blocks.len()..rows {
                blocks.push(&labels[row * channels..][..channels]);
            }
            prop_assert_eq!((blocks.len(), blocks.is_empty()), (rows, rows == 0));

            let mut out = vec![9.0; g * rows];
            blocks.scores(&queries, &mut out);
            let few: Vec<Query> = queries.chunks(channels).map(Query::new).collect();
            let mut twin = vec![9.0; g * rows];
            meet_body::<Portable>(&blocks, &few, &mut twin);
            for q in 0..g {
                for r in 0..rows {
                    let label = &labels[r * channels..][..channels];
                    let y = &queries[q * channels..][..channels];
                    let want: f32 = label.iter().zip(y).map(|(a, b)| a * b).sum();
                    // Half a step of each label and of the query, and what halves round.
                    let step = 2.0 / bits.highest();
                    let labels: f32 = y.iter().map(|y| y.abs() * (step / 2.0 + 2e-3)).sum();
                    let bound = labels + channels as f32 * 1.2 / 254.0;
                    let got = out[q * rows + r];
                    prop_assert!((got - want).abs() <= bound, "{got} {want} {bound}");
                    prop_assert!((got - twin[q * rows + r]).abs() <= 1e-4 * (1.0 + got.abs()));
                }
            }
        }

        #[test]
        fn labels_on_the_levels_are_exact(
            codes in prop::collection::vec(0u8..16, 16),
            row in 0usize..40,
        ) {
            let mut codes = codes;
            (codes[3], codes[8]) = (0, 15);
            let label: Vec<f32> = codes.iter().map(|&q| f32::from(q) * 0.25 - 1.5).collect();
            let mut blocks = LabelBlocks::new(16, LabelBits::Four);
            for i in 0..40 {
                blocks.push(if i == row { &label } else { &[0.0; 16] });
            }
            // One query for each channel.
            let mut queries = vec![0.0; 16 * 16];
            (0..16).for_each(|c| queries[c * 17] = 1.0);
            let mut out = vec![9.0; 16 * 40];
            blocks.scores(&queries, &mut out);
            for (c, scores) in out.chunks(40).enumerate() {
                for (i, &score) in scores.iter().enumerate() {
                    let want = if i == row { label[c] } else { 0.0 };
                    prop_assert!((score - want).abs() < 1e-5, "{score} {want}");
                }
            }
        }
    }

    #[test]
    fn the_greatest_codes_do_not_overflow() {
        for bits in [LabelBits::Four, LabelBits::Seven] {
            let mut blocks = LabelBlocks::new(256, bits);
            let mut label = vec![1.0; 256];
            label[7] = 0.0;
            blocks.push(&label);
            for query in [[1.0; 256], [-1.0; 256]] {
                let mut out = [0.0];
                blocks.scores(&query, &mut out);
                assert!((out[0] - 255.0 * query[0]).abs() < 0.2, "{}", out[0]);
            }
        }
    }
}

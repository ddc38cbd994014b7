//! The label cache of Double Sparsity: few channels of every cached key, kept beside the
//! cache so that choosing rows reads little.

use half::f16;
use keyfold_kernels::attention::{CacheRows, RowSet, dot_rows};
use keyfold_kernels::blocks::BlockType;
use keyfold_kernels::labels::{LabelBits, LabelBlocks};

/// Labels of the keys of one layer and head: a few numbers of each, as 16-bit floats or as
/// 4-bit integers between the least and the greatest number of the label.
#[derive(Debug, Clone)]
pub(super) struct Labels {
    parts: LabelParts,
    width: usize,
    rows: Codes,
    /// The label of one key, while it is written.
    label: Vec<f32>,
}

/// What a label tells of a key.
#[derive(Debug, Clone)]
pub(super) enum LabelParts {
    /// Some of its channels.
    Channels(Vec<u32>),
    /// Its products with some directions, `[width, head_dim]`.
    Directions(Vec<f32>, usize),
}

impl LabelParts {
    fn width(&self) -> usize {
        match self {
            Self::Channels(channels) => channels.len(),
            Self::Directions(_, width) => *width,
        }
    }

    /// Appends the label of a vector.
    fn extend(&self, vector: &[f32], label: &mut Vec<f32>) {
        match self {
            Self::Channels(channels) => {
                label.extend(channels.iter().map(|&channel| vector[channel as usize]));
            }
            Self::Directions(directions, _) => {
                let directions = directions.chunks_exact(vector.len());
                label.extend(directions.map(|u| keyfold_kernels::dot(u, vector)));
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Codes {
    /// 16-bit floats, `[rows, channels]`.
    Half(Vec<u8>),
    /// 4 bits, packed for a fast scan, which rounds the query to 8 bits.
    Four(LabelBlocks),
    /// 4 bits as the authors' evaluation has them, which rounds the query to 4 bits too:
    /// `[rows, channels]`; least number and step of each row.
    Literal(Vec<u8>, Vec<[f32; 2]>),
}

/// Steps between the least and the greatest number of a 4-bit label.
const STEPS: f32 = 15.0;

impl Labels {
    /// No rows yet; `bits` is 4 or 16.
    pub(super) fn new(parts: LabelParts, bits: u8, round_query: bool) -> Self {
        let width = parts.width();
        let rows = match (bits, round_query) {
            (4, false) => Codes::Four(LabelBlocks::new(width, LabelBits::Four)),
            (4, true) => Codes::Literal(Vec::new(), Vec::new()),
            _ => Codes::Half(Vec::new()),
        };
        Self {
            label: Vec::with_capacity(width),
            parts,
            width,
            rows,
        }
    }

    /// Which channels of a key a label has.
    #[cfg(test)]
    pub(super) fn channels(&self) -> &[u32] {
        match &self.parts {
            LabelParts::Channels(channels) => channels,
            LabelParts::Directions(..) => &[],
        }
    }

    pub(super) fn len(&self) -> usize {
        match &self.rows {
            Codes::Half(bytes) => bytes.len() / (2 * self.width),
            Codes::Four(blocks) => blocks.len(),
            Codes::Literal(_, ranges) => ranges.len(),
        }
    }

    /// Bytes that a scan of all rows reads.
    pub(super) fn bytes(&self) -> u64 {
        let bytes = match &self.rows {
            Codes::Half(bytes) => bytes.len(),
            Codes::Four(blocks) => blocks.bytes(),
            Codes::Literal(codes, ranges) => codes.len() + ranges.len() * 8,
        };
        bytes as u64
    }

    pub(super) fn truncate(&mut self, rows: usize) {
        match &mut self.rows {
            Codes::Half(bytes) => bytes.truncate(rows * 2 * self.width),
            Codes::Four(blocks) => blocks.truncate(rows),
            Codes::Literal(codes, ranges) => {
                codes.truncate(rows * self.width);
                ranges.truncate(rows);
            }
        }
    }

    /// Adds the label of a whole key.
    pub(super) fn push(&mut self, key: &[f32]) {
        self.label.clear();
        self.parts.extend(key, &mut self.label);
        match &mut self.rows {
            Codes::Half(bytes) => {
                let halves = self.label.iter().map(|&x| f16::from_f32(x));
                bytes.extend(halves.flat_map(f16::to_le_bytes));
            }
            Codes::Four(blocks) => blocks.push(&self.label),
            Codes::Literal(codes, ranges) => {
                let (least, step) = range(&self.label);
                ranges.push([least, step]);
                codes.extend(self.label.iter().map(|&x| level(x, least, step) as u8));
            }
        }
    }

    /// Appends the label of a query.
    pub(super) fn of_query(&self, query: &[f32], label: &mut Vec<f32>) {
        let from = label.len();
        self.parts.extend(query, label);
        if matches!(self.rows, Codes::Literal(..)) {
            let own = &mut label[from..];
            let (least, step) = range(own);
            for x in own {
                *x = least + level(*x, least, step) * step;
            }
        }
    }

    /// Products of the queries' labels `[any, channels]` with every row's, one query after
    /// the other.
    pub(super) fn scores(&self, labels: &[f32], scores: &mut Vec<f32>) {
        let (width, len) = (self.width, self.len());
        // All of them are written anew.
        scores.resize(labels.len() / width * len, 0.0);
        match &self.rows {
            Codes::Half(bytes) => {
                let rows = CacheRows {
                    kind: BlockType::F16,
                    dim: width,
                    stride: 2 * width,
                    bytes,
                };
                dot_rows(rows, labels, RowSet::Range(0, len), scores);
            }
            Codes::Four(blocks) => blocks.scores(labels, scores),
            Codes::Literal(codes, ranges) => {
                let lists = scores.chunks_exact_mut(len.max(1));
                for (label, scores) in labels.chunks_exact(width).zip(lists) {
                    let sum: f32 = label.iter().sum();
                    let rows = codes.chunks_exact(width).zip(ranges);
                    for (score, (row, [least, step])) in scores.iter_mut().zip(rows) {
                        let products = row.iter().zip(label).map(|(&x, q)| f32::from(x) * q);
                        *score = least * sum + step * products.sum::<f32>();
                    }
                }
            }
        }
    }
}

/// The least number and the length of a step; 1 where all numbers are equal, as the
/// authors have it.
fn range(label: &[f32]) -> (f32, f32) {
    let least = label.iter().copied().fold(f32::INFINITY, f32::min);
    let greatest = label.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let span = greatest - least;
    (least, if span == 0.0 { 1.0 } else { span } / STEPS)
}

/// The step at which `x` lies.
fn level(x: f32, least: f32, step: f32) -> f32 {
    ((x - least) / step).round_ties_even().clamp(0.0, STEPS)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The label of a row as it is read back.
    fn read(labels: &Labels, row: usize) -> Vec<f32> {
        (0..labels.width)
            .map(|channel| {
                let mut one = vec![0.0; labels.width];
                one[channel] = 1.0;
                let mut scores = Vec::new();
                labels.scores(&one, &mut scores);
                scores[row]
            })
            .collect()
    }

    #[test]
    fn labels_hold_the_chosen_channels_in_their_order() {
        for (bits, round_query, error) in [(16, false, 1e-3), (4, true, 0.11), (4, false, 0.12)] {
            let mut labels = Labels::new(LabelParts::Channels(vec![5, 0, 3]), bits, round_query);
            labels.push(&[1.0, 9.0, 9.0, -2.0, 9.0, 0.3]);
            labels.push(&[0.5, 9.0, 9.0, 0.5, 9.0, 0.5]);
            assert_eq!(labels.len(), 2);
            for (row, expected) in [[0.3, 1.0, -2.0], [0.5; 3]].iter().enumerate() {
                for (got, want) in read(&labels, row).iter().zip(expected) {
                    assert!((got - want).abs() < error, "{bits} bits: {got} {want}");
                }
            }
        }
    }

    #[test]
    fn four_bits_keep_the_ends_and_round_to_the_nearest_step() {
        let numbers = [-3.0, 12.0, 0.4, 0.6, 11.6];
        let expected = [-3.0, 12.0, 0.0, 1.0, 12.0];
        let near = |got: &[f32], error: f32| {
            assert!(
                got.iter().zip(expected).all(|(a, b)| (a - b).abs() < error),
                "{got:?}"
            );
        };
        let mut label = Vec::new();
        for (round_query, error) in [(true, 1e-5), (false, 1e-2)] {
            let mut labels = Labels::new(LabelParts::Channels(vec![0, 1, 2, 3, 4]), 4, round_query);
            labels.push(&numbers);
            near(&read(&labels, 0), error);
            label.clear();
            labels.of_query(&numbers, &mut label);
            if round_query {
                near(&label, 1e-5);
            } else {
                assert_eq!(label, numbers);
            }
        }
    }
}

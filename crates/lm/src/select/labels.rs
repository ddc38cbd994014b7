//! The label cache of Double Sparsity: few channels of every cached key, kept beside the
//! cache so that choosing rows reads little.

use half::f16;

/// Labels of the keys of one layer and head: the channels `channels` of each, as 16-bit
/// floats or as 4-bit integers between the least and the greatest number of the label.
#[derive(Debug, Clone)]
pub(super) struct Labels {
    channels: Vec<u32>,
    rows: Codes,
    /// The label of one key, while it is written.
    label: Vec<f32>,
}

#[derive(Debug, Clone)]
enum Codes {
    /// `[rows, channels]`.
    Half(Vec<f16>),
    /// Two channels in a byte, `[rows, channels / 2 rounded up]`; least number and step of each row.
    Four(Vec<u8>, Vec<[f32; 2]>),
}

/// Steps between the least and the greatest number of a 4-bit label.
const STEPS: f32 = 15.0;

impl Labels {
    /// No rows yet; `bits` is 4 or 16.
    pub(super) fn new(channels: Vec<u32>, bits: u8) -> Self {
        let rows = match bits {
            4 => Codes::Four(Vec::new(), Vec::new()),
            _ => Codes::Half(Vec::new()),
        };
        Self {
            label: Vec::with_capacity(channels.len()),
            channels,
            rows,
        }
    }

    /// Which channels of a key a label has.
    #[cfg(test)]
    pub(super) fn channels(&self) -> &[u32] {
        &self.channels
    }

    pub(super) fn len(&self) -> usize {
        match &self.rows {
            Codes::Half(codes) => codes.len() / self.channels.len(),
            Codes::Four(_, ranges) => ranges.len(),
        }
    }

    /// Bytes that a scan of all rows reads.
    pub(super) fn bytes(&self) -> u64 {
        let bytes = match &self.rows {
            Codes::Half(codes) => codes.len() * 2,
            Codes::Four(codes, ranges) => codes.len() + ranges.len() * 8,
        };
        bytes as u64
    }

    pub(super) fn truncate(&mut self, rows: usize) {
        match &mut self.rows {
            Codes::Half(codes) => codes.truncate(rows * self.channels.len()),
            Codes::Four(codes, ranges) => {
                codes.truncate(rows * self.channels.len().div_ceil(2));
                ranges.truncate(rows);
            }
        }
    }

    /// Adds the label of a whole key.
    pub(super) fn push(&mut self, key: &[f32]) {
        self.label.clear();
        self.label
            .extend(self.channels.iter().map(|&channel| key[channel as usize]));
        match &mut self.rows {
            Codes::Half(codes) => codes.extend(self.label.iter().map(|&x| f16::from_f32(x))),
            Codes::Four(codes, ranges) => {
                let (least, step) = range(&self.label);
                ranges.push([least, step]);
                codes.extend(self.label.chunks(2).map(|pair| {
                    let code = |x: f32| level(x, least, step) as u8;
                    code(pair[0]) | pair.get(1).map_or(0, |&x| code(x) << 4)
                }));
            }
        }
    }

    /// The label of a query: its channels, rounded as the keys' are where `round`.
    pub(super) fn of_query(&self, query: &[f32], round: bool, label: &mut Vec<f32>) {
        label.clear();
        label.extend(self.channels.iter().map(|&channel| query[channel as usize]));
        if round && matches!(self.rows, Codes::Four(..)) {
            let (least, step) = range(label);
            for x in label {
                *x = least + level(*x, least, step) * step;
            }
        }
    }

    /// Appends to `scores` the product of the query's `label` with every row's.
    pub(super) fn scores(&self, label: &[f32], scores: &mut Vec<f32>) {
        let width = self.channels.len();
        match &self.rows {
            Codes::Half(codes) => scores.extend(codes.chunks_exact(width).map(|row| {
                let products = row.iter().zip(label).map(|(x, q)| x.to_f32() * q);
                products.sum::<f32>()
            })),
            Codes::Four(codes, ranges) => {
                let sum: f32 = label.iter().sum();
                let rows = codes.chunks_exact(width.div_ceil(2)).zip(ranges);
                scores.extend(rows.map(|(row, [least, step])| {
                    let products = row.iter().zip(label.chunks(2)).map(|(&byte, pair)| {
                        let high = pair.get(1).map_or(0.0, |q| f32::from(byte >> 4) * q);
                        f32::from(byte & 15) * pair[0] + high
                    });
                    least * sum + step * products.sum::<f32>()
                }));
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
        (0..labels.channels.len())
            .map(|channel| {
                let mut one = vec![0.0; labels.channels.len()];
                one[channel] = 1.0;
                let mut scores = Vec::new();
                labels.scores(&one, &mut scores);
                scores[row]
            })
            .collect()
    }

    #[test]
    fn labels_hold_the_chosen_channels_in_their_order() {
        for (bits, error) in [(16, 1e-3), (4, 0.11)] {
            let mut labels = Labels::new(vec![5, 0, 3], bits);
            labels.push(&[1.0, 9.0, 9.0, -2.0, 9.0, 0.3]);
            labels.push(&[0.5, 9.0, 9.0, 0.5, 9.0, 0.5]);
            for (row, expected) in [[0.3, 1.0, -2.0], [0.5; 3]].iter().enumerate() {
                for (got, want) in read(&labels, row).iter().zip(expected) {
                    assert!((got - want).abs() < error, "{bits} bits: {got} {want}");
                }
            }
        }
    }

    #[test]
    fn four_bits_keep_the_ends_and_round_to_the_nearest_step() {
        let mut labels = Labels::new(vec![0, 1, 2, 3, 4], 4);
        labels.push(&[-3.0, 12.0, 0.4, 0.6, 11.6]);
        let read = read(&labels, 0);
        let expected = [-3.0, 12.0, 0.0, 1.0, 12.0];
        assert!(
            read.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5),
            "{read:?}"
        );
        let mut label = Vec::new();
        labels.of_query(&[-3.0, 12.0, 0.4, 0.6, 11.6], true, &mut label);
        assert!(
            label
                .iter()
                .zip(expected)
                .all(|(a, b)| (a - b).abs() < 1e-5)
        );
        labels.of_query(&[-3.0, 12.0, 0.4, 0.6, 11.6], false, &mut label);
        assert_eq!(label, [-3.0, 12.0, 0.4, 0.6, 11.6]);
    }
}

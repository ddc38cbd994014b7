//! The input of products with packed weights.

use super::lanes::INPUTS;
use crate::vector::{Eight, simd};

/// Numbers that share a scale.
pub(super) const PART: usize = 32;

/// Rows that weights are multiplied with, as numbers and, once a packed matrix meets
/// them, rounded to 8 bits with a scale for each 32. One buffer serves all layers:
/// nothing is allocated once it is large enough.
#[derive(Debug, Clone, Default)]
pub struct Activations {
    rows: usize,
    cols: usize,
    values: Vec<f32>,
    rounded: bool,
    packed: Packed,
    is_grouped: bool,
    grouped: Grouped,
}

/// Rows rounded to 8 bits: `x = s q` with `s = max|x| / 127` of each 32.
#[derive(Debug, Clone, Default)]
pub(super) struct Packed {
    /// `[rows, cols]`, -127..=127.
    codes: Vec<i8>,
    /// `s` and `s Σq` for each 32, next to each other.
    pairs: Vec<[f32; 2]>,
    /// `s` for each 32.
    scales: Vec<f32>,
    /// `s Σq` for each 32.
    sums: Vec<f32>,
    /// `s Σq` for each 16.
    half_sums: Vec<f32>,
}

/// Rounded rows in groups of [`INPUTS`], side by side: what [`lanes`](super::lanes) reads. Places of
/// the last group that no row has are 0.
#[derive(Debug, Clone, Default)]
pub(super) struct Grouped {
    rows: usize,
    pub(super) cols: usize,
    /// `[groups, cols / 4, INPUTS, 4]`
    codes: Vec<i8>,
    /// `s`, `[groups, cols / 32, INPUTS]`
    scales: Vec<f32>,
    /// `s Σq` of each 32.
    sums: Vec<f32>,
    /// `s Σq` of each 16.
    half_sums: Vec<f32>,
}

impl Grouped {
    pub(super) fn groups(&self) -> usize {
        self.rows.div_ceil(INPUTS)
    }

    /// Rows of a group.
    pub(super) fn in_group(&self, group: usize) -> usize {
        (self.rows - group * INPUTS).min(INPUTS)
    }

    /// Codes, scales, and sums for each `unit` numbers of a group.
    pub(super) fn group(&self, group: usize, unit: usize) -> (&[i8], &[f32], &[f32]) {
        let of = |len: usize| group * len * INPUTS..(group + 1) * len * INPUTS;
        let sums = match unit {
            PART => &self.sums,
            _ => &self.half_sums,
        };
        (
            &self.codes[of(self.cols)],
            &self.scales[of(self.cols / PART)],
            &sums[of(self.cols / unit)],
        )
    }

    fn set(&mut self, packed: &Packed, rows: usize, cols: usize) {
        (self.rows, self.cols) = (rows, cols);
        let padded = self.groups() * INPUTS;
        self.codes.clear();
        self.codes.resize(padded * cols, 0);
        for (numbers, unit) in [
            (&mut self.scales, PART),
            (&mut self.sums, PART),
            (&mut self.half_sums, PART / 2),
        ] {
            numbers.clear();
            numbers.resize(padded * (cols / unit), 0.0);
        }
        if cols == 0 {
            return;
        }
        for (row, codes) in packed.codes.chunks_exact(cols).enumerate() {
            let (group, i) = (row / INPUTS, row % INPUTS);
            let to = &mut self.codes[group * cols * INPUTS..][..cols * INPUTS];
            let to = to.as_chunks_mut::<4>().0.iter_mut().skip(i).step_by(INPUTS);
            to.zip(codes.as_chunks::<4>().0)
                .for_each(|(to, four)| *to = *four);
            let place = |to: &mut [f32], from: &[f32], len: usize| {
                let to = to[group * len * INPUTS..].iter_mut().skip(i);
                let from = &from[row * len..][..len];
                to.step_by(INPUTS).zip(from).for_each(|(to, x)| *to = *x);
            };
            place(&mut self.scales, &packed.scales, cols / PART);
            place(&mut self.sums, &packed.sums, cols / PART);
            place(&mut self.half_sums, &packed.half_sums, 2 * (cols / PART));
        }
    }
}

/// One row of [`Packed`].
#[derive(Debug, Clone, Copy)]
pub(super) struct PackedRow<'a> {
    pub(super) codes: &'a [i8],
    pub(super) pairs: &'a [[f32; 2]],
    pub(super) scales: &'a [f32],
    pub(super) sums: &'a [f32],
    pub(super) half_sums: &'a [f32],
}

impl Activations {
    /// No rows yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes `x` `[n, cols]`.
    ///
    /// # Panics
    /// When `x` is no whole number of rows.
    pub fn set(&mut self, x: &[f32], cols: usize) {
        let rows = crate::dot::assert_rows(x.len(), cols, "Activations::set");
        self.fill(rows, cols).copy_from_slice(x);
    }

    /// Room for `n` rows of `cols` numbers, to be written by the caller; it holds anything.
    pub fn fill(&mut self, n: usize, cols: usize) -> &mut [f32] {
        self.rows = n;
        self.cols = cols;
        self.rounded = false;
        self.is_grouped = false;
        self.values.resize(n * cols, 0.0);
        &mut self.values
    }

    /// How many rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Length of a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// All numbers, `[rows, cols]`.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// A row.
    pub(super) fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.cols..][..self.cols]
    }

    /// Makes the rounded form unless it is there. Rows are whole parts, as those of
    /// packed weights are.
    pub(super) fn round(&mut self) {
        if self.rounded {
            return;
        }
        let parts = self.values.len() / PART;
        let packed = &mut self.packed;
        packed.codes.resize(self.values.len(), 0);
        packed.pairs.resize(parts, [0.0; 2]);
        packed.scales.resize(parts, 0.0);
        packed.sums.resize(parts, 0.0);
        packed.half_sums.resize(2 * parts, 0.0);
        round(&self.values, packed);
        self.rounded = true;
    }

    /// The rounded rows in groups, made unless they are there.
    pub(super) fn grouped(&mut self) -> &Grouped {
        self.round();
        if !self.is_grouped {
            self.grouped.set(&self.packed, self.rows, self.cols);
            self.is_grouped = true;
        }
        &self.grouped
    }

    /// A row after [`round`](Self::round).
    pub(super) fn packed(&self, row: usize) -> PackedRow<'_> {
        let (cols, parts) = (self.cols, self.cols / PART);
        let packed = &self.packed;
        PackedRow {
            codes: &packed.codes[row * cols..][..cols],
            pairs: &packed.pairs[row * parts..][..parts],
            scales: &packed.scales[row * parts..][..parts],
            sums: &packed.sums[row * parts..][..parts],
            half_sums: &packed.half_sums[2 * row * parts..][..2 * parts],
        }
    }
}

simd! {
    fn round(values: &[f32], packed: &mut Packed) = round_body;
}

/// Added to a number below 2²², it leaves the nearest integer in the low bits.
const ROUND: f32 = 12_582_912.0;

#[inline(always)]
fn round_body<V: Eight>(values: &[f32], packed: &mut Packed) {
    let parts = values.as_chunks::<PART>().0;
    let codes = packed.codes.as_chunks_mut::<PART>().0;
    for (i, (x, codes)) in parts.iter().zip(codes).enumerate() {
        let mut max = V::splat(0.0);
        for x in x.as_chunks::<8>().0 {
            max = V::load(x).abs().max(max);
        }
        let max = max.to_array().iter().fold(0f32, |a, &b| a.max(b));
        let (scale, inverse) = (max / 127.0, if max > 0.0 { 127.0 / max } else { 0.0 });
        let mut whole = [0i32; PART];
        for (q, x) in whole.iter_mut().zip(x) {
            let bits = (x * inverse + ROUND).to_bits();
            *q = bits.wrapping_sub(ROUND.to_bits()).cast_signed();
        }
        // Not a number becomes anything; it must fit all the same.
        for (code, q) in codes.iter_mut().zip(&mut whole) {
            *q = (*q).clamp(-127, 127);
            *code = *q as i8;
        }
        let low = scale * whole[..16].iter().sum::<i32>() as f32;
        let high = scale * whole[16..].iter().sum::<i32>() as f32;
        packed.scales[i] = scale;
        packed.sums[i] = low + high;
        packed.pairs[i] = [scale, low + high];
        packed.half_sums[2 * i] = low;
        packed.half_sums[2 * i + 1] = high;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::Portable;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn rounded_rows_are_within_half_a_step_and_sums_are_theirs(
            x in prop::collection::vec(-4f32..4.0, 96),
            big in 0usize..96,
        ) {
            let mut x = x;
            x[big] *= 100.0;
            let mut rows = Activations::new();
            rows.set(&x, 48 * 2);
            rows.round();
            let row = rows.packed(0);
            for (i, &x) in x.iter().enumerate() {
                let scale = row.scales[i / 32];
                prop_assert!((f32::from(row.codes[i]) * scale - x).abs() <= 0.501 * scale);
            }
            for (i, half) in row.codes.chunks(16).enumerate() {
                let sum: i32 = half.iter().map(|&q| i32::from(q)).sum();
                prop_assert_eq!(row.half_sums[i], row.scales[i / 2] * sum as f32);
            }
            for i in 0..3 {
                let sum = row.half_sums[2 * i] + row.half_sums[2 * i + 1];
                prop_assert_eq!(row.pairs[i], [row.scales[i], sum]);
                prop_assert_eq!(row.sums[i], sum);
            }
            let mut twin = rows.packed.clone();
            twin.codes.fill(0);
            round_body::<Portable>(&x, &mut twin);
            prop_assert_eq!(&twin.codes, &rows.packed.codes);
            prop_assert_eq!(&twin.half_sums, &rows.packed.half_sums);
        }
    }
}

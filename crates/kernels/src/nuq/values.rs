//! Sums of values that are kept as codes.

use super::{BEHIND, assert_bits, table_len};
use crate::attention::RowSet;
use crate::vector::{Eight, simd};

/// Values of one layer and head as codes. What a row's codes stand for is `table[code]`;
/// the row's scale and zero are the caller's.
#[derive(Debug, Clone, Copy)]
pub struct ValueCodes<'a> {
    /// Bits of a code: 2, 3 or 4.
    pub bits: u32,
    /// Numbers of a row; a multiple of 8.
    pub dim: usize,
    /// `[rows, dim / 8, bits]`, and [`BEHIND`] more of any content.
    pub bytes: &'a [u8],
    /// The numbers that codes stand for, as [`fill_table`](super::fill_table) writes them.
    pub table: &'a [f32],
}

impl ValueCodes<'_> {
    fn row_bytes(&self) -> usize {
        self.dim / 8 * self.bits as usize
    }

    /// # Panics
    /// When the shapes do not fit or a row is not there.
    fn check(&self, rows: RowSet, who: &str) {
        assert_bits(self.bits, who);
        assert!(
            self.dim.is_multiple_of(8) && self.table.len() == table_len(self.bits),
            "{who}: rows of {} numbers, a table of {}",
            self.dim,
            self.table.len()
        );
        let last = match rows {
            RowSet::Range(from, to) if from < to => Some(to - 1),
            RowSet::Range(..) => None,
            RowSet::List(rows) => rows.iter().max().map(|&row| row as usize),
        };
        if let Some(last) = last {
            let end = (last + 1).checked_mul(self.row_bytes());
            let end = end.and_then(|end| end.checked_add(BEHIND));
            assert!(
                end.is_some_and(|end| end <= self.bytes.len()),
                "{who}: row {last} is not there"
            );
        }
    }

    /// The `group`-th eight numbers of a row.
    #[inline(always)]
    fn load<V: Eight, const BITS: u32>(&self, row: usize, group: usize, low: V, high: V) -> V {
        let at = (row * (self.dim / 8) + group) * BITS as usize;
        // SAFETY: `check` has seen that the row and four bytes are there, and callers keep
        // `group` below `dim / 8`.
        let word = unsafe {
            let word = self.bytes.as_ptr().add(at).cast::<u32>();
            u32::from_le(word.read_unaligned())
        };
        V::look_up::<BITS>(word, 0, low, high)
    }

    #[inline(always)]
    fn halves<V: Eight>(&self) -> (V, V) {
        let low = V::load(self.table);
        let high = if self.table.len() == 16 {
            V::load(&self.table[8..])
        } else {
            low
        };
        (low, high)
    }
}

/// `out[q] += Σ weights[q, r] · table[codes of row r]` over `rows`; `weights` `[g, rows]`,
/// `out` `[g, dim]`.
///
/// # Panics
/// When the shapes do not fit or a row is not there.
pub fn mix_values(values: ValueCodes, weights: &[f32], rows: RowSet, out: &mut [f32]) {
    let g = crate::dot::assert_rows(out.len(), values.dim, "mix_values");
    assert_eq!(weights.len(), g * rows.len(), "mix_values: weights");
    values.check(rows, "mix_values");
    #[cfg(target_arch = "x86_64")]
    if values.dim.is_multiple_of(16) && super::wide::takes(values.bits) {
        // SAFETY: the machine has what is needed, and everything is checked.
        return unsafe { super::wide::mix(values, weights, rows, out) };
    }
    mix(values, weights, rows, out);
}

simd! {
    pub(super) fn mix(values: ValueCodes, weights: &[f32], rows: RowSet, out: &mut [f32]) = mix_body;
}

#[inline(always)]
pub(super) fn mix_body<V: Eight>(
    values: ValueCodes,
    weights: &[f32],
    rows: RowSet,
    out: &mut [f32],
) {
    match values.bits {
        2 => mix_of::<V, 2>(values, weights, rows, out),
        3 => mix_of::<V, 3>(values, weights, rows, out),
        _ => mix_of::<V, 4>(values, weights, rows, out),
    }
}

#[inline(always)]
fn mix_of<V: Eight, const BITS: u32>(
    values: ValueCodes,
    weights: &[f32],
    rows: RowSet,
    out: &mut [f32],
) {
    let (dim, count) = (values.dim, rows.len());
    let g = out.len() / dim;
    let mut q = 0;
    while q < g {
        let size = (g - q).min(if V::TILES { 4 } else { 1 });
        let weights = &weights[q * count..][..size * count];
        let out = &mut out[q * dim..][..size * dim];
        match size {
            1 => mix_rows_of::<V, BITS, 1>(values, weights, rows, out),
            2 => mix_rows_of::<V, BITS, 2>(values, weights, rows, out),
            3 => mix_rows_of::<V, BITS, 3>(values, weights, rows, out),
            _ => mix_rows_of::<V, BITS, 4>(values, weights, rows, out),
        }
        q += size;
    }
}

#[inline(always)]
fn mix_rows_of<V: Eight, const BITS: u32, const G: usize>(
    values: ValueCodes,
    weights: &[f32],
    rows: RowSet,
    out: &mut [f32],
) {
    match rows {
        RowSet::Range(first, _) => {
            mix_groups::<V, BITS, G, false>(values, weights, first, &[], out);
        }
        RowSet::List(list) => mix_groups::<V, BITS, G, true>(values, weights, 0, list, out),
    }
}

#[inline(always)]
fn mix_groups<V: Eight, const BITS: u32, const G: usize, const LISTED: bool>(
    values: ValueCodes,
    weights: &[f32],
    first: usize,
    list: &[u32],
    out: &mut [f32],
) {
    let groups = values.dim / 8;
    let mut group = 0;
    // As many sums as stay in sixteen registers beside tables and weights.
    while G <= 2 && group + 4 <= groups {
        mix_columns::<V, BITS, G, 4, LISTED>(values, weights, first, list, out, group);
        group += 4;
    }
    while G > 2 && group + 2 <= groups {
        mix_columns::<V, BITS, G, 2, LISTED>(values, weights, first, list, out, group);
        group += 2;
    }
    while group < groups {
        mix_columns::<V, BITS, G, 1, LISTED>(values, weights, first, list, out, group);
        group += 1;
    }
}

/// Adds `WIDE` times eight columns of all rows to `G` sums, which stay in registers: of the
/// rows from `first` on, or of a list.
#[inline(always)]
fn mix_columns<V: Eight, const BITS: u32, const G: usize, const WIDE: usize, const LISTED: bool>(
    values: ValueCodes,
    weights: &[f32],
    first: usize,
    list: &[u32],
    out: &mut [f32],
    group: usize,
) {
    let (dim, count) = (values.dim, weights.len() / G);
    assert!(out.len() == G * dim && weights.len() == G * count && 8 * (group + WIDE) <= dim);
    assert!(!LISTED || list.len() == count);
    let (low, high) = values.halves::<V>();
    let (bits, row_bytes) = (BITS as usize, values.row_bytes());
    let mut sums = [[V::splat(0.0); WIDE]; G];
    // Rows of a list or of a run: one loop for both.
    #[allow(clippy::needless_range_loop)]
    for i in 0..count {
        let row = if LISTED { list[i] as usize } else { first + i };
        // SAFETY: `check` has seen that all rows and four bytes behind them are there; the
        // groups lie within a row, and there are `G * count` weights.
        unsafe {
            let codes = values.bytes.as_ptr().add(row * row_bytes + group * bits);
            let mut of_row = [low; G];
            for (q, weight) in of_row.iter_mut().enumerate() {
                *weight = V::splat(*weights.get_unchecked(q * count + i));
            }
            for j in 0..WIDE {
                let word = codes.add(j * bits).cast::<u32>();
                let word = u32::from_le(word.read_unaligned());
                let x = V::look_up::<BITS>(word, 0, low, high);
                for (sums, weight) in sums.iter_mut().zip(of_row) {
                    sums[j] = x.mul_add(weight, sums[j]);
                }
            }
        }
    }
    for (q, sums) in sums.iter().enumerate() {
        for (j, sum) in sums.iter().enumerate() {
            let to = &mut out[q * dim + 8 * (group + j)..][..8];
            sum.add(V::load(to)).store(to);
        }
    }
}

/// `out[r]` = `table[codes of row r] * scale + zero` for a run of rows with `scales`
/// `[rows]` of scale and zero; `out` `[rows, dim]`.
///
/// # Panics
/// When the shapes do not fit or a row is not there.
pub fn read_values(values: ValueCodes, first: usize, scales: &[[f32; 2]], out: &mut [f32]) {
    let rows = RowSet::Range(first, first.saturating_add(scales.len()));
    assert_eq!(rows.len(), scales.len(), "read_values: rows");
    assert_eq!(out.len(), scales.len() * values.dim, "read_values: out");
    values.check(rows, "read_values");
    unpack(values, first, scales, out);
}

simd! {
    fn unpack(values: ValueCodes, first: usize, scales: &[[f32; 2]], out: &mut [f32]) = unpack_body;
}

#[inline(always)]
pub(super) fn unpack_body<V: Eight>(
    values: ValueCodes,
    first: usize,
    scales: &[[f32; 2]],
    out: &mut [f32],
) {
    match values.bits {
        2 => unpack_of::<V, 2>(values, first, scales, out),
        3 => unpack_of::<V, 3>(values, first, scales, out),
        _ => unpack_of::<V, 4>(values, first, scales, out),
    }
}

#[inline(always)]
fn unpack_of<V: Eight, const BITS: u32>(
    values: ValueCodes,
    first: usize,
    scales: &[[f32; 2]],
    out: &mut [f32],
) {
    let (low, high) = values.halves::<V>();
    let rows = out.chunks_exact_mut(values.dim.max(8));
    for (i, (out, [scale, zero])) in rows.zip(scales).enumerate() {
        let (scale, zero) = (V::splat(*scale), V::splat(*zero));
        for (group, to) in out.chunks_exact_mut(8).enumerate() {
            let x = values.load::<V, BITS>(first + i, group, low, high);
            x.mul_add(scale, zero).store(to);
        }
    }
}

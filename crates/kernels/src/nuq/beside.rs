//! Numbers that are kept beside the codes, because the tables do not reach them.

// Bodies of `simd!` are of a vector; these are one number at a time and leave it to the compiler.
#![allow(clippy::extra_unused_type_parameters)]

use std::ops::Range;

use half::f16;

use super::{Angles, GRANULE};
use crate::attention::Rotation;
use crate::vector::{Eight, simd};

/// A number beside a code: 13 bits of channel, 3 of the row within its granule, and what the
/// code misses. Four bytes, as the number alone would take with a place of 16 bits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Beside {
    place: u16,
    residual: f16,
}

/// Channels that a [`Beside`] can name.
pub const MOST_CHANNELS: usize = 1 << 13;

/// The greatest finite half.
const MOST: f32 = 65504.0;

impl Beside {
    /// What is missing at a row of a granule and a channel.
    ///
    /// # Panics
    /// When there is no such row or channel.
    pub fn new(row: usize, channel: usize, residual: f32) -> Self {
        assert!(
            row < GRANULE && channel < MOST_CHANNELS,
            "Beside: row {row}, channel {channel}"
        );
        Self {
            place: (row << 13 | channel) as u16,
            residual: f16::from_f32(residual.clamp(-MOST, MOST)),
        }
    }

    /// The row within its granule.
    #[inline(always)]
    pub fn row(self) -> usize {
        usize::from(self.place >> 13)
    }

    /// The channel.
    #[inline(always)]
    pub fn channel(self) -> usize {
        usize::from(self.place) & (MOST_CHANNELS - 1)
    }

    /// What is added to the number of the code.
    #[inline(always)]
    pub fn residual(self) -> f32 {
        widen(self.residual)
    }

    /// As it is saved.
    pub fn to_le_bytes(self) -> [u8; 4] {
        let ([a, b], [c, d]) = (self.place.to_le_bytes(), self.residual.to_le_bytes());
        [a, b, c, d]
    }

    /// As [`to_le_bytes`](Self::to_le_bytes) has it.
    pub fn from_le_bytes([a, b, c, d]: [u8; 4]) -> Self {
        Self {
            place: u16::from_le_bytes([a, b]),
            residual: f16::from_le_bytes([c, d]),
        }
    }
}

/// A finite half in 32 bits. The crate's own way asks for the processor's features each time,
/// which is too long for one number.
#[inline(always)]
fn widen(x: f16) -> f32 {
    let bits = u32::from(x.to_bits());
    // 2^112: the difference of the exponents' biases.
    let size = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits(0x7780_0000);
    f32::from_bits(size.to_bits() | (bits & 0x8000) << 16)
}

/// All numbers beside the codes of a head's rows.
#[derive(Debug, Clone, Copy)]
pub struct BesideRows<'a> {
    /// In the order of their granules.
    pub numbers: &'a [Beside],
    /// Where the numbers of each granule begin; those of the last end with the numbers.
    pub starts: &'a [u32],
}

impl<'a> BesideRows<'a> {
    /// The numbers of a granule.
    ///
    /// # Panics
    /// When it is not there.
    #[inline(always)]
    pub fn of_granule(&self, granule: usize) -> &'a [Beside] {
        let start = self.starts[granule] as usize;
        let end = self.starts.get(granule + 1);
        let end = end.map_or(self.numbers.len(), |&end| end as usize);
        &self.numbers[start..end]
    }
}

/// Adds to `out` `[g, granules * 8]`, as [`dot_keys`](super::dot_keys) fills it, what the
/// numbers beside the codes give.
///
/// # Panics
/// When the shapes do not fit, a granule is not there, or a number names a channel that is
/// not there.
#[allow(clippy::too_many_arguments)]
pub fn dot_beside(
    beside: BesideRows,
    granules: Range<usize>,
    dim: usize,
    rotation: Rotation,
    angles: Angles,
    column: usize,
    queries: &[f32],
    out: &mut [f32],
) {
    let g = crate::dot::assert_rows(queries.len(), dim, "dot_beside");
    assert!(
        granules.is_empty() || granules.end <= beside.starts.len(),
        "dot_beside: granule {} is not there",
        granules.end
    );
    let rows = granules.len() * GRANULE;
    let pairs = angles.pairs();
    let columns = column.checked_add(rows);
    assert!(
        out.len() == g * rows
            && angles.cos.len() == angles.sin.len()
            && angles.cos.len() == pairs * angles.stride
            && 2 * pairs <= dim
            && (pairs == 0 || columns.is_some_and(|columns| columns <= angles.stride)),
        "dot_beside: shapes do not fit"
    );
    let of = Keys {
        beside,
        granules,
        dim,
        angles,
        column,
    };
    match rotation {
        Rotation::Half => dot_half(&of, queries, out),
        Rotation::Interleaved => dot_interleaved(&of, queries, out),
    }
}

struct Keys<'a> {
    beside: BesideRows<'a>,
    granules: Range<usize>,
    dim: usize,
    angles: Angles<'a>,
    column: usize,
}

simd! {
    fn dot_half(of: &Keys, queries: &[f32], out: &mut [f32]) = dot_half_body;
}

simd! {
    fn dot_interleaved(of: &Keys, queries: &[f32], out: &mut [f32]) = dot_interleaved_body;
}

#[inline(always)]
fn dot_half_body<V: Eight>(of: &Keys, queries: &[f32], out: &mut [f32]) {
    dots::<false>(of, queries, out);
}

#[inline(always)]
fn dot_interleaved_body<V: Eight>(of: &Keys, queries: &[f32], out: &mut [f32]) {
    dots::<true>(of, queries, out);
}

#[inline(always)]
fn dots<const INTERLEAVED: bool>(of: &Keys, queries: &[f32], out: &mut [f32]) {
    let (dim, rows) = (of.dim, of.granules.len() * GRANULE);
    let g = queries.len() / dim;
    let mut q = 0;
    while q < g {
        let size = (g - q).min(4);
        let queries = &queries[q * dim..][..size * dim];
        let out = &mut out[q * rows..][..size * rows];
        match size {
            1 => dot_tile::<INTERLEAVED, 1>(of, queries, out),
            2 => dot_tile::<INTERLEAVED, 2>(of, queries, out),
            3 => dot_tile::<INTERLEAVED, 3>(of, queries, out),
            _ => dot_tile::<INTERLEAVED, 4>(of, queries, out),
        }
        q += size;
    }
}

/// The pair of a turned channel, the other channel of it, and the sign with which turning
/// brings a number there; without a branch, since channels come in any order.
#[inline(always)]
fn partner<const INTERLEAVED: bool>(channel: usize, pairs: usize) -> (usize, usize, f32) {
    if INTERLEAVED {
        let second = channel & 1;
        (channel / 2, channel ^ 1, 1.0 - 2.0 * second as f32)
    } else {
        let second = usize::from(channel >= pairs);
        let pair = channel - second * pairs;
        let other = pair + (1 - second) * pairs;
        (pair, other, 1.0 - 2.0 * second as f32)
    }
}

#[inline(always)]
fn dot_tile<const INTERLEAVED: bool, const G: usize>(of: &Keys, queries: &[f32], out: &mut [f32]) {
    let dim = of.dim;
    let rows = of.granules.len() * GRANULE;
    let (pairs, stride) = (of.angles.pairs(), of.angles.stride);
    assert!(queries.len() == G * dim && out.len() == G * rows && 2 * pairs <= dim);
    for (i, granule) in of.granules.clone().enumerate() {
        let first = i * GRANULE;
        for number in of.beside.of_granule(granule) {
            let (channel, row) = (number.channel(), first + number.row());
            let residual = number.residual();
            assert!(channel < dim, "dot_beside: no channel {channel}");
            if channel >= 2 * pairs {
                for q in 0..G {
                    out[q * rows + row] += residual * queries[q * dim + channel];
                }
                continue;
            }
            let (pair, other, sign) = partner::<INTERLEAVED>(channel, pairs);
            let at = pair * stride + of.column + row;
            // SAFETY: `dot_beside`, where all calls come from, has seen that the angles are
            // `[pairs, stride]` and that the columns of all rows are within the stride, without
            // overflow; a turned channel's pair is less than `pairs`.
            let (cos, sin) = unsafe {
                (
                    *of.angles.cos.get_unchecked(at),
                    *of.angles.sin.get_unchecked(at),
                )
            };
            let (own, across) = (residual * cos, residual * sign * sin);
            for q in 0..G {
                // SAFETY: the channel is less than `dim`, as was seen, its other less than
                // `2 * pairs`; the row is less than `rows` (a place has three bits, a granule
                // eight rows); the lengths were seen above.
                unsafe {
                    let add = own * queries.get_unchecked(q * dim + channel)
                        + across * queries.get_unchecked(q * dim + other);
                    *out.get_unchecked_mut(q * rows + row) += add;
                }
            }
        }
    }
}

/// `out[q] += Σ weights[q, r] · (what row r has beside its codes)` over the rows
/// `[from, to)`; `weights` `[g, to - from]`, `out` `[g, dim]`.
///
/// # Panics
/// When the shapes do not fit, a granule is not there, or a number names a channel that is
/// not there.
pub fn mix_beside(
    beside: BesideRows,
    dim: usize,
    weights: &[f32],
    (from, to): (usize, usize),
    out: &mut [f32],
) {
    let g = crate::dot::assert_rows(out.len(), dim, "mix_beside");
    assert!(
        from <= to && weights.len() == g * (to - from),
        "mix_beside: weights"
    );
    mix(beside, dim, weights, from, out);
}

simd! {
    fn mix(beside: BesideRows, dim: usize, weights: &[f32], from: usize, out: &mut [f32]) = mix_body;
}

#[inline(always)]
fn mix_body<V: Eight>(
    beside: BesideRows,
    dim: usize,
    weights: &[f32],
    from: usize,
    out: &mut [f32],
) {
    let g = out.len() / dim;
    let count = weights.len().checked_div(g).unwrap_or(0);
    let mut q = 0;
    while q < g {
        let size = (g - q).min(4);
        let weights = &weights[q * count..][..size * count];
        let out = &mut out[q * dim..][..size * dim];
        match size {
            1 => mix_tile::<1>(beside, dim, weights, from, out),
            2 => mix_tile::<2>(beside, dim, weights, from, out),
            3 => mix_tile::<3>(beside, dim, weights, from, out),
            _ => mix_tile::<4>(beside, dim, weights, from, out),
        }
        q += size;
    }
}

#[inline(always)]
fn mix_tile<const G: usize>(
    beside: BesideRows,
    dim: usize,
    weights: &[f32],
    from: usize,
    out: &mut [f32],
) {
    let count = weights.len() / G;
    assert!(out.len() == G * dim && weights.len() == G * count);
    let to = from + count;
    for granule in from / GRANULE..to.div_ceil(GRANULE) {
        // Less than nothing wraps to more than there are.
        let first = (granule * GRANULE).wrapping_sub(from);
        for number in beside.of_granule(granule) {
            let (at, channel) = (first.wrapping_add(number.row()), number.channel());
            if at >= count {
                continue;
            }
            assert!(channel < dim, "mix_beside: no channel {channel}");
            let residual = number.residual();
            for q in 0..G {
                // SAFETY: the row is one of `count`, the channel one of `dim`, and the
                // lengths were seen above.
                unsafe {
                    let weight = weights.get_unchecked(q * count + at);
                    *out.get_unchecked_mut(q * dim + channel) += weight * residual;
                }
            }
        }
    }
}

/// Splits halves `[scale, zero]` of rows to `scales` and `zeros`.
///
/// # Panics
/// When the lengths differ.
pub fn widen_scales(rows: &[[f16; 2]], scales: &mut [f32], zeros: &mut [f32]) {
    assert!(
        rows.len() == scales.len() && rows.len() == zeros.len(),
        "widen_scales: lengths differ"
    );
    widen_pairs(rows, scales, zeros);
}

simd! {
    fn widen_pairs(rows: &[[f16; 2]], scales: &mut [f32], zeros: &mut [f32]) = widen_body;
}

#[inline(always)]
fn widen_body<V: Eight>(rows: &[[f16; 2]], scales: &mut [f32], zeros: &mut [f32]) {
    let both = scales.iter_mut().zip(zeros.iter_mut());
    for ([scale, zero], (to_scale, to_zero)) in rows.iter().zip(both) {
        (*to_scale, *to_zero) = (widen(*scale), widen(*zero));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_widened_as_the_crate_does() {
        for bits in 0..=u16::MAX {
            let half = f16::from_bits(bits);
            if half.is_finite() {
                assert_eq!(widen(half).to_bits(), half.to_f32().to_bits());
            }
        }
    }

    #[test]
    fn numbers_are_read_as_they_were_written() {
        for (row, channel, residual) in [(0, 0, 0.5), (7, 8191, -1e9), (3, 64, 1e-3)] {
            let number = Beside::new(row, channel, residual);
            assert_eq!(Beside::from_le_bytes(number.to_le_bytes()), number);
            assert_eq!((number.row(), number.channel()), (row, channel));
            let near = residual.clamp(-65504.0, 65504.0);
            assert!((number.residual() - near).abs() <= near.abs() / 1024.0);
        }
    }
}

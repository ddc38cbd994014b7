//! Channels of packed weights in groups of sixteen, in integers.
//!
//! ```text
//! f_c = factor_c * scale_c        of each channel and each part of 32 outputs
//! f_c ≈ step * q_c                step = max |f| / 127
//! out_o += step * Σ q_c code_co + Σ factor_c minimum_c - centre Σ (step q_c - f_c)
//! ```
//!
//! A weight costs a part of a multiplication of bytes, where numbers of 32 bits would take one
//! each and be unpacked before. Codes of 4 bits are 0 to 15; the last term takes what rounding
//! adds to their middle, 8.

use super::bytes_of;
use crate::blocks::decode::{half_at, scales_and_minima};
use crate::blocks::{BlockMatrix, BlockType};

/// Channels that are added together.
pub(super) const GROUP: usize = 16;

/// Outputs that stay in the first cache while group after group is added.
const STRIP: usize = 4096;

/// Steps of a rounded factor on each side.
pub(super) const LEVELS: f32 = 127.0;

/// A strip of sixteen channels.
pub(super) struct Group<'a> {
    pub(super) rows: [&'a [u8]; GROUP],
    /// Where those begin that come next.
    pub(super) next: [*const u8; GROUP],
    pub(super) factors: [f32; GROUP],
}

/// Whether weights of a kind are added in groups.
pub(super) fn grouped(kind: BlockType) -> bool {
    matches!(
        kind,
        BlockType::Q4_0 | BlockType::Q4_1 | BlockType::Q4K | BlockType::Q8_0
    )
}

/// Adds channels to the outputs `first ..`, which begin with a block.
pub(super) fn add_channels(
    weights: &BlockMatrix,
    channels: &[u32],
    factors: &[f32],
    first: usize,
    out: &mut [f32],
) {
    cover(weights, channels, factors, first, out, add_group);
}

/// [`add_channels`] by a function for sixteen.
pub(super) fn cover(
    weights: &BlockMatrix,
    channels: &[u32],
    factors: &[f32],
    first: usize,
    out: &mut [f32],
    add_group: impl Fn(BlockType, &Group, &mut [f32]),
) {
    // The channels of a group come from sixteen runs of the list, each of which is read from its
    // beginning to its end: memory foresees that, where rows that lie side by side and are read
    // together are brought at a fraction of its speed.
    let run = channels.len().div_ceil(GROUP);
    for (s, strip) in out.chunks_mut(STRIP).enumerate() {
        let at = first + s * STRIP;
        let bytes = bytes_of(weights.kind, &(at..at + strip.len()));
        for i in 0..run {
            let row = |place: usize| {
                let channel = channels[place.min(channels.len() - 1)];
                &weights.row(channel as usize)[bytes.clone()]
            };
            // Places that are left over repeat a channel, with the factor 0.
            let factor = |place: usize| factors.get(place).copied().unwrap_or(0.0);
            let group = Group {
                rows: std::array::from_fn(|c| row(c * run + i)),
                next: std::array::from_fn(|c| row(c * run + i + 1).as_ptr()),
                factors: std::array::from_fn(|c| factor(c * run + i)),
            };
            add_group(weights.kind, &group, strip);
        }
    }
}

/// Adds sixteen channels to a strip of whole blocks.
fn add_group(kind: BlockType, group: &Group, out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if crate::vector::has_vnni() {
        // SAFETY: the machine has it.
        return unsafe { super::vnni::add_group(kind, group, out) };
    }
    #[cfg(target_arch = "x86_64")]
    if crate::vector::has_avx2() {
        // SAFETY: the machine has AVX2, FMA and F16C.
        return unsafe { super::x86::add_group(kind, group, out) };
    }
    portable(kind, group, out);
}

/// [`add_group`] on any machine.
pub(super) fn portable(kind: BlockType, group: &Group, out: &mut [f32]) {
    let factors = &group.factors;
    let centre = match kind {
        BlockType::Q8_0 => 0.0,
        _ => 8.0,
    };
    for (j, out) in out.chunks_exact_mut(32).enumerate() {
        let parts = group.rows.map(|row| Part::read(kind, row, j));
        let scaled: [f32; GROUP] = std::array::from_fn(|c| parts[c].scale * factors[c]);
        let size = scaled.iter().fold(0f32, |a, x| a.max(x.abs()));
        let inverse = if size > 0.0 { LEVELS / size } else { 0.0 };
        let step = size * (1.0 / LEVELS);
        let codes = scaled.map(|x| (x * inverse).round_ties_even() as i32);
        let off = step * codes.iter().sum::<i32>() as f32 - scaled.iter().sum::<f32>();
        let added = parts.iter().zip(factors).map(|(p, x)| p.minimum * x);
        let offset = added.sum::<f32>() - centre * off;
        for (l, out) in out.iter_mut().enumerate() {
            let products = parts.iter().zip(&codes).map(|(p, q)| p.codes[l] * q);
            *out += step * products.sum::<i32>() as f32 + offset;
        }
    }
}

/// 32 numbers of a channel, `scale * code + minimum`.
struct Part {
    scale: f32,
    minimum: f32,
    codes: [i32; 32],
}

impl Part {
    /// Part `j` of a row.
    fn read(kind: BlockType, row: &[u8], j: usize) -> Self {
        let size = kind.block_bytes();
        let parts = kind.block_len() / 32;
        let block = &row[j / parts * size..][..size];
        let d = half_at(block, 0);
        let nibble = |byte: u8, high: bool| i32::from(if high { byte >> 4 } else { byte & 15 });
        match kind {
            BlockType::Q8_0 => Self {
                scale: d,
                minimum: 0.0,
                codes: std::array::from_fn(|l| i32::from(block[2 + l].cast_signed())),
            },
            BlockType::Q4K => {
                let j = j % parts;
                let (scales, minima) = scales_and_minima(&block[4..16]);
                let codes = &block[16 + 32 * (j / 2)..][..32];
                Self {
                    scale: f32::from(scales[j]) * d,
                    minimum: -f32::from(minima[j]) * half_at(block, 2),
                    codes: std::array::from_fn(|l| nibble(codes[l], j % 2 == 1)),
                }
            }
            _ => Self {
                scale: d,
                minimum: match kind {
                    BlockType::Q4_0 => -8.0 * d,
                    _ => half_at(block, 2),
                },
                codes: std::array::from_fn(|l| nibble(block[size - 16 + l % 16], l >= 16)),
            },
        }
    }
}

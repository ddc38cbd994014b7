//! Blocks to numbers. The compiler makes vector code of these loops.

use half::f16;

use super::BlockType;
use crate::vector::{Eight, simd};

/// Writes the numbers of whole blocks to `out`.
///
/// # Panics
/// When `bytes` are not the blocks of `out.len()` numbers.
pub fn dequantize(kind: BlockType, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(
        kind.row_bytes(out.len()),
        Some(bytes.len()),
        "dequantize: bytes for {} numbers of {}",
        out.len(),
        kind.name()
    );
    decode(kind, bytes, out);
}

simd! {
    fn decode(kind: BlockType, bytes: &[u8], out: &mut [f32]) = decode_body;
}

#[inline(always)]
pub(super) fn decode_body<V: Eight>(kind: BlockType, bytes: &[u8], out: &mut [f32]) {
    match kind {
        BlockType::F32 => {
            for (x, b) in out.iter_mut().zip(bytes.as_chunks().0) {
                *x = f32::from_le_bytes(*b);
            }
        }
        BlockType::F16 => half_numbers::<V>(bytes, out),
        BlockType::Bf16 => {
            for (x, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *x = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
            }
        }
        BlockType::Q4_0 => blocks::<Q4_0, 18, 32>(bytes, out),
        BlockType::Q4_1 => blocks::<Q4_1, 20, 32>(bytes, out),
        BlockType::Q5_0 => blocks::<Q5_0, 22, 32>(bytes, out),
        BlockType::Q5_1 => blocks::<Q5_1, 24, 32>(bytes, out),
        BlockType::Q8_0 => blocks::<Q8_0, 34, 32>(bytes, out),
        BlockType::Q4K => blocks::<Q4K, 144, 256>(bytes, out),
        BlockType::Q5K => blocks::<Q5K, 176, 256>(bytes, out),
        BlockType::Q6K => blocks::<Q6K, 210, 256>(bytes, out),
    }
}

#[inline(always)]
fn half_numbers<V: Eight>(bytes: &[u8], out: &mut [f32]) {
    let (eights, rest) = out.as_chunks_mut::<8>();
    let (packed, packed_rest) = bytes.split_at(16 * eights.len());
    for (x, b) in eights.iter_mut().zip(packed.as_chunks::<16>().0) {
        // SAFETY: `b` has the sixteen bytes that are read.
        unsafe { V::load_f16_at(b.as_ptr()) }.store(x);
    }
    for (x, b) in rest.iter_mut().zip(packed_rest.as_chunks().0) {
        *x = f16::from_le_bytes(*b).to_f32();
    }
}

/// A kind of block of `BYTES` bytes and `LEN` numbers. Products are not fused with sums:
/// that would round otherwise than the format's own tools.
trait Block<const BYTES: usize, const LEN: usize> {
    fn decode(block: &[u8; BYTES], out: &mut [f32; LEN]);
}

#[inline(always)]
fn blocks<B: Block<BYTES, LEN>, const BYTES: usize, const LEN: usize>(
    bytes: &[u8],
    out: &mut [f32],
) {
    let blocks = bytes.as_chunks::<BYTES>().0;
    for (out, block) in out.as_chunks_mut::<LEN>().0.iter_mut().zip(blocks) {
        B::decode(block, out);
    }
}

/// The `f16` at `at`.
#[inline(always)]
pub(super) fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// The fifth bits of 32 numbers.
#[inline(always)]
pub(super) fn high_bits(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// The scales and minima of the eight parts of a `Q4K` or `Q5K` block, 6 bits each, from 12 bytes.
#[inline(always)]
pub(super) fn scales_and_minima(s: &[u8]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut minima) = ([0; 8], [0; 8]);
    for j in 0..4 {
        scales[j] = s[j] & 63;
        minima[j] = s[j + 4] & 63;
        scales[j + 4] = (s[j + 8] & 15) | ((s[j] >> 6) << 4);
        minima[j + 4] = (s[j + 8] >> 4) | ((s[j + 4] >> 6) << 4);
    }
    (scales, minima)
}

struct Q8_0;
struct Q4_0;
struct Q4_1;
struct Q5_0;
struct Q5_1;
struct Q4K;
struct Q5K;
struct Q6K;

impl Block<34, 32> for Q8_0 {
    #[inline(always)]
    fn decode(block: &[u8; 34], out: &mut [f32; 32]) {
        let d = half_at(block, 0);
        for (x, &q) in out.iter_mut().zip(&block[2..]) {
            *x = f32::from(q.cast_signed()) * d;
        }
    }
}

impl Block<18, 32> for Q4_0 {
    #[inline(always)]
    fn decode(block: &[u8; 18], out: &mut [f32; 32]) {
        let d = half_at(block, 0);
        for j in 0..16 {
            let q = block[2 + j];
            out[j] = d * (i32::from(q & 15) - 8) as f32;
            out[j + 16] = d * (i32::from(q >> 4) - 8) as f32;
        }
    }
}

impl Block<20, 32> for Q4_1 {
    #[inline(always)]
    fn decode(block: &[u8; 20], out: &mut [f32; 32]) {
        let (d, m) = (half_at(block, 0), half_at(block, 2));
        for j in 0..16 {
            let q = block[4 + j];
            out[j] = d * f32::from(q & 15) + m;
            out[j + 16] = d * f32::from(q >> 4) + m;
        }
    }
}

impl Block<22, 32> for Q5_0 {
    #[inline(always)]
    fn decode(block: &[u8; 22], out: &mut [f32; 32]) {
        let (d, high) = (half_at(block, 0), high_bits(block, 2));
        for j in 0..16 {
            let q = u32::from(block[6 + j]);
            let low = (q & 15) | (((high >> j) & 1) << 4);
            let upper = (q >> 4) | (((high >> (j + 16)) & 1) << 4);
            out[j] = d * (low as i32 - 16) as f32;
            out[j + 16] = d * (upper as i32 - 16) as f32;
        }
    }
}

impl Block<24, 32> for Q5_1 {
    #[inline(always)]
    fn decode(block: &[u8; 24], out: &mut [f32; 32]) {
        let (d, m, high) = (half_at(block, 0), half_at(block, 2), high_bits(block, 4));
        for j in 0..16 {
            let q = u32::from(block[8 + j]);
            let low = (q & 15) | (((high >> j) & 1) << 4);
            let upper = (q >> 4) | (((high >> (j + 16)) & 1) << 4);
            out[j] = d * low as f32 + m;
            out[j + 16] = d * upper as f32 + m;
        }
    }
}

impl Block<144, 256> for Q4K {
    #[inline(always)]
    fn decode(block: &[u8; 144], out: &mut [f32; 256]) {
        let (d, dmin) = (half_at(block, 0), half_at(block, 2));
        let (scales, minima) = scales_and_minima(&block[4..16]);
        for j in 0..8 {
            let (scale, minimum) = (d * f32::from(scales[j]), dmin * f32::from(minima[j]));
            let shift = 4 * (j % 2);
            for l in 0..32 {
                let q = (block[16 + 32 * (j / 2) + l] >> shift) & 15;
                out[32 * j + l] = scale * f32::from(q) - minimum;
            }
        }
    }
}

impl Block<176, 256> for Q5K {
    #[inline(always)]
    fn decode(block: &[u8; 176], out: &mut [f32; 256]) {
        let (d, dmin) = (half_at(block, 0), half_at(block, 2));
        let (scales, minima) = scales_and_minima(&block[4..16]);
        for j in 0..8 {
            let (scale, minimum) = (d * f32::from(scales[j]), dmin * f32::from(minima[j]));
            let shift = 4 * (j % 2);
            for l in 0..32 {
                let low = (block[48 + 32 * (j / 2) + l] >> shift) & 15;
                let q = low | (((block[16 + l] >> j) & 1) << 4);
                out[32 * j + l] = scale * f32::from(q) - minimum;
            }
        }
    }
}

impl Block<210, 256> for Q6K {
    #[inline(always)]
    fn decode(block: &[u8; 210], out: &mut [f32; 256]) {
        let d = half_at(block, 208);
        for j in 0..8 {
            let (half, part) = (j / 4, j % 4);
            let low = &block[64 * half + 32 * (part % 2)..][..32];
            let high = &block[128 + 32 * half..][..32];
            let (low_shift, high_shift) = (4 * (part / 2), 2 * part);
            for l in 0..32 {
                let q = ((low[l] >> low_shift) & 15) | (((high[l] >> high_shift) & 3) << 4);
                let scale = d * f32::from(block[192 + 2 * j + l / 16].cast_signed());
                out[32 * j + l] = scale * (i32::from(q) - 32) as f32;
            }
        }
    }
}

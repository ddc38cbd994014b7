//! Packed rows on any machine: 32 codes at once, in loops that compilers vectorise.

use super::{Columns, Kernel};
use crate::blocks::decode::{half_at, high_bits, scales_and_minima};
use crate::blocks::input::PackedRow;
use crate::blocks::{Activations, BlockMatrix, BlockType};

/// See [`super::products`].
pub(in crate::blocks) fn products(weights: &BlockMatrix, x: &Activations, out: &mut Columns) {
    match weights.kind {
        BlockType::Q4_0 => cover::<Small<Q4_0>>(weights, x, out),
        BlockType::Q4_1 => cover::<Small<Q4_1>>(weights, x, out),
        BlockType::Q5_0 => cover::<Small<Q5_0>>(weights, x, out),
        BlockType::Q5_1 => cover::<Small<Q5_1>>(weights, x, out),
        BlockType::Q8_0 => cover::<Small<Q8_0>>(weights, x, out),
        BlockType::Q4K => cover::<Large<false>>(weights, x, out),
        BlockType::Q5K => cover::<Large<true>>(weights, x, out),
        _ => cover::<Sixteenths>(weights, x, out),
    }
}

/// One row with one input after the other.
fn cover<K: Kernel>(weights: &BlockMatrix, x: &Activations, out: &mut Columns) {
    for row in out.range() {
        for n in 0..x.rows() {
            let product = K::tile::<1, 1>([weights.row(row)], [K::input(x, n)]);
            out.of(n, row..row + 1)[0] = product[0][0];
        }
    }
}

/// A kind of block of 32 numbers.
trait Block {
    const BYTES: usize;
    /// Codes, their scale, and what is added to each number.
    fn open(block: &[u8]) -> ([i8; 32], f32, f32);
}

struct Q4_0;
struct Q4_1;
struct Q5_0;
struct Q5_1;
struct Q8_0;

/// Sixteen bytes of two codes each.
#[inline(always)]
fn nibbles(bytes: &[u8]) -> [i8; 32] {
    let bytes = &bytes[..16];
    std::array::from_fn(|j| {
        let shift = 4 * (j / 16);
        ((bytes[j % 16] >> shift) & 15).cast_signed()
    })
}

#[inline(always)]
fn with_high_bits(mut codes: [i8; 32], high: u32) -> [i8; 32] {
    for (j, code) in codes.iter_mut().enumerate() {
        *code |= ((high >> j & 1) << 4) as i8;
    }
    codes
}

impl Block for Q4_0 {
    const BYTES: usize = 18;
    #[inline(always)]
    fn open(block: &[u8]) -> ([i8; 32], f32, f32) {
        let d = half_at(block, 0);
        (nibbles(&block[2..]), d, -8.0 * d)
    }
}

impl Block for Q4_1 {
    const BYTES: usize = 20;
    #[inline(always)]
    fn open(block: &[u8]) -> ([i8; 32], f32, f32) {
        (nibbles(&block[4..]), half_at(block, 0), half_at(block, 2))
    }
}

impl Block for Q5_0 {
    const BYTES: usize = 22;
    #[inline(always)]
    fn open(block: &[u8]) -> ([i8; 32], f32, f32) {
        let d = half_at(block, 0);
        let codes = with_high_bits(nibbles(&block[6..]), high_bits(block, 2));
        (codes, d, -16.0 * d)
    }
}

impl Block for Q5_1 {
    const BYTES: usize = 24;
    #[inline(always)]
    fn open(block: &[u8]) -> ([i8; 32], f32, f32) {
        let codes = with_high_bits(nibbles(&block[8..]), high_bits(block, 4));
        (codes, half_at(block, 0), half_at(block, 2))
    }
}

impl Block for Q8_0 {
    const BYTES: usize = 34;
    #[inline(always)]
    fn open(block: &[u8]) -> ([i8; 32], f32, f32) {
        let codes = &block[2..34];
        let codes = std::array::from_fn(|j| codes[j].cast_signed());
        (codes, half_at(block, 0), 0.0)
    }
}

#[inline(always)]
fn product(codes: &[i8], x: &[i8]) -> f32 {
    let term = |(&q, &x): (&i8, &i8)| i32::from(q) * i32::from(x);
    codes.iter().zip(x).map(term).sum::<i32>() as f32
}

struct Small<B>(B);

impl<B: Block> Kernel for Small<B> {
    type Input<'a> = PackedRow<'a>;

    fn input(x: &Activations, row: usize) -> PackedRow<'_> {
        x.packed(row)
    }

    #[inline(always)]
    fn tile<const R: usize, const N: usize>(rows: [&[u8]; R], x: [PackedRow; N]) -> [[f32; R]; N] {
        let mut out = [[0.0; R]; N];
        for (r, row) in rows.iter().enumerate() {
            for (i, block) in row.chunks_exact(B::BYTES).enumerate() {
                let (codes, d, m) = B::open(block);
                for (x, out) in x.iter().zip(&mut out) {
                    let [scale, sum] = x.pairs[i];
                    let dot = product(&codes, &x.codes[32 * i..][..32]);
                    out[r] += d * scale * dot + m * sum;
                }
            }
        }
        out
    }
}

/// `Q4K`, and `Q5K` with `FIFTH` bits.
struct Large<const FIFTH: bool>;

impl<const FIFTH: bool> Kernel for Large<FIFTH> {
    type Input<'a> = PackedRow<'a>;

    fn input(x: &Activations, row: usize) -> PackedRow<'_> {
        x.packed(row)
    }

    #[inline(always)]
    fn tile<const R: usize, const N: usize>(rows: [&[u8]; R], x: [PackedRow; N]) -> [[f32; R]; N] {
        let (bytes, low) = if FIFTH { (176, 48) } else { (144, 16) };
        let mut out = [[0.0; R]; N];
        for (r, row) in rows.iter().enumerate() {
            for (i, block) in row.chunks_exact(bytes).enumerate() {
                let (d, dmin) = (half_at(block, 0), half_at(block, 2));
                let (scales, minima) = scales_and_minima(&block[4..16]);
                for j in 0..8 {
                    let packed = &block[low + 32 * (j / 2)..][..32];
                    let mut codes = [0i8; 32];
                    for (l, code) in codes.iter_mut().enumerate() {
                        let fifth = if FIFTH {
                            (block[16 + l] >> j & 1) << 4
                        } else {
                            0
                        };
                        *code = ((packed[l] >> (4 * (j % 2))) & 15 | fifth).cast_signed();
                    }
                    let (scale, minimum) = (d * f32::from(scales[j]), dmin * f32::from(minima[j]));
                    for (x, out) in x.iter().zip(&mut out) {
                        let part = 8 * i + j;
                        let dot = product(&codes, &x.codes[32 * part..][..32]);
                        out[r] += scale * x.scales[part] * dot - minimum * x.sums[part];
                    }
                }
            }
        }
        out
    }
}

/// `Q6K`.
struct Sixteenths;

impl Kernel for Sixteenths {
    type Input<'a> = PackedRow<'a>;

    fn input(x: &Activations, row: usize) -> PackedRow<'_> {
        x.packed(row)
    }

    #[inline(always)]
    fn tile<const R: usize, const N: usize>(rows: [&[u8]; R], x: [PackedRow; N]) -> [[f32; R]; N] {
        let mut out = [[0.0; R]; N];
        for (r, row) in rows.iter().enumerate() {
            for (i, block) in row.chunks_exact(210).enumerate() {
                let d = half_at(block, 208);
                for j in 0..8 {
                    let (half, place) = (j / 4, j % 4);
                    let low = &block[64 * half + 32 * (place % 2)..][..32];
                    let high = &block[128 + 32 * half..][..32];
                    let mut codes = [0i8; 32];
                    for (l, code) in codes.iter_mut().enumerate() {
                        let q = ((low[l] >> (4 * (place / 2))) & 15)
                            | ((high[l] >> (2 * place)) & 3) << 4;
                        *code = q.cast_signed() - 32;
                    }
                    let scale = |h: usize| f32::from(block[192 + 2 * j + h].cast_signed());
                    for (x, out) in x.iter().zip(&mut out) {
                        let part = 8 * i + j;
                        let x_codes = &x.codes[32 * part..][..32];
                        let dot = scale(0) * product(&codes[..16], &x_codes[..16])
                            + scale(1) * product(&codes[16..], &x_codes[16..]);
                        out[r] += d * x.scales[part] * dot;
                    }
                }
            }
        }
        out
    }
}

//! Numbers to blocks.

use half::{bf16, f16};

use super::BlockType;
use super::decode::half_at;

/// Writes `values` as whole blocks to `bytes`. `Q4K`, `Q5K` and `Q6K` by the range of
/// each part; the others to the bit as the `gguf` package. NaN and infinities give any
/// number.
///
/// # Panics
/// When `bytes` are not the blocks of `values.len()` numbers.
pub fn quantize(kind: BlockType, values: &[f32], bytes: &mut [u8]) {
    assert_eq!(
        kind.row_bytes(values.len()),
        Some(bytes.len()),
        "quantize: bytes for {} numbers of {}",
        values.len(),
        kind.name()
    );
    let blocks = bytes.chunks_exact_mut(kind.block_bytes());
    let values = values.chunks_exact(kind.block_len()).zip(blocks);
    match kind {
        BlockType::F32 => values.for_each(|(x, b)| b.copy_from_slice(&x[0].to_le_bytes())),
        BlockType::F16 => {
            values.for_each(|(x, b)| b.copy_from_slice(&f16::from_f32(x[0]).to_le_bytes()));
        }
        BlockType::Bf16 => {
            values.for_each(|(x, b)| b.copy_from_slice(&bf16::from_f32(x[0]).to_le_bytes()));
        }
        BlockType::Q8_0 => values.for_each(|(x, b)| q8_0(x, b)),
        BlockType::Q4_0 => values.for_each(|(x, b)| around_zero(x, b, 8.0, 2)),
        BlockType::Q5_0 => values.for_each(|(x, b)| around_zero(x, b, 16.0, 6)),
        BlockType::Q4_1 => values.for_each(|(x, b)| above_minimum(x, b, 15.0, 4)),
        BlockType::Q5_1 => values.for_each(|(x, b)| above_minimum(x, b, 31.0, 8)),
        BlockType::Q4K => values.for_each(|(x, b)| eight_parts(x, b, 15.0, 16)),
        BlockType::Q5K => values.for_each(|(x, b)| eight_parts(x, b, 31.0, 48)),
        BlockType::Q6K => values.for_each(|(x, b)| sixteen_parts(x, b)),
    }
}

fn put_half(block: &mut [u8], at: usize, x: f32) {
    block[at..at + 2].copy_from_slice(&f16::from_f32(x).to_le_bytes());
}

/// `1 / x`, 0 of 0.
fn inverse(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { 1.0 / x }
}

/// The first of the numbers farthest from zero.
fn farthest(x: &[f32]) -> f32 {
    let farther = |best: f32, &x: &f32| if x.abs() > best.abs() { x } else { best };
    x.iter().skip(1).fold(x[0], farther)
}

fn q8_0(x: &[f32], block: &mut [u8]) {
    let d = farthest(x).abs() / 127.0;
    let inverse = inverse(d);
    put_half(block, 0, d);
    for (b, x) in block[2..].iter_mut().zip(x) {
        *b = ((x * inverse).round() as i8).cast_unsigned();
    }
}

/// The low four bits of 32 codes, two in a byte, from `at` to the end; fifth bits lie in
/// the four bytes before.
fn put_codes(block: &mut [u8], at: usize, codes: [u8; 32], fifth: bool) {
    for j in 0..16 {
        block[at + j] = (codes[j] & 15) | (codes[j + 16] << 4);
    }
    if fifth {
        let bit = |(j, &q): (usize, &u8)| u32::from(q >> 4) << j;
        let high: u32 = codes.iter().enumerate().map(bit).sum();
        block[at - 4..at].copy_from_slice(&high.to_le_bytes());
    }
}

/// `Q4_0` and `Q5_0`: the number farthest from zero becomes the lowest code.
fn around_zero(x: &[f32], block: &mut [u8], offset: f32, at: usize) {
    let d = farthest(x) / -offset;
    let inverse = inverse(d);
    put_half(block, 0, d);
    let highest = 2.0 * offset - 1.0;
    let code = |j: usize| (x[j] * inverse + (offset + 0.5)).trunc().min(highest) as u8;
    put_codes(block, at, std::array::from_fn(code), highest > 15.0);
}

/// `Q4_1` and `Q5_1`.
fn above_minimum(x: &[f32], block: &mut [u8], highest: f32, at: usize) {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let min = x.iter().copied().fold(f32::INFINITY, f32::min);
    let d = (max - min) / highest;
    let inverse = inverse(d);
    put_half(block, 0, d);
    put_half(block, 2, min);
    let code = |j: usize| ((x[j] - min) * inverse + 0.5).trunc().min(highest) as u8;
    put_codes(block, at, std::array::from_fn(code), highest > 15.0);
}

/// `Q4K` and `Q5K`: eight parts, each from its minimum (0 at most) to its maximum.
fn eight_parts(x: &[f32], block: &mut [u8], highest: f32, at: usize) {
    let (mut scales, mut minima) = ([0f32; 8], [0f32; 8]);
    for (j, part) in x.chunks_exact(32).enumerate() {
        let min = part.iter().copied().fold(0.0, f32::min);
        let max = part.iter().copied().fold(0.0, f32::max);
        scales[j] = (max - min) / highest;
        minima[j] = -min;
    }
    block.fill(0);
    let greatest = |x: &[f32; 8]| x.iter().copied().fold(0.0, f32::max);
    put_half(block, 0, greatest(&scales) / 63.0);
    put_half(block, 2, greatest(&minima) / 63.0);
    // What the reader will compute with.
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let six_bits = |x: f32, unit: f32| (x * inverse(unit)).round().min(63.0) as u8;
    for (j, part) in x.chunks_exact(32).enumerate() {
        let (scale, minimum) = (six_bits(scales[j], d), six_bits(minima[j], dmin));
        let packed = &mut block[4..16];
        if j < 4 {
            packed[j] |= scale;
            packed[j + 4] |= minimum;
        } else {
            packed[j + 4] |= (scale & 15) | (minimum << 4);
            packed[j - 4] |= (scale >> 4) << 6;
            packed[j] |= (minimum >> 4) << 6;
        }
        let (step, minimum) = (inverse(d * f32::from(scale)), dmin * f32::from(minimum));
        for (l, x) in part.iter().enumerate() {
            let q = ((x + minimum) * step).round().clamp(0.0, highest) as u8;
            block[at + 32 * (j / 2) + l] |= (q & 15) << (4 * (j % 2));
            if highest > 15.0 {
                block[16 + l] |= (q >> 4) << j;
            }
        }
    }
}

/// `Q6K`: sixteen parts around zero.
fn sixteen_parts(x: &[f32], block: &mut [u8]) {
    let mut scales = [0f32; 16];
    for (scale, part) in scales.iter_mut().zip(x.chunks_exact(16)) {
        *scale = farthest(part) / -32.0;
    }
    block.fill(0);
    put_half(block, 208, farthest(&scales).abs() / 127.0);
    let d = half_at(block, 208);
    for (i, part) in x.chunks_exact(16).enumerate() {
        let scale = (scales[i] * inverse(d)).round() as i8;
        block[192 + i] = scale.cast_unsigned();
        let step = inverse(d * f32::from(scale));
        let (j, from) = (i / 2, 16 * (i % 2));
        let (half, place) = (j / 4, j % 4);
        for (l, x) in part.iter().enumerate() {
            let q = ((x * step).round().clamp(-32.0, 31.0) + 32.0) as u8;
            let l = from + l;
            block[64 * half + 32 * (place % 2) + l] |= (q & 15) << (4 * (place / 2));
            block[128 + 32 * half + l] |= (q >> 4) << (2 * place);
        }
    }
}

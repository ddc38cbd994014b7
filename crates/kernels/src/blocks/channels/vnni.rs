//! Sixteen channels of packed weights on AVX-512 with VNNI; see [`super::groups`].
//!
//! Codes of four channels lie side by side in 32 bits, so that one instruction (`vpdpbusd`) adds four
//! channels to eight outputs. Its first bytes have no sign: codes with one are met as `code + 128`,
//! and the factors' sum times 128 is taken off.

use std::arch::x86_64::*;

use super::groups::{GROUP, Group, LEVELS};
use super::x86::{Parts, add_sums, ask, parts, starts, two};
use crate::blocks::BlockType;
use crate::blocks::dot::x86::{Block, Large, Q4_0, Q4_1, Q8_0};

/// See [`super::groups::add_group`].
///
/// # Safety
/// The machine must have what [`has_vnni`](crate::vector::has_vnni) asks for.
pub(super) unsafe fn add_group(kind: BlockType, group: &Group, out: &mut [f32]) {
    // SAFETY: the machine has it by contract.
    unsafe {
        match kind {
            BlockType::Q4_0 => nibbles::<Q4_0>(group, out),
            BlockType::Q4_1 => nibbles::<Q4_1>(group, out),
            BlockType::Q4K => large(group, out),
            _ => bytes(group, out),
        }
    }
}

// SAFETY (of every block below): only `add_group` calls these functions, where the machine has
// AVX-512 F, BW, VL and VNNI and what AVX2's functions need. Reads lie inside the blocks of
// `out.len()` numbers, which every row of the group holds by the assertion in `starts`.

/// Factors times the scales of a block of 32, rounded.
struct Rounded {
    /// Of channel after channel, in both halves.
    codes: __m256i,
    step: __m256,
    /// What is added to all outputs of the block.
    offset: __m256,
}

/// Rounds the factors of the block at byte `at` of every row. Codes lie around `centre`.
#[inline(always)]
unsafe fn round<B: Block>(rows: &[*const u8; GROUP], at: usize, x: __m512, centre: f32) -> Rounded {
    // SAFETY: see above.
    unsafe {
        let mut w = [0i32; GROUP];
        for (w, row) in w.iter_mut().zip(rows) {
            *w = B::scales(row.add(at)).cast_signed();
        }
        let w = _mm512_setr_epi32(
            w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8], w[9], w[10], w[11], w[12], w[13],
            w[14], w[15],
        );
        let scaled = _mm512_mul_ps(_mm512_cvtph_ps(_mm512_cvtepi32_epi16(w)), x);
        let size = _mm512_reduce_max_ps(_mm512_abs_ps(scaled));
        let step = size * (1.0 / LEVELS);
        let inverse = if size > 0.0 { LEVELS / size } else { 0.0 };
        let codes = _mm512_cvtps_epi32(_mm512_mul_ps(scaled, _mm512_set1_ps(inverse)));
        let mut offset = _mm512_setzero_ps();
        if centre != 0.0 {
            // What rounding added, times the centre.
            let off = _mm512_fmsub_ps(_mm512_cvtepi32_ps(codes), _mm512_set1_ps(step), scaled);
            offset = _mm512_mul_ps(off, _mm512_set1_ps(-centre));
        }
        if B::OFFSET != 0.0 {
            let second = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(w)));
            let added = _mm512_mul_ps(second, x);
            offset = _mm512_fmadd_ps(added, _mm512_set1_ps(B::OFFSET), offset);
        }
        let offset = match centre != 0.0 || B::OFFSET != 0.0 {
            true => _mm256_set1_ps(_mm512_reduce_add_ps(offset)),
            false => _mm256_setzero_ps(),
        };
        Rounded {
            codes: _mm256_broadcastsi128_si256(_mm512_cvtepi32_epi8(codes)),
            step: _mm256_set1_ps(step),
            offset,
        }
    }
}

/// Bytes of four channels by output: in each half of a register the outputs 0 to 3, 4 to 7, 8 to 11
/// and 12 to 15 of it.
#[inline(always)]
unsafe fn by_output([a, b, c, d]: [__m256i; 4]) -> [__m256i; 4] {
    // SAFETY: see above.
    unsafe {
        let (first, last) = (_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b));
        let (with, from) = (_mm256_unpacklo_epi8(c, d), _mm256_unpackhi_epi8(c, d));
        [
            _mm256_unpacklo_epi16(first, with),
            _mm256_unpackhi_epi16(first, with),
            _mm256_unpacklo_epi16(last, from),
            _mm256_unpackhi_epi16(last, from),
        ]
    }
}

/// Adds sums in the order of [`by_output`] to 32 outputs.
#[inline(always)]
unsafe fn add_block(sums: [__m256i; 4], step: __m256, offset: __m256, out: *mut f32) {
    // SAFETY: see above.
    unsafe {
        let [a, b, c, d] = sums;
        add_sums(_mm256_permute2x128_si256::<0x20>(a, b), step, offset, out);
        add_sums(
            _mm256_permute2x128_si256::<0x20>(c, d),
            step,
            offset,
            out.add(8),
        );
        add_sums(
            _mm256_permute2x128_si256::<0x31>(a, b),
            step,
            offset,
            out.add(16),
        );
        add_sums(
            _mm256_permute2x128_si256::<0x31>(c, d),
            step,
            offset,
            out.add(24),
        );
    }
}

/// `Q4_0` and `Q4_1`: sixteen bytes behind the scales hold the numbers 0 to 15 in their low
/// halves, the others in the high ones.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn nibbles<B: Block>(group: &Group, out: &mut [f32]) {
    let blocks = out.as_chunks_mut::<32>().0;
    let rows = starts(group, blocks.len(), B::BYTES);
    // SAFETY: see above.
    unsafe {
        let x = _mm512_loadu_ps(group.factors.as_ptr());
        let mask = _mm256_set1_epi8(15);
        for (u, out) in blocks.iter_mut().enumerate() {
            let at = u * B::BYTES;
            // Three blocks are less than a line.
            ask(group, at, u % 3, 3);
            let Rounded {
                codes,
                step,
                offset,
            } = round::<B>(&rows, at, x, 8.0);
            let at = at + B::BYTES - 16;
            let mut sums = [_mm256_setzero_si256(); 8];
            // Four channels in one half of a register, the next four in the other.
            for half in 0..2 {
                let row =
                    |c: usize| two(rows[8 * half + c].add(at), rows[8 * half + c + 4].add(at));
                let four = by_output([row(0), row(1), row(2), row(3)]);
                let (p, q) = (2 * half as i32, 2 * half as i32 + 1);
                let place = _mm256_setr_epi32(p, p, p, p, q, q, q, q);
                let factor = _mm256_permutevar8x32_epi32(codes, place);
                for (i, four) in four.into_iter().enumerate() {
                    let low = _mm256_and_si256(four, mask);
                    sums[i] = _mm256_dpbusd_epi32(sums[i], low, factor);
                    let high = _mm256_and_si256(_mm256_srli_epi16::<4>(four), mask);
                    sums[4 + i] = _mm256_dpbusd_epi32(sums[4 + i], high, factor);
                }
            }
            for (i, [a, b]) in sums.as_chunks::<2>().0.iter().enumerate() {
                let one = _mm256_permute2x128_si256::<0x20>(*a, *b);
                let other = _mm256_permute2x128_si256::<0x31>(*a, *b);
                let at = out.as_mut_ptr().add(8 * i);
                add_sums(_mm256_add_epi32(one, other), step, offset, at);
            }
        }
    }
}

/// `Q8_0`.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn bytes(group: &Group, out: &mut [f32]) {
    let (pairs, rest) = out.as_chunks_mut::<64>();
    let rest = rest.as_chunks_mut::<32>().0;
    let rows = starts(group, 2 * pairs.len() + rest.len(), Q8_0::BYTES);
    // SAFETY: see above.
    unsafe {
        let x = _mm512_loadu_ps(group.factors.as_ptr());
        for (u, out) in pairs.iter_mut().enumerate() {
            let at = 2 * u * Q8_0::BYTES;
            // Two blocks are a line and four bytes; what falls between comes with its neighbours.
            ask(group, at, 0, 1);
            add_bytes::<2>(&rows, at, x, out.as_mut_ptr());
        }
        for out in rest {
            add_bytes::<1>(&rows, 2 * pairs.len() * Q8_0::BYTES, x, out.as_mut_ptr());
        }
    }
}

/// Adds the `N` blocks at byte `at`: two share the loads of the rows' pointers.
#[inline(always)]
unsafe fn add_bytes<const N: usize>(
    rows: &[*const u8; GROUP],
    at: usize,
    x: __m512,
    out: *mut f32,
) {
    // SAFETY: see above.
    unsafe {
        let rounded: [Rounded; N] =
            std::array::from_fn(|n| round::<Q8_0>(rows, at + n * Q8_0::BYTES, x, 0.0));
        let (zero, sign) = (_mm256_setzero_si256(), _mm256_set1_epi8(i8::MIN));
        let (mut taken, mut sums) = ([zero; N], [[zero; 4]; N]);
        macro_rules! four {
            ($p:literal, $shuffle:literal) => {
                for n in 0..N {
                    let factor = _mm256_shuffle_epi32::<$shuffle>(rounded[n].codes);
                    taken[n] = _mm256_dpbusd_epi32(taken[n], sign, factor);
                    let row = |c: usize| {
                        let at = rows[4 * $p + c].add(at + n * Q8_0::BYTES + 2);
                        _mm256_xor_si256(_mm256_loadu_si256(at.cast()), sign)
                    };
                    let four = by_output([row(0), row(1), row(2), row(3)]);
                    for (sums, four) in sums[n].iter_mut().zip(four) {
                        *sums = _mm256_dpbusd_epi32(*sums, four, factor);
                    }
                }
            };
        }
        four!(0, 0x00);
        four!(1, 0x55);
        four!(2, 0xaa);
        four!(3, 0xff);
        for n in 0..N {
            let sums = sums[n].map(|sums| _mm256_sub_epi32(sums, taken[n]));
            let Rounded { step, offset, .. } = rounded[n];
            add_block(sums, step, offset, out.add(32 * n));
        }
    }
}

/// `Q4K`.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn large(group: &Group, out: &mut [f32]) {
    type Unit = Large<false>;
    let blocks = out.as_chunks_mut::<256>().0;
    let rows = starts(group, blocks.len(), Unit::BYTES);
    // SAFETY: see above.
    unsafe {
        let mask = _mm256_set1_epi8(15);
        for (u, out) in blocks.iter_mut().enumerate() {
            let at = u * Unit::BYTES;
            let Parts {
                scaled,
                step,
                inverse,
                sum,
                offset,
            } = parts(group, &rows, at);
            // For each part the rounded factors of four channels.
            let mut quartets = [[0i32; 8]; GROUP / 4];
            let (mut whole, byte) = (_mm256_setzero_si256(), _mm256_set1_epi32(0xff));
            for (scaled, quartet) in scaled.as_chunks::<4>().0.iter().zip(&mut quartets) {
                let mut four = _mm256_setzero_si256();
                for &scaled in scaled.iter().rev() {
                    let code = _mm256_cvtps_epi32(_mm256_mul_ps(scaled, inverse));
                    whole = _mm256_add_epi32(whole, code);
                    let code = _mm256_and_si256(code, byte);
                    four = _mm256_or_si256(_mm256_slli_epi32::<8>(four), code);
                }
                _mm256_storeu_si256(quartet.as_mut_ptr().cast(), four);
            }
            // Codes lie around 8: what rounding added, times that.
            let off = _mm256_fmsub_ps(_mm256_cvtepi32_ps(whole), step, sum);
            let offset = _mm256_fnmadd_ps(off, _mm256_set1_ps(8.0), offset);
            let (mut steps, mut offsets) = ([0f32; 8], [0f32; 8]);
            _mm256_storeu_ps(steps.as_mut_ptr(), step);
            _mm256_storeu_ps(offsets.as_mut_ptr(), offset);
            for i in 0..4 {
                let (piece, at) = (at + Unit::BYTES / 4 * i, at + 16 + 32 * i);
                let (mut low, mut high) =
                    ([_mm256_setzero_si256(); 4], [_mm256_setzero_si256(); 4]);
                for (p, quartet) in quartets.iter().enumerate() {
                    // Of four channels, in this place, for the reason that `ask` has.
                    (4 * p..4 * p + 4).for_each(|c| ask(group, piece, c, GROUP));
                    let row = |c: usize| _mm256_loadu_si256(rows[4 * p + c].add(at).cast());
                    let four = by_output([row(0), row(1), row(2), row(3)]);
                    let factors = [2 * i, 2 * i + 1].map(|part| _mm256_set1_epi32(quartet[part]));
                    for (k, four) in four.into_iter().enumerate() {
                        let codes = _mm256_and_si256(four, mask);
                        low[k] = _mm256_dpbusd_epi32(low[k], codes, factors[0]);
                        let codes = _mm256_and_si256(_mm256_srli_epi16::<4>(four), mask);
                        high[k] = _mm256_dpbusd_epi32(high[k], codes, factors[1]);
                    }
                }
                for (h, sums) in [low, high].into_iter().enumerate() {
                    let part = 2 * i + h;
                    let step = _mm256_set1_ps(steps[part]);
                    let offset = _mm256_set1_ps(offsets[part]);
                    add_block(sums, step, offset, out.as_mut_ptr().add(32 * part));
                }
            }
        }
    }
}

//! Sixteen channels of packed weights on AVX2; see [`super::groups`].
//!
//! Codes of two channels lie side by side in a register, so that one multiplication of bytes
//! (`maddubs`) or words (`madd`) adds two channels to an output. Eight such sums of codes of 4
//! bits fit 16 bits: 16 · 15 · 127 < 2¹⁵.

use std::arch::x86_64::*;

use super::groups::{GROUP, Group, LEVELS};
use crate::blocks::BlockType;
use crate::blocks::dot::x86::{Block, Large, Q4_0, Q4_1, Q8_0};

/// See [`super::groups::add_group`].
///
/// # Safety
/// The machine must have AVX2, FMA and F16C.
pub(super) unsafe fn add_group(kind: BlockType, group: &Group, out: &mut [f32]) {
    // SAFETY: the machine has them by contract.
    unsafe {
        match kind {
            BlockType::Q4_0 => nibbles::<Q4_0>(group, out),
            BlockType::Q4_1 => nibbles::<Q4_1>(group, out),
            BlockType::Q4K => large(group, out),
            _ => bytes(group, out),
        }
    }
}

// SAFETY (of every block below): only `add_group` and that of `vnni` call these functions, where the
// machine has AVX2, FMA and F16C. Reads lie inside the blocks of `out.len()` numbers, which every row of the
// group holds by the assertion in `starts`.

/// Where the rows begin; each has the bytes of `units` blocks.
#[inline(always)]
pub(super) fn starts(group: &Group, units: usize, bytes: usize) -> [*const u8; GROUP] {
    assert!(group.rows.iter().all(|row| row.len() >= units * bytes));
    group.rows.map(<[u8]>::as_ptr)
}

/// Asks for byte `at` of the strips that come next, of every `period`-th channel, to be brought to
/// the second cache, as `Eight::prefetch_line` has it.
#[inline(always)]
pub(super) unsafe fn ask(group: &Group, at: usize, first: usize, period: usize) {
    for c in (first..GROUP).step_by(period) {
        // SAFETY: a hint, which reads nothing and takes any address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(group.next[c].wrapping_add(at).cast()) };
    }
}

/// The sign bit cleared.
#[inline(always)]
unsafe fn absolute(x: __m256) -> __m256 {
    // SAFETY: see above.
    unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), x) }
}

/// `LEVELS / x`, or 0 where that is 0.
#[inline(always)]
unsafe fn inverse(x: __m256) -> __m256 {
    // SAFETY: see above.
    unsafe {
        let above = _mm256_cmp_ps::<_CMP_GT_OQ>(x, _mm256_setzero_ps());
        _mm256_and_ps(above, _mm256_div_ps(_mm256_set1_ps(LEVELS), x))
    }
}

/// Adds `step * words + offset` to eight outputs.
#[inline(always)]
unsafe fn add_words(words: __m128i, step: __m256, offset: __m256, out: *mut f32) {
    // SAFETY: see above.
    unsafe { add_sums(_mm256_cvtepi16_epi32(words), step, offset, out) }
}

/// Adds `step * sums + offset` to eight outputs.
#[inline(always)]
pub(super) unsafe fn add_sums(sums: __m256i, step: __m256, offset: __m256, out: *mut f32) {
    // SAFETY: see above.
    unsafe {
        let before = _mm256_add_ps(_mm256_loadu_ps(out), offset);
        let after = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), step, before);
        _mm256_storeu_ps(out, after);
    }
}

/// Factors times the scales of a block of 32, rounded.
struct Rounded {
    /// In words: the channels 0 to 3 and 8 to 11, then 4 to 7 and 12 to 15.
    codes: __m256i,
    step: __m256,
    /// What is added to all outputs of the block.
    offset: __m256,
}

/// The greatest of eight numbers, eight times.
#[inline(always)]
unsafe fn greatest(x: __m256) -> __m256 {
    // SAFETY: see above.
    unsafe {
        let x = _mm256_max_ps(x, _mm256_permute2f128_ps::<1>(x, x));
        let x = _mm256_max_ps(x, _mm256_permute_ps::<0b01_00_11_10>(x));
        _mm256_max_ps(x, _mm256_permute_ps::<0b10_11_00_01>(x))
    }
}

/// The sum of eight numbers, eight times.
#[inline(always)]
unsafe fn total(x: __m256) -> __m256 {
    // SAFETY: see above.
    unsafe {
        let x = _mm256_add_ps(x, _mm256_permute2f128_ps::<1>(x, x));
        let x = _mm256_add_ps(x, _mm256_permute_ps::<0b01_00_11_10>(x));
        _mm256_add_ps(x, _mm256_permute_ps::<0b10_11_00_01>(x))
    }
}

/// Rounds the factors of the block at byte `at` of every row. Codes lie around `centre`.
#[inline(always)]
unsafe fn round<B: Block>(
    rows: &[*const u8; GROUP],
    at: usize,
    x: [__m256; 2],
    centre: f32,
) -> Rounded {
    // SAFETY: see above.
    unsafe {
        let mut w = [0i32; GROUP];
        for (w, row) in w.iter_mut().zip(rows) {
            *w = B::scales(row.add(at)).cast_signed();
        }
        // In such an order that packing leaves channels in theirs.
        let a = _mm256_setr_epi32(w[0], w[1], w[2], w[3], w[8], w[9], w[10], w[11]);
        let b = _mm256_setr_epi32(w[4], w[5], w[6], w[7], w[12], w[13], w[14], w[15]);
        let low = _mm256_set1_epi32(0xffff);
        let halves = _mm256_packus_epi32(_mm256_and_si256(a, low), _mm256_and_si256(b, low));
        let first = _mm256_cvtph_ps(_mm256_castsi256_si128(halves));
        let second = _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(halves));
        let (first, second) = (_mm256_mul_ps(first, x[0]), _mm256_mul_ps(second, x[1]));
        let size = greatest(_mm256_max_ps(absolute(first), absolute(second)));
        let step = _mm256_mul_ps(size, _mm256_set1_ps(1.0 / LEVELS));
        let inverse = inverse(size);
        let q = _mm256_cvtps_epi32(_mm256_mul_ps(first, inverse));
        let r = _mm256_cvtps_epi32(_mm256_mul_ps(second, inverse));
        let mut offset = _mm256_setzero_ps();
        if centre != 0.0 {
            // What rounding added, times the centre.
            let whole = _mm256_cvtepi32_ps(_mm256_add_epi32(q, r));
            let off = _mm256_fmsub_ps(whole, step, _mm256_add_ps(first, second));
            offset = _mm256_mul_ps(off, _mm256_set1_ps(-centre));
        }
        if B::OFFSET != 0.0 {
            let (a, b) = (_mm256_srli_epi32::<16>(a), _mm256_srli_epi32::<16>(b));
            let halves = _mm256_packus_epi32(a, b);
            let first = _mm256_cvtph_ps(_mm256_castsi256_si128(halves));
            let second = _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(halves));
            let added = _mm256_mul_ps(first, x[0]);
            let added = _mm256_fmadd_ps(second, x[1], added);
            offset = _mm256_fmadd_ps(added, _mm256_set1_ps(B::OFFSET), offset);
        }
        if centre != 0.0 || B::OFFSET != 0.0 {
            offset = total(offset);
        }
        Rounded {
            codes: _mm256_packs_epi32(q, r),
            step,
            offset,
        }
    }
}

/// The factors of channels 0 to 7 and 8 to 15.
#[inline(always)]
unsafe fn factors(group: &Group) -> [__m256; 2] {
    let at = group.factors.as_ptr();
    // SAFETY: see above; there are sixteen.
    unsafe { [_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))] }
}

/// Sixteen bytes of one row, then of another.
#[inline(always)]
pub(super) unsafe fn two(one: *const u8, other: *const u8) -> __m256i {
    // SAFETY: see above.
    unsafe {
        let low = _mm256_castsi128_si256(_mm_loadu_si128(one.cast()));
        _mm256_inserti128_si256::<1>(low, _mm_loadu_si128(other.cast()))
    }
}

/// `Q4_0` and `Q4_1`: sixteen bytes behind the scales hold the numbers 0 to 15 in their low
/// halves, the others in the high ones.
#[target_feature(enable = "avx2,fma,f16c")]
fn nibbles<B: Block>(group: &Group, out: &mut [f32]) {
    /// First channels of the pairs in the two halves of a register.
    const PAIRS: [[usize; 2]; 4] = [[0, 4], [2, 6], [8, 12], [10, 14]];
    let blocks = out.as_chunks_mut::<32>().0;
    let rows = starts(group, blocks.len(), B::BYTES);
    // SAFETY: see above.
    unsafe {
        let (x, mask) = (factors(group), _mm256_set1_epi8(15));
        for (u, out) in blocks.iter_mut().enumerate() {
            let at = u * B::BYTES;
            // Three blocks are less than a line.
            ask(group, at, u % 3, 3);
            let Rounded {
                codes,
                step,
                offset,
            } = round::<B>(&rows, at, x, 8.0);
            let codes = _mm256_packs_epi16(codes, codes);
            let at = at + B::BYTES - 16;
            let mut sums = [_mm256_setzero_si256(); 4];
            for (k, [one, other]) in PAIRS.into_iter().enumerate() {
                let a = two(rows[one].add(at), rows[other].add(at));
                let b = two(rows[one + 1].add(at), rows[other + 1].add(at));
                let place = _mm256_set1_epi16((2 * k + ((2 * k + 1) << 8)) as i16);
                let factor = _mm256_shuffle_epi8(codes, place);
                let (low, high) = (_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b));
                for (i, codes) in [
                    low,
                    high,
                    _mm256_srli_epi16::<4>(low),
                    _mm256_srli_epi16::<4>(high),
                ]
                .into_iter()
                .enumerate()
                {
                    let products = _mm256_maddubs_epi16(_mm256_and_si256(codes, mask), factor);
                    sums[i] = _mm256_add_epi16(sums[i], products);
                }
            }
            for (i, sums) in sums.into_iter().enumerate() {
                let low = _mm256_castsi256_si128(sums);
                let words = _mm_add_epi16(low, _mm256_extracti128_si256::<1>(sums));
                add_words(words, step, offset, out.as_mut_ptr().add(8 * i));
            }
        }
    }
}

/// `Q8_0`.
#[target_feature(enable = "avx2,fma,f16c")]
fn bytes(group: &Group, out: &mut [f32]) {
    /// First channels of the pairs in the order of [`Rounded::codes`].
    const PAIRS: [usize; 8] = [0, 2, 8, 10, 4, 6, 12, 14];
    let blocks = out.as_chunks_mut::<32>().0;
    let rows = starts(group, blocks.len(), Q8_0::BYTES);
    // SAFETY: see above.
    unsafe {
        let x = factors(group);
        for (u, out) in blocks.iter_mut().enumerate() {
            let at = u * Q8_0::BYTES;
            // Two blocks are a line and four bytes; what falls between comes with its neighbours.
            ask(group, at, u % 2, 2);
            let Rounded {
                codes,
                step,
                offset,
            } = round::<Q8_0>(&rows, at, x, 0.0);
            let mut pairs = [0i32; 8];
            _mm256_storeu_si256(pairs.as_mut_ptr().cast(), codes);
            let mut sums = [_mm256_setzero_si256(); 4];
            for (pair, c) in pairs.into_iter().zip(PAIRS) {
                let factor = _mm256_set1_epi32(pair);
                for i in 0..2 {
                    let at = at + 2 + 16 * i;
                    let a = _mm256_cvtepi8_epi16(_mm_loadu_si128(rows[c].add(at).cast()));
                    let b = _mm256_cvtepi8_epi16(_mm_loadu_si128(rows[c + 1].add(at).cast()));
                    let (low, high) = (_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b));
                    let low = _mm256_madd_epi16(low, factor);
                    sums[2 * i] = _mm256_add_epi32(sums[2 * i], low);
                    let high = _mm256_madd_epi16(high, factor);
                    sums[2 * i + 1] = _mm256_add_epi32(sums[2 * i + 1], high);
                }
            }
            for i in 0..2 {
                // Numbers 0 to 3 and 8 to 11; 4 to 7 and 12 to 15.
                let (a, b) = (sums[2 * i], sums[2 * i + 1]);
                let at = out.as_mut_ptr().add(16 * i);
                add_sums(_mm256_permute2x128_si256::<0x20>(a, b), step, offset, at);
                let at = at.add(8);
                add_sums(_mm256_permute2x128_si256::<0x31>(a, b), step, offset, at);
            }
        }
    }
}

/// Factors times the scales of the eight parts of a block of `Q4K`, a part in each lane.
pub(super) struct Parts {
    pub(super) scaled: [__m256; GROUP],
    /// Of rounding.
    pub(super) step: __m256,
    /// What makes steps of a scaled factor.
    pub(super) inverse: __m256,
    /// Of the scaled factors of all channels.
    pub(super) sum: __m256,
    /// What minima add to all outputs of a part.
    pub(super) offset: __m256,
}

/// See [`Parts`]; of the block at byte `at` of every row.
#[inline(always)]
pub(super) unsafe fn parts(group: &Group, rows: &[*const u8; GROUP], at: usize) -> Parts {
    // SAFETY: see above.
    unsafe {
        let zero = _mm256_setzero_ps();
        let (mut scaled, mut size) = ([zero; GROUP], zero);
        let (mut sum, mut offset) = (zero, zero);
        for c in 0..GROUP {
            let (scales, minima) = Large::<false>::scales(rows[c].add(at));
            let x = _mm256_set1_ps(group.factors[c]);
            scaled[c] = _mm256_mul_ps(scales, x);
            size = _mm256_max_ps(size, absolute(scaled[c]));
            sum = _mm256_add_ps(sum, scaled[c]);
            offset = _mm256_fnmadd_ps(minima, x, offset);
        }
        Parts {
            scaled,
            step: _mm256_mul_ps(size, _mm256_set1_ps(1.0 / LEVELS)),
            inverse: inverse(size),
            sum,
            offset,
        }
    }
}

/// `Q4K`.
#[target_feature(enable = "avx2,fma,f16c")]
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
            // For each part the rounded factors of two channels, twice.
            let mut pairs = [[0i32; 8]; GROUP / 2];
            let (mut whole, byte) = (_mm256_setzero_si256(), _mm256_set1_epi32(0xff));
            for (p, pairs) in pairs.iter_mut().enumerate() {
                let a = _mm256_cvtps_epi32(_mm256_mul_ps(scaled[2 * p], inverse));
                let b = _mm256_cvtps_epi32(_mm256_mul_ps(scaled[2 * p + 1], inverse));
                whole = _mm256_add_epi32(whole, _mm256_add_epi32(a, b));
                let (a, b) = (_mm256_and_si256(a, byte), _mm256_and_si256(b, byte));
                let both = _mm256_or_si256(a, _mm256_slli_epi32::<8>(b));
                let twice = _mm256_or_si256(both, _mm256_slli_epi32::<16>(both));
                _mm256_storeu_si256(pairs.as_mut_ptr().cast(), twice);
            }
            // Codes lie around 8: what rounding added, times that.
            let off = _mm256_fmsub_ps(_mm256_cvtepi32_ps(whole), step, sum);
            let offset = _mm256_fnmadd_ps(off, _mm256_set1_ps(8.0), offset);
            let (mut steps, mut offsets) = ([0f32; 8], [0f32; 8]);
            _mm256_storeu_ps(steps.as_mut_ptr(), step);
            _mm256_storeu_ps(offsets.as_mut_ptr(), offset);
            for i in 0..4 {
                let (piece, at) = (at + Unit::BYTES / 4 * i, at + 16 + 32 * i);
                let mut sums = [_mm256_setzero_si256(); 4];
                for (p, pairs) in pairs.iter().enumerate() {
                    // Of two channels, in this place, for the reason that `ask` has.
                    ask(group, piece, 2 * p, GROUP);
                    ask(group, piece, 2 * p + 1, GROUP);
                    let a = _mm256_loadu_si256(rows[2 * p].add(at).cast());
                    let b = _mm256_loadu_si256(rows[2 * p + 1].add(at).cast());
                    let (first, last) = (_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b));
                    let factor = _mm256_set1_epi32(pairs[2 * i]);
                    let products = _mm256_maddubs_epi16(_mm256_and_si256(first, mask), factor);
                    sums[0] = _mm256_add_epi16(sums[0], products);
                    let products = _mm256_maddubs_epi16(_mm256_and_si256(last, mask), factor);
                    sums[1] = _mm256_add_epi16(sums[1], products);
                    let factor = _mm256_set1_epi32(pairs[2 * i + 1]);
                    let first = _mm256_and_si256(_mm256_srli_epi16::<4>(first), mask);
                    sums[2] = _mm256_add_epi16(sums[2], _mm256_maddubs_epi16(first, factor));
                    let last = _mm256_and_si256(_mm256_srli_epi16::<4>(last), mask);
                    sums[3] = _mm256_add_epi16(sums[3], _mm256_maddubs_epi16(last, factor));
                }
                for h in 0..2 {
                    let (part, out) = (2 * i + h, out.as_mut_ptr().add(64 * i + 32 * h));
                    let step = _mm256_set1_ps(steps[part]);
                    let offset = _mm256_set1_ps(offsets[part]);
                    // Numbers 0 to 7 and 16 to 23; 8 to 15 and 24 to 31.
                    let (a, b) = (sums[2 * h], sums[2 * h + 1]);
                    add_words(_mm256_castsi256_si128(a), step, offset, out);
                    add_words(_mm256_castsi256_si128(b), step, offset, out.add(8));
                    let (a, b) = (
                        _mm256_extracti128_si256::<1>(a),
                        _mm256_extracti128_si256::<1>(b),
                    );
                    add_words(a, step, offset, out.add(16));
                    add_words(b, step, offset, out.add(24));
                }
            }
        }
    }
}

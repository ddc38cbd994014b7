//! Rows in lanes on AVX-512 with VNNI: `vpdpbusd` adds four products of bytes to each of sixteen
//! integers.

use std::arch::x86_64::*;
use std::ops::Range;

use super::{INPUTS, LANES, Tile};
use crate::blocks::dot::x86::{Block, Large, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Sixteenths};
use crate::blocks::input::Grouped;
use crate::blocks::{BlockMatrix, BlockType};
use crate::vector::Avx2;
use crate::vector::Eight as _;

/// How a kind's blocks are taken apart. Parts have 32 numbers.
trait Parts {
    /// Bytes of a block.
    const BYTES: usize;
    /// Parts of a block.
    const PARTS: usize;
    /// Scales of a part: 1 or 2.
    const UNITS: usize;

    /// Codes of part `j`, 0 to 255.
    ///
    /// # Safety
    /// The block must be readable, and the machine have AVX2.
    unsafe fn codes(block: *const u8, j: usize) -> __m256i;

    /// Calls `unit(i, scale, offset)` for each unit of the block.
    ///
    /// # Safety
    /// As [`codes`](Self::codes), with FMA and F16C.
    unsafe fn scales(block: *const u8, unit: impl FnMut(usize, f32, f32));
}

struct Small<B>(B);

impl<B: Block> Parts for Small<B> {
    const BYTES: usize = B::BYTES;
    const PARTS: usize = 1;
    const UNITS: usize = 1;

    #[inline(always)]
    unsafe fn codes(block: *const u8, _: usize) -> __m256i {
        // SAFETY: by contract.
        let codes = unsafe { B::codes(block) };
        if B::SIGNED {
            // SAFETY: by contract. 128 more, which `scales` takes off.
            unsafe { _mm256_xor_si256(codes, _mm256_set1_epi8(-128)) }
        } else {
            codes
        }
    }

    #[inline(always)]
    unsafe fn scales(block: *const u8, mut unit: impl FnMut(usize, f32, f32)) {
        // SAFETY: by contract.
        let halves = unsafe { _mm_cvtph_ps(_mm_cvtsi32_si128(B::scales(block).cast_signed())) };
        // SAFETY: by contract.
        let (scale, second) = unsafe {
            (
                _mm_cvtss_f32(halves),
                _mm_cvtss_f32(_mm_movehdup_ps(halves)),
            )
        };
        let offset = match B::SIGNED {
            true => -128.0 * scale,
            false => B::OFFSET * second,
        };
        unit(0, scale, offset);
    }
}

impl<const FIFTH: bool> Parts for Large<FIFTH> {
    const BYTES: usize = Self::BYTES;
    const PARTS: usize = 8;
    const UNITS: usize = 1;

    #[inline(always)]
    unsafe fn codes(block: *const u8, j: usize) -> __m256i {
        // SAFETY: by contract.
        unsafe { Self::codes(block, j / 2)[j % 2] }
    }

    #[inline(always)]
    unsafe fn scales(block: *const u8, mut unit: impl FnMut(usize, f32, f32)) {
        // SAFETY: by contract.
        let (scales, minima) = unsafe { Self::scales(block) };
        let (scales, minima) = (Avx2(scales).to_array(), Avx2(minima).to_array());
        for (j, (scale, minimum)) in scales.iter().zip(minima).enumerate() {
            unit(j, *scale, -minimum);
        }
    }
}

impl Parts for Sixteenths {
    const BYTES: usize = Self::BYTES;
    const PARTS: usize = 8;
    const UNITS: usize = 2;

    #[inline(always)]
    unsafe fn codes(block: *const u8, j: usize) -> __m256i {
        // SAFETY: by contract.
        unsafe { Self::codes(block, j) }
    }

    #[inline(always)]
    unsafe fn scales(block: *const u8, mut unit: impl FnMut(usize, f32, f32)) {
        // SAFETY: 16 signed bytes and a half lie there, by contract.
        unsafe {
            let all = _mm_set1_epi16(block.add(208).cast::<i16>().read_unaligned());
            let whole = _mm_cvtss_f32(_mm_cvtph_ps(all));
            for i in 0..16 {
                let scale = whole * f32::from(block.add(192 + i).cast::<i8>().read());
                unit(i, scale, -32.0 * scale);
            }
        }
    }
}

/// See [`super::fill`].
///
/// # Safety
/// The machine must have VNNI.
pub(super) unsafe fn fill(weights: &BlockMatrix, rows: Range<usize>, tile: &mut Tile) {
    let fill = match weights.kind {
        BlockType::Q4_0 => fill_of::<Small<Q4_0>>,
        BlockType::Q4_1 => fill_of::<Small<Q4_1>>,
        BlockType::Q5_0 => fill_of::<Small<Q5_0>>,
        BlockType::Q5_1 => fill_of::<Small<Q5_1>>,
        BlockType::Q8_0 => fill_of::<Small<Q8_0>>,
        BlockType::Q4K => fill_of::<Large<false>>,
        BlockType::Q5K => fill_of::<Large<true>>,
        _ => fill_of::<Sixteenths>,
    };
    // SAFETY: by contract.
    unsafe { fill(weights, rows, tile) }
}

/// Rows that are turned to lanes together.
const TURNED: usize = 8;

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl")]
fn fill_of<P: Parts>(weights: &BlockMatrix, rows: Range<usize>, tile: &mut Tile) {
    let blocks = weights.row_bytes / P::BYTES;
    let parts = blocks * P::PARTS;
    assert!(rows.len() <= LANES && weights.row_bytes == blocks * P::BYTES);
    assert_eq!(tile.codes.len(), parts * 32 * LANES);
    assert!(tile.scales.len() == parts * P::UNITS * LANES);
    assert!(tile.offsets.len() == tile.scales.len());
    for lane in (0..rows.len()).step_by(TURNED) {
        let mut from = [std::ptr::null(); TURNED];
        let count = TURNED.min(rows.len() - lane);
        for (i, from) in from.iter_mut().enumerate() {
            // Rows that are not there repeat the last; nobody reads their lanes.
            *from = weights.row(rows.start + lane + i.min(count - 1)).as_ptr();
        }
        for b in 0..blocks {
            // SAFETY: block `b` lies in each row; parts, units and lanes in the tile, whose
            // lengths are asserted above (LANES are a multiple of TURNED).
            unsafe {
                let block = from.map(|row| row.add(b * P::BYTES));
                for (i, &block) in block.iter().enumerate() {
                    let at = b * P::PARTS * P::UNITS * LANES + lane + i;
                    let scales = tile.scales.as_mut_ptr().add(at);
                    let offsets = tile.offsets.as_mut_ptr().add(at);
                    P::scales(block, |u, scale, offset| {
                        *scales.add(u * LANES) = scale;
                        *offsets.add(u * LANES) = offset;
                    });
                }
                for j in 0..P::PARTS {
                    let mut codes = [_mm256_setzero_si256(); TURNED];
                    for (codes, &block) in codes.iter_mut().zip(&block) {
                        *codes = P::codes(block, j);
                    }
                    let turned = turn(codes);
                    let at = (b * P::PARTS + j) * 32 * LANES + lane * 4;
                    let to = tile.codes.as_mut_ptr().add(at);
                    for (k, turned) in turned.iter().enumerate() {
                        _mm256_storeu_si256(to.add(k * LANES * 4).cast(), *turned);
                    }
                }
            }
        }
    }
}

/// Eight rows of eight words as columns.
#[inline(always)]
unsafe fn turn(rows: [__m256i; TURNED]) -> [__m256i; TURNED] {
    let [a, b, c, d, e, f, g, h] = rows;
    // SAFETY: the caller is compiled for AVX2.
    unsafe {
        let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
        let (ef, gh) = (_mm256_unpacklo_epi32(e, f), _mm256_unpacklo_epi32(g, h));
        let (ab2, cd2) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
        let (ef2, gh2) = (_mm256_unpackhi_epi32(e, f), _mm256_unpackhi_epi32(g, h));
        let low = [
            _mm256_unpacklo_epi64(ab, cd),
            _mm256_unpackhi_epi64(ab, cd),
            _mm256_unpacklo_epi64(ab2, cd2),
            _mm256_unpackhi_epi64(ab2, cd2),
        ];
        let high = [
            _mm256_unpacklo_epi64(ef, gh),
            _mm256_unpackhi_epi64(ef, gh),
            _mm256_unpacklo_epi64(ef2, gh2),
            _mm256_unpackhi_epi64(ef2, gh2),
        ];
        let mut out = [a; TURNED];
        for i in 0..4 {
            out[i] = _mm256_permute2x128_si256::<0x20>(low[i], high[i]);
            out[i + 4] = _mm256_permute2x128_si256::<0x31>(low[i], high[i]);
        }
        out
    }
}

/// See [`super::multiply`].
///
/// # Safety
/// The machine must have VNNI.
pub(super) unsafe fn multiply(
    tile: &Tile,
    unit: usize,
    x: &Grouped,
    group: usize,
) -> [[f32; LANES]; INPUTS] {
    // SAFETY: by contract.
    unsafe {
        match (unit, x.in_group(group) > INPUTS / 2) {
            (32, true) => of_group::<INPUTS, 8>(tile, x, group),
            (32, false) => of_group::<{ INPUTS / 2 }, 8>(tile, x, group),
            (_, true) => of_group::<INPUTS, 4>(tile, x, group),
            (_, false) => of_group::<{ INPUTS / 2 }, 4>(tile, x, group),
        }
    }
}

/// Products with the first `N` inputs of a group; units have `WORDS` times four numbers.
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
fn of_group<const N: usize, const WORDS: usize>(
    tile: &Tile,
    x: &Grouped,
    group: usize,
) -> [[f32; LANES]; INPUTS] {
    let (codes, scales, sums) = x.group(group, 4 * WORDS);
    let units = x.cols / (4 * WORDS);
    assert!(N <= INPUTS && 8 % WORDS == 0 && codes.len() == units * 4 * WORDS * INPUTS);
    assert!(scales.len() == x.cols / 32 * INPUTS && sums.len() == units * INPUTS);
    assert_eq!(tile.codes.len(), units * 4 * WORDS * LANES);
    assert!(tile.scales.len() == units * LANES && tile.offsets.len() == units * LANES);
    let mut out = [[0.0; LANES]; INPUTS];
    // SAFETY: all reads lie in what is asserted above; 16 numbers of `out` are written.
    unsafe {
        let mut totals = [_mm512_setzero_ps(); N];
        let (mut own, mut four) = (tile.codes.as_ptr(), codes.as_ptr().cast::<i32>());
        for u in 0..units {
            let mut dots = [_mm512_setzero_si512(); N];
            for _ in 0..WORDS {
                let codes = _mm512_loadu_si512(own.cast());
                for (n, dot) in dots.iter_mut().enumerate() {
                    let x = _mm512_set1_epi32(four.add(n).read_unaligned());
                    *dot = _mm512_dpbusd_epi32(*dot, codes, x);
                }
                own = own.add(4 * LANES);
                four = four.add(INPUTS);
            }
            let scale = _mm512_loadu_ps(tile.scales.as_ptr().add(u * LANES));
            let offset = _mm512_loadu_ps(tile.offsets.as_ptr().add(u * LANES));
            let s = scales.as_ptr().add(u * WORDS / 8 * INPUTS);
            let sum = sums.as_ptr().add(u * INPUTS);
            for (n, (total, dot)) in totals.iter_mut().zip(dots).enumerate() {
                let factor = _mm512_mul_ps(scale, _mm512_set1_ps(*s.add(n)));
                *total = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), factor, *total);
                *total = _mm512_fmadd_ps(offset, _mm512_set1_ps(*sum.add(n)), *total);
            }
        }
        for (out, total) in out.iter_mut().zip(totals) {
            _mm512_storeu_ps(out.as_mut_ptr(), total);
        }
    }
    out
}

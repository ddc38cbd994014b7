//! Packed rows on AVX2: products of bytes (`maddubs`, or `vpdpbusd` where the machine has VNNI) are
//! added up in integers over a block, then scaled.
//!
//! Bytes of 4, 5 and 6 bits are positive; what the kind subtracts or adds is taken from
//! the sums of the inputs. A sum of two products has to fit 16 bits: 2 · 127 · 128 does.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::{Columns, Kernel, cover, sum_lanes};
use crate::blocks::input::PackedRow;
use crate::blocks::{Activations, BlockMatrix, BlockType};
use crate::vector::{Avx2, Eight};

/// See [`super::products`].
///
/// # Safety
/// The machine must have AVX2, FMA and F16C.
pub(super) unsafe fn products(weights: &BlockMatrix, x: &Activations, out: &mut Columns) {
    let products = match crate::vector::has_vnni() {
        true => on::<Vnni>(weights.kind),
        false => on::<Plain>(weights.kind),
    };
    // SAFETY: the machine has AVX2, FMA and F16C by contract, and VNNI where `Vnni` was taken.
    unsafe { products(weights, x, out) }
}

/// [`products`] without VNNI.
///
/// # Safety
/// As [`products`].
#[cfg(test)]
pub(super) unsafe fn products_plain(weights: &BlockMatrix, x: &Activations, out: &mut Columns) {
    // SAFETY: by contract.
    unsafe { on::<Plain>(weights.kind)(weights, x, out) }
}

/// The function for a kind.
fn on<M: Machine>(kind: BlockType) -> unsafe fn(&BlockMatrix, &Activations, &mut Columns) {
    match kind {
        BlockType::Q4_0 => self::kind::<Small<Q4_0, M>>,
        BlockType::Q4_1 => self::kind::<Small<Q4_1, M>>,
        BlockType::Q5_0 => self::kind::<Small<Q5_0, M>>,
        BlockType::Q5_1 => self::kind::<Small<Q5_1, M>>,
        BlockType::Q8_0 => self::kind::<Small<Q8_0, M>>,
        BlockType::Q4K => self::kind::<Halved<false, M>>,
        BlockType::Q5K => self::kind::<Halved<true, M>>,
        _ => self::kind::<Sixteenths>,
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn kind<K: Kernel>(weights: &BlockMatrix, x: &Activations, out: &mut Columns) {
    cover::<K>(weights, x, out);
}

// SAFETY (of every block below): only `products` names these types, for `kind`, which is compiled for
// AVX2, FMA and F16C and called where the machine has them. All reads lie inside a block or
// inside the codes, scales and sums of an input, whose lengths `tile` asserts first.

/// A kind of block of 32 numbers.
pub(in crate::blocks) trait Block {
    const BYTES: usize;
    /// What the second half of `scales` is multiplied with before it is added to a number;
    /// 0 where there is none.
    const OFFSET: f32;
    /// Whether codes have a sign.
    const SIGNED: bool = false;
    /// Two `f16`: the scale, and what `OFFSET` speaks of.
    unsafe fn scales(block: *const u8) -> u32;
    /// The codes.
    unsafe fn codes(block: *const u8) -> __m256i;
    /// Codes and inputs as bytes without and with a sign, of which the products are the same.
    #[inline(always)]
    unsafe fn sides(codes: __m256i, x: __m256i) -> (__m256i, __m256i) {
        (codes, x)
    }
}

pub(in crate::blocks) struct Q4_0;
pub(in crate::blocks) struct Q4_1;
pub(in crate::blocks) struct Q5_0;
pub(in crate::blocks) struct Q5_1;
pub(in crate::blocks) struct Q8_0;

#[inline(always)]
unsafe fn word(at: *const u8) -> u32 {
    // SAFETY: see above.
    unsafe { at.cast::<u32>().read_unaligned() }
}

/// A half twice.
#[inline(always)]
unsafe fn twice(at: *const u8) -> u32 {
    // SAFETY: see above.
    u32::from(unsafe { at.cast::<u16>().read_unaligned() }) * 0x1_0001
}

/// Sixteen bytes of two codes each: the low ones, then the high ones.
#[inline(always)]
unsafe fn nibbles(at: *const u8) -> __m256i {
    // SAFETY: see above.
    unsafe {
        let both = _mm256_broadcastsi128_si256(_mm_loadu_si128(at.cast()));
        let shifts = _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4);
        _mm256_and_si256(_mm256_srlv_epi32(both, shifts), _mm256_set1_epi8(15))
    }
}

/// 16 in the bytes whose bit is set.
#[inline(always)]
unsafe fn fifth_bits(bits: u32) -> __m256i {
    // SAFETY: see above.
    unsafe {
        let spread = _mm256_setr_epi64x(
            0,
            0x0101_0101_0101_0101,
            0x0202_0202_0202_0202,
            0x0303_0303_0303_0303,
        );
        let bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(bits.cast_signed()), spread);
        let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201u64.cast_signed());
        let set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
        _mm256_and_si256(set, _mm256_set1_epi8(16))
    }
}

impl Block for Q4_0 {
    const BYTES: usize = 18;
    const OFFSET: f32 = -8.0;
    #[inline(always)]
    unsafe fn scales(block: *const u8) -> u32 {
        // SAFETY: see above.
        unsafe { twice(block) }
    }
    #[inline(always)]
    unsafe fn codes(block: *const u8) -> __m256i {
        // SAFETY: see above.
        unsafe { nibbles(block.add(2)) }
    }
}

impl Block for Q4_1 {
    const BYTES: usize = 20;
    const OFFSET: f32 = 1.0;
    #[inline(always)]
    unsafe fn scales(block: *const u8) -> u32 {
        // SAFETY: see above.
        unsafe { word(block) }
    }
    #[inline(always)]
    unsafe fn codes(block: *const u8) -> __m256i {
        // SAFETY: see above.
        unsafe { nibbles(block.add(4)) }
    }
}

impl Block for Q5_0 {
    const BYTES: usize = 22;
    const OFFSET: f32 = -16.0;
    #[inline(always)]
    unsafe fn scales(block: *const u8) -> u32 {
        // SAFETY: see above.
        unsafe { twice(block) }
    }
    #[inline(always)]
    unsafe fn codes(block: *const u8) -> __m256i {
        // SAFETY: see above.
        unsafe { _mm256_or_si256(nibbles(block.add(6)), fifth_bits(word(block.add(2)))) }
    }
}

impl Block for Q5_1 {
    const BYTES: usize = 24;
    const OFFSET: f32 = 1.0;
    #[inline(always)]
    unsafe fn scales(block: *const u8) -> u32 {
        // SAFETY: see above.
        unsafe { word(block) }
    }
    #[inline(always)]
    unsafe fn codes(block: *const u8) -> __m256i {
        // SAFETY: see above.
        unsafe { _mm256_or_si256(nibbles(block.add(8)), fifth_bits(word(block.add(4)))) }
    }
}

impl Block for Q8_0 {
    const BYTES: usize = 34;
    const OFFSET: f32 = 0.0;
    const SIGNED: bool = true;
    #[inline(always)]
    unsafe fn scales(block: *const u8) -> u32 {
        // SAFETY: see above.
        u32::from(unsafe { block.cast::<u16>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn codes(block: *const u8) -> __m256i {
        // SAFETY: see above.
        unsafe { _mm256_loadu_si256(block.add(2).cast()) }
    }
    #[inline(always)]
    unsafe fn sides(codes: __m256i, x: __m256i) -> (__m256i, __m256i) {
        // |codes| · (x with their sign).
        // SAFETY: see above.
        unsafe { (_mm256_abs_epi8(codes), _mm256_sign_epi8(x, codes)) }
    }
}

/// How four products of bytes are added up.
trait Machine {
    /// In every word the sum of four products of `codes` (without sign) and `x`.
    ///
    /// # Safety
    /// The caller must be compiled for the machine.
    unsafe fn fours(codes: __m256i, x: __m256i) -> __m256i;

    /// [`small`] compiled for the machine.
    ///
    /// # Safety
    /// The machine must be there.
    unsafe fn small<B: Block, const R: usize, const N: usize>(
        rows: [&[u8]; R],
        x: &[PackedRow; N],
    ) -> [[f32; R]; N];

    /// [`large`] compiled for the machine.
    ///
    /// # Safety
    /// The machine must be there.
    unsafe fn large<const FIFTH: bool, const R: usize, const N: usize>(
        rows: [&[u8]; R],
        x: &[PackedRow; N],
    ) -> [[f32; R]; N];
}

/// AVX2 alone.
struct Plain;

/// AVX2, and AVX-512's VNNI for registers of its length.
struct Vnni;

/// Defines the functions of a [`Machine`]; each is one of its own, for the sake of registers.
macro_rules! compiled_for {
    ($features:literal) => {
        #[inline(always)]
        unsafe fn small<B: Block, const R: usize, const N: usize>(
            rows: [&[u8]; R],
            x: &[PackedRow; N],
        ) -> [[f32; R]; N] {
            #[target_feature(enable = $features)]
            fn compiled<M: Machine, B: Block, const R: usize, const N: usize>(
                rows: [&[u8]; R],
                x: &[PackedRow; N],
            ) -> [[f32; R]; N] {
                small::<M, B, R, N>(rows, x)
            }
            // SAFETY: by contract.
            unsafe { compiled::<Self, B, R, N>(rows, x) }
        }

        #[inline(always)]
        unsafe fn large<const FIFTH: bool, const R: usize, const N: usize>(
            rows: [&[u8]; R],
            x: &[PackedRow; N],
        ) -> [[f32; R]; N] {
            #[target_feature(enable = $features)]
            fn compiled<M: Machine, const FIFTH: bool, const R: usize, const N: usize>(
                rows: [&[u8]; R],
                x: &[PackedRow; N],
            ) -> [[f32; R]; N] {
                large::<M, FIFTH, R, N>(rows, x)
            }
            // SAFETY: by contract.
            unsafe { compiled::<Self, FIFTH, R, N>(rows, x) }
        }
    };
}

impl Machine for Plain {
    #[inline(always)]
    unsafe fn fours(codes: __m256i, x: __m256i) -> __m256i {
        // SAFETY: see above.
        unsafe { _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), _mm256_set1_epi16(1)) }
    }

    compiled_for!("avx2,fma,f16c");
}

impl Machine for Vnni {
    #[inline(always)]
    unsafe fn fours(codes: __m256i, x: __m256i) -> __m256i {
        // SAFETY: by contract.
        unsafe { _mm256_dpbusd_epi32(_mm256_setzero_si256(), codes, x) }
    }

    compiled_for!("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni");
}

#[inline(always)]
fn named<const R: usize, const N: usize>(sums: [[__m256; N]; R]) -> [[Avx2; N]; R] {
    let mut out = [[Avx2(sums[0][0]); N]; R];
    for (out, sums) in out.iter_mut().zip(sums) {
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = Avx2(sum);
        }
    }
    out
}

/// Whole sums of four neighbours, as numbers.
#[inline(always)]
unsafe fn fours(pairs: __m256i, factors: __m256i) -> __m256 {
    // SAFETY: see above.
    unsafe { _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, factors)) }
}

struct Small<B, M>(PhantomData<(B, M)>);

impl<B: Block, M: Machine> Kernel for Small<B, M> {
    type Input<'a> = PackedRow<'a>;

    #[inline(always)]
    fn input(x: &Activations, row: usize) -> PackedRow<'_> {
        x.packed(row)
    }

    #[inline(always)]
    fn tile<const R: usize, const N: usize>(rows: [&[u8]; R], x: [PackedRow; N]) -> [[f32; R]; N] {
        // SAFETY: see above.
        unsafe { M::small::<B, R, N>(rows, &x) }
    }
}

/// Products of a tile.
#[inline(always)]
fn small<M: Machine, B: Block, const R: usize, const N: usize>(
    rows: [&[u8]; R],
    x: &[PackedRow; N],
) -> [[f32; R]; N] {
    let blocks = rows[0].len() / B::BYTES;
    assert!(R <= 4 && rows.iter().all(|row| row.len() == blocks * B::BYTES));
    assert!(
        x.iter()
            .all(|x| x.codes.len() == 32 * blocks && x.pairs.len() == blocks)
    );
    // SAFETY: see above.
    unsafe {
        let mut sums = [[_mm256_setzero_ps(); N]; R];
        // In odd lanes the sums of what is added to the numbers of each row.
        let mut offsets = [_mm256_setzero_ps(); N];
        for b in 0..blocks {
            let mut scales = [0i32; 4];
            for (scales, row) in scales.iter_mut().zip(&rows) {
                *scales = B::scales(row.as_ptr().add(b * B::BYTES)).cast_signed();
            }
            let [s0, s1, s2, s3] = scales;
            let scales = _mm256_cvtph_ps(_mm_setr_epi32(s0, s1, s2, s3));
            let mut codes = [_mm256_setzero_si256(); R];
            for (codes, row) in codes.iter_mut().zip(&rows) {
                *codes = B::codes(row.as_ptr().add(b * B::BYTES));
            }
            for n in 0..N {
                let pair = x[n].pairs.as_ptr().add(b).cast::<f64>();
                let pair = _mm256_castpd_ps(_mm256_set1_pd(pair.read_unaligned()));
                let both = _mm256_mul_ps(scales, pair);
                if B::OFFSET != 0.0 {
                    offsets[n] = _mm256_add_ps(offsets[n], both);
                }
                let both = Avx2(both).to_array();
                let x = _mm256_loadu_si256(x[n].codes.as_ptr().add(32 * b).cast());
                for r in 0..R {
                    let (codes, x) = B::sides(codes[r], x);
                    let dot = _mm256_cvtepi32_ps(M::fours(codes, x));
                    let scale = _mm256_set1_ps(both[2 * r]);
                    sums[r][n] = _mm256_fmadd_ps(dot, scale, sums[r][n]);
                }
            }
        }
        let mut out = sum_lanes(named(sums));
        if B::OFFSET != 0.0 {
            for (out, offsets) in out.iter_mut().zip(offsets) {
                let offsets = Avx2(offsets).to_array();
                for (r, out) in out.iter_mut().enumerate() {
                    *out += B::OFFSET * offsets[2 * r + 1];
                }
            }
        }
        out
    }
}

/// Eight bytes as numbers.
#[inline(always)]
unsafe fn eight_bytes(low: u32, high: u32) -> __m256 {
    let both = u64::from(low) | (u64::from(high) << 32);
    // SAFETY: see above.
    unsafe {
        let bytes = _mm_cvtsi64_si128(both.cast_signed());
        _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes))
    }
}

/// A half in every lane.
#[inline(always)]
unsafe fn half(at: *const u8) -> __m256 {
    // SAFETY: see above.
    unsafe { _mm256_cvtph_ps(_mm_set1_epi16(at.cast::<i16>().read_unaligned())) }
}

/// `Q4K`, and `Q5K` with `FIFTH` bits.
pub(in crate::blocks) struct Large<const FIFTH: bool>;

impl<const FIFTH: bool> Large<FIFTH> {
    pub(in crate::blocks) const BYTES: usize = if FIFTH { 176 } else { 144 };
    const LOW: usize = if FIFTH { 48 } else { 16 };

    /// Scales and minima of the eight parts.
    #[inline(always)]
    pub(in crate::blocks) unsafe fn scales(block: *const u8) -> (__m256, __m256) {
        // SAFETY: see above.
        unsafe {
            // Four bytes at once, as `decode::scales_and_minima` has them one by one.
            let (a, b, c) = (word(block.add(4)), word(block.add(8)), word(block.add(12)));
            let (six, four, two) = (0x3f3f_3f3f, 0x0f0f_0f0f, 0x0303_0303);
            let scales = eight_bytes(a & six, (c & four) | (((a >> 6) & two) << 4));
            let minima = eight_bytes(b & six, ((c >> 4) & four) | (((b >> 6) & two) << 4));
            (
                _mm256_mul_ps(scales, half(block)),
                _mm256_mul_ps(minima, half(block.add(2))),
            )
        }
    }

    /// The codes of parts `2 i` and `2 i + 1`.
    #[inline(always)]
    pub(in crate::blocks) unsafe fn codes(block: *const u8, i: usize) -> [__m256i; 2] {
        // SAFETY: see above.
        unsafe {
            let packed = _mm256_loadu_si256(block.add(Self::LOW + 32 * i).cast());
            let mask = _mm256_set1_epi8(15);
            let low = _mm256_and_si256(packed, mask);
            let high = _mm256_and_si256(_mm256_srli_epi16::<4>(packed), mask);
            if !FIFTH {
                return [low, high];
            }
            let bits = _mm256_loadu_si256(block.add(16).cast());
            let bits = _mm256_srl_epi16(bits, _mm_cvtsi32_si128(2 * i as i32));
            let sixteen = _mm256_set1_epi8(16);
            let first = _mm256_and_si256(_mm256_slli_epi16::<4>(bits), sixteen);
            let second = _mm256_and_si256(_mm256_slli_epi16::<3>(bits), sixteen);
            [_mm256_or_si256(low, first), _mm256_or_si256(high, second)]
        }
    }
}

/// [`Large`] on a machine.
struct Halved<const FIFTH: bool, M>(PhantomData<M>);

impl<const FIFTH: bool, M: Machine> Kernel for Halved<FIFTH, M> {
    type Input<'a> = PackedRow<'a>;

    #[inline(always)]
    fn input(x: &Activations, row: usize) -> PackedRow<'_> {
        x.packed(row)
    }

    #[inline(always)]
    fn tile<const R: usize, const N: usize>(rows: [&[u8]; R], x: [PackedRow; N]) -> [[f32; R]; N] {
        // SAFETY: see above.
        unsafe { M::large::<FIFTH, R, N>(rows, &x) }
    }
}

/// Products of a tile.
#[inline(always)]
fn large<M: Machine, const FIFTH: bool, const R: usize, const N: usize>(
    rows: [&[u8]; R],
    x: &[PackedRow; N],
) -> [[f32; R]; N] {
    let blocks = rows[0].len() / Large::<FIFTH>::BYTES;
    assert!(
        rows.iter()
            .all(|row| row.len() == blocks * Large::<FIFTH>::BYTES)
    );
    assert!(x.iter().all(|x| x.codes.len() == 256 * blocks));
    assert!(
        x.iter()
            .all(|x| x.scales.len() == 8 * blocks && x.sums.len() == 8 * blocks)
    );
    // SAFETY: see above.
    unsafe {
        let mut sums = [[_mm256_setzero_ps(); N]; R];
        for b in 0..blocks {
            for r in 0..R {
                let block = rows[r].as_ptr().add(b * Large::<FIFTH>::BYTES);
                let (scales, minima) = Large::<FIFTH>::scales(block);
                let mut factors = [[0f32; 8]; N];
                for n in 0..N {
                    let own = _mm256_loadu_ps(x[n].scales.as_ptr().add(8 * b));
                    factors[n] = Avx2(_mm256_mul_ps(scales, own)).to_array();
                    let own = _mm256_loadu_ps(x[n].sums.as_ptr().add(8 * b));
                    sums[r][n] = _mm256_fnmadd_ps(minima, own, sums[r][n]);
                }
                for i in 0..4 {
                    let codes = Large::<FIFTH>::codes(block, i);
                    for n in 0..N {
                        for (h, &codes) in codes.iter().enumerate() {
                            let part = 2 * i + h;
                            let at = x[n].codes.as_ptr().add(256 * b + 32 * part);
                            let own = _mm256_loadu_si256(at.cast());
                            let dot = _mm256_cvtepi32_ps(M::fours(codes, own));
                            let factor = _mm256_set1_ps(factors[n][part]);
                            sums[r][n] = _mm256_fmadd_ps(dot, factor, sums[r][n]);
                        }
                    }
                }
            }
        }
        sum_lanes(named(sums))
    }
}

/// `Q6K`.
pub(in crate::blocks) struct Sixteenths;

impl Sixteenths {
    pub(in crate::blocks) const BYTES: usize = 210;

    /// The codes, 0 to 63, of part `j`.
    #[inline(always)]
    pub(in crate::blocks) unsafe fn codes(block: *const u8, j: usize) -> __m256i {
        let (half, place) = (j / 4, j % 4);
        // SAFETY: see above.
        unsafe {
            let low = _mm256_loadu_si256(block.add(64 * half + 32 * (place % 2)).cast());
            let high = _mm256_loadu_si256(block.add(128 + 32 * half).cast());
            let low = match place / 2 {
                0 => low,
                _ => _mm256_srli_epi16::<4>(low),
            };
            let high = match place {
                0 => _mm256_slli_epi16::<4>(high),
                1 => _mm256_slli_epi16::<2>(high),
                2 => high,
                _ => _mm256_srli_epi16::<2>(high),
            };
            let low = _mm256_and_si256(low, _mm256_set1_epi8(15));
            _mm256_or_si256(low, _mm256_and_si256(high, _mm256_set1_epi8(0x30)))
        }
    }
}

impl Kernel for Sixteenths {
    type Input<'a> = PackedRow<'a>;

    #[inline(always)]
    fn input(x: &Activations, row: usize) -> PackedRow<'_> {
        x.packed(row)
    }

    #[inline(always)]
    fn tile<const R: usize, const N: usize>(rows: [&[u8]; R], x: [PackedRow; N]) -> [[f32; R]; N] {
        // SAFETY: see above.
        unsafe { sixteenths::<R, N>(rows, &x) }
    }
}

/// Products of a tile; a function of its own, for the sake of registers.
#[target_feature(enable = "avx2,fma,f16c")]
fn sixteenths<const R: usize, const N: usize>(
    rows: [&[u8]; R],
    x: &[PackedRow; N],
) -> [[f32; R]; N] {
    let blocks = rows[0].len() / Sixteenths::BYTES;
    assert!(
        rows.iter()
            .all(|row| row.len() == blocks * Sixteenths::BYTES)
    );
    assert!(x.iter().all(|x| x.codes.len() == 256 * blocks));
    assert!(
        x.iter()
            .all(|x| x.scales.len() == 8 * blocks && x.half_sums.len() == 16 * blocks)
    );
    // SAFETY: see above.
    unsafe {
        let mut sums = [[_mm256_setzero_ps(); N]; R];
        for b in 0..blocks {
            for r in 0..R {
                let block = rows[r].as_ptr().add(b * Sixteenths::BYTES);
                let bytes = _mm_loadu_si128(block.add(192).cast());
                let first = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
                let second = _mm_unpackhi_epi64(bytes, bytes);
                let second = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(second));
                // Of this block, not multiplied with its scale yet; at first -32 times
                // the inputs' sums.
                let mut own = [_mm256_setzero_ps(); N];
                for n in 0..N {
                    let at = x[n].half_sums.as_ptr().add(16 * b);
                    let low = _mm256_mul_ps(first, _mm256_loadu_ps(at));
                    let both = _mm256_fmadd_ps(second, _mm256_loadu_ps(at.add(8)), low);
                    own[n] = _mm256_mul_ps(both, _mm256_set1_ps(-32.0));
                }
                for j in 0..8 {
                    let codes = Sixteenths::codes(block, j);
                    // The scale of the low sixteen in the low lane, the other in the high.
                    let places = _mm_add_epi8(
                        _mm_set1_epi8(2 * j as i8),
                        _mm_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1),
                    );
                    let scales = _mm256_cvtepi8_epi16(_mm_shuffle_epi8(bytes, places));
                    for n in 0..N {
                        let at = x[n].codes.as_ptr().add(256 * b + 32 * j);
                        let pairs = _mm256_maddubs_epi16(codes, _mm256_loadu_si256(at.cast()));
                        let factor = _mm256_set1_ps(*x[n].scales.as_ptr().add(8 * b + j));
                        own[n] = _mm256_fmadd_ps(fours(pairs, scales), factor, own[n]);
                    }
                }
                let scale = half(block.add(208));
                for n in 0..N {
                    sums[r][n] = _mm256_fmadd_ps(own[n], scale, sums[r][n]);
                }
            }
        }
        sum_lanes(named(sums))
    }
}

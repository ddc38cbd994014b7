//! [`Vector`] on AVX2, FMA and F16C.

use super::{Eight, Vector};
use std::arch::x86_64::*;

/// Eight numbers in an AVX register.
///
/// Only [`simd!`](super::simd) names this type as a kernel's vector, inside a
/// function that is compiled for AVX2, FMA and F16C and called where the machine
/// has them.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(pub(crate) __m256);

// SAFETY (of every block in these two implementations): the type's contract
// says that the machine has AVX2, FMA and F16C. Loads and stores are unaligned
// ones on eight numbers whose presence is asserted first.
impl Vector for Avx2 {
    const LEN: usize = 8;
    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm256_set1_ps(x) })
    }
    #[inline(always)]
    fn load(from: &[f32]) -> Self {
        assert!(from.len() >= 8);
        // SAFETY: see above.
        Self(unsafe { _mm256_loadu_ps(from.as_ptr()) })
    }
    #[inline(always)]
    unsafe fn load_at(from: *const f32) -> Self {
        // SAFETY: see above; the numbers are readable by contract.
        Self(unsafe { _mm256_loadu_ps(from) })
    }
    #[inline(always)]
    fn store(self, to: &mut [f32]) {
        assert!(to.len() >= 8);
        // SAFETY: see above.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), self.0) }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm256_add_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm256_sub_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm256_mul_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm256_div_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm256_fmadd_ps(self.0, factor.0, term.0) })
    }
    #[inline(always)]
    fn mul_sub(self, factor: Self, term: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm256_fmsub_ps(self.0, factor.0, term.0) })
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm256_max_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm256_min_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn abs(self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), self.0) })
    }
    #[inline(always)]
    fn if_less(self, bound: Self, yes: Self, no: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe {
            let less = _mm256_cmp_ps::<_CMP_LT_OQ>(self.0, bound.0);
            _mm256_blendv_ps(no.0, yes.0, less)
        })
    }
    #[inline(always)]
    fn shift_bits(self, add: u32, left: u32) -> Self {
        // SAFETY: see above.
        Self(unsafe {
            let bits = _mm256_castps_si256(self.0);
            let sum = _mm256_add_epi32(bits, _mm256_set1_epi32(add.cast_signed()));
            let count = _mm_cvtsi32_si128(left.cast_signed());
            _mm256_castsi256_ps(_mm256_sll_epi32(sum, count))
        })
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: see above.
        unsafe {
            let four = _mm_add_ps(
                _mm256_castps256_ps128(self.0),
                _mm256_extractf128_ps::<1>(self.0),
            );
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
}

impl Eight for Avx2 {
    const TILES: bool = true;
    #[inline(always)]
    unsafe fn repeat_at<const L: usize>(from: *const f32) -> Self {
        // SAFETY: see above; L numbers are readable by contract, and each
        // of the four reads just L of them, whatever their alignment.
        Self(unsafe {
            match L {
                1 => _mm256_set1_ps(*from),
                2 => _mm256_castpd_ps(_mm256_set1_pd(from.cast::<f64>().read_unaligned())),
                4 => {
                    let four = _mm_loadu_ps(from);
                    _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(four), four)
                }
                _ => _mm256_loadu_ps(from),
            }
        })
    }
    #[inline(always)]
    fn sum_groups<const L: usize>(self) -> Self {
        let mut x = self.0;
        // SAFETY: see above.
        unsafe {
            if L >= 2 {
                x = _mm256_add_ps(x, _mm256_permute_ps::<0b10_11_00_01>(x));
            }
            if L >= 4 {
                x = _mm256_add_ps(x, _mm256_permute_ps::<0b01_00_11_10>(x));
            }
            if L >= 8 {
                x = _mm256_add_ps(x, _mm256_permute2f128_ps::<1>(x, x));
            }
        }
        Self(x)
    }
    #[inline(always)]
    fn look_up<const BITS: u32>(codes: u32, first: u32, low: Self, high: Self) -> Self {
        let (f, b) = (first.cast_signed(), BITS.cast_signed());
        // SAFETY: see above.
        Self(unsafe {
            let shifts = _mm256_setr_epi32(
                f,
                f + b,
                f + 2 * b,
                f + 3 * b,
                f + 4 * b,
                f + 5 * b,
                f + 6 * b,
                f + 7 * b,
            );
            let all = _mm256_set1_epi32(codes.cast_signed());
            // Bits above the code stay: the shuffles look at two and at
            // three bits only, and tables shorter than that are repeated.
            let code = _mm256_srlv_epi32(all, shifts);
            if BITS <= 2 {
                _mm256_permutevar_ps(low.0, code)
            } else if BITS == 3 {
                _mm256_permutevar8x32_ps(low.0, code)
            } else {
                let first = _mm256_permutevar8x32_ps(low.0, code);
                let second = _mm256_permutevar8x32_ps(high.0, code);
                // The highest of four bits, where a blend looks for it.
                let upper = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(code));
                _mm256_blendv_ps(first, second, upper)
            }
        })
    }
    #[inline(always)]
    fn less_mask(self, bound: Self) -> u32 {
        // SAFETY: see above.
        let mask = unsafe { _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(self.0, bound.0)) };
        mask.cast_unsigned()
    }
    #[inline(always)]
    fn to_array(self) -> [f32; 8] {
        let mut array = [0.0; 8];
        self.store(&mut array);
        array
    }
    #[inline(always)]
    fn prefetch(numbers: &[f32]) {
        // 16 numbers fill a cache line.
        for i in (0..numbers.len()).step_by(16) {
            let line = numbers.as_ptr().wrapping_add(i);
            // SAFETY: a hint, which reads nothing; the address is valid anyway.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
        }
    }
    #[inline(always)]
    fn prefetch_line(at: *const u8) {
        // SAFETY: a hint, which reads nothing and takes any address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) };
    }
    #[inline(always)]
    unsafe fn load_f32_at(from: *const u8) -> Self {
        // SAFETY: see above; 32 bytes are readable by contract.
        Self(unsafe { _mm256_loadu_ps(from.cast()) })
    }
    #[inline(always)]
    unsafe fn load_f16_at(from: *const u8) -> Self {
        // SAFETY: see above; 16 bytes are readable by contract.
        Self(unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) })
    }
    #[inline(always)]
    unsafe fn splat_f16_at(from: *const u8) -> Self {
        // SAFETY: see above; 2 bytes are readable by contract.
        Self(unsafe {
            let half = from.cast::<i16>().read_unaligned();
            _mm256_cvtph_ps(_mm_set1_epi16(half))
        })
    }
    #[inline(always)]
    unsafe fn load_bf16_at(from: *const u8) -> Self {
        // SAFETY: see above; 16 bytes are readable by contract.
        Self(unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        })
    }
    #[inline(always)]
    unsafe fn load_i8_at(from: *const u8) -> Self {
        // SAFETY: see above; 8 bytes are readable by contract.
        Self(unsafe {
            let bytes = _mm_loadl_epi64(from.cast());
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes))
        })
    }
    #[inline(always)]
    unsafe fn load_nibbles_at(from: *const u8) -> (Self, Self) {
        // SAFETY: see above; 8 bytes are readable by contract.
        unsafe {
            let bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast()));
            let low = _mm256_and_si256(bytes, _mm256_set1_epi32(15));
            let high = _mm256_srli_epi32::<4>(bytes);
            (
                Self(_mm256_cvtepi32_ps(low)),
                Self(_mm256_cvtepi32_ps(high)),
            )
        }
    }
    #[inline(always)]
    fn label_products(codes: &[u8], signed: &[i8], nibbles: bool) -> [i32; 32] {
        let columns = if nibbles { 4 } else { 2 };
        let groups = codes.len() / 64;
        assert!(signed.len() >= groups * columns);
        let mut sums = [0; 32];
        // SAFETY: see above; every read lies in the `groups` times 64 bytes of codes or in
        // the signed bytes, every write in the 32 sums.
        unsafe {
            let y = signed.as_ptr().cast::<[i8; 2]>();
            let low_half = _mm256_set1_epi8(15);
            for half in 0..2 {
                let mut first = _mm256_setzero_si256();
                let mut second = first;
                let mut i = 0;
                while i < groups {
                    // As many as a sum of 16 bits holds: 8 times 2 · 15 · 127, or 2 · 127².
                    let until = (i + if nibbles { 4 } else { 1 }).min(groups);
                    let mut sum = _mm256_setzero_si256();
                    while i < until {
                        let at = codes.as_ptr().add(64 * i + 32 * half);
                        let both = _mm256_loadu_si256(at.cast());
                        if nibbles {
                            let low = _mm256_and_si256(both, low_half);
                            let low = _mm256_maddubs_epi16(low, two_bytes(y.add(2 * i)));
                            let high = _mm256_and_si256(_mm256_srli_epi16::<4>(both), low_half);
                            let high = _mm256_maddubs_epi16(high, two_bytes(y.add(2 * i + 1)));
                            sum = _mm256_add_epi16(sum, _mm256_add_epi16(low, high));
                        } else {
                            sum = _mm256_maddubs_epi16(both, two_bytes(y.add(i)));
                        }
                        i += 1;
                    }
                    let wide = _mm256_cvtepi16_epi32(_mm256_castsi256_si128(sum));
                    first = _mm256_add_epi32(first, wide);
                    let wide = _mm256_cvtepi16_epi32(_mm256_extracti128_si256::<1>(sum));
                    second = _mm256_add_epi32(second, wide);
                }
                let to = sums.as_mut_ptr().add(16 * half);
                _mm256_storeu_si256(to.cast(), first);
                _mm256_storeu_si256(to.add(8).cast(), second);
            }
        }
        sums
    }
    #[inline(always)]
    fn sum_each(four: [Self; 4]) -> [f32; 4] {
        let mut sums = [0.0; 4];
        // SAFETY: see above; the store has room for four.
        unsafe {
            let first = _mm256_hadd_ps(four[0].0, four[1].0);
            let second = _mm256_hadd_ps(four[2].0, four[3].0);
            let both = _mm256_hadd_ps(first, second);
            let high = _mm256_extractf128_ps::<1>(both);
            _mm_storeu_ps(
                sums.as_mut_ptr(),
                _mm_add_ps(_mm256_castps256_ps128(both), high),
            );
        }
        sums
    }
}

/// Two bytes, over and over.
#[inline(always)]
unsafe fn two_bytes(at: *const [i8; 2]) -> __m256i {
    // SAFETY: the machine has AVX2 (see `Avx2`), and the caller can read them.
    unsafe { _mm256_set1_epi16(at.cast::<i16>().read_unaligned()) }
}

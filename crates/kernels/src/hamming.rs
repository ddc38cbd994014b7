//! Distances of binary codes: in how many bits they differ.
//!
//! On AVX2 four words are worked on at once: bits are counted by looking up the two
//! halves of every byte in a table of sixteen, and the bytes of a word are summed
//! (Muła, Kurz and Lemire, Faster population counts using AVX2 instructions, 2018).

/// For every code of `codes` (`[n, query.len()]` words of 64 bits, one code after
/// another) the number of bits in which it differs from `query`.
///
/// # Panics
/// When `codes` is no whole number of codes or `out` has not as many places.
pub fn hamming_distances(codes: &[u64], query: &[u64], out: &mut [u32]) {
    assert_eq!(
        codes.len(),
        out.len() * query.len(),
        "hamming_distances: codes and results"
    );
    if query.is_empty() {
        out.fill(0);
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        match query {
            // SAFETY: the machine has AVX2.
            [word] => unsafe { x86::one_word(codes, *word, out) },
            // SAFETY: the machine has AVX2.
            [low, high] => unsafe { x86::two_words(codes, [*low, *high], out) },
            _ => {
                if std::arch::is_x86_feature_detected!("popcnt") {
                    // SAFETY: the machine has POPCNT.
                    unsafe { x86::any_words(codes, query, out) }
                } else {
                    plain(codes, query, out);
                }
            }
        }
        return;
    }
    plain(codes, query, out);
}

#[inline(always)]
fn plain(codes: &[u64], query: &[u64], out: &mut [u32]) {
    for (code, out) in codes.chunks_exact(query.len()).zip(out) {
        let bits = code.iter().zip(query).map(|(a, b)| (a ^ b).count_ones());
        *out = bits.sum();
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    #[target_feature(enable = "popcnt")]
    pub(super) fn any_words(codes: &[u64], query: &[u64], out: &mut [u32]) {
        super::plain(codes, query, out);
    }

    /// In each of four words the number of its bits.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn counts(words: __m256i) -> __m256i {
        let table = _mm256_setr_epi8(
            0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2,
            3, 3, 4,
        );
        let half = _mm256_set1_epi8(15);
        let low = _mm256_and_si256(words, half);
        let high = _mm256_and_si256(_mm256_srli_epi16::<4>(words), half);
        let bytes = _mm256_add_epi8(
            _mm256_shuffle_epi8(table, low),
            _mm256_shuffle_epi8(table, high),
        );
        _mm256_sad_epu8(bytes, _mm256_setzero_si256())
    }

    /// # Safety
    /// Four words must be readable at `from`.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load(from: *const u64) -> __m256i {
        // SAFETY: readable by contract; the load needs no alignment.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }

    /// # Safety
    /// Eight numbers must be writable at `to`.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn store(to: *mut u32, numbers: __m256i) {
        // SAFETY: writable by contract; the store needs no alignment.
        unsafe { _mm256_storeu_si256(to.cast(), numbers) }
    }

    /// The lower halves of the words of `a` and `b`, in order.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn narrow(a: __m256i, b: __m256i) -> __m256i {
        // Even 32-bit lanes of both: a0 a1 b0 b1 | a2 a3 b2 b3, then in order.
        let mixed = _mm256_castps_si256(_mm256_shuffle_ps::<0b10_00_10_00>(
            _mm256_castsi256_ps(a),
            _mm256_castsi256_ps(b),
        ));
        _mm256_permute4x64_epi64::<0b11_01_10_00>(mixed)
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn one_word(codes: &[u64], query: u64, out: &mut [u32]) {
        let q = _mm256_set1_epi64x(query.cast_signed());
        let (blocks, rest) = codes.as_chunks::<8>();
        let (outs, out_rest) = out.as_chunks_mut::<8>();
        for (block, out) in blocks.iter().zip(outs) {
            // SAFETY: a block has eight words, and eight results.
            unsafe {
                let a = counts(_mm256_xor_si256(load(block.as_ptr()), q));
                let b = counts(_mm256_xor_si256(load(block.as_ptr().add(4)), q));
                store(out.as_mut_ptr(), narrow(a, b));
            }
        }
        super::plain(rest, &[query], out_rest);
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn two_words(codes: &[u64], query: [u64; 2], out: &mut [u32]) {
        let (low, high) = (query[0].cast_signed(), query[1].cast_signed());
        let q = _mm256_setr_epi64x(low, high, low, high);
        let (blocks, rest) = codes.as_chunks::<16>();
        let (outs, out_rest) = out.as_chunks_mut::<8>();
        for (block, out) in blocks.iter().zip(outs) {
            // SAFETY: a block has sixteen words, which are eight codes, and eight results.
            unsafe {
                let word = |i: usize| counts(_mm256_xor_si256(load(block.as_ptr().add(4 * i)), q));
                // Two codes each: the sums of their words stand at 0 and 1, and 2 and 3.
                let (a, b, c, d) = (word(0), word(1), word(2), word(3));
                // a0+a1 b0+b1 | a2+a3 b2+b3
                let ab = _mm256_add_epi64(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
                let cd = _mm256_add_epi64(_mm256_unpacklo_epi64(c, d), _mm256_unpackhi_epi64(c, d));
                let order = |x| _mm256_permute4x64_epi64::<0b11_01_10_00>(x);
                store(out.as_mut_ptr(), narrow(order(ab), order(cd)));
            }
        }
        super::plain(rest, &query, out_rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn distances_agree_with_counting_bit_by_bit(
            words in 1usize..5,
            numbers in prop::collection::vec(any::<u64>(), 5 * 38),
            n in 0usize..37,
        ) {
            let (query, codes) = numbers.split_at(words);
            let codes = &codes[..n * words];
            let differ = |code: &[u64]| {
                let bits = (0..64 * words).filter(|i| {
                    (code[i / 64] >> (i % 64) ^ query[i / 64] >> (i % 64)) & 1 == 1
                });
                bits.count() as u32
            };
            let want: Vec<u32> = codes.chunks(words).map(differ).collect();
            for distances in [hamming_distances, plain] {
                let mut out = vec![7; n];
                distances(codes, query, &mut out);
                prop_assert_eq!(&out, &want);
            }
        }
    }

    #[test]
    fn codes_of_no_bits_are_equal() {
        let mut out = [3, 3];
        hamming_distances(&[], &[], &mut out);
        assert_eq!(out, [0, 0]);
    }
}

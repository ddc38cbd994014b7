//! Products and sums of rows on AVX-512, sixteen numbers at once.
//!
//! Twice the registers of AVX2, each twice as long: four rows meet four queries, or 64 columns
//! four sums, without a load that is not a row's.

use std::arch::x86_64::*;
use std::ops::Range;

use super::packed::{Half, Packed, Q4, Q8};
use super::rows::{CacheRows, RowSet, Source};
use crate::blocks::BlockType;
use crate::vector::{Avx2, Eight};

/// Whether rows may be given to [`dots`] and [`mix`] on this machine.
pub(super) fn takes(cache: &CacheRows) -> bool {
    let kind = matches!(
        cache.kind,
        BlockType::F16 | BlockType::Q8_0 | BlockType::Q4_0
    );
    kind && cache.dim.is_multiple_of(32) && crate::vector::has_vnni()
}

// SAFETY (of every block below): callers have seen `takes`, so that the machine has AVX-512 and
// rows are whole blocks of 32. A row has the bytes of `dim` numbers (see `Source::row`); places in
// queries, weights and outputs are within what the public functions assert.

/// How 32 numbers of a row are packed.
trait Wide: Packed {
    /// Numbers `32 i` to `32 i + 31`.
    unsafe fn load_32(row: *const u8, i: usize) -> [__m512; 2];
}

impl Wide for Half {
    #[inline(always)]
    unsafe fn load_32(row: *const u8, i: usize) -> [__m512; 2] {
        // SAFETY: see above.
        unsafe {
            let at = row.add(64 * i);
            [
                _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())),
                _mm512_cvtph_ps(_mm256_loadu_si256(at.add(32).cast())),
            ]
        }
    }
}

/// The half in front of a block, in every lane.
#[inline(always)]
unsafe fn scale(block: *const u8) -> __m512 {
    // SAFETY: see above.
    unsafe { _mm512_cvtph_ps(_mm256_set1_epi16(block.cast::<i16>().read_unaligned())) }
}

impl Wide for Q8 {
    #[inline(always)]
    unsafe fn load_32(row: *const u8, i: usize) -> [__m512; 2] {
        // SAFETY: see above.
        unsafe {
            let block = row.add(34 * i);
            let scale = scale(block);
            let low = _mm512_cvtepi8_epi32(_mm_loadu_si128(block.add(2).cast()));
            let high = _mm512_cvtepi8_epi32(_mm_loadu_si128(block.add(18).cast()));
            [low, high].map(|x| _mm512_mul_ps(_mm512_cvtepi32_ps(x), scale))
        }
    }
}

impl Wide for Q4 {
    #[inline(always)]
    unsafe fn load_32(row: *const u8, i: usize) -> [__m512; 2] {
        // SAFETY: see above.
        unsafe {
            let block = row.add(18 * i);
            let scale = scale(block);
            let eight = _mm512_mul_ps(scale, _mm512_set1_ps(-8.0));
            let both = _mm512_cvtepu8_epi32(_mm_loadu_si128(block.add(2).cast()));
            let low = _mm512_and_si512(both, _mm512_set1_epi32(15));
            let high = _mm512_srli_epi32::<4>(both);
            [low, high].map(|x| _mm512_fmadd_ps(_mm512_cvtepi32_ps(x), scale, eight))
        }
    }
}

/// See [`super::rows::dot_rows`].
///
/// # Safety
/// [`takes`] must be true of `keys`; `queries` and `out` have the lengths that are asserted there.
pub(super) unsafe fn dots(keys: CacheRows, queries: &[f32], rows: RowSet, out: &mut [f32]) {
    // SAFETY: by contract.
    unsafe {
        match keys.kind {
            BlockType::F16 => dots_of::<Half>(Source::new(keys, rows), queries, out),
            BlockType::Q8_0 => dots_of::<Q8>(Source::new(keys, rows), queries, out),
            _ => dots_of::<Q4>(Source::new(keys, rows), queries, out),
        }
    }
}

/// Queries that meet a row together.
const QUERIES: usize = 4;

/// Rows that meet queries together.
const ROWS: usize = 4;

/// Rows that stay in the first cache while all queries, or all columns, meet them.
const NEAR: usize = 64;

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl")]
fn dots_of<P: Wide>(from: Source<P>, queries: &[f32], out: &mut [f32]) {
    let (dim, count) = (from.dim(), from.len());
    let g = queries.len() / dim;
    for i in 0..from.ahead().min(count) {
        from.prefetch::<Avx2>(i);
    }
    for first in (0..count).step_by(NEAR) {
        let near = first..(first + NEAR).min(count);
        for q in (0..g).step_by(QUERIES) {
            let size = (g - q).min(QUERIES);
            let queries = &queries[q * dim..][..size * dim];
            let out = &mut out[q * count..][..size * count];
            match size {
                1 => dot_block::<P, 1>(&from, queries, near.clone(), out),
                2 => dot_block::<P, 2>(&from, queries, near.clone(), out),
                3 => dot_block::<P, 3>(&from, queries, near.clone(), out),
                _ => dot_block::<P, 4>(&from, queries, near.clone(), out),
            }
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl")]
fn dot_block<P: Wide, const G: usize>(
    from: &Source<P>,
    queries: &[f32],
    near: Range<usize>,
    out: &mut [f32],
) {
    let (dim, count, ahead) = (from.dim(), from.len(), from.ahead());
    assert!(queries.len() == G * dim && out.len() == G * count && near.end <= count);
    for i in near.clone().step_by(ROWS) {
        let mut rows = [from.row(i); ROWS];
        for (r, row) in rows.iter_mut().enumerate() {
            from.prefetch::<Avx2>(i + ahead + r);
            // Places behind the last row repeat it.
            *row = from.row((i + r).min(near.end - 1));
        }
        // SAFETY: see above.
        unsafe {
            let mut sums = [[_mm512_setzero_ps(); ROWS]; G];
            for pair in 0..dim / 32 {
                let mut of = [[_mm512_setzero_ps(); 2]; G];
                for (q, of) in of.iter_mut().enumerate() {
                    let at = queries.as_ptr().add(q * dim + 32 * pair);
                    *of = [_mm512_loadu_ps(at), _mm512_loadu_ps(at.add(16))];
                }
                for (r, &row) in rows.iter().enumerate() {
                    let [x, y] = P::load_32(row, pair);
                    for (sums, of) in sums.iter_mut().zip(&of) {
                        sums[r] = _mm512_fmadd_ps(x, of[0], sums[r]);
                        sums[r] = _mm512_fmadd_ps(y, of[1], sums[r]);
                    }
                }
            }
            let own = (near.end - i).min(ROWS);
            for (q, sums) in sums.iter().enumerate() {
                let halves = sums.map(|sum| {
                    let high = _mm512_extractf64x4_pd::<1>(_mm512_castps_pd(sum));
                    let low = _mm512_castps512_ps256(sum);
                    Avx2(_mm256_add_ps(low, _mm256_castpd_ps(high)))
                });
                let four = Avx2::sum_each(halves);
                let to = &mut out[q * count + i..];
                match own {
                    // A copy of known length is one store.
                    ROWS => to[..ROWS].copy_from_slice(&four),
                    own => to[..own].copy_from_slice(&four[..own]),
                }
            }
        }
    }
}

/// See [`super::rows::mix_rows`].
///
/// # Safety
/// [`takes`] must be true of `values`; `weights` and `out` have the lengths that are asserted there.
pub(super) unsafe fn mix(values: CacheRows, weights: &[f32], rows: RowSet, out: &mut [f32]) {
    // SAFETY: by contract.
    unsafe {
        match values.kind {
            BlockType::F16 => mix_of::<Half>(Source::new(values, rows), weights, out),
            BlockType::Q8_0 => mix_of::<Q8>(Source::new(values, rows), weights, out),
            _ => mix_of::<Q4>(Source::new(values, rows), weights, out),
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl")]
fn mix_of<P: Wide>(from: Source<P>, weights: &[f32], out: &mut [f32]) {
    let (dim, count) = (from.dim(), from.len());
    let g = out.len() / dim;
    let ahead = from.ahead().max(NEAR);
    for i in 0..ahead.min(count) {
        from.prefetch::<Avx2>(i);
    }
    for first in (0..count).step_by(NEAR) {
        let near = first..(first + NEAR).min(count);
        for i in near.clone() {
            from.prefetch::<Avx2>(i + ahead);
        }
        for q in (0..g).step_by(QUERIES) {
            let size = (g - q).min(QUERIES);
            let weights = &weights[q * count..][..size * count];
            let out = &mut out[q * dim..][..size * dim];
            match size {
                1 => mix_block::<P, 1>(&from, weights, near.clone(), out),
                2 => mix_block::<P, 2>(&from, weights, near.clone(), out),
                3 => mix_block::<P, 3>(&from, weights, near.clone(), out),
                _ => mix_block::<P, 4>(&from, weights, near.clone(), out),
            }
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl")]
fn mix_block<P: Wide, const G: usize>(
    from: &Source<P>,
    weights: &[f32],
    near: Range<usize>,
    out: &mut [f32],
) {
    let mut pair = 0;
    while pair + 2 <= from.dim() / 32 {
        mix_columns::<P, G, 2>(from, weights, near.clone(), out, pair);
        pair += 2;
    }
    if pair < from.dim() / 32 {
        mix_columns::<P, G, 1>(from, weights, near, out, pair);
    }
}

/// Adds `PAIRS` times 32 columns of some rows to `G` sums, which stay in registers.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl")]
fn mix_columns<P: Wide, const G: usize, const PAIRS: usize>(
    from: &Source<P>,
    weights: &[f32],
    near: Range<usize>,
    out: &mut [f32],
    pair: usize,
) {
    let (dim, count) = (from.dim(), from.len());
    assert!(out.len() == G * dim && weights.len() == G * count && near.end <= count);
    assert!(32 * (pair + PAIRS) <= dim);
    // SAFETY: see above.
    unsafe {
        let mut sums = [[[_mm512_setzero_ps(); 2]; PAIRS]; G];
        let place = |q: usize, p: usize, h: usize| q * dim + 32 * (pair + p) + 16 * h;
        for (q, sums) in sums.iter_mut().enumerate() {
            for (p, sums) in sums.iter_mut().enumerate() {
                for (h, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm512_loadu_ps(out.as_ptr().add(place(q, p, h)));
                }
            }
        }
        for i in near {
            let row = from.row(i);
            let mut of_row = [_mm512_setzero_ps(); G];
            for (q, weight) in of_row.iter_mut().enumerate() {
                *weight = _mm512_set1_ps(*weights.as_ptr().add(q * count + i));
            }
            for p in 0..PAIRS {
                let x = P::load_32(row, pair + p);
                for (sums, weight) in sums.iter_mut().zip(&of_row) {
                    for (sum, x) in sums[p].iter_mut().zip(x) {
                        *sum = _mm512_fmadd_ps(x, *weight, *sum);
                    }
                }
            }
        }
        for (q, sums) in sums.iter().enumerate() {
            for (p, sums) in sums.iter().enumerate() {
                for (h, sum) in sums.iter().enumerate() {
                    _mm512_storeu_ps(out.as_mut_ptr().add(place(q, p, h)), *sum);
                }
            }
        }
    }
}

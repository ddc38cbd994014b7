//! Products and sums of codes of 4 bits on AVX-512 (with VBMI): a table of sixteen numbers is one
//! register, where AVX2 takes two and chooses. Shorter codes gained nothing (docs/PERFORMANCE.md).

use std::arch::x86_64::*;

use super::GRANULE;
use super::keys::Run;
use super::values::ValueCodes;
use crate::attention::{Rotation, RowSet};

// SAFETY (of every block below): callers have seen `takes`, and that codes,
// tables, angles, weights and outputs are as long as `Run::new` and `ValueCodes::check` ask.

/// Bits of a code, and numbers of a table.
const BITS: usize = 4;
const TABLE: usize = 16;

/// Whether codes of `bits` bits are for these functions on this machine.
pub(super) fn takes(bits: u32) -> bool {
    use std::arch::is_x86_feature_detected as has;
    bits == BITS as u32 && crate::vector::has_vnni() && has!("avx512vbmi")
}

/// At which bit of eight bytes the code of each lane begins.
#[inline(always)]
unsafe fn places() -> __m512i {
    let lanes: [u32; 16] = std::array::from_fn(|i| 4 * i as u32);
    // SAFETY: see above.
    unsafe { _mm512_loadu_si512(lanes.as_ptr().cast()) }
}

/// The numbers of sixteen codes within eight bytes.
#[inline(always)]
unsafe fn look_up(bytes: u64, places: __m512i, table: __m512) -> __m512 {
    // SAFETY: see above.
    unsafe {
        let all = _mm512_set1_epi64(bytes.cast_signed());
        // The shuffle looks at four bits of each lane.
        let codes = _mm512_multishift_epi64_epi8(places, all);
        _mm512_permutexvar_ps(codes, table)
    }
}

/// Four bytes at `first` and four at `second`.
#[inline(always)]
unsafe fn two_words(first: *const u8, second: *const u8) -> u64 {
    // SAFETY: see above.
    let word = |at: *const u8| u64::from(unsafe { at.cast::<u32>().read_unaligned() });
    word(first) | word(second) << 32
}

/// Adds to the products with the granules `i` and `i + 1` of the run, for `G` queries, what
/// the pairs from `first` on give; the first pairs begin them.
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vbmi")]
pub(super) fn dot_pairs<const G: usize>(
    run: &Run,
    i: usize,
    first: usize,
    packed: &[[[f32; G]; 2]],
    out: &mut [f32],
) {
    let (dim, pairs) = (run.keys.dim, run.angles.pairs());
    let rows = run.granules.len() * GRANULE;
    assert!(i + 2 <= run.granules.len() && first + packed.len() <= pairs);
    assert_eq!(out.len(), G * rows);
    let (next, second) = match run.keys.rotation {
        Rotation::Half => (1, pairs),
        Rotation::Interleaved => (2, 1),
    };
    let granule = dim * BITS;
    // SAFETY: see above. Both channels of a pair are less than `2 * pairs`, which is no more than
    // `dim`; the columns of the run are within the stride.
    unsafe {
        let places = places();
        let mut sums = [_mm512_setzero_ps(); G];
        if first > 0 {
            for (q, sum) in sums.iter_mut().enumerate() {
                *sum = _mm512_loadu_ps(out.as_ptr().add(q * rows + i * GRANULE));
            }
        }
        let codes = (run.keys.bytes.as_ptr()).add((run.granules.start + i) * granule);
        let number = |channel: usize| {
            let codes = codes.add(channel * BITS);
            let table = _mm512_loadu_ps(run.keys.tables.as_ptr().add(channel * TABLE));
            look_up(two_words(codes, codes.add(granule)), places, table)
        };
        for (k, queries) in packed.iter().enumerate() {
            let channel = (first + k) * next;
            let (x, y) = (number(channel), number(channel + second));
            let at = (first + k) * run.angles.stride + run.column + i * GRANULE;
            let cos = _mm512_loadu_ps(run.angles.cos.as_ptr().add(at));
            let sin = _mm512_loadu_ps(run.angles.sin.as_ptr().add(at));
            let turned = [
                _mm512_fmsub_ps(x, cos, _mm512_mul_ps(y, sin)),
                _mm512_fmadd_ps(y, cos, _mm512_mul_ps(x, sin)),
            ];
            for (q, sum) in sums.iter_mut().enumerate() {
                *sum = _mm512_fmadd_ps(turned[0], _mm512_set1_ps(queries[0][q]), *sum);
                *sum = _mm512_fmadd_ps(turned[1], _mm512_set1_ps(queries[1][q]), *sum);
            }
        }
        for (q, sum) in sums.iter().enumerate() {
            _mm512_storeu_ps(out.as_mut_ptr().add(q * rows + i * GRANULE), *sum);
        }
    }
}

/// See [`super::values::mix_values`]: rows from `first` on, or of a list, whose rows are whole
/// sixteens.
///
/// # Safety
/// [`takes`] must be true; rows and lengths are checked.
pub(super) unsafe fn mix(values: ValueCodes, weights: &[f32], rows: RowSet, out: &mut [f32]) {
    // SAFETY: by contract.
    unsafe { mix_of(values, weights, rows, out) }
}

/// Queries whose sums stay in registers together.
const QUERIES: usize = 4;

/// Times sixteen columns that are summed up together.
const WIDE: usize = 4;

#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vbmi")]
fn mix_of(values: ValueCodes, weights: &[f32], rows: RowSet, out: &mut [f32]) {
    let (dim, count) = (values.dim, rows.len());
    let g = out.len() / dim;
    for q in (0..g).step_by(QUERIES) {
        let size = (g - q).min(QUERIES);
        let weights = &weights[q * count..][..size * count];
        let out = &mut out[q * dim..][..size * dim];
        match size {
            1 => mix_columns::<1>(values, weights, rows, out),
            2 => mix_columns::<2>(values, weights, rows, out),
            3 => mix_columns::<3>(values, weights, rows, out),
            _ => mix_columns::<4>(values, weights, rows, out),
        }
    }
}

#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vbmi")]
fn mix_columns<const G: usize>(values: ValueCodes, weights: &[f32], rows: RowSet, out: &mut [f32]) {
    let mut column = 0;
    while column + WIDE <= values.dim / 16 {
        mix_wide::<G, WIDE>(values, weights, rows, out, column);
        column += WIDE;
    }
    while column < values.dim / 16 {
        mix_wide::<G, 1>(values, weights, rows, out, column);
        column += 1;
    }
}

/// Adds `W` times sixteen columns of all rows to `G` sums.
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vbmi")]
fn mix_wide<const G: usize, const W: usize>(
    values: ValueCodes,
    weights: &[f32],
    rows: RowSet,
    out: &mut [f32],
    column: usize,
) {
    let (dim, count) = (values.dim, rows.len());
    assert!(out.len() == G * dim && weights.len() == G * count && 16 * (column + W) <= dim);
    let row_bytes = dim / 2;
    // SAFETY: see above.
    unsafe {
        let (places, table) = (places(), _mm512_loadu_ps(values.table.as_ptr()));
        let mut sums = [[_mm512_setzero_ps(); W]; G];
        for i in 0..count {
            let codes = values.bytes.as_ptr();
            let codes = codes.add(rows.row(i) * row_bytes + 8 * column);
            let mut of_row = [table; G];
            for (q, weight) in of_row.iter_mut().enumerate() {
                *weight = _mm512_set1_ps(*weights.as_ptr().add(q * count + i));
            }
            for w in 0..W {
                let bytes = codes.add(8 * w).cast::<u64>().read_unaligned();
                let x = look_up(bytes, places, table);
                for (sums, weight) in sums.iter_mut().zip(&of_row) {
                    sums[w] = _mm512_fmadd_ps(x, *weight, sums[w]);
                }
            }
        }
        for (q, sums) in sums.iter().enumerate() {
            for (w, sum) in sums.iter().enumerate() {
                let to = out.as_mut_ptr().add(q * dim + 16 * (column + w));
                _mm512_storeu_ps(to, _mm512_add_ps(*sum, _mm512_loadu_ps(to)));
            }
        }
    }
}

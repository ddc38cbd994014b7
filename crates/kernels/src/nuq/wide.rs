//! Products and sums of codes on AVX-512: sixteen codes at once, each looked up in one table of
//! sixteen numbers, which shorter ones fill by repetition.

use std::arch::x86_64::*;

use super::keys::Run;
use super::values::ValueCodes;
use super::{GRANULE, table_len};
use crate::attention::{Rotation, RowSet};

// SAFETY (of every block below): callers have seen that the machine has AVX-512, and that codes,
// tables, angles, weights and outputs are as long as `Run::new` and `ValueCodes::check` ask.

/// By how much the word of each lane is moved: two groups of eight codes.
#[inline(always)]
unsafe fn shifts(bits: u32) -> __m512i {
    let by = |i: i32| i % 8 * bits.cast_signed();
    let lanes: [i32; 16] = std::array::from_fn(|i| by(i as i32));
    // SAFETY: see above.
    unsafe { _mm512_loadu_si512(lanes.as_ptr().cast()) }
}

/// A table as sixteen numbers.
#[inline(always)]
unsafe fn table<const BITS: u32>(at: *const f32) -> __m512 {
    // SAFETY: see above.
    unsafe {
        if BITS == 4 {
            return _mm512_loadu_ps(at);
        }
        let eight = _mm256_castps_pd(_mm256_loadu_ps(at));
        _mm512_castpd_ps(_mm512_broadcast_f64x4(eight))
    }
}

/// The numbers of two groups of eight codes.
#[inline(always)]
unsafe fn look_up(first: *const u8, second: *const u8, shifts: __m512i, table: __m512) -> __m512 {
    // SAFETY: see above.
    unsafe {
        let word = |at: *const u8| at.cast::<i32>().read_unaligned();
        let words = _mm512_set1_epi32(word(first));
        let words = _mm512_mask_set1_epi32(words, 0xff00, word(second));
        // The shuffle looks at four bits; what stands above a code picks a repetition.
        _mm512_permutexvar_ps(_mm512_srlv_epi32(words, shifts), table)
    }
}

/// Adds to the products with the granules `i` and `i + 1` of the run, for `G` queries, what the
/// pairs from `first` on give; the first pairs begin them.
/// The machine must have AVX-512.
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl")]
pub(super) fn dot_pairs<const BITS: u32, const G: usize>(
    run: &Run,
    i: usize,
    first: usize,
    packed: &[[[f32; G]; 2]],
    out: &mut [f32],
) {
    let (dim, pairs) = (run.keys.dim, run.angles.pairs());
    let rows = run.granules.len() * GRANULE;
    assert!(i + 2 <= run.granules.len() && first + packed.len() <= pairs && out.len() == G * rows);
    let (next, second) = match run.keys.rotation {
        Rotation::Half => (1, pairs),
        Rotation::Interleaved => (2, 1),
    };
    let (bits, len) = (BITS as usize, table_len(BITS));
    let granule = dim * bits;
    // SAFETY: see above. Both channels of a pair are less than `2 * pairs`, which is no more than
    // `dim`; the columns of the run are within the stride.
    unsafe {
        let shifts = shifts(BITS);
        let mut sums = [_mm512_setzero_ps(); G];
        if first > 0 {
            for (q, sum) in sums.iter_mut().enumerate() {
                *sum = _mm512_loadu_ps(out.as_ptr().add(q * rows + i * GRANULE));
            }
        }
        let codes = (run.keys.bytes.as_ptr()).add((run.granules.start + i) * granule);
        for (k, queries) in packed.iter().enumerate() {
            let channel = (first + k) * next;
            let number = |channel: usize| {
                let at = codes.add(channel * bits);
                let table = table::<BITS>(run.keys.tables.as_ptr().add(channel * len));
                look_up(at, at.add(granule), shifts, table)
            };
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
/// The machine must have AVX-512 with VNNI; rows and lengths are checked.
pub(super) unsafe fn mix(values: ValueCodes, weights: &[f32], rows: RowSet, out: &mut [f32]) {
    // SAFETY: by contract.
    unsafe {
        match values.bits {
            2 => mix_of::<2>(values, weights, rows, out),
            3 => mix_of::<3>(values, weights, rows, out),
            _ => mix_of::<4>(values, weights, rows, out),
        }
    }
}

/// Queries whose sums stay in registers together.
const QUERIES: usize = 4;

/// Times sixteen columns that are summed up together.
const WIDE: usize = 4;

#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl")]
fn mix_of<const BITS: u32>(values: ValueCodes, weights: &[f32], rows: RowSet, out: &mut [f32]) {
    let (dim, count) = (values.dim, rows.len());
    let g = out.len() / dim;
    for q in (0..g).step_by(QUERIES) {
        let size = (g - q).min(QUERIES);
        let weights = &weights[q * count..][..size * count];
        let out = &mut out[q * dim..][..size * dim];
        match size {
            1 => mix_columns::<BITS, 1>(values, weights, rows, out),
            2 => mix_columns::<BITS, 2>(values, weights, rows, out),
            3 => mix_columns::<BITS, 3>(values, weights, rows, out),
            _ => mix_columns::<BITS, 4>(values, weights, rows, out),
        }
    }
}

#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl")]
fn mix_columns<const BITS: u32, const G: usize>(
    values: ValueCodes,
    weights: &[f32],
    rows: RowSet,
    out: &mut [f32],
) {
    let mut column = 0;
    while column + WIDE <= values.dim / 16 {
        mix_wide::<BITS, G, WIDE>(values, weights, rows, out, column);
        column += WIDE;
    }
    while column < values.dim / 16 {
        mix_wide::<BITS, G, 1>(values, weights, rows, out, column);
        column += 1;
    }
}

/// Adds `W` times sixteen columns of all rows to `G` sums.
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl")]
fn mix_wide<const BITS: u32, const G: usize, const W: usize>(
    values: ValueCodes,
    weights: &[f32],
    rows: RowSet,
    out: &mut [f32],
    column: usize,
) {
    let (dim, count) = (values.dim, rows.len());
    assert!(out.len() == G * dim && weights.len() == G * count && 16 * (column + W) <= dim);
    let (bits, row_bytes) = (BITS as usize, dim / 8 * BITS as usize);
    // SAFETY: see above.
    unsafe {
        let (shifts, table) = (shifts(BITS), table::<BITS>(values.table.as_ptr()));
        let mut sums = [[_mm512_setzero_ps(); W]; G];
        for i in 0..count {
            let codes = values.bytes.as_ptr();
            let codes = codes.add(rows.row(i) * row_bytes + 2 * column * bits);
            let mut of_row = [table; G];
            for (q, weight) in of_row.iter_mut().enumerate() {
                *weight = _mm512_set1_ps(*weights.as_ptr().add(q * count + i));
            }
            for w in 0..W {
                let at = codes.add(2 * w * bits);
                let x = look_up(at, at.add(bits), shifts, table);
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

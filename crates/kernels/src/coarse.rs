//! Scores of query rows with centroids, as a search by centroids needs them: the greatest of
//! every query row, and all of them in a byte each, so that the table stays in a near cache.
//!
//! ```text
//! byte = min(255, max(0, score · factor))          rounded to the nearest
//! ```

use crate::topk::TopK;
use crate::vector::{Eight, simd};

/// Query rows of a table of bytes.
pub const COARSE_LANES: usize = 32;

/// The scores of a centroid with up to 32 query rows, in a byte each.
pub type CoarseRow = [u8; COARSE_LANES];

/// Writes columns `first ..` of `scores` (`[rows, columns]`, row-major) as bytes: the score times
/// its column's factor, cut to 0 to 255. Lanes without a factor are 0; so is NaN.
///
/// # Panics
/// When the columns do not exist, there are more than 32 factors, or `out` has another number of
/// rows.
pub fn coarse_rows(
    scores: &[f32],
    columns: usize,
    first: usize,
    factors: &[f32],
    out: &mut [CoarseRow],
) {
    assert!(
        factors.len() <= COARSE_LANES && first + factors.len() <= columns,
        "coarse_rows: {} columns from {first} on of {columns}",
        factors.len()
    );
    assert_eq!(
        scores.len(),
        out.len() * columns,
        "coarse_rows: rows of scores"
    );
    write_rows(scores, columns, first, factors, out);
}

simd! {
    fn write_rows(scores: &[f32], columns: usize, first: usize, factors: &[f32], out: &mut [CoarseRow]) = write_rows_body;
}

/// Adding it leaves the nearest whole number in the low bits.
const WHOLE: f32 = 8_388_608.0;

#[inline(always)]
fn write_rows_body<V: Eight>(
    scores: &[f32],
    columns: usize,
    first: usize,
    factors: &[f32],
    out: &mut [CoarseRow],
) {
    let mut all = [0.0; COARSE_LANES];
    all[..factors.len()].copy_from_slice(factors);
    for (row, out) in scores.chunks_exact(columns.max(1)).zip(out) {
        let mut padded = [0.0; COARSE_LANES];
        let row = match row[first..].first_chunk::<COARSE_LANES>() {
            Some(row) => row,
            None => {
                padded[..factors.len()].copy_from_slice(&row[first..first + factors.len()]);
                &padded
            }
        };
        for i in 0..COARSE_LANES {
            // In this order NaN becomes 0, which clamp would leave.
            #[allow(clippy::manual_clamp)]
            let cut = (row[i] * all[i]).max(0.0).min(255.0);
            out[i] = (cut + WHOLE).to_bits() as u8;
        }
    }
}

/// For each of the first `lanes` query rows the first of `codes` whose centroid has the greatest
/// byte in `table`; 0 for other lanes.
///
/// # Panics
/// When a code is beyond the table, or there are more than 32 lanes.
pub fn nearest_codes(table: &[CoarseRow], codes: &[u16], lanes: usize) -> [u32; COARSE_LANES] {
    assert!(lanes <= COARSE_LANES, "nearest_codes: {lanes} lanes");
    nearest(table, codes, lanes)
}

simd! {
    fn nearest(table: &[CoarseRow], codes: &[u16], lanes: usize) -> [u32; COARSE_LANES] = nearest_body;
}

#[inline(always)]
fn nearest_body<V: Eight>(table: &[CoarseRow], codes: &[u16], lanes: usize) -> [u32; COARSE_LANES] {
    // Lanes without a query row never match, since their scores are 0.
    let mut best = [u8::MAX; COARSE_LANES];
    best[..lanes].fill(0);
    for &code in codes {
        let scores = &table[usize::from(code)];
        for i in 0..COARSE_LANES {
            best[i] = best[i].max(scores[i]);
        }
    }
    let mut nearest = [0; COARSE_LANES];
    for (row, &code) in codes.iter().enumerate().rev() {
        let scores = &table[usize::from(code)];
        let mut any = 0u8;
        for i in 0..COARSE_LANES {
            any |= u8::from(scores[i] == best[i]);
        }
        // Few rows are the nearest of any.
        if any != 0 {
            for i in 0..lanes {
                if scores[i] == best[i] {
                    nearest[i] = row as u32;
                }
            }
        }
    }
    nearest
}

/// Offers every score of the columns of `scores` (`[rows, best.len()]`, row-major) to that
/// column's list, as row number `first` and so on. Columns that are not `wanted` get none.
///
/// # Panics
/// When `scores` is no whole number of rows, or `wanted` of another length.
pub fn best_of_columns(scores: &[f32], wanted: &[bool], first: u64, best: &mut [TopK]) {
    assert_eq!(wanted.len(), best.len(), "best_of_columns: wanted");
    if best.is_empty() {
        return;
    }
    assert!(
        scores.len().is_multiple_of(best.len()),
        "best_of_columns: rows of scores"
    );
    offer(scores, wanted, first, best);
}

simd! {
    fn offer(scores: &[f32], wanted: &[bool], first: u64, best: &mut [TopK]) = offer_body;
}

#[inline(always)]
fn offer_body<V: Eight>(scores: &[f32], wanted: &[bool], first: u64, best: &mut [TopK]) {
    let columns = best.len();
    // What a score must exceed to come in; most centroids are far from all query rows, so one
    // comparison of a row tells.
    let mut enough = vec![f32::INFINITY; columns];
    for i in 0..columns {
        if wanted[i] {
            enough[i] = best[i].threshold();
        }
    }
    let eights = columns / 8 * 8;
    for (id, row) in (first..).zip(scores.chunks_exact(columns)) {
        for at in (0..eights).step_by(8) {
            let mut above = V::load(&enough[at..]).less_mask(V::load(&row[at..]));
            while above != 0 {
                let i = at + above.trailing_zeros() as usize;
                above &= above - 1;
                best[i].push(row[i], id);
                enough[i] = best[i].threshold();
            }
        }
        for i in eights..columns {
            if row[i] > enough[i] {
                best[i].push(row[i], id);
                enough[i] = best[i].threshold();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::Portable;
    use proptest::prelude::*;

    fn table() -> impl Strategy<Value = Vec<CoarseRow>> {
        prop::collection::vec(prop::array::uniform32(0u8..6), 1..40)
    }

    proptest! {
        #[test]
        fn bytes_are_scores_cut_and_rounded(
            rows in 0usize..9,
            (columns, first, factors) in (1usize..70).prop_flat_map(|columns| {
                (Just(columns), 0..columns).prop_flat_map(|(columns, first)| {
                    let most = (columns - first).min(COARSE_LANES);
                    (Just(columns), Just(first), prop::collection::vec(1f32..300.0, 0..=most))
                })
            }),
            seed in any::<u32>(),
        ) {
            let score = |i: usize| ((i as u32).wrapping_mul(2_654_435_761) ^ seed) as f32 / u32::MAX as f32 * 3.0 - 1.0;
            let mut scores: Vec<f32> = (0..rows * columns).map(score).collect();
            if let Some(x) = scores.get_mut(first) {
                *x = f32::NAN;
            }
            let mut out = vec![[9; COARSE_LANES]; rows];
            coarse_rows(&scores, columns, first, &factors, &mut out);
            let mut portable = vec![[9; COARSE_LANES]; rows];
            write_rows_body::<Portable>(&scores, columns, first, &factors, &mut portable);
            prop_assert_eq!(&out, &portable);
            for (r, row) in out.iter().enumerate() {
                for (i, &byte) in row.iter().enumerate() {
                    let exact = factors.get(i).map_or(0.0, |f| {
                        let score = scores[r * columns + first + i] * f;
                        if score.is_nan() { 0.0 } else { score.clamp(0.0, 255.0) }
                    });
                    prop_assert!((f32::from(byte) - exact).abs() <= 0.501, "{byte} {exact}");
                }
            }
        }

        #[test]
        fn the_first_of_the_nearest_is_found(
            table in table(),
            codes in prop::collection::vec(any::<prop::sample::Index>(), 0..90),
            lanes in 0..=COARSE_LANES,
        ) {
            let codes: Vec<u16> = codes.iter().map(|c| c.index(table.len()) as u16).collect();
            let found = nearest_codes(&table, &codes, lanes);
            prop_assert_eq!(found, nearest_body::<Portable>(&table, &codes, lanes));
            prop_assert!(found[lanes..].iter().all(|&row| row == 0));
            for (i, &row) in found[..lanes].iter().enumerate() {
                let score = |row: usize| table[usize::from(codes[row])][i];
                let best = (0..codes.len()).map(score).max().unwrap_or(0);
                let first = (0..codes.len()).find(|&r| score(r) == best).unwrap_or(0);
                prop_assert_eq!(row as usize, first);
            }
        }

        #[test]
        fn the_best_of_columns_are_those_of_each_alone(
            wanted in prop::collection::vec(any::<bool>(), 1..40),
            rows in 0usize..60,
            k in 0usize..6,
            seed in any::<u32>(),
        ) {
            let columns = wanted.len();
            let score = |i: usize| ((i as u32).wrapping_mul(2_654_435_761) ^ seed) % 50;
            let scores: Vec<f32> = (0..rows * columns).map(|i| score(i) as f32).collect();
            let mut best = vec![TopK::new(k); columns];
            // In two parts, as threads share them out.
            let half = rows / 2;
            best_of_columns(&scores[..half * columns], &wanted, 0, &mut best);
            best_of_columns(&scores[half * columns..], &wanted, half as u64, &mut best);
            let mut portable = vec![TopK::new(k); columns];
            offer_body::<Portable>(&scores, &wanted, 0, &mut portable);
            for (best, portable) in best.iter().zip(portable) {
                prop_assert_eq!(best.clone().into_sorted(), portable.into_sorted());
            }
            for (i, best) in best.into_iter().enumerate() {
                let mut alone = TopK::new(k);
                for (row, scores) in scores.chunks_exact(columns).enumerate().filter(|_| wanted[i]) {
                    alone.push(scores[i], row as u64);
                }
                prop_assert_eq!(best.into_sorted(), alone.into_sorted());
            }
        }
    }
}

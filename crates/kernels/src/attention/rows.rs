//! Products with the rows of a cache, and their weighted sums.

use std::marker::PhantomData;

use super::packed::{Brain, Half, Packed, Q4, Q8, Single};
use crate::blocks::{BlockType, dequantize};
use crate::vector::{Eight, simd};

/// Rows of a cache: keys or values of one layer and head.
#[derive(Debug, Clone, Copy)]
pub struct CacheRows<'a> {
    /// How the numbers are packed: `F32`, `F16`, `Bf16`, `Q8_0` or `Q4_0`.
    pub kind: BlockType,
    /// Numbers of a row.
    pub dim: usize,
    /// Bytes from the start of a row to the start of the next.
    pub stride: usize,
    /// All rows.
    pub bytes: &'a [u8],
}

/// Rows that are read together.
#[derive(Debug, Clone, Copy)]
pub enum RowSet<'a> {
    /// A run of rows: first, and the one behind the last.
    Range(usize, usize),
    /// Row numbers.
    List(&'a [u32]),
}

impl RowSet<'_> {
    /// How many rows.
    pub fn len(&self) -> usize {
        match self {
            Self::Range(from, to) => to.saturating_sub(*from),
            Self::List(rows) => rows.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The `i`-th row.
    #[inline(always)]
    pub(crate) fn row(&self, i: usize) -> usize {
        match self {
            Self::Range(from, _) => from + i,
            Self::List(rows) => rows[i] as usize,
        }
    }
}

impl CacheRows<'_> {
    /// Bytes of a row.
    fn check(&self, who: &str) -> usize {
        let bytes = self.kind.row_bytes(self.dim);
        let bytes = bytes.filter(|&bytes| bytes <= self.stride && self.dim > 0);
        match (self.kind, bytes) {
            (
                BlockType::F32
                | BlockType::F16
                | BlockType::Bf16
                | BlockType::Q8_0
                | BlockType::Q4_0,
                Some(bytes),
            ) => bytes,
            _ => panic!(
                "{who}: rows of {} numbers as {}, {} bytes apart",
                self.dim,
                self.kind.name(),
                self.stride
            ),
        }
    }
}

/// `out[q, r]` = product of query `q` with key `r` of `rows`; `queries` `[g, dim]`, `out`
/// `[g, rows]`. Each key is read once. Not scaled.
///
/// # Panics
/// When the shapes do not fit, a row is not there, or the kind is none of [`CacheRows`].
pub fn dot_rows(keys: CacheRows, queries: &[f32], rows: RowSet, out: &mut [f32]) {
    keys.check("dot_rows");
    let g = crate::dot::assert_rows(queries.len(), keys.dim, "dot_rows");
    assert_eq!(out.len(), g * rows.len(), "dot_rows: length of out");
    #[cfg(target_arch = "x86_64")]
    if super::wide::takes(&keys) {
        // SAFETY: the machine has what is needed, and lengths are asserted above.
        return unsafe { super::wide::dots(keys, queries, rows, out) };
    }
    dots(keys, queries, rows, out);
}

/// `out[q] += Σ weights[q, r] · value r` over `rows`; `weights` `[g, rows]`, `out`
/// `[g, dim]`. Each value is read once.
///
/// # Panics
/// As [`dot_rows`].
pub fn mix_rows(values: CacheRows, weights: &[f32], rows: RowSet, out: &mut [f32]) {
    values.check("mix_rows");
    let g = crate::dot::assert_rows(out.len(), values.dim, "mix_rows");
    assert_eq!(weights.len(), g * rows.len(), "mix_rows: length of weights");
    #[cfg(target_arch = "x86_64")]
    if super::wide::takes(&values) {
        // SAFETY: the machine has what is needed, and lengths are asserted above.
        return unsafe { super::wide::mix(values, weights, rows, out) };
    }
    mix(values, weights, rows, out);
}

/// Unpacks `rows` to `out` `[rows, dim]`.
///
/// # Panics
/// When the shapes do not fit or a row is not there.
pub fn read_rows(from: CacheRows, rows: RowSet, out: &mut [f32]) {
    let bytes = from.check("read_rows");
    assert_eq!(out.len(), rows.len() * from.dim, "read_rows: length of out");
    for (i, out) in out.chunks_exact_mut(from.dim).enumerate() {
        let start = rows.row(i) * from.stride;
        dequantize(from.kind, &from.bytes[start..][..bytes], out);
    }
}

/// Which rows, and how they are packed, as the compiler is to know it. All rows are there.
#[derive(Clone, Copy)]
pub(super) struct Source<'a, P> {
    cache: CacheRows<'a>,
    row_bytes: usize,
    rows: RowSet<'a>,
    packed: PhantomData<P>,
}

/// Rows of a list are asked for so many bytes before their turn; runs come by themselves.
const AHEAD: usize = 8192;

impl<'a, P: Packed> Source<'a, P> {
    /// # Panics
    /// When a row is not there.
    pub(super) fn new(cache: CacheRows<'a>, rows: RowSet<'a>) -> Self {
        let row_bytes = cache.kind.row_bytes(cache.dim).unwrap_or(0);
        let last = match rows {
            RowSet::Range(from, to) if from < to => Some(to - 1),
            RowSet::Range(..) => None,
            RowSet::List(rows) => rows.iter().max().map(|&row| row as usize),
        };
        if let Some(last) = last {
            let end = last.checked_mul(cache.stride);
            let end = end.and_then(|start| start.checked_add(row_bytes));
            assert!(
                end.is_some_and(|end| end <= cache.bytes.len()),
                "row {last} is not there"
            );
        }
        Self {
            cache,
            row_bytes,
            rows,
            packed: PhantomData,
        }
    }

    /// Numbers of a row.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn dim(&self) -> usize {
        self.cache.dim
    }

    /// How many rows before its turn one is asked for.
    pub(super) fn ahead(&self) -> usize {
        (AHEAD / self.row_bytes).clamp(4, AHEAD / 32)
    }

    /// How many rows.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// The first byte of the `i`-th row; `row_bytes` follow.
    #[inline(always)]
    pub(super) fn row(&self, i: usize) -> *const u8 {
        let start = self.rows.row(i) * self.cache.stride;
        // SAFETY: `new` has seen that all rows lie in the bytes.
        unsafe { self.cache.bytes.as_ptr().add(start) }
    }

    /// The last numbers of a row, those from `column` on.
    #[inline(always)]
    fn tail(&self, row: *const u8, column: usize) -> f32 {
        // SAFETY: `row` gave it, so that so many bytes follow.
        P::tail(
            unsafe { std::slice::from_raw_parts(row, self.row_bytes) },
            column,
        )
    }

    /// Asks for the `i`-th row, if there is one and it is not the next in memory.
    #[inline(always)]
    pub(super) fn prefetch<V: Eight>(&self, i: usize) {
        if let RowSet::List(rows) = self.rows
            && let Some(&row) = rows.get(i)
        {
            let at = self.cache.bytes.as_ptr();
            let at = at.wrapping_add(row as usize * self.cache.stride);
            let mut line = 0;
            while line < self.row_bytes {
                V::prefetch_line(at.wrapping_add(line));
                line += 64;
            }
            V::prefetch_line(at.wrapping_add(self.row_bytes - 1));
        }
    }
}

macro_rules! by_kind {
    ($cache:expr, $rows:expr, $function:ident ($($arg:expr),*)) => {
        match $cache.kind {
            BlockType::F32 => $function::<V, Single>(Source::new($cache, $rows), $($arg),*),
            BlockType::F16 => $function::<V, Half>(Source::new($cache, $rows), $($arg),*),
            BlockType::Bf16 => $function::<V, Brain>(Source::new($cache, $rows), $($arg),*),
            BlockType::Q8_0 => $function::<V, Q8>(Source::new($cache, $rows), $($arg),*),
            _ => $function::<V, Q4>(Source::new($cache, $rows), $($arg),*),
        }
    };
}

simd! {
    pub(super) fn dots(keys: CacheRows, queries: &[f32], rows: RowSet, out: &mut [f32]) = dots_body;
}

#[inline(always)]
pub(super) fn dots_body<V: Eight>(keys: CacheRows, queries: &[f32], rows: RowSet, out: &mut [f32]) {
    by_kind!(keys, rows, dots_of(queries, out));
}

/// Rows between two turns of the queries: they stay in the first cache.
const NEAR: usize = 64;

#[inline(always)]
fn dots_of<V: Eight, P: Packed>(from: Source<P>, queries: &[f32], out: &mut [f32]) {
    let (dim, count) = (from.cache.dim, from.rows.len());
    let g = queries.len() / dim;
    for i in 0..from.ahead().min(count) {
        from.prefetch::<V>(i);
    }
    for first in (0..count).step_by(NEAR) {
        let last = (first + NEAR).min(count);
        let mut q = 0;
        while q < g {
            let size = (g - q).min(if V::TILES { 4 } else { 1 });
            let queries = &queries[q * dim..][..size * dim];
            let out = &mut out[q * count..][..size * count];
            match size {
                _ if !V::TILES => dot_block::<V, P, 1, 1>(&from, queries, first..last, out),
                1 => dot_block::<V, P, 1, 4>(&from, queries, first..last, out),
                2 => dot_block::<V, P, 2, 4>(&from, queries, first..last, out),
                // Scales take registers too.
                3 if P::GROUP > 1 => dot_block::<V, P, 3, 2>(&from, queries, first..last, out),
                3 => dot_block::<V, P, 3, 4>(&from, queries, first..last, out),
                _ => dot_block::<V, P, 4, 2>(&from, queries, first..last, out),
            }
            q += size;
        }
    }
}

/// Products of `G` queries with some rows, `R` at a time.
#[inline(always)]
fn dot_block<V: Eight, P: Packed, const G: usize, const R: usize>(
    from: &Source<P>,
    queries: &[f32],
    range: std::ops::Range<usize>,
    out: &mut [f32],
) {
    let (count, ahead) = (from.rows.len(), from.ahead());
    let mut i = range.start;
    while i < range.end {
        let mut rows = [from.row(i); R];
        for (r, row) in rows.iter_mut().enumerate() {
            from.prefetch::<V>(i + ahead + r);
            // Places beyond the last row repeat it.
            *row = from.row((i + r).min(range.end - 1));
        }
        let sums = dot_tile::<V, P, G, R>(from, rows, queries);
        for (q, sums) in sums.iter().enumerate() {
            let out = &mut out[q * count + i..];
            if i + R <= range.end {
                out[..R].copy_from_slice(sums);
            } else {
                out.iter_mut()
                    .zip(&sums[..range.end - i])
                    .for_each(|(out, sum)| *out = *sum);
            }
        }
        i += R;
    }
}

#[inline(always)]
fn dot_tile<V: Eight, P: Packed, const G: usize, const R: usize>(
    from: &Source<P>,
    rows: [*const u8; R],
    queries: &[f32],
) -> [[f32; R]; G] {
    let dim = from.cache.dim;
    assert_eq!(queries.len(), G * dim);
    let groups = dim / (8 * P::GROUP);
    let mut sums = [[V::splat(0.0); G]; R];
    let mut x = [V::splat(0.0); 4];
    for i in 0..groups {
        for r in 0..R {
            // SAFETY: every row has the bytes of `dim` numbers (see `Source::row`), and
            // 8 * GROUP * (i + 1) <= dim.
            unsafe { P::load(rows[r], i, &mut x) };
            for (j, &x) in x[..P::GROUP].iter().enumerate() {
                for (q, sum) in sums[r].iter_mut().enumerate() {
                    let at = q * dim + 8 * (P::GROUP * i + j);
                    // SAFETY: at + 8 <= (q + 1) * dim by the line above.
                    let query = unsafe { V::load_at(queries.as_ptr().add(at)) };
                    *sum = x.mul_add(query, *sum);
                }
            }
        }
    }
    let mut out = [[0.0; R]; G];
    for (q, out) in out.iter_mut().enumerate() {
        // Four rows at once; with fewer, some are there twice.
        let four = V::sum_each([sums[0][q], sums[1 % R][q], sums[2 % R][q], sums[3 % R][q]]);
        out.copy_from_slice(&four[..R]);
    }
    for column in 8 * P::GROUP * groups..dim {
        for r in 0..R {
            let x = from.tail(rows[r], column);
            for q in 0..G {
                out[q][r] += x * queries[q * dim + column];
            }
        }
    }
    out
}

simd! {
    pub(super) fn mix(values: CacheRows, weights: &[f32], rows: RowSet, out: &mut [f32]) = mix_body;
}

#[inline(always)]
pub(super) fn mix_body<V: Eight>(
    values: CacheRows,
    weights: &[f32],
    rows: RowSet,
    out: &mut [f32],
) {
    by_kind!(values, rows, mix_of(weights, out));
}

#[inline(always)]
fn mix_of<V: Eight, P: Packed>(from: Source<P>, weights: &[f32], out: &mut [f32]) {
    let (dim, count) = (from.cache.dim, from.rows.len());
    let g = out.len() / dim;
    // Rows that stay in the first cache while column by column is worked on.
    let near = (NEAR * 128 / from.row_bytes).clamp(4, NEAR);
    let ahead = from.ahead().max(near);
    for i in 0..ahead.min(count) {
        from.prefetch::<V>(i);
    }
    for first in (0..count).step_by(near) {
        let rows = first..(first + near).min(count);
        for i in rows.clone() {
            from.prefetch::<V>(i + ahead);
        }
        let mut q = 0;
        while q < g {
            let size = (g - q).min(if V::TILES { 3 } else { 1 });
            let weights = &weights[q * count..][..size * count];
            let out = &mut out[q * dim..][..size * dim];
            match size {
                1 => mix_block::<V, P, 1>(&from, weights, rows.clone(), out),
                2 => mix_block::<V, P, 2>(&from, weights, rows.clone(), out),
                _ => mix_block::<V, P, 3>(&from, weights, rows.clone(), out),
            }
            q += size;
        }
    }
}

/// Adds some rows to `G` sums: 32 columns after 32 columns, whose sums stay in registers.
#[inline(always)]
fn mix_block<V: Eight, P: Packed, const G: usize>(
    from: &Source<P>,
    weights: &[f32],
    rows: std::ops::Range<usize>,
    out: &mut [f32],
) {
    let (dim, count) = (from.cache.dim, from.rows.len());
    assert!(out.len() == G * dim && weights.len() == G * count);
    let mut column = 0;
    while column + 32 <= dim {
        mix_columns::<V, P, G, 4>(from, weights, rows.clone(), out, column);
        column += 32;
    }
    // Rows of whole blocks end here.
    while column + 8 <= dim && P::GROUP == 1 {
        mix_columns::<V, P, G, 1>(from, weights, rows.clone(), out, column);
        column += 8;
    }
    if column < dim {
        for i in rows {
            let row = from.row(i);
            for column in column..dim {
                let x = from.tail(row, column);
                for q in 0..G {
                    out[q * dim + column] += weights[q * count + i] * x;
                }
            }
        }
    }
}

#[inline(always)]
fn mix_columns<V: Eight, P: Packed, const G: usize, const WIDE: usize>(
    from: &Source<P>,
    weights: &[f32],
    rows: std::ops::Range<usize>,
    out: &mut [f32],
    column: usize,
) {
    let (dim, count) = (from.cache.dim, from.rows.len());
    let mut sums = [[V::splat(0.0); WIDE]; G];
    for (q, sums) in sums.iter_mut().enumerate() {
        for (j, sum) in sums.iter_mut().enumerate() {
            *sum = V::load(&out[q * dim + column + 8 * j..]);
        }
    }
    let mut x = [V::splat(0.0); WIDE];
    let mut group = [V::splat(0.0); 4];
    for i in rows {
        let row = from.row(i);
        for first in (0..WIDE).step_by(P::GROUP) {
            let place = (column / 8 + first) / P::GROUP;
            // SAFETY: the row has the bytes of `dim` numbers (see `Source::row`), of which
            // column + 8 * WIDE are within.
            unsafe { P::load(row, place, &mut group) };
            x[first..first + P::GROUP].copy_from_slice(&group[..P::GROUP]);
        }
        for q in 0..G {
            let weight = V::splat(weights[q * count + i]);
            for j in 0..WIDE {
                sums[q][j] = x[j].mul_add(weight, sums[q][j]);
            }
        }
    }
    for (q, sums) in sums.iter().enumerate() {
        for (j, sum) in sums.iter().enumerate() {
            sum.store(&mut out[q * dim + column + 8 * j..]);
        }
    }
}

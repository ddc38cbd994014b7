//! Products with keys that are kept as codes, before rotary embedding.

use std::ops::Range;

use super::{BEHIND, GRANULE, assert_bits, table_len};
use crate::attention::Rotation;
use crate::vector::{Eight, simd};

/// Keys of one layer and head as codes, before rotary embedding.
#[derive(Debug, Clone, Copy)]
pub struct KeyCodes<'a> {
    /// Bits of a code: 2, 3 or 4.
    pub bits: u32,
    /// Numbers of a key.
    pub dim: usize,
    /// `[granules, dim, bits]`, and [`BEHIND`] more of any content.
    pub bytes: &'a [u8],
    /// The numbers that the codes of a channel stand for, `[dim, table_len]`.
    pub tables: &'a [f32],
    /// Which channels make a pair.
    pub rotation: Rotation,
}

/// By what pairs of channels are turned: cosines and sines `[pairs, stride]`, a column for
/// each position.
#[derive(Debug, Clone, Copy)]
pub struct Angles<'a> {
    /// Cosines.
    pub cos: &'a [f32],
    /// Sines.
    pub sin: &'a [f32],
    /// Positions of the tables.
    pub stride: usize,
}

impl Angles<'_> {
    /// Pairs that are turned; the channels behind them are not.
    pub fn pairs(&self) -> usize {
        self.cos.len().checked_div(self.stride).unwrap_or(0)
    }
}

/// A run of granules, and the column of the angles at which its first row stands.
struct Run<'a> {
    keys: KeyCodes<'a>,
    angles: Angles<'a>,
    granules: Range<usize>,
    column: usize,
}

impl<'a> Run<'a> {
    /// # Panics
    /// When codes, tables or angles are missing.
    fn new(
        keys: KeyCodes<'a>,
        angles: Angles<'a>,
        granules: Range<usize>,
        column: usize,
        who: &str,
    ) -> Self {
        assert_bits(keys.bits, who);
        let row = keys.dim.checked_mul(keys.bits as usize);
        let codes = row.and_then(|row| row.checked_mul(granules.end));
        let needed = codes.and_then(|codes| codes.checked_add(BEHIND));
        assert!(
            granules.is_empty() || needed.is_some_and(|needed| needed <= keys.bytes.len()),
            "{who}: granule {} is not there",
            granules.end
        );
        let tables = keys.dim * table_len(keys.bits);
        assert_eq!(keys.tables.len(), tables, "{who}: length of the tables");
        let pairs = angles.pairs();
        let columns = column.checked_add(granules.len() * GRANULE);
        assert!(
            angles.cos.len() == angles.sin.len()
                && angles.cos.len() == pairs * angles.stride
                && 2 * pairs <= keys.dim
                && (pairs == 0 || columns.is_some_and(|columns| columns <= angles.stride)),
            "{who}: angles do not fit"
        );
        Self {
            keys,
            angles,
            granules,
            column,
        }
    }

    /// The channels of a pair.
    #[inline(always)]
    fn channels(&self, pair: usize, pairs: usize) -> (usize, usize) {
        match self.keys.rotation {
            Rotation::Half => (pair, pair + pairs),
            Rotation::Interleaved => (2 * pair, 2 * pair + 1),
        }
    }

    /// The table of a channel.
    #[inline(always)]
    fn table<V: Eight, const BITS: u32>(&self, channel: usize) -> (V, V) {
        debug_assert!(channel < self.keys.dim);
        // SAFETY: `new` has seen that there is a table for every channel.
        unsafe {
            let table = self.keys.tables.as_ptr().add(channel * table_len(BITS));
            let low = V::load_at(table);
            if BITS == 4 {
                (low, V::load_at(table.add(8)))
            } else {
                (low, low)
            }
        }
    }

    /// A channel of the eight rows of a granule, by its table.
    #[inline(always)]
    fn load<V: Eight, const BITS: u32>(
        &self,
        granule: usize,
        channel: usize,
        (low, high): (V, V),
    ) -> V {
        debug_assert!(granule < self.granules.end && channel < self.keys.dim);
        let at = (granule * self.keys.dim + channel) * BITS as usize;
        // SAFETY: `new` has seen that all granules before the end of the run and four bytes
        // are there.
        let word = unsafe {
            let word = self.keys.bytes.as_ptr().add(at).cast::<u32>();
            u32::from_le(word.read_unaligned())
        };
        V::look_up::<BITS>(word, 0, low, high)
    }

    /// A pair of channels of the eight rows of granule `i` of the run, turned.
    #[inline(always)]
    fn turned<V: Eight, const BITS: u32>(
        &self,
        i: usize,
        pair: usize,
        (a, b): (usize, usize),
        tables: [(V, V); 2],
    ) -> (V, V) {
        let granule = self.granules.start + i;
        let x = self.load::<V, BITS>(granule, a, tables[0]);
        let y = self.load::<V, BITS>(granule, b, tables[1]);
        let at = pair * self.angles.stride + self.column + i * GRANULE;
        // SAFETY: `new` has seen that the columns of the run are within the stride.
        let (cos, sin) = unsafe {
            (
                V::load_at(self.angles.cos.as_ptr().add(at)),
                V::load_at(self.angles.sin.as_ptr().add(at)),
            )
        };
        (x.mul_sub(cos, y.mul(sin)), y.mul_add(cos, x.mul(sin)))
    }
}

/// `out[q, 8 i + r]` = product of query `q` with row `r` of granule `granules.start + i`,
/// turned by the angles of column `column + 8 i + r`; `queries` `[g, dim]`, `out`
/// `[g, granules * 8]`.
///
/// # Panics
/// When the shapes do not fit or a granule is not there.
pub fn dot_keys(
    keys: KeyCodes,
    angles: Angles,
    granules: Range<usize>,
    column: usize,
    queries: &[f32],
    out: &mut [f32],
) {
    let g = crate::dot::assert_rows(queries.len(), keys.dim, "dot_keys");
    let rows = granules.len() * GRANULE;
    assert_eq!(out.len(), g * rows, "dot_keys: length of out");
    let run = Run::new(keys, angles, granules, column, "dot_keys");
    dots(&run, queries, out);
}

simd! {
    fn dots(run: &Run, queries: &[f32], out: &mut [f32]) = dots_body;
}

#[inline(always)]
fn dots_body<V: Eight>(run: &Run, queries: &[f32], out: &mut [f32]) {
    match run.keys.bits {
        2 => dots_of::<V, 2>(run, queries, out),
        3 => dots_of::<V, 3>(run, queries, out),
        _ => dots_of::<V, 4>(run, queries, out),
    }
}

#[inline(always)]
fn dots_of<V: Eight, const BITS: u32>(run: &Run, queries: &[f32], out: &mut [f32]) {
    let (dim, rows) = (run.keys.dim, run.granules.len() * GRANULE);
    let g = queries.len() / dim;
    let mut q = 0;
    while q < g {
        let size = (g - q).min(if V::TILES { 4 } else { 1 });
        let queries = &queries[q * dim..][..size * dim];
        let out = &mut out[q * rows..][..size * rows];
        match size {
            1 => dot_tile::<V, BITS, 1>(run, queries, out),
            2 => dot_tile::<V, BITS, 2>(run, queries, out),
            3 => dot_tile::<V, BITS, 3>(run, queries, out),
            _ => dot_tile::<V, BITS, 4>(run, queries, out),
        }
        q += size;
    }
}

#[inline(always)]
fn dot_tile<V: Eight, const BITS: u32, const G: usize>(
    run: &Run,
    queries: &[f32],
    out: &mut [f32],
) {
    let count = run.granules.len();
    let mut i = 0;
    // Two at once: numbers of queries and tables are loaded half as often.
    while i + 2 <= count {
        dot_granules::<V, BITS, G, 2>(run, i, queries, out);
        i += 2;
    }
    if i < count {
        dot_granules::<V, BITS, G, 1>(run, i, queries, out);
    }
}

/// Products with `R` granules from the `first` of the run on.
#[inline(always)]
fn dot_granules<V: Eight, const BITS: u32, const G: usize, const R: usize>(
    run: &Run,
    first: usize,
    queries: &[f32],
    out: &mut [f32],
) {
    let (dim, rows, pairs) = (
        run.keys.dim,
        run.granules.len() * GRANULE,
        run.angles.pairs(),
    );
    assert!(queries.len() == G * dim && out.len() == G * rows && 2 * pairs <= dim);
    let zero = V::splat(0.0);
    let mut sums = [[zero; R]; G];
    for pair in 0..pairs {
        let (a, b) = run.channels(pair, pairs);
        let tables = [run.table::<V, BITS>(a), run.table::<V, BITS>(b)];
        let mut x = [(zero, zero); R];
        for (r, x) in x.iter_mut().enumerate() {
            *x = run.turned::<V, BITS>(first + r, pair, (a, b), tables);
        }
        for (q, sums) in sums.iter_mut().enumerate() {
            // SAFETY: both channels of a pair are less than 2 * pairs <= dim.
            let (to_a, to_b) = unsafe {
                (
                    V::splat(*queries.get_unchecked(q * dim + a)),
                    V::splat(*queries.get_unchecked(q * dim + b)),
                )
            };
            for (sum, (x, y)) in sums.iter_mut().zip(x) {
                *sum = y.mul_add(to_b, x.mul_add(to_a, *sum));
            }
        }
    }
    for channel in 2 * pairs..dim {
        let table = run.table::<V, BITS>(channel);
        for r in 0..R {
            let x = run.load::<V, BITS>(run.granules.start + first + r, channel, table);
            for (q, sums) in sums.iter_mut().enumerate() {
                sums[r] = x.mul_add(V::splat(queries[q * dim + channel]), sums[r]);
            }
        }
    }
    for (q, sums) in sums.iter().enumerate() {
        for (r, sum) in sums.iter().enumerate() {
            sum.store(&mut out[q * rows + (first + r) * GRANULE..][..GRANULE]);
        }
    }
}

/// Unpacks and turns the eight rows of a granule to `out` `[8, dim]`; `column` as in
/// [`dot_keys`].
///
/// # Panics
/// As [`dot_keys`].
pub fn read_keys(keys: KeyCodes, angles: Angles, granule: usize, column: usize, out: &mut [f32]) {
    assert_eq!(out.len(), GRANULE * keys.dim, "read_keys: length of out");
    let behind = granule.saturating_add(1);
    assert!(
        granule < behind,
        "read_keys: granule {granule} is not there"
    );
    let run = Run::new(keys, angles, granule..behind, column, "read_keys");
    unpack(&run, out);
}

simd! {
    fn unpack(run: &Run, out: &mut [f32]) = unpack_body;
}

#[inline(always)]
fn unpack_body<V: Eight>(run: &Run, out: &mut [f32]) {
    match run.keys.bits {
        2 => unpack_of::<V, 2>(run, out),
        3 => unpack_of::<V, 3>(run, out),
        _ => unpack_of::<V, 4>(run, out),
    }
}

#[inline(always)]
fn unpack_of<V: Eight, const BITS: u32>(run: &Run, out: &mut [f32]) {
    let (dim, pairs) = (run.keys.dim, run.angles.pairs());
    for pair in 0..pairs {
        let (a, b) = run.channels(pair, pairs);
        let tables = [run.table::<V, BITS>(a), run.table::<V, BITS>(b)];
        let (x, y) = run.turned::<V, BITS>(0, pair, (a, b), tables);
        let (x, y) = (x.to_array(), y.to_array());
        for (row, (x, y)) in out.chunks_exact_mut(dim).zip(x.iter().zip(y)) {
            row[a] = *x;
            row[b] = y;
        }
    }
    for channel in 2 * pairs..dim {
        let table = run.table::<V, BITS>(channel);
        let x = run.load::<V, BITS>(run.granules.start, channel, table);
        let x = x.to_array();
        for (row, x) in out.chunks_exact_mut(dim).zip(x) {
            row[channel] = x;
        }
    }
}

#[cfg(test)]
pub(super) fn dot_with<V: Eight>(
    keys: KeyCodes,
    angles: Angles,
    granules: Range<usize>,
    column: usize,
    queries: &[f32],
    out: &mut [f32],
) {
    dots_body::<V>(
        &Run::new(keys, angles, granules, column, "test"),
        queries,
        out,
    );
}

#[cfg(test)]
pub(super) fn read_with<V: Eight>(
    keys: KeyCodes,
    angles: Angles,
    granule: usize,
    column: usize,
    out: &mut [f32],
) {
    unpack_body::<V>(
        &Run::new(keys, angles, granule..granule + 1, column, "test"),
        out,
    );
}

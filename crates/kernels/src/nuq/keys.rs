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
pub(super) struct Run<'a> {
    pub(super) keys: KeyCodes<'a>,
    pub(super) angles: Angles<'a>,
    pub(super) granules: Range<usize>,
    pub(super) column: usize,
    /// Whether sixteen numbers are taken at once.
    wide: bool,
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
            #[cfg(target_arch = "x86_64")]
            wide: super::wide::takes(keys.bits),
            #[cfg(not(target_arch = "x86_64"))]
            wide: false,
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

/// Pairs of channels whose queries are laid side by side at once.
const CHUNK: usize = 32;

/// Numbers of `G` queries for the two channels of some pairs.
type Packed<const G: usize> = [[[f32; G]; 2]; CHUNK];

#[inline(always)]
fn dot_tile<V: Eight, const BITS: u32, const G: usize>(
    run: &Run,
    queries: &[f32],
    out: &mut [f32],
) {
    let (dim, pairs, count) = (run.keys.dim, run.angles.pairs(), run.granules.len());
    assert!(queries.len() == G * dim && out.len() == G * count * GRANULE && 2 * pairs <= dim);
    if pairs == 0 {
        out.fill(0.0);
    }
    for first in (0..pairs).step_by(CHUNK) {
        let chunk = (pairs - first).min(CHUNK);
        let mut packed: Packed<G> = [[[0.0; G]; 2]; CHUNK];
        for (i, [to_a, to_b]) in packed.iter_mut().take(chunk).enumerate() {
            let (a, b) = run.channels(first + i, pairs);
            for (q, (to_a, to_b)) in to_a.iter_mut().zip(to_b).enumerate() {
                (*to_a, *to_b) = (queries[q * dim + a], queries[q * dim + b]);
            }
        }
        let mut i = 0;
        #[cfg(target_arch = "x86_64")]
        while run.wide && i + 2 <= count {
            // SAFETY: `Run::new` has seen that the machine has what is needed, for 4 bits.
            unsafe { super::wide::dot_pairs::<G>(run, i, first, &packed[..chunk], out) };
            i += 2;
        }
        // Two granules at once: numbers of queries and tables are loaded half as often.
        while i + 2 <= count {
            dot_pairs::<V, BITS, G, 2>(run, i, first, &packed[..chunk], out);
            i += 2;
        }
        if i < count {
            dot_pairs::<V, BITS, G, 1>(run, i, first, &packed[..chunk], out);
        }
    }
    if 2 * pairs < dim {
        for i in 0..count {
            dot_still::<V, BITS, G>(run, i, queries, out);
        }
    }
}

/// Adds to the products with `R` granules from the `i`-th of the run on what the pairs from
/// `first` on give; the first pairs begin them.
#[inline(always)]
fn dot_pairs<V: Eight, const BITS: u32, const G: usize, const R: usize>(
    run: &Run,
    i: usize,
    first: usize,
    packed: &[[[f32; G]; 2]],
    out: &mut [f32],
) {
    let (dim, pairs) = (run.keys.dim, run.angles.pairs());
    let rows = run.granules.len() * GRANULE;
    assert!(i + R <= run.granules.len() && first + packed.len() <= pairs && out.len() == G * rows);
    let mut sums = [[V::splat(0.0); R]; G];
    if first > 0 {
        for (q, sums) in sums.iter_mut().enumerate() {
            for (r, sum) in sums.iter_mut().enumerate() {
                *sum = V::load(&out[q * rows + (i + r) * GRANULE..]);
            }
        }
    }
    // From a pair to the next, and from its first channel to its second.
    let (next, second) = match run.keys.rotation {
        Rotation::Half => (1, pairs),
        Rotation::Interleaved => (2, 1),
    };
    let (bits, len) = (BITS as usize, table_len(BITS));
    let granule = dim * bits;
    // SAFETY: `Run::new` has seen that the bytes of all granules before the end of the run
    // and four more are there, a table for every channel, and angles `[pairs, stride]` for
    // all columns of the run. Both channels of a pair are less than `2 * pairs`, which is no
    // more than `dim`; pairs end with `first + packed.len()`, which is no more than `pairs`.
    // Pointers to angles behind the last pair are made with wrapping arithmetic and not read.
    unsafe {
        let mut codes =
            (run.keys.bytes.as_ptr()).add((run.granules.start + i) * granule + first * next * bits);
        let mut tables = run.keys.tables.as_ptr().add(first * next * len);
        let at = first * run.angles.stride + run.column + i * GRANULE;
        let mut cos = run.angles.cos.as_ptr().add(at);
        let mut sin = run.angles.sin.as_ptr().add(at);
        let mut coded = pair_codes::<V, BITS, R>(codes, tables, granule, second);
        for (k, queries) in packed.iter().enumerate() {
            let mut turned = coded;
            for (r, [x, y]) in turned.iter_mut().enumerate() {
                let cos = V::load_at(cos.add(r * GRANULE));
                let sin = V::load_at(sin.add(r * GRANULE));
                (*x, *y) = (x.mul_sub(cos, y.mul(sin)), y.mul_add(cos, x.mul(sin)));
            }
            // The next pair is looked up while this one is multiplied; behind the last, the
            // last once more.
            let step = if k + 1 < packed.len() { next } else { 0 };
            codes = codes.add(step * bits);
            tables = tables.add(step * len);
            coded = pair_codes::<V, BITS, R>(codes, tables, granule, second);
            for (q, sums) in sums.iter_mut().enumerate() {
                let (to_a, to_b) = (V::splat(queries[0][q]), V::splat(queries[1][q]));
                for (sum, turned) in sums.iter_mut().zip(turned) {
                    *sum = turned[1].mul_add(to_b, turned[0].mul_add(to_a, *sum));
                }
            }
            cos = cos.wrapping_add(run.angles.stride);
            sin = sin.wrapping_add(run.angles.stride);
        }
    }
    for (q, sums) in sums.iter().enumerate() {
        for (r, sum) in sums.iter().enumerate() {
            sum.store(&mut out[q * rows + (i + r) * GRANULE..][..GRANULE]);
        }
    }
}

/// The numbers of the two channels of a pair in `R` granules.
///
/// # Safety
/// Codes of the channels and four bytes must be readable at `codes` and `second` channels
/// further, for `R` granules of `granule` bytes each; tables likewise at `tables`.
#[inline(always)]
unsafe fn pair_codes<V: Eight, const BITS: u32, const R: usize>(
    codes: *const u8,
    tables: *const f32,
    granule: usize,
    second: usize,
) -> [[V; 2]; R] {
    let mut found = [[V::splat(0.0); 2]; R];
    for (which, at) in [0, second].into_iter().enumerate() {
        // SAFETY: by contract.
        unsafe {
            let table = tables.add(at * table_len(BITS));
            let low = V::load_at(table);
            let high = if BITS == 4 {
                V::load_at(table.add(8))
            } else {
                low
            };
            for (r, found) in found.iter_mut().enumerate() {
                let word = codes.add(r * granule + at * BITS as usize).cast::<u32>();
                let word = u32::from_le(word.read_unaligned());
                found[which] = V::look_up::<BITS>(word, 0, low, high);
            }
        }
    }
    found
}

/// Adds to the products with the `i`-th granule of the run what channels that are not turned
/// give.
#[inline(always)]
fn dot_still<V: Eight, const BITS: u32, const G: usize>(
    run: &Run,
    i: usize,
    queries: &[f32],
    out: &mut [f32],
) {
    let (dim, rows) = (run.keys.dim, run.granules.len() * GRANULE);
    let mut sums = [V::splat(0.0); G];
    for channel in 2 * run.angles.pairs()..dim {
        let table = run.table::<V, BITS>(channel);
        let x = run.load::<V, BITS>(run.granules.start + i, channel, table);
        for (q, sum) in sums.iter_mut().enumerate() {
            *sum = x.mul_add(V::splat(queries[q * dim + channel]), *sum);
        }
    }
    for (q, sum) in sums.iter().enumerate() {
        let to = &mut out[q * rows + i * GRANULE..][..GRANULE];
        sum.add(V::load(to)).store(to);
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
    let mut run = Run::new(keys, angles, granules, column, "test");
    run.wide = false;
    dots_body::<V>(&run, queries, out);
}

/// [`dot_keys`] as machines without AVX-512 compute it.
#[cfg(test)]
pub(super) fn dot_narrow(
    keys: KeyCodes,
    angles: Angles,
    granules: Range<usize>,
    column: usize,
    queries: &[f32],
    out: &mut [f32],
) {
    let mut run = Run::new(keys, angles, granules, column, "test");
    run.wide = false;
    dots(&run, queries, out);
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

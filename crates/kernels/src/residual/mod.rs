//! Small codes for vectors: PLAID's scalar codec of residuals, and 8-bit rows.
//!
//! A stored vector is the number of its nearest centroid `c` and, for every
//! dimension, which of `n = 2^bits` values stands for the residual `x - c`. One
//! list of values serves all dimensions. The vector that is read back is
//! `(c + values) / |c + values|`.
//!
//! Bit order: the code of dimension `d` is in bits `(d * bits) % 8 ..` of byte
//! `d * bits / 8` of the row, the least significant bit first.

mod int8;

pub use int8::Int8Codec;

use std::ops::Range;

use crate::dot::assert_rows;
use crate::maxsim::MaxSim;
use crate::vector::{Eight, simd};

/// Why a codec cannot be made or used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Only 1, 2 and 4 bits exist.
    #[error("a residual code has 1, 2 or 4 bits a dimension, not {0}")]
    Bits(u32),
    /// A row would not end at a byte.
    #[error(
        "{dim} dimensions of {bits} bits are no whole number of bytes; take more bits or another dimension"
    )]
    Dimension {
        /// Length of a row.
        dim: usize,
        /// Bits of a dimension.
        bits: u32,
    },
    /// The tables do not belong to a codec.
    #[error("the tables of the residual codec are damaged: {0}")]
    Tables(String),
}

/// PLAID's scalar codec (Santhanam et al. 2022), see the [module](self).
#[derive(Debug, Clone, PartialEq)]
pub struct ResidualCodec {
    bits: u32,
    cutoffs: Vec<f32>,
    weights: Vec<f32>,
}

impl ResidualCodec {
    /// A codec from stored tables: `2^bits - 1` ascending cutoffs, `2^bits` weights, all finite.
    pub fn new(bits: u32, cutoffs: Vec<f32>, weights: Vec<f32>) -> Result<Self, CodecError> {
        if !matches!(bits, 1 | 2 | 4) {
            return Err(CodecError::Bits(bits));
        }
        let n = 1usize << bits;
        if cutoffs.len() != n - 1 || weights.len() != n {
            return Err(CodecError::Tables(format!(
                "{} cutoffs and {} weights where {} and {n} belong",
                cutoffs.len(),
                weights.len(),
                n - 1
            )));
        }
        if !cutoffs.iter().chain(&weights).all(|x| x.is_finite()) {
            return Err(CodecError::Tables("an entry is not finite".into()));
        }
        if !cutoffs.is_sorted() {
            return Err(CodecError::Tables("the cutoffs do not ascend".into()));
        }
        Ok(Self {
            bits,
            cutoffs,
            weights,
        })
    }

    /// Learns the tables from residuals of any rows, all entries pooled. PLAID takes
    /// quantiles: cutoffs `i / n`, weights `(i + 0.5) / n`. They are the start here, and
    /// are moved to where the squared error is least (Lloyd 1982, "Least squares
    /// quantization in PCM"): weights to the means of their buckets, cutoffs half-way
    /// between weights, until nothing moves. The ends gain most: a quantile codec has
    /// two of 16 values for the outer eighth of the entries, which holds most of the
    /// error. What is not finite is left out; of nothing, all are 0.
    pub fn train(residuals: &[f32], bits: u32) -> Result<Self, CodecError> {
        if !matches!(bits, 1 | 2 | 4) {
            return Err(CodecError::Bits(bits));
        }
        let mut sorted: Vec<f32> = residuals
            .iter()
            .copied()
            .filter(|x| x.is_finite())
            .collect();
        sorted.sort_unstable_by(f32::total_cmp);
        let (mut cutoffs, mut weights) = quantiles(&sorted, 1 << bits);
        least_squares(&sorted, &mut cutoffs, &mut weights);
        Self::new(bits, cutoffs, weights)
    }

    /// Bits of a dimension: 1, 2 or 4.
    pub fn bits(&self) -> u32 {
        self.bits
    }

    /// Where one bucket ends and the next begins, ascending.
    pub fn cutoffs(&self) -> &[f32] {
        &self.cutoffs
    }

    /// The value that stands for each bucket.
    pub fn weights(&self) -> &[f32] {
        &self.weights
    }

    /// Bytes of a row of `dim` numbers.
    pub fn row_bytes(&self, dim: usize) -> Result<usize, CodecError> {
        let bits = self.bits;
        match dim.checked_mul(bits as usize) {
            Some(all) if all.is_multiple_of(8) => Ok(all / 8),
            _ => Err(CodecError::Dimension { dim, bits }),
        }
    }

    /// Appends the codes of `residual_rows` to `out`. The bucket of a number is
    /// how many cutoffs lie strictly below it; NaN falls into the first.
    ///
    /// # Panics
    /// When the codes do not end at a byte.
    pub fn encode(&self, residual_rows: &[f32], out: &mut Vec<u8>) {
        let per_byte = 8 / self.bits as usize;
        assert!(
            residual_rows.len().is_multiple_of(per_byte),
            "ResidualCodec::encode: {} codes of {} bits do not end at a byte",
            residual_rows.len(),
            self.bits
        );
        out.reserve(residual_rows.len() / per_byte);
        let (eights, rest) = residual_rows.split_at(residual_rows.len() / 8 * 8);
        encode_eights(self, eights, out);
        for values in rest.chunks_exact(per_byte) {
            let mut byte = 0;
            for (i, &x) in (0..).zip(values) {
                let bucket = self.cutoffs.iter().filter(|&&c| c < x).count() as u8;
                byte |= bucket << (i * self.bits);
            }
            out.push(byte);
        }
    }

    /// Writes the value of every code in `packed` to `out`.
    ///
    /// # Panics
    /// When `out` is not exactly as long as the codes are many.
    pub fn decode_into(&self, packed: &[u8], out: &mut [f32]) {
        let per_byte = 8 / self.bits as usize;
        assert_eq!(
            out.len(),
            packed.len() * per_byte,
            "ResidualCodec::decode_into: length of out"
        );
        match self.bits {
            1 => values_1(self, packed, out),
            2 => values_2(self, packed, out),
            _ => values_4(self, packed, out),
        }
    }

    /// The product of a row with what its codes stand for, as [`Self::decode_into`] and
    /// [`dot`](crate::dot), but nothing is written between.
    ///
    /// # Panics
    /// When `row` is not exactly as long as the codes are many.
    pub fn dot(&self, packed: &[u8], row: &[f32]) -> f32 {
        let per_byte = 8 / self.bits as usize;
        assert_eq!(
            row.len(),
            packed.len() * per_byte,
            "ResidualCodec::dot: length of the row"
        );
        match self.bits {
            1 => dot_1(self, packed, row),
            2 => dot_2(self, packed, row),
            _ => dot_4(self, packed, row),
        }
    }

    /// The value of dimension `d` of packed rows.
    #[inline(always)]
    fn value(&self, packed: &[u8], d: usize) -> f32 {
        let bit = d * self.bits as usize;
        let code = packed[bit / 8] >> (bit % 8) & ((1 << self.bits) - 1);
        self.weights[usize::from(code)]
    }

    /// The weights as [`Eight::look_up`] takes them.
    #[inline(always)]
    fn table<V: Eight>(&self) -> (V, V) {
        let mut table = [0.0; 16];
        for (slot, &weight) in table.iter_mut().zip(self.weights.iter().cycle()) {
            *slot = weight;
        }
        (V::load(&table), V::load(&table[8..]))
    }
}

/// PLAID's tables for `n` buckets: cutoffs and weights.
fn quantiles(sorted: &[f32], n: u32) -> (Vec<f32>, Vec<f32>) {
    let at = |i: f64| quantile(sorted, i / f64::from(n));
    let cutoffs = (1..n).map(|i| at(f64::from(i)));
    let weights = (0..n).map(|i| at(f64::from(i) + 0.5));
    (cutoffs.collect(), weights.collect())
}

/// Rounds of [`least_squares`] at most; it is near its end after some dozens.
const ROUNDS: usize = 200;

/// Moves the tables to a local minimum of the squared error.
fn least_squares(sorted: &[f32], cutoffs: &mut [f32], weights: &mut [f32]) {
    let mut sums = Vec::with_capacity(sorted.len() + 1);
    sums.push(0.0f64);
    sums.extend(sorted.iter().scan(0.0, |sum, &x| {
        *sum += f64::from(x);
        Some(*sum)
    }));
    for _ in 0..ROUNDS {
        let mut start = 0;
        for (bucket, weight) in weights.iter_mut().enumerate() {
            let end = match cutoffs.get(bucket) {
                Some(&cutoff) => sorted.partition_point(|&x| x <= cutoff).max(start),
                None => sorted.len(),
            };
            // An empty bucket stays where it is.
            if end > start {
                *weight = ((sums[end] - sums[start]) / (end - start) as f64) as f32;
            }
            start = end;
        }
        let mut moved = false;
        for (cutoff, pair) in cutoffs.iter_mut().zip(weights.windows(2)) {
            let between = pair[0] / 2.0 + pair[1] / 2.0;
            moved |= between != *cutoff;
            *cutoff = between;
        }
        if !moved {
            return;
        }
    }
}

/// Quantile `q` of ascending numbers, linear between neighbours; 0 of none.
fn quantile(sorted: &[f32], q: f64) -> f32 {
    let Some(last) = sorted.len().checked_sub(1) else {
        return 0.0;
    };
    let place = q * last as f64;
    let below = sorted[place as usize];
    let above = sorted[(place as usize + 1).min(last)];
    // In f64, so that the difference of two finite numbers is finite.
    let (below, above) = (f64::from(below), f64::from(above));
    (below + (above - below) * place.fract()) as f32
}

/// Rows that are decoded and compared before the next, so that they stay in the
/// first cache. Whole tiles of every size.
const BLOCK: usize = 24;

/// How many rows before its turn a centroid is asked for: reading it from memory
/// takes as long as decoding several rows.
const AHEAD: usize = 6;

/// Appends the vectors that `codes` and `packed` stand for to `out`, scaled to
/// length 1. A code beyond the last centroid (a damaged file) is read as the last.
///
/// # Panics
/// When `packed` does not hold `codes.len()` rows, or there are codes and no centroid.
pub fn reconstruct(
    centroids: &[f32],
    codes: &[u16],
    packed: &[u8],
    codec: &ResidualCodec,
    dim: usize,
    out: &mut Vec<f32>,
) {
    let packed = Packed::new(centroids, codes, packed, codec, dim);
    let start = out.len();
    out.resize(start + codes.len() * dim, 0.0);
    let mut scales = [0.0; BLOCK];
    let blocks = out[start..].chunks_mut((BLOCK * dim).max(1));
    for (first, rows) in (0..codes.len()).step_by(BLOCK).zip(blocks) {
        packed.decode(first..first + rows.len() / dim, rows, &mut scales);
        for (row, scale) in rows.chunks_exact_mut(dim).zip(scales) {
            row.iter_mut().for_each(|x| *x *= scale);
        }
    }
}

/// MaxSim of a query with the packed rows of one document, as [`reconstruct`]
/// followed by [`MaxSim::score`], but in small blocks and without allocation.
///
/// # Panics
/// As [`reconstruct`].
pub fn maxsim_packed(
    query: &mut MaxSim,
    centroids: &[f32],
    codes: &[u16],
    packed: &[u8],
    codec: &ResidualCodec,
) -> f32 {
    let dim = query.dim();
    let packed = Packed::new(centroids, codes, packed, codec, dim);
    query.start();
    let mut dense = std::mem::take(&mut query.decoded);
    let mut scales = std::mem::take(&mut query.scales);
    dense.resize(BLOCK * dim, 0.0);
    scales.resize(BLOCK, 0.0);
    for first in (0..codes.len()).step_by(BLOCK) {
        let rows = first..(first + BLOCK).min(codes.len());
        let (dense, scales) = (&mut dense[..rows.len() * dim], &mut scales[..rows.len()]);
        packed.decode(rows, dense, scales);
        query.meet(dense, Some(scales), false);
    }
    query.decoded = dense;
    query.scales = scales;
    query.sum()
}

/// Coded rows whose lengths fit.
#[derive(Clone, Copy)]
struct Packed<'a> {
    centroids: &'a [f32],
    last: usize,
    codes: &'a [u16],
    bytes: &'a [u8],
    row_bytes: usize,
    codec: &'a ResidualCodec,
    dim: usize,
}

impl<'a> Packed<'a> {
    fn new(
        centroids: &'a [f32],
        codes: &'a [u16],
        bytes: &'a [u8],
        codec: &'a ResidualCodec,
        dim: usize,
    ) -> Self {
        let k = assert_rows(centroids.len(), dim, "packed rows: centroids");
        assert!(k > 0 || codes.is_empty(), "packed rows: no centroids");
        let row_bits = dim * codec.bits as usize;
        assert!(
            row_bits.is_multiple_of(8),
            "packed rows: a row does not end at a byte"
        );
        let row_bytes = row_bits / 8;
        assert_eq!(
            bytes.len(),
            codes.len() * row_bytes,
            "packed rows: bytes and codes"
        );
        Self {
            centroids,
            last: k.saturating_sub(1),
            codes,
            bytes,
            row_bytes,
            codec,
            dim,
        }
    }

    #[inline(always)]
    fn centroid(&self, code: u16) -> &[f32] {
        &self.centroids[usize::from(code).min(self.last) * self.dim..][..self.dim]
    }

    /// Writes centroid + values of at most [`BLOCK`] rows to `out`, and to `scales` what
    /// gives them length 1.
    fn decode(&self, rows: Range<usize>, out: &mut [f32], scales: &mut [f32]) {
        match self.codec.bits {
            1 => decode_1(self, rows, out, scales),
            2 => decode_2(self, rows, out, scales),
            _ => decode_4(self, rows, out, scales),
        }
    }
}

simd! { fn decode_1(p: &Packed, rows: Range<usize>, out: &mut [f32], scales: &mut [f32]) = decode_1_body; }
simd! { fn decode_2(p: &Packed, rows: Range<usize>, out: &mut [f32], scales: &mut [f32]) = decode_2_body; }
simd! { fn decode_4(p: &Packed, rows: Range<usize>, out: &mut [f32], scales: &mut [f32]) = decode_4_body; }

#[inline(always)]
fn decode_1_body<V: Eight>(p: &Packed, rows: Range<usize>, out: &mut [f32], scales: &mut [f32]) {
    decode_rows::<V, 1>(p, rows, out, scales);
}

#[inline(always)]
fn decode_2_body<V: Eight>(p: &Packed, rows: Range<usize>, out: &mut [f32], scales: &mut [f32]) {
    decode_rows::<V, 2>(p, rows, out, scales);
}

#[inline(always)]
fn decode_4_body<V: Eight>(p: &Packed, rows: Range<usize>, out: &mut [f32], scales: &mut [f32]) {
    decode_rows::<V, 4>(p, rows, out, scales);
}

#[inline(always)]
fn decode_rows<V: Eight, const BITS: u32>(
    p: &Packed,
    rows: Range<usize>,
    out: &mut [f32],
    scales: &mut [f32],
) {
    let (low, high) = p.codec.table::<V>();
    let step = BITS as usize;
    let codes = &p.codes[rows.clone()];
    let mut later = p.codes[rows.start..].iter().skip(AHEAD);
    let bytes = &p.bytes[rows.start * p.row_bytes..];
    // Lanes of the sums of squares.
    let mut squares = [[0.0; 8]; BLOCK];
    let from = codes.iter().zip(bytes.chunks_exact(p.row_bytes.max(1)));
    let to = out.chunks_exact_mut(p.dim.max(1)).zip(&mut squares);
    for ((&code, bytes), (out, squares)) in from.zip(to) {
        if let Some(&code) = later.next() {
            V::prefetch(p.centroid(code));
        }
        let centroid = p.centroid(code);
        // Sums that do not wait for each other.
        let mut sums = [V::splat(0.0); 4];
        let (out_blocks, out) = out.as_chunks_mut::<32>();
        let (centroid_blocks, centroid) = centroid.as_chunks::<32>();
        let (bytes_blocks, bytes) = bytes.split_at(out_blocks.len() * 4 * step);
        let blocks = out_blocks.iter_mut().zip(centroid_blocks);
        for ((out, centroid), bytes) in blocks.zip(bytes_blocks.chunks_exact(4 * step)) {
            for (i, sum) in sums.iter_mut().enumerate() {
                // The 32-bit word with these eight codes, and where they begin in it.
                let (word, bit) = (i * step / 4, (i * step % 4 * 8) as u32);
                let word = &bytes[4 * word..][..4];
                let word = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
                let values = V::look_up::<BITS>(word, bit, low, high);
                let x = V::load(&centroid[8 * i..]).add(values);
                *sum = x.mul_add(x, *sum);
                x.store(&mut out[8 * i..]);
            }
        }
        let [a, b, c, d] = sums;
        a.add(b).add(c.add(d)).store(squares);
        for (d, (x, c)) in out.iter_mut().zip(centroid).enumerate() {
            *x = c + p.codec.value(bytes, d);
            squares[0] += *x * *x;
        }
    }
    // Apart, so that no row waits for the length of the one before.
    for (scale, squares) in scales.iter_mut().zip(&squares) {
        *scale = 1.0 / V::load(squares).sum().sqrt().max(1e-12);
    }
}

/// The codes of eight dimensions, whatever their bits.
#[inline(always)]
fn eight_codes(bytes: &[u8]) -> u32 {
    match *bytes {
        [a] => u32::from(a),
        [a, b] => u32::from(u16::from_le_bytes([a, b])),
        [a, b, c, d] => u32::from_le_bytes([a, b, c, d]),
        _ => unreachable!("1, 2 or 4 bits a dimension"),
    }
}

simd! { fn values_1(codec: &ResidualCodec, packed: &[u8], out: &mut [f32]) = values_1_body; }
simd! { fn values_2(codec: &ResidualCodec, packed: &[u8], out: &mut [f32]) = values_2_body; }
simd! { fn values_4(codec: &ResidualCodec, packed: &[u8], out: &mut [f32]) = values_4_body; }

#[inline(always)]
fn values_1_body<V: Eight>(codec: &ResidualCodec, packed: &[u8], out: &mut [f32]) {
    values::<V, 1>(codec, packed, out);
}

#[inline(always)]
fn values_2_body<V: Eight>(codec: &ResidualCodec, packed: &[u8], out: &mut [f32]) {
    values::<V, 2>(codec, packed, out);
}

#[inline(always)]
fn values_4_body<V: Eight>(codec: &ResidualCodec, packed: &[u8], out: &mut [f32]) {
    values::<V, 4>(codec, packed, out);
}

#[inline(always)]
fn values<V: Eight, const BITS: u32>(codec: &ResidualCodec, packed: &[u8], out: &mut [f32]) {
    let (low, high) = codec.table::<V>();
    let whole = out.len() / 8 * 8;
    for (out, bytes) in out
        .chunks_exact_mut(8)
        .zip(packed.chunks_exact(BITS as usize))
    {
        V::look_up::<BITS>(eight_codes(bytes), 0, low, high).store(out);
    }
    for (i, x) in out.iter_mut().enumerate().skip(whole) {
        *x = codec.value(packed, i);
    }
}

simd! { fn dot_1(codec: &ResidualCodec, packed: &[u8], row: &[f32]) -> f32 = dot_1_body; }
simd! { fn dot_2(codec: &ResidualCodec, packed: &[u8], row: &[f32]) -> f32 = dot_2_body; }
simd! { fn dot_4(codec: &ResidualCodec, packed: &[u8], row: &[f32]) -> f32 = dot_4_body; }

#[inline(always)]
fn dot_1_body<V: Eight>(codec: &ResidualCodec, packed: &[u8], row: &[f32]) -> f32 {
    product::<V, 1>(codec, packed, row)
}

#[inline(always)]
fn dot_2_body<V: Eight>(codec: &ResidualCodec, packed: &[u8], row: &[f32]) -> f32 {
    product::<V, 2>(codec, packed, row)
}

#[inline(always)]
fn dot_4_body<V: Eight>(codec: &ResidualCodec, packed: &[u8], row: &[f32]) -> f32 {
    product::<V, 4>(codec, packed, row)
}

#[inline(always)]
fn product<V: Eight, const BITS: u32>(codec: &ResidualCodec, packed: &[u8], row: &[f32]) -> f32 {
    let (low, high) = codec.table::<V>();
    let bytes = BITS as usize;
    let (sixteens, rest) = row.split_at(row.len() / 16 * 16);
    let (mut even, mut odd) = (V::splat(0.0), V::splat(0.0));
    for (row, packed) in sixteens
        .chunks_exact(16)
        .zip(packed.chunks_exact(2 * bytes))
    {
        let (first, second) = packed.split_at(bytes);
        let first = V::look_up::<BITS>(eight_codes(first), 0, low, high);
        let second = V::look_up::<BITS>(eight_codes(second), 0, low, high);
        even = first.mul_add(V::load(row), even);
        odd = second.mul_add(V::load(&row[8..]), odd);
    }
    let mut sum = even.add(odd).sum();
    for (i, x) in rest.iter().enumerate() {
        sum += x * codec.value(packed, sixteens.len() + i);
    }
    sum
}

simd! {
    fn encode_eights(codec: &ResidualCodec, eights: &[f32], out: &mut Vec<u8>) = encode_eights_body;
}

#[inline(always)]
fn encode_eights_body<V: Eight>(codec: &ResidualCodec, eights: &[f32], out: &mut Vec<u8>) {
    let (zero, one) = (V::splat(0.0), V::splat(1.0));
    for eight in eights.chunks_exact(8) {
        let x = V::load(eight);
        let mut buckets = zero;
        for &cutoff in &codec.cutoffs {
            buckets = buckets.add(V::splat(cutoff).if_less(x, one, zero));
        }
        let mut codes = 0;
        for (l, bucket) in (0..).zip(buckets.to_array()) {
            codes |= (bucket as u32) << (l * codec.bits);
        }
        out.extend_from_slice(&codes.to_le_bytes()[..codec.bits as usize]);
    }
}

#[cfg(test)]
mod tests;

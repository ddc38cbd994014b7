//! Small codes for vectors: PLAID's scalar codec of residuals, and 8-bit rows.
//!
//! A stored vector is the number of its nearest centroid `c` and, for every
//! dimension, which of `n = 2^bits` values stands for the residual `x - c`. One
//! list of values serves all dimensions. The vector that is read back is
//! `(c + values) / |c + values|`.
//!
//! Bit order: the code of dimension `d` is in bits `(d * bits) % 8 ..` of byte
//! `d * bits / 8` of the row, the least significant bit first.

use half::f16;

use crate::dot::{assert_rows, normalize_rows};
use crate::maxsim::MaxSim;

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

    /// Learns the tables from residuals of any rows, all entries pooled:
    /// cutoffs are their quantiles `i / n`, weights their quantiles
    /// `(i + 0.5) / n`. What is not finite is left out; of nothing, all are 0.
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
        let n = 1 << bits;
        let cutoffs = (1..n).map(|i| quantile(&sorted, f64::from(i) / f64::from(n)));
        let weights = (0..n).map(|i| quantile(&sorted, (f64::from(i) + 0.5) / f64::from(n)));
        Self::new(bits, cutoffs.collect(), weights.collect())
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
        for values in residual_rows.chunks_exact(per_byte) {
            let mut byte = 0;
            for (i, &x) in values.iter().enumerate() {
                let bucket = self.cutoffs.iter().filter(|&&c| c < x).count() as u8;
                byte |= bucket << (i as u32 * self.bits);
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
        let mask = (1u8 << self.bits) - 1;
        for (values, byte) in out.chunks_exact_mut(per_byte).zip(packed) {
            for (i, x) in values.iter_mut().enumerate() {
                *x = self.weights[usize::from(byte >> (i as u32 * self.bits) & mask)];
            }
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

/// Rows of signed bytes: per row an `f16` scale `s = max|x| / 127` (little
/// endian), then `round(x / s)` for every dimension. NaN is stored as 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Int8Codec {
    /// Length of a row.
    pub dim: usize,
}

impl Int8Codec {
    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        2 + self.dim
    }

    /// Appends the codes of `rows` (`[n, dim]`) to `out`.
    ///
    /// # Panics
    /// When `rows` is no whole number of rows.
    pub fn encode(&self, rows: &[f32], out: &mut Vec<u8>) {
        assert_rows(rows.len(), self.dim, "Int8Codec::encode");
        for row in rows.chunks_exact(self.dim.max(1)) {
            let max = row.iter().fold(0f32, |m, x| m.max(x.abs()));
            let scale = f16::from_f32((max / 127.0).min(f16::MAX.to_f32()));
            out.extend_from_slice(&scale.to_le_bytes());
            let scale = scale.to_f32();
            let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            out.extend(
                row.iter()
                    .map(|x| (x * inverse).round().clamp(-127.0, 127.0) as i8 as u8),
            );
        }
    }

    /// Writes the rows in `packed` to `out`.
    ///
    /// # Panics
    /// When the two do not hold the same whole number of rows.
    pub fn decode_into(&self, packed: &[u8], out: &mut [f32]) {
        let rows = assert_rows(packed.len(), self.row_bytes(), "Int8Codec::decode_into");
        assert_eq!(
            out.len(),
            rows * self.dim,
            "Int8Codec::decode_into: length of out"
        );
        let packed = packed.chunks_exact(self.row_bytes());
        for (out, packed) in out.chunks_exact_mut(self.dim.max(1)).zip(packed) {
            let scale = f16::from_le_bytes([packed[0], packed[1]]).to_f32();
            for (x, &byte) in out.iter_mut().zip(&packed[2..]) {
                *x = scale * f32::from(byte as i8);
            }
        }
    }

    /// MaxSim of a query with the packed rows of one document.
    ///
    /// # Panics
    /// When the query has another dimension or `packed` is no whole number of rows.
    pub fn maxsim(&self, query: &mut MaxSim, packed: &[u8]) -> f32 {
        assert_eq!(
            query.dim(),
            self.dim,
            "Int8Codec::maxsim: dimension of the query"
        );
        let rows = assert_rows(packed.len(), self.row_bytes(), "Int8Codec::maxsim");
        let mut dense = std::mem::take(&mut query.decoded);
        dense.resize(rows * self.dim, 0.0);
        self.decode_into(packed, &mut dense);
        let score = query.score(&dense);
        query.decoded = dense;
        score
    }
}

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
    let k = assert_rows(centroids.len(), dim, "reconstruct: centroids");
    assert!(k > 0 || codes.is_empty(), "reconstruct: no centroids");
    let start = out.len();
    out.resize(start + codes.len() * dim, 0.0);
    let rows = &mut out[start..];
    codec.decode_into(packed, rows);
    for (row, &code) in rows.chunks_exact_mut(dim.max(1)).zip(codes) {
        let c = usize::from(code).min(k - 1);
        crate::add_assign(row, &centroids[c * dim..(c + 1) * dim]);
    }
    normalize_rows(rows, dim);
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
    let mut dense = std::mem::take(&mut query.decoded);
    dense.clear();
    reconstruct(centroids, codes, packed, codec, query.dim(), &mut dense);
    let score = query.score(&dense);
    query.decoded = dense;
    score
}

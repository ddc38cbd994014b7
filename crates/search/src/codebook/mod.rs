//! The codebook of a store: how token vectors become few bytes, and which
//! centroid stands for each of them.
//!
//! A row `x` (L2-normalised, `[dim]`) is coded as the number of the centroid
//! with the largest inner product and its residual `r = x - c`. With `b` bits,
//! every entry of `r` is replaced by one of `2^b` weights, learnt from all residual
//! entries of rows that the clustering did not see: PLAID's quantiles
//! `(i + 1/2) / 2^b` (Santhanam, Khattab, Potts, Zaharia 2022), moved to where the
//! squared error is least. With eight bits the row
//! itself is scaled by its largest entry and rounded to signed bytes; its
//! centroid then serves candidate generation only. With one bit the row is a binary
//! code already, its numbers `±1 / √dim`, and nothing is lost; it has no use for a
//! centroid, since all codes are compared.
//!
//! The number of centroids follows PLAID, `2^floor(log2(16 sqrt(tokens)))`, up to
//! a limit that keeps coding affordable. Many centroids are learned in two
//! levels: about `sqrt(K)` groups, then each group by itself with its share of `K`.
//!
//! Centroids are rounded to half precision first and residuals are taken
//! against the rounded ones, so that what is stored is what is used.

mod bytes;
mod loss;
mod signs;
mod train;

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use keyfold_kernels::kmeans::{CoarseCentroids, nearest};
use keyfold_kernels::residual::{CodecError, Int8Codec, ResidualCodec, reconstruct};
use keyfold_kernels::{MaxSim, dot, maxsim_packed};

pub use loss::QuantizationLoss;
pub(crate) use signs::HammingQuery;
pub use train::{centroids_for, sample_size};

/// How many bits are kept of every entry of a token vector.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Bits {
    /// The sign of every entry: all of a binary code, and of binary codes only.
    One,
    /// Residuals of 2 bits.
    Two,
    /// Residuals of 4 bits.
    #[default]
    Four,
    /// The row itself, scaled, in signed bytes.
    Eight,
}

impl Bits {
    /// The number: 1, 2, 4 or 8.
    pub fn number(self) -> u32 {
        match self {
            Bits::One => 1,
            Bits::Two => 2,
            Bits::Four => 4,
            Bits::Eight => 8,
        }
    }
}

impl fmt::Display for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.number())
    }
}

impl FromStr for Bits {
    type Err = CodebookError;

    fn from_str(s: &str) -> Result<Self, CodebookError> {
        match s {
            "1" => Ok(Bits::One),
            "2" => Ok(Bits::Two),
            "4" => Ok(Bits::Four),
            "8" => Ok(Bits::Eight),
            _ => Err(CodebookError::Bits(s.to_owned())),
        }
    }
}

/// Why a codebook could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum CodebookError {
    /// Not a number of bits that can be stored.
    #[error("'{0}' is not a number of bits: choose 2, 4 or 8, or 1 for binary codes")]
    Bits(String),
    /// The sample holds no row, or not whole rows.
    #[error("{len} numbers are no sample of rows of {dim}: at least one whole row is needed")]
    Sample {
        /// How many numbers were given.
        len: usize,
        /// The length of a row.
        dim: usize,
    },
    /// Bytes that are not a codebook, or a damaged one.
    #[error("not a usable codebook: {0}")]
    Damaged(String),
    /// The codec refused its tables.
    #[error("not a usable codebook: {0}")]
    Codec(#[from] CodecError),
}

/// Coded rows, in the order they were given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Quantized {
    /// The centroid of every row, `[rows]`.
    pub codes: Vec<u16>,
    /// The codes of every row, `[rows, bytes_per_row]`.
    pub packed: Vec<u8>,
}

/// Centroids and codec, shared by the segments that were coded with it.
#[derive(Debug, Clone)]
pub struct Codebook {
    dim: usize,
    /// `dim`, raised until a packed row ends at a byte; the rest of a row is 0.
    width: usize,
    /// `[count, width]`, values of half precision.
    centroids: Vec<f32>,
    codec: Codec,
    /// The centroids in groups, made when they are first needed.
    coarse: OnceLock<CoarseCentroids>,
}

impl PartialEq for Codebook {
    fn eq(&self, other: &Self) -> bool {
        self.dim == other.dim && self.centroids == other.centroids && self.codec == other.codec
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Codec {
    Signs,
    Residual(ResidualCodec),
    Int8(Int8Codec),
}

/// Up to this many centroids are learned and assigned in one level.
const ONE_LEVEL: usize = 512;
/// The groups of centroids that coding uses are the same in every run.
const GROUPING_SEED: u64 = 0;

impl Codebook {
    /// Length of a row.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// How many bits are kept of every entry.
    pub fn bits(&self) -> Bits {
        match &self.codec {
            Codec::Signs => Bits::One,
            Codec::Residual(codec) if codec.bits() == 2 => Bits::Two,
            Codec::Residual(_) => Bits::Four,
            Codec::Int8(_) => Bits::Eight,
        }
    }

    /// Number of centroids, from 1 to 65536.
    pub fn count(&self) -> usize {
        self.centroids.len() / self.width
    }

    /// Length of a row of [`Codebook::centroids`]: [`Codebook::dim`], raised
    /// until a packed row ends at a byte. What is beyond `dim` is 0.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The centroids, `[count, width]`.
    pub fn centroids(&self) -> &[f32] {
        &self.centroids
    }

    /// Bytes of one row in [`Quantized::packed`].
    pub fn bytes_per_row(&self) -> usize {
        match &self.codec {
            Codec::Signs => self.width / 8,
            Codec::Residual(codec) => self.width * codec.bits() as usize / 8,
            Codec::Int8(codec) => codec.row_bytes(),
        }
    }

    /// Codes rows `[n, dim]`; a ragged end is ignored. The codes of a row do not
    /// depend on the rows around it.
    pub fn quantize(&self, rows: &[f32], threads: usize) -> Quantized {
        let mut wide = self.widen(rows);
        let codes = self.nearest(&wide, threads);
        let mut packed = Vec::with_capacity(codes.len() * self.bytes_per_row());
        match &self.codec {
            Codec::Signs => signs::encode(&wide, &mut packed),
            Codec::Residual(codec) => {
                subtract(&mut wide, &self.centroids, &codes, self.width);
                codec.encode(&wide, &mut packed);
            }
            Codec::Int8(codec) => codec.encode(&wide, &mut packed),
        }
        Quantized {
            // There are at most 65536 centroids.
            codes: codes.into_iter().map(|c| c as u16).collect(),
            packed,
        }
    }

    /// The nearest centroid of each row (`[n, width]`); of many centroids nearly
    /// the nearest.
    fn nearest(&self, rows: &[f32], threads: usize) -> Vec<u32> {
        if self.count() <= ONE_LEVEL {
            return nearest(rows, &self.centroids, self.width, threads);
        }
        // On this thread alone: while it waited for others, it could be given
        // work that waits for the groups.
        let group = || CoarseCentroids::new(&self.centroids, self.width, GROUPING_SEED, 1);
        self.coarse.get_or_init(group).nearest(rows, threads)
    }

    /// Appends the rows that `codes` and `packed` stand for to `out`, `[n, dim]`,
    /// of length 1 (up to what padding and eight bits round off).
    pub fn decode(&self, codes: &[u16], packed: &[u8], out: &mut Vec<f32>) {
        let mut wide = Vec::with_capacity(codes.len() * self.width);
        match &self.codec {
            Codec::Signs => signs::decode(packed, self.dim, &mut wide),
            Codec::Residual(codec) => {
                reconstruct(&self.centroids, codes, packed, codec, self.width, &mut wide);
            }
            Codec::Int8(codec) => {
                wide.resize(codes.len() * self.width, 0.0);
                codec.decode_into(packed, &mut wide);
            }
        }
        out.extend(without_padding(&wide, self.dim, self.width).iter());
    }

    /// Prepares query rows `[nq, dim]` for [`Codebook::maxsim`] and for products
    /// with [`Codebook::centroids`]: the same rows, `[nq, width]`.
    pub fn widen(&self, rows: &[f32]) -> Vec<f32> {
        widened(rows, self.dim, self.width)
    }

    /// MaxSim of a query (made of widened rows) with the coded rows of one
    /// passage; 0 if there are none.
    pub fn maxsim(&self, query: &mut MaxSim, codes: &[u16], packed: &[u8]) -> f32 {
        match &self.codec {
            Codec::Signs => {
                let mut rows = Vec::with_capacity(packed.len() * 8);
                signs::decode(packed, self.dim, &mut rows);
                query.score(&rows)
            }
            Codec::Residual(codec) => maxsim_packed(query, &self.centroids, codes, packed, codec),
            Codec::Int8(codec) => codec.maxsim(query, packed),
        }
    }

    /// The product of a widened query row with a coded row that is not scaled to
    /// length 1, given its product with the centroid of the row.
    pub(crate) fn product(
        &self,
        query: &[f32],
        centroid: f32,
        packed: &[u8],
        scratch: &mut Vec<f32>,
    ) -> f32 {
        match &self.codec {
            Codec::Signs => {
                scratch.clear();
                signs::decode(packed, self.dim, scratch);
                dot(query, scratch)
            }
            Codec::Residual(codec) => centroid + codec.dot(packed, query),
            Codec::Int8(codec) => {
                scratch.resize(self.width, 0.0);
                codec.decode_into(packed, scratch);
                dot(query, scratch)
            }
        }
    }
}

/// `dim`, raised until a row of so many bits ends at a byte.
fn width(dim: usize, bits: Bits) -> usize {
    dim.next_multiple_of(8 / bits.number() as usize)
}

/// The whole rows of `rows` (`[n, dim]`) as `[n, width]`, the rest 0.
fn widened(rows: &[f32], dim: usize, width: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(rows.len() / dim * width);
    for row in rows.chunks_exact(dim) {
        out.extend_from_slice(row);
        out.resize(out.len() + width - dim, 0.0);
    }
    out
}

/// The inverse of [`widened`].
fn without_padding(rows: &[f32], dim: usize, width: usize) -> Cow<'_, [f32]> {
    if dim == width {
        return Cow::Borrowed(rows);
    }
    let rows = rows.chunks_exact(width).flat_map(|row| &row[..dim]);
    Cow::Owned(rows.copied().collect())
}

/// Replaces rows by their residuals against the centroids of `codes`.
fn subtract(rows: &mut [f32], centroids: &[f32], codes: &[u32], width: usize) {
    for (row, &code) in rows.chunks_exact_mut(width).zip(codes) {
        let centroid = &centroids[code as usize * width..][..width];
        row.iter_mut().zip(centroid).for_each(|(x, c)| *x -= c);
    }
}

//! The codebook of a store: how token vectors become few bytes, and which
//! centroid stands for each of them.
//!
//! A row `x` (L2-normalised, `[dim]`) is coded as the number of the centroid
//! with the largest inner product and its residual `r = x - c`. With `b` bits,
//! every entry of `r` is replaced by one of `2^b` weights, the quantiles
//! `(i + 1/2) / 2^b` of all residual entries of rows that the clustering did not
//! see (PLAID; Santhanam, Khattab, Potts, Zaharia 2022). With eight bits the row
//! itself is scaled by its largest entry and rounded to signed bytes; its
//! centroid then serves candidate generation only.
//!
//! Centroids are rounded to half precision first and residuals are taken
//! against the rounded ones, so that what is stored is what is used.

use std::fmt;
use std::str::FromStr;

/// How many bits are kept of every entry of a token vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bits {
    /// Residuals of 2 bits.
    Two,
    /// Residuals of 4 bits.
    #[default]
    Four,
    /// The row itself, scaled, in signed bytes.
    Eight,
}

impl Bits {
    /// The number: 2, 4 or 8.
    pub fn number(self) -> u32 {
        match self {
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
    #[error("'{0}' is not a number of bits: choose 2, 4 or 8")]
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
#[derive(Debug, Clone, PartialEq)]
pub struct Codebook {
    dim: usize,
    bits: Bits,
    /// `[count, dim]`, values of half precision.
    centroids: Vec<f32>,
    /// `2^bits - 1` ascending borders between buckets; empty with eight bits.
    cutoffs: Vec<f32>,
    /// The value of each of the `2^bits` buckets; empty with eight bits.
    weights: Vec<f32>,
}

const MAGIC: &[u8; 4] = b"KFCB";
const VERSION: u32 = 1;

impl Codebook {
    /// Learns a codebook from sample rows `[n, dim]` (L2-normalised) for a store
    /// that will hold about `expected_tokens` rows. The same sample and seed
    /// give the same codebook, whatever `threads` is.
    ///
    /// Refuses an empty sample and one that is not whole rows.
    pub fn train(
        sample_rows: &[f32],
        dim: usize,
        bits: Bits,
        expected_tokens: u64,
        seed: u64,
        threads: usize,
    ) -> Result<Self, CodebookError> {
        if dim == 0 || sample_rows.is_empty() || !sample_rows.len().is_multiple_of(dim) {
            return Err(CodebookError::Sample {
                len: sample_rows.len(),
                dim,
            });
        }
        let _ = (expected_tokens, seed, threads);
        let rows = sample_rows.len() / dim;
        let count = rows.min(256);
        let mut centroids = Vec::with_capacity(count * dim);
        for i in 0..count {
            let row = i * rows / count;
            let row = &sample_rows[row * dim..(row + 1) * dim];
            centroids.extend(row.iter().map(|&x| half::f16::from_f32(x).to_f32()));
        }
        let mut book = Self {
            dim,
            bits,
            centroids,
            cutoffs: Vec::new(),
            weights: Vec::new(),
        };
        if bits != Bits::Eight {
            let mut residuals: Vec<f32> = Vec::new();
            for row in sample_rows.chunks_exact(dim).take(4096) {
                let c = book.centroid(book.nearest(row));
                residuals.extend(row.iter().zip(c).map(|(x, c)| x - c));
            }
            residuals.sort_by(f32::total_cmp);
            let n = 1usize << bits.number();
            let at = |q: f32| residuals[(q * (residuals.len() - 1) as f32) as usize];
            book.cutoffs = (1..n).map(|i| at(i as f32 / n as f32)).collect();
            book.weights = (0..n).map(|i| at((i as f32 + 0.5) / n as f32)).collect();
        }
        Ok(book)
    }

    /// Length of a row.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// How many bits are kept of every entry.
    pub fn bits(&self) -> Bits {
        self.bits
    }

    /// Number of centroids, at least 1 and at most 65536.
    pub fn count(&self) -> usize {
        self.centroids.len() / self.dim
    }

    /// The centroids, `[count, dim]`.
    pub fn centroids(&self) -> &[f32] {
        &self.centroids
    }

    /// Bytes of one row in [`Quantized::packed`].
    pub fn bytes_per_row(&self) -> usize {
        match self.bits {
            Bits::Two | Bits::Four => (self.dim * self.bits.number() as usize).div_ceil(8),
            Bits::Eight => 4 + self.dim,
        }
    }

    /// Codes rows `[n, dim]`; a ragged end is ignored.
    pub fn quantize(&self, rows: &[f32], threads: usize) -> Quantized {
        let _ = threads;
        let mut out = Quantized::default();
        for row in rows.chunks_exact(self.dim) {
            let code = self.nearest(row);
            out.codes.push(code as u16);
            let start = out.packed.len();
            out.packed.resize(start + self.bytes_per_row(), 0);
            let packed = &mut out.packed[start..];
            match self.bits {
                Bits::Eight => {
                    let scale = row.iter().fold(0f32, |m, x| m.max(x.abs())) / 127.0;
                    packed[..4].copy_from_slice(&scale.to_le_bytes());
                    for (p, x) in packed[4..].iter_mut().zip(row) {
                        *p = if scale > 0.0 { (x / scale).round() as i8 as u8 } else { 0 };
                    }
                }
                Bits::Two | Bits::Four => {
                    let per_byte = 8 / self.bits.number() as usize;
                    for (i, (x, c)) in row.iter().zip(self.centroid(code)).enumerate() {
                        let r = x - c;
                        let bucket = self.cutoffs.iter().filter(|&&b| b < r).count() as u8;
                        packed[i / per_byte] |= bucket << ((i % per_byte) as u32 * self.bits.number());
                    }
                }
            }
        }
        out
    }

    /// Appends the rows that `codes` and `packed` stand for to `out`, `[n, dim]`,
    /// L2-normalised.
    pub fn decode(&self, codes: &[u16], packed: &[u8], out: &mut Vec<f32>) {
        for (code, packed) in codes.iter().zip(packed.chunks_exact(self.bytes_per_row())) {
            let start = out.len();
            match self.bits {
                Bits::Eight => {
                    let scale = f32::from_le_bytes([packed[0], packed[1], packed[2], packed[3]]);
                    out.extend(packed[4..].iter().map(|&p| p as i8 as f32 * scale));
                }
                Bits::Two | Bits::Four => {
                    let bits = self.bits.number();
                    let per_byte = 8 / bits as usize;
                    let mask = (1u8 << bits) - 1;
                    for (i, c) in self.centroid(*code as usize).iter().enumerate() {
                        let bucket = packed[i / per_byte] >> ((i % per_byte) as u32 * bits) & mask;
                        out.push(c + self.weights[bucket as usize]);
                    }
                }
            }
            let row = &mut out[start..];
            let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-12);
            row.iter_mut().for_each(|x| *x /= norm);
        }
    }

    /// The codebook as versioned, checksummed bytes (see docs/FORMATS.md).
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(MAGIC);
        for n in [VERSION, self.bits.number(), self.dim as u32, self.count() as u32] {
            out.extend_from_slice(&n.to_le_bytes());
        }
        for &c in &self.centroids {
            out.extend_from_slice(&half::f16::from_f32(c).to_le_bytes());
        }
        for x in self.cutoffs.iter().chain(&self.weights) {
            out.extend_from_slice(&x.to_le_bytes());
        }
        let crc = crc32fast::hash(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads what [`Codebook::to_bytes`] wrote; refuses other versions and
    /// damaged bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CodebookError> {
        let damaged = |what: &str| CodebookError::Damaged(what.to_owned());
        let (body, crc) = bytes.split_last_chunk::<4>().ok_or_else(|| damaged("it is too short"))?;
        let header = body.get(..20).ok_or_else(|| damaged("it is too short"))?;
        if &header[..4] != MAGIC {
            return Err(damaged("it does not begin with KFCB"));
        }
        let word = |i: usize| {
            u32::from_le_bytes([header[i], header[i + 1], header[i + 2], header[i + 3]])
        };
        if word(4) != VERSION {
            return Err(CodebookError::Damaged(format!(
                "it has version {}, this program reads version {VERSION}; index again",
                word(4)
            )));
        }
        if crc32fast::hash(body) != u32::from_le_bytes(*crc) {
            return Err(damaged("its checksum is wrong"));
        }
        let bits: Bits = word(8).to_string().parse()?;
        let (dim, count) = (word(12) as usize, word(16) as usize);
        if dim == 0 || count == 0 || count > 1 << 16 {
            return Err(damaged("its sizes are impossible"));
        }
        let n = if bits == Bits::Eight { 0 } else { 1usize << bits.number() };
        let tables = if n == 0 { 0 } else { 2 * n - 1 };
        if (body.len() - 20) as u64 != count as u64 * dim as u64 * 2 + 4 * tables as u64 {
            return Err(damaged("its length does not fit its sizes"));
        }
        let (halves, floats) = body[20..].split_at(count * dim * 2);
        let centroids = halves
            .chunks_exact(2)
            .map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32())
            .collect();
        let mut floats = floats
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let cutoffs = floats.by_ref().take(n.saturating_sub(1)).collect();
        let weights = floats.collect();
        Ok(Self {
            dim,
            bits,
            centroids,
            cutoffs,
            weights,
        })
    }

    fn centroid(&self, code: usize) -> &[f32] {
        &self.centroids[code * self.dim..(code + 1) * self.dim]
    }

    fn nearest(&self, row: &[f32]) -> usize {
        let mut best = (0, f32::NEG_INFINITY);
        for (i, c) in self.centroids.chunks_exact(self.dim).enumerate() {
            let score: f32 = row.iter().zip(c).map(|(x, c)| x * c).sum();
            if score > best.1 {
                best = (i, score);
            }
        }
        best.0
    }
}

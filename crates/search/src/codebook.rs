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
//! The number of centroids follows PLAID, `2^floor(log2(16 sqrt(tokens)))`, up to
//! a limit that keeps coding affordable. Many centroids are learned in two
//! levels: about `sqrt(K)` groups, then each group by itself with its share of `K`.
//!
//! Centroids are rounded to half precision first and residuals are taken
//! against the rounded ones, so that what is stored is what is used.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use half::f16;
use keyfold_kernels::kmeans::{CoarseCentroids, KMeansConfig, kmeans, nearest};
use keyfold_kernels::residual::{CodecError, Int8Codec, ResidualCodec, reconstruct};
use keyfold_kernels::{MaxSim, TopK, dot, maxsim_packed, norm};
use rand::rngs::SmallRng;
use rand::{SeedableRng, seq::index};

/// How many bits are kept of every entry of a token vector.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize,
)]
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
    Residual(ResidualCodec),
    Int8(Int8Codec),
}

/// What coding costs in accuracy, measured on rows.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct QuantizationLoss {
    /// How many rows it was measured on.
    pub rows: usize,
    /// Mean cosine between a row and what is read back of it.
    pub mean_cosine: f32,
    /// Share of the ten nearest rows of a row that stay among its ten nearest
    /// when all others are read back from their codes.
    pub top10_agreement: f32,
}

const MAGIC: &[u8; 4] = b"KFCB";
const VERSION: u32 = 1;
/// Magic, version, bits, dimension, number of centroids.
const HEADER: usize = 20;

/// No more centroids than this: beyond, coding a passage would take longer than
/// encoding it, and the table of centroid scores would leave the cache.
const MAX_CENTROIDS: usize = 1 << 14;
/// Up to this many centroids are learned and assigned in one level.
const ONE_LEVEL: usize = 512;
/// Fewer points than this for a centroid say little about where it belongs.
const MIN_POINTS_PER_CENTROID: usize = 4;
/// Below this number of rows residuals are too few to learn values from.
const SMALL_SAMPLE: usize = 64;
/// The groups of centroids that coding uses are the same in every run.
const GROUPING_SEED: u64 = 0;

/// How many centroids a store of about `tokens` rows gets: PLAID's rule, up to a limit.
pub fn centroids_for(tokens: u64) -> usize {
    let wanted = (16.0 * (tokens.max(1) as f64).sqrt()) as usize;
    (1 << wanted.ilog2()).min(MAX_CENTROIDS)
}

/// How many sample rows [`Codebook::train`] makes good use of for a store of
/// about `tokens` rows: 40 for a centroid, and a twentieth more for the codec.
pub fn sample_size(tokens: u64) -> usize {
    let rows = centroids_for(tokens) * 42;
    rows.min(usize::try_from(tokens).unwrap_or(rows))
}

impl Codebook {
    /// Learns a codebook from sample rows `[n, dim]` (L2-normalised, in any
    /// order; of more than [`sample_size`] a random part is used) for a store that will hold about `expected_tokens` rows. The same
    /// sample and seed give the same codebook, whatever `threads` is.
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
        let width = width(dim, bits);
        let given = sample_rows.len() / dim;
        let n = given.min(sample_size(expected_tokens.max(given as u64)));
        let rows = some_rows(sample_rows, dim, width, n, seed);
        // PLAID holds out 5 %; of a small sample that would be nothing.
        let held_out = (n / 20).max(n.min(SMALL_SAMPLE) / 4).min(50_000);
        let (held_out, points) = rows.split_at(held_out * width);
        let count = centroids_for(expected_tokens)
            .min(points.len() / width / MIN_POINTS_PER_CENTROID)
            .max(1);
        let mut centroids = cluster(points, width, count, seed, threads);
        for x in &mut centroids {
            *x = f16::from_f32(*x).to_f32();
        }
        let codec = match bits {
            Bits::Eight => Codec::Int8(Int8Codec { dim: width }),
            Bits::Two | Bits::Four => {
                let mut residuals = held_out.to_vec();
                let codes = nearest(held_out, &centroids, width, threads);
                subtract(&mut residuals, &centroids, &codes, width);
                if n < SMALL_SAMPLE {
                    // So few residuals do not tell what later rows will need.
                    residuals.extend_from_slice(&rows);
                    residuals.extend(rows.iter().map(|x| -x));
                }
                let entries = without_padding(&residuals, dim, width);
                Codec::Residual(ResidualCodec::train(&entries, bits.number())?)
            }
        };
        Ok(Self {
            dim,
            width,
            centroids,
            codec,
            coarse: OnceLock::new(),
        })
    }

    /// Length of a row.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// How many bits are kept of every entry.
    pub fn bits(&self) -> Bits {
        match &self.codec {
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
        scratch.resize(self.width, 0.0);
        match &self.codec {
            Codec::Residual(codec) => {
                codec.decode_into(packed, scratch);
                centroid + dot(query, scratch)
            }
            Codec::Int8(codec) => {
                codec.decode_into(packed, scratch);
                dot(query, scratch)
            }
        }
    }

    /// Measures what coding loses on rows `[n, dim]`, on at most 4096 of them;
    /// `None` if there is no row.
    pub fn loss(&self, rows: &[f32], threads: usize) -> Option<QuantizationLoss> {
        let step = (rows.len() / self.dim).div_ceil(4096).max(1);
        let original: Vec<f32> = (rows.chunks_exact(self.dim).step_by(step))
            .flatten()
            .copied()
            .collect();
        let n = original.len() / self.dim;
        if n == 0 {
            return None;
        }
        let coded = self.quantize(&original, threads);
        let mut decoded = Vec::with_capacity(original.len());
        self.decode(&coded.codes, &coded.packed, &mut decoded);
        let pairs = original
            .chunks_exact(self.dim)
            .zip(decoded.chunks_exact(self.dim));
        let mean_cosine = pairs.map(|(a, b)| cosine(a, b)).sum::<f32>() / n as f32;
        Some(QuantizationLoss {
            rows: n,
            mean_cosine,
            top10_agreement: top10_agreement(&original, &decoded, self.dim),
        })
    }

    /// The codebook as versioned, checksummed bytes (see docs/FORMATS.md).
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        let sizes = [self.bits().number(), self.dim as u32, self.count() as u32];
        for n in [VERSION].into_iter().chain(sizes) {
            out.extend_from_slice(&n.to_le_bytes());
        }
        for &x in &self.centroids {
            out.extend_from_slice(&f16::from_f32(x).to_le_bytes());
        }
        if let Codec::Residual(codec) = &self.codec {
            for x in codec.cutoffs().iter().chain(codec.weights()) {
                out.extend_from_slice(&x.to_le_bytes());
            }
        }
        let checksum = crc32fast::hash(&out);
        out.extend_from_slice(&checksum.to_le_bytes());
        out
    }

    /// Reads what [`Codebook::to_bytes`] wrote; refuses other versions and
    /// damaged bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CodebookError> {
        let damaged = |what: &str| CodebookError::Damaged(what.to_owned());
        let short = || damaged("it is too short");
        let (all, checksum) = bytes.split_last_chunk::<4>().ok_or_else(short)?;
        let (header, body) = all.split_first_chunk::<HEADER>().ok_or_else(short)?;
        if &header[..4] != MAGIC {
            return Err(damaged("it does not begin with KFCB"));
        }
        if crc32fast::hash(all) != u32::from_le_bytes(*checksum) {
            return Err(damaged("its checksum is wrong"));
        }
        let sizes: Vec<u32> = header[4..].chunks_exact(4).map(word).collect();
        if sizes[0] != VERSION {
            return Err(CodebookError::Damaged(format!(
                "it has version {}, and this program reads version {VERSION}: index again",
                sizes[0]
            )));
        }
        let bits: Bits = sizes[1].to_string().parse()?;
        let (dim, count) = (sizes[2] as usize, sizes[3] as usize);
        if dim == 0 || dim > 1 << 20 || count == 0 || count > 1 << 16 {
            return Err(damaged("its sizes are impossible"));
        }
        let width = width(dim, bits);
        let tables = match bits {
            Bits::Eight => 0,
            Bits::Two | Bits::Four => (2 << bits.number()) - 1,
        };
        if body.len() as u64 != count as u64 * width as u64 * 2 + tables * 4 {
            return Err(damaged("its length does not fit its sizes"));
        }
        let (centroids, tables) = body.split_at(count * width * 2);
        let centroids: Vec<f32> = (centroids.chunks_exact(2))
            .map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32())
            .collect();
        if !centroids.iter().all(|x| x.is_finite()) {
            return Err(damaged("a centroid is not finite"));
        }
        let mut tables = tables.chunks_exact(4).map(|b| f32::from_bits(word(b)));
        let codec = match bits {
            Bits::Eight => Codec::Int8(Int8Codec { dim: width }),
            Bits::Two | Bits::Four => {
                let cutoffs = tables.by_ref().take((1 << bits.number()) - 1).collect();
                Codec::Residual(ResidualCodec::new(
                    bits.number(),
                    cutoffs,
                    tables.collect(),
                )?)
            }
        };
        Ok(Self {
            dim,
            width,
            centroids,
            codec,
            coarse: OnceLock::new(),
        })
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

/// `n` random rows in random order, widened.
fn some_rows(rows: &[f32], dim: usize, width: usize, n: usize, seed: u64) -> Vec<f32> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut out = Vec::with_capacity(n * width);
    for i in index::sample(&mut rng, rows.len() / dim, n) {
        out.extend_from_slice(&rows[i * dim..(i + 1) * dim]);
        out.resize(out.len() + width - dim, 0.0);
    }
    out
}

/// Replaces rows by their residuals against the centroids of `codes`.
fn subtract(rows: &mut [f32], centroids: &[f32], codes: &[u32], width: usize) {
    for (row, &code) in rows.chunks_exact_mut(width).zip(codes) {
        let centroid = &centroids[code as usize * width..][..width];
        row.iter_mut().zip(centroid).for_each(|(x, c)| *x -= c);
    }
}

/// `count` centroids of `points` (`[n, width]`, `n >= count`), in two levels when many.
fn cluster(points: &[f32], width: usize, count: usize, seed: u64, threads: usize) -> Vec<f32> {
    if count <= ONE_LEVEL {
        return kmeans(points, width, &KMeansConfig::new(count, seed), threads);
    }
    let groups = 1 << (count.ilog2() / 2);
    let tops = kmeans(points, width, &KMeansConfig::new(groups, seed), threads);
    let codes = nearest(points, &tops, width, threads);
    let mut members: Vec<Vec<f32>> = vec![Vec::new(); tops.len() / width];
    for (row, &code) in points.chunks_exact(width).zip(&codes) {
        members[code as usize].extend_from_slice(row);
    }
    let n = codes.len();
    let mut centroids = Vec::with_capacity(count * width);
    let mut before = 0;
    for (i, group) in members.iter().enumerate() {
        // Shares of `count` by size: what all groups up to here should have
        // together, less what they have.
        before += group.len() / width;
        let share = before * count / n - centroids.len() / width;
        let config = KMeansConfig::new(share, seed.wrapping_add(1 + i as u64));
        centroids.extend(kmeans(group, width, &config, threads));
    }
    centroids
}

fn word(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    dot(a, b) / (norm(a) * norm(b)).max(1e-12)
}

/// See [`QuantizationLoss::top10_agreement`]; up to 128 rows serve as queries.
fn top10_agreement(original: &[f32], decoded: &[f32], dim: usize) -> f32 {
    let n = original.len() / dim;
    let (mut same, mut all) = (0, 0);
    for q in (0..n).step_by(n.div_ceil(128)) {
        let query = &original[q * dim..(q + 1) * dim];
        let nearest = |rows: &[f32]| -> Vec<u64> {
            let mut top = TopK::new(10);
            for (i, row) in rows.chunks_exact(dim).enumerate().filter(|(i, _)| *i != q) {
                top.push(dot(query, row), i as u64);
            }
            top.into_sorted().into_iter().map(|(_, i)| i).collect()
        };
        let (exact, coded) = (nearest(original), nearest(decoded));
        same += exact.iter().filter(|i| coded.contains(i)).count();
        all += exact.len();
    }
    if all == 0 {
        1.0
    } else {
        same as f32 / all as f32
    }
}

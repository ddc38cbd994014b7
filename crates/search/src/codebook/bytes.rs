//! Codebooks as bytes, see docs/FORMATS.md.

use std::sync::OnceLock;

use half::f16;
use keyfold_kernels::residual::{Int8Codec, ResidualCodec};

use super::{Bits, Codebook, CodebookError, Codec, width};

const MAGIC: &[u8; 4] = b"KFCB";
const VERSION: u32 = 1;
/// Magic, version, bits, dimension, number of centroids.
const HEADER: usize = 20;

impl Codebook {
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
            Bits::One | Bits::Eight => 0,
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
            Bits::One => Codec::Signs,
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

fn word(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

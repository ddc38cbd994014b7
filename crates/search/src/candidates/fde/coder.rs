//! Encodings in few bytes, and what makes them, as it is stored.

use std::io;

use keyfold_kernels::{MaxSim, PQ_BLOCK, PqError, PqQuery, ProductQuantizer, TopK, add_assign};

use super::{Fde, FdeConfig, FdeError, FdeOptions, Projection};

const MAGIC: &[u8; 8] = b"KFFDEN1\n";

/// Documents on which the quantizer is trained, as far as there are any: at least
/// and at most.
const SAMPLE: std::ops::RangeInclusive<usize> = 512..=4096;
/// Of these, documents on which filling is tried, how many of them ask, with how many
/// rows, and for how many others.
const TRIED: usize = 256;
const ASKING: usize = 32;
const ASKING_ROWS: usize = 16;
const NEIGHBOURS: usize = 10;
/// Vectors of a document, about.
const VECTORS: usize = 128;

/// Makes the coded encodings of a store: planes, projections, mean, quantizer.
#[derive(Debug, Clone, PartialEq)]
pub struct FdeCoder {
    options: FdeOptions,
    fde: Fde,
    quantizer: ProductQuantizer,
}

/// Why there is no coder.
#[derive(Debug, thiserror::Error)]
pub enum CoderError {
    /// The encoding refused its parameters.
    #[error(transparent)]
    Fde(#[from] FdeError),
    /// The quantizer refused its own.
    #[error(transparent)]
    Pq(#[from] PqError),
    /// Bytes that are no coder.
    #[error("not a usable encoder: {0}")]
    Damaged(&'static str),
}

impl FdeCoder {
    /// How many documents [`FdeCoder::train`] is to be given, so that it takes
    /// about `memory` bytes.
    pub fn sample_size(dim: usize, options: &FdeOptions, memory: usize) -> usize {
        let each = size_of::<f32>() * (options.config.len(dim) + VECTORS * dim);
        let fits = memory / each.max(1);
        fits.clamp(*SAMPLE.start(), *SAMPLE.end())
    }

    /// Learns mean and quantizer from documents: `counts[i]` of `rows` (`[n, dim]`)
    /// are those of document `i`.
    pub fn train(
        rows: &[f32],
        counts: &[usize],
        dim: usize,
        options: &FdeOptions,
        seed: u64,
        threads: usize,
    ) -> Result<Self, CoderError> {
        options.config.check(dim)?;
        let mut mean = vec![0.0; dim];
        rows.chunks_exact(dim)
            .for_each(|row| add_assign(&mut mean, row));
        let scale = dim as f32 / rows.len().max(1) as f32;
        mean.iter_mut().for_each(|x| *x *= scale);
        let mean = options.center.centers(&mean).then_some(&mean[..]);
        let mut config = options.config.clone();
        if options.fill_auto {
            config.fill_empty_partitions = filling_helps(rows, counts, dim, &config, mean)?;
        }
        let fde = Fde::new(dim, config, mean)?;
        let mut encoded = vec![0.0; counts.len() * fde.len()];
        fde.documents(rows, counts, &mut encoded)?;
        let quantizer = ProductQuantizer::train(
            &encoded,
            fde.len(),
            group_of(options, &fde),
            options.bits,
            seed,
            threads,
        )?;
        Ok(Self {
            options: options.clone(),
            fde,
            quantizer,
        })
    }

    /// What the user chose.
    pub fn options(&self) -> &FdeOptions {
        &self.options
    }

    /// The encoding itself.
    pub fn fde(&self) -> &Fde {
        &self.fde
    }

    /// Bytes of the codes of [`PQ_BLOCK`] documents.
    pub fn block_bytes(&self) -> usize {
        self.quantizer.block_bytes()
    }

    /// The coded encodings of at most [`PQ_BLOCK`] documents, as one block.
    pub fn block(&self, rows: &[f32], counts: &[usize]) -> Result<Vec<u8>, FdeError> {
        let mut encoded = vec![0.0; counts.len() * self.fde.len()];
        self.fde.documents(rows, counts, &mut encoded)?;
        let groups = self.quantizer.groups();
        let mut codes = vec![0; counts.len() * groups];
        let documents = encoded.chunks_exact(self.fde.len());
        for (document, codes) in documents.zip(codes.chunks_exact_mut(groups)) {
            self.quantizer.encode(document, codes);
        }
        let mut block = vec![0; self.block_bytes()];
        self.quantizer.pack(&codes, &mut block);
        Ok(block)
    }

    /// Prepares a query (`[n, dim]`) for scanning blocks.
    pub fn query(&self, rows: &[f32]) -> Result<PqQuery, FdeError> {
        let query = self.fde.query(rows)?;
        let per_block = (query.width / self.quantizer.len_of_group()) as u32;
        let groups: Vec<u32> = query
            .blocks
            .iter()
            .flat_map(|b| b * per_block..(b + 1) * per_block)
            .collect();
        Ok(self.quantizer.query(&groups, &query.values))
    }

    /// As it is stored: see docs/FORMATS.md.
    pub fn to_bytes(&self) -> io::Result<Vec<u8>> {
        let header = serde_json::to_vec(&Header {
            dim: self.fde.dim,
            centred: !self.fde.mean.is_empty(),
            filled: Some(self.fde.config.fill_empty_partitions),
            options: self.options.clone(),
        })?;
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&(header.len() as u32).to_le_bytes());
        out.extend_from_slice(&header);
        for numbers in [
            &self.fde.mean[..],
            &self.fde.planes,
            &self.fde.projections,
            self.quantizer.centroids(),
        ] {
            out.extend(numbers.iter().flat_map(|x| x.to_le_bytes()));
        }
        for (place, sign) in &self.fde.last {
            out.extend_from_slice(&place.to_le_bytes());
            out.extend_from_slice(&sign.to_le_bytes());
        }
        Ok(out)
    }

    /// Reads [`FdeCoder::to_bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CoderError> {
        let damaged = CoderError::Damaged;
        let head = bytes.split_at_checked(12);
        let (magic, rest) = head.ok_or(damaged("it is too short"))?;
        if &magic[..8] != MAGIC {
            return Err(damaged("it has another form"));
        }
        let length = crate::store::u32_at(magic, 8) as usize;
        let parts = rest.split_at_checked(length);
        let (header, mut rest) = parts.ok_or(damaged("its header is cut off"))?;
        let header: Header =
            serde_json::from_slice(header).map_err(|_| damaged("its header cannot be read"))?;
        let (dim, options) = (header.dim, header.options);
        let mut c = options.config.clone();
        c.fill_empty_partitions = header.filled.unwrap_or(c.fill_empty_partitions);
        c.check(dim)?;
        let mut take = |n: usize| -> Result<Vec<f32>, CoderError> {
            let bytes = rest.split_off(..n.saturating_mul(4));
            Ok(floats(bytes.ok_or(damaged("it is cut off"))?).collect())
        };
        let of_identity = c.projection_type == Projection::Identity;
        let mean = take(if header.centred { dim } else { 0 })?;
        let planes = take(c.num_repetitions * c.num_simhash_projections * dim)?;
        let width = if of_identity { 0 } else { c.width(dim) };
        let projections = take(c.num_repetitions * width * dim)?;
        let centroids = take(c.len(dim) << options.bits.min(8))?;
        let places = match c.final_projection_dimension {
            Some(_) => c.inner_len(dim),
            None => 0,
        };
        if rest.len() != places * 8 {
            return Err(damaged("its length is wrong"));
        }
        let last = rest.chunks_exact(8).map(|pair| {
            let sign = floats(&pair[4..]).next().unwrap_or(f32::NAN);
            (crate::store::u32_at(pair, 0), sign)
        });
        let mean = header.centred.then_some(&mean[..]);
        let fde = Fde::with_matrices(dim, c, mean, planes, projections, last.collect())?;
        let group = group_of(&options, &fde);
        let quantizer = ProductQuantizer::new(fde.len(), group, options.bits, centroids)?;
        Ok(Self {
            options,
            fde,
            quantizer,
        })
    }
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Header {
    dim: usize,
    centred: bool,
    /// What was found of [`FdeOptions::fill_auto`]; else the options say it.
    #[serde(default)]
    filled: Option<bool>,
    options: FdeOptions,
}

/// Whether encodings with filled cells put nearer to the front what MaxSim puts first:
/// some documents of a sample ask for their ten neighbours among others.
fn filling_helps(
    rows: &[f32],
    counts: &[usize],
    dim: usize,
    config: &FdeConfig,
    mean: Option<&[f32]>,
) -> Result<bool, FdeError> {
    let counts = &counts[..counts.len().min(TRIED)];
    let mut documents = Vec::with_capacity(counts.len());
    let mut rest = rows;
    for count in counts {
        let (own, others) = rest.split_at_checked(count * dim).unwrap_or((rest, &[]));
        documents.push(own);
        rest = others;
    }
    let few = |rows: &[f32]| -> Vec<f32> {
        let n = rows.len() / dim;
        let some = rows
            .chunks_exact(dim)
            .step_by(n.div_ceil(ASKING_ROWS).max(1));
        some.flatten().copied().collect()
    };
    let step = documents.len().div_ceil(ASKING).max(1);
    let asking: Vec<(usize, Vec<f32>, Vec<usize>)> = (0..documents.len())
        .step_by(step)
        .map(|own| {
            let query = few(documents[own]);
            let mut scorer = MaxSim::new(&query, dim);
            let mut best = TopK::new(NEIGHBOURS);
            for (i, rows) in documents.iter().enumerate().filter(|(i, _)| *i != own) {
                best.push(scorer.score(rows), i as u64);
            }
            let best = best.into_sorted().into_iter().map(|(_, i)| i as usize);
            (own, query, best.collect())
        })
        .collect();
    let places = |fill: bool| -> Result<usize, FdeError> {
        let config = FdeConfig {
            fill_empty_partitions: fill,
            ..config.clone()
        };
        let fde = Fde::new(dim, config, mean)?;
        let encoded: Vec<Vec<f32>> = (documents.iter())
            .map(|rows| fde.document(rows))
            .collect::<Result<_, _>>()?;
        let mut sum = 0;
        for (own, query, best) in &asking {
            let query = fde.query(query)?;
            let scores: Vec<f32> = encoded.iter().map(|d| query.dot(d)).collect();
            for &wanted in best {
                let before = |(i, s): (usize, &f32)| i != *own && *s > scores[wanted];
                sum += scores.iter().enumerate().filter(|&e| before(e)).count();
            }
        }
        Ok(sum)
    };
    Ok(places(true)? < places(false)?)
}

/// Coordinates that share a code: as many as the user wants, or as divide a block.
fn group_of(options: &FdeOptions, fde: &Fde) -> usize {
    let (mut a, mut b) = (options.group, fde.block_width());
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a.max(1)
}

fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    let (words, _) = bytes.as_chunks::<4>();
    words.iter().map(|w| f32::from_le_bytes(*w))
}

impl FdeOptions {
    /// Bytes of the codes of one document of vectors of `dim` numbers, about.
    pub fn bytes(&self, dim: usize) -> usize {
        let c: &FdeConfig = &self.config;
        c.len(dim) * self.bits as usize / 8 / self.group.max(1)
    }
}

/// Documents whose codes lie together.
pub(crate) const BLOCK: usize = PQ_BLOCK;

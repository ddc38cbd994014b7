//! Learning centroids and codec from a sample.

use std::sync::OnceLock;

use half::f16;
use keyfold_kernels::kmeans::{KMeansConfig, kmeans, nearest};
use keyfold_kernels::residual::{Int8Codec, ResidualCodec};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::index;

use super::{Bits, Codebook, CodebookError, Codec, ONE_LEVEL, subtract, width, without_padding};

/// No more centroids than this: beyond, coding a passage would take longer than
/// encoding it, and the table of centroid scores would leave the cache.
const MAX_CENTROIDS: usize = 1 << 14;
/// Fewer points than this for a centroid say little about where it belongs.
const MIN_POINTS_PER_CENTROID: usize = 4;
/// Below this number of rows residuals are too few to learn values from.
const SMALL_SAMPLE: usize = 64;

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
            Bits::One => Codec::Signs,
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

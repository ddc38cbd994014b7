//! Product quantisation (Jégou, Douze, Schmid 2011): a long vector is cut into
//! groups of a few coordinates, and of each group only the number of the nearest
//! of 16 or 256 centroids is kept. The inner product with a query is a sum of
//! entries of a table that is made once for the query,
//! `<q, x> ≈ Σ_g T[g][code of x in g]` with `T[g][c] = <q_g, c>`.
//!
//! Codes lie in blocks of [`PQ_BLOCK`] vectors, group by group, so that a query
//! that is 0 in a group does not read it. With 16 centroids, a block holds two
//! codes a byte: vector `i` in the low half of byte `i`, vector `32 + i` in the
//! high half; the tables are rounded to bytes, and one shuffle of a register
//! looks up 32 vectors (André, Kermarrec, Le Scouarnec 2015, *Cache locality is
//! not enough*). The rounding moves a score by at most half a step for each group.

mod scan;

use rand::rngs::SmallRng;
use rand::seq::index;
use rand::{Rng, SeedableRng};
use rayon::prelude::*;

use crate::dot::assert_rows;
use crate::vector::{Eight, simd};
pub use scan::PqQuery;

/// Vectors whose codes lie together.
pub const PQ_BLOCK: usize = 64;

/// Rounds of training.
const ROUNDS: usize = 8;

/// Why a quantizer cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PqError {
    /// Only 4 and 8 bits exist.
    #[error("a code of a product quantizer has 4 or 8 bits, not {0}")]
    Bits(u32),
    /// The vectors are no whole number of groups.
    #[error("{dim} coordinates cannot be cut into groups of {len}")]
    Groups {
        /// Coordinates of a vector.
        dim: usize,
        /// Coordinates of a group.
        len: usize,
    },
    /// The centroids are too few, too many or not numbers.
    #[error("the centroids of the product quantizer are damaged")]
    Centroids,
}

/// Centroids of every group. A long vector is cut into groups of a few coordinates,
/// and of each group only the number of the nearest centroid is kept.
#[derive(Debug, Clone, PartialEq)]
pub struct ProductQuantizer {
    bits: u32,
    len: usize,
    /// `[groups, len, 2^bits]`: one coordinate of all centroids together.
    centroids: Vec<f32>,
}

impl ProductQuantizer {
    /// Learns `2^bits` centroids for each group of `len` coordinates from `points`
    /// (`[n, dim]`) by k-means, 8 rounds from random points. Of no points, all
    /// centroids are 0. Uses at most `threads` threads of the current rayon pool;
    /// the result does not depend on their number.
    pub fn train(
        points: &[f32],
        dim: usize,
        len: usize,
        bits: u32,
        seed: u64,
        threads: usize,
    ) -> Result<Self, PqError> {
        check(dim, len, bits)?;
        let k = 1usize << bits;
        let n = assert_rows(points.len(), dim, "ProductQuantizer::train");
        let mut centroids = vec![0.0; dim * k];
        let group = |(g, out): (usize, &mut [f32])| {
            let part = |row: &[f32]| row[g * len..][..len].to_vec();
            let own: Vec<f32> = points.chunks_exact(dim).flat_map(part).collect();
            learn(&own, len, out, seed.wrapping_add(g as u64));
        };
        if n > 0 {
            let each = dim / len / threads.max(1) + 1;
            if threads <= 1 {
                centroids
                    .chunks_exact_mut(len * k)
                    .enumerate()
                    .for_each(group);
            } else {
                let groups = centroids.par_chunks_exact_mut(len * k).enumerate();
                groups.with_min_len(each.div_ceil(4)).for_each(group);
            }
        }
        Ok(Self {
            bits,
            len,
            centroids,
        })
    }

    /// From [`ProductQuantizer::centroids`].
    pub fn new(dim: usize, len: usize, bits: u32, centroids: Vec<f32>) -> Result<Self, PqError> {
        check(dim, len, bits)?;
        let fits = dim.checked_shl(bits) == Some(centroids.len());
        if !fits || centroids.iter().any(|x| !x.is_finite()) {
            return Err(PqError::Centroids);
        }
        Ok(Self {
            bits,
            len,
            centroids,
        })
    }

    /// `[groups, len, 2^bits]`: for every group one coordinate of all centroids
    /// after the other.
    pub fn centroids(&self) -> &[f32] {
        &self.centroids
    }

    /// Bits of a code: 4 or 8.
    pub fn bits(&self) -> u32 {
        self.bits
    }

    /// Coordinates of a group.
    pub fn len_of_group(&self) -> usize {
        self.len
    }

    /// Number of groups.
    pub fn groups(&self) -> usize {
        self.centroids.len() / (self.len << self.bits)
    }

    /// Bytes of a block of [`PQ_BLOCK`] vectors.
    pub fn block_bytes(&self) -> usize {
        self.groups() * PQ_BLOCK * self.bits as usize / 8
    }

    fn of_group(&self, g: usize) -> &[f32] {
        let size = self.len << self.bits;
        &self.centroids[g * size..][..size]
    }

    /// The code of every group of `vector`.
    ///
    /// # Panics
    /// When `vector` or `codes` have another length.
    pub fn encode(&self, vector: &[f32], codes: &mut [u8]) {
        assert_eq!(vector.len(), self.groups() * self.len, "pq: vector");
        assert_eq!(codes.len(), self.groups(), "pq: codes");
        let parts = vector.chunks_exact(self.len).zip(codes).enumerate();
        for (g, (part, code)) in parts {
            *code = nearest(part, self.of_group(g)) as u8;
        }
    }

    /// The vector that codes stand for.
    ///
    /// # Panics
    /// When `codes` are not one for each group.
    pub fn decode(&self, codes: &[u8]) -> Vec<f32> {
        assert_eq!(codes.len(), self.groups(), "pq: codes");
        let k = 1usize << self.bits;
        let coordinate = |(g, &code): (usize, &u8)| {
            let of_group = self.of_group(g);
            let code = usize::from(code) & (k - 1);
            (0..self.len).map(move |d| of_group[d * k + code])
        };
        codes.iter().enumerate().flat_map(coordinate).collect()
    }

    /// Lays the codes of at most [`PQ_BLOCK`] vectors (`[n, groups]`) out as a block.
    ///
    /// # Panics
    /// When `codes` are more, or `block` is no block.
    pub fn pack(&self, codes: &[u8], block: &mut [u8]) {
        let groups = self.groups();
        assert_eq!(block.len(), self.block_bytes(), "pq: block");
        assert!(codes.len() <= PQ_BLOCK * groups, "pq: codes of a block");
        block.fill(0);
        let half = PQ_BLOCK / 2;
        for (v, codes) in codes.chunks_exact(groups).enumerate() {
            for (g, &code) in codes.iter().enumerate() {
                if self.bits == 8 {
                    block[g * PQ_BLOCK + v] = code;
                } else {
                    block[g * half + v % half] |= (code & 15) << (4 * (v / half));
                }
            }
        }
    }

    /// Prepares a query that is 0 but in some groups: `values` (`[groups.len(), len]`)
    /// are its coordinates there.
    ///
    /// # Panics
    /// When the lengths do not fit or there is no such group.
    pub fn query(&self, groups: &[u32], values: &[f32]) -> PqQuery {
        assert_eq!(values.len(), groups.len() * self.len, "pq: query");
        let k = 1usize << self.bits;
        let mut table = vec![0.0; groups.len() * k];
        let parts = groups.iter().zip(values.chunks_exact(self.len));
        for ((&g, values), table) in parts.zip(table.chunks_exact_mut(k)) {
            let centroids = self.of_group(g as usize).chunks_exact(k);
            for (&x, centroids) in values.iter().zip(centroids) {
                table
                    .iter_mut()
                    .zip(centroids)
                    .for_each(|(t, c)| *t += x * c);
            }
        }
        PqQuery::new(self, groups, table)
    }
}

fn check(dim: usize, len: usize, bits: u32) -> Result<(), PqError> {
    if bits != 4 && bits != 8 {
        return Err(PqError::Bits(bits));
    }
    if len == 0 || dim == 0 || !dim.is_multiple_of(len) {
        return Err(PqError::Groups { dim, len });
    }
    Ok(())
}

/// The nearest of centroids (`[len, k]`, `k` a multiple of 8) by Euclidean
/// distance, the first of equals.
fn nearest(x: &[f32], centroids: &[f32]) -> usize {
    nearest_checked(x, centroids)
}

simd! { fn nearest_checked(x: &[f32], centroids: &[f32]) -> usize = nearest_body; }

#[inline(always)]
fn nearest_body<V: Eight>(x: &[f32], centroids: &[f32]) -> usize {
    let k = centroids.len() / x.len();
    let (mut best, mut place) = (V::splat(f32::INFINITY), V::splat(0.0));
    for first in (0..k).step_by(8) {
        let mut distance = V::splat(0.0);
        for (d, &x) in x.iter().enumerate() {
            let c = V::load(&centroids[d * k + first..]).sub(V::splat(x));
            distance = c.mul_add(c, distance);
        }
        place = distance.if_less(best, V::splat(first as f32), place);
        best = distance.min(best);
    }
    let (best, place) = (best.to_array(), place.to_array());
    let mut found = (f32::INFINITY, 0);
    for l in 0..8 {
        let at = place[l] as usize + l;
        if best[l] < found.0 || (best[l] == found.0 && at < found.1) {
            found = (best[l], at);
        }
    }
    found.1
}

/// k-means of `points` (`[n, len]`, at least one) into `centroids` (`[len, k]`).
fn learn(points: &[f32], len: usize, centroids: &mut [f32], seed: u64) {
    let (n, k) = (points.len() / len, centroids.len() / len);
    let mut rng = SmallRng::seed_from_u64(seed);
    let set = |centroids: &mut [f32], c: usize, point: usize| {
        for d in 0..len {
            let x = points[point * len + d];
            centroids[d * k + c] = if x.is_finite() { x } else { 0.0 };
        }
    };
    for (c, point) in index::sample(&mut rng, n, k.min(n)).into_iter().enumerate() {
        set(centroids, c, point);
    }
    for c in n..k {
        set(centroids, c, c % n);
    }
    for _ in 0..ROUNDS {
        let mut counts = vec![0u32; k];
        let mut sums = vec![0.0; len * k];
        for point in points.chunks_exact(len) {
            if !point.iter().all(|x| x.is_finite()) {
                continue;
            }
            let c = nearest(point, centroids);
            counts[c] += 1;
            for (d, x) in point.iter().enumerate() {
                sums[d * k + c] += x;
            }
        }
        for (c, &count) in counts.iter().enumerate() {
            if count == 0 {
                set(centroids, c, rng.random_range(0..n));
                continue;
            }
            for d in 0..len {
                centroids[d * k + c] = sums[d * k + c] / count as f32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::scan::{scan_4, scan_4_portable};
    use super::*;
    use crate::dot;
    use crate::vector::Portable;
    use proptest::prelude::*;
    use rand::Rng;

    fn numbers(n: usize, seed: u64) -> Vec<f32> {
        let mut rng = SmallRng::seed_from_u64(seed);
        (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn a_scan_gives_the_products_with_what_the_codes_stand_for(
            bits in prop_oneof![Just(4u32), Just(8)],
            len in 1usize..6,
            groups in 1usize..700,
            n in 1usize..70,
            seed: u64,
        ) {
            let dim = len * groups;
            let points = numbers(n * dim, seed);
            // Any centroids will do.
            let pq = ProductQuantizer::new(dim, len, bits, numbers(dim << bits, !seed)).unwrap();
            let used: Vec<u32> = (0..groups as u32).filter(|g| (seed >> (g % 50)) & 1 == 1).collect();
            let values = numbers(used.len() * len, seed ^ 5);
            let query = pq.query(&used, &values);

            let mut blocks = Vec::new();
            let mut want = Vec::new();
            for points in points.chunks(PQ_BLOCK * dim) {
                let mut codes = vec![0; points.len() / len];
                for (point, codes) in points.chunks(dim).zip(codes.chunks_mut(groups)) {
                    pq.encode(point, codes);
                    let decoded = pq.decode(codes);
                    let of_group = |(&g, values): (&u32, &[f32])| {
                        dot(&decoded[g as usize * len..][..len], values)
                    };
                    want.push(used.iter().zip(values.chunks(len)).map(of_group).sum::<f32>());
                }
                let start = blocks.len();
                blocks.resize(start + pq.block_bytes(), 0);
                pq.pack(&codes, &mut blocks[start..]);
            }
            let mut out = vec![0.0; blocks.len() / pq.block_bytes() * PQ_BLOCK];
            query.scan(&blocks, &mut out);
            let slack = 1e-3 + 0.5 * query.step * used.len() as f32;
            for (got, want) in out.iter().zip(&want) {
                prop_assert!((got - want).abs() <= slack, "{got} {want} {slack}");
            }
        }

        #[test]
        fn the_portable_twins_agree(groups in 1usize..600, seed: u64) {
            let mut rng = SmallRng::seed_from_u64(seed);
            let block: Vec<u8> = (0..groups * 32).map(|_| rng.random()).collect();
            // The largest entries too, many of them.
            let tables: Vec<u8> = (0..groups * 16).map(|_| rng.random::<u8>() | 0xf0).collect();
            let all: Vec<u32> = (0..groups as u32).rev().collect();
            let (mut here, mut portable) = ([1; PQ_BLOCK], [2; PQ_BLOCK]);
            scan_4(&all, &tables, &block, &mut here);
            scan_4_portable(&all, &tables, &block, &mut portable);
            prop_assert_eq!(here, portable);

            let (x, centroids) = (numbers(3, seed), numbers(3 * 16, !seed));
            prop_assert_eq!(nearest(&x, &centroids), nearest_body::<Portable>(&x, &centroids));
        }

        #[test]
        fn the_code_is_that_of_the_nearest_centroid(len in 1usize..9, seed: u64) {
            let (x, centroids) = (numbers(len, seed), numbers(len * 256, !seed));
            let distance = |c: usize| -> f32 {
                (0..len).map(|d| (x[d] - centroids[d * 256 + c]).powi(2)).sum()
            };
            let found = distance(nearest(&x, &centroids));
            for c in 0..256 {
                prop_assert!(found <= distance(c) + 1e-6);
            }
        }
    }

    #[test]
    fn training_finds_the_clusters_of_every_group() {
        // Two groups of two, each point near one of 16 places.
        let mut rng = SmallRng::seed_from_u64(1);
        let mut points = Vec::new();
        for i in 0..800usize {
            for shift in [0, 5] {
                let place = (i * 7 + shift * (i / 16)) % 16;
                let at = [(place % 4) as f32, (place / 4) as f32];
                points.extend(at.map(|x| x + rng.random_range(-0.01..0.01)));
            }
        }
        let error = |pq: &ProductQuantizer| -> f32 {
            let mut codes = [0; 2];
            let of_point = |p: &[f32]| {
                pq.encode(p, &mut codes);
                let decoded = pq.decode(&codes);
                p.iter()
                    .zip(decoded)
                    .map(|(x, y)| (x - y).powi(2))
                    .sum::<f32>()
            };
            points.chunks(4).map(of_point).sum::<f32>() / 800.0
        };
        let pq = ProductQuantizer::train(&points, 4, 2, 4, 3, 1).unwrap();
        // Random points leave some places without a centroid: up to 1 each.
        assert!(error(&pq) < 0.5, "{}", error(&pq));
        let many = ProductQuantizer::train(&points, 4, 2, 8, 3, 2).unwrap();
        assert!(error(&many) < 1e-3, "{}", error(&many));
        assert_eq!(
            many,
            ProductQuantizer::train(&points, 4, 2, 8, 3, 1).unwrap()
        );
    }

    #[test]
    fn odd_input() {
        let pq = |dim, len, bits| ProductQuantizer::train(&[], dim, len, bits, 0, 1);
        assert_eq!(pq(4, 2, 5), Err(PqError::Bits(5)));
        assert_eq!(pq(5, 2, 4), Err(PqError::Groups { dim: 5, len: 2 }));
        assert_eq!(pq(0, 0, 4), Err(PqError::Groups { dim: 0, len: 0 }));
        assert_eq!(pq(4, 2, 4).unwrap().decode(&[3, 9]), [0.0; 4]);
        assert_eq!(
            ProductQuantizer::new(2, 2, 4, vec![0.0; 31]),
            Err(PqError::Centroids)
        );
        assert_eq!(
            ProductQuantizer::new(2, 2, 4, vec![f32::NAN; 32]),
            Err(PqError::Centroids)
        );
        // Few points, and such that are none.
        let few = [1.0, f32::NAN, f32::INFINITY, 2.0, 3.0, 4.0];
        let pq = ProductQuantizer::train(&few, 2, 2, 8, 0, 1).unwrap();
        let mut code = [0];
        pq.encode(&[3.0, 4.0], &mut code);
        assert_eq!(pq.decode(&code), [3.0, 4.0]);
        // A query that is 0 everywhere.
        let mut out = [1.0; PQ_BLOCK];
        pq.query(&[], &[])
            .scan(&vec![0; pq.block_bytes()], &mut out);
        assert_eq!(out, [0.0; PQ_BLOCK]);
    }
}

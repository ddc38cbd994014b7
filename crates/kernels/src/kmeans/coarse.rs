//! Assignment in two levels: first to groups of centroids, then inside the best few.

use super::nearest::{Search, in_parallel};
use super::{KMeansConfig, kmeans};
use crate::dot::{assert_rows, norm};
use crate::lanes::{self, Lanes, Matrix, Rows};
use crate::norms::maximum;
use crate::vector::{Eight, simd};

/// A point looks into every group whose centre's product with it is less than
/// this times the point's length below that of the best group. On token vectors
/// (128 dimensions, 8192 centroids) that finds the nearest centroid for 98 % of
/// the points, by products with 600 rows.
const MARGIN: f32 = 0.22;

/// Points that are worked on at once, so that those who look into one group
/// make a block worth the while.
const BLOCK: usize = 4096;

/// Centroids in groups, so that a vector is compared with the centroids of the
/// few groups nearest to it instead of all. Approximate, and many times faster
/// than [`nearest`](super::nearest()) for thousands of centroids.
#[derive(Debug, Clone)]
pub struct CoarseCentroids {
    dim: usize,
    k: usize,
    /// Centres of the groups.
    centres: Lanes,
    groups: Vec<Group>,
}

#[derive(Debug, Clone)]
struct Group {
    /// Which centroids they are.
    ids: Vec<u32>,
    rows: Lanes,
}

impl CoarseCentroids {
    /// Groups `centroids` (`[k, dim]`).
    ///
    /// # Panics
    /// When `centroids` is no whole number of rows.
    pub fn new(centroids: &[f32], dim: usize, seed: u64, threads: usize) -> Self {
        let k = assert_rows(centroids.len(), dim, "CoarseCentroids::new");
        // With g groups a point meets g rows and about 8 k / g: least at √(8 k).
        let groups = (8.0 * k as f64).sqrt().ceil() as usize;
        let config = KMeansConfig::new(groups, seed);
        let centres = kmeans(centroids, dim, &config, threads);
        let mut members = vec![Vec::new(); centres.len() / dim.max(1)];
        for (id, group) in (0..).zip(super::nearest(centroids, &centres, dim, threads)) {
            members[group as usize].push(id);
        }
        let group = |ids: Vec<u32>| {
            let row = |&id: &u32| &centroids[id as usize * dim..][..dim];
            let rows = ids.iter().map(row).collect::<Vec<_>>().concat();
            Group {
                rows: Lanes::new(&rows, dim, ids.len(), dim, dim),
                ids,
            }
        };
        Self {
            dim,
            k,
            centres: Lanes::new(&centres, dim, members.len(), dim, dim),
            groups: members.into_iter().map(group).collect(),
        }
    }

    /// As [`nearest`](super::nearest()), but not always the very nearest.
    ///
    /// # Panics
    /// When `points` is no whole number of rows, or there are points and no centroid.
    pub fn nearest(&self, points: &[f32], threads: usize) -> Vec<u32> {
        let n = assert_rows(points.len(), self.dim, "CoarseCentroids::nearest");
        assert!(
            n == 0 || self.k > 0,
            "CoarseCentroids::nearest: no centroids"
        );
        in_parallel(points, self.dim, threads, |points, codes| {
            let mut scratch = Scratch::default();
            let blocks = points.chunks(BLOCK * self.dim).zip(codes.chunks_mut(BLOCK));
            for (points, codes) in blocks {
                self.block(points, codes, &mut scratch);
            }
        })
    }

    /// Assigns some points. Each group meets, together, all points that look into it.
    fn block(&self, points: &[f32], codes: &mut [u32], scratch: &mut Scratch) {
        let (n, groups) = (codes.len(), self.groups.len());
        let Scratch {
            scores,
            visitors,
            best,
            search,
        } = scratch;
        visitors.resize_with(groups, Vec::new);
        visitors.iter_mut().for_each(Vec::clear);
        scores.resize(n * groups, 0.0);
        let mut rows = Rows {
            rows: points,
            stride: self.dim,
            count: n,
            places: None,
            far: false,
        };
        products(rows, &self.centres, groups, scores);
        let pairs = scores
            .chunks_exact(groups)
            .zip(points.chunks_exact(self.dim));
        for (i, (scores, point)) in (0..).zip(pairs) {
            visit(scores, MARGIN * norm(point), i, visitors);
        }
        best.clear();
        best.resize(n, f32::NEG_INFINITY);
        for (group, visitors) in self.groups.iter().zip(visitors) {
            rows.count = visitors.len();
            rows.places = Some(visitors);
            search.run(rows, &group.rows, |v, found| {
                let i = visitors[v] as usize;
                if let Some((row, score)) = found
                    && score > best[i]
                {
                    best[i] = score;
                    codes[i] = group.ids[row];
                }
            });
        }
    }
}

/// Memory of [`CoarseCentroids::block`].
#[derive(Default)]
struct Scratch {
    /// `[n, groups]`: products of points with centres.
    scores: Vec<f32>,
    /// The points that look into each group.
    visitors: Vec<Vec<u32>>,
    /// Best product of each point so far.
    best: Vec<f32>,
    search: Search,
}

simd! {
    /// Enters point `i` as visitor of the groups whose score is nearer to the
    /// greatest than `margin`.
    fn visit(scores: &[f32], margin: f32, i: u32, visitors: &mut [Vec<u32>]) = visit_body;
}

#[inline(always)]
fn visit_body<V: Eight>(scores: &[f32], margin: f32, i: u32, visitors: &mut [Vec<u32>]) {
    let bound = maximum::<V>(scores) - margin;
    let eights = scores.chunks_exact(8);
    let whole = scores.len() / 8 * 8;
    for (first, eight) in (0..).step_by(8).zip(eights) {
        let mut mask = V::splat(bound).less_mask(V::load(eight));
        while mask != 0 {
            visitors[first + mask.trailing_zeros() as usize].push(i);
            mask &= mask - 1;
        }
    }
    for (group, &score) in scores.iter().enumerate().skip(whole) {
        if score > bound {
            visitors[group].push(i);
        }
    }
}

simd! {
    fn products(points: Rows, centres: &Lanes, groups: usize, out: &mut [f32]) = products_body;
}

#[inline(always)]
fn products_body<V: Eight>(points: Rows, centres: &Lanes, groups: usize, out: &mut [f32]) {
    let mut sink = Matrix {
        out,
        stride: groups,
        columns: groups,
    };
    lanes::product::<V, _>(points, centres, &mut sink);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kmeans::nearest;
    use crate::vector::Portable;
    use crate::{dot, normalize_rows};
    use proptest::prelude::*;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    /// Unit vectors around a few directions, as token vectors lie.
    fn clustered(n: usize, dim: usize, seed: u64) -> Vec<f32> {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut noise = |scale: f32| rng.random_range(-scale..scale);
        let directions: Vec<f32> = (0..40 * dim).map(|_| noise(1.0)).collect();
        let mut rows: Vec<f32> = (0..n * dim)
            .map(|i| directions[i / dim % 40 * dim + i % dim] + noise(0.8))
            .collect();
        normalize_rows(&mut rows, dim);
        rows
    }

    #[test]
    fn nearly_all_vectors_get_their_nearest_centroid() {
        let dim = 32;
        let rows = clustered(3000, dim, 1);
        let (centroids, points) = rows.split_at(1000 * dim);
        let coarse = CoarseCentroids::new(centroids, dim, 2, 1);
        let codes = coarse.nearest(points, 1);
        let exact = nearest(points, centroids, dim, 1);
        let same = codes.iter().zip(&exact).filter(|(a, b)| a == b).count();
        assert!(same * 100 >= 97 * codes.len(), "{same} of {}", codes.len());
        let score = |i: usize, c: u32| {
            dot(
                &points[i * dim..][..dim],
                &centroids[c as usize * dim..][..dim],
            )
        };
        let lost = (0..codes.len()).map(|i| score(i, exact[i]) - score(i, codes[i]));
        assert!(lost.sum::<f32>() / (codes.len() as f32) < 0.003);
        assert_eq!(coarse.nearest(points, 3), codes);
    }

    #[test]
    fn few_centroids_and_odd_points_are_fine() {
        let coarse = CoarseCentroids::new(&[1.0, 0.0, 0.0, 1.0], 2, 0, 1);
        let nan = f32::NAN;
        assert_eq!(
            coarse.nearest(&[0.1, 3.0, nan, nan, 9.0, 0.0, 0.0, 0.0], 2),
            [1, 0, 0, 0]
        );
        assert_eq!(coarse.nearest(&[], 1), []);
        assert_eq!(CoarseCentroids::new(&[], 2, 0, 1).nearest(&[], 1), []);
    }

    proptest! {
        #[test]
        fn visited_are_the_groups_near_the_best(
            scores in prop::collection::vec(prop_oneof![20 => -1f32..1.0, 1 => Just(f32::NAN)], 1..50),
            margin in 0f32..0.5,
        ) {
            let best = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            for f in [visit, visit_body::<Portable>] {
                let mut visitors = vec![Vec::new(); scores.len()];
                f(&scores, margin, 7, &mut visitors);
                for (score, visitors) in scores.iter().zip(visitors) {
                    prop_assert_eq!(visitors == [7], *score > best - margin);
                }
            }
        }
    }
}

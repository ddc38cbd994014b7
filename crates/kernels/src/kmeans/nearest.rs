//! The nearest centroid by inner product, exactly.

use crate::dot::assert_rows;
use crate::lanes::{self, Lanes, Nearest, Rows};
use crate::vector::{Eight, simd};

/// So many points are compared with all centroids before the next, so that both
/// they and what is known of them stay in the second cache.
const BLOCK: usize = 96;

/// For every row of `points` (`[n, dim]`) the row of `centroids` (`[k, dim]`)
/// with the greatest inner product, the first of equals; 0 where no product is a
/// number above `-inf`.
///
/// # Panics
/// When a slice is no whole number of rows, or there are points and no centroid.
pub fn nearest(points: &[f32], centroids: &[f32], dim: usize, threads: usize) -> Vec<u32> {
    let n = assert_rows(points.len(), dim, "nearest: points");
    let k = assert_rows(centroids.len(), dim, "nearest: centroids");
    assert!(n == 0 || k > 0, "nearest: no centroids");
    let lanes = Lanes::new(centroids, dim, k, dim, dim);
    in_parallel(points, dim, threads, |points, codes| {
        let mut search = Search::default();
        for (points, codes) in points.chunks(BLOCK * dim).zip(codes.chunks_mut(BLOCK)) {
            let points = Rows {
                rows: points,
                stride: dim,
                count: codes.len(),
                places: None,
                far: false,
            };
            search.run(points, &lanes, |i, found| {
                codes[i] = found.map_or(0, |(row, _)| row as u32);
            });
        }
    })
}

/// Cuts the points into one part for each thread and collects their codes.
pub(super) fn in_parallel(
    points: &[f32],
    dim: usize,
    threads: usize,
    work: impl Fn(&[f32], &mut [u32]) + Sync,
) -> Vec<u32> {
    let n = points.len() / dim.max(1);
    let mut codes = vec![0; n];
    let part = n.div_ceil(threads.max(1)).max(1);
    if part >= n {
        work(points, &mut codes);
        return codes;
    }
    rayon::scope(|scope| {
        for (points, codes) in points.chunks(part * dim).zip(codes.chunks_mut(part)) {
            let work = &work;
            scope.spawn(move |_| work(points, codes));
        }
    });
    codes
}

/// Memory of a search for the nearest of prepared rows.
#[derive(Default)]
pub(super) struct Search {
    best: Vec<f32>,
    register: Vec<f32>,
}

impl Search {
    /// Hands every point's number to `each`, with the nearest row and its product.
    pub(super) fn run(
        &mut self,
        points: Rows,
        rows: &Lanes,
        mut each: impl FnMut(usize, Option<(usize, f32)>),
    ) {
        self.best.clear();
        self.best.resize(8 * points.count, f32::NEG_INFINITY);
        self.register.resize(8 * points.count, 0.0);
        find(points, rows, &mut self.best, &mut self.register);
        let found = self.best.chunks_exact(8).zip(self.register.chunks_exact(8));
        for (i, (best, register)) in found.enumerate() {
            each(i, rows.nearest(best, register));
        }
    }
}

simd! {
    fn find(points: Rows, rows: &Lanes, best: &mut [f32], register: &mut [f32]) = find_body;
}

#[inline(always)]
fn find_body<V: Eight>(points: Rows, rows: &Lanes, best: &mut [f32], register: &mut [f32]) {
    lanes::product::<V, _>(points, rows, &mut Nearest { best, register });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dot;
    use crate::vector::Portable;
    use proptest::prelude::*;

    fn numbers(n: usize) -> impl Strategy<Value = Vec<f32>> {
        prop::collection::vec(-1f32..1.0, n)
    }

    prop_compose! {
        fn points_and_centroids()(n in 1usize..30, k in 1usize..60, dim in 1usize..20)
            (points in numbers(n * dim), centroids in numbers(k * dim), dim in Just(dim))
            -> (Vec<f32>, Vec<f32>, usize) {
            (points, centroids, dim)
        }
    }

    proptest! {
        #[test]
        fn no_centroid_is_nearer_than_the_one_that_is_found(
            (points, centroids, dim) in points_and_centroids(),
            threads in 1usize..4,
        ) {
            let codes = nearest(&points, &centroids, dim, threads);
            let k = centroids.len() / dim;
            let n = points.len() / dim;
            let lanes = Lanes::new(&centroids, dim, k, dim, dim);
            let (mut best, mut register) = (vec![f32::NEG_INFINITY; 8 * n], vec![0.0; 8 * n]);
            let rows = Rows { rows: &points, stride: dim, count: n, places: None, far: false };
            find_body::<Portable>(rows, &lanes, &mut best, &mut register);
            for (i, point) in points.chunks(dim).enumerate() {
                let score = |c: usize| dot(point, &centroids[c * dim..(c + 1) * dim]);
                let highest = (0..k).map(score).fold(f32::NEG_INFINITY, f32::max);
                prop_assert!(score(codes[i] as usize) > highest - 1e-5);
                let slot = 8 * i..8 * i + 8;
                let (portable, value) = lanes.nearest(&best[slot.clone()], &register[slot]).unwrap();
                prop_assert!(score(portable) > highest - 1e-5);
                prop_assert!((value - highest).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn of_equal_centroids_the_first_and_of_no_number_centroid_0() {
        let nan = f32::NAN;
        let points = [1.0, 0.0, nan, nan, 0.0, 1.0];
        let mut centroids = vec![0.0; 2 * 40];
        for c in [7, 8, 31, 39] {
            centroids[2 * c] = 0.5;
        }
        centroids[2 * 20] = nan;
        assert_eq!(nearest(&points, &centroids, 2, 1), [7, 0, 0]);
        // Products below 0 are compared too.
        assert_eq!(nearest(&[-1.0], &[3.0, 2.0, 1.0], 1, 1), [2]);
        assert_eq!(nearest(&[], &[], 4, 2), []);
    }
}

//! `a · bᵀ` where one of the two has few rows: general products rearrange both
//! factors and reach a fifth of the peak there. See [`lanes`].

use crate::lanes::{self, Lanes, Matrix, Rows};
use crate::vector::{Eight, simd};

/// Up to so many rows of `k` numbers count as few, by measurement.
pub(super) fn most(k: usize) -> usize {
    (k / 2).min(64)
}

/// So many dimensions of the few rows are worked on at once: 24 of them stay in
/// the first cache.
const BLOCK: usize = 256;

/// So many numbers of the many rows, for the second cache.
const CHUNK: usize = 1 << 15;

/// More numbers than that do not lie in a near cache.
const FAR: usize = 1 << 18;

/// A factor: rows of equal length, `stride` apart.
#[derive(Clone, Copy)]
pub(super) struct Factor<'a> {
    pub(super) rows: &'a [f32],
    pub(super) stride: usize,
    pub(super) count: usize,
}

/// `out[m, n] = a · bᵀ` with `a` of `m` and `b` of `n` rows of `k` numbers, none
/// of them 0; rows of `out` are `out_stride` apart.
pub(super) fn product(
    out: &mut [f32],
    out_stride: usize,
    a: Factor,
    b: Factor,
    k: usize,
    threads: usize,
) {
    if b.count <= a.count {
        few_columns(out, out_stride, a, b, k, threads);
    } else {
        few_rows(out, out_stride, a, b, k);
    }
}

/// How many of the many rows are worked on at once: whole tiles of all sizes.
fn chunk(k: usize) -> usize {
    (CHUNK / k).next_multiple_of(24)
}

fn few_columns(out: &mut [f32], out_stride: usize, a: Factor, b: Factor, k: usize, threads: usize) {
    let few = Lanes::new(b.rows, b.stride, b.count, k, BLOCK);
    let chunk = chunk(k);
    let part = a.count.div_ceil(threads).next_multiple_of(chunk);
    let work = |first: usize, out: &mut [f32]| {
        for (i, out) in out.chunks_mut(chunk * out_stride).enumerate() {
            write(
                a.part(first + i * chunk, chunk),
                &few,
                out,
                out_stride,
                b.count,
            );
        }
    };
    let parts = out.chunks_mut(part * out_stride).enumerate();
    if threads == 1 {
        parts.for_each(|(i, out)| work(i * part, out));
    } else {
        rayon::scope(|scope| {
            for (i, out) in parts {
                let work = &work;
                scope.spawn(move |_| work(i * part, out));
            }
        });
    }
}

/// On one thread: reading `b` takes most of the time.
fn few_rows(out: &mut [f32], out_stride: usize, a: Factor, b: Factor, k: usize) {
    let few = Lanes::new(a.rows, a.stride, a.count, k, BLOCK);
    let chunk = chunk(k).min(b.count);
    let mut turned = vec![0.0; chunk * a.count];
    for first in (0..b.count).step_by(chunk) {
        let many = b.part(first, chunk);
        let turned = &mut turned[..many.count * a.count];
        write(many, &few, turned, a.count, a.count);
        // Eight rows of `out` at once, or every number would come from another cache line.
        for top in (0..a.count).step_by(8) {
            for (j, column) in turned.chunks_exact(a.count).enumerate() {
                for (i, &x) in column.iter().enumerate().skip(top).take(8) {
                    out[i * out_stride + first + j] = x;
                }
            }
        }
    }
}

impl<'a> Factor<'a> {
    /// At most `count` rows from row `first` on.
    fn part(self, first: usize, count: usize) -> Rows<'a> {
        Rows {
            rows: &self.rows[first * self.stride..],
            stride: self.stride,
            count: count.min(self.count - first),
            places: None,
            far: self.count * self.stride > FAR,
        }
    }
}

simd! {
    fn write(many: Rows, few: &Lanes, out: &mut [f32], stride: usize, columns: usize) = write_body;
}

#[inline(always)]
pub(super) fn write_body<V: Eight>(
    many: Rows,
    few: &Lanes,
    out: &mut [f32],
    stride: usize,
    columns: usize,
) {
    let mut sink = Matrix {
        out,
        stride,
        columns,
    };
    lanes::product::<V, _>(many, few, &mut sink);
}

//! Matrix products of row-major matrices.
//!
//! The kernel is chosen by the shape, so a row of the result may differ in its
//! last digits with how many rows are multiplied together.

mod narrow;
mod view;

use crate::dot::assert_rows;
pub use view::{Matrix, product};

/// From this many multiply-adds on a product is shared between threads; below,
/// handing it over costs more than the work.
const SHARE_FROM: usize = 1 << 21;

/// `out[m, n] = a[m, k] · b[n, k]ᵀ`; `b` as PyTorch stores the weights of a linear layer.
///
/// Uses at most `threads` threads of the current rayon pool, and fewer for small products.
///
/// # Panics
/// When a length is not as the shapes say.
#[allow(clippy::too_many_arguments)]
pub fn matmul_nt(
    out: &mut [f32],
    a: &[f32],
    b: &[f32],
    m: usize,
    n: usize,
    k: usize,
    threads: usize,
) {
    assert_eq!(out.len(), m * n, "matmul_nt: length of out");
    assert_eq!(a.len(), m * k, "matmul_nt: length of a");
    assert_eq!(b.len(), n * k, "matmul_nt: length of b");
    dispatch(out, n, a, k, b, Columns(k), m, n, k, threads);
}

/// `out[m, n] = a[m, k] · b[k, n]`.
///
/// Uses at most `threads` threads of the current rayon pool, and fewer for small products.
///
/// # Panics
/// When a length is not as the shapes say.
#[allow(clippy::too_many_arguments)]
pub fn matmul_nn(
    out: &mut [f32],
    a: &[f32],
    b: &[f32],
    m: usize,
    n: usize,
    k: usize,
    threads: usize,
) {
    assert_eq!(out.len(), m * n, "matmul_nn: length of out");
    assert_eq!(a.len(), m * k, "matmul_nn: length of a");
    assert_eq!(b.len(), k * n, "matmul_nn: length of b");
    dispatch(out, n, a, k, b, Rows(n), m, n, k, threads);
}

/// [`matmul_nt`] of matrices whose rows stand `*_stride` numbers apart, as the
/// heads of an attention layer do; what lies between the rows of `out` is kept.
/// One thread.
///
/// # Panics
/// When a stride is shorter than its row or a slice is too short.
#[allow(clippy::too_many_arguments)]
pub fn matmul_nt_strided(
    out: &mut [f32],
    out_stride: usize,
    a: &[f32],
    a_stride: usize,
    b: &[f32],
    b_stride: usize,
    m: usize,
    n: usize,
    k: usize,
) {
    assert_strided(out.len(), out_stride, m, n, "matmul_nt_strided: out");
    assert_strided(a.len(), a_stride, m, k, "matmul_nt_strided: a");
    assert_strided(b.len(), b_stride, n, k, "matmul_nt_strided: b");
    dispatch(
        out,
        out_stride,
        a,
        a_stride,
        b,
        Columns(b_stride),
        m,
        n,
        k,
        1,
    );
}

/// [`matmul_nn`] of matrices whose rows stand `*_stride` numbers apart; what
/// lies between the rows of `out` is kept. One thread.
///
/// # Panics
/// When a stride is shorter than its row or a slice is too short.
#[allow(clippy::too_many_arguments)]
pub fn matmul_nn_strided(
    out: &mut [f32],
    out_stride: usize,
    a: &[f32],
    a_stride: usize,
    b: &[f32],
    b_stride: usize,
    m: usize,
    n: usize,
    k: usize,
) {
    assert_strided(out.len(), out_stride, m, n, "matmul_nn_strided: out");
    assert_strided(a.len(), a_stride, m, k, "matmul_nn_strided: a");
    assert_strided(b.len(), b_stride, k, n, "matmul_nn_strided: b");
    dispatch(out, out_stride, a, a_stride, b, Rows(b_stride), m, n, k, 1);
}

/// Scores of every centroid for every query row: `out[k, nq] = centroids[k, dim] · query[nq, dim]ᵀ`,
/// one row per centroid. One thread.
///
/// # Panics
/// When a length is not as the shapes say.
pub fn centroid_scores(
    query: &[f32],
    centroids: &[f32],
    nq: usize,
    k: usize,
    dim: usize,
    out: &mut [f32],
) {
    assert_eq!(query.len(), nq * dim, "centroid_scores: length of query");
    assert_eq!(
        centroids.len(),
        k * dim,
        "centroid_scores: length of centroids"
    );
    assert_eq!(out.len(), k * nq, "centroid_scores: length of out");
    assert_rows(out.len(), nq, "centroid_scores");
    matmul_nt(out, centroids, query, k, nq, dim, 1);
}

/// How the second factor lies in memory.
#[derive(Clone, Copy)]
enum Right {
    /// `b[k, n]`, rows this far apart.
    Rows(usize),
    /// `b[n, k]`, rows this far apart, used transposed.
    Columns(usize),
}
use Right::{Columns, Rows};
use narrow::Factor;

/// Checks that `rows` rows of `cols` numbers, `stride` apart, fit into `len` numbers.
#[track_caller]
fn assert_strided(len: usize, stride: usize, rows: usize, cols: usize, who: &str) {
    if rows == 0 || cols == 0 {
        return;
    }
    assert!(
        stride >= cols,
        "{who}: stride {stride} is shorter than a row of {cols}"
    );
    let need = (rows - 1)
        .checked_mul(stride)
        .and_then(|x| x.checked_add(cols));
    assert!(
        need.is_some_and(|need| need <= len),
        "{who}: {len} numbers are too few for {rows} rows of {cols}, {stride} apart"
    );
}

/// Chooses the kernel. The callers have checked that all matrices lie inside
/// their slices.
#[allow(clippy::too_many_arguments)]
fn dispatch(
    out: &mut [f32],
    out_stride: usize,
    a: &[f32],
    a_stride: usize,
    b: &[f32],
    right: Right,
    m: usize,
    n: usize,
    k: usize,
    threads: usize,
) {
    if m == 0 || n == 0 {
        return;
    }
    if k == 0 {
        for i in 0..m {
            out[i * out_stride..i * out_stride + n].fill(0.0);
        }
        return;
    }
    let shared = threads > 1 && m.saturating_mul(n).saturating_mul(k) >= SHARE_FROM;
    let threads = if shared { threads } else { 1 };
    match right {
        Columns(b_stride) if m.min(n) <= narrow::most(k) => {
            let a = Factor {
                rows: a,
                stride: a_stride,
                count: m,
            };
            let b = Factor {
                rows: b,
                stride: b_stride,
                count: n,
            };
            // What lies behind the last row is not ours.
            let out = &mut out[..(m - 1) * out_stride + n];
            narrow::product(out, out_stride, a, b, k, threads);
        }
        _ => general(out, out_stride, a, a_stride, b, right, m, n, k, threads),
    }
}

/// `out[m, n] = a[m, k] · b[n, k]ᵀ`, rows of `out` `stride` apart, by the `gemm` crate on
/// one thread.
///
/// # Safety
/// `m` rows of `n` numbers, `stride` apart, must be writable at `out` and belong to nobody
/// else; `a` and `b` must have `m * k` and `n * k` numbers.
pub(crate) unsafe fn general_nt(
    out: *mut f32,
    stride: usize,
    a: &[f32],
    b: &[f32],
    m: usize,
    n: usize,
    k: usize,
) {
    let (row, stride) = (k as isize, stride as isize);
    let (a, b) = (a.as_ptr(), b.as_ptr());
    let parallelism = gemm::Parallelism::None;
    // SAFETY: by contract; `out` is not read.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out,
            1,
            stride,
            false,
            a,
            1,
            row,
            b,
            row,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// `out[m, n] = a[m, k] · b[k, n]`, or with `add` added to what `out` holds, rows of `out` and
/// `a` their strides apart, by the `gemm` crate on one thread.
///
/// # Safety
/// `m` rows of `n` numbers, `stride` apart, must be writable at `out`, hold numbers where
/// `add` is set, and belong to nobody else; `a` must have `(m - 1) * a_stride + k` numbers and
/// `b` `k * n`.
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn general_nn(
    out: *mut f32,
    stride: usize,
    a: &[f32],
    a_stride: usize,
    b: &[f32],
    m: usize,
    n: usize,
    k: usize,
    add: bool,
) {
    let (stride, a_stride) = (stride as isize, a_stride as isize);
    let (a, b) = (a.as_ptr(), b.as_ptr());
    let parallelism = gemm::Parallelism::None;
    let kept = if add { 1.0 } else { 0.0 };
    // SAFETY: by contract; without `add`, `out` is not read.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out,
            1,
            stride,
            add,
            a,
            1,
            a_stride,
            b,
            1,
            n as isize,
            kept,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// The product by the `gemm` crate. The matrices lie inside their slices and
/// are not empty.
#[allow(clippy::too_many_arguments)]
fn general(
    out: &mut [f32],
    out_stride: usize,
    a: &[f32],
    a_stride: usize,
    b: &[f32],
    right: Right,
    m: usize,
    n: usize,
    k: usize,
    threads: usize,
) {
    let parallelism = if threads > 1 {
        gemm::Parallelism::Rayon(threads)
    } else {
        gemm::Parallelism::None
    };
    let (b_column_stride, b_row_stride) = match right {
        Rows(stride) => (1, stride as isize),
        Columns(stride) => (stride as isize, 1),
    };
    // SAFETY: element (i, j) of a matrix lies at i * row stride + j * column
    // stride. The callers have asserted that the last element of each of the
    // three is inside its slice, and m, n and k are not 0. `out` is borrowed
    // exclusively, so it overlaps neither factor; it is not read.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            out_stride as isize,
            false,
            a.as_ptr(),
            1,
            a_stride as isize,
            b.as_ptr(),
            b_column_stride,
            b_row_stride,
            0.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lanes;
    use crate::vector::Portable;
    use proptest::prelude::*;

    /// `a[m, k] · b[n, k]ᵀ` in f64, all rows `k` and `stride` apart.
    fn definition(a: &[f32], b: &[f32], m: usize, n: usize, k: usize) -> Vec<f64> {
        let dot = |i: usize, j: usize| -> f64 {
            let (x, y) = (&a[i * k..][..k], &b[j * k..][..k]);
            x.iter()
                .zip(y)
                .map(|(&x, &y)| f64::from(x) * f64::from(y))
                .sum()
        };
        (0..m * n).map(|i| dot(i / n, i % n)).collect()
    }

    fn transposed(b: &[f32], n: usize, k: usize) -> Vec<f32> {
        (0..n * k).map(|i| b[i % n * k + i / n]).collect()
    }

    /// The rows of `x` (`[n, width]`) further apart, with 7 between them.
    fn spread(x: &[f32], width: usize, stride: usize) -> Vec<f32> {
        let mut out = Vec::new();
        for row in x.chunks(width.max(1)) {
            out.extend_from_slice(row);
            out.resize(out.len() + stride - width, 7.0);
        }
        // The last row needs no room behind it.
        out.truncate(out.len().saturating_sub(stride - width));
        out
    }

    fn close(got: &[f32], want: &[f64], k: usize) -> bool {
        let near = |(&x, &y): (&f32, &f64)| (f64::from(x) - y).abs() < 1e-6 * (k as f64 + 8.0);
        got.len() == want.len() && got.iter().zip(want).all(near)
    }

    fn sizes() -> impl Strategy<Value = (usize, usize, usize)> {
        // Few rows on either side, both many, and more than one block of dimensions.
        let side = || prop_oneof![0usize..10, 10usize..40, 65usize..90];
        (
            side(),
            side(),
            prop_oneof![6 => 0usize..40, 1 => 250usize..300],
        )
    }

    fn numbers(n: usize, seed: u64) -> Vec<f32> {
        use rand::{Rng, SeedableRng};
        let mut rng = rand::rngs::SmallRng::seed_from_u64(seed);
        (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
    }

    proptest! {
        #[test]
        fn products_agree_with_f64(
            (m, n, k) in sizes(),
            extra in (0usize..5, 0usize..5, 0usize..5),
            threads in 1usize..4,
            seed: u64,
        ) {
            let (a, b) = (numbers(m * k, seed), numbers(n * k, !seed));
            let b_turned = transposed(&b, n, k);
            let want = definition(&a, &b, m, n, k);
            let mut out = vec![9.0; m * n];
            matmul_nt(&mut out, &a, &b, m, n, k, threads);
            prop_assert!(close(&out, &want, k));
            out.fill(9.0);
            matmul_nn(&mut out, &a, &b_turned, m, n, k, threads);
            prop_assert!(close(&out, &want, k));
            out.fill(9.0);
            centroid_scores(&b, &a, n, m, k, &mut out);
            prop_assert!(close(&out, &want, k));

            let (sa, sb, so) = (k + extra.0, k + extra.1, n + extra.2);
            let empty = spread(&vec![9.0; m * n], n, so);
            let gaps_are_kept = |wide: &[f32]| {
                wide.iter().enumerate().all(|(i, &x)| i % so.max(1) < n || x == 7.0)
            };
            let narrow = |wide: &[f32]| -> Vec<f32> {
                (0..m * n).map(|i| wide[i / n * so + i % n]).collect()
            };
            let mut wide = empty.clone();
            let (a_wide, b_wide) = (spread(&a, k, sa), spread(&b, k, sb));
            matmul_nt_strided(&mut wide, so, &a_wide, sa, &b_wide, sb, m, n, k);
            prop_assert!(close(&narrow(&wide), &want, k) && gaps_are_kept(&wide));
            let sb = n + extra.1;
            let mut wide = empty;
            matmul_nn_strided(&mut wide, so, &a_wide, sa, &spread(&b_turned, n, sb), sb, m, n, k);
            prop_assert!(close(&narrow(&wide), &want, k) && gaps_are_kept(&wide));
        }

        #[test]
        fn the_portable_twin_agrees((m, n, k) in sizes(), block in 1usize..50, seed: u64) {
            let (a, b) = (numbers(m * k, seed), numbers(n * k, !seed));
            let few = lanes::Lanes::new(&b, k, n, k, block);
            let many = lanes::Rows { rows: &a, stride: k, count: m, places: None, far: false };
            let mut out = vec![9.0; m * n];
            narrow::write_body::<Portable>(many, &few, &mut out, n, n);
            if k > 0 {
                prop_assert!(close(&out, &definition(&a, &b, m, n, k), k));
            }
        }
    }

    #[test]
    fn shared_between_threads_it_is_the_same() {
        for (m, n, k) in [(8, 3000, 130), (3000, 8, 130), (100, 300, 130)] {
            let (a, b) = (numbers(m * k, 1), numbers(n * k, 2));
            let (mut one, mut three) = (vec![0.0; m * n], vec![0.0; m * n]);
            matmul_nt(&mut one, &a, &b, m, n, k, 1);
            matmul_nt(&mut three, &a, &b, m, n, k, 3);
            let want = definition(&a, &b, m, n, k);
            assert!(close(&one, &want, k) && close(&three, &want, k));
        }
    }

    #[test]
    #[should_panic(expected = "too few for")]
    fn a_slice_that_is_too_short_is_refused() {
        matmul_nt_strided(&mut [0.0; 4], 2, &[0.0; 4], 2, &[0.0; 4], 3, 2, 2, 2);
    }
}

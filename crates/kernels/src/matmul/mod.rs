//! Matrix products of row-major matrices.

use crate::dot::assert_rows;

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
    general(out, n, a, k, b, Columns(k), m, n, k, threads);
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
    general(out, n, a, k, b, Rows(n), m, n, k, threads);
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
    general(
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
    general(out, out_stride, a, a_stride, b, Rows(b_stride), m, n, k, 1);
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

/// The product by the `gemm` crate. The callers have checked that all matrices
/// lie inside their slices.
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
    let parallelism = if shared {
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

//! Products, lengths and sums of vectors.

/// Sum of the products of two vectors of equal length.
///
/// # Panics
/// When the lengths differ.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "dot: vectors of different length");
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// Euclidean length.
pub fn norm(a: &[f32]) -> f32 {
    dot(a, a).sqrt()
}

/// Scales every row of `rows` (`[n, dim]`) to length 1: `x / max(|x|, 1e-12)`.
///
/// # Panics
/// When `rows` is no whole number of rows.
pub fn normalize_rows(rows: &mut [f32], dim: usize) {
    assert_rows(rows.len(), dim, "normalize_rows");
    for row in rows.chunks_exact_mut(dim.max(1)) {
        let scale = 1.0 / norm(row).max(1e-12);
        row.iter_mut().for_each(|x| *x *= scale);
    }
}

/// Adds `bias` to every row of `x` (`[n, bias.len()]`).
///
/// # Panics
/// When `x` is no whole number of rows.
pub fn add_bias(x: &mut [f32], bias: &[f32]) {
    assert_rows(x.len(), bias.len(), "add_bias");
    for row in x.chunks_exact_mut(bias.len().max(1)) {
        add_assign(row, bias);
    }
}

/// Adds `y` to `x`, element by element.
///
/// # Panics
/// When the lengths differ.
pub fn add_assign(x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len(), "add_assign: vectors of different length");
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

/// Checks that `len` numbers are a whole number of rows of `dim`, and gives that number.
#[track_caller]
pub(crate) fn assert_rows(len: usize, dim: usize, who: &str) -> usize {
    if len == 0 {
        return 0;
    }
    assert!(
        dim > 0 && len.is_multiple_of(dim),
        "{who}: {len} numbers are no whole number of rows of {dim}"
    );
    len / dim
}

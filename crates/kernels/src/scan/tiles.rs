//! Products of small matrices by tiles that stay in registers, without copies of the factors.
//!
//! ```text
//! out[i, c] = Σ_k a[i, k] b[k, c]
//! ```
//!
//! The chunks of a scan multiply matrices of some 64 rows; general products spend most of their
//! time on rearranging such small ones.

use crate::vector::{Eight, Vector};

/// A left factor: rows `row` numbers apart.
#[derive(Clone, Copy)]
pub(super) struct Left<'a> {
    pub(super) numbers: &'a [f32],
    pub(super) row: usize,
}

/// A right factor: rows `row` numbers apart.
#[derive(Clone, Copy)]
pub(super) struct Right<'a> {
    pub(super) numbers: &'a [f32],
    pub(super) row: usize,
}

/// Sums of `R` rows and `C` vectors of columns.
pub(super) type Sums<V, const R: usize, const C: usize> = [[V; C]; R];

/// What is done tile by tile.
pub(super) trait Tiles {
    /// Rows from `row` on and columns from `column` on, `R` and `C` vectors of them.
    fn tile<V: Vector, const R: usize, const C: usize>(&mut self, row: usize, column: usize);
    /// A single number, where columns are too few for a vector.
    fn single(&mut self, row: usize, column: usize);
    /// The first row that is wanted of columns from `column` on.
    fn first_row(&self, column: usize) -> usize;
}

/// All tiles of so many rows and columns. A few columns of the right factor, which stay in the
/// first cache, meet all rows before the next do.
#[inline(always)]
pub(super) fn cover<V: Eight, T: Tiles>(tiles: &mut T, rows: usize, columns: usize) {
    let mut column = 0;
    while column + 2 * V::LEN <= columns {
        down::<V, T, 2>(tiles, rows, column);
        column += 2 * V::LEN;
    }
    if column + V::LEN <= columns {
        down::<V, T, 1>(tiles, rows, column);
        column += V::LEN;
    }
    for column in column..columns {
        for row in tiles.first_row(column)..rows {
            tiles.single(row, column);
        }
    }
}

#[inline(always)]
fn down<V: Eight, T: Tiles, const C: usize>(tiles: &mut T, rows: usize, column: usize) {
    let mut row = tiles.first_row(column);
    while V::TILES && row + 6 <= rows {
        tiles.tile::<V, 6, C>(row, column);
        row += 6;
    }
    while V::TILES && row + 2 <= rows {
        tiles.tile::<V, 2, C>(row, column);
        row += 2;
    }
    while row < rows {
        tiles.tile::<V, 1, C>(row, column);
        row += 1;
    }
}

/// Adds `Σ_k a[row + r, k] b[k, column + c]` over `depth` to the sums.
///
/// # Panics
/// When a factor has not so many numbers.
#[inline(always)]
pub(super) fn add_products<V: Vector, const R: usize, const C: usize>(
    sums: &mut Sums<V, R, C>,
    (a, row): (Left, usize),
    (b, column): (Right, usize),
    depth: usize,
) {
    if depth == 0 {
        return;
    }
    let last = (row + R - 1) * a.row + depth - 1;
    assert!(last < a.numbers.len(), "scan: left factor of a tile");
    let last = (depth - 1) * b.row + column + C * V::LEN;
    assert!(last <= b.numbers.len(), "scan: right factor of a tile");
    let from = a.numbers[row * a.row..].as_ptr();
    let rows = b.numbers[column..].as_ptr();
    for k in 0..depth {
        let mut right = [V::splat(0.0); C];
        for (c, right) in right.iter_mut().enumerate() {
            // SAFETY: k < depth and c < C, so that it ends before the second asserted place.
            *right = unsafe { V::load_at(rows.add(k * b.row + c * V::LEN)) };
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: r < R and k < depth, so that it stands not behind the first asserted place.
            let left = V::splat(unsafe { *from.add(r * a.row + k) });
            for (sum, right) in sums.iter_mut().zip(right) {
                *sum = left.mul_add(right, *sum);
            }
        }
    }
}

/// `Σ_k a[row, k] b[k, column]`.
#[inline(always)]
pub(super) fn single_product(
    (a, row): (Left, usize),
    (b, column): (Right, usize),
    depth: usize,
) -> f32 {
    let mut sum = 0.0;
    for k in 0..depth {
        sum += a.numbers[row * a.row + k] * b.numbers[k * b.row + column];
    }
    sum
}

/// `to[columns, rows]` from `from[rows, columns]`, whose rows stand `step` apart.
pub(super) fn transpose(to: &mut [f32], from: &[f32], step: usize, rows: usize, columns: usize) {
    /// What fits into a few lines of the cache either way.
    const SIDE: usize = 16;
    for first in (0..rows).step_by(SIDE) {
        for start in (0..columns).step_by(SIDE) {
            for row in first..(first + SIDE).min(rows) {
                let from = &from[row * step + start..row * step + (start + SIDE).min(columns)];
                for (column, x) in from.iter().enumerate() {
                    to[(start + column) * rows + row] = *x;
                }
            }
        }
    }
}

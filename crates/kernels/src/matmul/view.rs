//! Products of matrices that lie in memory in any order: transposed, or parts of others.

use super::SHARE_FROM;

/// A matrix inside a slice: number `(i, j)` lies at `i * row_step + j * column_step`.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    numbers: &'a [f32],
    rows: usize,
    columns: usize,
    row_step: usize,
    column_step: usize,
}

impl<'a> Matrix<'a> {
    /// A row-major matrix with `columns` columns.
    ///
    /// # Panics
    /// When `numbers` is no whole number of rows.
    pub fn new(numbers: &'a [f32], columns: usize) -> Self {
        let rows = numbers.len().checked_div(columns).unwrap_or(0);
        assert_eq!(rows * columns, numbers.len(), "Matrix: no whole rows");
        Self::strided(numbers, rows, columns, columns)
    }

    /// A row-major matrix whose rows begin `row_step` numbers apart.
    ///
    /// # Panics
    /// When it does not fit into `numbers`.
    pub fn strided(numbers: &'a [f32], rows: usize, columns: usize, row_step: usize) -> Self {
        if rows > 0 && columns > 0 {
            let last = (rows - 1)
                .checked_mul(row_step)
                .and_then(|x| x.checked_add(columns));
            assert!(
                last.is_some_and(|last| last <= numbers.len()),
                "Matrix: {} numbers are too few for {rows} rows of {columns}, {row_step} apart",
                numbers.len()
            );
        }
        Self {
            numbers,
            rows,
            columns,
            row_step,
            column_step: 1,
        }
    }

    /// Some of its rows; nothing is moved.
    ///
    /// # Panics
    /// When it has not so many.
    pub fn rows(self, rows: std::ops::Range<usize>) -> Self {
        assert!(
            rows.start <= rows.end && rows.end <= self.rows,
            "Matrix: it has {} rows, not {rows:?}",
            self.rows
        );
        let from = (rows.start * self.row_step).min(self.numbers.len());
        Self {
            numbers: &self.numbers[from..],
            rows: rows.len(),
            ..self
        }
    }

    /// The numbers of a row of a row-major matrix.
    ///
    /// # Panics
    /// When there is no such row, or the matrix is transposed.
    pub fn row(self, row: usize) -> &'a [f32] {
        assert!(row < self.rows, "Matrix: it has {} rows", self.rows);
        assert_eq!(self.column_step, 1, "Matrix: rows do not lie together");
        &self.numbers[row * self.row_step..][..self.columns]
    }

    /// The transposed matrix; nothing is moved.
    pub fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_step: self.column_step,
            column_step: self.row_step,
            ..self
        }
    }
}

/// `out = factor · a · b`, plus what `out` holds when `add`; rows of `out` begin `out_step`
/// numbers apart, what lies between them is kept.
///
/// Uses at most `threads` threads of the current rayon pool, and one for small products.
///
/// # Panics
/// When the shapes do not fit.
pub fn product(
    out: &mut [f32],
    out_step: usize,
    a: Matrix,
    b: Matrix,
    factor: f32,
    add: bool,
    threads: usize,
) {
    let (m, n, k) = (a.rows, b.columns, a.columns);
    assert_eq!(k, b.rows, "product: inner sizes");
    if m == 0 || n == 0 {
        return;
    }
    assert!(out_step >= n, "product: rows of out overlap");
    assert!(
        (m - 1) * out_step + n <= out.len(),
        "product: out is too short"
    );
    if k == 0 {
        if !add {
            out.chunks_mut(out_step)
                .take(m)
                .for_each(|row| row[..n].fill(0.0));
        }
        return;
    }
    let shared = threads > 1 && m.saturating_mul(n).saturating_mul(k) >= SHARE_FROM;
    let parallelism = if shared {
        gemm::Parallelism::Rayon(threads)
    } else {
        gemm::Parallelism::None
    };
    // SAFETY: number (i, j) of a matrix lies at i * row step + j * column step. The last
    // number of each factor is inside its slice by `Matrix::strided` (transposing only
    // swaps the steps), that of `out` by the assertion above; m, n and k are not 0. `out`
    // is borrowed exclusively, so it overlaps neither factor, and its numbers are
    // initialised, so they may be read.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            out_step as isize,
            add,
            a.numbers.as_ptr(),
            a.column_step as isize,
            a.row_step as isize,
            b.numbers.as_ptr(),
            b.column_step as isize,
            b.row_step as isize,
            1.0,
            factor,
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
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn product_agrees_with_its_definition(
            (m, n, k) in (0usize..9, 0usize..20, 0usize..40),
            (ta, tb, add) in (any::<bool>(), any::<bool>(), any::<bool>()),
            gap in 0usize..5,
            numbers in prop::collection::vec(-1f32..1.0, 4000),
        ) {
            // As stored; used transposed or not.
            let stored = |rows: usize, columns: usize, t: bool| if t { (columns, rows) } else { (rows, columns) };
            let ((ar, ac), (br, bc)) = (stored(m, k, ta), stored(k, n, tb));
            let (a, rest) = numbers.split_at(ar * (ac + gap) + 1);
            let (b, rest) = rest.split_at(br * (bc + gap) + 1);
            let view = |x, rows, columns, t: bool| {
                let view = Matrix::strided(x, rows, columns, columns + gap);
                if t { view.t() } else { view }
            };
            let before = &rest[..m * (n + gap)];
            let mut out = before.to_vec();
            product(&mut out, n + gap, view(a, ar, ac, ta), view(b, br, bc, tb), 0.5, add, 1);
            let at = |x: &[f32], columns: usize, t: bool, i: usize, j: usize| {
                let (i, j) = if t { (j, i) } else { (i, j) };
                f64::from(x[i * (columns + gap) + j])
            };
            for (place, (&got, &old)) in out.iter().zip(before).enumerate() {
                let (i, j) = (place / (n + gap), place % (n + gap));
                if j >= n {
                    prop_assert_eq!(got, old);
                    continue;
                }
                let sum: f64 = (0..k).map(|l| at(a, ac, ta, i, l) * at(b, bc, tb, l, j)).sum();
                let want = 0.5 * sum + if add { f64::from(old) } else { 0.0 };
                prop_assert!((f64::from(got) - want).abs() < 1e-5, "{got} {want}");
            }
        }
    }

    #[test]
    fn threads_do_not_change_the_result() {
        let numbers: Vec<f32> = (0..200 * 300u32)
            .map(|i| (i % 97) as f32 / 50.0 - 1.0)
            .collect();
        let a = Matrix::new(&numbers, 300);
        let run = |threads| {
            let mut out = vec![0.0; 300 * 300];
            product(&mut out, 300, a.t(), a, 1.0, false, threads);
            out
        };
        assert_eq!(run(1), run(2));
        assert_eq!(run(1), run(5));
    }
}

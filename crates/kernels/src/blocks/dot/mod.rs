//! Products of packed rows with inputs, on one thread.

mod floats;
mod portable;
#[cfg(target_arch = "x86_64")]
pub(super) mod x86;

use std::marker::PhantomData;
use std::ops::Range;

use super::{Activations, BlockMatrix};
use crate::vector::Eight;

/// The outputs of a range of rows for all inputs: those columns of `[n, rows]`.
pub(super) struct Columns<'a> {
    out: *mut f32,
    /// Distance of two inputs' outputs.
    stride: usize,
    n: usize,
    range: Range<usize>,
    borrowed: PhantomData<&'a mut [f32]>,
}

/// An output `[n, rows]` that threads fill by ranges of rows.
#[derive(Debug)]
pub(super) struct Output<'a> {
    out: *mut f32,
    rows: usize,
    n: usize,
    borrowed: PhantomData<&'a mut [f32]>,
}

// SAFETY: it only gives out columns, and whoever takes them keeps threads apart.
unsafe impl Send for Output<'_> {}
// SAFETY: as above.
unsafe impl Sync for Output<'_> {}

impl<'a> Output<'a> {
    /// # Panics
    /// When `out` is not `n` rows of `rows`.
    pub(super) fn new(out: &'a mut [f32], n: usize, rows: usize) -> Self {
        assert_eq!(out.len(), n * rows, "length of out: {n} rows of {rows}");
        Self {
            out: out.as_mut_ptr(),
            rows,
            n,
            borrowed: PhantomData,
        }
    }

    /// For how many inputs.
    pub(super) fn n(&self) -> usize {
        self.n
    }

    /// The columns `range`.
    ///
    /// # Safety
    /// They must not be given out twice.
    pub(super) unsafe fn columns(&self, range: Range<usize>) -> Columns<'a> {
        assert!(range.start <= range.end && range.end <= self.rows);
        Columns {
            out: self.out,
            stride: self.rows,
            n: self.n,
            range,
            borrowed: PhantomData,
        }
    }
}

impl Columns<'_> {
    /// The outputs of input `n` for `range`, which lies in the whole one.
    #[inline(always)]
    pub(super) fn of(&mut self, n: usize, range: Range<usize>) -> &mut [f32] {
        assert!(n < self.n && range.start <= range.end);
        assert!(self.range.start <= range.start && range.end <= self.range.end);
        // SAFETY: inside of the slice by the lines above and by `Output::columns`; nobody
        // else has these columns by its contract, and this view is borrowed exclusively.
        unsafe {
            let at = self.out.add(n * self.stride + range.start);
            std::slice::from_raw_parts_mut(at, range.len())
        }
    }

    /// Writes `x[n, cols] · rows[range, cols]ᵀ`.
    pub(super) fn product(&mut self, x: &[f32], rows: &[f32], cols: usize) {
        let width = self.range.len();
        assert_eq!(x.len(), self.n * cols, "product: length of x");
        assert_eq!(rows.len(), width * cols, "product: length of rows");
        // SAFETY: the columns are ours for all inputs (see `of`), the factors are as long
        // as their shapes say.
        unsafe {
            let at = self.out.add(self.range.start);
            crate::matmul::general_nt(at, self.stride, x, rows, self.n, width, cols);
        }
    }

    /// Adds `x[n, inputs][.., rows] · weights[rows, range]`, or writes it for the first rows.
    pub(super) fn add_product(
        &mut self,
        x: &[f32],
        inputs: usize,
        rows: Range<usize>,
        weights: &[f32],
    ) {
        let width = self.range.len();
        assert_eq!(x.len(), self.n * inputs, "add_product: length of x");
        assert!(rows.start < rows.end && rows.end <= inputs);
        assert_eq!(
            weights.len(),
            rows.len() * width,
            "add_product: length of weights"
        );
        if self.n == 0 || width == 0 {
            return;
        }
        // SAFETY: the columns are ours for all inputs (see `of`) and not empty; the last
        // number of x that is read lies at (n - 1) * inputs + rows.end - 1.
        unsafe {
            let at = self.out.add(self.range.start);
            let x = &x[rows.start..];
            let add = rows.start > 0;
            crate::matmul::general_nn(
                at,
                self.stride,
                x,
                inputs,
                weights,
                self.n,
                width,
                rows.len(),
                add,
            );
        }
    }

    /// All columns that are given out.
    pub(super) fn range(&self) -> Range<usize> {
        self.range.clone()
    }
}

/// How rows of one kind are multiplied.
trait Kernel {
    type Input<'a>: Copy;

    /// Whether it works on several rows and inputs at once (see `Eight::TILES`).
    const TILES: bool = true;

    /// A row of the inputs in the form that is multiplied.
    fn input(x: &Activations, row: usize) -> Self::Input<'_>;

    /// Products of `R` packed rows of equal length with `N` inputs.
    fn tile<const R: usize, const N: usize>(
        rows: [&[u8]; R],
        x: [Self::Input<'_>; N],
    ) -> [[f32; R]; N];
}

/// So many bytes of weights stay in the second cache until all inputs have met them.
const BAND: usize = 1 << 17;

/// Rows at once; sums of a tile stay in registers.
const ROWS: usize = 4;

/// Writes the products of the rows of `out` with all inputs, which have been rounded
/// where the kind needs it.
pub(super) fn products(weights: &BlockMatrix, x: &Activations, out: &mut Columns) {
    if !weights.kind.is_packed() {
        return floats::products(weights, x, out);
    }
    #[cfg(target_arch = "x86_64")]
    if crate::vector::has_avx2() {
        // SAFETY: the machine has AVX2, FMA and F16C.
        return unsafe { x86::products(weights, x, out) };
    }
    portable::products(weights, x, out);
}

/// All rows of `out` with all inputs.
#[inline(always)]
fn cover<K: Kernel>(weights: &BlockMatrix, x: &Activations, out: &mut Columns) {
    let range = out.range();
    let band = match x.rows() {
        0 | 1 => range.len().max(1),
        _ => (BAND / weights.row_bytes.max(1))
            .next_multiple_of(ROWS)
            .max(ROWS),
    };
    for first in range.clone().step_by(band) {
        let rows = first..(first + band).min(range.end);
        let whole = rows.start..rows.end - rows.len() % ROWS;
        let mut n = 0;
        while n < x.rows() {
            let together = match x.rows() - n {
                _ if !K::TILES => stripe::<K, 1, 1>(weights, whole.clone(), x, n, out),
                1 => stripe::<K, ROWS, 1>(weights, whole.clone(), x, n, out),
                2 | 3 => stripe::<K, 2, 2>(weights, whole.clone(), x, n, out),
                _ => stripe::<K, 2, 4>(weights, whole.clone(), x, n, out),
            };
            n += together;
        }
        for row in whole.end..rows.end {
            for n in 0..x.rows() {
                let product = K::tile::<1, 1>([weights.row(row)], [K::input(x, n)]);
                out.of(n, row..row + 1)[0] = product[0][0];
            }
        }
    }
}

/// The rows `range`, a whole number of `R`, with the `N` inputs from `first` on; gives `N`.
///
/// The `R` rows of a tile come from `R` runs of the range, not from one place: each run is read
/// from its beginning to its end, which memory foresees. Rows that follow each other, read
/// side by side, came at less than a third of the speed (docs/PERFORMANCE.md).
#[inline(always)]
fn stripe<K: Kernel, const R: usize, const N: usize>(
    weights: &BlockMatrix,
    range: Range<usize>,
    x: &Activations,
    first: usize,
    out: &mut Columns,
) -> usize {
    let mut inputs = [K::input(x, first); N];
    for (n, input) in inputs.iter_mut().enumerate() {
        *input = K::input(x, first + n);
    }
    let run = range.len() / R;
    for row in range.start..range.start + run {
        let mut rows = [weights.row(row); R];
        for (r, place) in rows.iter_mut().enumerate() {
            *place = weights.row(row + r * run);
        }
        let products = K::tile::<R, N>(rows, inputs);
        for (n, products) in products.iter().enumerate() {
            let out = out.of(first + n, range.clone());
            for (r, &product) in products.iter().enumerate() {
                out[row - range.start + r * run] = product;
            }
        }
    }
    N
}

/// The sums of the lanes of `R` times `N` vectors, by input.
#[inline(always)]
fn sum_lanes<V: Eight, const R: usize, const N: usize>(sums: [[V; N]; R]) -> [[f32; R]; N] {
    let mut out = [[0.0; R]; N];
    for (n, out) in out.iter_mut().enumerate() {
        if R == 4 {
            out.copy_from_slice(&V::sum_each([
                sums[0][n],
                sums[1 % R][n],
                sums[2 % R][n],
                sums[3 % R][n],
            ]));
        } else {
            for (r, out) in out.iter_mut().enumerate() {
                *out = sums[r][n].sum();
            }
        }
    }
    out
}

/// [`products`] as machines without AVX2 compute them.
#[cfg(test)]
pub(super) fn any_machine(weights: &BlockMatrix, x: &Activations, out: &mut Columns) {
    if weights.kind.is_packed() {
        portable::products(weights, x, out);
    } else {
        floats::products_body::<crate::vector::Portable>(weights, x, out);
    }
}

/// [`products`] as machines without VNNI compute them; false where they have no AVX2 either.
#[cfg(all(test, target_arch = "x86_64"))]
pub(super) fn with_avx2_alone(weights: &BlockMatrix, x: &Activations, out: &mut Columns) -> bool {
    let there = crate::vector::has_avx2() && weights.kind.is_packed();
    if there {
        // SAFETY: the machine has AVX2, FMA and F16C.
        unsafe { x86::products_plain(weights, x, out) };
    }
    there
}

//! Recurrences whose step is chosen by the input: the scans of Mamba and Mamba-2, and
//! the short causal convolution before them.
//!
//! Sources: Gu and Dao (2023), Mamba: Linear-Time Sequence Modeling with Selective State
//! Spaces; Dao and Gu (2024), Transformers are SSMs.
//!
//! ```text
//! Mamba      h_t[n, c] = exp(Δ_t[c] A[n, c]) h_{t-1}[n, c] + Δ_t[c] B_t[n] x_t[c]
//!            y_t[c] = Σ_n C_t[n] h_t[n, c] + D[c] x_t[c]
//! Mamba-2    S_t = exp(Δ_t A) S_{t-1} + Δ_t x_t B_tᵀ       one Δ, A and S for each head
//!            y_t = S_t C_t + D x_t
//! ```
//!
//! A scan costs the same for every token and keeps a state of one size, which the caller
//! owns: it may be saved, and a scan of some tokens and then of others is the scan of both.
//! A token with `Δ = 0` is passed over: it neither writes nor lets the state decay.
//!
//! In a padded batch only the tokens of a sequence are scanned ([`Selective::tokens`],
//! [`Ssd::tokens`]), whether pads stand before or behind them; a pad fed as zeros would
//! not be neutral, since the convolution's bias writes into the state.

mod conv;
mod selective;
mod selective_backward;
mod ssd;
mod ssd_backward;
#[cfg(test)]
mod tests;
mod tiles;

pub use conv::{CausalConv, CausalConvGradients};
pub use selective::{Selective, selective_scan};
pub use selective_backward::{SelectiveGradients, selective_scan_backward};
pub use ssd::{SSD_CHUNK, Ssd, ssd_scan};
pub use ssd_backward::{SsdGradients, ssd_scan_backward};

use std::marker::PhantomData;
use std::ops::Range;

use crate::matmul::Matrix;

/// Rows of numbers that stand some way apart: all or some columns of a matrix.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    numbers: &'a [f32],
    len: usize,
    width: usize,
    step: usize,
}

impl<'a> Rows<'a> {
    /// All of a row-major matrix with rows of `width` numbers.
    ///
    /// # Panics
    /// When `numbers` is no whole number of rows.
    pub fn new(numbers: &'a [f32], width: usize) -> Self {
        Self::columns(numbers, width, 0..width)
    }

    /// Some columns of a row-major matrix with rows of `step` numbers.
    ///
    /// # Panics
    /// When `numbers` is no whole number of rows or has not these columns.
    pub fn columns(numbers: &'a [f32], step: usize, columns: Range<usize>) -> Self {
        let len = crate::dot::assert_rows(numbers.len(), step, "scan::Rows");
        assert!(
            columns.start <= columns.end && columns.end <= step,
            "scan::Rows: columns {columns:?} of {step}"
        );
        Self {
            numbers: numbers.get(columns.start..).unwrap_or(&[]),
            len,
            width: columns.len(),
            step,
        }
    }

    /// How many rows.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Numbers of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// A row.
    ///
    /// # Panics
    /// When there are not so many.
    #[inline(always)]
    pub fn row(&self, row: usize) -> &'a [f32] {
        &self.numbers[row * self.step..][..self.width]
    }

    /// Some of the rows.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn part(&self, rows: Range<usize>) -> Self {
        assert!(
            rows.start <= rows.end && rows.end <= self.len,
            "scan::Rows: rows {rows:?} of {}",
            self.len
        );
        let first = (rows.start * self.step).min(self.numbers.len());
        Self {
            numbers: &self.numbers[first..],
            len: rows.len(),
            ..*self
        }
    }

    /// Some of the columns.
    fn narrow(&self, columns: Range<usize>) -> Self {
        assert!(columns.end <= self.width, "scan::Rows: columns {columns:?}");
        Self {
            numbers: self.numbers.get(columns.start..).unwrap_or(&[]),
            width: columns.len(),
            ..*self
        }
    }

    fn matrix(&self) -> Matrix<'a> {
        Matrix::strided(self.numbers, self.len, self.width, self.step)
    }
}

/// What thread `part` of `parts` does of `count` things.
fn share(count: usize, part: usize, parts: usize) -> Range<usize> {
    count * part / parts..count * (part + 1) / parts
}

/// Numbers that threads write to, each to places of its own.
struct Shared<'a>(*mut f32, usize, PhantomData<&'a mut [f32]>);

// SAFETY: `slice` is unsafe: whoever calls it keeps threads apart.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    fn new(numbers: &'a mut [f32]) -> Self {
        Self(numbers.as_mut_ptr(), numbers.len(), PhantomData)
    }

    /// `len` numbers from `first` on.
    ///
    /// # Panics
    /// When there are not so many.
    ///
    /// # Safety
    /// Nobody else may hold any of them at the same time.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    unsafe fn slice(&self, first: usize, len: usize) -> &mut [f32] {
        assert!(
            first <= self.1 && len <= self.1 - first,
            "scan: out of range"
        );
        // SAFETY: inside the slice by the assertion, and nobody else's by contract.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(first), len) }
    }
}

/// Gradients of what channels have of their own, which threads share by slabs or heads.
struct SharedGradients<'a> {
    x: Shared<'a>,
    dt: Shared<'a>,
    a: Shared<'a>,
    d: Shared<'a>,
    state: Shared<'a>,
}

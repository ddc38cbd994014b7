//! Products of packed weights, shared by the threads of a [`Team`].

use std::cell::RefCell;
use std::ops::Range;

use super::dot::{Output, products};
use super::{Activations, BlockMatrix, BlockType, dequantize, lanes};
use crate::Team;

/// Packed rows that [`unpacked`] unpacks at once.
const TILE: usize = 64;

/// Shares of threads in [`unpacked`] are whole numbers of so many rows.
const PROMPT_GRAIN: usize = 16;

/// Shares of threads are whole numbers of so many rows, which kernels take together; so
/// no sum depends on the team.
const GRAIN: usize = 4;

/// A matrix and where its products go.
#[derive(Debug)]
pub struct Product<'a> {
    weights: BlockMatrix<'a>,
    out: Output<'a>,
}

impl<'a> Product<'a> {
    /// For `n` inputs `out` is `[n, weights.rows()]`.
    ///
    /// # Panics
    /// When `out` is no whole number of rows of that length.
    pub fn new(weights: BlockMatrix<'a>, out: &'a mut [f32]) -> Self {
        let n = out.len().checked_div(weights.rows).unwrap_or(0);
        let out = Output::new(out, n, weights.rows);
        Self { weights, out }
    }
}

/// `out[n, rows] = x[n, cols] · weightsᵀ`; the weights are read once.
///
/// Packed weights meet inputs rounded to 8 bits (a scale for each 32), others as they are.
/// The result does not depend on the size of the team.
///
/// # Panics
/// When the shapes do not fit.
pub fn matvec(out: &mut [f32], weights: &BlockMatrix, x: &mut Activations, team: &Team) {
    matvec_several(&mut [Product::new(*weights, out)], x, team);
}

/// [`matvec`] of several matrices with the same inputs, handed to the team once.
///
/// # Panics
/// When the shapes do not fit.
pub fn matvec_several(all: &mut [Product], x: &mut Activations, team: &Team) {
    if all.iter().any(|p| p.weights.kind.is_packed()) {
        x.round();
    }
    let (x, all) = (&*x, &*all);
    for Product { weights, out } in all {
        assert_eq!(weights.cols, x.cols(), "matvec: length of an input");
        assert!(
            out.n() == x.rows() || weights.rows == 0,
            "matvec: {} outputs for {} inputs",
            out.n(),
            x.rows()
        );
    }
    let parts = team.threads();
    team.run(|part| {
        for Product { weights, out } in all {
            let range = share(weights.rows, GRAIN, part, parts);
            // SAFETY: shares do not overlap, and `all` is borrowed exclusively, so that
            // nobody else gives out these columns.
            products(weights, x, &mut unsafe { out.columns(range) });
        }
    });
}

/// What thread `part` of `parts` does of `rows` rows, in whole `grain`s but for the end.
fn share(rows: usize, grain: usize, part: usize, parts: usize) -> Range<usize> {
    let grains = rows.div_ceil(grain);
    let place = |part: usize| (grains * part / parts * grain).min(rows);
    place(part)..place(part + 1)
}

thread_local! {
    /// Unpacked rows of a tile.
    static UNPACKED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Whether [`matmul`] rounds its inputs for weights of this kind, as [`matvec`] does, on this
/// machine.
pub fn matmul_rounds(kind: BlockType) -> bool {
    lanes::available(kind)
}

/// From so many inputs on [`matmul`] is faster than [`matvec`] on this machine.
pub fn matmul_from(kind: BlockType) -> usize {
    if matmul_rounds(kind) { 4 } else { 9 }
}

/// `out[n, rows] = x[n, cols] · weightsᵀ` for many rows `x` (a prompt). Packed weights meet inputs
/// rounded as in [`matvec`] where the machine is made for that, so that a prompt is read as it would
/// be token by token; else tiles of weights are unpacked, then multiplied in `f32`.
///
/// # Panics
/// When the shapes do not fit.
pub fn matmul(out: &mut [f32], weights: &BlockMatrix, x: &mut Activations, team: &Team) {
    let n = x.rows();
    assert_eq!(x.cols(), weights.cols, "matmul: length of an input");
    assert_eq!(out.len(), n * weights.rows, "matmul: length of out");
    if !matmul_rounds(weights.kind) {
        return unpacked(out, weights, x.values(), team);
    }
    let out = Output::new(out, n, weights.rows);
    let x = x.grouped();
    let parts = team.threads();
    team.run(|part| {
        let own = share(weights.rows, lanes::LANES, part, parts);
        // SAFETY: shares do not overlap.
        lanes::products(weights, x, &mut unsafe { out.columns(own) });
    });
}

/// [`matmul`] in `f32`.
pub(super) fn unpacked(out: &mut [f32], weights: &BlockMatrix, x: &[f32], team: &Team) {
    let (rows, cols) = (weights.rows, weights.cols);
    let n = crate::dot::assert_rows(x.len(), cols, "matmul");
    let out = Output::new(out, n, rows);
    let parts = team.threads();
    team.run(|part| {
        let own = share(rows, PROMPT_GRAIN, part, parts);
        for first in own.clone().step_by(TILE) {
            let tile = first..(first + TILE).min(own.end);
            UNPACKED.with_borrow_mut(|unpacked| {
                unpacked.resize(TILE * cols, 0.0);
                let unpacked = &mut unpacked[..tile.len() * cols];
                let bytes = &weights.bytes[tile.start * weights.row_bytes..];
                let bytes = &bytes[..tile.len() * weights.row_bytes];
                dequantize(weights.kind, bytes, unpacked);
                // SAFETY: shares and the tiles of one do not overlap.
                let mut columns = unsafe { out.columns(tile) };
                columns.product(x, unpacked, cols);
            });
        }
    });
}

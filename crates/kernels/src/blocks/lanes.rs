//! Many inputs with packed weights, in integers, on machines that multiply bytes in fours
//! (AVX-512 VNNI).
//!
//! ```text
//! weight = scale code + offset          of each row and unit of 32 (or 16) numbers, code 0..=255
//! x      = s q                          of each input and part of 32, see `Activations`
//! out    = Σ_units scale s Σ code q + offset s Σ q
//! ```
//!
//! Sixteen rows are laid out so that a lane belongs to a row: a unit is then added up without
//! sums across lanes, and only its end is scaled. Laying out costs what unpacking does, which
//! many inputs share.

#[cfg(target_arch = "x86_64")]
mod x86;

use std::cell::RefCell;
use std::ops::Range;

use super::dot::Columns;
use super::input::Grouped;
use super::{BlockMatrix, BlockType};

/// Rows of a tile.
pub(super) const LANES: usize = 16;

/// Inputs that meet a tile together.
pub(super) const INPUTS: usize = 8;

/// Sixteen rows side by side.
#[derive(Debug, Default)]
struct Tile {
    /// `[cols / 4, LANES, 4]`
    codes: Vec<u8>,
    /// `[units, LANES]`
    scales: Vec<f32>,
    /// `[units, LANES]`
    offsets: Vec<f32>,
}

/// Numbers of a row with one scale.
fn unit(kind: BlockType) -> usize {
    match kind {
        BlockType::Q6K => 16,
        _ => 32,
    }
}

impl Tile {
    /// Room for rows of `cols` numbers, all 0.
    fn clear(&mut self, kind: BlockType, cols: usize) {
        self.codes.clear();
        self.codes.resize(LANES * cols, 0);
        for numbers in [&mut self.scales, &mut self.offsets] {
            numbers.clear();
            numbers.resize(cols / unit(kind) * LANES, 0.0);
        }
    }
}

thread_local! {
    static TILE: RefCell<Tile> = RefCell::default();
}

/// Whether [`products`] may be called for this kind on this machine.
pub(super) fn available(kind: BlockType) -> bool {
    kind.is_packed() && has_lanes()
}

/// Whether the machine adds up products of bytes in fours.
fn has_lanes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return crate::vector::has_vnni();
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// Writes the products of the rows of `out` with all inputs.
///
/// # Panics
/// When the machine or the kind is none that [`available`] names, or shapes do not fit.
pub(super) fn products(weights: &BlockMatrix, x: &Grouped, out: &mut Columns) {
    assert!(available(weights.kind), "lanes: not on this machine");
    assert_eq!(weights.cols, x.cols, "lanes: length of an input");
    let range = out.range();
    // Taken out: a thread may work for another team meanwhile.
    let mut tile = TILE.take();
    for first in range.clone().step_by(LANES) {
        let rows = first..(first + LANES).min(range.end);
        fill(weights, rows.clone(), &mut tile);
        for group in 0..x.groups() {
            let found = multiply(&tile, weights.kind, x, group);
            for (i, found) in found.iter().take(x.in_group(group)).enumerate() {
                let to = out.of(group * INPUTS + i, rows.clone());
                to.copy_from_slice(&found[..rows.len()]);
            }
        }
    }
    TILE.set(tile);
}

/// Lays the rows out.
fn fill(weights: &BlockMatrix, rows: Range<usize>, tile: &mut Tile) {
    tile.clear(weights.kind, weights.cols);
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `products` has seen that the machine has what is needed.
    return unsafe { x86::fill(weights, rows, tile) };
    #[cfg(not(target_arch = "x86_64"))]
    unreachable!("no machine of this kind is available: {rows:?}");
}

/// Products of a tile with the inputs of a group.
fn multiply(tile: &Tile, kind: BlockType, x: &Grouped, group: usize) -> [[f32; LANES]; INPUTS] {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as in `fill`.
    return unsafe { x86::multiply(tile, unit(kind), x, group) };
    #[cfg(not(target_arch = "x86_64"))]
    return multiply_twin(tile, unit(kind), x, group);
}

/// [`multiply`] on any machine, for units of `unit` numbers.
#[cfg(any(test, not(target_arch = "x86_64")))]
fn multiply_twin(tile: &Tile, unit: usize, x: &Grouped, group: usize) -> [[f32; LANES]; INPUTS] {
    let (codes, scales, sums) = x.group(group, unit);
    let mut out = [[0.0; LANES]; INPUTS];
    for (i, out) in out.iter_mut().enumerate() {
        for (lane, out) in out.iter_mut().enumerate() {
            for u in 0..x.cols / unit {
                let dot: i32 = (u * unit..(u + 1) * unit)
                    .map(|c| {
                        let code = tile.codes[(c / 4 * LANES + lane) * 4 + c % 4];
                        let q = codes[(c / 4 * INPUTS + i) * 4 + c % 4];
                        i32::from(code) * i32::from(q)
                    })
                    .sum();
                let scale = tile.scales[u * LANES + lane] * scales[u * unit / 32 * INPUTS + i];
                *out += dot as f32 * scale;
                *out += tile.offsets[u * LANES + lane] * sums[u * INPUTS + i];
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::tests::{any_blocks, numbers};
    use crate::blocks::{Activations, dequantize};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn rows_side_by_side_are_the_unpacked_ones_and_products_those_of_the_twin(
            kind in prop::sample::select(BlockType::ALL.to_vec()),
            rows in 1usize..=LANES,
            blocks in 1usize..3,
            n in 1usize..20,
            seed: u64,
        ) {
            if !available(kind) {
                return Ok(());
            }
            let cols = blocks * kind.block_len();
            let bytes = any_blocks(kind, rows * blocks, seed);
            let weights = BlockMatrix::new(kind, rows, cols, &bytes).unwrap();
            let mut tile = Tile::default();
            fill(&weights, 0..rows, &mut tile);
            let mut w = vec![0.0; rows * cols];
            dequantize(kind, &bytes, &mut w);
            for (row, w) in w.chunks_exact(cols).enumerate() {
                for (c, w) in w.iter().enumerate() {
                    let code = f32::from(tile.codes[(c / 4 * LANES + row) * 4 + c % 4]);
                    let u = c / unit(kind) * LANES + row;
                    let (scale, offset) = (tile.scales[u], tile.offsets[u]);
                    let bound = 1e-6 * (scale.abs() * 255.0 + offset.abs());
                    prop_assert!((scale * code + offset - w).abs() <= bound, "{kind:?} {row} {c}");
                }
            }
            let mut x = Activations::new();
            x.set(&numbers(n * cols, !seed), cols);
            let x = x.grouped();
            for group in 0..x.groups() {
                let found = multiply(&tile, kind, x, group);
                let twin = multiply_twin(&tile, unit(kind), x, group);
                for (found, twin) in found.iter().zip(&twin).take(x.in_group(group)) {
                    let size = twin.iter().fold(1f32, |a, x| a.max(x.abs()));
                    for (a, b) in found.iter().zip(twin) {
                        // Sums of large terms with different signs.
                        prop_assert!((a - b).abs() <= 1e-4 * size, "{kind:?}: {a} {b}");
                    }
                }
            }
        }
    }
}

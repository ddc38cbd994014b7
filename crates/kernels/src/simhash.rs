//! SimHash: the cell of a random partition that a vector lies in (Charikar 2002).
//!
//! `k` hyperplanes through 0 cut space into `2^k` cells. A vector lies on the
//! positive side of a plane or not, which makes `k` bits; read as a Gray code,
//! the first plane first, they number the cell, so that cells with neighbouring
//! numbers differ in one plane. The products with the planes of many partitions
//! come from one matrix product.

use crate::dot::assert_rows;
use crate::vector::{Eight, simd};

/// Most planes of a partition.
pub const MAX_PLANES: usize = 16;

/// For every row of `products` (`[n, partitions * planes]`, products of a vector
/// with the planes of all partitions) the cell in each partition; `cells` is
/// `[n, partitions]`. A product of 0, or NaN, is not on the positive side.
///
/// # Panics
/// When the lengths do not fit, or there are more than [`MAX_PLANES`] planes.
pub fn simhash_cells(products: &[f32], planes: usize, partitions: usize, cells: &mut [u16]) {
    assert!(planes <= MAX_PLANES, "simhash_cells: {planes} planes");
    if planes == 0 {
        cells.fill(0);
        return;
    }
    let n = assert_rows(products.len(), planes * partitions, "simhash_cells");
    assert_eq!(cells.len(), n * partitions, "simhash_cells: cells");
    fill_cells(products, planes, partitions, cells);
}

/// The sides of the planes that a cell stands for, the first plane in the
/// highest of the bits.
pub fn simhash_sides(cell: u16) -> u16 {
    cell ^ (cell >> 1)
}

/// The inverse of [`simhash_sides`].
#[inline(always)]
fn cell_of(sides: u16) -> u16 {
    // Every bit becomes the parity of itself and all above.
    let mut cell = sides;
    cell ^= cell >> 1;
    cell ^= cell >> 2;
    cell ^= cell >> 4;
    cell ^ (cell >> 8)
}

simd! {
    fn fill_cells(products: &[f32], planes: usize, partitions: usize, cells: &mut [u16]) = fill_cells_body;
}

#[inline(always)]
fn fill_cells_body<V: Eight>(
    products: &[f32],
    planes: usize,
    partitions: usize,
    cells: &mut [u16],
) {
    let rows = products.chunks_exact(planes * partitions);
    for (row, cells) in rows.zip(cells.chunks_exact_mut(partitions)) {
        // Bits of planes whose partition is not complete, the oldest lowest.
        let (mut bits, mut waiting) = (0u32, 0usize);
        let mut cells = cells.iter_mut();
        let mut take = |sides: u32, count: usize| {
            bits |= sides << waiting;
            waiting += count;
            while waiting >= planes {
                let first_lowest = (bits & ((1 << planes) - 1)) as u16;
                let sides = first_lowest.reverse_bits() >> (16 - planes);
                if let Some(cell) = cells.next() {
                    *cell = cell_of(sides);
                }
                bits >>= planes;
                waiting -= planes;
            }
        };
        let eights = row.chunks_exact(8);
        let rest = eights.remainder();
        for eight in eights {
            take(V::splat(0.0).less_mask(V::load(eight)), 8);
        }
        for &x in rest {
            take(u32::from(x > 0.0), 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::Portable;
    use proptest::prelude::*;

    /// As the authors write it: append bit XOR the lowest bit so far.
    fn definition(products: &[f32]) -> u16 {
        products.iter().fold(0, |cell, &x| {
            (cell << 1) + (u16::from(x > 0.0) ^ (cell & 1))
        })
    }

    proptest! {
        #[test]
        fn cells_are_gray_codes_of_the_sides(
            planes in 1usize..=MAX_PLANES,
            partitions in 1usize..23,
            n in 0usize..4,
            seed in prop::collection::vec(-3i8..4, 16 * 22 * 3),
        ) {
            let products: Vec<f32> =
                seed[..n * planes * partitions].iter().map(|&x| f32::from(x)).collect();
            let want: Vec<u16> = products.chunks(planes).map(definition).collect();
            let mut cells = vec![9; n * partitions];
            simhash_cells(&products, planes, partitions, &mut cells);
            prop_assert_eq!(&cells, &want);
            cells.fill(9);
            fill_cells_body::<Portable>(&products, planes, partitions, &mut cells);
            prop_assert_eq!(&cells, &want);
            for (cell, products) in want.iter().zip(products.chunks(planes)) {
                let sides = products.iter().fold(0, |s, &x| s << 1 | u16::from(x > 0.0));
                prop_assert_eq!(simhash_sides(*cell), sides);
                prop_assert_eq!(cell_of(sides), *cell);
            }
        }
    }

    #[test]
    fn known_cells() {
        let mut cells = [0; 4];
        // ++, +-, --, and a product of 0, which is on no positive side.
        let products = [1.0, 2.0, 1.0, -1.0, -1.0, f32::NAN, 0.0, 5.0];
        simhash_cells(&products, 2, 2, &mut cells);
        assert_eq!(cells, [2, 3, 0, 1]);
        simhash_cells(&[], 0, 4, &mut cells);
        assert_eq!(cells, [0; 4]);
    }
}

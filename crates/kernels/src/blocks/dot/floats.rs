//! Rows of `f32`, `f16` and `bf16`.

use std::marker::PhantomData;

use half::f16;

use super::{Columns, Kernel, cover, sum_lanes};
use crate::blocks::{Activations, BlockMatrix, BlockType};
use crate::vector::{Eight, simd};

simd! {
    /// See [`super::products`].
    pub(super) fn products(weights: &BlockMatrix, x: &Activations, out: &mut Columns) = products_body;
}

#[inline(always)]
pub(in crate::blocks) fn products_body<V: Eight>(
    weights: &BlockMatrix,
    x: &Activations,
    out: &mut Columns,
) {
    match weights.kind {
        BlockType::F32 => cover::<Floats<V, Single>>(weights, x, out),
        BlockType::F16 => cover::<Floats<V, Half>>(weights, x, out),
        _ => cover::<Floats<V, Brain>>(weights, x, out),
    }
}

/// How a number lies in memory.
trait Number {
    const BYTES: usize;
    /// # Safety
    /// Eight numbers must be readable.
    unsafe fn eight<V: Eight>(from: *const u8) -> V;
    /// The number in the first bytes.
    fn one(from: &[u8]) -> f32;
}

struct Single;
struct Half;
struct Brain;

impl Number for Single {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn eight<V: Eight>(from: *const u8) -> V {
        // SAFETY: by contract.
        unsafe { V::load_f32_at(from) }
    }
    #[inline(always)]
    fn one(from: &[u8]) -> f32 {
        f32::from_le_bytes([from[0], from[1], from[2], from[3]])
    }
}

impl Number for Half {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn eight<V: Eight>(from: *const u8) -> V {
        // SAFETY: by contract.
        unsafe { V::load_f16_at(from) }
    }
    #[inline(always)]
    fn one(from: &[u8]) -> f32 {
        f16::from_le_bytes([from[0], from[1]]).to_f32()
    }
}

impl Number for Brain {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn eight<V: Eight>(from: *const u8) -> V {
        // SAFETY: by contract.
        unsafe { V::load_bf16_at(from) }
    }
    #[inline(always)]
    fn one(from: &[u8]) -> f32 {
        f32::from_bits(u32::from(u16::from_le_bytes([from[0], from[1]])) << 16)
    }
}

struct Floats<V, T>(PhantomData<(V, T)>);

impl<V: Eight, T: Number> Kernel for Floats<V, T> {
    type Input<'a> = &'a [f32];

    const TILES: bool = V::TILES;

    #[inline(always)]
    fn input(x: &Activations, row: usize) -> &[f32] {
        x.row(row)
    }

    #[inline(always)]
    fn tile<const R: usize, const N: usize>(rows: [&[u8]; R], x: [&[f32]; N]) -> [[f32; R]; N] {
        let cols = rows[0].len() / T::BYTES;
        assert!(rows.iter().all(|row| row.len() == cols * T::BYTES));
        assert!(x.iter().all(|x| x.len() == cols));
        let whole = cols - cols % 8;
        let mut sums = [[V::splat(0.0); N]; R];
        for at in (0..whole).step_by(8) {
            for r in 0..R {
                // SAFETY: at + 8 <= cols, and every row and input has cols numbers.
                let w: V = unsafe { T::eight(rows[r].as_ptr().add(at * T::BYTES)) };
                for n in 0..N {
                    // SAFETY: as above.
                    let x = unsafe { V::load_at(x[n].as_ptr().add(at)) };
                    sums[r][n] = w.mul_add(x, sums[r][n]);
                }
            }
        }
        let mut out = sum_lanes(sums);
        for at in whole..cols {
            for r in 0..R {
                let w = T::one(&rows[r][at * T::BYTES..]);
                for n in 0..N {
                    out[n][r] += w * x[n][at];
                }
            }
        }
        out
    }
}

//! How the numbers of a cache row are unpacked in registers.

use crate::vector::Eight;

/// How rows are unpacked: `GROUP` vectors of eight at once.
pub(super) trait Packed {
    const GROUP: usize;
    /// The vectors `GROUP * i ..`; those beyond `GROUP` are not written.
    ///
    /// # Safety
    /// `8 * GROUP * (i + 1)` numbers of the row must be readable.
    unsafe fn load<V: Eight>(row: *const u8, i: usize, into: &mut [V; 4]);
    /// The last numbers of a row, fewer than eight, where a row need not be whole blocks.
    fn tail(row: &[u8], i: usize) -> f32;
}

pub(super) struct Single;
pub(super) struct Half;
pub(super) struct Brain;
pub(super) struct Q8;
pub(super) struct Q4;

impl Packed for Single {
    const GROUP: usize = 1;
    #[inline(always)]
    unsafe fn load<V: Eight>(row: *const u8, i: usize, into: &mut [V; 4]) {
        // SAFETY: by contract.
        into[0] = unsafe { V::load_f32_at(row.add(32 * i)) };
    }
    #[inline(always)]
    fn tail(row: &[u8], i: usize) -> f32 {
        f32::from_le_bytes([row[4 * i], row[4 * i + 1], row[4 * i + 2], row[4 * i + 3]])
    }
}

impl Packed for Half {
    const GROUP: usize = 1;
    #[inline(always)]
    unsafe fn load<V: Eight>(row: *const u8, i: usize, into: &mut [V; 4]) {
        // SAFETY: by contract.
        into[0] = unsafe { V::load_f16_at(row.add(16 * i)) };
    }
    #[inline(always)]
    fn tail(row: &[u8], i: usize) -> f32 {
        half::f16::from_le_bytes([row[2 * i], row[2 * i + 1]]).to_f32()
    }
}

impl Packed for Brain {
    const GROUP: usize = 1;
    #[inline(always)]
    unsafe fn load<V: Eight>(row: *const u8, i: usize, into: &mut [V; 4]) {
        // SAFETY: by contract.
        into[0] = unsafe { V::load_bf16_at(row.add(16 * i)) };
    }
    #[inline(always)]
    fn tail(row: &[u8], i: usize) -> f32 {
        half::bf16::from_le_bytes([row[2 * i], row[2 * i + 1]]).to_f32()
    }
}

impl Packed for Q8 {
    const GROUP: usize = 4;
    #[inline(always)]
    unsafe fn load<V: Eight>(row: *const u8, i: usize, into: &mut [V; 4]) {
        // SAFETY: by contract; a block has 34 bytes.
        unsafe {
            let block = row.add(34 * i);
            let scale = V::splat_f16_at(block);
            for (j, x) in into.iter_mut().enumerate() {
                *x = V::load_i8_at(block.add(2 + 8 * j)).mul(scale);
            }
        }
    }
    #[inline(always)]
    fn tail(_row: &[u8], _i: usize) -> f32 {
        unreachable!("rows are whole blocks")
    }
}

impl Packed for Q4 {
    const GROUP: usize = 4;
    #[inline(always)]
    unsafe fn load<V: Eight>(row: *const u8, i: usize, into: &mut [V; 4]) {
        // SAFETY: by contract; a block has 18 bytes.
        unsafe {
            let block = row.add(18 * i);
            let scale = V::splat_f16_at(block);
            let offset = V::splat(-8.0).mul(scale);
            for j in 0..2 {
                let (low, high) = V::load_nibbles_at(block.add(2 + 8 * j));
                into[j] = low.mul_add(scale, offset);
                into[j + 2] = high.mul_add(scale, offset);
            }
        }
    }
    #[inline(always)]
    fn tail(_row: &[u8], _i: usize) -> f32 {
        unreachable!("rows are whole blocks")
    }
}

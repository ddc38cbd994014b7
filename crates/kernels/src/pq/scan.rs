//! The products of a query with many coded vectors.

use super::{PQ_BLOCK, ProductQuantizer};
use crate::dot::assert_rows;

/// A query's tables, made by [`ProductQuantizer::query`].
#[derive(Debug, Clone)]
pub struct PqQuery {
    bits: u32,
    groups: Vec<u32>,
    /// Bytes of a block.
    block: usize,
    /// With 8 bits `[groups, 256]`.
    table: Vec<f32>,
    /// With 4 bits `[groups, 16]`: `(entry - least of its group) / step`, rounded.
    bytes: Vec<u8>,
    pub(super) step: f32,
    /// Sum of the least entries.
    base: f32,
}

impl PqQuery {
    pub(super) fn new(quantizer: &ProductQuantizer, groups: &[u32], table: Vec<f32>) -> Self {
        let mut query = Self {
            bits: quantizer.bits,
            groups: groups.to_vec(),
            block: quantizer.block_bytes(),
            table,
            bytes: Vec::new(),
            step: 0.0,
            base: 0.0,
        };
        if query.bits == 4 {
            query.round();
        }
        query
    }

    fn round(&mut self) {
        let least = |t: &[f32]| t.iter().fold(f32::INFINITY, |a, &b| a.min(b));
        let most = |t: &[f32]| t.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
        let groups = || self.table.chunks_exact(16);
        let range = groups().fold(0.0f32, |r, t| r.max(most(t) - least(t)));
        let step = range / 255.0;
        let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
        self.base = groups().map(least).sum();
        self.bytes = groups()
            .flat_map(|t| {
                let least = least(t);
                // The cast ends at 0 and 255.
                t.iter().map(move |x| ((x - least) * inverse).round() as u8)
            })
            .collect();
        self.step = step;
        self.table = Vec::new();
    }

    /// The products with the vectors of some blocks, [`PQ_BLOCK`] for each; what
    /// stands for vectors beyond the last of a block has no meaning.
    ///
    /// # Panics
    /// When `codes` are no whole number of blocks, or `out` has not room for each.
    pub fn scan(&self, codes: &[u8], out: &mut [f32]) {
        let n = assert_rows(codes.len(), self.block, "PqQuery::scan");
        assert_eq!(out.len(), n * PQ_BLOCK, "PqQuery::scan: length of out");
        let blocks = codes.chunks_exact(self.block.max(1));
        for (block, out) in blocks.zip(out.chunks_exact_mut(PQ_BLOCK)) {
            if self.bits == 8 {
                self.scan_8(block, out);
            } else {
                let mut sums = [0; PQ_BLOCK];
                scan_4(&self.groups, &self.bytes, block, &mut sums);
                for (out, sum) in out.iter_mut().zip(sums) {
                    *out = self.base + self.step * sum as f32;
                }
            }
        }
    }

    fn scan_8(&self, block: &[u8], out: &mut [f32]) {
        out.fill(0.0);
        let tables = self.groups.iter().zip(self.table.chunks_exact(256));
        for (&g, table) in tables {
            let codes = &block[g as usize * PQ_BLOCK..][..PQ_BLOCK];
            for (out, &code) in out.iter_mut().zip(codes) {
                *out += table[usize::from(code)];
            }
        }
    }
}

/// Sums of table entries (`[groups, 16]`) of the 64 vectors of a block.
pub(super) fn scan_4(groups: &[u32], tables: &[u8], block: &[u8], sums: &mut [u32; PQ_BLOCK]) {
    let last = groups.iter().max().map_or(0, |&g| g as usize + 1);
    assert!(
        last * 32 <= block.len() && tables.len() == groups.len() * 16,
        "scan_4: a group is not there"
    );
    #[cfg(target_arch = "x86_64")]
    if crate::vector::has_avx2() {
        // SAFETY: the machine has AVX2; every group's 32 bytes lie in the block and
        // there are 16 bytes of table for each, as was just asserted.
        unsafe { x86::scan_4(groups, tables, block, sums) };
        return;
    }
    scan_4_portable(groups, tables, block, sums);
}

pub(super) fn scan_4_portable(
    groups: &[u32],
    tables: &[u8],
    block: &[u8],
    sums: &mut [u32; PQ_BLOCK],
) {
    sums.fill(0);
    let (low, high) = sums.split_at_mut(32);
    for (&g, table) in groups.iter().zip(tables.chunks_exact(16)) {
        let codes = &block[g as usize * 32..][..32];
        for ((&code, low), high) in codes.iter().zip(&mut *low).zip(&mut *high) {
            *low += u32::from(table[usize::from(code & 15)]);
            *high += u32::from(table[usize::from(code >> 4)]);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::PQ_BLOCK;
    use std::arch::x86_64::*;

    /// Groups whose entries (at most 255) add up in 16 bits.
    const AT_ONCE: usize = 256;

    /// # Safety
    /// The machine must have AVX2, `block` 32 bytes at `32 * g` for every group
    /// `g`, and `tables` 16 bytes for each.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn scan_4(
        groups: &[u32],
        tables: &[u8],
        block: &[u8],
        sums: &mut [u32; PQ_BLOCK],
    ) {
        sums.fill(0);
        let nibble = _mm256_set1_epi8(15);
        let even = _mm256_set1_epi16(255);
        for (groups, tables) in groups.chunks(AT_ONCE).zip(tables.chunks(AT_ONCE * 16)) {
            // Of bytes at even and at odd places, of low and of high halves.
            let mut sum = [_mm256_setzero_si256(); 4];
            for (i, &g) in groups.iter().enumerate() {
                // The same group of the next block: groups lie too far apart for the
                // machine to see a pattern.
                let later = block.as_ptr().wrapping_add(block.len() + 32 * g as usize);
                _mm_prefetch::<_MM_HINT_T0>(later.cast());
                // SAFETY: both are readable by contract; unaligned loads.
                let (codes, table) = unsafe {
                    let codes = block.as_ptr().add(32 * g as usize);
                    let table = tables.as_ptr().add(16 * i);
                    (
                        _mm256_loadu_si256(codes.cast()),
                        _mm256_broadcastsi128_si256(_mm_loadu_si128(table.cast())),
                    )
                };
                let low = _mm256_and_si256(codes, nibble);
                let high = _mm256_and_si256(_mm256_srli_epi16::<4>(codes), nibble);
                let low = _mm256_shuffle_epi8(table, low);
                let high = _mm256_shuffle_epi8(table, high);
                sum[0] = _mm256_add_epi16(sum[0], _mm256_and_si256(low, even));
                sum[1] = _mm256_add_epi16(sum[1], _mm256_srli_epi16::<8>(low));
                sum[2] = _mm256_add_epi16(sum[2], _mm256_and_si256(high, even));
                sum[3] = _mm256_add_epi16(sum[3], _mm256_srli_epi16::<8>(high));
            }
            for (s, sum) in sum.into_iter().enumerate() {
                let mut parts = [0u16; 16];
                // SAFETY: an array of 16 numbers of 16 bits takes a register.
                unsafe { _mm256_storeu_si256(parts.as_mut_ptr().cast(), sum) };
                for (i, part) in parts.into_iter().enumerate() {
                    sums[s / 2 * 32 + 2 * i + s % 2] += u32::from(part);
                }
            }
        }
    }
}

//! [`Vector`] for any machine.

use super::{Eight, Vector};

/// Eight numbers for any machine.
#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; 8]);

/// A multiply-add in one instruction where every machine of the architecture has
/// it; elsewhere `f32::mul_add` would be a slow call.
#[inline(always)]
fn portable_mul_add(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(target_arch = "aarch64") {
        a.mul_add(b, c)
    } else {
        a * b + c
    }
}

impl Portable {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|l| f(self.0[l], other.0[l])))
    }
}

impl Vector for Portable {
    const LEN: usize = 8;
    #[inline(always)]
    fn splat(x: f32) -> Self {
        Self([x; 8])
    }
    #[inline(always)]
    fn load(from: &[f32]) -> Self {
        let from = &from[..8];
        Self(std::array::from_fn(|l| from[l]))
    }
    #[inline(always)]
    unsafe fn load_at(from: *const f32) -> Self {
        // SAFETY: eight numbers are readable by contract, and an array of them
        // needs no more alignment than one.
        Self(unsafe { from.cast::<[f32; 8]>().read() })
    }
    #[inline(always)]
    fn store(self, to: &mut [f32]) {
        to[..8].copy_from_slice(&self.0);
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        Self(std::array::from_fn(|l| {
            portable_mul_add(self.0[l], factor.0[l], term.0[l])
        }))
    }
    #[inline(always)]
    fn mul_sub(self, factor: Self, term: Self) -> Self {
        Self(std::array::from_fn(|l| {
            portable_mul_add(self.0[l], factor.0[l], -term.0[l])
        }))
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn abs(self) -> Self {
        Self(self.0.map(f32::abs))
    }
    #[inline(always)]
    fn if_less(self, bound: Self, yes: Self, no: Self) -> Self {
        Self(std::array::from_fn(|l| {
            if self.0[l] < bound.0[l] {
                yes.0[l]
            } else {
                no.0[l]
            }
        }))
    }
    #[inline(always)]
    fn shift_bits(self, add: u32, left: u32) -> Self {
        Self(
            self.0
                .map(|x| f32::from_bits(x.to_bits().wrapping_add(add) << left)),
        )
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        let [a, b, c, d, e, f, g, h] = self.0;
        ((a + e) + (c + g)) + ((b + f) + (d + h))
    }
}

impl Eight for Portable {
    const TILES: bool = cfg!(target_arch = "aarch64");
    #[inline(always)]
    unsafe fn repeat_at<const L: usize>(from: *const f32) -> Self {
        // SAFETY: l % L < L numbers are readable by contract.
        Self(std::array::from_fn(|l| unsafe { *from.add(l % L) }))
    }
    #[inline(always)]
    fn sum_groups<const L: usize>(self) -> Self {
        let mut x = self.0;
        let mut distance = 1;
        while distance < L {
            // The partner's place differs in one bit.
            x = std::array::from_fn(|l| x[l] + x[l ^ distance]);
            distance *= 2;
        }
        Self(x)
    }
    #[inline(always)]
    fn look_up<const BITS: u32>(codes: u32, first: u32, low: Self, high: Self) -> Self {
        Self(std::array::from_fn(|l| {
            let code = (codes >> (first + l as u32 * BITS)) as usize & ((1 << BITS) - 1);
            if code < 8 {
                low.0[code]
            } else {
                high.0[code - 8]
            }
        }))
    }
    #[inline(always)]
    fn less_mask(self, bound: Self) -> u32 {
        let bit = |l: usize| u32::from(self.0[l] < bound.0[l]) << l;
        (0..8).map(bit).sum()
    }
    #[inline(always)]
    fn to_array(self) -> [f32; 8] {
        self.0
    }
    #[inline(always)]
    fn prefetch(_numbers: &[f32]) {}
    #[inline(always)]
    fn prefetch_line(_at: *const u8) {}
    #[inline(always)]
    unsafe fn load_f32_at(from: *const u8) -> Self {
        // SAFETY: 32 bytes are readable by contract, and bytes need no alignment.
        let words = unsafe { from.cast::<[[u8; 4]; 8]>().read() };
        Self(words.map(f32::from_le_bytes))
    }
    #[inline(always)]
    unsafe fn load_f16_at(from: *const u8) -> Self {
        // SAFETY: 16 bytes are readable by contract, and bytes need no alignment.
        let halves = unsafe { from.cast::<[[u8; 2]; 8]>().read() };
        Self(halves.map(|h| half::f16::from_le_bytes(h).to_f32()))
    }
    #[inline(always)]
    unsafe fn splat_f16_at(from: *const u8) -> Self {
        // SAFETY: 2 bytes are readable by contract, and bytes need no alignment.
        let half = unsafe { from.cast::<[u8; 2]>().read() };
        Self::splat(half::f16::from_le_bytes(half).to_f32())
    }
    #[inline(always)]
    unsafe fn load_bf16_at(from: *const u8) -> Self {
        // SAFETY: 16 bytes are readable by contract, and bytes need no alignment.
        let halves = unsafe { from.cast::<[[u8; 2]; 8]>().read() };
        Self(halves.map(|h| f32::from_bits(u32::from(u16::from_le_bytes(h)) << 16)))
    }
    #[inline(always)]
    unsafe fn load_i8_at(from: *const u8) -> Self {
        // SAFETY: 8 bytes are readable by contract.
        let bytes = unsafe { from.cast::<[i8; 8]>().read() };
        Self(bytes.map(f32::from))
    }
    #[inline(always)]
    unsafe fn load_nibbles_at(from: *const u8) -> (Self, Self) {
        // SAFETY: 8 bytes are readable by contract.
        let bytes = unsafe { from.cast::<[u8; 8]>().read() };
        let low = bytes.map(|b| f32::from(b & 15));
        (Self(low), Self(bytes.map(|b| f32::from(b >> 4))))
    }
    #[inline(always)]
    fn label_products(codes: &[u8], signed: &[i8], nibbles: bool) -> [i32; 32] {
        let mut sums = [0; 32];
        let columns = if nibbles { 4 } else { 2 };
        for (pairs, y) in codes.chunks_exact(64).zip(signed.chunks_exact(columns)) {
            for (sum, pair) in sums.iter_mut().zip(pairs.as_chunks::<2>().0) {
                for (column, &y) in y.iter().enumerate() {
                    let byte = pair[column % 2];
                    let code = match (nibbles, column / 2) {
                        (false, _) => byte,
                        (true, 0) => byte & 15,
                        (true, _) => byte >> 4,
                    };
                    *sum += i32::from(code) * i32::from(y);
                }
            }
        }
        sums
    }
    #[inline(always)]
    fn sum_each(four: [Self; 4]) -> [f32; 4] {
        four.map(Self::sum)
    }
}

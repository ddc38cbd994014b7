//! Writing codes.

use crate::vector::{Eight, simd};

/// Eight codes in `bits` bytes.
#[derive(Debug)]
pub struct Group<'a>(&'a mut [u8]);

impl<'a> Group<'a> {
    /// The group in `bytes`, which are as many as a code has bits.
    ///
    /// # Panics
    /// When they are more than four.
    pub fn new(bytes: &'a mut [u8]) -> Self {
        assert!(bytes.len() <= 4, "Group: {} bytes", bytes.len());
        Self(bytes)
    }

    fn bits(&self) -> u32 {
        self.0.len() as u32
    }

    fn word(&self) -> u32 {
        let mut word = [0; 4];
        word[..self.0.len()].copy_from_slice(self.0);
        u32::from_le_bytes(word)
    }

    /// Code `place` (0 to 7).
    pub fn get(&self, place: usize) -> u8 {
        let mask = (1u32 << self.bits()) - 1;
        (self.word() >> (place as u32 * self.bits()) & mask) as u8
    }

    /// Replaces code `place` (0 to 7).
    pub fn set(&mut self, place: usize, code: u8) {
        let (bits, first) = (self.bits(), place as u32 * self.bits());
        let mask = ((1u32 << bits) - 1) << first;
        let word = (self.word() & !mask) | (u32::from(code) << first & mask);
        let bytes = word.to_le_bytes();
        self.0.copy_from_slice(&bytes[..self.0.len()]);
    }
}

/// `codes[i]` = how many of the ascending `bounds` are less than `values[i]`: the place of
/// the nearest entry, where the bounds are the middles between the entries of a table. NaN
/// has the code 0.
///
/// # Panics
/// When the lengths differ.
pub fn nearest_codes(values: &[f32], bounds: &[f32], codes: &mut [u8]) {
    assert_eq!(values.len(), codes.len(), "nearest_codes: lengths differ");
    nearest(values, bounds, codes);
}

simd! {
    fn nearest(values: &[f32], bounds: &[f32], codes: &mut [u8]) = nearest_body;
}

#[inline(always)]
pub(super) fn nearest_body<V: Eight>(values: &[f32], bounds: &[f32], codes: &mut [u8]) {
    let values = values.chunks(32);
    for (values, codes) in values.zip(codes.chunks_mut(32)) {
        codes.fill(0);
        for &bound in bounds {
            // The compiler makes vector code of it.
            for (code, &value) in codes.iter_mut().zip(values) {
                *code += u8::from(value > bound);
            }
        }
    }
}

//! Rows of a cache whose numbers are codes of 2, 3 or 4 bits, each the place of a number in
//! a small table; products and sums are made from the codes, without dense rows.
//!
//! Keys and values lie differently, as each is read:
//!
//! - keys `[granules, dim, bits]` bytes ([`KeyCodes`]): the codes of a channel for the eight
//!   rows of a granule lie together. Every channel has a table of its own, which holds its
//!   scale and its zero; eight rows are looked up, turned by their positions and multiplied
//!   at once, so that rotary embedding costs no unpacking;
//! - values `[rows, dim / 8, bits]` bytes ([`ValueCodes`]): one table for all channels; scale
//!   and zero are of the row and belong to its weight.
//!
//! Numbers that tables do not reach lie beside the codes ([`Beside`]) and are added by
//! kernels of their own.
//!
//! Code `l` of a group of eight takes the bits `l * bits ..` of the group's bytes, the least
//! significant first. Of a row of 64 numbers three queries' products take 10 to 16 ns in the
//! cache, sums 5 to 12 ns, in 2 to 4 bits.

mod beside;
mod encode;
mod keys;
#[cfg(test)]
mod tests;
mod values;
#[cfg(target_arch = "x86_64")]
mod wide;

pub use beside::{Beside, BesideRows, MOST_CHANNELS, dot_beside, mix_beside, widen_scales};
pub use encode::{Group, nearest_codes};
pub use keys::{Angles, KeyCodes, dot_keys, read_keys};
pub use values::{ValueCodes, mix_values, read_values};

/// Rows of keys whose codes lie together.
pub const GRANULE: usize = 8;

/// Bytes that must follow the codes: groups are read in four.
pub const BEHIND: usize = 4;

/// Numbers of a table as the kernels read it: 16 for 4 bits, else 8.
pub fn table_len(bits: u32) -> usize {
    if bits == 4 { 16 } else { 8 }
}

/// Writes a table of `2^bits` numbers as the kernels read it: one of four is there twice.
///
/// # Panics
/// When `to` has another length than [`table_len`] or `table` is empty.
pub fn fill_table(to: &mut [f32], bits: u32, table: impl Fn(usize) -> f32) {
    assert_eq!(to.len(), table_len(bits), "fill_table: length");
    for (i, to) in to.iter_mut().enumerate() {
        *to = table(i % (1 << bits));
    }
}

fn assert_bits(bits: u32, who: &str) {
    assert!(
        (2..=4).contains(&bits),
        "{who}: codes of {bits} bits; there are those of 2, 3 and 4"
    );
}

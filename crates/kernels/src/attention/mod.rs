//! Attention over the rows of a cache that may be packed, and its pieces.
//!
//! A decoded token reads every chosen key and value once, for all query heads that share
//! them, so what these kernels aim at is the speed of memory: a row of 64 `f16` and three
//! queries take 10 to 12 ns in the cache (a core of 3.2 GHz), about what two threads that
//! share 22 GB/s wait for it. Rows are unpacked in registers; queries and sums stay `f32`.
//!
//! A softmax over keys that come in several parts ([`Partial`]): of each part the
//! greatest score `m`, `z = Σ exp(s - m)` and `o = Σ exp(s - m) v`; two parts have
//! together `m' = max(m₁, m₂)`, `z' = Σᵢ exp(mᵢ - m') zᵢ` and likewise `o'`; the result
//! is `o / z` (Milakov and Gimelshein 2018; Dao et al. 2022).

mod packed;
mod partial;
mod rotary;
mod rows;
#[cfg(test)]
mod tests;
mod tile;
#[cfg(target_arch = "x86_64")]
mod wide;

pub use partial::Partial;
pub use rotary::{Rotation, rotate};
pub use rows::{CacheRows, RowSet, dot_rows, mix_rows, read_rows};
pub use tile::{Tile, add_mass, attend_tile};

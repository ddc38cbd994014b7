//! Where keys and values are kept.

mod dense;
pub mod kvquant;
pub mod matryoshka;

pub use dense::{CacheType, DenseStore};

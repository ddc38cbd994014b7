//! Where keys and values are kept.

mod dense;
pub mod kvquant;

pub use dense::{CacheType, DenseStore};

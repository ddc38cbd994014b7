//! Where keys and values are kept.

mod dense;

pub use dense::{CacheType, DenseStore};

//! The store and the search engine over it.

pub mod codebook;

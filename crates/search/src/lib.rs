//! The store and the search engine over it.

pub mod codebook;
pub mod error;
pub mod store;

pub use error::SearchError;

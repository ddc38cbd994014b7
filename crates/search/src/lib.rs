//! The store and the search engine over it.

pub mod candidates;
pub mod codebook;
pub mod error;
pub mod filter;
pub mod fuse;
mod score;
pub mod store;

pub use error::SearchError;

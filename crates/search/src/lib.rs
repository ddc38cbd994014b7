//! The store and the search engine over it.

pub mod bm25;
pub mod candidates;
pub mod codebook;
pub mod engine;
pub mod error;
pub mod explain;
pub mod feedback;
pub mod filter;
pub mod fold;
pub mod fuse;
pub mod given;
pub mod index;
mod lexical;
pub mod rerank;
mod score;
pub mod sparse;
pub mod store;
mod whole_text;

pub use error::SearchError;

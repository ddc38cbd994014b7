//! Models made smaller.
//!
//! - [`masa`]: layers of a transformer share the matrices of their attention.
//!
//! Methods take matrices as rows of numbers, whichever model they come from.

mod error;
pub mod masa;

pub use error::CompressError;

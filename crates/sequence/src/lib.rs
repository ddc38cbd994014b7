//! Sequence mixers: rows of one vector per position in, rows of the same shape out.

mod error;
pub mod hax;
pub mod hydra;
pub mod matrix_mixers;
pub mod recall;
pub mod tensor_attention;

pub use error::SequenceError;

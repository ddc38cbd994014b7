//! Sequence mixers: rows of one vector per position in, rows of the same shape out; and networks
//! whose answers are positions of their input ([`mod@pointer`]).

mod error;
pub mod hax;
pub mod hydra;
pub mod mamba_mixer;
pub mod matrix_mixers;
pub mod pointer;
pub mod recall;
pub mod tensor_attention;

pub use error::SequenceError;

//! Files in, passages out.

pub mod passage;

pub use passage::{FileEntry, Passage};

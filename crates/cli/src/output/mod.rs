//! How results look.

pub(crate) mod passage;
pub(crate) mod terminal;

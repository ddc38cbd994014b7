//! How results look.

pub(crate) mod hits;
pub(crate) mod passage;
pub(crate) mod terminal;

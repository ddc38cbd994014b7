//! Functions of tensors, with gradients.

mod attention;
mod basic;

pub use attention::{Heads, attention};
pub use basic::{dropout, layer_norm, linear, rows};

//! Pictures: files become numbers, and networks tell what they show.
//!
//! - [`Picture`]: numbers of a square picture,
//! - [`vim2`]: a network that selects over places and over channels.

mod error;
mod picture;
pub mod vim2;

pub use error::VisionError;
pub use picture::{Picture, Pictures};

//! How the next token is picked: above the model, below the command.

mod contrastive;
pub mod isotropy;
mod sampling;
mod stop;

pub use contrastive::{ContrastiveConfig, ContrastiveSearch, Pick};
pub use sampling::{Sampler, SamplingConfig, argmax};
pub use stop::StopStrings;

/// A setting that cannot be used.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum DecodingError {
    /// Out of its range.
    #[error("{name} is {value}; it must be {range}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// What it was.
        value: String,
        /// What it may be.
        range: &'static str,
    },
}

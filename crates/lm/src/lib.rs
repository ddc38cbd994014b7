//! The language-model engine: a decoder whose cache is a place of lookup.
//!
//! A query meets the keys of its context, some keys are selected, their values are
//! read. What is stored, which rows are read, which rows survive, how a prompt is
//! read and how a weight is multiplied are five [roles]; a policy names one value of
//! each, so that methods combine instead of multiplying. Models that keep one state and no
//! cache are in [mamba].

pub mod attention;
pub mod block_mask;
mod chat;
pub mod config;
pub mod decoding;
mod error;
pub mod evict;
mod file;
pub mod generate;
pub mod linear;
pub mod mamba;
pub mod model;
pub mod perplexity;
pub mod prefill;
pub mod prompt_cache;
pub mod reading;
pub mod recall;
pub mod refusal;
pub mod roles;
pub mod select;
pub mod session;
pub mod shared_weights;
pub mod store;
pub mod synthetic;
#[cfg(test)]
mod test_store;
mod tokenizer;
#[cfg(feature = "train")]
pub mod trainable;

pub use chat::{ChatTemplate, Message};
pub use config::Config;
pub use error::LmError;
pub use file::{Gguf, ModelFile, Tensor};
pub use model::Decoder;
pub use reading::Reading;
pub use session::{Policy, Session};
pub use tokenizer::{SpecialTokens, TextStream, Tokenizer};

//! Layers and losses that can be trained, on the tensor framework Burn.
//!
//! A batch of texts is packed: the rows of all texts stand one after the other in one
//! matrix `[rows of all texts, width]`, and `starts` says where each text begins. Nothing
//! is padded, so linear layers and norms work on real rows only, and what must stay within
//! a text ([attention](ops::attention)) goes text by text.
//!
//! - [`Bert`]: the BERT family, loaded from and saved to a model folder,
//! - [`Llama`]: decoders of Llama's kind,
//! - [`HaxModel`]: language models of Mamba layers, with attention to few keys or without,
//! - [`MixerEncoder`]: encoders of Hydra and the mixers that it is compared with,
//! - [`mixers`]: layers of Mamba, Mamba-2, Hydra and matrices,
//! - [`Linear`], [`LayerNorm`], [`Embedding`]: its parts, with PyTorch's layout of weights,
//! - [`ops`]: the functions under them, with their gradients,
//! - [`AdamW`]: the optimiser in one pass,
//! - [`checkpoint`]: named tensors to a file.
//!
//! Everything random follows from a seed ([`random`]), so that a training that is resumed
//! ends with the same weights.

mod bert;
pub mod checkpoint;
mod error;
mod hax_model;
mod layers;
mod llama;
mod mixer_encoder;
pub mod mixers;
pub mod ops;
mod optim;
pub mod random;

pub use bert::{Bert, BertConfig, Family, Packed};
pub use error::ModelError;
pub use hax_model::{HaxKind, HaxModel, HaxModelConfig, HaxStates};
pub use layers::{Embedding, LayerNorm, Linear};
pub use llama::{AttentionHook, Llama, LlamaConfig, LlamaSizes, NoHook, RopeSizes, Tensors};
pub use mixer_encoder::{MixerEncoder, MixerEncoderConfig, MixerKind};
pub use optim::AdamW;

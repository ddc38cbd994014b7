//! Mamba and Mamba-2: language models that keep one state instead of a cache.
//!
//! Whatever the length of a text, a token costs the same time and the state the same
//! memory; a state can be saved and a text gone on with later. What is lost is exact
//! recall: the state forgets. [`long_mamba`] makes it forget less on long prompts.
//!
//! Sources: Gu and Dao (2023), Mamba: Linear-Time Sequence Modeling with Selective State
//! Spaces; Dao and Gu (2024), Transformers are SSMs: Generalized Models and Efficient
//! Algorithms Through Structured State Space Duality.
//!
//! ```text
//! h += W_out mixer(W_in norm(h))         for each layer
//! logits = W_head norm(h)
//!
//! Mamba      x, z = halves of W_in n               x = silu(conv(x))
//!            δ, B, C = parts of W_x x              Δ = softplus(W_Δ δ + b)
//!            y = scan(x, Δ, B, C) silu(z)
//! Mamba-2    z, xBC, dt = parts of W_in n          x, B, C = parts of silu(conv(xBC))
//!            Δ = softplus(dt + b)                  y = norm(scan(x, Δ, B, C) silu(z))
//! ```
//!
//! The scans are `keyfold_kernels::scan`. Checkpoints of `state-spaces` and of Transformers
//! (safetensors or `pytorch_model.bin`) and GGUF files are read as they are.

mod config;
mod file;
pub mod long_mamba;
mod model;
pub mod saved;
mod session;
mod tensors;
#[cfg(test)]
mod tests;

pub use config::{MambaConfig, Mixer};
pub use file::MambaFile;
pub use model::{MambaLm, MambaState, Numbers, StepFilter, tensor_shapes};
pub use session::MambaSession;

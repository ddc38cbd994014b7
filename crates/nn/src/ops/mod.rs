//! Functions of tensors, each with its own backward pass.
//!
//! The tensor framework composes layer norm, softmax or gelu of many passes over memory;
//! here each is one operator over slices ([`keyfold_kernels`]), which keeps for the
//! backward pass only what is not cheaper to compute again. They run on the framework's
//! CPU device (`Device::flex()`).
//!
//! Work is cut into pieces by the shape alone and sums are added in one order, so results
//! do not depend on the number of threads.
//!
//! To add one, implement `operator::Operator` and compare its gradients with those of
//! the framework's own functions in `tests/ops.rs`.

mod attention;
mod causal;
mod cayley;
mod chamfer;
mod conv;
mod cross_entropy;
mod dropout;
mod gated;
mod groups;
mod linear;
mod matrix_mix;
mod norm;
pub(crate) mod operator;
mod rms;
mod rotary;
mod rows;
mod scan;
mod softplus;
mod sparse_attention;
mod tensor_attention;

pub use attention::{Heads, attention};
pub use causal::{SharedHeads, causal_attention};
pub use cayley::cayley;
pub use chamfer::{Side, chamfer, chamfer_equal};
pub use conv::{ConvShape, depthwise_conv};
pub use cross_entropy::cross_entropy;
pub use dropout::dropout;
pub use gated::silu_mul;
pub use groups::{Groups, group_mean, segment_mean, segment_mean_by};
pub use linear::{linear, linear_gelu};
pub use matrix_mix::{MixNumbers, matrix_mix};
pub use norm::{add_norm, layer_norm};
pub use rms::rms_norm;
pub use rotary::{Angles, rotary};
pub use rows::rows;
pub use scan::{Course, SelectiveInputs, SsdInputs, reversed, selective_scan, ssd_scan};
pub use softplus::softplus;
pub use sparse_attention::sparse_attention;
pub use tensor_attention::{PairHeads, PairInputs, tensor_attention};

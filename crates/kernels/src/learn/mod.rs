//! What training needs beyond inference: functions with what their gradient needs, the
//! gradients, dropout, and a step of the optimiser.
//!
//! One thread; callers split rows between threads. Gradients of weights are added to what
//! the slices hold, so that callers can go block by block.

mod activation;
mod adamw;
mod dropout;
mod gated;
mod norm;
mod rms;
mod softmax;

pub use activation::{add_columns, bias_gelu, gelu_backward};
pub use adamw::{AdamStep, adamw};
pub use dropout::{Dropout, seed_of_row};
pub use gated::silu_mul_backward;
pub use norm::{norm_backward, norm_forward};
pub use rms::{rms_backward, rms_forward};
pub use softmax::{keep_best, softmax_backward, sum_of_exp};

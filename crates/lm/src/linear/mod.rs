//! How weights are multiplied.

mod dense;
pub mod r_sparse;

pub use dense::DenseLinear;

use keyfold_kernels::Team;
use keyfold_kernels::blocks::Activations;

/// `y = W x + b`, however `W` is kept.
pub trait Linear: Send + Sync {
    /// Length of `y`.
    fn rows(&self) -> usize;

    /// Length of `x`.
    fn cols(&self) -> usize;

    /// `out` `[n, rows]` for the `n` rows of `x`. `decoding`: a token is being made; a prompt
    /// is always multiplied whole.
    fn apply(&self, x: &mut Activations, out: &mut [f32], decoding: bool, team: &Team);

    /// Bytes that one token reads while decoding.
    fn bytes_read(&self) -> u64;
}

//! All of a weight matrix, as the file has it.

use super::{Linear, Way};
use crate::Tensor;
use keyfold_kernels::Team;
use keyfold_kernels::blocks::{Activations, BlockMatrix, BlocksError, matmul, matmul_from, matvec};

/// A weight matrix and its bias.
pub struct DenseLinear {
    weight: Tensor,
    bias: Option<Vec<f32>>,
}

impl DenseLinear {
    /// # Errors
    /// When a row of the tensor is not made of whole blocks.
    pub fn new(weight: Tensor, bias: Option<Vec<f32>>) -> Result<Self, BlocksError> {
        let linear = Self { weight, bias };
        linear.checked()?;
        Ok(linear)
    }

    fn checked(&self) -> Result<BlockMatrix<'_>, BlocksError> {
        let w = &self.weight;
        BlockMatrix::new(w.kind(), w.rows(), w.row_len(), w.bytes())
    }

    /// The weights.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// What is added to the outputs.
    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    /// The matrix.
    pub fn matrix(&self) -> BlockMatrix<'_> {
        self.checked()
            .unwrap_or_else(|e| unreachable!("checked in new: {e}"))
    }
}

impl Linear for DenseLinear {
    fn rows(&self) -> usize {
        self.weight.rows()
    }

    fn cols(&self) -> usize {
        self.weight.row_len()
    }

    fn apply(&self, x: &mut Activations, out: &mut [f32], _decoding: bool, team: &Team) {
        if x.rows() < matmul_from(self.weight.kind()) {
            matvec(out, &self.matrix(), x, team);
        } else {
            matmul(out, &self.matrix(), x, team);
        }
        if let Some(bias) = &self.bias {
            keyfold_kernels::add_bias(out, bias);
        }
    }

    fn way(&self) -> Way<'_> {
        Way::Dense(self)
    }

    fn bytes_read(&self) -> u64 {
        self.weight.bytes().len() as u64
    }
}

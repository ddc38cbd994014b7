//! A key and a value head for every query head, as `repeat_kv` of Transformers has them.

use super::{Entry, ModelFile, View};
use crate::error::LmError;
use crate::file::Tensor;

impl ModelFile {
    /// The same model with the weights of every key and value head as often as it has query
    /// heads: it says the same, and its cache is larger by so much.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    pub fn repeat_kv(mut self) -> Result<Self, LmError> {
        let dims = self.config.dims;
        if dims.group() == 1 {
            return Ok(self);
        }
        for layer in 0..dims.layers {
            for role in ["k_proj", "v_proj"] {
                for what in ["weight", "bias"] {
                    let name = format!("model.layers.{layer}.self_attn.{role}.{what}");
                    if !self.has(&name) {
                        continue;
                    }
                    let stored = repeated(&self.tensor(&name)?, dims.kv_heads, dims.group());
                    let entry = Entry {
                        stored,
                        view: View::Whole,
                        name: name.clone(),
                    };
                    self.tensors.insert(name, entry);
                }
            }
        }
        self.config.dims.kv_heads = dims.heads;
        self.checked()
    }
}

/// Each of the `heads` parts of a tensor `times` times.
fn repeated(tensor: &Tensor, heads: usize, times: usize) -> Tensor {
    // Rows are whole blocks; a vector in blocks cannot be cut between them.
    let plain = match tensor.shape().len() {
        1 => Tensor::from_f32(tensor.shape().to_vec(), &tensor.to_f32()),
        _ => None,
    };
    let tensor = plain.as_ref().unwrap_or(tensor);
    let part = tensor.bytes().len() / heads;
    let mut bytes = Vec::with_capacity(tensor.bytes().len() * times);
    for head in tensor.bytes().chunks_exact(part.max(1)) {
        (0..times).for_each(|_| bytes.extend_from_slice(head));
    }
    let mut shape = tensor.shape().to_vec();
    shape[0] *= times;
    Tensor::in_memory(tensor.kind(), shape, bytes)
}

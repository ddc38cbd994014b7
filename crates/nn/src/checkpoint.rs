//! Named tensors to a safetensors file, which other programs read.

use std::borrow::Cow;
use std::path::Path;

use burn::tensor::Tensor;
use safetensors::tensor::{Dtype, View};

use crate::ModelError;

/// A tensor by the name that it has in a checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedTensor {
    /// Its name, `encoder.layer.0.output.dense.weight`.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its numbers, row-major.
    pub numbers: Vec<f32>,
}

impl NamedTensor {
    /// A copy of the tensor's numbers.
    pub fn new<const D: usize>(name: impl Into<String>, tensor: &Tensor<D>) -> Self {
        Self {
            name: name.into(),
            shape: tensor.dims().to_vec(),
            numbers: numbers(tensor),
        }
    }

    /// Rows `rows` of a matrix, by another name.
    pub(crate) fn rows(&self, name: String, rows: std::ops::Range<usize>) -> Self {
        let width: usize = self.shape[1..].iter().product();
        let mut shape = self.shape.clone();
        shape[0] = rows.len();
        Self {
            name,
            shape,
            numbers: self.numbers[rows.start * width..rows.end * width].to_vec(),
        }
    }
}

/// A copy of a tensor's numbers, row-major.
pub fn numbers<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
    tensor.to_data_as::<f32>().iter::<f32>().collect()
}

/// How numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// As they are.
    Single,
    /// In half of the bytes.
    Half,
}

/// Writes tensors to `path` as safetensors, all or nothing.
///
/// # Errors
/// When the file cannot be written.
pub fn write(path: &Path, tensors: &[NamedTensor]) -> Result<(), ModelError> {
    write_as(path, tensors, Precision::Single)
}

/// [`write()`] with numbers as `precision` says.
///
/// # Errors
/// When the file cannot be written.
pub fn write_as(
    path: &Path,
    tensors: &[NamedTensor],
    precision: Precision,
) -> Result<(), ModelError> {
    let error = |source| ModelError::Write {
        path: path.to_owned(),
        source,
    };
    let views = tensors
        .iter()
        .map(|tensor| (tensor.name.as_str(), Stored { tensor, precision }));
    let bytes = safetensors::serialize(views, None).map_err(|e| error(std::io::Error::other(e)))?;
    keyfold_core::atomic::write(path, &bytes).map_err(error)
}

/// How a tensor looks to the writer of safetensors.
struct Stored<'a> {
    tensor: &'a NamedTensor,
    precision: Precision,
}

impl View for Stored<'_> {
    fn dtype(&self) -> Dtype {
        match self.precision {
            Precision::Single => Dtype::F32,
            Precision::Half => Dtype::F16,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.tensor.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let numbers = self.tensor.numbers.iter();
        Cow::Owned(match self.precision {
            Precision::Single => numbers.flat_map(|x| x.to_le_bytes()).collect(),
            Precision::Half => numbers
                .flat_map(|&x| half::f16::from_f32(x).to_le_bytes())
                .collect(),
        })
    }

    fn data_len(&self) -> usize {
        let size = match self.precision {
            Precision::Single => 4,
            Precision::Half => 2,
        };
        size * self.tensor.numbers.len()
    }
}

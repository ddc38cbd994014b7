//! Tensors by name, in their precision.

use std::collections::BTreeMap;
use std::path::Path;

use half::{bf16, f16};
use keyfold_core::atomic;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use crate::DictionaryError;

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// Single.
    #[default]
    F32,
    /// Half.
    F16,
    /// Brain float.
    Bf16,
}

/// A tensor as stored.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tensor {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) bytes: Vec<u8>,
}

impl Tensor {
    pub(super) fn of(numbers: &[f32], shape: &[usize], precision: Precision) -> Self {
        let (dtype, bytes) = match precision {
            Precision::F32 => (
                Dtype::F32,
                numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
            ),
            Precision::F16 => {
                let halves = numbers.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes());
                (Dtype::F16, halves.collect())
            }
            Precision::Bf16 => {
                let halves = numbers
                    .iter()
                    .flat_map(|x| bf16::from_f32(*x).to_le_bytes());
                (Dtype::BF16, halves.collect())
            }
        };
        Self {
            dtype,
            shape: shape.to_vec(),
            bytes,
        }
    }

    /// Whole numbers.
    pub(super) fn whole(numbers: &[f32], shape: &[usize]) -> Self {
        let bytes = numbers.iter().flat_map(|x| (*x as i64).to_le_bytes());
        Self {
            dtype: Dtype::I64,
            shape: shape.to_vec(),
            bytes: bytes.collect(),
        }
    }

    fn numbers(&self) -> Option<Vec<f32>> {
        let b = &self.bytes;
        Some(match self.dtype {
            Dtype::F32 => b
                .as_chunks()
                .0
                .iter()
                .map(|b| f32::from_le_bytes(*b))
                .collect(),
            Dtype::F64 => b
                .as_chunks()
                .0
                .iter()
                .map(|b| f64::from_le_bytes(*b) as f32)
                .collect(),
            Dtype::F16 => b
                .as_chunks()
                .0
                .iter()
                .map(|b| f16::from_le_bytes(*b).to_f32())
                .collect(),
            Dtype::BF16 => b
                .as_chunks()
                .0
                .iter()
                .map(|b| bf16::from_le_bytes(*b).to_f32())
                .collect(),
            _ => return None,
        })
    }

    fn precision(&self) -> Precision {
        match self.dtype {
            Dtype::F16 => Precision::F16,
            Dtype::BF16 => Precision::Bf16,
            _ => Precision::F32,
        }
    }
}

/// The tensors of one file.
pub(super) struct Tensors<'a> {
    path: &'a Path,
    all: BTreeMap<String, Tensor>,
}

impl<'a> Tensors<'a> {
    pub(super) fn read(path: &'a Path) -> Result<Self, DictionaryError> {
        let bytes = std::fs::read(path).map_err(|source| DictionaryError::io(path, source))?;
        let file = SafeTensors::deserialize(&bytes)
            .map_err(|e| DictionaryError::format(path, format!("it is damaged: {e}")))?;
        let all = file.tensors().into_iter().map(|(name, t)| {
            let tensor = Tensor {
                dtype: t.dtype(),
                shape: t.shape().to_vec(),
                bytes: t.data().to_vec(),
            };
            (name, tensor)
        });
        Ok(Self {
            path,
            all: all.collect(),
        })
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.all.contains_key(name)
    }

    /// Takes a tensor of a shape out.
    pub(super) fn take(
        &mut self,
        name: &str,
        shape: &[usize],
    ) -> Result<Vec<f32>, DictionaryError> {
        let fail =
            |what: String| DictionaryError::format(self.path, format!("tensor '{name}' {what}"));
        let tensor = self
            .all
            .remove(name)
            .ok_or_else(|| fail("is not there".to_owned()))?;
        if tensor.shape != shape {
            return Err(fail(format!(
                "has the shape {:?}, not {shape:?}",
                tensor.shape
            )));
        }
        tensor
            .numbers()
            .ok_or_else(|| fail(format!("is of type {:?}, not floats", tensor.dtype)))
    }

    pub(super) fn precision(&self, name: &str) -> Precision {
        self.all.get(name).map_or(Precision::F32, Tensor::precision)
    }

    pub(super) fn rest(self) -> BTreeMap<String, Tensor> {
        self.all
    }
}

/// Writes a safetensors file, whole or not at all.
pub(super) fn write(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
) -> Result<(), DictionaryError> {
    let fail = |e: safetensors::SafeTensorError| DictionaryError::format(path, e.to_string());
    let mut views = Vec::new();
    for (name, t) in tensors {
        views.push((
            name,
            TensorView::new(t.dtype, t.shape.clone(), &t.bytes).map_err(fail)?,
        ));
    }
    let bytes = safetensors::serialize(views, None).map_err(fail)?;
    atomic::write(path, &bytes).map_err(|source| DictionaryError::io(path, source))
}

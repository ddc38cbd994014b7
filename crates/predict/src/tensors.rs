//! The tensors of a saved model: safetensors in double precision, with a checksum.

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::PredictError;

/// Tensors by name.
#[derive(Debug, Default)]
pub(crate) struct Tensors {
    all: HashMap<String, (Vec<usize>, Vec<f64>)>,
}

impl Tensors {
    pub(crate) fn put(&mut self, name: &str, shape: &[usize], numbers: Vec<f64>) {
        debug_assert_eq!(shape.iter().product::<usize>(), numbers.len());
        self.all.insert(name.to_owned(), (shape.to_vec(), numbers));
    }

    /// Takes a tensor out.
    pub(crate) fn take(&mut self, name: &str) -> Result<(Vec<usize>, Vec<f64>), String> {
        self.all
            .remove(name)
            .ok_or_else(|| format!("it has no tensor '{name}'"))
    }

    /// Takes a tensor out that must have this shape.
    pub(crate) fn shaped(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f64>, String> {
        let (found, numbers) = self.take(name)?;
        match found == shape {
            true => Ok(numbers),
            false => Err(format!("tensor '{name}' is {found:?} and not {shape:?}")),
        }
    }

    /// The bytes of a safetensors file, the same for the same tensors.
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>, String> {
        let mut names: Vec<&String> = self.all.keys().collect();
        names.sort();
        let bytes: Vec<Vec<u8>> = names
            .iter()
            .map(|n| {
                self.all[*n]
                    .1
                    .iter()
                    .flat_map(|x| x.to_le_bytes())
                    .collect()
            })
            .collect();
        let views: Result<Vec<_>, _> = (names.iter().zip(&bytes))
            .map(|(n, b)| {
                let shape = self.all[*n].0.clone();
                TensorView::new(Dtype::F64, shape, b).map(|view| (n.as_str(), view))
            })
            .collect();
        let views = views.map_err(|e| e.to_string())?;
        safetensors::serialize(views, None).map_err(|e| e.to_string())
    }

    /// Reads the bytes of [`Tensors::to_bytes`].
    pub(crate) fn from_bytes(path: &Path, bytes: &[u8]) -> Result<Self, PredictError> {
        let invalid = |what: String| PredictError::Invalid {
            path: path.to_owned(),
            what,
        };
        let file = SafeTensors::deserialize(bytes).map_err(|e| invalid(e.to_string()))?;
        let mut tensors = Self::default();
        for (name, view) in file.tensors() {
            if view.dtype() != Dtype::F64 {
                return Err(invalid(format!("tensor '{name}' is {:?}", view.dtype())));
            }
            let numbers = view.data().as_chunks::<8>().0.iter();
            let numbers: Vec<f64> = numbers.map(|b| f64::from_le_bytes(*b)).collect();
            tensors.put(&name, view.shape(), numbers);
        }
        Ok(tensors)
    }
}

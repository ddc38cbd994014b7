//! The tensors of a saved model, in a safetensors file.

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::PredictError;

/// The numbers of a tensor.
#[derive(Debug)]
enum Numbers {
    F64(Vec<f64>),
    F32(Vec<f32>),
    U32(Vec<u32>),
}

/// Numbers that a tensor can hold.
pub(crate) trait Number: Sized {
    fn wrap(numbers: Vec<Self>) -> Kept;
    fn unwrap(kept: Kept) -> Option<Vec<Self>>;
}

/// Numbers of any kind, on their way in or out.
pub(crate) struct Kept(Numbers);

macro_rules! number {
    ($type:ty, $kind:ident) => {
        impl Number for $type {
            fn wrap(numbers: Vec<Self>) -> Kept {
                Kept(Numbers::$kind(numbers))
            }
            fn unwrap(kept: Kept) -> Option<Vec<Self>> {
                match kept.0 {
                    Numbers::$kind(numbers) => Some(numbers),
                    _ => None,
                }
            }
        }
    };
}

number!(f64, F64);
number!(f32, F32);
number!(u32, U32);

impl Numbers {
    fn dtype(&self) -> Dtype {
        match self {
            Self::F64(_) => Dtype::F64,
            Self::F32(_) => Dtype::F32,
            Self::U32(_) => Dtype::U32,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::F64(all) => all.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Self::F32(all) => all.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Self::U32(all) => all.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    }

    fn read(dtype: Dtype, data: &[u8]) -> Option<Self> {
        let fours = || data.as_chunks::<4>().0.iter().copied();
        let eights = data.as_chunks::<8>().0.iter().copied();
        Some(match dtype {
            Dtype::F64 => Self::F64(eights.map(f64::from_le_bytes).collect()),
            Dtype::F32 => Self::F32(fours().map(f32::from_le_bytes).collect()),
            Dtype::U32 => Self::U32(fours().map(u32::from_le_bytes).collect()),
            _ => return None,
        })
    }
}

/// Tensors by name.
#[derive(Debug, Default)]
pub(crate) struct Tensors {
    all: HashMap<String, (Vec<usize>, Numbers)>,
}

impl Tensors {
    pub(crate) fn put<T: Number>(&mut self, name: &str, shape: &[usize], numbers: Vec<T>) {
        let numbers = T::wrap(numbers).0;
        self.all.insert(name.to_owned(), (shape.to_vec(), numbers));
    }

    /// The shape of a tensor, where there is one.
    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.all.get(name).map(|(shape, _)| &shape[..])
    }

    /// Takes a tensor out that must have this shape and kind.
    pub(crate) fn shaped<T: Number>(
        &mut self,
        name: &str,
        shape: &[usize],
    ) -> Result<Vec<T>, String> {
        let (found, numbers) =
            (self.all.remove(name)).ok_or_else(|| format!("it has no tensor '{name}'"))?;
        if found != shape {
            return Err(format!("tensor '{name}' is {found:?} and not {shape:?}"));
        }
        let dtype = numbers.dtype();
        T::unwrap(Kept(numbers)).ok_or_else(|| format!("tensor '{name}' is {dtype:?}"))
    }

    /// The bytes of a safetensors file, the same for the same tensors.
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>, String> {
        let mut names: Vec<&String> = self.all.keys().collect();
        names.sort();
        let bytes: Vec<Vec<u8>> = names.iter().map(|n| self.all[*n].1.bytes()).collect();
        let views: Result<Vec<_>, _> = (names.iter().zip(&bytes))
            .map(|(n, b)| {
                let (shape, numbers) = &self.all[*n];
                TensorView::new(numbers.dtype(), shape.clone(), b).map(|view| (n.as_str(), view))
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
            let dtype = view.dtype();
            let numbers = Numbers::read(dtype, view.data())
                .ok_or_else(|| invalid(format!("tensor '{name}' is {dtype:?}")))?;
            tensors.all.insert(name, (view.shape().to_vec(), numbers));
        }
        Ok(tensors)
    }
}

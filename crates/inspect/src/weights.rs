//! Weights of small models in safetensors.

use std::collections::HashMap;
use std::path::Path;

use keyfold_core::atomic;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::InspectError;

/// A tensor to be written: name, shape, numbers.
pub(crate) type Named<'a> = (String, Vec<usize>, &'a [f32]);

/// Tensors and notes as the bytes of a file; errors name `path`.
pub(crate) fn to_bytes(
    path: &Path,
    tensors: &[Named<'_>],
    notes: Option<HashMap<String, String>>,
) -> Result<Vec<u8>, InspectError> {
    let bytes = |numbers: &[f32]| numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
    let bytes: Vec<Vec<u8>> = tensors.iter().map(|(_, _, x)| bytes(x)).collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        TensorView::new(Dtype::F32, shape.clone(), bytes).map(|view| (name.as_str(), view))
    });
    let views: Result<Vec<_>, _> = views.collect();
    views
        .and_then(|views| safetensors::serialize(views, notes))
        .map_err(|e| InspectError::format(path, e.to_string()))
}

/// Writes tensors and notes, whole or not at all.
pub(crate) fn write(
    path: &Path,
    tensors: &[Named<'_>],
    notes: Option<HashMap<String, String>>,
) -> Result<(), InspectError> {
    let bytes = to_bytes(path, tensors, notes)?;
    atomic::write(path, &bytes).map_err(|e| InspectError::io(path, e))
}

/// The tensors in the bytes of a file.
pub(crate) fn parse<'b>(path: &Path, bytes: &'b [u8]) -> Result<SafeTensors<'b>, InspectError> {
    SafeTensors::deserialize(bytes)
        .map_err(|e| InspectError::format(path, format!("it is no safetensors file ({e})")))
}

/// The notes of a file of this format and version; `kind` says what it should be.
pub(crate) fn notes(
    path: &Path,
    bytes: &[u8],
    format: &str,
    kind: &str,
) -> Result<HashMap<String, String>, InspectError> {
    let none = || InspectError::format(path, format!("it is no {kind}"));
    let (_, head) = SafeTensors::read_metadata(bytes).map_err(|_| none())?;
    let notes = head.metadata().clone().ok_or_else(none)?;
    match notes.get("format") {
        Some(found) if found == format => Ok(notes),
        Some(found) => Err(InspectError::format(
            path,
            format!("it is of the format '{found}'; '{format}' is read"),
        )),
        None => Err(none()),
    }
}

/// The numbers and the shape of a tensor of finite 32-bit floats.
pub(crate) fn tensor(
    path: &Path,
    file: &SafeTensors<'_>,
    name: &str,
) -> Result<(Vec<f32>, Vec<usize>), InspectError> {
    let wrong = |what: String| InspectError::format(path, what);
    let view = file
        .tensor(name)
        .map_err(|_| wrong(format!("it has no tensor '{name}'")))?;
    if view.dtype() != Dtype::F32 {
        return Err(wrong(format!(
            "'{name}' is of {:?} and not of F32",
            view.dtype()
        )));
    }
    let numbers = view.data().as_chunks::<4>().0.iter();
    let numbers: Vec<f32> = numbers.map(|b| f32::from_le_bytes(*b)).collect();
    match numbers.iter().all(|x| x.is_finite()) {
        true => Ok((numbers, view.shape().to_vec())),
        false => Err(wrong(format!("'{name}' holds a number that is not finite"))),
    }
}

/// The numbers of a tensor of that shape.
pub(crate) fn shaped(
    path: &Path,
    file: &SafeTensors<'_>,
    name: &str,
    shape: &[usize],
) -> Result<Vec<f32>, InspectError> {
    let (numbers, found) = tensor(path, file, name)?;
    match found == shape {
        true => Ok(numbers),
        false => Err(InspectError::format(
            path,
            format!("tensor '{name}' is {found:?} and not {shape:?}"),
        )),
    }
}

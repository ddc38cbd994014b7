//! Files of stacks, with the names of the authors' code.

use std::path::Path;

use keyfold_core::atomic;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::{Stack, StackConfig};
use crate::InspectError;

impl Stack {
    /// Name and shape of each tensor, and where it lies; tied layers lie in one place.
    fn tensors(&self) -> Vec<(String, [usize; 2], usize)> {
        let (row, wide) = (self.row(), self.wide());
        let mut all = Vec::new();
        for layer in 0..self.config.n_layers {
            for (i, part) in ["q", "k", "v", "o"].into_iter().enumerate() {
                let shape = if part == "o" {
                    [row, wide]
                } else {
                    [wide, row]
                };
                let at = self.layer(layer) + i * wide * row;
                let name = format!("attention_layers.{layer}.{part}_proj.weight");
                all.push((name, shape, at));
            }
        }
        let shape = [self.config.base.tasks, row];
        all.push(("final_linear.weight".to_owned(), shape, self.last()));
        all
    }

    /// Writes safetensors with the authors' names.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), InspectError> {
        let bytes = |at: usize, [a, b]: [usize; 2]| -> Vec<u8> {
            let numbers = self.weights[at..][..a * b].iter();
            numbers.flat_map(|x| x.to_le_bytes()).collect()
        };
        let parts: Vec<_> = (self.tensors().into_iter())
            .map(|(name, shape, at)| (name, shape, bytes(at, shape)))
            .collect();
        let mut views = Vec::new();
        for (name, shape, bytes) in &parts {
            let view = TensorView::new(Dtype::F32, shape.to_vec(), bytes)
                .map_err(|e| InspectError::format(path, e.to_string()))?;
            views.push((name.as_str(), view));
        }
        let bytes = safetensors::serialize(views, None)
            .map_err(|e| InspectError::format(path, e.to_string()))?;
        atomic::write(path, &bytes).map_err(|e| InspectError::io(path, e))
    }

    /// Reads what [`save`](Self::save) wrote, or the authors' weights as safetensors; the settings say
    /// how many layers, heads and numbers there are.
    ///
    /// # Errors
    /// When the file is not there or does not hold such weights.
    pub fn load(path: &Path, config: StackConfig) -> Result<Self, InspectError> {
        let bytes = std::fs::read(path).map_err(|e| InspectError::io(path, e))?;
        let damaged = |what: String| InspectError::format(path, what);
        let file = SafeTensors::deserialize(&bytes)
            .map_err(|e| damaged(format!("it is no safetensors file ({e})")))?;
        let mut model = Self::new(config)?;
        if file.tensors().len() != model.tensors().len() {
            return Err(damaged(format!(
                "it has {} tensors; a stack of {} layers has {}",
                file.tensors().len(),
                model.config.n_layers,
                model.tensors().len()
            )));
        }
        for (i, (name, shape, at)) in model.tensors().into_iter().enumerate() {
            let view = file
                .tensor(&name)
                .map_err(|_| damaged(format!("it has no tensor '{name}'")))?;
            if view.dtype() != Dtype::F32 || view.shape() != shape {
                return Err(damaged(format!(
                    "tensor '{name}' is {:?} of {:?} and not of F32, {shape:?}",
                    view.shape(),
                    view.dtype()
                )));
            }
            let numbers = view.data().as_chunks::<4>().0.iter();
            let numbers: Vec<f32> = numbers.map(|b| f32::from_le_bytes(*b)).collect();
            if !numbers.iter().all(|x| x.is_finite()) {
                return Err(damaged(format!(
                    "'{name}' holds numbers that are not finite"
                )));
            }
            let place = &mut model.weights[at..][..numbers.len()];
            // Of tied layers the second and later ones must repeat the first.
            if model.config.weight_tying
                && i >= 4
                && at < 4 * numbers.len()
                && *place != numbers[..]
            {
                return Err(damaged(format!(
                    "'{name}' is not as in the first layer: its layers are not tied"
                )));
            }
            place.copy_from_slice(&numbers);
        }
        Ok(model)
    }
}

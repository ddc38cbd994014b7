//! Files of stacks, with the names of the authors' code.

use std::collections::HashSet;
use std::path::Path;

use super::{Stack, StackConfig};
use crate::{InspectError, weights};

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
        let tensors: Vec<_> = (self.tensors().into_iter())
            .map(|(name, [a, b], at)| (name, vec![a, b], &self.weights[at..][..a * b]))
            .collect();
        weights::write(path, &tensors, None)
    }

    /// Reads what [`save`](Self::save) wrote, or the authors' weights as safetensors; the settings say
    /// how many layers, heads and numbers there are.
    ///
    /// # Errors
    /// When the file is not there or does not hold such weights.
    pub fn load(path: &Path, config: StackConfig) -> Result<Self, InspectError> {
        let bytes = std::fs::read(path).map_err(|e| InspectError::io(path, e))?;
        let damaged = |what: String| InspectError::format(path, what);
        let file = weights::parse(path, &bytes)?;
        let mut model = Self::new(config)?;
        let tensors = model.tensors();
        if file.tensors().len() != tensors.len() {
            return Err(damaged(format!(
                "it has {} tensors; a stack of {} layers has {}",
                file.tensors().len(),
                model.config.n_layers,
                tensors.len()
            )));
        }
        // Of tied layers the second and later ones lie where the first does.
        let mut read = HashSet::new();
        for (name, shape, at) in tensors {
            let numbers = weights::shaped(path, &file, &name, &shape)?;
            let place = &mut model.weights[at..][..numbers.len()];
            if !read.insert(at) && *place != numbers[..] {
                return Err(damaged(format!(
                    "'{name}' is not as in the first layer: its layers are not tied"
                )));
            }
            place.copy_from_slice(&numbers);
        }
        Ok(model)
    }
}

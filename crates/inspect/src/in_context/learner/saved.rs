//! The file of a trained model.

use std::path::Path;

use keyfold_core::atomic;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::{Learner, LearnerConfig};
use crate::InspectError;

const FORMAT: &str = "keyfold-in-context-1";

/// The largest numbers of layers, of a state, and of `x` and pairs that are read.
const MOST: usize = 1 << 12;

fn checksum(config: &str, weights: &[u8]) -> String {
    let mut hash = blake3::Hasher::new();
    hash.update(config.as_bytes());
    hash.update(weights);
    hash.finalize().to_hex().to_string()
}

impl Learner {
    /// Writes settings and weights as safetensors, whole or not at all.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), InspectError> {
        let format = |e: &dyn std::fmt::Display| InspectError::format(path, e.to_string());
        let config = serde_json::to_string(&self.config).map_err(|e| format(&e))?;
        let bytes: Vec<u8> = self.weights.iter().flat_map(|x| x.to_le_bytes()).collect();
        let notes = [
            ("format", FORMAT.to_owned()),
            ("checksum", checksum(&config, &bytes)),
            ("config", config),
        ];
        let notes = notes.map(|(name, text)| (name.to_owned(), text));
        let view = TensorView::new(Dtype::F32, vec![self.weights.len()], &bytes);
        let views = [("weights", view.map_err(|e| format(&e))?)];
        let file = safetensors::serialize(views, Some(notes.into())).map_err(|e| format(&e))?;
        atomic::write(path, &file).map_err(|e| InspectError::io(path, e))
    }

    /// Reads what [`save`](Self::save) wrote.
    ///
    /// # Errors
    /// When the file is not there, damaged, or of another version.
    pub fn load(path: &Path) -> Result<Self, InspectError> {
        let bytes = std::fs::read(path).map_err(|e| InspectError::io(path, e))?;
        let damaged = |what: &str| InspectError::format(path, what);
        let none = || damaged("it is no model of 'keyfold lab in-context --save'");
        let (_, head) = SafeTensors::read_metadata(&bytes).map_err(|_| none())?;
        let file = SafeTensors::deserialize(&bytes).map_err(|_| none())?;
        let notes = head.metadata().as_ref().ok_or_else(none)?;
        let note = |name: &str| notes.get(name).ok_or_else(none);
        if note("format")? != FORMAT {
            return Err(damaged(&format!(
                "it is of the format '{}'; '{FORMAT}' is read",
                note("format")?
            )));
        }
        let config = note("config")?;
        let tensor = file.tensor("weights").map_err(|_| none())?;
        if *note("checksum")? != checksum(config, tensor.data()) {
            return Err(damaged("its checksum is another: it is damaged"));
        }
        let config: LearnerConfig = serde_json::from_str(config).map_err(|_| none())?;
        // Before weights are drawn: a wrong size must not ask for endless memory.
        let sizes = [
            config.n_layers,
            config.hidden_size,
            config.task.d,
            config.task.n,
        ];
        let block = 8 * config.hidden_size.min(MOST).pow(2) * config.n_layers.min(MOST);
        if sizes.iter().any(|n| *n > MOST) || 4 * block > tensor.data().len() {
            return Err(damaged("it has fewer weights than its settings ask for"));
        }
        let mut model = Self::new(config)?;
        let numbers = tensor.data().as_chunks::<4>().0;
        if tensor.dtype() != Dtype::F32 || numbers.len() != model.weights.len() {
            return Err(damaged(
                "it has not as many weights as its settings ask for",
            ));
        }
        for (weight, bytes) in model.weights.iter_mut().zip(numbers) {
            *weight = f32::from_le_bytes(*bytes);
        }
        match model.weights.iter().all(|w| w.is_finite()) {
            true => Ok(model),
            false => Err(damaged("it holds a number that is not finite")),
        }
    }
}

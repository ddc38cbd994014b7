//! The file of a trained model.

use std::path::Path;

use super::{Learner, LearnerConfig};
use crate::{InspectError, weights};

const FORMAT: &str = "keyfold-in-context-1";
/// What such a file is.
const KIND: &str = "model of 'keyfold lab in-context --save'";
/// The name of its one tensor.
const WEIGHTS: &str = "weights";

/// The largest numbers of layers, of heads, of a state, and of `x` and pairs that are read.
const MOST: usize = 1 << 12;

/// Of the settings as they are written, and of all weights.
fn checksum(config: &str, weights: &[f32]) -> String {
    let mut bytes = config.as_bytes().to_vec();
    bytes.extend(weights.iter().flat_map(|x| x.to_le_bytes()));
    blake3::hash(&bytes).to_hex().to_string()
}

impl Learner {
    /// Writes settings and weights as safetensors, whole or not at all.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), InspectError> {
        let config = serde_json::to_string(&self.config)
            .map_err(|e| InspectError::format(path, e.to_string()))?;
        let notes = [
            ("format", FORMAT.to_owned()),
            ("checksum", checksum(&config, &self.weights)),
            ("config", config),
        ];
        let notes = notes.map(|(name, text)| (name.to_owned(), text));
        let tensor = (
            WEIGHTS.to_owned(),
            vec![self.weights.len()],
            &self.weights[..],
        );
        weights::write(path, &[tensor], Some(notes.into()))
    }

    /// Reads what [`save`](Self::save) wrote.
    ///
    /// # Errors
    /// When the file is not there, damaged, or of another version.
    pub fn load(path: &Path) -> Result<Self, InspectError> {
        let bytes = std::fs::read(path).map_err(|e| InspectError::io(path, e))?;
        let damaged = |what: &str| InspectError::format(path, what);
        let none = || damaged(&format!("it is no {KIND}"));
        let notes = weights::notes(path, &bytes, FORMAT, KIND)?;
        let note = |name: &str| notes.get(name).ok_or_else(none);
        let config = note("config")?;
        let (numbers, _) = weights::tensor(path, &weights::parse(path, &bytes)?, WEIGHTS)?;
        if *note("checksum")? != checksum(config, &numbers) {
            return Err(damaged("its checksum is another: it is damaged"));
        }
        let config: LearnerConfig = serde_json::from_str(config).map_err(|_| none())?;
        // Before weights are drawn: a wrong size must not ask for endless memory.
        let sizes = [
            config.n_layers,
            config.n_heads,
            config.hidden_size,
            config.task.d,
            config.task.n,
        ];
        let block = 6 * config.hidden_size.min(MOST).pow(2) * config.n_layers.min(MOST);
        if sizes.iter().any(|n| *n > MOST) || block > numbers.len() {
            return Err(damaged("it has fewer weights than its settings ask for"));
        }
        let mut model = Self::new(config)?;
        if numbers.len() != model.weights.len() {
            return Err(damaged(
                "it has not as many weights as its settings ask for",
            ));
        }
        model.weights = numbers;
        Ok(model)
    }
}

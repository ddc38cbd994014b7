//! The file of a predictor.

use std::path::Path;

use keyfold_core::atomic;
use safetensors::tensor::{Dtype, TensorView};

use super::{RandomFeaturePredictor, RandomFeatures, RandomFeaturesConfig};
use crate::{InspectError, weights};

impl RandomFeaturePredictor {
    /// Writes the predictor as safetensors, whole or not at all.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), InspectError> {
        let format = |e: &dyn std::fmt::Display| InspectError::format(path, e.to_string());
        let config = serde_json::to_string(&self.features.config).map_err(|e| format(&e))?;
        let sizes = [self.features.d, self.features.set_size];
        let numbers = [self.scale, self.mean, self.lambda];
        let notes = [
            ("format", FORMAT.to_owned()),
            ("d", self.features.d.to_string()),
            ("set_size", self.features.set_size.to_string()),
            ("checksum", checksum(sizes, &config, numbers, &self.v)),
            ("config", config),
        ];
        let bytes = |x: &[f64]| x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let (v, rest) = (bytes(&self.v), bytes(&numbers));
        let view = |count: usize, bytes| TensorView::new(Dtype::F64, vec![count], bytes);
        let views = [
            ("v", view(self.v.len(), &v).map_err(|e| format(&e))?),
            ("scale_mean_lambda", view(3, &rest).map_err(|e| format(&e))?),
        ];
        let notes = notes.map(|(name, text)| (name.to_owned(), text));
        let bytes = safetensors::serialize(views, Some(notes.into())).map_err(|e| format(&e))?;
        atomic::write(path, &bytes).map_err(|e| InspectError::io(path, e))
    }

    /// Reads a predictor; the heads are drawn again from their seed.
    ///
    /// # Errors
    /// When the file is not there, damaged, or of another version.
    pub fn load(path: &Path) -> Result<Self, InspectError> {
        let bytes = std::fs::read(path).map_err(|e| InspectError::io(path, e))?;
        let damaged = |what: &str| InspectError::format(path, what);
        let none = || damaged(&format!("it is no {KIND}"));
        let notes = weights::notes(path, &bytes, FORMAT, KIND)?;
        let file = weights::parse(path, &bytes)?;
        let note = |name: &str| notes.get(name).ok_or_else(none);
        let number = |name: &str| note(name)?.parse::<usize>().map_err(|_| none());
        let numbers = |name: &str| -> Result<Vec<f64>, InspectError> {
            let tensor = file.tensor(name).map_err(|_| none())?;
            let parts = tensor.data().as_chunks::<8>().0.iter();
            Ok(parts.map(|b| f64::from_le_bytes(*b)).collect())
        };
        let [scale, mean, lambda] = numbers("scale_mean_lambda")?[..] else {
            return Err(none());
        };
        let (d, set_size, v) = (number("d")?, number("set_size")?, numbers("v")?);
        let settings = note("config")?;
        let config: RandomFeaturesConfig = serde_json::from_str(settings).map_err(|_| none())?;
        // Before heads are drawn: a damaged number must not ask for endless memory.
        let right = checksum([d, set_size], settings, [scale, mean, lambda], &v);
        if config.heads.saturating_mul(d.saturating_add(1)) != v.len()
            || &right != note("checksum")?
        {
            return Err(damaged(
                "its numbers do not give its checksum; it was cut off or changed",
            ));
        }
        Ok(Self {
            features: RandomFeatures::new(&config, d, set_size)?,
            scale,
            mean,
            lambda,
            v,
        })
    }
}

/// Of sizes (`d`, `set_size`), settings as they are written, and everything that was learned
/// (scale, mean, lambda, `v`).
fn checksum([d, set_size]: [usize; 2], config: &str, numbers: [f64; 3], v: &[f64]) -> String {
    let mut bytes = format!("{d} {set_size} {config}").into_bytes();
    bytes.extend(numbers.iter().chain(v).flat_map(|x| x.to_le_bytes()));
    blake3::hash(&bytes).to_hex()[..32].to_owned()
}

/// What such a file is.
const KIND: &str = "predictor of 'keyfold lab random-features'";
/// With its version.
const FORMAT: &str = "keyfold-random-features-1";

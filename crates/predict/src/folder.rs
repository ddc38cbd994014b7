//! Folders of models: `config.json`, which says what it is and holds the checksum of
//! `model.safetensors`, which holds the numbers.

use std::path::{Path, PathBuf};

use keyfold_core::atomic;
use serde_json::Value;

use crate::PredictError;
use crate::tensors::Tensors;

/// What `format` in `config.json` says.
const FORMAT: &str = "keyfold-predict-1";
const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";

/// A folder that was read.
pub(crate) struct Folder {
    /// All of `config.json`.
    pub(crate) config: Value,
    pub(crate) tensors: Tensors,
    path: PathBuf,
}

impl Folder {
    /// An error about the weights.
    pub(crate) fn invalid(&self, what: String) -> PredictError {
        invalid(&self.path.join(WEIGHTS), what)
    }

    /// The settings, as a type.
    pub(crate) fn parse<T: serde::de::DeserializeOwned>(&self) -> Result<T, PredictError> {
        serde_json::from_value(self.config.clone())
            .map_err(|e| invalid(&self.path.join(CONFIG), e.to_string()))
    }
}

fn invalid(path: &Path, what: String) -> PredictError {
    PredictError::Invalid {
        path: path.to_owned(),
        what,
    }
}

/// Writes a folder, the weights first: a folder whose parts do not belong together is
/// refused when it is read.
pub(crate) fn write(
    folder: &Path,
    config: &impl serde::Serialize,
    tensors: &Tensors,
) -> Result<(), PredictError> {
    std::fs::create_dir_all(folder).map_err(|source| PredictError::Io {
        path: folder.to_owned(),
        source,
    })?;
    let wrong = |e: serde_json::Error| invalid(&folder.join(CONFIG), e.to_string());
    let bytes = tensors
        .to_bytes()
        .map_err(|what| invalid(&folder.join(WEIGHTS), what))?;
    let mut config = serde_json::to_value(config).map_err(wrong)?;
    config["format"] = FORMAT.into();
    config["weights"] = blake3::hash(&bytes).to_hex().to_string().into();
    let text = serde_json::to_vec_pretty(&config).map_err(wrong)?;
    for (name, bytes) in [(WEIGHTS, &bytes), (CONFIG, &text)] {
        let path = folder.join(name);
        atomic::write(&path, bytes).map_err(|source| PredictError::Io { path, source })?;
    }
    Ok(())
}

/// Reads `config.json` alone.
pub(crate) fn config(folder: &Path) -> Result<Value, PredictError> {
    let path = folder.join(CONFIG);
    let text = std::fs::read(&path).map_err(|source| PredictError::Io {
        path: path.clone(),
        source,
    })?;
    let found: Value = serde_json::from_slice(&text).map_err(|e| invalid(&path, e.to_string()))?;
    match found["format"] == FORMAT {
        true => Ok(found),
        false => Err(invalid(
            &path,
            format!("it is no model of 'keyfold predict fit' ({FORMAT})"),
        )),
    }
}

/// Reads a folder of [`write`].
pub(crate) fn read(folder: &Path) -> Result<Folder, PredictError> {
    let config = config(folder)?;
    let path = folder.join(WEIGHTS);
    let bytes = std::fs::read(&path).map_err(|source| PredictError::Io {
        path: path.clone(),
        source,
    })?;
    if config["weights"] != blake3::hash(&bytes).to_hex().as_str() {
        let what = "its checksum is not the one in config.json: it is damaged, or of another \
                    model; fit again";
        return Err(invalid(&path, what.to_owned()));
    }
    Ok(Folder {
        tensors: Tensors::from_bytes(&path, &bytes)?,
        config,
        path: folder.to_owned(),
    })
}

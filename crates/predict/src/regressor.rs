//! A regression with its scaling, in a folder.

use std::path::Path;

use keyfold_core::Progress;
use serde::{Deserialize, Serialize};

use crate::cauchy_schwarz::{CauchySchwarz, CauchySchwarzConfig, Standing};
use crate::tensors::Tensors;
use crate::{PredictError, Scale, Scaler, Table, folder};

/// The method's name, as the command has it.
pub(crate) const METHOD: &str = "cs-bottleneck";

/// A regression with its scaling.
#[derive(Debug, Clone, PartialEq)]
pub struct Regressor {
    scale: Scale,
    scaler: Scaler,
    model: CauchySchwarz,
    /// What the caller keeps with the model; nothing here reads it.
    pub notes: serde_json::Value,
}

/// `config.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    method: String,
    settings: CauchySchwarzConfig,
    columns: usize,
    scale: Scale,
    notes: serde_json::Value,
}

impl Regressor {
    /// Learns the scale of the columns, then the numbers.
    pub fn fit(
        x: &Table,
        y: &[f64],
        scale: Scale,
        config: &CauchySchwarzConfig,
        progress: &dyn Progress,
    ) -> Result<Self, PredictError> {
        let scaler = Scaler::fit(scale, x);
        let model = CauchySchwarz::fit(&scaler.apply(x)?, y, config, progress)?;
        Ok(Self {
            scale,
            scaler,
            model,
            notes: serde_json::Value::Null,
        })
    }

    /// The model; its rows are scaled.
    pub fn model(&self) -> &CauchySchwarz {
        &self.model
    }

    /// Rows as the model takes them.
    pub fn scaled(&self, x: &Table) -> Result<Table, PredictError> {
        self.scaler.apply(x)
    }

    /// A number for each row.
    pub fn predict(&self, x: &Table) -> Result<Vec<f64>, PredictError> {
        self.model.predict(&self.scaled(x)?)
    }

    /// How good the model is on rows.
    pub fn standing(&self, x: &Table, y: &[f64]) -> Result<Standing, PredictError> {
        self.model.standing(&self.scaled(x)?, y)
    }

    /// Writes the folder; what is there under these names is replaced.
    pub fn save(&self, folder: &Path) -> Result<(), PredictError> {
        let mut tensors = Tensors::default();
        self.scaler.save(&mut tensors);
        self.model.save(&mut tensors);
        let saved = Saved {
            method: METHOD.to_owned(),
            settings: *self.model.config(),
            columns: self.model.columns(),
            scale: self.scale,
            notes: self.notes.clone(),
        };
        folder::write(folder, &saved, &tensors)
    }

    /// Reads a folder of [`Regressor::save`].
    pub fn load(folder: &Path) -> Result<Self, PredictError> {
        let mut read = folder::read(folder)?;
        let saved: Saved = read.parse()?;
        let load = |tensors: &mut Tensors| -> Result<_, String> {
            if saved.method != METHOD {
                return Err(format!("it is of the method '{}'", saved.method));
            }
            let scaler = Scaler::load(saved.columns, tensors)?;
            let model = CauchySchwarz::load(saved.settings, saved.columns, tensors)?;
            Ok((scaler, model))
        };
        let (scaler, model) = load(&mut read.tensors).map_err(|what| read.invalid(what))?;
        Ok(Self {
            scale: saved.scale,
            scaler,
            model,
            notes: saved.notes,
        })
    }
}

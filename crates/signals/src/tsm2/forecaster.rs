//! A trained model with what it learned from.

use std::path::Path;

use burn::tensor::Device;
use keyfold_core::weights::Weights;
use keyfold_core::{ModelFolder, atomic};
use keyfold_nn::{ModelError, checkpoint};
use serde::{Deserialize, Serialize};

use super::{Inputs, Tsm2, Tsm2Config};
use crate::{Scaler, Series, SignalError};

const CONFIG: &str = "config.json";

/// What a model learned from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Learned {
    /// Columns that are forecast.
    pub targets: Vec<String>,
    /// Columns whose coming rows are known.
    pub future: Vec<String>,
    /// Means and deviations of the former and then the latter.
    pub scaler: Scaler,
    /// Features of the columns that do not change, `[targets, features]`.
    pub statics: Vec<f32>,
}

/// config.json.
#[derive(Serialize, Deserialize)]
struct Described {
    model_type: String,
    #[serde(flatten)]
    sizes: Tsm2Config,
    learned: Learned,
}

/// A trained model with what it learned from.
pub struct Forecaster {
    model: Tsm2,
    learned: Learned,
}

impl Forecaster {
    /// A model that learned from these columns.
    pub fn new(model: Tsm2, learned: Learned) -> Self {
        Self { model, learned }
    }

    /// Reads a folder.
    ///
    /// # Errors
    /// When it holds no such model, or its weights do not fit config.json.
    pub fn load(folder: &ModelFolder) -> Result<Self, SignalError> {
        let described: Described = folder
            .json(CONFIG, "it says what model this is")
            .map_err(ModelError::from)?;
        let wrong = |what: String| SignalError::Table {
            path: folder.file(CONFIG),
            what,
        };
        if described.model_type != "tsm2" {
            return Err(wrong(format!(
                "model_type is '{}', not 'tsm2'",
                described.model_type
            )));
        }
        let (sizes, learned) = (described.sizes, described.learned);
        let columns = learned.targets.len() + learned.future.len();
        let scaler = &learned.scaler;
        let statics = learned.targets.len() * sizes.static_features;
        let usable = |x: &f64| x.is_finite() && *x > 0.0;
        if learned.targets.is_empty()
            || learned.future.len() != sizes.future_features
            || learned.statics.len() != statics
            || [&scaler.mean, &scaler.deviation]
                .iter()
                .any(|x| x.len() != columns)
            || !scaler.deviation.iter().all(usable)
        {
            return Err(wrong("its columns, features and scales do not fit".into()));
        }
        sizes
            .check_columns(learned.targets.len())
            .map_err(|e| wrong(e.to_string()))?;
        let weights = Weights::open(folder, "").map_err(ModelError::from)?;
        Ok(Self {
            model: Tsm2::load(&sizes, &weights, &Device::flex())?,
            learned,
        })
    }

    /// Writes `model.safetensors` and `config.json` into a folder, which is made.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), SignalError> {
        let write = |path: &Path| {
            let path = path.to_owned();
            move |source| ModelError::Write { path, source }
        };
        std::fs::create_dir_all(folder).map_err(write(folder))?;
        checkpoint::write(&folder.join("model.safetensors"), &self.model.tensors())?;
        let described = Described {
            model_type: "tsm2".into(),
            sizes: self.model.config().clone(),
            learned: self.learned.clone(),
        };
        let path = folder.join(CONFIG);
        let json = serde_json::to_string_pretty(&described).unwrap_or_default();
        atomic::write(&path, json.as_bytes()).map_err(write(&path))?;
        Ok(())
    }

    /// The model.
    pub fn model(&self) -> &Tsm2 {
        &self.model
    }

    /// What it learned from.
    pub fn learned(&self) -> &Learned {
        &self.learned
    }

    /// How the columns go on after the last row, `[targets][H]` in their own units. `future` holds
    /// the coming rows of the columns whose coming rows are known.
    ///
    /// # Errors
    /// When a column is missing or there are too few rows.
    pub fn forecast(
        &self,
        series: &Series,
        future: Option<&Series>,
    ) -> Result<Vec<Vec<f64>>, SignalError> {
        let inputs = self.inputs(series, future)?;
        let found = checkpoint::numbers(&self.model.forward(&inputs, None));
        let rows = found.chunks_exact(self.model.config().pred_len).enumerate();
        let scaler = &self.learned.scaler;
        let own = rows.map(|(column, row)| row.iter().map(|x| scaler.own(column, *x)).collect());
        Ok(own.collect())
    }

    /// How much each column's forecast moves, in deviations of that column, when a column is held at
    /// the mean of the window: `[held column][forecast column]`.
    ///
    /// # Errors
    /// As [`forecast`](Self::forecast).
    pub fn influence(
        &self,
        series: &Series,
        future: Option<&Series>,
    ) -> Result<Vec<Vec<f64>>, SignalError> {
        let whole = self.inputs(series, future)?;
        let (t, h) = (self.model.config().seq_len, self.model.config().pred_len);
        let told = |inputs: &Inputs| checkpoint::numbers(&self.model.forward(inputs, None));
        let before = told(&whole);
        let moved = (0..whole.columns).map(|held| {
            let mut inputs = whole.clone();
            let column = &mut inputs.contexts[held * t..(held + 1) * t];
            let mean = column.iter().sum::<f32>() / t as f32;
            column.fill(mean);
            let after = told(&inputs);
            let each = before.chunks_exact(h).zip(after.chunks_exact(h));
            each.map(|(a, b)| {
                let sizes = a.iter().zip(b).map(|(a, b)| f64::from((a - b).abs()));
                sizes.sum::<f64>() / h as f64
            })
            .collect()
        });
        Ok(moved.collect())
    }

    /// The last window of the series.
    fn inputs(&self, series: &Series, future: Option<&Series>) -> Result<Inputs, SignalError> {
        let (t, h) = (self.model.config().seq_len, self.model.config().pred_len);
        let Learned {
            targets,
            future: known,
            scaler,
            statics,
        } = &self.learned;
        let targets = series.select(targets, "the table")?;
        if targets.rows() < t {
            return Err(SignalError::Unfit(format!(
                "{} rows are too few: the model looks at {t}",
                targets.rows()
            )));
        }
        let last = targets.part(targets.rows() - t..targets.rows());
        let split = targets.names.len();
        let of_targets = Scaler {
            mean: scaler.mean[..split].to_vec(),
            deviation: scaler.deviation[..split].to_vec(),
        };
        let mut coming = Vec::new();
        if !known.is_empty() {
            let table = future.ok_or_else(|| {
                SignalError::Unfit(format!(
                    "the model was told the coming rows of {}; give them in a table",
                    known.join(", ")
                ))
            })?;
            let table = table.select(known, "the table of coming rows")?;
            if table.rows() < h {
                return Err(SignalError::Unfit(format!(
                    "the table of coming rows has {} rows; the model needs {h}",
                    table.rows()
                )));
            }
            let of_known = Scaler {
                mean: scaler.mean[split..].to_vec(),
                deviation: scaler.deviation[split..].to_vec(),
            };
            coming = of_known.scaled(&table.part(0..h)).concat();
        }
        Ok(Inputs {
            columns: split,
            contexts: of_targets.scaled(&last).concat(),
            future: coming,
            statics: statics.clone(),
        })
    }
}

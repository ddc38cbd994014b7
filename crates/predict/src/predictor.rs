//! A classifier with its scaling and its calibration, in a folder.

use std::path::Path;

use keyfold_core::Progress;
use serde::{Deserialize, Serialize};

use crate::calibration::{self, Calibration};
use crate::key_value_bottleneck::{KeyValueBottleneck, KeyValueBottleneckConfig};
use crate::logistic::{Logistic, LogisticConfig, Told};
use crate::naive_bayes::{NaiveBayes, NaiveBayesConfig};
use crate::supervised_dictionary::{self, SupervisedDictionary, SupervisedDictionaryConfig};
use crate::tensors::Tensors;
use crate::{Classifier, Labels, Linear, PredictError, Scale, Scaler, Table, folder};

/// A fitted model of any method that tells classes.
#[derive(Debug, Clone, PartialEq)]
pub enum Model {
    /// Gaussian naive Bayes.
    NaiveBayes(NaiveBayes),
    /// Multinomial logistic regression.
    Logistic(LogisticConfig, Logistic),
    /// A dictionary that learned with the labels.
    SupervisedDictionary(SupervisedDictionary),
    /// A table of keys and values.
    KeyValueBottleneck(KeyValueBottleneck),
}

/// What a method is called, and its settings.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "method", content = "settings", rename_all = "kebab-case")]
enum Method {
    NaiveBayes(NaiveBayesConfig),
    Logistic(LogisticConfig, Told),
    SupervisedDictionary {
        config: SupervisedDictionaryConfig,
        told: supervised_dictionary::Told,
    },
    KeyValueBottleneck {
        config: KeyValueBottleneckConfig,
        fixed: bool,
        calls: u64,
    },
}

/// `config.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    #[serde(flatten)]
    method: Method,
    classes: Vec<String>,
    /// Columns of the rows, before they are scaled.
    columns: usize,
    scale: Scale,
    calibration: Option<Calibration>,
    /// What the caller keeps with the model: names of columns, the encoder of texts.
    notes: serde_json::Value,
}

/// A model with its scaling and its calibration.
#[derive(Debug, Clone, PartialEq)]
pub struct Predictor {
    scale: Scale,
    scaler: Scaler,
    model: Model,
    calibration: Option<Calibration>,
    /// What the caller keeps with the model; nothing here reads it.
    pub notes: serde_json::Value,
}

impl Predictor {
    /// Learns the scale of the columns, then the model, and calibrates it with `folds`
    /// folds (none: not at all). `fit` is what learns.
    pub fn fit(
        x: &Table,
        labels: &Labels,
        scale: Scale,
        folds: Option<usize>,
        seed: u64,
        progress: &dyn Progress,
        mut fit: impl FnMut(&Table, &Labels) -> Result<Model, PredictError>,
    ) -> Result<Self, PredictError> {
        labels.check(x.rows())?;
        let scaler = Scaler::fit(scale, x);
        let scaled = scaler.apply(x)?;
        let enough = labels.counts().iter().any(|n| *n > 1);
        let calibration = match folds {
            Some(folds) if enough => Some(calibration::by_folds(
                &scaled,
                labels,
                folds,
                seed,
                progress,
                |learn, known, tell| {
                    let model = fit(learn, known)?;
                    progress.advance(1);
                    Ok(in_order(&model, &model.logits(tell)?, labels.classes()))
                },
            )?),
            _ => None,
        };
        let model = fit(&scaled, labels)?;
        progress.advance(1);
        Ok(Self {
            scale,
            scaler,
            model,
            calibration,
            notes: serde_json::Value::Null,
        })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The calibration, where there is one.
    pub fn calibration(&self) -> Option<&Calibration> {
        self.calibration.as_ref()
    }

    /// How columns are scaled.
    pub fn scale(&self) -> Scale {
        self.scale
    }

    /// Rows as the model takes them.
    pub fn scaled(&self, x: &Table) -> Result<Table, PredictError> {
        self.scaler.apply(x)
    }

    /// Learns more rows, where the method can; scaling and calibration stay as they are.
    pub fn partial_fit(
        &mut self,
        x: &Table,
        labels: &Labels,
        progress: &dyn Progress,
    ) -> Result<(), PredictError> {
        let x = self.scaler.apply(x)?;
        match &mut self.model {
            Model::NaiveBayes(model) => model.partial_fit(&x, labels),
            Model::KeyValueBottleneck(model) => model.partial_fit(&x, labels, progress),
            Model::Logistic(..) | Model::SupervisedDictionary(_) => Err(PredictError::Unsupported(
                "this method cannot learn more rows without the old ones; fit again with all, \
                     or use naive-bayes or key-value-bottleneck",
            )),
        }
    }

    /// Calibrated probabilities of the classes, `[rows, classes]`.
    pub fn predict_proba(&self, x: &Table) -> Result<Vec<f64>, PredictError> {
        let logits = self.logits(x)?;
        Ok(self.probabilities(&logits))
    }

    /// Calibrated probabilities of scores.
    pub fn probabilities(&self, logits: &[f64]) -> Vec<f64> {
        let temperature = self.calibration.map_or(1.0, |c| c.temperature);
        calibration::probabilities(logits, self.classes().len(), temperature)
    }

    /// Writes the folder; what is there under these names is replaced.
    pub fn save(&self, folder: &Path) -> Result<(), PredictError> {
        let mut tensors = Tensors::default();
        self.scaler.save(&mut tensors);
        let saved = Saved {
            method: self.model.save(&mut tensors),
            classes: self.classes().to_vec(),
            columns: self.columns(),
            scale: self.scale,
            calibration: self.calibration,
            notes: self.notes.clone(),
        };
        folder::write(folder, &saved, &tensors)
    }

    /// Reads a folder of [`Predictor::save`].
    pub fn load(folder: &Path) -> Result<Self, PredictError> {
        let mut read = folder::read(folder)?;
        let saved: Saved = read.parse()?;
        let load = |tensors: &mut Tensors| -> Result<_, String> {
            let scaler = Scaler::load(saved.columns, tensors)?;
            let model = Model::load(saved.method, saved.classes, saved.columns, tensors)?;
            Ok((scaler, model))
        };
        let (scaler, model) = load(&mut read.tensors).map_err(|what| read.invalid(what))?;
        Ok(Self {
            scale: saved.scale,
            scaler,
            model,
            calibration: saved.calibration,
            notes: saved.notes,
        })
    }
}

impl Classifier for Predictor {
    fn classes(&self) -> &[String] {
        self.model.classes()
    }

    fn columns(&self) -> usize {
        self.scaler.offset.len()
    }

    fn logits(&self, x: &Table) -> Result<Vec<f64>, PredictError> {
        self.model.logits(&self.scaler.apply(x)?)
    }

    fn decide(&self, logits: &[f64]) -> usize {
        self.model.decide(logits)
    }
}

/// Scores in the order of `classes`; a class that the model does not know scores less than
/// all others.
fn in_order(model: &Model, logits: &[f64], classes: &[String]) -> Vec<f64> {
    let known = model.classes();
    if known == classes {
        return logits.to_vec();
    }
    let places: Vec<Option<usize>> = (classes.iter())
        .map(|class| known.iter().position(|c| c == class))
        .collect();
    let rows = logits.chunks_exact(known.len());
    rows.flat_map(|row| {
        let least = row.iter().copied().fold(0.0, f64::min) - 30.0;
        places.iter().map(move |p| p.map_or(least, |p| row[p]))
    })
    .collect()
}

impl Model {
    fn classifier(&self) -> &dyn Classifier {
        match self {
            Self::NaiveBayes(model) => model,
            Self::Logistic(_, model) => model,
            Self::SupervisedDictionary(model) => model,
            Self::KeyValueBottleneck(model) => model,
        }
    }

    /// The method's name, as the command has it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::NaiveBayes(_) => "naive-bayes",
            Self::Logistic(..) => "logistic",
            Self::SupervisedDictionary(_) => "supervised-dictionary",
            Self::KeyValueBottleneck(_) => "key-value-bottleneck",
        }
    }

    /// Puts the weights into `tensors`.
    fn save(&self, tensors: &mut Tensors) -> Method {
        match self {
            Self::NaiveBayes(model) => {
                let (k, p) = (model.classes().len(), model.columns());
                tensors.put("counts", &[k], model.counts().to_vec());
                tensors.put("means", &[k, p], model.means().to_vec());
                tensors.put("squares", &[k, p], model.squares().to_vec());
                if let Some(linear) = model.linear() {
                    // For others: a linear layer that gives the same.
                    put_linear(tensors, &linear);
                }
                Method::NaiveBayes(*model.config())
            }
            Self::Logistic(config, model) => {
                put_linear(tensors, model.linear());
                Method::Logistic(*config, *model.told())
            }
            Self::SupervisedDictionary(model) => {
                let config = *model.config();
                let p = model.columns() - config.covariates;
                tensors.put("components", &[config.n_components, p], model.components());
                put_linear(tensors, model.regression());
                tensors.put("threshold", &[1], vec![model.threshold()]);
                Method::SupervisedDictionary {
                    config,
                    told: model.told().clone(),
                }
            }
            Self::KeyValueBottleneck(model) => {
                model.save(tensors);
                let (fixed, calls) = model.progress();
                Method::KeyValueBottleneck {
                    config: *model.config(),
                    fixed,
                    calls,
                }
            }
        }
    }

    fn load(
        method: Method,
        classes: Vec<String>,
        columns: usize,
        tensors: &mut Tensors,
    ) -> Result<Self, String> {
        let k = classes.len();
        if k < 2 {
            return Err(format!("it has {k} classes"));
        }
        Ok(match method {
            Method::NaiveBayes(config) => {
                let counts = tensors.shaped("counts", &[k])?;
                let means = tensors.shaped("means", &[k, columns])?;
                let squares = tensors.shaped("squares", &[k, columns])?;
                let all = [counts, means, squares];
                Self::NaiveBayes(NaiveBayes::known(config, classes, columns, all))
            }
            Method::Logistic(config, told) => {
                let rows = if k == 2 { 1 } else { k };
                let linear = Linear {
                    coef: tensors.shaped("coef", &[rows, columns])?,
                    intercept: tensors.shaped("intercept", &[rows])?,
                };
                Self::Logistic(config, Logistic::known(classes, linear, told))
            }
            Method::SupervisedDictionary { config, told } => {
                let (r, q) = (config.n_components, config.covariates);
                let p = columns.checked_sub(q).filter(|p| *p > 0 && r > 0);
                let p = p.ok_or("its settings leave no columns for the dictionary")?;
                let components = tensors.shaped("components", &[r, p])?;
                let linear = Linear {
                    coef: tensors.shaped("coef", &[k - 1, r + q])?,
                    intercept: tensors.shaped("intercept", &[k - 1])?,
                };
                Self::SupervisedDictionary(SupervisedDictionary::known(
                    config,
                    classes,
                    &components,
                    linear,
                    (tensors.shaped("threshold", &[1])?[0], told),
                ))
            }
            Method::KeyValueBottleneck {
                config,
                fixed,
                calls,
            } => Self::KeyValueBottleneck(KeyValueBottleneck::load(
                config,
                classes,
                columns,
                (fixed, calls),
                tensors,
            )?),
        })
    }
}

fn put_linear(tensors: &mut Tensors, linear: &Linear) {
    let rows = linear.intercept.len();
    let columns = linear.columns();
    tensors.put("coef", &[rows, columns], linear.coef.clone());
    tensors.put("intercept", &[rows], linear.intercept.clone());
}

impl Classifier for Model {
    fn classes(&self) -> &[String] {
        self.classifier().classes()
    }

    fn columns(&self) -> usize {
        self.classifier().columns()
    }

    fn logits(&self, x: &Table) -> Result<Vec<f64>, PredictError> {
        self.classifier().logits(x)
    }

    fn decide(&self, logits: &[f64]) -> usize {
        self.classifier().decide(logits)
    }
}

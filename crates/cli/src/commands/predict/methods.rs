//! The methods by name, and their settings.

use clap::ValueEnum;
use keyfold_core::Progress;
use keyfold_predict::cauchy_schwarz::CauchySchwarzConfig;
use keyfold_predict::key_value_bottleneck::{KeyValueBottleneck, KeyValueBottleneckConfig};
use keyfold_predict::logistic::{Logistic, LogisticConfig};
use keyfold_predict::naive_bayes::{NaiveBayes, NaiveBayesConfig};
use keyfold_predict::supervised_dictionary::{SupervisedDictionary, SupervisedDictionaryConfig};
use keyfold_predict::{Labels, Model, PredictError, Scale, Table};
use keyfold_train::{TrainError, recipe};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::failure::wrong_use;

/// How classes or numbers are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Method {
    /// Naive Bayes or logistic regression, whichever is better with so many labels
    Auto,
    /// Gaussian naive Bayes with shared variances: best with few labels
    NaiveBayes,
    /// Multinomial logistic regression with a ridge
    Logistic,
    /// Atoms that rebuild the rows and tell their class
    SupervisedDictionary,
    /// A look-up table that learns classes one after another
    KeyValueBottleneck,
    /// Numbers instead of classes: a network that outliers hardly move
    CsBottleneck,
}

/// How columns are scaled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum ScaleArg {
    /// As they are
    None,
    /// From 0 to 1
    Minmax,
    /// Mean 0, variance 1
    Standard,
}

impl From<ScaleArg> for Scale {
    fn from(arg: ScaleArg) -> Self {
        match arg {
            ScaleArg::None => Self::None,
            ScaleArg::Minmax => Self::MinMax,
            ScaleArg::Standard => Self::Standard,
        }
    }
}

impl Method {
    /// How columns are scaled where the user does not say. Vectors of texts are alike in all
    /// columns, and stay as they are where nothing needs another scale.
    pub(super) fn scale(self, texts: bool) -> Scale {
        match self {
            Self::SupervisedDictionary => Scale::MinMax,
            Self::Logistic | Self::CsBottleneck if !texts => Scale::Standard,
            _ => Scale::None,
        }
    }
}

/// Settings of all kinds, checked before anything long begins.
#[derive(Debug, Clone)]
pub(super) enum Settings {
    NaiveBayes(NaiveBayesConfig),
    Logistic(LogisticConfig),
    SupervisedDictionary(SupervisedDictionaryConfig),
    KeyValueBottleneck(KeyValueBottleneckConfig),
    CsBottleneck(CauchySchwarzConfig),
}

impl Settings {
    /// Defaults with `--set` on top.
    pub(super) fn new(
        method: Method,
        set: &[String],
        seed: u64,
        covariates: usize,
        columns: usize,
    ) -> anyhow::Result<Self> {
        Ok(match method {
            Method::NaiveBayes | Method::Auto => {
                Self::NaiveBayes(with(&NaiveBayesConfig::default(), set)?)
            }
            Method::Logistic => Self::Logistic(with(&LogisticConfig::default(), set)?),
            Method::SupervisedDictionary => {
                let defaults = SupervisedDictionaryConfig {
                    n_components: 16.min(columns - covariates),
                    covariates,
                    seed,
                    ..Default::default()
                };
                Self::SupervisedDictionary(with(&defaults, set)?)
            }
            Method::KeyValueBottleneck => {
                // The paper's table is for hundreds of thousands of rows.
                let defaults = KeyValueBottleneckConfig {
                    num_codebooks: 64,
                    key_value_pairs_per_codebook: 256,
                    epochs: 200,
                    init_batch: 100,
                    seed,
                    ..Default::default()
                };
                Self::KeyValueBottleneck(with(&defaults, set)?)
            }
            Method::CsBottleneck => {
                // The paper's rate is for tens of thousands of rows.
                let defaults = CauchySchwarzConfig {
                    lr: 1e-3,
                    lr_step: 40,
                    seed,
                    ..Default::default()
                };
                Self::CsBottleneck(with(&defaults, set)?)
            }
        })
    }

    /// Learns a model of classes. `keys`: rows that place the keys of a table.
    pub(super) fn fit(
        &self,
        x: &Table,
        labels: &Labels,
        keys: Option<&Table>,
        progress: &dyn Progress,
    ) -> Result<Model, PredictError> {
        Ok(match self {
            Self::NaiveBayes(config) => Model::NaiveBayes(NaiveBayes::fit(x, labels, config)?),
            Self::Logistic(config) => {
                Model::Logistic(*config, Logistic::fit(x, labels, config, progress)?)
            }
            Self::SupervisedDictionary(config) => {
                Model::SupervisedDictionary(SupervisedDictionary::fit(x, labels, config, progress)?)
            }
            Self::KeyValueBottleneck(config) => {
                let mut model = KeyValueBottleneck::new(x.columns(), config)?;
                model.fit_keys(keys.unwrap_or(x), progress)?;
                model.partial_fit(x, labels, progress)?;
                Model::KeyValueBottleneck(model)
            }
            Self::CsBottleneck(_) => {
                return Err(PredictError::Unsupported(
                    "cs-bottleneck tells numbers and no classes",
                ));
            }
        })
    }
}

fn with<C: Serialize + DeserializeOwned>(defaults: &C, set: &[String]) -> anyhow::Result<C> {
    recipe::settings(defaults, None, set).map_err(|e| match e {
        TrainError::Config(what) => wrong_use(what),
        other => other.into(),
    })
}

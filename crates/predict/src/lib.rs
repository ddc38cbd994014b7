//! Classes and numbers from rows of features: what stands at the end of a frozen encoder.
//!
//! One interface in scikit-learn's words: `fit`, `partial_fit` where it makes sense,
//! `predict`, `predict_proba`, `score`. Heads on features ([`naive_bayes`], [`logistic`])
//! with the [label budgets](label_budgets) at which each is better, a dictionary that learns
//! with the labels ([`supervised_dictionary`]), a look-up table that learns classes one
//! after another ([`key_value_bottleneck`]), and a regression that keeps little of its
//! input ([`cauchy_schwarz`]).
//! A [`Predictor`] or a [`Regressor`] is one of them with its scaling and, of classes, its
//! calibration, in a folder.

mod algebra;
pub mod calibration;
pub mod cauchy_schwarz;
mod classifier;
mod error;
mod folder;
pub mod key_value_bottleneck;
pub mod label_budgets;
mod layers;
pub mod lbfgs;
mod linear;
pub mod logistic;
pub mod metrics;
pub mod naive_bayes;
mod predictor;
mod regressor;
mod scaler;
pub mod supervised_dictionary;
mod table;
mod tensors;

pub use classifier::Classifier;
pub use error::PredictError;
pub use linear::Linear;
pub use predictor::{Model, Predictor};
pub use regressor::Regressor;
pub use scaler::{Scale, Scaler};
pub use table::{Labels, Table};

/// The method and the notes of a saved model, without its weights.
pub fn describe(folder: &std::path::Path) -> Result<(String, serde_json::Value), PredictError> {
    let config = folder::config(folder)?;
    let method = config["method"].as_str().unwrap_or_default().to_owned();
    Ok((method, config["notes"].clone()))
}

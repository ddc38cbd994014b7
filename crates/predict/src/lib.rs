//! Classes and numbers from rows of features: what stands at the end of a frozen encoder.
//!
//! One interface in scikit-learn's words: `fit`, `partial_fit` where it makes sense,
//! `predict`, `predict_proba`, `score`. Heads on features ([`naive_bayes`], [`logistic`])
//! with the [label budgets](label_budgets) at which each is better, a dictionary that learns
//! with the labels ([`supervised_dictionary`]), a look-up table that learns classes one
//! after another ([`key_value_bottleneck`]), and a regression that keeps little of its
//! input ([`cauchy_schwarz`]).
//! A [`Predictor`] is one of them with its scaling and its calibration, in a folder.

mod algebra;
pub mod calibration;
mod classifier;
mod error;
pub mod key_value_bottleneck;
pub mod label_budgets;
pub mod lbfgs;
mod linear;
pub mod logistic;
pub mod metrics;
pub mod naive_bayes;
mod predictor;
mod scaler;
pub mod supervised_dictionary;
mod table;
mod tensors;

pub use classifier::Classifier;
pub use error::PredictError;
pub use linear::Linear;
pub use predictor::{Model, Predictor};
pub use scaler::{Scale, Scaler};
pub use table::{Labels, Table};

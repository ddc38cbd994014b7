//! Model folders: what is saved is what is read, and damage is refused.

#![allow(clippy::unwrap_used)]

use keyfold_core::NoProgress;
use keyfold_predict::cauchy_schwarz::CauchySchwarzConfig;
use keyfold_predict::key_value_bottleneck::{KeyValueBottleneck, KeyValueBottleneckConfig};
use keyfold_predict::logistic::{Logistic, LogisticConfig};
use keyfold_predict::naive_bayes::{NaiveBayes, NaiveBayesConfig};
use keyfold_predict::supervised_dictionary::{SupervisedDictionary, SupervisedDictionaryConfig};
use keyfold_predict::{
    Classifier, Labels, Model, PredictError, Predictor, Regressor, Scale, Table, describe,
};

fn rows() -> (Table, Labels) {
    let numbers = (0..60).map(|i| f64::from((i * 37) % 23) + f64::from(i % 3));
    let names: Vec<String> = (0..20).map(|i| ["red", "blue"][i % 2].to_owned()).collect();
    (
        Table::new(3, numbers.collect()).unwrap(),
        Labels::new(&names),
    )
}

fn naive_bayes(x: &Table, labels: &Labels) -> Result<Model, PredictError> {
    NaiveBayes::fit(x, labels, &NaiveBayesConfig::default()).map(Model::NaiveBayes)
}

fn logistic(x: &Table, labels: &Labels) -> Result<Model, PredictError> {
    let config = LogisticConfig::default();
    Logistic::fit(x, labels, &config, &NoProgress).map(|m| Model::Logistic(config, m))
}

fn table(x: &Table, labels: &Labels) -> Result<Model, PredictError> {
    let config = KeyValueBottleneckConfig {
        num_codebooks: 4,
        key_value_pairs_per_codebook: 8,
        dim_keys: 2,
        epochs: 30,
        ..Default::default()
    };
    let model = KeyValueBottleneck::fit(x, labels, &config, &NoProgress)?;
    Ok(Model::KeyValueBottleneck(model))
}

fn dictionary(x: &Table, labels: &Labels) -> Result<Model, PredictError> {
    let config = SupervisedDictionaryConfig {
        n_components: 2,
        nonneg: [false, false],
        iter: 20,
        ..Default::default()
    };
    let model = SupervisedDictionary::fit(x, labels, &config, &NoProgress)?;
    Ok(Model::SupervisedDictionary(model))
}

type Learn = fn(&Table, &Labels) -> Result<Model, PredictError>;

fn fit(learn: Learn) -> Predictor {
    let (x, labels) = rows();
    let scale = Scale::Standard;
    Predictor::fit(&x, &labels, scale, Some(4), 7, &NoProgress, learn).unwrap()
}

#[test]
fn what_is_read_tells_to_the_bit_what_was_saved() {
    let (x, _) = rows();
    for learn in [naive_bayes as Learn, logistic, dictionary, table] {
        let folder = tempfile::tempdir().unwrap();
        let mut saved = fit(learn);
        saved.notes = serde_json::json!({"columns": ["a", "b", "c"]});
        saved.save(folder.path()).unwrap();
        let read = Predictor::load(folder.path()).unwrap();
        assert_eq!(read, saved);
        assert_eq!(
            read.predict_proba(&x).unwrap(),
            saved.predict_proba(&x).unwrap()
        );
        assert!(read.calibration().unwrap().temperature > 0.0);
        // The same fit writes the same bytes.
        let again = tempfile::tempdir().unwrap();
        fit(learn).save(again.path()).unwrap();
        let bytes = |dir: &tempfile::TempDir| std::fs::read(dir.path().join("model.safetensors"));
        assert_eq!(bytes(&folder).unwrap(), bytes(&again).unwrap());
    }
}

#[test]
fn a_regression_is_read_as_it_was_saved() {
    let (x, _) = rows();
    let y: Vec<f64> = (0..20).map(|i| x.row(i)[0] + 0.5 * x.row(i)[2]).collect();
    let config = CauchySchwarzConfig {
        hidden: 8,
        code_dim: 4,
        epochs: 5,
        batch: 10,
        ..Default::default()
    };
    let saved = Regressor::fit(&x, &y, Scale::Standard, &config, &NoProgress).unwrap();
    let folder = tempfile::tempdir().unwrap();
    saved.save(folder.path()).unwrap();
    let read = Regressor::load(folder.path()).unwrap();
    assert_eq!(read, saved);
    assert_eq!(read.predict(&x).unwrap(), saved.predict(&x).unwrap());
    assert_eq!(describe(folder.path()).unwrap().0, "cs-bottleneck");
    // Neither kind is taken for the other.
    assert!(Predictor::load(folder.path()).is_err());
    let classes = tempfile::tempdir().unwrap();
    fit(logistic).save(classes.path()).unwrap();
    assert!(Regressor::load(classes.path()).is_err());
}

#[test]
fn a_damaged_or_foreign_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    fit(naive_bayes).save(folder.path()).unwrap();
    let (weights, config) = (
        folder.path().join("model.safetensors"),
        folder.path().join("config.json"),
    );
    let whole = std::fs::read(&weights).unwrap();
    let mut damaged = whole.clone();
    *damaged.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, &damaged).unwrap();
    let error = Predictor::load(folder.path()).unwrap_err().to_string();
    assert!(error.contains("checksum"), "{error}");
    std::fs::write(&weights, &whole).unwrap();
    Predictor::load(folder.path()).unwrap();
    for text in [
        "{}",
        "[1]",
        "{\"format\": \"keyfold-predict-9\"}",
        "not json",
    ] {
        std::fs::write(&config, text).unwrap();
        let error = Predictor::load(folder.path()).unwrap_err().to_string();
        assert!(error.contains("config.json"), "{error}");
    }
    std::fs::remove_file(&config).unwrap();
    assert!(Predictor::load(folder.path()).is_err());
}

#[test]
fn naive_bayes_goes_on_learning_with_new_classes_and_logistic_says_that_it_cannot() {
    let (x, labels) = rows();
    let mut model = fit(naive_bayes);
    let green = Labels::new(&["green"; 20]);
    model.partial_fit(&x, &green, &NoProgress).unwrap();
    assert_eq!(model.classes(), ["blue", "red", "green"]);
    assert_eq!(model.predict_proba(&x).unwrap().len(), 60);
    let mut model = fit(table);
    model.partial_fit(&x, &green, &NoProgress).unwrap();
    let folder = tempfile::tempdir().unwrap();
    model.save(folder.path()).unwrap();
    let mut read = Predictor::load(folder.path()).unwrap();
    // What is read goes on as what was saved.
    model.partial_fit(&x, &labels, &NoProgress).unwrap();
    read.partial_fit(&x, &labels, &NoProgress).unwrap();
    assert_eq!(read, model);
    assert_eq!(read.classes(), ["blue", "red", "green"]);
    let error = fit(logistic)
        .partial_fit(&x, &labels, &NoProgress)
        .unwrap_err();
    assert!(error.to_string().contains("naive-bayes"), "{error}");
}

//! What scikit-learn and the authors' code give (parity/predict.py).

#![allow(clippy::unwrap_used)]

mod dictionary;
mod divergence;
mod heads;
mod table;

use serde_json::Value;

/// A fixture by name.
fn fixture(name: &str) -> Value {
    let path = format!("{}/tests/fixtures/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// All numbers of an array of any depth.
fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(all) => all.iter().flat_map(numbers).collect(),
        one => vec![one.as_f64().unwrap()],
    }
}

fn names(value: &Value) -> Vec<String> {
    let all = numbers(value).into_iter();
    all.map(|x| (x as i64).to_string()).collect()
}

fn table(value: &Value) -> keyfold_predict::Table {
    let columns = value[0].as_array().unwrap().len();
    keyfold_predict::Table::new(columns, numbers(value)).unwrap()
}

/// That all numbers are within `relative` of those expected, or of the largest of them.
#[track_caller]
fn close(what: &str, got: &[f64], want: &[f64], relative: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    let largest = want.iter().fold(0f64, |m, x| m.max(x.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(
            (g - w).abs() <= relative * largest,
            "{what}: number {i} is {g}, not {w}"
        );
    }
}

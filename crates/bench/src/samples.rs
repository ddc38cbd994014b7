//! Small data sets of the experiments on rows: those that lie in the repository, and the
//! user's.

use std::path::Path;

use keyfold_data::rows::{RowOptions, read_labels, read_rows};
use keyfold_predict::{Labels, Table};

use crate::BenchError;

/// Rows with classes.
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) x: Table,
    pub(crate) labels: Labels,
}

macro_rules! fixture {
    ($name:literal) => {
        include_bytes!(concat!("../../predict/tests/fixtures/", $name, ".npy"))
    };
}

/// 1,797 pictures of digits of 8 x 8, from 0 to 1.
pub(crate) fn digits() -> Result<Sample, BenchError> {
    let numbers = bytes(fixture!("digits")).iter();
    let numbers = numbers.map(|&b| f64::from(b) / 16.0).collect();
    let labels = bytes(fixture!("digits-labels"));
    sample("digits", 64, numbers, labels)
}

/// 178 wines by 13 measurements.
pub(crate) fn wine() -> Result<Sample, BenchError> {
    let labels = bytes(fixture!("wine-labels"));
    sample("wine", 13, floats(fixture!("wine")), labels)
}

/// 569 tumours by 30 measurements.
pub(crate) fn breast_cancer() -> Result<Sample, BenchError> {
    let labels = bytes(fixture!("breast_cancer-labels"));
    let numbers = floats(fixture!("breast_cancer"));
    sample("breast cancer", 30, numbers, labels)
}

/// 442 patients by 10 measurements, and how their diabetes went.
pub(crate) fn diabetes() -> Result<(Table, Vec<f64>), BenchError> {
    let x = Table::new(10, floats(fixture!("diabetes")))?;
    Ok((x, floats(fixture!("diabetes-target"))))
}

/// `rows.npy` and `labels.npy` of the user's folder.
pub(crate) fn of_user(folder: &Path) -> Result<Sample, BenchError> {
    let wrong = |what: String| {
        BenchError::data(
            folder,
            format!("{what}; give a folder with rows.npy and labels.npy"),
        )
    };
    let rows = read_rows(&folder.join("rows.npy"), &RowOptions::default())
        .map_err(|e| wrong(e.to_string()))?;
    let labels = read_labels(&folder.join("labels.npy")).map_err(|e| wrong(e.to_string()))?;
    Ok(Sample {
        name: folder.display().to_string(),
        x: Table::from_f32(rows.width, &rows.values)?,
        labels: Labels::new(&labels),
    })
}

fn sample(
    name: &str,
    columns: usize,
    numbers: Vec<f64>,
    labels: &[u8],
) -> Result<Sample, BenchError> {
    let names: Vec<String> = labels.iter().map(ToString::to_string).collect();
    Ok(Sample {
        name: name.to_owned(),
        x: Table::new(columns, numbers)?,
        labels: Labels::new(&names),
    })
}

/// What follows the header of a NumPy file of version 1.
fn bytes(file: &'static [u8]) -> &'static [u8] {
    let header = usize::from(u16::from_le_bytes([file[8], file[9]]));
    &file[10 + header..]
}

fn floats(file: &'static [u8]) -> Vec<f64> {
    let all = bytes(file).as_chunks::<4>().0.iter();
    all.map(|b| f64::from(f32::from_le_bytes(*b))).collect()
}

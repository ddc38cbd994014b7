//! What can go wrong.

use std::path::PathBuf;

/// Why rows could not be learned from or predicted.
#[derive(Debug, thiserror::Error)]
pub enum PredictError {
    /// There is nothing to learn from.
    #[error("there are no {what}; give at least one")]
    Empty {
        /// What is missing: rows, columns, ...
        what: &'static str,
    },
    /// The numbers do not divide into whole rows.
    #[error("{len} numbers do not divide into rows of {columns}")]
    Ragged {
        /// How many numbers were given.
        len: usize,
        /// The length of a row.
        columns: usize,
    },
    /// A number is NaN or infinite.
    #[error("row {row}, column {column} is {value}; take the row out or fill the value in")]
    NotFinite {
        /// The first such row, from 0.
        row: usize,
        /// Its column, from 0.
        column: usize,
        /// What stands there.
        value: f64,
    },
    /// Rows have another width than those learned from.
    #[error("rows have {found} columns, but the model was fitted on {expected}")]
    Width {
        /// Columns of the model.
        expected: usize,
        /// Columns of the rows.
        found: usize,
    },
    /// Not one label for each row.
    #[error("{labels} labels for {rows} rows; each row needs one")]
    LabelCount {
        /// Number of labels.
        labels: usize,
        /// Number of rows.
        rows: usize,
    },
    /// All rows have the same class.
    #[error("all rows have the class '{class}'; a classifier needs at least two classes")]
    OneClass {
        /// That class.
        class: String,
    },
    /// A label that the model does not know.
    #[error("the class '{class}' is not one that the model knows ({known})")]
    UnknownClass {
        /// The label.
        class: String,
        /// The classes of the model.
        known: String,
    },
    /// A number to be predicted is the same for all rows.
    #[error("the target is {value} in all rows; there is nothing to predict")]
    ConstantTarget {
        /// That value.
        value: f64,
    },
    /// A setting is out of its range, alone or with these rows.
    #[error("{setting}: {what}")]
    Setting {
        /// Its name.
        setting: &'static str,
        /// What is wrong, and what to do.
        what: String,
    },
    /// A method that wants numbers of at least 0 got others.
    #[error(
        "row {row}, column {column} is {value}, but the dictionary is to be without negative \
         numbers; scale the rows (minmax) or allow negative numbers"
    )]
    Negative {
        /// The first such row, from 0.
        row: usize,
        /// Its column, from 0.
        column: usize,
        /// What stands there.
        value: f64,
    },
    /// Something has to be done before.
    #[error("{0}")]
    NotReady(&'static str),
    /// The method does not have what was asked for.
    #[error("{0}")]
    Unsupported(&'static str),
    /// Numbers ran out of their range while learning.
    #[error("{what} is not finite any more: {hint}")]
    Diverged {
        /// What is.
        what: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// The user asked to stop before there was anything to keep.
    #[error("stopped before there was a result")]
    Cancelled,
    /// A file could not be read or written.
    #[error("cannot use {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file of a model does not hold what it should.
    #[error("{path} is not usable: {what}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        what: String,
    },
}

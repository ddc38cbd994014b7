//! Why a mixer refuses its input.

/// Why a mixer refuses its input.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SequenceError {
    /// A matrix is no whole number of rows, or has another shape than the others.
    #[error("{what} has {found} numbers; {expected} were expected")]
    Shape {
        /// The matrix.
        what: &'static str,
        /// What it has.
        found: usize,
        /// What it needs.
        expected: String,
    },
    /// A number is NaN or infinite.
    #[error("{what} holds {value} in row {row}; all numbers must be finite")]
    NotFinite {
        /// The matrix.
        what: &'static str,
        /// The row, from 0.
        row: usize,
        /// The number.
        value: f64,
    },
    /// A setting is out of its range, or the input is too large for it.
    #[error("{0}")]
    Refused(String),
}

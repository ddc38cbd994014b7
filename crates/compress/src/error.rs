//! Why a model was not made smaller.

/// What went wrong, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompressError {
    /// A setting, or a model that it does not fit.
    #[error("{0}")]
    Settings(String),
    /// A matrix has another shape than the others of its kind.
    #[error("{what} has {found} numbers; {expected} were expected")]
    Shape {
        /// Which matrix.
        what: String,
        /// What it has.
        found: usize,
        /// What it needs.
        expected: usize,
    },
    /// A number is NaN or infinite.
    #[error("{what} holds a number that is not finite; the model is damaged")]
    NotFinite {
        /// Which matrix.
        what: String,
    },
    /// A decomposition found no end.
    #[error("the {0} of a matrix did not converge; look for numbers of very different size")]
    Numeric(&'static str),
    /// The user asked to stop.
    #[error("stopped before the end, so there is no result")]
    Cancelled,
}

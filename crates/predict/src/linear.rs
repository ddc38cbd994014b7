//! A linear layer: what naive Bayes with shared variances and logistic regression both are.

use crate::algebra::{multiply, view};
use crate::{PredictError, Table};

/// Scores `x · coefᵀ + intercept`.
#[derive(Debug, Clone, PartialEq)]
pub struct Linear {
    /// Row-major `[rows, columns]`: a row for each class, or one row for two classes, the
    /// score of the second against the first.
    pub coef: Vec<f64>,
    /// One number for each row of `coef`.
    pub intercept: Vec<f64>,
}

impl Linear {
    /// Nothing but zeros.
    pub fn zeros(rows: usize, columns: usize) -> Self {
        Self {
            coef: vec![0.0; rows * columns],
            intercept: vec![0.0; rows],
        }
    }

    /// Columns of the rows that it takes.
    pub fn columns(&self) -> usize {
        self.coef.len() / self.intercept.len().max(1)
    }

    /// Scores, `[rows, classes]`. With one row of coefficients the first of two classes has
    /// the score 0.
    pub fn logits(&self, x: &Table) -> Result<Vec<f64>, PredictError> {
        x.expect_columns(self.columns())?;
        let rows = self.intercept.len();
        let mut scores = vec![0.0; x.rows() * rows];
        let coef = view(&self.coef, self.columns());
        multiply(&mut scores, x.matrix(), coef.transpose(), 1.0, false);
        for row in scores.chunks_exact_mut(rows) {
            row.iter_mut()
                .zip(&self.intercept)
                .for_each(|(s, b)| *s += b);
        }
        Ok(match rows {
            1 => scores.into_iter().flat_map(|s| [0.0, s]).collect(),
            _ => scores,
        })
    }
}

//! What all classifiers can do.

use crate::algebra::{argmax, softmax};
use crate::{Labels, PredictError, Table};

/// Tells the class of rows.
pub trait Classifier: Send + Sync {
    /// The names of the classes, in the order of all scores and probabilities.
    fn classes(&self) -> &[String];

    /// Columns that rows must have.
    fn columns(&self) -> usize;

    /// A score for each class, `[rows, classes]`; their softmax are probabilities.
    fn logits(&self, x: &Table) -> Result<Vec<f64>, PredictError>;

    /// The class of a row with these scores.
    fn decide(&self, logits: &[f64]) -> usize {
        argmax(logits)
    }

    /// Probabilities of the classes, `[rows, classes]`.
    fn predict_proba(&self, x: &Table) -> Result<Vec<f64>, PredictError> {
        let mut all = self.logits(x)?;
        for row in all.chunks_exact_mut(self.classes().len()) {
            softmax(row);
        }
        Ok(all)
    }

    /// The class of each row, as its place in [`Classifier::classes`].
    fn predict(&self, x: &Table) -> Result<Vec<usize>, PredictError> {
        let all = self.logits(x)?;
        let rows = all.chunks_exact(self.classes().len());
        Ok(rows.map(|row| self.decide(row)).collect())
    }

    /// Share of rows whose class is told right. A row of a class that the model does not
    /// know counts as wrong.
    fn score(&self, x: &Table, labels: &Labels) -> Result<f64, PredictError> {
        labels.check_count(x.rows())?;
        let predicted = self.predict(x)?;
        let right = predicted.iter().enumerate();
        let right = right.filter(|(i, p)| self.classes()[**p] == labels.name(*i));
        Ok(right.count() as f64 / x.rows() as f64)
    }
}

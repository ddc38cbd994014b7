//! A dictionary that is learned.

use crate::error::check_rows;
use crate::{Coder, Codes, DictionaryError, SparseCoder};

/// Atoms, and how rows are coded with them.
#[derive(Debug, Clone, PartialEq)]
pub struct Dictionary {
    /// The atoms, `[n_components, width]`.
    pub components: Vec<f32>,
    /// Numbers of an atom.
    pub width: usize,
    /// What is taken from rows before they are coded, and added back; empty for nothing.
    pub mean: Vec<f32>,
    /// How rows are coded.
    pub coder: Coder,
}

impl Dictionary {
    /// Number of atoms.
    pub fn n_components(&self) -> usize {
        self.components.len().checked_div(self.width).unwrap_or(0)
    }

    /// The codes of rows `[n, width]`.
    ///
    /// # Errors
    /// When rows are not finite or of another width, or the coder does not fit the atoms.
    pub fn transform(&self, rows: &[f32]) -> Result<Codes, DictionaryError> {
        check_rows(rows, self.width)?;
        let coder = SparseCoder::new(&self.components, self.width, self.coder)?;
        if self.mean.is_empty() {
            return coder.encode(rows);
        }
        let mut centred = rows.to_vec();
        for row in centred.chunks_exact_mut(self.width) {
            row.iter_mut().zip(&self.mean).for_each(|(x, m)| *x -= m);
        }
        coder.encode(&centred)
    }

    /// The rows that codes stand for, `[n, width]`.
    ///
    /// # Errors
    /// When the codes are over another number of atoms.
    pub fn inverse_transform(&self, codes: &Codes) -> Result<Vec<f32>, DictionaryError> {
        if codes.n_components() != self.n_components() {
            return Err(DictionaryError::settings(format!(
                "codes are over {} atoms, but the dictionary has {}",
                codes.n_components(),
                self.n_components()
            )));
        }
        let mut rows = codes.decode(&self.components, self.width);
        if !self.mean.is_empty() {
            for row in rows.chunks_exact_mut(self.width) {
                row.iter_mut().zip(&self.mean).for_each(|(x, m)| *x += m);
            }
        }
        Ok(rows)
    }

    /// What part of the energy of rows (about the mean) their codes lose: 0 nothing,
    /// 1 all.
    ///
    /// # Errors
    /// As [`transform`](Self::transform).
    pub fn relative_error(&self, rows: &[f32]) -> Result<f64, DictionaryError> {
        let again = self.inverse_transform(&self.transform(rows)?)?;
        let lost: f64 = rows
            .iter()
            .zip(&again)
            .map(|(x, y)| f64::from(x - y).powi(2))
            .sum();
        let mean = |j: usize| self.mean.get(j).copied().unwrap_or(0.0);
        let energy: f64 = rows
            .iter()
            .enumerate()
            .map(|(i, x)| f64::from(x - mean(i % self.width)).powi(2))
            .sum();
        Ok(if energy > 0.0 { lost / energy } else { 0.0 })
    }
}

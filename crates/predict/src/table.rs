//! Rows of numbers, and the classes they belong to.

use std::collections::HashMap;

use faer::MatRef;

use crate::PredictError;

/// Rows of finite numbers, row-major `[rows, columns]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    columns: usize,
    numbers: Vec<f64>,
}

impl Table {
    /// Wraps numbers; refuses no rows, no columns, ragged rows, and NaN or infinity with
    /// their place.
    pub fn new(columns: usize, numbers: Vec<f64>) -> Result<Self, PredictError> {
        if columns == 0 {
            return Err(PredictError::Empty { what: "columns" });
        }
        if numbers.is_empty() {
            return Err(PredictError::Empty { what: "rows" });
        }
        if !numbers.len().is_multiple_of(columns) {
            return Err(PredictError::Ragged {
                len: numbers.len(),
                columns,
            });
        }
        if let Some(at) = numbers.iter().position(|x| !x.is_finite()) {
            return Err(PredictError::NotFinite {
                row: at / columns,
                column: at % columns,
                value: numbers[at],
            });
        }
        Ok(Self { columns, numbers })
    }

    /// [`Table::new`] from numbers in single precision.
    pub fn from_f32(columns: usize, numbers: &[f32]) -> Result<Self, PredictError> {
        Self::new(columns, numbers.iter().map(|&x| f64::from(x)).collect())
    }

    /// Wraps numbers that are known to be finite whole rows.
    pub(crate) fn known(columns: usize, numbers: Vec<f64>) -> Self {
        debug_assert!(columns > 0 && numbers.len().is_multiple_of(columns));
        Self { columns, numbers }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.numbers.len() / self.columns
    }

    /// Length of a row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// All numbers, row-major.
    pub fn numbers(&self) -> &[f64] {
        &self.numbers
    }

    /// One row.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn row(&self, i: usize) -> &[f64] {
        &self.numbers[i * self.columns..][..self.columns]
    }

    /// These rows, in this order.
    ///
    /// # Panics
    /// When one is not there.
    pub fn select(&self, rows: &[usize]) -> Self {
        let all = rows.iter().flat_map(|&i| self.row(i));
        Self::known(self.columns, all.copied().collect())
    }

    /// The columns from `first` up to `end`.
    pub(crate) fn part(&self, first: usize, end: usize) -> Vec<f64> {
        let rows = self.numbers.chunks_exact(self.columns);
        rows.flat_map(|row| &row[first..end]).copied().collect()
    }

    pub(crate) fn matrix(&self) -> MatRef<'_, f64> {
        MatRef::from_row_major_slice(&self.numbers, self.rows(), self.columns)
    }

    /// The numbers in single precision.
    pub(crate) fn to_f32(&self) -> Vec<f32> {
        self.numbers.iter().map(|&x| x as f32).collect()
    }

    pub(crate) fn expect_columns(&self, expected: usize) -> Result<(), PredictError> {
        match self.columns == expected {
            true => Ok(()),
            false => Err(PredictError::Width {
                expected,
                found: self.columns,
            }),
        }
    }
}

/// The class of each row, as a number into a sorted list of names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    classes: Vec<String>,
    codes: Vec<usize>,
}

impl Labels {
    /// Names the classes that appear, sorted: as numbers where all are numbers, else by
    /// letters.
    pub fn new<S: AsRef<str>>(labels: &[S]) -> Self {
        let mut classes: Vec<String> = labels.iter().map(|s| s.as_ref().to_owned()).collect();
        classes.sort();
        classes.dedup();
        let numbers: Result<Vec<f64>, _> = classes.iter().map(|c| c.parse::<f64>()).collect();
        if let Ok(numbers) = numbers {
            let mut order: Vec<usize> = (0..classes.len()).collect();
            order.sort_by(|&a, &b| numbers[a].total_cmp(&numbers[b]));
            classes = order.into_iter().map(|i| classes[i].clone()).collect();
        }
        let places = places(&classes);
        let codes = labels.iter().map(|s| places[s.as_ref()]).collect();
        drop(places);
        Self { classes, codes }
    }

    /// The codes of labels in a list of classes that is there already.
    pub fn among<S: AsRef<str>>(classes: &[String], labels: &[S]) -> Result<Self, PredictError> {
        let places = places(classes);
        let code = |label: &S| {
            let name = label.as_ref();
            places
                .get(name)
                .copied()
                .ok_or_else(|| PredictError::UnknownClass {
                    class: name.to_owned(),
                    known: classes.join(", "),
                })
        };
        Ok(Self {
            classes: classes.to_vec(),
            codes: labels.iter().map(code).collect::<Result<_, _>>()?,
        })
    }

    /// The names of the classes.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// For each row, the place of its class in [`Labels::classes`].
    pub fn codes(&self) -> &[usize] {
        &self.codes
    }

    /// The name of row `i`'s class.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn name(&self, i: usize) -> &str {
        &self.classes[self.codes[i]]
    }

    /// How many rows each class has.
    pub fn counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.classes.len()];
        self.codes.iter().for_each(|&c| counts[c] += 1);
        counts
    }

    /// These rows, with the same list of classes.
    ///
    /// # Panics
    /// When one is not there.
    pub fn select(&self, rows: &[usize]) -> Self {
        Self {
            classes: self.classes.clone(),
            codes: rows.iter().map(|&i| self.codes[i]).collect(),
        }
    }

    /// Refuses labels that do not belong to `rows` rows, and fewer than two classes.
    ///
    /// # Errors
    /// When there are other labels than rows, none, or one class alone.
    pub fn check(&self, rows: usize) -> Result<(), PredictError> {
        self.check_count(rows)?;
        let mut seen = self.codes.clone();
        seen.sort_unstable();
        seen.dedup();
        match seen[..] {
            [] => Err(PredictError::Empty { what: "labels" }),
            [one] => Err(PredictError::OneClass {
                class: self.classes[one].clone(),
            }),
            _ => Ok(()),
        }
    }

    pub(crate) fn check_count(&self, rows: usize) -> Result<(), PredictError> {
        match self.codes.len() == rows {
            true => Ok(()),
            false => Err(PredictError::LabelCount {
                labels: self.codes.len(),
                rows,
            }),
        }
    }
}

fn places(classes: &[String]) -> HashMap<&str, usize> {
    let names = classes.iter().map(String::as_str);
    names.zip(0..).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_are_none_are_refused_with_their_place() {
        let e = Table::new(2, vec![1.0, 2.0, 3.0, f64::NAN]).unwrap_err();
        assert!(e.to_string().starts_with("row 1, column 1 is NaN"), "{e}");
        assert!(Table::new(2, vec![1.0, 2.0, 3.0]).is_err());
        assert!(Table::new(2, Vec::new()).is_err());
        assert!(Table::new(0, vec![1.0]).is_err());
    }

    #[test]
    fn classes_that_are_numbers_are_in_their_order() {
        let labels = Labels::new(&["10", "9", "10", "-1"]);
        assert_eq!(labels.classes(), ["-1", "9", "10"]);
        assert_eq!(labels.codes(), [2, 1, 2, 0]);
        assert_eq!(labels.counts(), [1, 1, 2]);
        let words = Labels::new(&["b", "a", "10", "9"]);
        assert_eq!(words.classes(), ["10", "9", "a", "b"]);
        let e = Labels::among(words.classes(), &["a", "c"]).unwrap_err();
        assert!(e.to_string().contains("'c'"), "{e}");
    }

    #[test]
    fn one_class_is_refused_by_its_name() {
        let e = Labels::new(&["cat", "cat"]).check(2).unwrap_err();
        assert!(e.to_string().contains("'cat'"), "{e}");
        assert!(Labels::new(&["a", "b"]).check(3).is_err());
    }
}

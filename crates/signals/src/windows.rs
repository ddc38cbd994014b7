//! Windows of a series: what is looked at, and what comes after it.

use serde::{Deserialize, Serialize};

use crate::{Series, SignalError};

/// Means and deviations of columns, by which they become alike.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scaler {
    /// Mean of each column.
    pub mean: Vec<f64>,
    /// Deviation of each column; 1 of one that does not change.
    pub deviation: Vec<f64>,
}

impl Scaler {
    /// Of some rows.
    pub fn of(series: &Series) -> Self {
        let each = series.columns.iter().map(|column| {
            let n = column.len().max(1) as f64;
            let mean = column.iter().sum::<f64>() / n;
            let variance = column.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
            let deviation = variance.sqrt();
            let still = deviation <= f64::EPSILON * mean.abs();
            (mean, if still { 1.0 } else { deviation })
        });
        let (mean, deviation) = each.unzip();
        Self { mean, deviation }
    }

    /// The columns in units of their deviations.
    ///
    /// # Panics
    /// When there is another number of columns.
    pub fn scaled(&self, series: &Series) -> Vec<Vec<f32>> {
        assert_eq!(series.columns.len(), self.mean.len(), "columns");
        let columns = series.columns.iter().enumerate();
        let scaled = columns.map(|(i, column)| {
            let number = |x: &f64| ((x - self.mean[i]) / self.deviation[i]) as f32;
            column.iter().map(number).collect()
        });
        scaled.collect()
    }

    /// A number of a column in the column's own units.
    pub fn own(&self, column: usize, x: f32) -> f64 {
        f64::from(x) * self.deviation[column] + self.mean[column]
    }
}

/// All places in some rows at which so many rows are looked at and so many come after them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Windows {
    /// Rows that are looked at.
    pub context: usize,
    /// Rows that come after them.
    pub horizon: usize,
    /// First row of the first window.
    first: usize,
    count: usize,
}

impl Windows {
    /// Those whose later rows all lie in `rows`, and that begin at row 0 or later.
    ///
    /// # Errors
    /// When there is none.
    pub fn new(
        context: usize,
        horizon: usize,
        rows: std::ops::Range<usize>,
    ) -> Result<Self, SignalError> {
        if context == 0 || horizon == 0 {
            return Err(SignalError::Unfit(
                "context and horizon must be at least 1".into(),
            ));
        }
        let first = rows.start.saturating_sub(context);
        let needed = first.saturating_add(context).saturating_add(horizon);
        if rows.end < needed {
            return Err(SignalError::Unfit(format!(
                "{} rows are too few: {context} are looked at and {horizon} come after them; \
                 more rows, a shorter context or a shorter horizon help",
                rows.end - first
            )));
        }
        Ok(Self {
            context,
            horizon,
            first,
            count: rows.end - needed + 1,
        })
    }

    /// How many there are, at least 1.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Rows that window `number` looks at.
    pub fn context(&self, number: usize) -> std::ops::Range<usize> {
        let start = self.first + number;
        start..start + self.context
    }

    /// Rows that come after those.
    pub fn horizon(&self, number: usize) -> std::ops::Range<usize> {
        let start = self.first + number + self.context;
        start..start + self.horizon
    }

    /// At most `most` of them, evenly over all.
    pub fn some(&self, most: usize) -> Vec<usize> {
        let count = self.count.min(most.max(1));
        (0..count).map(|i| i * self.count / count).collect()
    }
}

/// Mean errors of forecasts.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Errors {
    /// Mean squared error.
    pub mse: f64,
    /// Mean absolute error.
    pub mae: f64,
    /// Numbers that were forecast.
    pub count: u64,
}

impl Errors {
    /// Takes in forecasts and what came.
    pub fn add(&mut self, forecast: &[f32], came: &[f32]) {
        let before = self.count as f64;
        let (mut squares, mut sizes) = (self.mse * before, self.mae * before);
        for (a, b) in forecast.iter().zip(came) {
            let error = f64::from(a - b);
            squares += error * error;
            sizes += error.abs();
        }
        self.count += came.len() as u64;
        let count = self.count.max(1) as f64;
        (self.mse, self.mae) = (squares / count, sizes / count);
    }

    /// Those of windows of scaled columns: `forecast` is told the window's number and the column.
    pub fn of(
        columns: &[Vec<f32>],
        windows: &Windows,
        numbers: &[usize],
        mut forecast: impl FnMut(usize, usize) -> Vec<f32>,
    ) -> Self {
        let mut errors = Self::default();
        for &number in numbers {
            for (place, column) in columns.iter().enumerate() {
                errors.add(&forecast(number, place), &column[windows.horizon(number)]);
            }
        }
        errors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_end_with_the_rows_and_may_begin_before_them() {
        let windows = Windows::new(3, 2, 0..8).unwrap();
        assert_eq!(windows.len(), 4);
        assert_eq!((windows.context(0), windows.horizon(3)), (0..3, 6..8));
        let later = Windows::new(3, 2, 6..10).unwrap();
        assert_eq!((later.context(0), later.horizon(0)), (3..6, 6..8));
        assert_eq!(later.len(), 3);
        assert_eq!(later.some(2), [0, 1]);
        assert_eq!(windows.some(100), [0, 1, 2, 3]);
        let error = Windows::new(6, 3, 0..8).unwrap_err().to_string();
        assert!(error.contains("8 rows are too few"), "{error}");
        assert_eq!(Windows::new(6, 2, 0..8).unwrap().len(), 1);
        assert!(Windows::new(6, 0, 0..8).is_err());
        assert!(Windows::new(usize::MAX, 2, 0..8).is_err());
    }

    #[test]
    fn columns_become_alike_and_one_that_is_still_stays_finite() {
        let series = Series {
            names: vec!["a".into(), "b".into()],
            columns: vec![vec![1.0, 3.0], vec![1e9, 1e9]],
            times: Vec::new(),
        };
        let scaler = Scaler::of(&series);
        assert_eq!(scaler.scaled(&series), [vec![-1.0, 1.0], vec![0.0, 0.0]]);
        assert_eq!(scaler.own(0, 2.0), 4.0);
    }

    #[test]
    fn errors_are_means_over_all_numbers() {
        let mut errors = Errors::default();
        errors.add(&[1.0], &[3.0]);
        errors.add(&[0.0, 0.0], &[1.0, 0.0]);
        assert!((errors.mse - 5.0 / 3.0).abs() < 1e-12);
        assert_eq!((errors.mae, errors.count), (1.0, 3));
    }
}

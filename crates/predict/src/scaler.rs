//! Columns on a common scale.

use crate::logistic::moments;
use crate::tensors::Tensors;
use crate::{PredictError, Table};

/// How columns are scaled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scale {
    /// As they are.
    #[default]
    None,
    /// From 0 to 1 in the rows that are learned from; others may lie outside.
    MinMax,
    /// Mean 0 and variance 1.
    Standard,
}

/// What was learned of the columns: `(x - offset) · factor`.
#[derive(Debug, Clone, PartialEq)]
pub struct Scaler {
    pub(crate) offset: Vec<f64>,
    pub(crate) factor: Vec<f64>,
}

impl Scaler {
    /// Learns the columns of `x`. A constant column becomes 0.
    pub fn fit(scale: Scale, x: &Table) -> Self {
        let n = x.columns();
        let inverse = |width: f64| match width > 0.0 {
            true => 1.0 / width,
            false => 1.0,
        };
        match scale {
            Scale::None => Self {
                offset: vec![0.0; n],
                factor: vec![1.0; n],
            },
            Scale::MinMax => {
                let (mut low, mut high) = (x.row(0).to_vec(), x.row(0).to_vec());
                for i in 0..x.rows() {
                    for (f, &v) in x.row(i).iter().enumerate() {
                        low[f] = low[f].min(v);
                        high[f] = high[f].max(v);
                    }
                }
                let factor = high.iter().zip(&low).map(|(h, l)| inverse(h - l));
                Self {
                    factor: factor.collect(),
                    offset: low,
                }
            }
            Scale::Standard => {
                let (offset, variance) = moments(x.numbers(), n);
                // What is left of a constant column is rounding.
                let deviation = variance.iter().zip(&offset).map(|(v, m)| {
                    let sd = v.sqrt();
                    if sd > 1e-12 * m.abs() { sd } else { 0.0 }
                });
                Self {
                    factor: deviation.map(inverse).collect(),
                    offset,
                }
            }
        }
    }

    pub(crate) fn save(&self, tensors: &mut Tensors) {
        let columns = [self.offset.len()];
        tensors.put("scaler.offset", &columns, self.offset.clone());
        tensors.put("scaler.factor", &columns, self.factor.clone());
    }

    pub(crate) fn load(columns: usize, tensors: &mut Tensors) -> Result<Self, String> {
        Ok(Self {
            offset: tensors.shaped("scaler.offset", &[columns])?,
            factor: tensors.shaped("scaler.factor", &[columns])?,
        })
    }

    /// Scales rows.
    pub fn apply(&self, x: &Table) -> Result<Table, PredictError> {
        x.expect_columns(self.offset.len())?;
        let mut numbers = x.numbers().to_vec();
        for row in numbers.chunks_exact_mut(self.offset.len()) {
            let known = self.offset.iter().zip(&self.factor);
            row.iter_mut()
                .zip(known)
                .for_each(|(x, (o, f))| *x = (*x - o) * f);
        }
        Table::new(self.offset.len(), numbers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_get_the_scale_and_constant_ones_are_no_trouble() {
        let x = Table::new(2, vec![1.0, 0.1, 3.0, 0.1, 5.0, 0.1]).unwrap();
        let minmax = Scaler::fit(Scale::MinMax, &x).apply(&x).unwrap();
        assert_eq!(minmax.numbers(), [0.0, 0.0, 0.5, 0.0, 1.0, 0.0]);
        let standard = Scaler::fit(Scale::Standard, &x).apply(&x).unwrap();
        let want = 1.5f64.sqrt();
        assert!((standard.numbers()[4] - want).abs() < 1e-12);
        assert!(standard.numbers()[1].abs() < 1e-12);
        assert_eq!(Scaler::fit(Scale::None, &x).apply(&x).unwrap(), x);
    }
}

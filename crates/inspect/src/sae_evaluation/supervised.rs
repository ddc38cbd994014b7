//! Dictionaries that are computed from labels.

use faer::Mat;
use keyfold_kernels as kernels;
use serde::Serialize;

use crate::error::check_rows;
use crate::{InspectError, algebra};

/// What is known of prompts: an attribute, and its value in each.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Attribute {
    /// Its name.
    pub name: String,
    /// The values in order.
    pub values: Vec<String>,
    /// The value of each prompt, as its place in `values`.
    pub of: Vec<usize>,
}

impl Attribute {
    /// An attribute whose values are numbers below `count`.
    pub fn numbered(name: &str, count: usize, of: Vec<usize>) -> Self {
        Self {
            name: name.to_owned(),
            values: (0..count).map(|v| v.to_string()).collect(),
            of,
        }
    }
}

/// A vector for each value of each attribute, and one for all prompts.
#[derive(Debug, Clone, PartialEq)]
pub struct SupervisedDictionary {
    /// Numbers of a row.
    pub d: usize,
    /// `[d]`, added to every prompt.
    pub b: Vec<f32>,
    /// By attribute: `[values, d]`; values that no prompt had are 0.
    pub codes: Vec<Vec<f32>>,
}

fn check(rows: &[f32], d: usize, attributes: &[Attribute]) -> Result<usize, InspectError> {
    let n = check_rows("activations", rows, d)?;
    for attribute in attributes {
        if attribute.of.len() != n {
            return Err(InspectError::Disagree {
                what: format!(
                    "prompts with the attribute '{}' and activations",
                    attribute.name
                ),
                left: attribute.of.len(),
                right: n,
            });
        }
        if let Some(value) = attribute.of.iter().find(|v| **v >= attribute.values.len()) {
            return Err(InspectError::settings(format!(
                "the attribute '{}' has no value {value}",
                attribute.name
            )));
        }
    }
    Ok(n)
}

impl SupervisedDictionary {
    /// Means: `b` of all rows, and for each value the mean of what its rows are beyond `b`. One
    /// pass.
    ///
    /// # Errors
    /// When rows and attributes do not fit together.
    pub fn mean_codes(
        rows: &[f32],
        d: usize,
        attributes: &[Attribute],
    ) -> Result<Self, InspectError> {
        let n = check(rows, d, attributes)?;
        let add = |sum: &mut [f64], row: &[f32]| {
            sum.iter_mut()
                .zip(row)
                .for_each(|(s, x)| *s += f64::from(*x));
        };
        let mut all = vec![0.0; d];
        rows.chunks_exact(d).for_each(|row| add(&mut all, row));
        let b: Vec<f64> = all.iter().map(|x| x / n as f64).collect();
        let codes = attributes.iter().map(|attribute| {
            let mut sums = vec![0.0; attribute.values.len() * d];
            let mut counts = vec![0usize; attribute.values.len()];
            for (row, value) in rows.chunks_exact(d).zip(&attribute.of) {
                add(&mut sums[value * d..][..d], row);
                counts[*value] += 1;
            }
            let codes = sums.iter().enumerate().map(|(i, sum)| match counts[i / d] {
                0 => 0.0,
                count => (sum / count as f64 - b[i % d]) as f32,
            });
            codes.collect()
        });
        Ok(Self {
            d,
            codes: codes.collect(),
            b: b.iter().map(|x| *x as f32).collect(),
        })
    }

    /// The least squared error, by the solution of least length.
    ///
    /// # Errors
    /// When rows and attributes do not fit together.
    pub fn mse_codes(
        rows: &[f32],
        d: usize,
        attributes: &[Attribute],
    ) -> Result<Self, InspectError> {
        let n = check(rows, d, attributes)?;
        let starts: Vec<usize> = attributes
            .iter()
            .scan(1, |next, a| {
                let start = *next;
                *next += a.values.len();
                Some(start)
            })
            .collect();
        let width = 1 + attributes.iter().map(|a| a.values.len()).sum::<usize>();
        // Normal equations of the design of ones and zeros, which is never written down.
        let mut gram = Mat::<f64>::zeros(width, width);
        let mut right = Mat::<f64>::zeros(width, d);
        for (i, row) in rows.chunks_exact(d).enumerate().take(n) {
            let of = attributes.iter().zip(&starts);
            let ones: Vec<usize> = std::iter::once(0)
                .chain(of.map(|(a, start)| start + a.of[i]))
                .collect();
            for &p in &ones {
                ones.iter().for_each(|&q| gram[(p, q)] += 1.0);
                for (j, x) in row.iter().enumerate() {
                    right[(p, j)] += f64::from(*x);
                }
            }
        }
        let (values, vectors) = algebra::eigen(gram.as_ref())?;
        let top = values.iter().copied().fold(0.0, f64::max);
        let mut middle = vectors.transpose() * &right;
        for (i, value) in values.iter().enumerate() {
            let factor = if *value > 1e-10 * top {
                1.0 / value
            } else {
                0.0
            };
            (0..d).for_each(|j| middle[(i, j)] *= factor);
        }
        let codes = &vectors * middle;
        let part = |from: usize, count: usize| -> Vec<f32> {
            let numbers = (from..from + count).flat_map(|i| (0..d).map(move |j| (i, j)));
            numbers.map(|at| codes[at] as f32).collect()
        };
        let of = attributes.iter().zip(&starts);
        Ok(Self {
            d,
            b: part(0, 1),
            codes: of.map(|(a, start)| part(*start, a.values.len())).collect(),
        })
    }

    /// The vector of a value.
    ///
    /// # Panics
    /// When there is no such attribute or value.
    pub fn code(&self, attribute: usize, value: usize) -> &[f32] {
        &self.codes[attribute][value * self.d..][..self.d]
    }

    /// `b + Σ u_f(v_f)` of prompts with these values.
    ///
    /// # Panics
    /// When attributes are not those that it was made from.
    pub fn reconstruct(&self, attributes: &[Attribute]) -> Vec<f32> {
        let n = attributes.first().map_or(0, |a| a.of.len());
        let mut out = self.b.repeat(n);
        for (at, attribute) in attributes.iter().enumerate() {
            for (row, value) in out.chunks_exact_mut(self.d).zip(&attribute.of) {
                kernels::add_assign(row, self.code(at, *value));
            }
        }
        out
    }

    /// `a - u_f(old) + u_f(new)`, in place.
    ///
    /// # Panics
    /// When there is no such attribute or value.
    pub fn edit(&self, row: &mut [f32], attribute: usize, old: usize, new: usize) {
        kernels::axpy(row, -1.0, self.code(attribute, old));
        kernels::add_assign(row, self.code(attribute, new));
    }

    /// The weight of each attribute's vector in a reconstruction; they sum to 1.
    pub fn weights(&self, values: &[usize]) -> Vec<f64> {
        let mut rest = vec![0.0; self.d];
        let codes = || values.iter().enumerate().map(|(at, v)| self.code(at, *v));
        codes().for_each(|u| kernels::add_assign(&mut rest, u));
        let size = f64::from(kernels::dot(&rest, &rest)).max(1e-300);
        codes()
            .map(|u| f64::from(kernels::dot(u, &rest)) / size)
            .collect()
    }
}

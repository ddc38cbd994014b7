//! A linear forecaster, the same for every column: what fitting without training gives.
//!
//! A. Zeng et al., 2023, Are Transformers Effective for Time Series Forecasting? showed how far a
//! linear map goes. Here a window is scaled by its own mean and deviation, and the map is fitted by
//! ridge regression in closed form:
//!
//! ```text
//! z = (x - mean(x)) / std(x)        W = (Σ z zᵀ + λ I)⁻¹ Σ z y_zᵀ        ŷ = Wᵀ z · std(x) + mean(x)
//! ```
//!
//! `λ` is the best of a few on later rows. Fitting takes `rows · context²` steps.

use keyfold_kernels::matmul_nt;

use crate::{Errors, SignalError, Windows};

/// Penalties that are tried, for each window that is learned from.
const PENALTIES: [f64; 5] = [1e-4, 1e-3, 1e-2, 1e-1, 1.0];

/// What is added to a deviation.
const EPS: f32 = 1e-5;

/// Windows that are worked on at a time.
const BLOCK: usize = 512;

/// A fitted map of `context` numbers to `horizon`.
#[derive(Debug, Clone, PartialEq)]
pub struct Linear {
    /// `[horizon, context]`.
    weights: Vec<f32>,
    context: usize,
    /// The penalty that was chosen, for each window.
    pub penalty: f64,
}

impl Linear {
    /// Fits windows of scaled columns, and chooses the penalty by other windows of theirs.
    ///
    /// # Errors
    /// When the equations cannot be solved: the columns hold what is no number.
    pub fn fit(
        columns: &[Vec<f32>],
        learned: &Windows,
        chosen_by: &Windows,
    ) -> Result<Self, SignalError> {
        let (t, h) = (learned.context, learned.horizon);
        let (gram, cross, count) = sums(columns, learned);
        let numbers = chosen_by.some(BLOCK);
        let mut best: Option<(f64, Self)> = None;
        for penalty in PENALTIES {
            let mut a = gram.clone();
            for i in 0..t {
                a[i * t + i] += penalty * count as f64 + 1e-9;
            }
            let Some(solved) = solve(a, cross.clone(), t, h) else {
                continue;
            };
            let weights = (0..h * t).map(|i| solved[i % t * h + i / t] as f32);
            let model = Self {
                weights: weights.collect(),
                context: t,
                penalty,
            };
            let errors = Errors::of(columns, chosen_by, &numbers, |number, place| {
                model.forecast(&columns[place][chosen_by.context(number)])
            });
            if errors.mse.is_finite() && best.as_ref().is_none_or(|(mse, _)| errors.mse < *mse) {
                best = Some((errors.mse, model));
            }
        }
        best.map(|(_, model)| model).ok_or_else(|| {
            SignalError::Unfit(
                "no linear forecaster fits: the columns are too large or still".into(),
            )
        })
    }

    /// What comes after a window.
    ///
    /// # Panics
    /// When the window has another length than those that were fitted.
    pub fn forecast(&self, window: &[f32]) -> Vec<f32> {
        assert_eq!(window.len(), self.context, "length of the window");
        let (z, mean, deviation) = scaled(window);
        let rows = self.weights.chunks_exact(self.context);
        rows.map(|w| keyfold_kernels::dot(w, &z) * deviation + mean)
            .collect()
    }
}

/// A window by its own mean and deviation.
fn scaled(window: &[f32]) -> (Vec<f32>, f32, f32) {
    let n = window.len() as f32;
    let mean = window.iter().sum::<f32>() / n;
    let variance = window.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / n;
    let deviation = variance.sqrt() + EPS;
    let z = window.iter().map(|x| (x - mean) / deviation).collect();
    (z, mean, deviation)
}

/// `Σ z zᵀ` `[context, context]`, `Σ z y_zᵀ` `[context, horizon]`, and the number of windows.
fn sums(columns: &[Vec<f32>], windows: &Windows) -> (Vec<f64>, Vec<f64>, usize) {
    let (t, h) = (windows.context, windows.horizon);
    let mut all: Vec<(usize, usize)> = Vec::new();
    for place in 0..columns.len() {
        all.extend((0..windows.len()).map(|number| (place, number)));
    }
    let (mut gram, mut cross) = (vec![0.0; t * t], vec![0.0; t * h]);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    for block in all.chunks(BLOCK) {
        let n = block.len();
        // Windows are columns here, so that both products are of rows with rows.
        let (mut z, mut y) = (vec![0.0; t * n], vec![0.0; h * n]);
        for (i, &(place, number)) in block.iter().enumerate() {
            let column = &columns[place];
            let (window, mean, deviation) = scaled(&column[windows.context(number)]);
            for (k, x) in window.into_iter().enumerate() {
                z[k * n + i] = x;
            }
            for (k, x) in column[windows.horizon(number)].iter().enumerate() {
                y[k * n + i] = (x - mean) / deviation;
            }
        }
        for (sum, with, width) in [(&mut gram, &z, t), (&mut cross, &y, h)] {
            let mut part = vec![0.0f32; t * width];
            matmul_nt(&mut part, &z, with, t, width, n, threads);
            sum.iter_mut()
                .zip(part)
                .for_each(|(s, p)| *s += f64::from(p));
        }
    }
    (gram, cross, all.len())
}

/// Solves `a x = b`, `a` `[n, n]` positive definite, `b` `[n, m]`, by Cholesky's factors.
fn solve(mut a: Vec<f64>, mut b: Vec<f64>, n: usize, m: usize) -> Option<Vec<f64>> {
    for i in 0..n {
        for j in 0..=i {
            let (above, rest) = a.split_at(i * n);
            let row_j = if j < i {
                &above[j * n..j * n + j]
            } else {
                &rest[..j]
            };
            let dot: f64 = rest[..j].iter().zip(row_j).map(|(x, y)| x * y).sum();
            let left = rest[j] - dot;
            a[i * n + j] = if i == j {
                (left > 0.0 && left.is_finite()).then(|| left.sqrt())?
            } else {
                left / a[j * n + j]
            };
        }
    }
    for i in 0..n {
        for k in 0..i {
            eliminate(&mut b, i, k, a[i * n + k], m);
        }
        b[i * m..(i + 1) * m]
            .iter_mut()
            .for_each(|x| *x /= a[i * n + i]);
    }
    for i in (0..n).rev() {
        for k in i + 1..n {
            eliminate(&mut b, i, k, a[k * n + i], m);
        }
        b[i * m..(i + 1) * m]
            .iter_mut()
            .for_each(|x| *x /= a[i * n + i]);
    }
    Some(b)
}

/// Takes `factor` times row `from` from row `to`.
fn eliminate(b: &mut [f64], to: usize, from: usize, factor: f64, m: usize) {
    for column in 0..m {
        b[to * m + column] -= factor * b[from * m + column];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equations_are_solved() {
        let a = vec![4.0, 2.0, 0.0, 2.0, 5.0, 1.0, 0.0, 1.0, 3.0];
        let x = [1.0, -2.0, 3.0, 0.5, -1.0, 2.0];
        let b: Vec<f64> = (0..6)
            .map(|i| (0..3).map(|k| a[i / 2 * 3 + k] * x[k * 2 + i % 2]).sum())
            .collect();
        let found = solve(a, b, 3, 2).unwrap();
        assert!(found.iter().zip(x).all(|(a, b)| (a - b).abs() < 1e-12));
        assert!(solve(vec![1.0, 2.0, 2.0, 1.0], vec![1.0, 1.0], 2, 1).is_none());
    }

    #[test]
    fn a_wave_goes_on() {
        let wave = |t: usize| (t as f32 * 0.7).sin() * 3.0 + 10.0;
        let columns = vec![(0..300).map(wave).collect::<Vec<f32>>()];
        let learned = Windows::new(32, 8, 0..200).unwrap();
        let model =
            Linear::fit(&columns, &learned, &Windows::new(32, 8, 200..300).unwrap()).unwrap();
        let forecast = model.forecast(&columns[0][260..292]);
        for (i, x) in forecast.iter().enumerate() {
            assert!((x - wave(292 + i)).abs() < 0.05, "{i}: {x}");
        }
    }

    #[test]
    fn a_still_column_stays() {
        let columns = vec![vec![2.0f32; 60]];
        let windows = Windows::new(8, 4, 0..60).unwrap();
        let model = Linear::fit(&columns, &windows, &windows).unwrap();
        assert!(
            model
                .forecast(&[2.0; 8])
                .iter()
                .all(|x| (x - 2.0).abs() < 1e-4)
        );
    }
}

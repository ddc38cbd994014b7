//! Orthogonal matrices from free numbers.

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::operator::{Array, Operator, apply};

/// The Cayley map of square matrices one below the other, `[any · d, d]`:
/// `U = (I - A/2)⁻¹ (I + A/2)` with `A = X - Xᵀ` of each, an orthogonal matrix.
///
/// Equations are solved in double precision; the gradient is that of the solution, not of the
/// steps to it: with `B = A/2` and the gradient `G` by `U`, that by `B` is
/// `(I + B)⁻¹ G (I + U)ᵀ`. Cost: `d³` for each matrix, in both passes.
///
/// # Panics
/// When the rows are no whole number of square matrices.
pub fn cayley(x: Tensor<2>) -> Tensor<2> {
    let [rows, d] = x.dims();
    assert!(d > 0 && rows.is_multiple_of(d), "cayley: square matrices");
    apply(Cayley, [x.into()])
}

#[derive(Clone, Debug)]
struct Cayley;

/// `B = (X - Xᵀ) / 2`.
fn half_skew(x: &[f32], d: usize) -> Vec<f64> {
    let at = |i: usize, j: usize| f64::from(x[i * d + j]);
    (0..d * d)
        .map(|i| 0.5 * (at(i / d, i % d) - at(i % d, i / d)))
        .collect()
}

/// `I + sign · B`.
fn shifted(b: &[f64], d: usize, sign: f64) -> Vec<f64> {
    let identity = |i: usize| f64::from(u8::from(i / d == i % d));
    b.iter()
        .enumerate()
        .map(|(i, x)| identity(i) + sign * x)
        .collect()
}

/// `a⁻¹ b` by elimination with the largest pivot of a column; `a` has an inverse, as the
/// identity plus a skew matrix does.
fn solve(mut a: Vec<f64>, mut b: Vec<f64>, d: usize) -> Vec<f64> {
    for column in 0..d {
        let size = |&row: &usize| a[row * d + column].abs();
        let pivot = (column..d).max_by(|x, y| size(x).total_cmp(&size(y)));
        let pivot = pivot.unwrap_or(column);
        for j in 0..d {
            a.swap(column * d + j, pivot * d + j);
            b.swap(column * d + j, pivot * d + j);
        }
        let scale = 1.0 / a[column * d + column];
        for row in column + 1..d {
            let factor = a[row * d + column] * scale;
            if factor == 0.0 {
                continue;
            }
            for j in column..d {
                a[row * d + j] -= factor * a[column * d + j];
            }
            for j in 0..d {
                b[row * d + j] -= factor * b[column * d + j];
            }
        }
    }
    for row in (0..d).rev() {
        let scale = 1.0 / a[row * d + row];
        for j in 0..d {
            let known: f64 = (row + 1..d).map(|k| a[row * d + k] * b[k * d + j]).sum();
            b[row * d + j] = (b[row * d + j] - known) * scale;
        }
    }
    b
}

impl Operator<1> for Cayley {
    /// `X` and `U`.
    type Saved = (Array, Array);

    fn forward(&self, [x]: [Array; 1]) -> (Array, Self::Saved) {
        let [rows, d] = x.sizes();
        let mut out = vec![0.0; rows * d];
        out.par_chunks_mut(d * d)
            .zip(x.numbers().par_chunks(d * d))
            .for_each(|(out, x)| {
                let b = half_skew(x, d);
                let u = solve(shifted(&b, d, -1.0), shifted(&b, d, 1.0), d);
                out.iter_mut().zip(u).for_each(|(o, u)| *o = u as f32);
            });
        let out = Array::new(out, [rows, d]);
        (out.clone(), (x, out))
    }

    fn backward(&self, (x, u): Self::Saved, g: Array, _: [bool; 1]) -> [Option<Array>; 1] {
        let [rows, d] = x.sizes();
        let mut out = vec![0.0; rows * d];
        out.par_chunks_mut(d * d)
            .zip(x.numbers().par_chunks(d * d))
            .zip(u.numbers().par_chunks(d * d))
            .zip(g.numbers().par_chunks(d * d))
            .for_each(|(((out, x), u), g)| {
                let b = half_skew(x, d);
                // G (I + U)ᵀ.
                let right = |i: usize| -> f64 {
                    let (row, column) = (i / d, i % d);
                    let products = (0..d).map(|k| f64::from(g[row * d + k] * u[column * d + k]));
                    products.sum::<f64>() + f64::from(g[i])
                };
                let right = (0..d * d).map(right).collect();
                let by_b = solve(shifted(&b, d, 1.0), right, d);
                for (i, out) in out.iter_mut().enumerate() {
                    let turned = by_b[i % d * d + i / d];
                    *out = (0.5 * (by_b[i] - turned)) as f32;
                }
            });
        [Some(Array::new(out, [rows, d]))]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::numbers;
    use crate::random;
    use burn::tensor::{Device, TensorData};

    fn tensor(numbers: Vec<f32>, shape: [usize; 2]) -> Tensor<2> {
        Tensor::from_data(TensorData::new(numbers, shape), &Device::flex().autodiff())
    }

    #[test]
    fn matrices_are_orthogonal_and_gradients_those_of_differences() {
        let (n, d) = (2, 5);
        let start = random::normal(1, n * d * d, 0.8);
        let factors = random::normal(2, n * d * d, 1.0);
        let x = tensor(start.clone(), [n * d, d]).require_grad();
        let u = cayley(x.clone());
        let found = numbers(&u);
        for u in found.chunks(d * d) {
            for i in 0..d * d {
                let dot: f32 = (0..d).map(|k| u[i / d * d + k] * u[i % d * d + k]).sum();
                let expected = f32::from(u8::from(i / d == i % d));
                assert!((dot - expected).abs() < 1e-5, "{dot}");
            }
        }
        let gradients = (u * tensor(factors.clone(), [n * d, d])).sum().backward();
        let gradient = numbers(&x.grad(&gradients).unwrap());
        let value = |x: &[f32]| -> f64 {
            let u = numbers(&cayley(tensor(x.to_vec(), [n * d, d])));
            let products = u
                .iter()
                .zip(&factors)
                .map(|(u, f)| f64::from(*u) * f64::from(*f));
            products.sum()
        };
        for i in 0..n * d * d {
            let step = |by: f32| {
                let mut moved = start.clone();
                moved[i] += by;
                value(&moved)
            };
            let difference = (step(1e-2) - step(-1e-2)) / 2e-2;
            assert!(
                (difference - f64::from(gradient[i])).abs() < 2e-3,
                "{i}: {difference} {}",
                gradient[i]
            );
        }
    }

    #[test]
    fn nothing_gives_the_identity() {
        let u = numbers(&cayley(tensor(vec![0.0; 9], [3, 3])));
        assert_eq!(u, [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]);
    }
}

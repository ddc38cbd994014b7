//! Gradients of mixers that are a matrix.
//!
//! With `G` the gradient of `y = scale · M v + v`: `dv = scale · Mᵀ G + G` and
//! `dM = scale · G vᵀ`, from which each family has the gradients of its own numbers.

use super::{MatrixMixer, QueriesKeys, TINY, angles, shape, waves};
use crate::SequenceError;
use keyfold_kernels::{Matrix, learn, product};

/// Gradients of what a mixer reads.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct MixerGradients {
    /// Of the values, `[T, width]`.
    pub values: Vec<f32>,
    /// Of the matrix, of the forward numbers or of the queries; empty where there are none.
    pub first: Vec<f32>,
    /// Of the reverse numbers or of the keys; empty where there are none.
    pub second: Vec<f32>,
    /// Of Cauchy's `b`.
    pub bias: f32,
}

impl MatrixMixer<'_> {
    /// Gradients from `g` `[T, width]`, that of what [`mix`](Self::mix) gave for `v`.
    ///
    /// # Errors
    /// As `mix`, or when `g` has not the shape of `v`.
    pub fn backward(
        &self,
        v: &[f32],
        width: usize,
        longest: usize,
        g: &[f32],
    ) -> Result<MixerGradients, SequenceError> {
        let t = v.len().checked_div(width).unwrap_or(0);
        shape("the values", v, t.max(1), width)?;
        shape("the gradient", g, t, width)?;
        let matrix = self.matrix(t)?;
        let scale = self.scale(longest);
        let (of_v, of_g) = (Matrix::new(v, width), Matrix::new(g, width));
        let mut values = g.to_vec();
        product(
            &mut values,
            width,
            Matrix::new(&matrix, t).t(),
            of_g,
            scale,
            true,
            1,
        );
        let mut dm = vec![0.0; t * t];
        product(&mut dm, t, of_g, of_v.t(), scale, false, 1);
        let (first, second, bias) = self.by_matrix(t, matrix, dm);
        Ok(MixerGradients {
            values,
            first,
            second,
            bias,
        })
    }

    /// Gradients of the family's numbers from those of the matrix.
    fn by_matrix(&self, t: usize, matrix: Vec<f32>, mut dm: Vec<f32>) -> (Vec<f32>, Vec<f32>, f32) {
        match *self {
            Self::Dense(_) => (dm, Vec::new(), 0.0),
            Self::Fourier => Default::default(),
            Self::Toeplitz { .. } => {
                let (mut forward, mut reverse) = (vec![0.0; t], vec![0.0; t]);
                for (i, g) in dm.iter().enumerate() {
                    let distance = (i / t) as isize - (i % t) as isize;
                    // As the matrix is made.
                    if distance + 1 == t as isize {
                        let last = if t == 1 {
                            &mut forward[0]
                        } else {
                            &mut reverse[t - 1]
                        };
                        *last += g;
                    } else if distance >= -1 {
                        forward[(distance + 1) as usize] += g;
                    } else {
                        reverse[(-distance - 1) as usize] += g;
                    }
                }
                (forward, reverse, 0.0)
            }
            Self::Vandermonde(of) => of.vandermonde_gradients(t, &dm),
            Self::Cauchy { of, bias } => of.cauchy_gradients(t, bias, &dm),
            Self::LowRank(of) => of.product_gradients(t, &dm),
            Self::Attention(of) => {
                let factor = 1.0 / (of.dim as f32).sqrt();
                learn::softmax_backward(&matrix, &mut dm, t, factor);
                of.product_gradients(t, &dm)
            }
        }
    }
}

impl QueriesKeys<'_> {
    fn product_gradients(&self, t: usize, dm: &[f32]) -> (Vec<f32>, Vec<f32>, f32) {
        let d = self.dim;
        let (mut queries, mut keys) = (vec![0.0; t * d], vec![0.0; t * d]);
        let dm = Matrix::new(dm, t);
        product(
            &mut queries,
            d,
            dm,
            Matrix::new(self.keys, d),
            1.0,
            false,
            1,
        );
        product(
            &mut keys,
            d,
            dm.t(),
            Matrix::new(self.queries, d),
            1.0,
            false,
            1,
        );
        (queries, keys, 0.0)
    }

    fn vandermonde_gradients(&self, t: usize, dm: &[f32]) -> (Vec<f32>, Vec<f32>, f32) {
        let d = self.dim;
        let mut by_column = vec![0.0; t * t];
        super::add_transposed(&mut by_column, dm, t);
        let (mut queries, mut keys) = (vec![0.0; t * d], vec![0.0; t * d]);
        let factor = f64::from(std::f32::consts::TAU * super::EPSILON);
        for i in 0..d {
            let by_q = waves::cosine_gradients(&angles(self.queries, d, i), &by_column);
            let by_k = waves::cosine_gradients(&angles(self.keys, d, i), dm);
            for (row, (q, k)) in by_q.into_iter().zip(by_k).enumerate() {
                queries[row * d + i] = (factor * q) as f32;
                // The keys' cosines are taken away.
                keys[row * d + i] = (-factor * k) as f32;
            }
        }
        (queries, keys, 0.0)
    }

    fn cauchy_gradients(&self, t: usize, bias: f32, dm: &[f32]) -> (Vec<f32>, Vec<f32>, f32) {
        let d = self.dim;
        let (q, k) = self.raised(bias);
        let (mut queries, mut by_number) = (vec![0.0; t * d], vec![0.0; t * d]);
        for (row, g) in dm.chunks_exact(t).enumerate() {
            let numbers = k.chunks_exact(t).zip(by_number.chunks_exact_mut(t));
            for (i, (k, dk)) in numbers.enumerate() {
                let q = q[row * d + i] + TINY;
                let mut sum = 0.0;
                for ((g, k), dk) in g.iter().zip(k).zip(dk) {
                    let one = g / ((q + k) * (q + k));
                    sum += one;
                    *dk -= one;
                }
                queries[row * d + i] = -sum;
            }
        }
        let bias = queries.iter().chain(&by_number).sum();
        for (g, x) in queries.iter_mut().zip(self.queries) {
            *g *= x.exp();
        }
        let keys = (0..t * d)
            .map(|i| by_number[i % d * t + i / d] * self.keys[i].exp())
            .collect();
        (queries, keys, bias)
    }
}

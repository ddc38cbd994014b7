//! Mixers of positions that are a matrix: `y = scale · M v + v`, `M` from a family.
//!
//! S. Hwang, A. Lahoti, T. Dao and A. Gu, 2024, Hydra: Bidirectional State Space Models Through
//! Generalized Matrix Mixers. `T` positions, vectors of `d` numbers for queries and keys:
//!
//! | family | `M_tl` | scale |
//! |---|---|---|
//! | dense | any number | `1/√T` |
//! | Toeplitz | a number for each distance `t - l` | `1/(2√T)` |
//! | Fourier | `cos(2π t l / T)` | `1/√T` |
//! | Vandermonde | `Σ_d cos(2π ε q_td l) - cos(2π ε k_ld t)`, `ε` = 1/1000 | `1/√(2 T d)` |
//! | Cauchy | `Σ_d 1 / (exp(q_td) + exp(k_ld) + 2 b)` | `1/√(T d)` |
//! | low rank | `q_t · k_l` | `1/√(T d)` |
//! | attention | softmax over `l` of `q_t · k_l / √d` | 1 |
//!
//! The quasiseparable family is [`crate::hydra`]. `T` in the scales is the longest sequence
//! that a layer is made for, not the one at hand. Cost `T²` times the width of `v`.

mod gradients;
mod waves;

pub use gradients::MixerGradients;

use crate::SequenceError;
use keyfold_kernels::{matmul_nn, matmul_nt, softmax_rows};

/// A family, and the numbers of one head.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MatrixMixer<'a> {
    /// Any matrix, `[T, T]`.
    Dense(&'a [f32]),
    /// A number for each distance.
    Toeplitz {
        /// For distances `t - l` from -1 on to `T - 2`; the last subdiagonal has the last of
        /// `reverse`. So the released code has it, by the place at which its circular
        /// convolution begins.
        forward: &'a [f32],
        /// For distances `t - l` from -1 down to `-(T - 1)`: its numbers from 1 on are those
        /// of -2, -3 and so on.
        reverse: &'a [f32],
    },
    /// The real part of the discrete Fourier transform, of `T` positions.
    Fourier,
    /// Cosines of queries and keys, `[T, d]` each.
    Vandermonde(QueriesKeys<'a>),
    /// Reciprocals of sums.
    Cauchy {
        /// `[T, d]` each.
        of: QueriesKeys<'a>,
        /// `b`.
        bias: f32,
    },
    /// Products.
    LowRank(QueriesKeys<'a>),
    /// The softmax of products.
    Attention(QueriesKeys<'a>),
}

/// Queries and keys of a head, `[T, dim]` each.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QueriesKeys<'a> {
    /// Queries.
    pub queries: &'a [f32],
    /// Keys.
    pub keys: &'a [f32],
    /// Numbers of a vector.
    pub dim: usize,
}

/// What the released code multiplies angles with.
const EPSILON: f32 = 1e-3;

/// What it adds to the sums of Cauchy's matrix.
const TINY: f32 = 1e-8;

impl MatrixMixer<'_> {
    /// The matrix `[positions, positions]` without its scale.
    ///
    /// # Errors
    /// When the numbers are not those of so many positions.
    pub fn matrix(&self, positions: usize) -> Result<Vec<f32>, SequenceError> {
        let t = positions;
        let around = std::f32::consts::TAU;
        let each = |number: &dyn Fn(usize, usize) -> f32| -> Vec<f32> {
            (0..t * t).map(|i| number(i / t, i % t)).collect()
        };
        Ok(match *self {
            Self::Dense(matrix) => {
                shape("the matrix of a dense mixer", matrix, t, t)?;
                matrix.to_vec()
            }
            Self::Toeplitz { forward, reverse } => {
                shape("the forward numbers of a Toeplitz mixer", forward, t, 1)?;
                shape("the reverse numbers of a Toeplitz mixer", reverse, t, 1)?;
                each(&|row, column| {
                    let distance = row as isize - column as isize;
                    if distance + 1 == t as isize {
                        // The circle closes here.
                        if t == 1 { forward[0] } else { reverse[t - 1] }
                    } else if distance >= -1 {
                        forward[(distance + 1) as usize]
                    } else {
                        reverse[(-distance - 1) as usize]
                    }
                })
            }
            Self::Fourier => {
                // Reduced first: large angles lose digits.
                each(&|row, column| (around * (row * column % t) as f32 / t as f32).cos())
            }
            Self::Vandermonde(of) => {
                of.check(t)?;
                let mut by_column = vec![0.0; t * t];
                let mut out = vec![0.0; t * t];
                for i in 0..of.dim {
                    waves::add_cosines(&angles(of.queries, of.dim, i), 1.0, &mut by_column);
                    waves::add_cosines(&angles(of.keys, of.dim, i), -1.0, &mut out);
                }
                add_transposed(&mut out, &by_column, t);
                out
            }
            Self::Cauchy { of, bias } => {
                of.check(t)?;
                let (q, k) = of.raised(bias);
                let mut out = vec![0.0; t * t];
                for (row, out) in out.chunks_exact_mut(t).enumerate() {
                    for (i, keys) in k.chunks_exact(t).enumerate() {
                        let q = q[row * of.dim + i] + TINY;
                        out.iter_mut()
                            .zip(keys)
                            .for_each(|(m, k)| *m += 1.0 / (q + k));
                    }
                }
                out
            }
            Self::LowRank(of) => of.products(t)?,
            Self::Attention(of) => {
                let mut scores = of.products(t)?;
                let scale = 1.0 / (of.dim as f32).sqrt();
                scores.iter_mut().for_each(|s| *s *= scale);
                softmax_rows(&mut scores, t);
                scores
            }
        })
    }

    /// What its matrix is multiplied with, in a layer made for sequences of `longest`.
    pub fn scale(&self, longest: usize) -> f32 {
        let t = longest as f32;
        match self {
            Self::Dense(_) | Self::Fourier => 1.0 / t.sqrt(),
            Self::Toeplitz { .. } => 0.5 / t.sqrt(),
            Self::Vandermonde(of) => 1.0 / (2.0 * t * of.dim as f32).sqrt(),
            Self::Cauchy { of, .. } | Self::LowRank(of) => 1.0 / (t * of.dim as f32).sqrt(),
            Self::Attention(_) => 1.0,
        }
    }

    /// `scale M v + v` for `v` `[positions, width]`.
    ///
    /// # Errors
    /// When shapes differ or the sequence is longer than `longest`.
    pub fn mix(&self, v: &[f32], width: usize, longest: usize) -> Result<Vec<f32>, SequenceError> {
        let t = v.len().checked_div(width).unwrap_or(0);
        shape("the values", v, t.max(1), width)?;
        if t > longest {
            return Err(SequenceError::Refused(format!(
                "the sequence has {t} positions; the layer was made for {longest} at most"
            )));
        }
        let matrix = self.matrix(t)?;
        let mut out = vec![0.0; v.len()];
        matmul_nn(&mut out, &matrix, v, t, width, t, 1);
        let scale = self.scale(longest);
        for (out, v) in out.iter_mut().zip(v) {
            *out = scale * *out + v;
        }
        Ok(out)
    }
}

impl QueriesKeys<'_> {
    fn check(&self, positions: usize) -> Result<(), SequenceError> {
        shape("the queries", self.queries, positions, self.dim)?;
        shape("the keys", self.keys, positions, self.dim)
    }

    /// `exp + bias` of the queries `[T, d]` and of the keys, by number `[d, T]`.
    fn raised(&self, bias: f32) -> (Vec<f32>, Vec<f32>) {
        let d = self.dim;
        let t = self.keys.len() / d;
        let raise = |x: f32| x.exp() + bias;
        let queries = self.queries.iter().map(|&x| raise(x)).collect();
        let keys = (0..self.keys.len()).map(|i| raise(self.keys[i % t * d + i / t]));
        (queries, keys.collect())
    }

    /// `queries · keysᵀ`.
    fn products(&self, positions: usize) -> Result<Vec<f32>, SequenceError> {
        self.check(positions)?;
        let mut out = vec![0.0; positions * positions];
        let (q, k) = (self.queries, self.keys);
        matmul_nt(&mut out, q, k, positions, positions, self.dim, 1);
        Ok(out)
    }
}

/// `2π ε x` for number `i` of each vector.
fn angles(vectors: &[f32], dim: usize, i: usize) -> Vec<f64> {
    let factor = f64::from(std::f32::consts::TAU * EPSILON);
    let numbers = vectors.chunks_exact(dim).map(|v| factor * f64::from(v[i]));
    numbers.collect()
}

/// `out += matrixᵀ`, both `[t, t]`.
fn add_transposed(out: &mut [f32], matrix: &[f32], t: usize) {
    for (row, out) in out.chunks_exact_mut(t).enumerate() {
        for (column, out) in out.iter_mut().enumerate() {
            *out += matrix[column * t + row];
        }
    }
}

/// Refuses another shape than `[rows, width]`.
pub(crate) fn shape(
    what: &'static str,
    numbers: &[f32],
    rows: usize,
    width: usize,
) -> Result<(), SequenceError> {
    if numbers.len() == rows * width && width > 0 && rows > 0 {
        return Ok(());
    }
    Err(SequenceError::Shape {
        what,
        found: numbers.len(),
        expected: format!("{rows} rows of {width}, at least one number"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture() -> serde_json::Value {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/hydra.json");
        serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
    }

    fn numbers(json: &serde_json::Value, name: &str) -> Vec<f32> {
        serde_json::from_value(json[name].clone()).unwrap()
    }

    #[test]
    fn every_family_gives_what_the_authors_code_gives() {
        let json = &fixture()["mixers"];
        let of = |name: &str| numbers(json, name);
        let (v, q, k) = (of("v"), of("q"), of("k"));
        let (forward, reverse, dense) = (of("forward"), of("reverse"), of("dense_matrix"));
        let pair = QueriesKeys {
            queries: &q,
            keys: &k,
            dim: 3,
        };
        for (name, mixer) in [
            ("dense", MatrixMixer::Dense(&dense)),
            (
                "toeplitz",
                MatrixMixer::Toeplitz {
                    forward: &forward,
                    reverse: &reverse,
                },
            ),
            ("fourier", MatrixMixer::Fourier),
            ("vandermonde", MatrixMixer::Vandermonde(pair)),
            (
                "cauchy",
                MatrixMixer::Cauchy {
                    of: pair,
                    bias: 0.5,
                },
            ),
            ("low_rank", MatrixMixer::LowRank(pair)),
            ("attention", MatrixMixer::Attention(pair)),
        ] {
            let found = mixer.mix(&v, 4, 9).unwrap();
            for (a, b) in found.iter().zip(of(name)) {
                assert!((a - b).abs() < 1e-5, "{name}: {a} {b}");
            }
        }
    }

    #[test]
    fn lengths_that_do_not_fit_are_refused() {
        let m = [1.0; 9];
        assert!(MatrixMixer::Dense(&m).mix(&[1.0; 6], 2, 2).is_err());
        assert!(MatrixMixer::Dense(&m).mix(&[1.0; 8], 2, 4).is_err());
        assert!(MatrixMixer::Fourier.mix(&[], 2, 4).is_err());
        let pair = QueriesKeys {
            queries: &m,
            keys: &m[..6],
            dim: 3,
        };
        assert!(MatrixMixer::Attention(pair).mix(&[1.0; 6], 2, 4).is_err());
    }
}

//! Sparse codes of rows under a dictionary that is fixed.
//!
//! A row `x` is written as `c D` with few numbers in `c`, where the rows of `D` are the
//! atoms. Names and definitions are scikit-learn's.
//!
//! | algorithm | `c` | source |
//! |---|---|---|
//! | `omp` | greedily the atom that goes with the rest best, then least squares | Pati, Rezaiifar, Krishnaprasad 1993; with the Gram matrix: Rubinstein, Zibulevsky, Elad 2008 |
//! | `lasso_lars` | `min ½‖x - c D‖² + α‖c‖₁` along the path of α | Efron, Hastie, Johnstone, Tibshirani 2004 |
//! | `lasso_cd` | the same by one coordinate after the other | Friedman, Hastie, Tibshirani 2010 |
//! | `threshold` | `sign(x Dᵀ) max(|x Dᵀ| - α, 0)` | |
//! | `hard_threshold` | `x Dᵀ` where it is above α | |
//! | `top_k` | the k largest of `x Dᵀ` | |
//!
//! Cost: `D Dᵀ` once, `x Dᵀ` for blocks of rows as matrix products, and then per row
//! and step about `n_components` times the atoms in use.

mod descent;
mod lars;
mod omp;
mod work;

use keyfold_kernels as kernels;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::check_rows;
use crate::{Codes, DictionaryError};

/// Rows whose products with all atoms are made together; few, so that a batch of some hundred
/// has work for all threads. Of one size whatever the number of threads is, so that it changes no
/// bit.
const BLOCK: usize = 32;

/// How rows are coded.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "algorithm", rename_all = "snake_case")]
pub enum Coder {
    /// Orthogonal matching pursuit. Atoms should have length 1.
    Omp {
        /// Most atoms of a row; none: a tenth of the width, at least 1, unless `tol`
        /// is given.
        n_nonzero_coefs: Option<usize>,
        /// Stop once the squared rest is not above this.
        tol: Option<f32>,
    },
    /// The lasso by least-angle regression: exact.
    LassoLars {
        /// Weight of `‖c‖₁`.
        alpha: f32,
        /// Only numbers that are not negative.
        positive: bool,
    },
    /// The lasso by coordinate descent.
    LassoCd {
        /// Weight of `‖c‖₁`.
        alpha: f32,
        /// Only numbers that are not negative.
        positive: bool,
    },
    /// Products with the atoms, made smaller by `alpha`.
    Threshold {
        /// What is taken away.
        alpha: f32,
        /// Only numbers that are not negative.
        positive: bool,
    },
    /// Products with the atoms where they are above `alpha`.
    HardThreshold {
        /// The least absolute value that is kept.
        alpha: f32,
    },
    /// The `k` products with the atoms that are largest in absolute value.
    TopK {
        /// How many are kept.
        k: usize,
    },
}

impl std::str::FromStr for Coder {
    type Err = DictionaryError;

    /// Reads `omp:ATOMS`, `lasso-lars:ALPHA`, `lasso-cd:ALPHA`, `threshold:ALPHA`,
    /// `hard-threshold:ALPHA` or `top-k:ATOMS`.
    fn from_str(text: &str) -> Result<Self, DictionaryError> {
        let unknown = || {
            DictionaryError::settings(format!(
                "'{text}' is no coder; write omp:ATOMS, lasso-lars:ALPHA, lasso-cd:ALPHA, \
                 threshold:ALPHA, hard-threshold:ALPHA or top-k:ATOMS, as in omp:8"
            ))
        };
        let (name, number) = text.split_once(':').ok_or_else(unknown)?;
        let count = || number.parse::<usize>().map_err(|_| unknown());
        let alpha = || number.parse::<f32>().map_err(|_| unknown());
        let positive = false;
        Ok(match name {
            "omp" => Self::Omp {
                n_nonzero_coefs: Some(count()?),
                tol: None,
            },
            "lasso-lars" => Self::LassoLars {
                alpha: alpha()?,
                positive,
            },
            "lasso-cd" => Self::LassoCd {
                alpha: alpha()?,
                positive,
            },
            "threshold" => Self::Threshold {
                alpha: alpha()?,
                positive,
            },
            "hard-threshold" => Self::HardThreshold { alpha: alpha()? },
            "top-k" => Self::TopK { k: count()? },
            _ => return Err(unknown()),
        })
    }
}

impl Coder {
    /// Refuses settings without sense.
    pub(crate) fn check(&self, n_components: usize, width: usize) -> Result<(), DictionaryError> {
        let positive = |name: &str, x: f32| match x.is_finite() && x >= 0.0 {
            true => Ok(()),
            false => Err(DictionaryError::settings(format!(
                "{name} is {x}; it must be 0 or more"
            ))),
        };
        match *self {
            Self::Omp {
                n_nonzero_coefs,
                tol,
            } => {
                positive("tol", tol.unwrap_or(0.0))?;
                match n_nonzero_coefs {
                    Some(n) if n == 0 || n > n_components => {
                        Err(DictionaryError::settings(format!(
                            "n_nonzero_coefs is {n}; it must be from 1 to the {n_components} atoms"
                        )))
                    }
                    _ => Ok(()),
                }
            }
            Self::LassoLars { alpha, .. }
            | Self::LassoCd { alpha, .. }
            | Self::Threshold { alpha, .. }
            | Self::HardThreshold { alpha } => positive("alpha", alpha),
            Self::TopK { k } if k == 0 || k > n_components => {
                Err(DictionaryError::settings(format!(
                    "k is {k}; it must be from 1 to the {n_components} atoms (rows have {width} numbers)"
                )))
            }
            Self::TopK { .. } => Ok(()),
        }
    }

    fn needs_gram(&self) -> bool {
        matches!(
            self,
            Self::Omp { .. } | Self::LassoLars { .. } | Self::LassoCd { .. }
        )
    }
}

/// Codes rows under a dictionary; what all rows share is computed once.
#[derive(Debug, Clone)]
pub struct SparseCoder<'a> {
    components: &'a [f32],
    width: usize,
    coder: Coder,
    /// `D Dᵀ`; empty where the algorithm needs none.
    gram: Vec<f32>,
}

impl<'a> SparseCoder<'a> {
    /// For atoms `[n_components, width]`.
    ///
    /// # Errors
    /// When the components are no rows of finite numbers or a setting makes no sense.
    pub fn new(components: &'a [f32], width: usize, coder: Coder) -> Result<Self, DictionaryError> {
        let n_components = check_rows(components, width)?;
        coder.check(n_components, width)?;
        let mut gram = Vec::new();
        if coder.needs_gram() {
            let all = kernels::Matrix::new(components, width);
            gram = vec![0.0; n_components * n_components];
            let threads = rayon::current_num_threads();
            kernels::product(&mut gram, n_components, all, all.t(), 1.0, false, threads);
        }
        Ok(Self {
            components,
            width,
            coder,
            gram,
        })
    }

    /// Number of atoms.
    pub fn n_components(&self) -> usize {
        self.components.len() / self.width
    }

    /// The codes of `rows` (`[n, width]`). Uses the threads of the current rayon pool; the
    /// result does not depend on how many there are.
    ///
    /// # Errors
    /// When a row has another width or is not finite.
    pub fn encode(&self, rows: &[f32]) -> Result<Codes, DictionaryError> {
        check_rows(rows, self.width)?;
        let blocks: Vec<Codes> = rows
            .par_chunks(BLOCK * self.width)
            .map_init(
                || work::Work::new(self.n_components()),
                |work, block| self.block(work, block),
            )
            .collect();
        let mut codes = Codes::new(self.n_components());
        blocks.iter().for_each(|block| codes.append(block));
        Ok(codes)
    }

    fn block(&self, work: &mut work::Work, rows: &[f32]) -> Codes {
        let (n, k) = (rows.len() / self.width, self.n_components());
        let mut products = std::mem::take(&mut work.products);
        products.resize(n * k, 0.0);
        kernels::matmul_nt(&mut products, rows, self.components, n, k, self.width, 1);
        let mut codes = Codes::new(k);
        for (row, c) in rows
            .chunks_exact(self.width)
            .zip(products.chunks_exact_mut(k))
        {
            self.row(work, row, c, &mut codes);
        }
        work.products = products;
        codes
    }

    /// One row; `c` holds its products with the atoms.
    fn row(&self, work: &mut work::Work, row: &[f32], c: &mut [f32], codes: &mut Codes) {
        match self.coder {
            Coder::Omp {
                n_nonzero_coefs,
                tol,
            } => {
                let most = match (n_nonzero_coefs, tol) {
                    (Some(n), _) => n,
                    (None, Some(_)) => self.n_components().min(self.width),
                    (None, None) => (self.width / 10).max(1),
                };
                let limit = omp::Limit {
                    most: most.min(self.n_components()),
                    tol,
                };
                let energy = kernels::dot(row, row);
                omp::encode(work, &self.gram, c, energy, limit, codes);
            }
            Coder::LassoLars { alpha, positive } => {
                lars::encode(work, &self.gram, c, alpha, positive, codes);
            }
            Coder::LassoCd { alpha, positive } => {
                descent::encode(work, &self.gram, c, alpha, positive, codes);
            }
            Coder::Threshold { alpha, positive } => {
                codes.push((0..).zip(c.iter()).map(|(j, &x)| {
                    let size = (x.abs() - alpha).max(0.0);
                    (
                        j,
                        if positive && x < 0.0 {
                            0.0
                        } else {
                            size.copysign(x)
                        },
                    )
                }))
            }
            Coder::HardThreshold { alpha } => {
                codes.push(
                    (0..)
                        .zip(c.iter().copied())
                        .filter(|(_, x)| x.abs() > alpha),
                );
            }
            Coder::TopK { k } => {
                work.sizes.clear();
                work.sizes.extend(c.iter().map(|x| x.abs()));
                let mut best = kernels::top_k(&work.sizes, k);
                best.sort_unstable_by_key(|(_, j)| *j);
                codes.push(best.into_iter().map(|(_, j)| (j, c[j as usize])));
            }
        }
    }
}

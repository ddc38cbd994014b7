//! Non-negative matrix factorisation: rows as sums of parts, nothing taken away.
//!
//! Source: Daniel Lee and Sebastian Seung, Learning the parts of objects by non-negative matrix
//! factorization, 1999; by coordinate descent after Cichocki and Phan 2009, as scikit-learn's
//! `NMF(solver="cd")`: `min ½ ‖X - W H‖²`, `W, H ≥ 0`, one column of `W` after the other by
//! its exact minimum, then `H` in the same way. Cost of a round: two products with `X`.

use keyfold_core::Progress;
use keyfold_kernels as kernels;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::DictionaryError;
use crate::error::check_rows;

/// Settings; names and values as in scikit-learn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NmfConfig {
    /// Number of parts; 0 for as many as columns.
    pub n_components: usize,
    /// Rounds at most.
    pub max_iter: usize,
    /// Stop when the projected gradient is this part of the first one.
    pub tol: f64,
    /// Seed of the start.
    pub seed: u64,
}

impl Default for NmfConfig {
    fn default() -> Self {
        Self {
            n_components: 0,
            max_iter: 200,
            tol: 1e-4,
            seed: 0,
        }
    }
}

/// The factors of rows.
#[derive(Debug, Clone, PartialEq)]
pub struct NmfFactors {
    /// Codes, `[rows, n_components]`.
    pub w: Vec<f32>,
    /// Parts, `[n_components, width]`.
    pub h: Vec<f32>,
    /// Rounds that were made.
    pub n_iter: usize,
}

/// Factors rows `[n, width]`, from `start` or from random numbers of the rows' size. Ends
/// early when `progress` asks to.
///
/// # Errors
/// When a number is negative or not finite, or the settings make no sense.
pub fn nmf(
    rows: &[f32],
    width: usize,
    config: &NmfConfig,
    start: Option<(Vec<f32>, Vec<f32>)>,
    progress: &dyn Progress,
) -> Result<NmfFactors, DictionaryError> {
    let n = check_rows(rows, width)?;
    if let Some(at) = rows.iter().position(|x| *x < 0.0) {
        return Err(DictionaryError::Negative {
            row: at / width + 1,
            column: at % width + 1,
            found: rows[at],
        });
    }
    let k = if config.n_components == 0 {
        width
    } else {
        config.n_components
    };
    let (mut w, h) = match start {
        Some(start) => start,
        None => {
            let mut rng = StdRng::seed_from_u64(config.seed);
            let mean = rows.iter().map(|x| f64::from(*x)).sum::<f64>() / rows.len() as f64;
            let size = (mean / k as f64).sqrt() as f32;
            let mut drawn = |count: usize| -> Vec<f32> {
                let one = |_| (size * keyfold_core::normal(|| rng.random()) as f32).abs();
                (0..count).map(one).collect()
            };
            let h = drawn(k * width);
            (drawn(n * k), h)
        }
    };
    if w.len() != n * k || h.len() != k * width {
        return Err(DictionaryError::settings(
            "the start has another shape than rows and parts",
        ));
    }
    let mut ht = transposed(&h, width);
    let threads = rayon::current_num_threads();
    let x = kernels::Matrix::new(rows, width);
    let (mut first, mut n_iter) = (None, 0);
    progress.start("factorise", "rounds", Some(config.max_iter as u64));
    while n_iter < config.max_iter && !progress.cancelled() {
        let mut products = vec![0.0; n * k];
        kernels::product(
            &mut products,
            k,
            x,
            kernels::Matrix::new(&ht, k),
            1.0,
            false,
            threads,
        );
        let mut violation = sweep(&mut w, &gram(&ht, k, threads), &products, k);
        let mut products = vec![0.0; width * k];
        kernels::product(
            &mut products,
            k,
            x.t(),
            kernels::Matrix::new(&w, k),
            1.0,
            false,
            threads,
        );
        violation += sweep(&mut ht, &gram(&w, k, threads), &products, k);
        n_iter += 1;
        progress.advance(1);
        let first = *first.get_or_insert(violation);
        if violation <= config.tol * first {
            break;
        }
    }
    progress.finish();
    Ok(NmfFactors {
        w,
        h: transposed(&ht, k),
        n_iter,
    })
}

/// `mᵀ m` of rows of `k` numbers.
fn gram(m: &[f32], k: usize, threads: usize) -> Vec<f32> {
    let mut out = vec![0.0; k * k];
    let m = kernels::Matrix::new(m, k);
    kernels::product(&mut out, k, m.t(), m, 1.0, false, threads);
    out
}

fn transposed(m: &[f32], width: usize) -> Vec<f32> {
    let rows = m.len() / width.max(1);
    (0..m.len())
        .map(|i| m[i % rows * width + i / rows])
        .collect()
}

/// Every number of every row to its minimum, one column after the other. Gives the sum of
/// the absolute projected gradient.
fn sweep(w: &mut [f32], gram: &[f32], products: &[f32], k: usize) -> f64 {
    let row = |(w, products): (&mut [f32], &[f32])| -> f64 {
        let mut violation = 0.0;
        for t in 0..k {
            let line = &gram[t * k..][..k];
            let gradient = kernels::dot(line, w) - products[t];
            let projected = if w[t] == 0.0 {
                gradient.min(0.0)
            } else {
                gradient
            };
            violation += f64::from(projected.abs());
            if line[t] > 0.0 {
                w[t] = (w[t] - gradient / line[t]).max(0.0);
            }
        }
        violation
    };
    let rows = w.par_chunks_exact_mut(k).zip(products.par_chunks_exact(k));
    // In order, so that the sum does not depend on the threads.
    rows.map(row).collect::<Vec<f64>>().iter().sum()
}

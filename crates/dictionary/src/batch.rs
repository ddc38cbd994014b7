//! Learners that need all rows at once: K-SVD, MOD, NMF and k-means.
//!
//! | method | source | a round |
//! |---|---|---|
//! | K-SVD | Aharon, Elad, Bruckstein 2006; approximate: Rubinstein, Zibulevsky, Elad 2008 | codes by OMP; each atom with its numbers to the best rank-1 fit of the rows that use it, by one power step |
//! | MOD | Engan, Aase, Husøy 1999 | codes by OMP; `D = (CᵀC)⁻¹ CᵀX`, atoms to length 1 |
//! | NMF | see [`nmf`](crate::nmf()) | |
//! | k-means | spherical, see `keyfold_kernels::kmeans` | every row to the centre that goes with it best |
//!
//! After a round of K-SVD or MOD, an atom that no row uses, or that is nearly equal to
//! another, begins again at the row that is represented worst.

use faer::Mat;
use keyfold_core::Progress;
use keyfold_kernels as kernels;
use keyfold_kernels::kmeans::{KMeansConfig, kmeans};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::index;
use serde::{Deserialize, Serialize};

use crate::error::check_rows;
use crate::nmf::{NmfConfig, nmf};
use crate::{Coder, Codes, Dictionary, DictionaryError, SparseCoder, linalg};

/// Atoms whose product is above this are too much alike.
const ALIKE: f32 = 0.99;

/// Which learner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// K-SVD.
    Ksvd,
    /// Method of optimal directions.
    Mod,
    /// Non-negative matrix factorisation.
    Nmf,
    /// Spherical k-means.
    KMeans,
}

/// Settings of all of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BatchConfig {
    /// Number of atoms; 0 for as many as columns.
    pub n_components: usize,
    /// Atoms of a row, for K-SVD and MOD; 0 for a tenth of the columns, at least 1.
    pub n_nonzero_coefs: usize,
    /// Rounds at most.
    pub max_iter: usize,
    /// Stop when a round makes the loss smaller by less than this part.
    pub tol: f64,
    /// Seed of the start.
    pub seed: u64,
}

impl Default for BatchConfig {
    fn default() -> Self {
        Self {
            n_components: 0,
            n_nonzero_coefs: 0,
            max_iter: 100,
            tol: 1e-4,
            seed: 0,
        }
    }
}

/// What a learner gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Fitted {
    /// The dictionary.
    pub dictionary: Dictionary,
    /// Rounds that were made.
    pub n_iter: usize,
}

/// Learns from rows `[n, width]`. When `progress` asks to stop, gives what is there after
/// the round.
///
/// # Errors
/// When rows are not finite, are fewer than atoms, negative for NMF, or a setting makes no
/// sense.
pub fn fit(
    rows: &[f32],
    width: usize,
    method: Method,
    config: &BatchConfig,
    progress: &dyn Progress,
) -> Result<Fitted, DictionaryError> {
    let n = check_rows(rows, width)?;
    let k = if config.n_components == 0 {
        width
    } else {
        config.n_components
    };
    if k > n {
        return Err(DictionaryError::settings(format!(
            "{k} atoms cannot be learned from {n} rows; ask for at most {n}, or give more rows"
        )));
    }
    let fitted = |components, coder, n_iter| Fitted {
        dictionary: Dictionary {
            components,
            width,
            mean: Vec::new(),
            coder,
        },
        n_iter,
    };
    match method {
        Method::Nmf => {
            let config = NmfConfig {
                n_components: k,
                max_iter: config.max_iter,
                tol: config.tol,
                seed: config.seed,
            };
            let factors = nmf(rows, width, &config, None, progress)?;
            Ok(fitted(
                factors.h,
                Coder::LassoCd {
                    alpha: 0.0,
                    positive: true,
                },
                factors.n_iter,
            ))
        }
        Method::KMeans => {
            let config = KMeansConfig {
                iterations: config.max_iter.min(50),
                max_points_per_centroid: usize::MAX,
                ..KMeansConfig::new(k, config.seed)
            };
            let centres = kmeans(rows, width, &config, rayon::current_num_threads());
            Ok(fitted(centres, Coder::TopK { k: 1 }, config.iterations))
        }
        Method::Ksvd | Method::Mod => {
            let coder = Coder::Omp {
                n_nonzero_coefs: Some(match config.n_nonzero_coefs {
                    0 => (width / 10).clamp(1, k),
                    many => many,
                }),
                tol: None,
            };
            coder.check(k, width)?;
            let (atoms, n_iter) = alternate(rows, width, k, method, coder, config, progress)?;
            Ok(fitted(atoms, coder, n_iter))
        }
    }
}

/// Codes and atoms in turn.
fn alternate(
    rows: &[f32],
    width: usize,
    k: usize,
    method: Method,
    coder: Coder,
    config: &BatchConfig,
    progress: &dyn Progress,
) -> Result<(Vec<f32>, usize), DictionaryError> {
    let mut d = some_rows(rows, width, k, config.seed)?;
    let (mut last, mut n_iter) = (f64::INFINITY, 0);
    progress.start("learn", "rounds", Some(config.max_iter as u64));
    while n_iter < config.max_iter && !progress.cancelled() {
        let mut codes = SparseCoder::new(&d, width, coder)?.encode(rows)?;
        let mut rest = rest_of(rows, &codes, &d, width);
        match method {
            Method::Ksvd => improve_atoms(&mut d, width, &mut codes, &mut rest),
            _ => {
                d = optimal_directions(rows, width, &codes, &d)?;
                rest = rest_of(rows, &codes, &d, width);
            }
        }
        let loss: f64 = rest.iter().map(|x| f64::from(*x).powi(2)).sum();
        replace(&mut d, width, rows, &rest, &codes.uses());
        n_iter += 1;
        progress.advance(1);
        progress.status(&format!("loss {:.4}", loss / codes.len() as f64));
        if last - loss <= config.tol * last && last.is_finite() {
            break;
        }
        last = loss;
    }
    progress.finish();
    Ok((d, n_iter))
}

/// Random rows that are not 0, of length 1.
fn some_rows(rows: &[f32], width: usize, k: usize, seed: u64) -> Result<Vec<f32>, DictionaryError> {
    let usable: Vec<&[f32]> = rows
        .chunks_exact(width)
        .filter(|r| kernels::norm(r) > 1e-12)
        .collect();
    if usable.len() < k {
        return Err(DictionaryError::settings(format!(
            "{k} atoms cannot begin at {} rows that are not zero; ask for fewer atoms",
            usable.len()
        )));
    }
    let mut rng = StdRng::seed_from_u64(seed);
    let places = index::sample(&mut rng, usable.len(), k);
    let mut d: Vec<f32> = places
        .iter()
        .flat_map(|i| usable[i].iter().copied())
        .collect();
    kernels::normalize_rows(&mut d, width);
    Ok(d)
}

/// `X - C D`
fn rest_of(rows: &[f32], codes: &Codes, d: &[f32], width: usize) -> Vec<f32> {
    let mut rest = codes.decode(d, width);
    rest.iter_mut().zip(rows).for_each(|(r, x)| *r = x - *r);
    rest
}

/// Each atom with its numbers to the best fit of what the others leave, by one power step.
fn improve_atoms(d: &mut [f32], width: usize, codes: &mut Codes, rest: &mut [f32]) {
    // Of each atom the rows that use it, and where in their codes.
    let mut users: Vec<Vec<(usize, usize)>> = vec![Vec::new(); codes.n_components()];
    for (row, (atoms, _)) in codes.iter().enumerate() {
        for (place, atom) in atoms.iter().enumerate() {
            users[*atom as usize].push((row, place));
        }
    }
    for (atom, users) in d.chunks_exact_mut(width).zip(&users) {
        let mut better = vec![0.0; width];
        for &(row, place) in users {
            let rest = &mut rest[row * width..][..width];
            let value = *codes.value_mut(row, place);
            kernels::axpy(rest, value, atom);
            kernels::axpy(&mut better, value, rest);
        }
        let norm = kernels::norm(&better);
        if norm > 1e-12 {
            atom.iter_mut()
                .zip(&better)
                .for_each(|(a, b)| *a = b / norm);
        }
        for &(row, place) in users {
            let rest = &mut rest[row * width..][..width];
            let value = codes.value_mut(row, place);
            *value = kernels::dot(rest, atom);
            kernels::axpy(rest, -*value, atom);
        }
    }
}

/// `(CᵀC)⁻¹ CᵀX`, atoms to length 1; one that no row uses stays.
fn optimal_directions(
    rows: &[f32],
    width: usize,
    codes: &Codes,
    d: &[f32],
) -> Result<Vec<f32>, DictionaryError> {
    let k = codes.n_components();
    let mut gram = Mat::<f64>::zeros(k, k);
    let mut products = Mat::<f64>::zeros(k, width);
    for (row, (atoms, values)) in rows.chunks_exact(width).zip(codes.iter()) {
        for (i, x) in atoms.iter().zip(values) {
            let (i, x) = (*i as usize, f64::from(*x));
            for (j, y) in atoms.iter().zip(values) {
                gram[(i, *j as usize)] += x * f64::from(*y);
            }
            for (j, y) in row.iter().enumerate() {
                products[(i, j)] += x * f64::from(*y);
            }
        }
    }
    let mut new = linalg::numbers(linalg::solve_symmetric(&gram, &products)?.as_ref());
    for (new, old) in new.chunks_exact_mut(width).zip(d.chunks_exact(width)) {
        let norm = kernels::norm(new);
        match norm > 1e-9 {
            true => new.iter_mut().for_each(|x| *x /= norm),
            false => new.copy_from_slice(old),
        }
    }
    Ok(new)
}

/// Lets atoms begin again that no row uses or that are like another.
fn replace(d: &mut [f32], width: usize, rows: &[f32], rest: &[f32], uses: &[usize]) {
    let k = uses.len();
    let all = kernels::Matrix::new(d, width);
    let mut gram = vec![0.0; k * k];
    kernels::product(&mut gram, k, all, all.t(), 1.0, false, 1);
    let alike = |j: usize| (0..j).any(|i| gram[j * k + i].abs() > ALIKE);
    let poor: Vec<usize> = (0..k).filter(|j| uses[*j] == 0 || alike(*j)).collect();
    if poor.is_empty() {
        return;
    }
    let losses: Vec<f32> = rest
        .chunks_exact(width)
        .map(|r| kernels::dot(r, r))
        .collect();
    let worst = kernels::top_k(&losses, poor.len());
    for (atom, (loss, row)) in poor.into_iter().zip(worst) {
        let row = &rows[row as usize * width..][..width];
        let norm = kernels::norm(row);
        if loss > 0.0 && norm > 1e-12 {
            let d = &mut d[atom * width..][..width];
            d.iter_mut().zip(row).for_each(|(d, x)| *d = x / norm);
        }
    }
}

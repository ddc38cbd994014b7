//! Atoms of the least lasso loss, from a stream of batches.
//!
//! For whom: who wants more atoms than columns, or parts that are not orthogonal.
//!
//! Source: Julien Mairal, Francis Bach, Jean Ponce, Guillermo Sapiro, Online Dictionary
//! Learning for Sparse Coding, 2009; names and forgetting as in scikit-learn's
//! `MiniBatchDictionaryLearning`. For batch `t` of `b` rows `X` with lasso codes `C`:
//!
//! ```text
//! θ = (t+1) b                 while t < b-1, then b² + t + 1 - b
//! β = (θ + 1 - b) / (θ + 1)
//! A ← β A + Cᵀ C / b,  B ← β B + Cᵀ X / b
//! d_k ← d_k + (B_k - A_k D) / A_kk,  d_k ← d_k / max(‖d_k‖, 1)   for each atom
//! ```
//!
//! An atom that no code uses begins again at a row. The pass over the atoms makes
//! `B - A D` for blocks of atoms as matrix products and corrects inside a block. Cost of a
//! batch: the codes, and `K² n` for the pass.

use keyfold_kernels as kernels;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::error::check_rows;
use crate::learner::{Batches, Learner, nothing_yet};
use crate::store::{Numbers, Saved, State};
use crate::{Coder, Codes, Dictionary, DictionaryError, SparseCoder, linalg};

/// Atoms whose corrections are made together.
const BLOCK: usize = 32;

/// What an atom's `A_kk` must be above to count as in use.
const UNUSED: f32 = 1e-6;

/// Settings; names and values as in scikit-learn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OnlineConfig {
    /// Number of atoms; 0 for as many as columns.
    pub n_components: usize,
    /// Weight of the sum of absolute values in a code.
    pub alpha: f32,
    /// Rows of a batch.
    pub batch_size: usize,
    /// Code by least-angle regression (`lars`) or coordinate descent (`cd`).
    pub fit_algorithm: FitAlgorithm,
    /// Codes are not negative.
    pub positive_code: bool,
    /// Atoms are not negative.
    pub positive_dict: bool,
    /// Seed of the rows at which unused atoms begin again.
    pub seed: u64,
}

/// How rows are coded while atoms are learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FitAlgorithm {
    /// Least-angle regression.
    Lars,
    /// Coordinate descent.
    #[default]
    Cd,
}

impl Default for OnlineConfig {
    fn default() -> Self {
        Self {
            n_components: 0,
            alpha: 1.0,
            batch_size: 256,
            fit_algorithm: FitAlgorithm::default(),
            positive_code: false,
            positive_dict: false,
            seed: 0,
        }
    }
}

/// Learns atoms of the least lasso loss; see the head of its file.
#[derive(Debug, Clone, PartialEq)]
pub struct Online {
    config: OnlineConfig,
    width: usize,
    /// The atoms, `[K, n]`; empty before the first batch.
    d: Vec<f32>,
    /// `[K, K]`.
    a: Vec<f32>,
    /// `[K, n]`.
    b: Vec<f32>,
    steps: u64,
    rows: u64,
    /// Loss per row of the last batch, before its step.
    loss: f64,
    batches: Batches,
}

impl Online {
    /// Begins with the first batch: its singular vectors by their values, and rows where
    /// there are more atoms.
    ///
    /// # Errors
    /// When a setting makes no sense for rows of `width` numbers.
    pub fn new(config: OnlineConfig, width: usize) -> Result<Self, DictionaryError> {
        if width == 0 {
            return Err(DictionaryError::Width {
                expected: 1,
                found: 0,
            });
        }
        if config.batch_size == 0 {
            return Err(DictionaryError::settings(
                "batch_size is 0; it must be 1 or more",
            ));
        }
        let this = Self {
            batches: Batches::new(config.batch_size),
            config,
            width,
            d: Vec::new(),
            a: Vec::new(),
            b: Vec::new(),
            steps: 0,
            rows: 0,
            loss: 0.0,
        };
        this.coder().check(this.n_components(), width)?;
        Ok(this)
    }

    /// Begins with the atoms `start` (`[K, n]`).
    ///
    /// # Errors
    /// As [`new`](Self::new), and when `start` has another number of atoms.
    pub fn with_start(
        config: OnlineConfig,
        width: usize,
        start: Vec<f32>,
    ) -> Result<Self, DictionaryError> {
        let mut this = Self::new(config, width)?;
        let atoms = check_rows(&start, width)?;
        if atoms != this.n_components() {
            return Err(DictionaryError::settings(format!(
                "the start has {atoms} atoms, not {}",
                this.n_components()
            )));
        }
        this.begin(start);
        Ok(this)
    }

    /// Goes on from what was saved.
    ///
    /// # Errors
    /// When the saved state is of another method or does not fit its settings.
    pub fn resume(saved: &Saved) -> Result<Self, DictionaryError> {
        let config: OnlineConfig = saved.settings("online")?;
        let width = saved.dictionary.width;
        let mut this = Self::new(config, width)?;
        let k = this.n_components();
        this.d = saved.f32s("d", k * width)?;
        this.a = saved.f32s("a", k * k)?;
        this.b = saved.f32s("b", k * width)?;
        this.batches.waiting = saved.waiting(width)?;
        (this.steps, this.rows) = (saved.steps(), saved.rows());
        Ok(this)
    }

    /// The settings.
    pub fn config(&self) -> &OnlineConfig {
        &self.config
    }

    /// Learns from rows again and again, in the order of the seed: scikit-learn's `fit`.
    /// `pass` is called after every one with the loss per row; it stops by `false`.
    ///
    /// # Errors
    /// As [`Learner::partial_fit`].
    pub fn fit(
        &mut self,
        rows: &[f32],
        passes: usize,
        mut pass: impl FnMut(f64) -> bool,
    ) -> Result<(), DictionaryError> {
        let n = check_rows(rows, self.width)?;
        for number in 0..passes {
            let mut order: Vec<usize> = (0..n).collect();
            let mut rng = StdRng::seed_from_u64(self.config.seed ^ (number as u64) << 32);
            rand::seq::SliceRandom::shuffle(&mut order[..], &mut rng);
            let (mut sum, before) = (0.0, self.rows);
            for batch in order.chunks(self.config.batch_size) {
                let of = |i: &usize| rows[i * self.width..][..self.width].iter().copied();
                let batch: Vec<f32> = batch.iter().flat_map(of).collect();
                self.learn(&batch)?;
                sum += self.loss * (batch.len() / self.width) as f64;
            }
            if !pass(sum / (self.rows - before) as f64) {
                break;
            }
        }
        Ok(())
    }

    fn n_components(&self) -> usize {
        match self.config.n_components {
            0 => self.width,
            n => n,
        }
    }

    fn coder(&self) -> Coder {
        let (alpha, positive) = (self.config.alpha, self.config.positive_code);
        match self.config.fit_algorithm {
            FitAlgorithm::Lars => Coder::LassoLars { alpha, positive },
            FitAlgorithm::Cd => Coder::LassoCd { alpha, positive },
        }
    }

    fn begin(&mut self, start: Vec<f32>) {
        let k = self.n_components();
        self.d = start;
        self.a = vec![0.0; k * k];
        self.b = vec![0.0; k * self.width];
    }

    fn learn(&mut self, rows: &[f32]) -> Result<(), DictionaryError> {
        if self.d.is_empty() {
            let (k, batch) = (self.n_components(), linalg::matrix(rows, self.width));
            let mut start = linalg::numbers(linalg::right_factor(batch.as_ref(), k)?.as_ref());
            if self.config.positive_dict {
                start.iter_mut().for_each(|x| *x = x.max(0.0));
            }
            start.resize(k * self.width, 0.0);
            self.begin(start);
        }
        let codes = SparseCoder::new(&self.d, self.width, self.coder())?.encode(rows)?;
        self.loss = self.loss_of(rows, &codes);
        self.statistics(rows, &codes);
        self.update(rows);
        self.steps += 1;
        self.rows += codes.len() as u64;
        Ok(())
    }

    /// `½ ‖x - c D‖² + α ‖c‖₁` per row.
    fn loss_of(&self, rows: &[f32], codes: &Codes) -> f64 {
        let again = codes.decode(&self.d, self.width);
        let squares: f64 = rows
            .chunks_exact(self.width)
            .zip(again.chunks_exact(self.width))
            .map(|(x, y)| f64::from(x.iter().zip(y).map(|(x, y)| (x - y) * (x - y)).sum::<f32>()))
            .sum();
        (0.5 * squares + f64::from(self.config.alpha) * codes.l1()) / codes.len() as f64
    }

    fn statistics(&mut self, rows: &[f32], codes: &Codes) {
        let (b, t) = (codes.len() as f64, self.steps as f64);
        let theta = if t < b - 1.0 {
            (t + 1.0) * b
        } else {
            b * b + t + 1.0 - b
        };
        let beta = ((theta + 1.0 - b) / (theta + 1.0)) as f32;
        self.a.iter_mut().for_each(|x| *x *= beta);
        self.b.iter_mut().for_each(|x| *x *= beta);
        let scale = 1.0 / b as f32;
        let k = self.n_components();
        for (row, (atoms, values)) in rows.chunks_exact(self.width).zip(codes.iter()) {
            for (i, x) in atoms.iter().zip(values) {
                let (i, x) = (*i as usize, x * scale);
                let line = &mut self.a[i * k..][..k];
                atoms
                    .iter()
                    .zip(values)
                    .for_each(|(j, y)| line[*j as usize] += x * y);
                kernels::axpy(&mut self.b[i * self.width..][..self.width], x, row);
            }
        }
    }

    /// One pass over the atoms.
    fn update(&mut self, rows: &[f32]) {
        let (k, n) = (self.n_components(), self.width);
        let threads = rayon::current_num_threads();
        let mut rng = StdRng::seed_from_u64(
            self.config.seed ^ self.steps.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        );
        let mut rest = vec![0.0; BLOCK * n];
        for first in (0..k).step_by(BLOCK) {
            let count = BLOCK.min(k - first);
            let rest = &mut rest[..count * n];
            rest.copy_from_slice(&self.b[first * n..][..count * n]);
            let lines = kernels::Matrix::new(&self.a[first * k..][..count * k], k);
            kernels::product(
                rest,
                n,
                lines,
                kernels::Matrix::new(&self.d, n),
                -1.0,
                true,
                threads,
            );
            for i in 0..count {
                let atom = first + i;
                let own = self.a[atom * k + atom];
                let (this, later) = rest[i * n..].split_at_mut(n);
                let d = &mut self.d[atom * n..][..n];
                let before = d.to_vec();
                match own > UNUSED {
                    true => kernels::axpy(d, 1.0 / own, this),
                    false => begin_again(d, rows, &mut rng),
                }
                if self.config.positive_dict {
                    d.iter_mut().for_each(|x| *x = x.max(0.0));
                }
                let scale = 1.0 / kernels::norm(d).max(1.0);
                d.iter_mut().for_each(|x| *x *= scale);
                // What the others of the block see of the move.
                this.iter_mut()
                    .zip(d.iter().zip(&before))
                    .for_each(|(m, (d, b))| *m = d - b);
                for (j, later) in later.chunks_exact_mut(n).enumerate() {
                    let with = self.a[(atom + 1 + j) * k + atom];
                    if with != 0.0 {
                        kernels::axpy(later, -with, this);
                    }
                }
            }
        }
    }
}

/// A random row with a hundredth of noise.
fn begin_again(d: &mut [f32], rows: &[f32], rng: &mut StdRng) {
    let n = d.len();
    let row = &rows[rng.random_range(0..rows.len() / n) * n..][..n];
    let mean = row.iter().sum::<f32>() / n as f32;
    let spread = (row.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / n as f32).sqrt();
    let noise = 0.01 * if spread > 0.0 { spread } else { 1.0 };
    for (d, x) in d.iter_mut().zip(row) {
        *d = x + noise * keyfold_core::normal(|| rng.random()) as f32;
    }
}

impl Learner for Online {
    fn partial_fit(&mut self, rows: &[f32]) -> Result<(), DictionaryError> {
        check_rows(rows, self.width)?;
        let mut batches = std::mem::take(&mut self.batches);
        let done = batches.push(rows, self.width, |batch| self.learn(batch));
        self.batches = batches;
        done
    }

    fn flush(&mut self) -> Result<(), DictionaryError> {
        let waiting = std::mem::take(&mut self.batches.waiting);
        match waiting.is_empty() {
            true => Ok(()),
            false => self.learn(&waiting),
        }
    }

    fn dictionary(&self) -> Result<Dictionary, DictionaryError> {
        if self.steps == 0 {
            return Err(nothing_yet());
        }
        Ok(Dictionary {
            components: self.d.clone(),
            width: self.width,
            mean: Vec::new(),
            coder: self.coder(),
        })
    }

    fn state(&self) -> State {
        State::new("online", &self.config, self.steps, self.rows)
            .with("d", Numbers::F32(self.d.clone()))
            .with("a", Numbers::F32(self.a.clone()))
            .with("b", Numbers::F32(self.b.clone()))
            .with("waiting", Numbers::F32(self.batches.waiting.clone()))
    }

    fn steps(&self) -> u64 {
        self.steps
    }

    fn status(&self) -> String {
        format!("loss {:.4}", self.loss)
    }
}

//! Orthonormal atoms from a stream, in one pass and with nothing to tune.
//!
//! For whom: whose rows come without end (sensors, patches of pictures) and who wants few
//! numbers for each; codes are one matrix product.
//!
//! Source: Ye Xue and Vincent Lau, Online Orthogonal Dictionary Learning Based on
//! Frank-Wolfe Method, 2021. Rows are `y = D x` with `D` orthogonal and `x` sparse.
//! Atoms are the rows of `A`, which maximises `E ‖A y‖_p^p` (`p = 3`) over matrices of
//! spectral norm at most 1: of rows of one length those with few large numbers have the
//! largest. For each batch `Y` (`b` rows), with `polar(U S Vᵀ) = U Vᵀ`:
//!
//! ```text
//! g = (|Z|^(p-1) sign Z) Y / b,  Z = A Yᵀ
//! G ← (1 - ρ) G + ρ g            ρ = 4 / √(t+1)
//! A ← (1 - γ) A + γ polar(G)     γ = 2 / (t+2)^(3/4)
//! A ← polar(A)
//! ```
//!
//! Published ρ and γ are above 1 at first, where averages have negative weights;
//! [`Schedule::Clamped`] ends them at 1. Cost of a batch: two decompositions of `[r, n]`,
//! and `2 r n b` for the gradient. All in `f64`.

use faer::{Mat, MatRef};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::error::check_rows;
use crate::learner::{Batches, Learner, nothing_yet};
use crate::store::{Numbers, Saved, State};
use crate::{Coder, Dictionary, DictionaryError, linalg};

/// How steps get shorter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// The published one, with ρ and γ at most 1.
    #[default]
    Clamped,
    /// As published.
    Reference,
    /// That of convex problems, for comparison: `ρ = 4/(t+8)^(2/3)`, `γ = 2/(t+8)`.
    Sfw,
}

impl Schedule {
    /// ρ and γ of batch `t`, from 0.
    fn steps(self, t: u64) -> (f64, f64) {
        let t = t as f64;
        let (rho, gamma) = (4.0 / (t + 1.0).sqrt(), 2.0 / (t + 2.0).powf(0.75));
        match self {
            Self::Clamped => (rho.min(1.0), gamma.min(1.0)),
            Self::Reference => (rho, gamma),
            Self::Sfw => (4.0 / (t + 8.0).powf(2.0 / 3.0), 2.0 / (t + 8.0)),
        }
    }
}

/// Settings; the default is the paper's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FrankWolfeConfig {
    /// Number of atoms, at most as many as columns; 0 for as many. The paper has no fewer.
    pub n_components: usize,
    /// The power of the objective, at least 2.
    pub p: i32,
    /// Rows of a batch.
    pub batch_size: usize,
    /// How steps get shorter.
    pub schedule: Schedule,
    /// Batches between returns to orthonormal atoms; 0 for none, which saves half.
    pub retract_every: u64,
    /// Take the running mean from rows, since the model has none.
    pub center: bool,
    /// Atoms that a code uses, when rows are coded; 0 for an eighth of the columns.
    pub transform_n_nonzero_coefs: usize,
    /// Seed of the atoms at the start.
    pub seed: u64,
}

impl Default for FrankWolfeConfig {
    fn default() -> Self {
        Self {
            n_components: 0,
            p: 3,
            batch_size: 10,
            schedule: Schedule::default(),
            retract_every: 1,
            center: true,
            transform_n_nonzero_coefs: 0,
            seed: 0,
        }
    }
}

/// Learns orthonormal atoms; see the [module](self).
#[derive(Debug, Clone, PartialEq)]
pub struct FrankWolfe {
    config: FrankWolfeConfig,
    width: usize,
    /// The atoms, `[r, n]`.
    a: Mat<f64>,
    /// The mean of gradients.
    g: Mat<f64>,
    steps: u64,
    /// Sums for the running mean.
    mean: Vec<f64>,
    rows: u64,
    batches: Batches,
}

impl FrankWolfe {
    /// Atoms drawn by the seed: the rows of the transposed factor Q of uniform numbers.
    ///
    /// # Errors
    /// When a setting makes no sense for rows of `width` numbers.
    pub fn new(config: FrankWolfeConfig, width: usize) -> Result<Self, DictionaryError> {
        let mut rng = StdRng::seed_from_u64(config.seed);
        let uniform = Mat::from_fn(width, width, |_, _| rng.random::<f64>());
        let q = linalg::orthogonal(uniform.as_ref());
        let r = if config.n_components == 0 {
            width
        } else {
            config.n_components
        };
        let start = Mat::from_fn(r.min(width), width, |i, j| q[(j, i)]);
        Self::with_start(config, start.as_ref())
    }

    /// Begins with the atoms `start` (`[r, n]`, rows orthonormal).
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_start(
        config: FrankWolfeConfig,
        start: MatRef<'_, f64>,
    ) -> Result<Self, DictionaryError> {
        let (r, width) = (start.nrows(), start.ncols());
        let wanted = if config.n_components == 0 {
            width
        } else {
            config.n_components
        };
        if wanted > width {
            return Err(DictionaryError::settings(format!(
                "{wanted} atoms of {width} numbers cannot be orthogonal; ask for at most {width}, \
                 or use another method"
            )));
        }
        if r != wanted || width == 0 {
            return Err(DictionaryError::settings(format!(
                "the start has {r} atoms of {width} numbers, not {wanted}"
            )));
        }
        if config.p < 2 {
            return Err(DictionaryError::settings(format!(
                "p is {}; it must be 2 or more",
                config.p
            )));
        }
        if config.batch_size == 0 {
            return Err(DictionaryError::settings(
                "batch_size is 0; it must be 1 or more",
            ));
        }
        if config.transform_n_nonzero_coefs > r {
            return Err(DictionaryError::settings(format!(
                "transform_n_nonzero_coefs is {}, but there are {r} atoms",
                config.transform_n_nonzero_coefs
            )));
        }
        Ok(Self {
            batches: Batches::new(config.batch_size),
            config,
            width,
            a: start.to_owned(),
            g: Mat::zeros(r, width),
            steps: 0,
            mean: vec![0.0; width],
            rows: 0,
        })
    }

    /// Goes on from what was saved.
    ///
    /// # Errors
    /// When the saved state is of another method or does not fit its settings.
    pub fn resume(saved: &Saved) -> Result<Self, DictionaryError> {
        let config: FrankWolfeConfig = saved.settings("frank-wolfe")?;
        let width = saved.dictionary.width;
        let mut this = Self::new(config, width)?;
        let r = this.a.nrows();
        let square = |name: &str| -> Result<Mat<f64>, DictionaryError> {
            let numbers = saved.f64s(name, r * width)?;
            Ok(Mat::from_fn(r, width, |i, j| numbers[i * width + j]))
        };
        (this.a, this.g) = (square("a")?, square("g")?);
        this.mean = saved.f64s("mean", width)?;
        this.batches.waiting = saved.waiting(width)?;
        (this.steps, this.rows) = (saved.steps(), saved.rows());
        Ok(this)
    }

    /// The settings.
    pub fn config(&self) -> &FrankWolfeConfig {
        &self.config
    }

    /// The atoms in full precision, orthonormal also where [`FrankWolfeConfig::retract_every`]
    /// leaves them otherwise.
    ///
    /// # Errors
    /// When the decomposition fails.
    pub fn atoms(&self) -> Result<Mat<f64>, DictionaryError> {
        linalg::polar_near(self.a.as_ref())
    }

    /// Learns from one batch of rows (`[b, n]`), already centred.
    ///
    /// # Errors
    /// When a decomposition fails.
    pub fn step(&mut self, batch: MatRef<'_, f64>) -> Result<(), DictionaryError> {
        let (rho, gamma) = self.config.schedule.steps(self.steps);
        let mut z = &self.a * batch.transpose();
        let power = self.config.p - 2;
        for j in 0..z.ncols() {
            for i in 0..z.nrows() {
                let x = z[(i, j)];
                z[(i, j)] = x.abs().powi(power) * x;
            }
        }
        let gradient = &z * batch;
        let scale = rho / batch.nrows() as f64;
        self.g = &self.g * faer::Scale(1.0 - rho) + &gradient * faer::Scale(scale);
        self.steps += 1;
        // Without any gradient yet (rows of zeros), no direction is better than another.
        if self.g.norm_l2() > 0.0 {
            let polar = linalg::polar(self.g.as_ref())?;
            self.a = &self.a * faer::Scale(1.0 - gamma) + &polar * faer::Scale(gamma);
            let every = self.config.retract_every;
            if every > 0 && self.steps.is_multiple_of(every) {
                self.a = linalg::polar_near(self.a.as_ref())?;
            }
        }
        Ok(())
    }

    /// Takes the rows into the mean, and learns from what they are about it.
    fn learn(&mut self, rows: &[f32]) -> Result<(), DictionaryError> {
        let n = rows.len() / self.width;
        let mut batch = linalg::matrix(rows, self.width);
        if self.config.center {
            self.rows += n as u64;
            for (j, mean) in self.mean.iter_mut().enumerate() {
                let sum: f64 = (0..n).map(|i| batch[(i, j)] - *mean).sum();
                *mean += sum / self.rows as f64;
                (0..n).for_each(|i| batch[(i, j)] -= *mean);
            }
        } else {
            self.rows += n as u64;
        }
        self.step(batch.as_ref())
    }
}

impl Learner for FrankWolfe {
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
        let k = match self.config.transform_n_nonzero_coefs {
            0 => (self.width / 8).clamp(1, self.a.nrows()),
            k => k,
        };
        Ok(Dictionary {
            components: linalg::numbers(self.atoms()?.as_ref()),
            width: self.width,
            mean: match self.config.center {
                true => self.mean.iter().map(|x| *x as f32).collect(),
                false => Vec::new(),
            },
            coder: Coder::TopK { k },
        })
    }

    fn state(&self) -> State {
        let flat = |m: &Mat<f64>| {
            let rows = 0..m.nrows();
            Numbers::F64(
                rows.flat_map(|i| (0..m.ncols()).map(move |j| m[(i, j)]))
                    .collect(),
            )
        };
        State::new("frank-wolfe", &self.config, self.steps, self.rows)
            .with("a", flat(&self.a))
            .with("g", flat(&self.g))
            .with("mean", Numbers::F64(self.mean.clone()))
            .with("waiting", Numbers::F32(self.batches.waiting.clone()))
    }

    fn steps(&self) -> u64 {
        self.steps
    }

    fn status(&self) -> String {
        format!("{} batches", self.steps)
    }
}

/// How far atoms `a` are from those that made the data, the columns of `d`: `|Σ (A D)⁴ / n - 1|`;
/// 0 exactly when they are the same but for signs and order.
pub fn recovery_error(a: MatRef<'_, f64>, d: MatRef<'_, f64>) -> f64 {
    let product = a * d;
    let mut sum = 0.0;
    for j in 0..product.ncols() {
        for i in 0..product.nrows() {
            sum += product[(i, j)].powi(4);
        }
    }
    (sum / d.nrows() as f64 - 1.0).abs()
}

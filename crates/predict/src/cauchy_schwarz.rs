//! Regression whose code keeps little of its input, and that outliers hardly move.
//!
//! Yu et al.: Cauchy-Schwarz Divergence Information Bottleneck for Regression (ICLR 2024).
//! An encoder gives each row a code `z`, a decoder tells the target from it, and both learn
//! from [kernel estimates](divergence) of two divergences on a batch:
//!
//! `loss = D_CS(p(y|x); q(ŷ|x)) + β · I_CS(x; z) / √(I_CS(x; x) · I_CS(z; z))`
//!
//! With standardised rows of ten columns or more the first term is nearly
//! `-2 log₂ mean exp(-(y - ŷ)²/2σ²)`, which a far outlier does not move: the gain over
//! squared errors is large where noise has heavy tails, and none on clean data.
//!
//! Network (the authors'): columns → hidden → hidden → code → code, then code → hidden → 1,
//! with ReLU. Cost per batch of `N`: four kernel matrices `N²`, one product `N² · code`.

pub mod divergence;
mod network;
#[cfg(test)]
mod tests;

use keyfold_core::Progress;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;

use crate::layers::{Layers, Optimiser, Pass};
use crate::metrics;
use crate::tensors::Tensors;
use crate::{PredictError, Table};
use divergence::Sigma;

/// What is made small.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// The paper's.
    #[default]
    Cs,
    /// Mean squared error.
    Mse,
    /// Squared error that goes on as absolute error from 1 on.
    Huber,
    /// What the released code makes of the first term, to check published runs: the sum of
    /// squared errors of a batch over ln 2. Its targets have one axis, for which its kernels
    /// become those of whole vectors.
    SseCompat,
}

/// How the target is scaled while learning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// Median 0, and the middle half as wide as in the normal distribution: a kernel of
    /// width 1 then fits, whatever the tails.
    #[default]
    Robust,
    /// Median 0.
    Centered,
    /// As it is.
    Plain,
}

/// Settings, named as in the authors' code.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CauchySchwarzConfig {
    /// What is made small.
    pub loss: Loss,
    /// Weight of the compression.
    pub beta: f64,
    /// Width of the kernels; none: ten times the median of squared distances in each batch.
    pub sigma: Option<f64>,
    /// Numbers of a code.
    pub code_dim: usize,
    /// Width of the hidden layers.
    pub hidden: usize,
    /// Passes over the rows.
    pub epochs: usize,
    /// Rows of a step, at least 8.
    pub batch: usize,
    /// Learning rate of Adam.
    pub lr: f64,
    /// The rate is multiplied by this ...
    pub lr_decay: f64,
    /// ... every so many passes.
    pub lr_step: usize,
    /// How the target is scaled while learning.
    pub target: Target,
    /// Seed of the start and of the order.
    pub seed: u64,
}

impl Default for CauchySchwarzConfig {
    fn default() -> Self {
        Self {
            loss: Loss::Cs,
            beta: 0.01,
            sigma: Some(1.0),
            code_dim: 128,
            hidden: 128,
            epochs: 200,
            batch: 128,
            lr: 1e-4,
            lr_decay: 0.6,
            lr_step: 10,
            target: Target::Robust,
            seed: 0,
        }
    }
}

/// The fewest rows that kernels say anything of.
const LEAST: usize = 8;

/// A fitted regression.
#[derive(Debug, Clone, PartialEq)]
pub struct CauchySchwarz {
    config: CauchySchwarzConfig,
    network: Layers,
    offset: f64,
    scale: f64,
    losses: Vec<f64>,
}

/// Where a model stands.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Standing {
    /// Root of the mean squared error.
    pub rmse: f64,
    /// Mean absolute error.
    pub mae: f64,
    /// Share of the variance explained.
    pub r_squared: f64,
    /// What the code keeps of the rows: normalised mutual information, mean of the batches.
    pub compression: f64,
    /// What the prediction tells of the target: `½ log₂(Var(y) / MSE)` bits.
    pub bits: f64,
}

impl CauchySchwarz {
    /// Learns numbers from rows (scaled by the caller).
    pub fn fit(
        x: &Table,
        y: &[f64],
        config: &CauchySchwarzConfig,
        progress: &dyn Progress,
    ) -> Result<Self, PredictError> {
        check(config)?;
        check_target(x, y)?;
        if x.rows() < LEAST {
            return Err(setting(
                "rows",
                format!("{} are too few; give {LEAST} or more", x.rows()),
            ));
        }
        let (offset, scale) = scale_of(y, config.target);
        let targets: Vec<f64> = y.iter().map(|y| (y - offset) / scale).collect();
        let mut rng = SmallRng::seed_from_u64(config.seed);
        let widths = (x.columns(), config.hidden, config.code_dim);
        let mut network = network::random(widths, &mut rng);
        let mut optimiser = Optimiser::new(&network);
        let mut order: Vec<usize> = (0..x.rows()).collect();
        let mut losses = Vec::with_capacity(config.epochs);
        for epoch in 0..config.epochs {
            order.shuffle(&mut rng);
            let drops = (epoch / config.lr_step.max(1)) as i32;
            let rate = config.lr * config.lr_decay.powi(drops);
            let mut sum = 0.0;
            for batch in batches(&order, config.batch) {
                if progress.cancelled() {
                    return Err(PredictError::Cancelled);
                }
                let rows = x.select(batch);
                let truth: Vec<f64> = batch.iter().map(|&i| targets[i]).collect();
                let pass = network.forward(&rows.to_f32());
                let (loss, told, code) = gradients(config, &rows, &truth, &pass)?;
                sum += loss * batch.len() as f64;
                let gradient =
                    network.backward(&pass, &told, code.as_deref().map(|d| (network::CODE, d)));
                optimiser.step(&mut network, &gradient, rate as f32);
            }
            let mean = sum / x.rows() as f64;
            if !mean.is_finite() {
                return Err(PredictError::Diverged {
                    what: "the loss",
                    hint: "take a smaller lr, or scale the columns (standard)",
                });
            }
            losses.push(metrics::short(mean));
            progress.status(&format!("loss {mean:.4}"));
            progress.advance(1);
        }
        Ok(Self {
            config: *config,
            network,
            offset,
            scale,
            losses,
        })
    }

    /// The settings.
    pub fn config(&self) -> &CauchySchwarzConfig {
        &self.config
    }

    /// Columns that rows must have.
    pub fn columns(&self) -> usize {
        self.network.columns()
    }

    /// Mean loss of each pass.
    pub fn losses(&self) -> &[f64] {
        &self.losses
    }

    /// A number for each row.
    pub fn predict(&self, x: &Table) -> Result<Vec<f64>, PredictError> {
        x.expect_columns(self.columns())?;
        let pass = self.network.forward(&x.to_f32());
        let told = pass.told().iter();
        Ok(told
            .map(|&t| f64::from(t) * self.scale + self.offset)
            .collect())
    }

    /// The codes of rows, `[rows, code_dim]`.
    pub fn transform(&self, x: &Table) -> Result<Vec<f64>, PredictError> {
        x.expect_columns(self.columns())?;
        let pass = self.network.forward(&x.to_f32());
        Ok(network::code(&pass).iter().map(|&z| f64::from(z)).collect())
    }

    /// Share of the variance that is explained.
    pub fn score(&self, x: &Table, y: &[f64]) -> Result<f64, PredictError> {
        Ok(self.standing(x, y)?.r_squared)
    }

    /// How good the model is on rows, and how much its code keeps of them.
    pub fn standing(&self, x: &Table, y: &[f64]) -> Result<Standing, PredictError> {
        let told = self.predict(x)?;
        check_target(x, y)?;
        let code = self.transform(x)?;
        let sigma = Sigma::from(self.config.sigma);
        let order: Vec<usize> = (0..x.rows()).collect();
        let (mut kept, mut count) = (0.0, 0.0);
        for batch in batches(&order, self.config.batch) {
            let rows = x.select(batch);
            let width = self.config.code_dim;
            let codes: Vec<f64> = (batch.iter())
                .flat_map(|&i| &code[i * width..(i + 1) * width])
                .copied()
                .collect();
            let codes = Table::new(width, codes)?;
            kept += divergence::cs_qmi_normalised(&rows, &codes, sigma)?;
            count += 1.0;
        }
        let rmse = metrics::rmse(&told, y);
        let mean = y.iter().sum::<f64>() / y.len() as f64;
        let variance = y.iter().map(|y| (y - mean).powi(2)).sum::<f64>() / y.len() as f64;
        Ok(Standing {
            rmse,
            mae: metrics::mae(&told, y),
            r_squared: metrics::r_squared(&told, y),
            compression: kept / count,
            bits: 0.5 * (variance / (rmse * rmse)).log2(),
        })
    }

    /// Rows moved by `eps` in each column so that the squared error grows (fast gradient
    /// sign method).
    pub fn attacked(&self, x: &Table, y: &[f64], eps: f64) -> Result<Table, PredictError> {
        self.attacked_in_steps(x, y, eps, eps, 1)
    }

    /// Rows moved in steps of `step`, at most `eps` from where they were (projected gradient
    /// descent).
    pub fn attacked_in_steps(
        &self,
        x: &Table,
        y: &[f64],
        eps: f64,
        step: f64,
        steps: usize,
    ) -> Result<Table, PredictError> {
        x.expect_columns(self.columns())?;
        check_target(x, y)?;
        let mut moved = x.numbers().to_vec();
        for _ in 0..steps {
            let rows: Vec<f32> = moved.iter().map(|&v| v as f32).collect();
            let pass = self.network.forward(&rows);
            let told: Vec<f32> = (pass.told().iter().zip(y))
                .map(|(t, y)| t - ((y - self.offset) / self.scale) as f32)
                .collect();
            let pulled = self.network.pull_to_rows(&pass, &told);
            for ((m, g), x) in moved.iter_mut().zip(&pulled).zip(x.numbers()) {
                let sign = if *g == 0.0 {
                    0.0
                } else {
                    f64::from(g.signum())
                };
                *m = (*m + step * sign).clamp(x - eps, x + eps);
            }
        }
        Table::new(x.columns(), moved)
    }

    pub(crate) fn save(&self, tensors: &mut Tensors) {
        network::save(&self.network, tensors);
        tensors.put("target", &[2], vec![self.offset, self.scale]);
        tensors.put("losses", &[self.losses.len()], self.losses.clone());
    }

    pub(crate) fn load(
        config: CauchySchwarzConfig,
        columns: usize,
        tensors: &mut Tensors,
    ) -> Result<Self, String> {
        check(&config).map_err(|e| e.to_string())?;
        let widths = (columns, config.hidden, config.code_dim);
        let epochs = tensors.shape("losses").map_or(0, |shape| shape[0]);
        let target: Vec<f64> = tensors.shaped("target", &[2])?;
        Ok(Self {
            network: network::load(widths, tensors)?,
            losses: tensors.shaped("losses", &[epochs])?,
            config,
            offset: target[0],
            scale: target[1],
        })
    }
}

/// Loss of a batch, and its gradient along what was told and along the codes.
#[allow(clippy::type_complexity)]
fn gradients(
    config: &CauchySchwarzConfig,
    rows: &Table,
    truth: &[f64],
    pass: &Pass,
) -> Result<(f64, Vec<f32>, Option<Vec<f32>>), PredictError> {
    let told: Vec<f64> = pass.told().iter().map(|&t| f64::from(t)).collect();
    let n = told.len() as f64;
    let apart = told.iter().zip(truth).map(|(t, y)| t - y);
    let (mut loss, gradient): (f64, Vec<f64>) = match config.loss {
        Loss::Cs => {
            if !told.iter().all(|t| t.is_finite()) {
                return Ok((f64::NAN, vec![0.0; told.len()], None));
            }
            let sigma = Sigma::from(config.sigma);
            divergence::cs_conditional_gradient(rows, truth, &told, sigma)?
        }
        Loss::Mse => (
            apart.clone().map(|d| d * d).sum::<f64>() / n,
            apart.map(|d| 2.0 * d / n).collect(),
        ),
        Loss::Huber => (
            apart
                .clone()
                .map(|d| match d.abs() {
                    far if far > 1.0 => far - 0.5,
                    near => 0.5 * near * near,
                })
                .sum::<f64>()
                / n,
            apart.map(|d| d.clamp(-1.0, 1.0) / n).collect(),
        ),
        Loss::SseCompat => {
            let by = 1.0 / std::f64::consts::LN_2;
            (
                by * apart.clone().map(|d| d * d).sum::<f64>(),
                apart.map(|d| 2.0 * by * d).collect(),
            )
        }
    };
    let single = |x: Vec<f64>| x.into_iter().map(|v| v as f32).collect();
    if config.beta == 0.0 {
        return Ok((loss, single(gradient), None));
    }
    let codes: Vec<f64> = network::code(pass).iter().map(|&z| f64::from(z)).collect();
    if !codes.iter().all(|z| z.is_finite()) {
        return Ok((f64::NAN, single(gradient), None));
    }
    let codes = Table::new(config.code_dim, codes)?;
    let sigma = Sigma::from(config.sigma);
    let (kept, pulled) = divergence::cs_qmi_normalised_gradient(rows, &codes, sigma)?;
    loss += config.beta * kept;
    let pulled = pulled.into_iter().map(|g| config.beta * g).collect();
    Ok((loss, single(gradient), Some(single(pulled))))
}

/// The order in batches; what is left over and too few goes with the last.
fn batches(order: &[usize], batch: usize) -> Vec<&[usize]> {
    let mut all = Vec::new();
    let mut rest = order;
    while !rest.is_empty() {
        let take = match rest.len() {
            n if n < batch + LEAST => n,
            _ => batch,
        };
        let (some, after) = rest.split_at(take);
        all.push(some);
        rest = after;
    }
    all
}

/// Offset and scale of the target.
fn scale_of(y: &[f64], target: Target) -> (f64, f64) {
    let median = |mut all: Vec<f64>| {
        all.sort_by(f64::total_cmp);
        let n = all.len();
        0.5 * (all[(n - 1) / 2] + all[n / 2])
    };
    if target == Target::Plain {
        return (0.0, 1.0);
    }
    let middle = median(y.to_vec());
    if target == Target::Centered {
        return (middle, 1.0);
    }
    let far = median(y.iter().map(|y| (y - middle).abs()).collect());
    let n = y.len() as f64;
    let mean = y.iter().sum::<f64>() / n;
    let deviation = (y.iter().map(|y| (y - mean).powi(2)).sum::<f64>() / n).sqrt();
    // More than half of the targets may be the same.
    match far > 1e-12 * deviation {
        true => (middle, 1.4826 * far),
        false => (middle, deviation),
    }
}

fn setting(setting: &'static str, what: String) -> PredictError {
    PredictError::Setting { setting, what }
}

fn check_target(x: &Table, y: &[f64]) -> Result<(), PredictError> {
    if y.len() != x.rows() {
        return Err(PredictError::LabelCount {
            labels: y.len(),
            rows: x.rows(),
        });
    }
    if let Some(row) = y.iter().position(|y| !y.is_finite()) {
        return Err(PredictError::NotFinite {
            row,
            column: x.columns(),
            value: y[row],
        });
    }
    match y.iter().all(|v| *v == y[0]) {
        true => Err(PredictError::ConstantTarget { value: y[0] }),
        false => Ok(()),
    }
}

fn check(config: &CauchySchwarzConfig) -> Result<(), PredictError> {
    if config.batch < LEAST {
        return Err(setting("batch", format!("must be {LEAST} or more")));
    }
    if config.sigma.is_some_and(|s| !s.is_finite() || s <= 0.0) {
        return Err(setting("sigma", "must be above 0".into()));
    }
    for (name, value) in [("hidden", config.hidden), ("code_dim", config.code_dim)] {
        if value == 0 {
            return Err(setting(name, "must be 1 or more".into()));
        }
    }
    for (name, value) in [
        ("beta", config.beta),
        ("lr", config.lr),
        ("lr_decay", config.lr_decay),
    ] {
        if !value.is_finite() || value < 0.0 {
            return Err(setting(name, "must be 0 or more".into()));
        }
    }
    Ok(())
}

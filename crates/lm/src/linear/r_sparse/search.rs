//! The search of every map's share between channels and rank, by evolution.
//!
//! ```text
//! one of a population: ρ of every linear map, sparsity the same for all
//! start    0.95 plus noise, cut to [0, 1]
//! fitness  mean of -ln p over a text, every token read sparsely
//! next     the best quarter stays; the others are crossed from two of them, gene by gene,
//!          and a tenth of their genes gets noise of deviation 0.1
//! ```
//!
//! The authors name an evolutionary search and publish what it found for one model, not its
//! code; the numbers above are ours. Cost: `population + 3/4 population * generations`
//! readings of the text.

use super::calibrate::{Calibration, Factors, column_norms, linears, svd};
use super::{Split, choose_channels};
use crate::linear::{DenseLinear, Linear};
use crate::model::LinearName;
use crate::perplexity::log_probabilities;
use crate::session::{Policy, Session};
use crate::store::CacheType;
use crate::{Decoder, LmError, ModelFile};
use keyfold_core::{NoProgress, Progress};
use keyfold_kernels::blocks::Activations;
use keyfold_kernels::{Team, add_assign, matmul_nn, matmul_nt};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, PoisonError, RwLock};

/// Settings of the search.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SearchConfig {
    /// Share of the weights that stay unread, in every map.
    pub sparsity: f64,
    /// Where all begin.
    pub rho: f64,
    /// How many are compared.
    pub population: usize,
    /// How often the worse are replaced.
    pub generations: usize,
    /// Deviation of noise at the beginning.
    pub start_noise: f64,
    /// Deviation of noise later.
    pub noise: f64,
    /// Share of genes that get it.
    pub mutated: f64,
    /// Seed of the noise.
    pub seed: u64,
}

impl Default for SearchConfig {
    fn default() -> Self {
        Self {
            sparsity: 0.5,
            rho: 0.95,
            population: 32,
            generations: 10,
            start_noise: 0.1,
            noise: 0.1,
            mutated: 0.1,
            seed: 0,
        }
    }
}

/// What a search found.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// Of every linear map, layer by layer.
    pub splits: Vec<Split>,
    /// Mean of `-ln p` of a token with them.
    pub loss: f64,
    /// The same with `rho` for all.
    pub uniform_loss: f64,
}

/// What may change of a map on trial.
#[derive(Debug, Clone, Copy, Default)]
struct Setting {
    threshold: f32,
    rank: usize,
    scaled: bool,
}

/// A map that multiplies as R-Sparse would, many rows at once, and whose split can be changed.
struct Trial {
    dense: DenseLinear,
    scales: Vec<f32>,
    /// At the greatest rank that any split may ask for.
    factors: Factors,
    setting: Arc<RwLock<Setting>>,
}

impl Linear for Trial {
    fn rows(&self) -> usize {
        self.dense.rows()
    }

    fn cols(&self) -> usize {
        self.dense.cols()
    }

    fn apply(&self, x: &mut Activations, out: &mut [f32], decoding: bool, team: &Team) {
        let setting = *self.setting.read().unwrap_or_else(PoisonError::into_inner);
        let (n, inputs, outputs) = (x.rows(), self.cols(), self.rows());
        let scales: &[f32] = if setting.scaled { &self.scales } else { &[] };
        let mut rest = vec![0.0; x.values().len()];
        let (mut channels, mut factors) = (Vec::new(), Vec::new());
        let mut kept = Activations::new();
        let to = kept.fill(n, inputs);
        to.fill(0.0);
        for ((x, rest), to) in x
            .values()
            .chunks_exact(inputs)
            .zip(rest.chunks_exact_mut(inputs))
            .zip(to.chunks_exact_mut(inputs))
        {
            channels.clear();
            factors.clear();
            choose_channels(
                x,
                scales,
                setting.threshold,
                &mut channels,
                &mut factors,
                rest,
            );
            for (&channel, &factor) in channels.iter().zip(&factors) {
                to[channel as usize] = factor;
            }
        }
        self.dense.apply(&mut kept, out, decoding, team);
        let rank = setting.rank;
        if rank > 0 {
            let (down, up) = (&self.factors.down, &self.factors.up);
            let (mut low, mut added) = (vec![0.0; n * rank], vec![0.0; n * outputs]);
            let threads = team.threads();
            matmul_nt(
                &mut low,
                &rest,
                &down[..rank * inputs],
                n,
                rank,
                inputs,
                threads,
            );
            matmul_nn(
                &mut added,
                &low,
                &up[..rank * outputs],
                n,
                outputs,
                rank,
                threads,
            );
            add_assign(out, &added);
        }
    }

    fn bytes_read(&self) -> u64 {
        self.dense.bytes_read()
    }
}

/// Layer, name, inputs and outputs of a linear map, and the setting that is tried.
type Tried = (usize, LinearName, [usize; 2], Arc<RwLock<Setting>>);

/// A model whose splits can be tried on a text.
pub struct Trials<'a> {
    decoder: Arc<Decoder>,
    calibration: &'a Calibration,
    maps: Vec<Tried>,
    /// Splits of less need more singular values than are kept.
    sparsity: f64,
    windows: Vec<&'a [u32]>,
    team: Arc<Team>,
}

impl<'a> Trials<'a> {
    /// Makes ready to try splits of that sparsity or more on `windows` of tokens.
    ///
    /// # Errors
    /// When the model cannot be loaded or has no singular values, or there is no text. A stop
    /// asked for through `progress` ends it.
    pub fn new(
        file: &ModelFile,
        calibration: &'a Calibration,
        sparsity: f64,
        windows: Vec<&'a [u32]>,
        team: &Arc<Team>,
        progress: &dyn Progress,
    ) -> Result<Self, LmError> {
        if !windows.iter().any(|w| w.len() > 1) {
            let what = "r-sparse: the search needs a text of some hundred tokens".into();
            return Err(LmError::Input { what });
        }
        let lowest = Split { rho: 0.0, sparsity };
        lowest.validate()?;
        let mut decoder = Decoder::load(file)?;
        let mut maps = Vec::new();
        let linears = linears(file)?;
        progress.start("singular values", "matrices", Some(linears.len() as u64));
        for (layer, name, dense) in linears {
            if progress.cancelled() {
                progress.finish();
                return Err(LmError::Stopped);
            }
            let (inputs, outputs) = (dense.cols(), dense.rows());
            let numbers = dense.weight().to_f32();
            let setting = Arc::new(RwLock::new(Setting::default()));
            let trial = Trial {
                scales: column_norms(&numbers, inputs),
                factors: svd(&numbers, inputs, lowest.rank(inputs, outputs))?,
                dense,
                setting: Arc::clone(&setting),
            };
            decoder.replace(layer, name, Box::new(trial))?;
            maps.push((layer, name, [inputs, outputs], setting));
            progress.advance(1);
        }
        progress.finish();
        Ok(Self {
            decoder: Arc::new(decoder),
            calibration,
            maps,
            sparsity,
            windows,
            team: Arc::clone(team),
        })
    }

    /// How many linear maps there are.
    pub fn maps(&self) -> usize {
        self.maps.len()
    }

    /// Mean of `-ln p` of the text's tokens, each read sparsely.
    ///
    /// # Errors
    /// When there is not one split for each map, one is no share or of less sparsity than was
    /// made ready for, or a session fails.
    pub fn loss(&self, splits: &[Split]) -> Result<f64, LmError> {
        if splits.len() != self.maps.len() {
            let what = format!(
                "r-sparse: {} splits for {} linear maps",
                splits.len(),
                self.maps.len()
            );
            return Err(LmError::Input { what });
        }
        for (split, (layer, name, [inputs, outputs], setting)) in splits.iter().zip(&self.maps) {
            split.validate()?;
            if split.sparsity < self.sparsity {
                let what = format!(
                    "r-sparse: a sparsity of {} is below the {} that this was made ready for",
                    split.sparsity, self.sparsity
                );
                return Err(LmError::Input { what });
            }
            let threshold = self.calibration.threshold(*layer, *name, split)?;
            *setting.write().unwrap_or_else(PoisonError::into_inner) = Setting {
                threshold: threshold.unwrap_or(f32::INFINITY),
                rank: split.rank(*inputs, *outputs),
                scaled: split.scaled(),
            };
        }
        let (mut sum, mut count) = (0.0, 0);
        for window in &self.windows {
            let policy = Policy::dense(&self.decoder, CacheType::F32, window.len())?;
            let mut session =
                Session::new(Arc::clone(&self.decoder), policy, Arc::clone(&self.team));
            let found = log_probabilities(&mut session, window, &NoProgress)?;
            sum -= found.iter().sum::<f64>();
            count += found.len();
        }
        Ok(sum / f64::from(count.max(1) as u32))
    }

    /// Looks for splits that lose less than the same one for all.
    ///
    /// # Errors
    /// When a setting is unfit or a reading fails; [`LmError::Stopped`] where `progress` asked
    /// to stop.
    pub fn search(&self, config: &SearchConfig, progress: &dyn Progress) -> Result<Found, LmError> {
        let of = |rho: f64| Split {
            rho,
            sparsity: config.sparsity,
        };
        of(config.rho).validate()?;
        if config.population < 4 {
            let what = format!(
                "r-sparse: a population of {} has no best quarter; take 4 or more",
                config.population
            );
            return Err(LmError::Input { what });
        }
        let best = config.population / 4;
        let readings = config.population + (config.population - best) * config.generations;
        progress.start("search", "readings", Some(readings as u64));
        let measure = |genes: &[f64]| -> Result<f64, LmError> {
            if progress.cancelled() {
                progress.finish();
                return Err(LmError::Stopped);
            }
            let splits: Vec<Split> = genes.iter().map(|&rho| of(rho)).collect();
            let loss = self.loss(&splits)?;
            progress.advance(1);
            Ok(loss)
        };
        let mut rng = StdRng::seed_from_u64(config.seed);
        let uniform = vec![config.rho; self.maps()];
        let uniform_loss = measure(&uniform)?;
        let mut population = vec![(uniform_loss, uniform.clone())];
        while population.len() < config.population {
            let noisy = |&rho: &f64| (rho + config.start_noise * normal(&mut rng)).clamp(0.0, 1.0);
            let genes: Vec<f64> = uniform.iter().map(noisy).collect();
            population.push((measure(&genes)?, genes));
        }
        for _ in 0..config.generations {
            population.sort_by(|a, b| a.0.total_cmp(&b.0));
            population.truncate(best);
            while population.len() < config.population {
                let (a, b) = (rng.random_range(0..best), rng.random_range(0..best));
                let genes = child(&population[a].1, &population[b].1, config, &mut rng);
                population.push((measure(&genes)?, genes));
            }
        }
        progress.finish();
        population.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (loss, genes) = population.swap_remove(0);
        Ok(Found {
            splits: genes.into_iter().map(of).collect(),
            loss,
            uniform_loss,
        })
    }
}

/// Each gene of one of two, some with noise.
fn child(a: &[f64], b: &[f64], config: &SearchConfig, rng: &mut StdRng) -> Vec<f64> {
    let genes = a.iter().zip(b).map(|(&a, &b)| {
        let gene = if rng.random() { a } else { b };
        match rng.random_bool(config.mutated.clamp(0.0, 1.0)) {
            true => (gene + config.noise * normal(rng)).clamp(0.0, 1.0),
            false => gene,
        }
    });
    genes.collect()
}

/// A normally distributed number.
fn normal(rng: &mut StdRng) -> f64 {
    keyfold_core::normal(|| rng.random())
}

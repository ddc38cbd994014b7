//! Training of bases and means, with ranks drawn anew at every step.
//!
//! ```text
//! X, μ of every layer and KV head are learned, all weights of the model are fixed
//! k' = (k - μ) U_r U_rᵀ + μ         U = Cayley(X), r drawn for every head, of keys and values
//! loss = 0.25 KL(p of the model | p with k', v') + 0.75 (-log p(next token) with k', v')
//! ```
//!
//! Scores of `k'` are those of the rows that the store keeps, so that what is trained is what
//! is read. A step costs two forward passes and a backward one.

use std::path::{Path, PathBuf};

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor, TensorData, activation};
use keyfold_core::Progress;
use keyfold_nn::checkpoint::numbers;
use keyfold_nn::{AttentionHook, Llama, NoHook, ops, random};
use keyfold_train::gradient::{GradientLearner, Loss, OptimConfig, Task};
use keyfold_train::{
    Decay, LearnError, Line, Report, RunConfig, Settings, TrainError, Validation, run,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Around, Bases, HeadBasis, Ranks, from_cayley, save, to_cayley};
use crate::trainable::{device, load};
use crate::{Decoder, LmError, ModelFile};

/// Settings of the training; the defaults are the paper's but for `windows`, of which a step
/// there has 16 (here by `optim.accumulation`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainingConfig {
    /// Tokens of a window.
    pub length: usize,
    /// Windows of a micro-batch.
    pub windows: usize,
    /// Ranks are drawn from its multiples; an eighth of a head's dimensions where it is 0.
    pub interval: usize,
    /// Around what the principal components are sought that the training starts from.
    pub around: Around,
    /// Weight of the divergence from the model with all dimensions.
    pub distillation: f64,
    /// Weight of the cross-entropy of the next token.
    pub cross_entropy: f64,
    /// Share of the text that bases never learn from, at its end.
    pub held_out: f64,
    /// Learning rates, steps, clipping.
    pub optim: OptimConfig,
    /// Seed of windows and ranks.
    pub seed: u64,
    /// How the run is kept and watched.
    pub run: RunConfig,
}

impl Default for TrainingConfig {
    fn default() -> Self {
        Self {
            length: 2048,
            windows: 1,
            interval: 0,
            around: Around::Mean,
            distillation: 0.25,
            cross_entropy: 0.75,
            held_out: 0.05,
            optim: OptimConfig {
                learning_rate: 1e-3,
                weight_decay: 0.0,
                warmup_steps: 100,
                decay: Decay::Cosine,
                max_grad_norm: 1.0,
                accumulation: 16,
                ..OptimConfig::default()
            },
            seed: 0,
            run: RunConfig::default(),
        }
    }
}

/// What is learned: of each layer `X` `[kv_heads · d, d]` and μ `[kv_heads, d]`, of keys and
/// of values.
#[derive(Module, Debug)]
struct Rotations {
    keys: Vec<Param<Tensor<2>>>,
    values: Vec<Param<Tensor<2>>>,
    key_means: Vec<Param<Tensor<2>>>,
    value_means: Vec<Param<Tensor<2>>>,
}

impl Rotations {
    fn new(bases: &Bases, layers: usize, kv_heads: usize) -> Result<Self, LmError> {
        let device = device();
        let parameter = |numbers: Vec<f32>, shape: [usize; 2]| {
            let data = TensorData::new(numbers, shape);
            Param::from_tensor(Tensor::<2>::from_data(data, &device))
        };
        let of = |bases: &[HeadBasis]| -> Result<[Vec<Param<Tensor<2>>>; 2], LmError> {
            let (mut all, mut means) = (Vec::new(), Vec::new());
            for own in bases.chunks_exact(kv_heads).take(layers) {
                let d = own[0].mean.len();
                let free: Result<Vec<_>, _> = own.iter().map(to_cayley).collect();
                all.push(parameter(free?.concat(), [kv_heads * d, d]));
                let mean = own.iter().flat_map(|b| b.mean.iter().copied()).collect();
                means.push(parameter(mean, [kv_heads, d]));
            }
            Ok([all, means])
        };
        let [keys, key_means] = of(&bases.keys)?;
        let [values, value_means] = of(&bases.values)?;
        Ok(Self {
            keys,
            values,
            key_means,
            value_means,
        })
    }

    fn bases(&self) -> Result<Bases, LmError> {
        let of = |all: &[Param<Tensor<2>>], means: &[Param<Tensor<2>>]| {
            let mut bases = Vec::new();
            for (x, mean) in all.iter().zip(means) {
                let (x, mean) = (numbers(&x.val()), numbers(&mean.val()));
                let d = x.len() / mean.len().max(1);
                for (x, mean) in x.chunks_exact(d * d).zip(mean.chunks_exact(d)) {
                    bases.push(from_cayley(mean.to_vec(), x)?);
                }
            }
            Ok::<_, LmError>(bases)
        };
        Ok(Bases {
            keys: of(&self.keys, &self.key_means)?,
            values: of(&self.values, &self.value_means)?,
        })
    }
}

/// Puts projected keys and values in the place of whole ones.
struct Projected<'a> {
    rotations: &'a Rotations,
    ranks: &'a Ranks,
}

/// `(x - μ) U_r U_rᵀ + μ` of every head.
fn projected(x: Tensor<2>, free: Tensor<2>, means: Tensor<2>, ranks: &[usize]) -> Tensor<2> {
    let d = free.dims()[1];
    let all = ops::cayley(free);
    let heads = ranks.iter().enumerate().map(|(head, &rank)| {
        let u = all.clone().narrow(0, head * d, d).narrow(1, 0, rank);
        let mean = means.clone().narrow(0, head, 1);
        let own = x.clone().narrow(1, head * d, d) - mean.clone();
        own.matmul(u.clone()).matmul(u.transpose()) + mean
    });
    Tensor::cat(heads.collect(), 1)
}

impl AttentionHook for Projected<'_> {
    fn attention_inputs(&mut self, layer: usize, [q, k, v]: [Tensor<2>; 3]) -> [Tensor<2>; 3] {
        let r = self.rotations;
        let (keys, values) = (&r.keys[layer], &r.values[layer]);
        let heads = r.key_means[layer].dims()[0];
        let own = layer * heads..(layer + 1) * heads;
        [
            q,
            projected(
                k,
                keys.val(),
                r.key_means[layer].val(),
                &self.ranks.keys[own.clone()],
            ),
            projected(
                v,
                values.val(),
                r.value_means[layer].val(),
                &self.ranks.values[own],
            ),
        ]
    }
}

/// Windows, and the ranks to read them at.
struct Batch {
    base: Llama,
    weights: [f64; 2],
    tokens: Vec<u32>,
    starts: Vec<usize>,
    ranks: Ranks,
}

struct Matryoshka<'a> {
    config: &'a TrainingConfig,
    base: Llama,
    tokens: &'a [u32],
    held_out: &'a [u32],
    interval: usize,
    heads: usize,
    dim: usize,
}

impl Matryoshka<'_> {
    fn batch_of(&self, windows: &[&[u32]], ranks: Ranks) -> Batch {
        let mut starts = vec![0];
        for window in windows {
            starts.push(starts[starts.len() - 1] + window.len());
        }
        Batch {
            base: self.base.clone(),
            weights: [self.config.distillation, self.config.cross_entropy],
            tokens: windows.concat(),
            starts,
            ranks,
        }
    }
}

/// The logits with whole keys and values and with projected ones, and of the rows that have a
/// next token the places and targets.
fn divergence_and_loss(model: &Rotations, batch: &Batch) -> [Tensor<1>; 2] {
    let (tokens, starts) = (&batch.tokens, &batch.starts);
    let base = &batch.base;
    let teacher = base.states(tokens, starts, &mut NoHook);
    let teacher = activation::log_softmax(base.logits(teacher).detach(), 1);
    let mut hook = Projected {
        rotations: model,
        ranks: &batch.ranks,
    };
    let student = base.states(tokens, starts, &mut hook);
    let student = activation::log_softmax(base.logits(student), 1);
    let rows = tokens.len() as f64;
    let kl = (teacher.clone().exp() * (teacher - student.clone())).sum() / rows;
    let (places, targets): (Vec<u32>, Vec<i64>) = starts
        .windows(2)
        .flat_map(|t| t[0]..t[1].saturating_sub(1).max(t[0]))
        .map(|row| (row as u32, i64::from(tokens[row + 1])))
        .unzip();
    let count = targets.len();
    let device = student.device();
    let targets = Tensor::<2, Int>::from_data(TensorData::new(targets, [count, 1]), &device);
    let found = ops::rows(student, &places).gather(1, targets);
    [kl, found.mean().neg()]
}

impl Task for Matryoshka<'_> {
    type Model = Rotations;
    type Batch = Batch;

    fn batches_per_epoch(&self) -> u64 {
        (self.tokens.len() / (self.config.length * self.config.windows)).max(1) as u64
    }

    fn batch(&mut self, number: u64) -> Result<Batch, LearnError> {
        let seed = random::derive(self.config.seed, 1 + number);
        let room = (self.tokens.len() - self.config.length + 1) as f64;
        let windows: Vec<&[u32]> = (0..self.config.windows as u64)
            .map(|w| (random::unit(seed, w) * room) as usize)
            .map(|from| &self.tokens[from..from + self.config.length])
            .collect();
        let steps = self.dim.div_ceil(self.interval);
        let seed = random::derive(seed, 1);
        let rank = |i: usize| {
            let step = 1 + (random::unit(seed, i as u64) * steps as f64) as usize;
            (step * self.interval).min(self.dim)
        };
        let ranks = Ranks {
            keys: (0..self.heads).map(rank).collect(),
            values: (self.heads..2 * self.heads).map(rank).collect(),
        };
        Ok(self.batch_of(&windows, ranks))
    }

    fn items(batch: &Batch) -> u64 {
        batch.tokens.len() as u64
    }

    fn loss(model: &Rotations, batch: Batch) -> Loss {
        let [divergence, loss] = divergence_and_loss(model, &batch);
        let [kl, ce] = batch.weights;
        let parts = vec![("divergence", kl, divergence), ("cross_entropy", ce, loss)];
        match Loss::mix(parts) {
            Some(loss) => loss,
            None => unreachable!("two parts"),
        }
    }

    /// With half of the dimensions of every head.
    fn validate(&mut self, model: &Rotations) -> Result<Option<Validation>, LearnError> {
        let half = vec![(self.dim / 2).max(1); self.heads];
        let ranks = Ranks {
            keys: half.clone(),
            values: half,
        };
        let (mut divergence, mut loss, mut count) = (0.0, 0.0, 0);
        for window in self.held_out.chunks_exact(self.config.length).take(4) {
            let batch = self.batch_of(&[window], ranks.clone());
            let [kl, ce] = divergence_and_loss(model, &batch);
            divergence += f64::from(kl.into_scalar::<f32>());
            loss += f64::from(ce.into_scalar::<f32>());
            count += 1;
        }
        let n = f64::from(count);
        Ok((count > 0).then(|| Validation {
            loss: loss / n,
            measures: vec![("divergence", divergence / n)],
        }))
    }
}

/// Where a run stands among its folders and watchers.
pub struct Watched<'a> {
    /// Folder of the run; the bases come to lie in it.
    pub out: &'a Path,
    /// Go on with the run that is there.
    pub resume: bool,
    /// Told how far it is.
    pub progress: &'a dyn Progress,
    /// Sees every line of measurements.
    pub watch: &'a mut dyn FnMut(&Line),
}

/// Trains `start` (of [`Moments`](super::Moments)) on `tokens` in the run's folder, and leaves
/// `bases.safetensors` there, with all dimensions; [`search_ranks`](super::search_ranks) gives ranks.
///
/// # Errors
/// When the settings make no sense, the text is too short, the model is not of Llama's kind, or the
/// run fails.
pub fn train(
    file: &ModelFile,
    tokens: &[u32],
    start: &Bases,
    config: &TrainingConfig,
    place: Watched<'_>,
) -> Result<(Report, PathBuf), TrainError> {
    let failed = |e: LmError| TrainError::from(LearnError::Data(e.to_string()));
    let dims = file.config().dims;
    if config.length < 2 || config.windows == 0 || !(0.0..1.0).contains(&config.held_out) {
        return Err(TrainError::Config(
            "length must be 2 or more, windows 1 or more, held_out from 0 to below 1".into(),
        ));
    }
    if !(config.distillation >= 0.0 && config.cross_entropy >= 0.0) {
        return Err(TrainError::Config(
            "distillation and cross_entropy are weights of 0 or more".into(),
        ));
    }
    let cut = (tokens.len() as f64 * (1.0 - config.held_out)) as usize;
    if cut < config.length {
        return Err(failed(LmError::Input {
            what: format!(
                "the text has {cut} tokens to learn from, a window {}; more text or a smaller length help",
                config.length
            ),
        }));
    }
    start.check(&dims).map_err(failed)?;
    let base = load(file, config.length, &device())
        .map_err(failed)?
        .no_grad();
    let model = Rotations::new(start, dims.layers, dims.kv_heads).map_err(failed)?;
    let task = Matryoshka {
        config,
        base,
        tokens: &tokens[..cut],
        held_out: &tokens[cut..],
        interval: match config.interval {
            0 => (dims.head_dim / 8).max(1),
            n => n.min(dims.head_dim),
        },
        heads: dims.layers * dims.kv_heads,
        dim: dims.head_dim,
    };
    let mut learner = GradientLearner::new(task, model, &config.optim, &device(), "tokens")?;
    let decoder = Decoder::load(file).map_err(failed)?;
    let mut settings = serde_json::to_value(config)
        .map_err(|e| TrainError::Config(format!("the settings cannot be written: {e}")))?;
    if let Some(fields) = settings.as_object_mut() {
        fields.remove("run");
    }
    let text: Vec<u8> = tokens.iter().flat_map(|t| t.to_le_bytes()).collect();
    settings["data"] = json!({"tokens": tokens.len(), "crc32": crc32fast::hash(&text)});
    settings["model"] = json!(format!("{:016x}", decoder.fingerprint()));
    let settings = Settings {
        slug: "matryoshka-kv".into(),
        config: settings,
        run: config.run.clone(),
        resume: place.resume,
    };
    let report = run(
        &mut learner,
        &settings,
        place.out,
        place.progress,
        place.watch,
    )?;
    let path = place.out.join("bases.safetensors");
    // Of a run that was stopped too: they can be used until it goes on.
    let bases = learner.model().bases().map_err(failed)?;
    let all = Ranks::all(&dims, dims.head_dim);
    save(&path, &decoder, &bases, &all).map_err(failed)?;
    Ok((report, path))
}

#[cfg(test)]
mod tests {
    use super::super::{load as load_bases, principal};
    use super::*;
    use keyfold_core::NoProgress;
    use keyfold_kernels::Team;
    use std::sync::Arc;

    #[test]
    fn trained_bases_read_better_at_every_rank_and_stay_orthogonal() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/llama");
        let file = ModelFile::open(Path::new(folder)).unwrap();
        let decoder = Arc::new(Decoder::load(&file).unwrap());
        let dims = decoder.config().dims;
        let tokens: Vec<u32> = (0..600u32)
            .map(|i| (i % 37 * 5 + i % 11) % dims.vocab as u32)
            .collect();
        let team = Arc::new(Team::new(2));
        let start = principal(
            &decoder,
            &[&tokens[..100]],
            Around::Mean,
            &team,
            &NoProgress,
        )
        .unwrap();
        let config = TrainingConfig {
            length: 32,
            windows: 2,
            held_out: 0.1,
            optim: OptimConfig {
                learning_rate: 1e-2,
                max_steps: 150,
                warmup_steps: 5,
                accumulation: 1,
                ..TrainingConfig::default().optim
            },
            run: RunConfig {
                checkpoint_every: 0,
                validate_every: 0,
                ..RunConfig::default()
            },
            ..TrainingConfig::default()
        };
        let scratch = tempfile::tempdir().unwrap();
        let place = Watched {
            out: scratch.path(),
            resume: false,
            progress: &NoProgress,
            watch: &mut |_| {},
        };
        let (report, path) = train(&file, &tokens, &start, &config, place).unwrap();
        assert_eq!(report.steps, 150);
        let (trained, ranks) = load_bases(&path, &decoder).unwrap();
        assert_eq!(ranks, Ranks::all(&dims, dims.head_dim));
        let base = load(&file, 64, &device()).unwrap().no_grad();
        let divergence = |bases: &Bases, rank: usize| {
            let model = Rotations::new(bases, dims.layers, dims.kv_heads).unwrap();
            let batch = Batch {
                base: base.clone(),
                weights: [0.25, 0.75],
                tokens: tokens[..64].to_vec(),
                starts: vec![0, 64],
                ranks: Ranks::all(&dims, rank),
            };
            divergence_and_loss(&model, &batch)[0]
                .clone()
                .into_scalar::<f32>()
        };
        // Nothing is lost with all dimensions, whatever the bases; less than before with fewer.
        assert!(divergence(&start, dims.head_dim).abs() < 1e-4);
        assert!(divergence(&trained, dims.head_dim).abs() < 1e-4);
        let fewer = |bases: &Bases| -> f32 {
            let eighth = dims.head_dim / 8;
            (1..8).map(|i| divergence(bases, i * eighth)).sum()
        };
        let (before, after) = (fewer(&start), fewer(&trained));
        assert!(after < 0.98 * before, "{before} {after}");
        let short = train(
            &file,
            &tokens[..20],
            &start,
            &config,
            Watched {
                out: scratch.path(),
                resume: false,
                progress: &NoProgress,
                watch: &mut |_| {},
            },
        );
        assert!(short.is_err());
    }
}

//! Small decoders of bytes, trained from scratch with weights of attention that layers share.

use std::marker::PhantomData;

use burn::tensor::Device;
use keyfold_compress::masa::Types;
use keyfold_compress::masa::train::{SharedLlama, Sharing};
use keyfold_core::Progress;
use keyfold_nn::{Llama, NoHook, random};
use keyfold_train::gradient::{GradientLearner, Loss, OptimConfig, Task};
use keyfold_train::{Decay, LearnError, Learner};
use serde_json::{Value, json};

use super::{Data, Sizes, config, mean};
use crate::report::Table;
use crate::{BenchError, BenchOptions};

/// A decoder of either kind that learns.
trait Decodes: burn::module::Module + burn::module::ModuleDisplay + 'static {
    fn whole(&self) -> Llama;
}

impl Decodes for Llama {
    fn whole(&self) -> Llama {
        self.clone()
    }
}

impl Decodes for SharedLlama {
    fn whole(&self) -> Llama {
        self.dense()
    }
}

struct Bytes<'a, M> {
    text: &'a [u8],
    sizes: &'a Sizes,
    seed: u64,
    model: PhantomData<M>,
}

impl<M: Decodes> Task for Bytes<'_, M> {
    type Model = M;
    type Batch = (Vec<u32>, Vec<usize>);

    fn batches_per_epoch(&self) -> u64 {
        (self.text.len() / (self.sizes.length * self.sizes.windows)).max(1) as u64
    }

    fn batch(&mut self, number: u64) -> Result<Self::Batch, LearnError> {
        let length = self.sizes.length + 1;
        let seed = random::derive(self.seed, number);
        let (mut tokens, mut starts) = (Vec::new(), vec![0]);
        for window in 0..self.sizes.windows as u64 {
            let room = (self.text.len() - length) as f64;
            let from = (random::unit(seed, window) * room) as usize;
            tokens.extend(self.text[from..from + length].iter().map(|b| u32::from(*b)));
            starts.push(tokens.len());
        }
        Ok((tokens, starts))
    }

    fn items(batch: &Self::Batch) -> u64 {
        batch.0.len() as u64
    }

    fn loss(model: &M, (tokens, starts): Self::Batch) -> Loss {
        model.whole().loss(&tokens, &starts, &mut NoHook).into()
    }
}

/// Trains a decoder; it and bits per byte of the text that is held out.
fn train<M: Decodes>(
    model: M,
    sizes: &Sizes,
    data: &Data,
    seed: u64,
    progress: &dyn Progress,
) -> Result<(Llama, f64), BenchError> {
    let task = Bytes {
        text: data.learned,
        sizes,
        seed,
        model: PhantomData,
    };
    let optim = OptimConfig {
        learning_rate: 3e-3,
        weight_decay: 0.1,
        beta2: 0.95,
        max_steps: sizes.steps,
        warmup_steps: sizes.steps / 10,
        decay: Decay::Cosine,
        ..OptimConfig::default()
    };
    let device = Device::flex().autodiff();
    let wrong = |e: LearnError| BenchError::data("masa", e.to_string());
    let mut learner = GradientLearner::new(task, model, &optim, &device, "bytes").map_err(wrong)?;
    for number in 1..=sizes.steps {
        if progress.cancelled() {
            return Err(BenchError::Cancelled);
        }
        learner.step(number).map_err(wrong)?;
    }
    let model = learner.model().valid().whole();
    let windows = data.held.chunks_exact(sizes.length + 1).take(200);
    let bits = windows.map(|window| {
        let tokens: Vec<u32> = window.iter().map(|b| u32::from(*b)).collect();
        let loss = model.loss(&tokens, &[0, tokens.len()], &mut NoHook);
        f64::from(loss.into_scalar::<f32>()) / std::f64::consts::LN_2
    });
    let bits: Vec<f64> = bits.collect();
    Ok((model, mean(&bits)))
}

fn spread(numbers: &[f64]) -> f64 {
    let middle = mean(numbers);
    let squares: Vec<f64> = numbers.iter().map(|x| (x - middle).powi(2)).collect();
    mean(&squares).sqrt()
}

/// Names and heights.
pub(super) type Bars = Vec<(String, f64)>;

pub(super) fn run(
    options: &BenchOptions,
    sizes: &Sizes,
    data: &Data,
    progress: &dyn Progress,
    tables: &mut Vec<Table>,
    findings: &mut Vec<String>,
) -> Result<(Value, Bars, Llama), BenchError> {
    let config = config(sizes);
    let device = Device::flex().autodiff();
    let wrong = |e: String| BenchError::data("masa", e);
    let square = sizes.hidden * sizes.hidden;
    let ways: [(&str, Option<(Types, Sharing)>); 6] = [
        ("dense", None),
        ("MASA-QKV, 2 atoms", Some((Types::Qkv, Sharing::Atoms(2)))),
        ("MASA-QKVO, 2 atoms", Some((Types::Qkvo, Sharing::Atoms(2)))),
        (
            "low rank, QKVO",
            Some((Types::Qkvo, Sharing::LowRank(sizes.hidden / 6))),
        ),
        (
            "layers in threes, QKVO",
            Some((Types::Qkvo, Sharing::Sequential(2))),
        ),
        (
            "one for all layers, QKVO",
            Some((Types::Qkvo, Sharing::Sequential(1))),
        ),
    ];
    let mut table = Table::new(
        &format!(
            "6 layers of {} numbers trained on {} bytes for {} steps of {} x {} bytes, {} seeds",
            sizes.hidden,
            data.learned.len(),
            sizes.steps,
            sizes.windows,
            sizes.length,
            sizes.seeds
        ),
        &[
            "way",
            "weights of attention",
            "bits per byte",
            "spread",
            "paper, perplexity (S)",
        ],
    );
    progress.start("training", "models", Some(ways.len() as u64 * sizes.seeds));
    let (mut values, mut bars, mut first) = (Vec::new(), Vec::new(), None);
    let mut found = Vec::new();
    for (name, way) in ways {
        let (mut bits, mut weights) = (Vec::new(), 24 * square);
        for seed in 0..sizes.seeds {
            let seed = options.seed + seed;
            let (model, of_seed) = match way {
                None => {
                    let model = Llama::init(&config, seed, &device);
                    train(
                        model.map_err(|e| wrong(e.to_string()))?,
                        sizes,
                        data,
                        seed,
                        progress,
                    )?
                }
                Some((types, sharing)) => {
                    let model = SharedLlama::init(&config, types, sharing, seed, &device);
                    let model = model.map_err(|e| wrong(e.to_string()))?;
                    let left = if types == Types::Qkv { 6 * square } else { 0 };
                    weights = model.shared_weights() + left;
                    train(model, sizes, data, seed, progress)?
                }
            };
            bits.push(of_seed);
            if way.is_none() && first.is_none() {
                first = Some(model);
            }
            progress.advance(1);
        }
        let paper = match name {
            "dense" => "76.11",
            "MASA-QKV, 2 atoms" => "72.08",
            "MASA-QKVO, 2 atoms" => "72.82",
            "low rank, QKVO" => "83.25",
            "layers in threes, QKVO" => "80.35",
            _ => "78.97",
        };
        table.row([
            name.to_owned(),
            weights.to_string(),
            format!("{:.4}", mean(&bits)),
            format!("{:.4}", spread(&bits)),
            paper.to_owned(),
        ]);
        values.push(json!({"way": name, "weights": weights, "bits_per_byte": bits}));
        bars.push((name.to_owned(), mean(&bits)));
        found.push(mean(&bits));
    }
    progress.finish();
    tables.push(table);
    let [dense, qkv, qkvo, low, threes, ..] = found[..] else {
        return Err(wrong("a way is missing".into()));
    };
    findings.push(format!(
        "Trained from scratch, MASA-QKVO with a third of the attention's weights is {:+.2} % of dense in bits per \
         byte, MASA-QKV {:+.2} %, low rank {:+.2} %, layers in threes {:+.2} %; the paper has MASA below dense \
         (72.1 and 72.8 against 76.1) and the others above.",
        100.0 * (qkvo / dense - 1.0),
        100.0 * (qkv / dense - 1.0),
        100.0 * (low / dense - 1.0),
        100.0 * (threes / dense - 1.0),
    ));
    let first = first.ok_or_else(|| wrong("there is no dense model".into()))?;
    Ok((json!(values), bars, first))
}

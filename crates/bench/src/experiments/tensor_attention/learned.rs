//! Match3, learned: a layer that attends to pairs beside one of ordinary attention.
//!
//! C. Sanford, D. Hsu and M. Telgarsky, 2023. Each of a few numbers is a place on a circle of
//! `M`; wanted is whether two of them (or one twice, or it itself) make a sum of 0 with it, modulo
//! `M`. Both models have a row that stands for no number, the layer, and a network of two maps behind it,
//! made wider where attention has fewer maps. Numbers are so few that about half of them match.

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, TensorData};
use keyfold_core::Progress;
use keyfold_nn::mixers::{TensorAttention, TensorAttentionConfig};
use keyfold_nn::ops::{self, Heads};
use keyfold_nn::{AdamW, Linear, random};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::report::{Table, reached};
use crate::{BenchError, BenchOptions, Scale};

/// `M`.
const MODULUS: usize = 37;

/// Numbers of a set.
const NUMBERS: usize = 8;

/// Heads, and numbers of each.
const HEADS: usize = 4;
const HEADDIM: usize = 8;

/// Numbers of a position.
const WIDTH: usize = 32;

/// Sets of a step, and of the measurement.
const BATCH: usize = 64;
const TESTS: usize = 1_000;

/// A share of this is near 1.
const AIM: f64 = 0.95;

fn failed(e: impl std::fmt::Display) -> BenchError {
    BenchError::data("tensor-attention", e.to_string())
}

/// A model of one layer.
#[derive(Module, Debug)]
struct Model {
    input: Linear,
    mixer: Mixer,
    up: Linear,
    down: Linear,
}

#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)]
enum Mixer {
    Pairs(TensorAttention),
    Ordinary(Ordinary),
}

/// Ordinary attention.
#[derive(Module, Debug)]
struct Ordinary {
    qkv: Linear,
    out: Linear,
}

impl Model {
    fn new(pairs: bool, seed: u64, device: &Device) -> Result<Self, BenchError> {
        let inner = HEADS * HEADDIM;
        // As PyTorch begins its maps, roughly.
        let linear = |inputs: usize, outputs: usize, part: u64| {
            let deviation = (3.0 * inputs as f32).sqrt().recip();
            let seed = random::derive(seed, part);
            Linear::init(inputs, outputs, true, deviation, seed, device)
        };
        let mut hidden = 4 * WIDTH;
        let mixer = if pairs {
            let config = TensorAttentionConfig {
                d_model: WIDTH,
                heads: HEADS,
                headdim: HEADDIM,
                scale: 1.0,
                ..TensorAttentionConfig::default()
            };
            let deviation = (3.0 * WIDTH as f32).sqrt().recip();
            let seed = random::derive(seed, 9);
            let layer = TensorAttention::init(&config, deviation, seed, device);
            Mixer::Pairs(layer.map_err(failed)?)
        } else {
            // What two maps fewer leave.
            hidden += 2 * inner * (WIDTH + 1) / (WIDTH + 2);
            Mixer::Ordinary(Ordinary {
                qkv: linear(WIDTH, 3 * inner, 7),
                out: linear(inner, WIDTH, 8),
            })
        };
        Ok(Self {
            input: linear(3, WIDTH, 1),
            mixer,
            up: linear(WIDTH, hidden, 2),
            down: linear(hidden, 1, 3),
        })
    }

    /// How likely each row has a match, before the sigmoid: `[rows, 1]`.
    fn forward(&self, rows: Tensor<2>, starts: &[usize]) -> Result<Tensor<2>, BenchError> {
        let u = self.input.forward(rows);
        let mixed = match &self.mixer {
            Mixer::Pairs(layer) => layer.forward(u.clone(), starts).map_err(failed)?,
            Mixer::Ordinary(layer) => {
                let heads = Heads {
                    count: HEADS,
                    size: HEADDIM,
                    dropout: None,
                };
                let qkv = layer.qkv.forward(u.clone());
                layer.out.forward(ops::attention(qkv, starts, heads))
            }
        };
        Ok(self.down.forward(self.up.forward_gelu(u + mixed)))
    }
}

/// Sets of numbers: rows of the model, where each set begins, rows of the numbers, and whether
/// each has a match.
struct Sets {
    rows: Tensor<2>,
    starts: Vec<usize>,
    places: Vec<u32>,
    matches: Vec<f32>,
}

fn draw(count: usize, rng: &mut StdRng, device: &Device) -> Sets {
    let (mut rows, mut places, mut matches) = (Vec::new(), Vec::new(), Vec::new());
    for set in 0..count {
        let numbers: Vec<usize> = (0..NUMBERS).map(|_| rng.random_range(0..MODULUS)).collect();
        // The row of no number.
        rows.extend([0.0, 0.0, 1.0]);
        for (i, x) in numbers.iter().enumerate() {
            let angle = std::f32::consts::TAU * *x as f32 / MODULUS as f32;
            rows.extend([angle.cos(), angle.sin(), 0.0]);
            places.push((set * (NUMBERS + 1) + 1 + i) as u32);
            let mut sums = numbers
                .iter()
                .flat_map(|j| numbers.iter().map(move |k| x + j + k));
            let found = sums.any(|sum| sum.is_multiple_of(MODULUS));
            matches.push(f32::from(u8::from(found)));
        }
    }
    let count_rows = count * (NUMBERS + 1);
    Sets {
        rows: Tensor::from_data(TensorData::new(rows, [count_rows, 3]), device),
        starts: (0..=count).map(|set| set * (NUMBERS + 1)).collect(),
        places,
        matches,
    }
}

/// The share of numbers that are told right, and the share of the more frequent answer.
fn measured(model: &Model, sets: &Sets) -> Result<[f64; 2], BenchError> {
    let found = model.forward(sets.rows.clone(), &sets.starts)?;
    let found = keyfold_nn::checkpoint::numbers(&ops::rows(found, &sets.places));
    let right = found.iter().zip(&sets.matches);
    let right = right.filter(|(z, y)| (**z > 0.0) == (**y > 0.5)).count();
    let yes = sets.matches.iter().filter(|y| **y > 0.5).count() as f64;
    let all = sets.matches.len() as f64;
    Ok([right as f64 / all, (yes / all).max(1.0 - yes / all)])
}

/// Trains a model.
fn trained(
    pairs: bool,
    steps: u64,
    seed: u64,
    progress: &dyn Progress,
) -> Result<Model, BenchError> {
    let device = Device::flex().autodiff();
    let mut model = Model::new(pairs, seed, &device)?;
    let mut rng = StdRng::seed_from_u64(seed);
    let mut optimizer = AdamW {
        beta_2: 0.99,
        weight_decay: 0.0,
        ..AdamW::default()
    }
    .init();
    for step in 1..=steps {
        if progress.cancelled() {
            return Err(BenchError::Cancelled);
        }
        let sets = draw(BATCH, &mut rng, &device);
        let found = model.forward(sets.rows, &sets.starts)?;
        let z = ops::rows(found, &sets.places);
        let count = sets.matches.len();
        let y = Tensor::<2>::from_data(TensorData::new(sets.matches, [count, 1]), &device);
        // -log of the sigmoid of z or -z.
        let loss = ops::softplus(z.clone(), Tensor::zeros([1], &device)) - y * z;
        let gradients = GradientsParams::from_grads(loss.mean().backward(), &model);
        let done = step as f64 / steps as f64;
        let rise = (step as f64 / 100.0).min(1.0);
        let rate = 5e-3 * rise * 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
        model = optimizer.step(rate, model, gradients);
    }
    Ok(model)
}

pub(super) fn learned(
    options: &BenchOptions,
    progress: &dyn Progress,
    tables: &mut Vec<Table>,
    findings: &mut Vec<String>,
) -> Result<Value, BenchError> {
    let (steps, seeds) = match options.scale {
        Scale::Smoke => (5, 1),
        Scale::Small => (3_000, 1),
        Scale::Full => (10_000, 3),
    };
    let mut table = Table::new(
        &format!(
            "Match3 learned: {NUMBERS} numbers modulo {MODULUS}, {steps} steps of {BATCH} sets, {seeds} seeds"
        ),
        &[
            "layer",
            "weights",
            "right, %",
            "worst",
            "the frequent answer, %",
        ],
    );
    let (mut values, mut means) = (Vec::new(), Vec::new());
    for (name, pairs) in [("attention to pairs", true), ("ordinary attention", false)] {
        let (mut right, mut frequent, mut weights) = (Vec::new(), 0.0, 0);
        for seed in 0..seeds {
            let seed = options.seed + seed;
            let model = trained(pairs, steps, seed, progress)?;
            weights = model.num_params();
            let rng = &mut StdRng::seed_from_u64(!seed);
            let [share, most] = measured(&model, &draw(TESTS, rng, &Device::flex().autodiff()))?;
            right.push(share);
            frequent = most;
            progress.advance(1);
        }
        let mean = right.iter().sum::<f64>() / right.len() as f64;
        let worst = right.iter().copied().fold(f64::INFINITY, f64::min);
        let percent = |x: f64| format!("{:.1}", 100.0 * x);
        table.row([
            name.to_owned(),
            weights.to_string(),
            percent(mean),
            percent(worst),
            percent(frequent),
        ]);
        values.push(
            json!({"layer": name, "weights": weights, "right": right, "frequent_answer": frequent}),
        );
        means.push((mean, frequent));
    }
    tables.push(table);
    if let [(pairs, _), (ordinary, frequent)] = means[..] {
        findings.push(format!(
            "Match3 learned in {steps} steps: attention to pairs has {:.1} % right, ordinary attention with as many \
             weights {:.1} %, the frequent answer {:.1} %; expected: pairs near all ({AIM} counts as that), {}, and \
             ordinary attention near the frequent answer.",
            100.0 * pairs,
            100.0 * ordinary,
            100.0 * frequent,
            reached(pairs >= AIM)
        ));
    }
    Ok(json!(values))
}

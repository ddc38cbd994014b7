//! A small Mamba-2 that learns to recall: two layers of width 64, eight heads of 16 channels with 32
//! state numbers each, as the specification of the experiment has them.
//!
//! Its texts are those of [`prompt`](super::prompt), with the mark anywhere; lengths are drawn from
//! a few tokens to the length of training, so that it begins with easy ones. The answer alone is
//! learned.

use burn::optim::GradientsParams;
use burn::tensor::Device;
use keyfold_core::Progress;
use keyfold_lm::mamba::{MambaFile, MambaLm};
use keyfold_nn::{AdamW, HaxKind, HaxModel, HaxModelConfig};
use keyfold_sequence::hax::HaxConfig;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{MARK, NOISE, QUERY, TRAINED, VALUES, VOCAB};
use crate::report::reached;
use crate::{BenchError, BenchOptions, Scale};

/// Texts of a step, and of the measurement at its end.
const BATCH: usize = 32;
const TESTS: usize = 500;

/// The shortest text.
const SHORTEST: usize = 8;

/// A share of right answers that counts as learned.
const LEARNED: f64 = 0.99;

fn failed(e: impl std::fmt::Display) -> BenchError {
    BenchError::data("long-mamba", e.to_string())
}

/// Texts one after the other.
struct Texts {
    tokens: Vec<u32>,
    starts: Vec<usize>,
    /// The rows of the queries, and the values.
    rows: Vec<u32>,
    values: Vec<u32>,
}

fn draw(count: usize, length: impl Fn(&mut StdRng) -> usize, rng: &mut StdRng) -> Texts {
    let mut texts = Texts {
        tokens: Vec::new(),
        starts: vec![0],
        rows: Vec::new(),
        values: Vec::new(),
    };
    for _ in 0..count {
        let (length, first) = (length(rng), texts.tokens.len());
        let noise = (0..length).map(|_| rng.random_range(0..NOISE));
        texts.tokens.extend(noise);
        let at = first + rng.random_range(0..length - 2);
        let value = rng.random_range(VALUES);
        texts.tokens[at] = MARK;
        texts.tokens[at + 1] = value;
        texts.tokens[first + length - 1] = QUERY;
        texts.starts.push(first + length);
        texts.rows.push((first + length - 1) as u32);
        texts.values.push(value);
    }
    texts
}

/// The trained model, as the language engine reads it.
pub(super) fn model(
    options: &BenchOptions,
    progress: &dyn Progress,
    findings: &mut Vec<String>,
) -> Result<MambaLm, BenchError> {
    let steps = match options.scale {
        Scale::Smoke => 4,
        Scale::Small => 2_500,
        Scale::Full => 10_000,
    };
    let config = HaxModelConfig {
        base: HaxKind::Mamba2,
        sparse: HaxConfig {
            sparse_arch: Vec::new(),
            ..HaxConfig::default()
        },
        vocab_size: VOCAB,
        ..HaxModelConfig::default()
    };
    let device = Device::flex().autodiff();
    let mut model = HaxModel::init(&config, options.seed, &device).map_err(failed)?;
    let mut optimizer = AdamW {
        beta_2: 0.99,
        weight_decay: 0.0,
        ..AdamW::default()
    }
    .init();
    let mut rng = StdRng::seed_from_u64(options.seed);
    progress.start("learning to recall", "steps", Some(steps));
    for step in 1..=steps {
        if progress.cancelled() {
            return Err(BenchError::Cancelled);
        }
        // Evenly on a scale of logarithms: as many short texts as long ones.
        let octaves = (TRAINED as f64 / SHORTEST as f64).log2();
        let length = |rng: &mut StdRng| {
            let octave = rng.random_range(0.0..octaves);
            (SHORTEST as f64 * 2f64.powf(octave)).round() as usize
        };
        let texts = draw(BATCH, length, &mut rng);
        let states = model.states(&texts.tokens, &texts.starts, None).states;
        let loss = model.loss(states, &texts.rows, &texts.values);
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        let done = step as f64 / steps as f64;
        let rise = (step as f64 / 100.0).min(1.0);
        let rate = 2e-3 * rise * 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
        model = optimizer.step(rate, model, gradients);
        progress.advance(1);
    }
    progress.finish();
    let mut right = 0;
    for _ in 0..TESTS / BATCH {
        let texts = draw(BATCH, |_| TRAINED, &mut rng);
        let states = model.states(&texts.tokens, &texts.starts, None).states;
        let logits = keyfold_nn::checkpoint::numbers(&model.logits(states, &texts.rows));
        for (row, value) in logits.chunks_exact(VOCAB).zip(&texts.values) {
            let best = VALUES.max_by(|a, b| row[*a as usize].total_cmp(&row[*b as usize]));
            right += usize::from(best == Some(*value));
        }
    }
    let share = right as f64 / (TESTS / BATCH * BATCH) as f64;
    findings.push(format!(
        "A Mamba-2 of two layers learned to recall in {steps} steps of {BATCH} texts of up to {TRAINED} tokens: \
         {share:.3} right at {TRAINED}, expected above {LEARNED}, {}.",
        reached(share > LEARNED)
    ));
    let folder = tempfile::tempdir()?;
    model.save(folder.path()).map_err(failed)?;
    let file = MambaFile::open(folder.path()).map_err(failed)?;
    file.load().map_err(failed)
}

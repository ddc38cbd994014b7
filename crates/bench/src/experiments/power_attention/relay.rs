//! The relay task: models trained on each mask must carry a passkey to the end of a text,
//! which a mask allows as far as its blocks reach through the layers.
//!
//! A window has fillers and, at a random depth, one passkey, a token of 16; every row says
//! which passkey stood before it (or that none did), so that nothing in the text repeats it.
//! Measured: how many last rows are right by the depth of the passkey, beside whether the
//! mask reaches that depth in as many layers (exactly, by breadth-first search).

use burn::tensor::Device;
use keyfold_core::Progress;
use keyfold_core::block_mask::{BlockMask, Pattern};
use keyfold_nn::checkpoint::numbers;
use keyfold_nn::{Llama, LlamaConfig, NoHook, ops, random};
use keyfold_train::gradient::{GradientLearner, Loss, OptimConfig, Task};
use keyfold_train::{Decay, LearnError, Learner};
use serde_json::{Value, json};

use super::super::long_context::{failed, holds};
use super::{fitted, seen};
use crate::report::Table;
use crate::{BenchError, BenchOptions, Scale};

/// Tokens that may be the passkey, from 0 on.
const KEYS: usize = 16;
/// The answer before the passkey has come.
const NONE: u32 = KEYS as u32;
/// Fillers stand above.
const FILLERS: usize = 15;
const VOCAB: usize = KEYS + 1 + FILLERS;

/// Sizes of the task.
#[derive(Clone, Copy)]
struct Sizes {
    layers: usize,
    width: usize,
    block: usize,
    length: usize,
    steps: u64,
    batch: usize,
    /// Windows that are asked at the end.
    asked: usize,
}

impl Sizes {
    fn of(scale: Scale) -> Self {
        match scale {
            Scale::Smoke => Self {
                layers: 2,
                width: 16,
                block: 4,
                length: 32,
                steps: 6,
                batch: 2,
                asked: 8,
            },
            Scale::Small => Self {
                layers: 4,
                width: 64,
                block: 8,
                length: 256,
                steps: 600,
                batch: 8,
                asked: 256,
            },
            // The sheet's.
            Scale::Full => Self {
                layers: 6,
                width: 128,
                block: 16,
                length: 1024,
                steps: 2000,
                batch: 8,
                asked: 512,
            },
        }
    }

    fn blocks(&self) -> usize {
        self.length / self.block
    }
}

/// A window and the answer of every row.
fn window(sizes: &Sizes, seed: u64) -> (Vec<u32>, Vec<u32>, usize) {
    let draw = |i: u64, count: usize| (random::unit(seed, i) * count as f64) as usize;
    let depth = draw(0, sizes.length);
    let key = draw(1, KEYS) as u32;
    let mut tokens: Vec<u32> = (0..sizes.length)
        .map(|i| (KEYS + 1 + draw(2 + i as u64, FILLERS)) as u32)
        .collect();
    tokens[depth] = key;
    let answers = (0..sizes.length)
        .map(|row| if row < depth { NONE } else { key })
        .collect();
    (tokens, answers, depth)
}

struct Relay {
    sizes: Sizes,
    seed: u64,
}

struct Windows {
    tokens: Vec<u32>,
    answers: Vec<u32>,
    starts: Vec<usize>,
}

impl Task for Relay {
    type Model = Llama;
    type Batch = Windows;

    fn batches_per_epoch(&self) -> u64 {
        self.sizes.steps
    }

    fn batch(&mut self, number: u64) -> Result<Windows, LearnError> {
        let mut all = Windows {
            tokens: Vec::new(),
            answers: Vec::new(),
            starts: vec![0],
        };
        for i in 0..self.sizes.batch as u64 {
            let seed = random::derive(random::derive(self.seed, number), i);
            let (tokens, answers, _) = window(&self.sizes, seed);
            all.tokens.extend(tokens);
            all.answers.extend(answers);
            all.starts.push(all.tokens.len());
        }
        Ok(all)
    }

    fn items(batch: &Windows) -> u64 {
        batch.tokens.len() as u64
    }

    fn loss(model: &Llama, batch: Windows) -> Loss {
        let states = model.states(&batch.tokens, &batch.starts, &mut NoHook);
        ops::cross_entropy(states, model.output_table(), &batch.answers).into()
    }
}

/// The share of last rows that are right where the mask reaches the passkey, and where not.
#[derive(Clone, Copy)]
struct Found {
    /// Right and asked.
    within: [usize; 2],
    beyond: [usize; 2],
}

impl Found {
    fn percent([right, asked]: [usize; 2]) -> String {
        match asked {
            0 => String::new(),
            _ => format!("{:.0}", 100.0 * right as f64 / asked as f64),
        }
    }
}

/// Blocks from which the last of `blocks` hears in so many layers.
fn reached(mask: Option<&BlockMask>, blocks: usize, layers: usize) -> Vec<bool> {
    let mut reached = vec![mask.is_none(); blocks];
    reached[blocks - 1] = true;
    for _ in 0..layers {
        let before = reached.clone();
        for query in (0..blocks).filter(|&query| before[query]) {
            for (key, reached) in reached.iter_mut().enumerate().take(query + 1) {
                *reached |= mask.is_none_or(|mask| mask.sees(query, key));
            }
        }
    }
    reached
}

fn train(
    sizes: Sizes,
    mask: Option<&BlockMask>,
    seed: u64,
    progress: &dyn Progress,
) -> Result<Llama, BenchError> {
    let heads = 4;
    let config = LlamaConfig {
        vocab_size: VOCAB,
        hidden_size: sizes.width,
        intermediate_size: sizes.width * 8 / 3,
        num_hidden_layers: sizes.layers,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim: sizes.width / heads,
        max_position_embeddings: sizes.length,
        block_mask: mask.cloned(),
        ..LlamaConfig::default()
    };
    let device = Device::flex().autodiff();
    let model = Llama::init(&config, seed, &device).map_err(failed("the model"))?;
    let optim = OptimConfig {
        learning_rate: 2e-3,
        warmup_steps: sizes.steps / 10,
        decay: Decay::Cosine,
        beta2: 0.95,
        max_steps: sizes.steps,
        ..OptimConfig::default()
    };
    let task = Relay { sizes, seed };
    let mut learner = GradientLearner::new(task, model, &optim, &device, "tokens")
        .map_err(failed("the training"))?;
    for step in 1..=sizes.steps {
        if progress.cancelled() {
            return Err(BenchError::Cancelled);
        }
        learner.step(step).map_err(failed("the training"))?;
        progress.advance(1);
    }
    Ok(learner.model().clone())
}

fn ask(model: &Llama, sizes: &Sizes, reached: &[bool], seed: u64) -> Found {
    let mut found = Found {
        within: [0; 2],
        beyond: [0; 2],
    };
    for i in 0..sizes.asked as u64 {
        let (tokens, answers, depth) = window(sizes, random::derive(seed ^ 0xa5c, i));
        let states = model.states(&tokens, &[0, tokens.len()], &mut NoHook);
        let last = ops::rows(states, &[tokens.len() as u32 - 1]);
        let logits = numbers(&model.logits(last));
        let best = (0..VOCAB).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
        let right = best == Some(answers[tokens.len() - 1] as usize);
        let counts = match reached[depth / sizes.block] {
            true => &mut found.within,
            false => &mut found.beyond,
        };
        counts[0] += usize::from(right);
        counts[1] += 1;
    }
    found
}

/// Trains a model on each mask and asks it.
pub(super) fn relay(
    options: &BenchOptions,
    progress: &dyn Progress,
    tables: &mut Vec<Table>,
    findings: &mut Vec<String>,
) -> Result<Value, BenchError> {
    let sizes = Sizes::of(options.scale);
    let blocks = sizes.blocks();
    let power = BlockMask {
        block: sizes.block,
        window: 3,
        ..BlockMask::default()
    };
    let most = seen(&power, blocks - 1);
    let of = |pattern| {
        let mask = BlockMask {
            block: sizes.block,
            ..BlockMask::baseline(pattern)
        };
        Some(fitted(mask, blocks, most))
    };
    let masks = [
        ("dense", None),
        ("power", Some(power)),
        (
            "stride slash",
            of(Pattern::StrideSlash((blocks / 4).max(1))),
        ),
        ("window", of(Pattern::Window)),
        ("dilated", of(Pattern::Dilated)),
    ];
    let title = format!(
        "relay task: passkeys carried to the end of {} tokens by models of {} layers and width {}, {} steps on each mask, \
         blocks of {}",
        sizes.length, sizes.layers, sizes.width, sizes.steps, sizes.block
    );
    let columns = [
        "mask",
        "blocks seen",
        "depths within reach, %",
        "right within reach, %",
        "right beyond, %",
        "right, %",
    ];
    let mut table = Table::new(&title, &columns);
    let mut values = Vec::new();
    progress.start(
        "relay task",
        "steps",
        Some(sizes.steps * masks.len() as u64),
    );
    let mut shares = Vec::new();
    for (name, mask) in &masks {
        let model = train(sizes, mask.as_ref(), options.seed, progress)?;
        let reached = reached(mask.as_ref(), blocks, sizes.layers);
        let found = ask(&model, &sizes, &reached, options.seed);
        let within = reached.iter().filter(|&&r| r).count() as f64 / blocks as f64;
        let all = [0, 1].map(|i| found.within[i] + found.beyond[i]);
        table.row([
            (*name).to_owned(),
            mask.as_ref()
                .map_or(blocks, |mask| seen(mask, blocks - 1))
                .to_string(),
            format!("{:.0}", 100.0 * within),
            Found::percent(found.within),
            Found::percent(found.beyond),
            Found::percent(all),
        ]);
        shares.push(all[0] as f64 / all[1].max(1) as f64);
        values.push(json!({
            "mask": name, "within_reach": within, "right_within": found.within, "right_beyond": found.beyond,
        }));
    }
    progress.finish();
    tables.push(table);
    findings.push(format!(
        "relay task: the sheet expects dense and power to find all, strides nearly, a window and the dilated mask to fail \
         where they do not reach. Here dense {:.0} %, power {:.0} %, strides {:.0} %, window {:.0} %, dilated {:.0} %: {}.",
        100.0 * shares[0],
        100.0 * shares[1],
        100.0 * shares[2],
        100.0 * shares[3],
        100.0 * shares[4],
        holds(
            shares[..2].iter().all(|s| *s > 0.95) && shares[3..].iter().all(|s| *s < shares[1])
        )
    ));
    Ok(json!(values))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_within_reach_grows_by_the_window_or_by_powers_of_two() {
        let window = BlockMask {
            window: 3,
            sink: 0,
            pattern: Pattern::Window,
            ..BlockMask::default()
        };
        let count = |mask, layers| {
            reached(Some(mask), 64, layers)
                .iter()
                .filter(|&&r| r)
                .count()
        };
        assert_eq!(count(&window, 1), 3);
        assert_eq!(count(&window, 6), 13);
        let power = BlockMask {
            sink: 0,
            window: 1,
            ..BlockMask::default()
        };
        // Distances that are sums of at most two powers of two.
        assert_eq!(
            count(&power, 2),
            (0u32..64).filter(|d| d.count_ones() <= 2).count()
        );
        assert_eq!(reached(None, 4, 1), [true; 4]);
    }

    #[test]
    fn every_row_knows_only_what_stood_before_it() {
        let sizes = Sizes::of(Scale::Small);
        for seed in 0..20 {
            let (tokens, answers, depth) = window(&sizes, seed);
            assert_eq!(tokens.iter().filter(|&&t| (t as usize) < KEYS).count(), 1);
            assert!(answers[..depth].iter().all(|&a| a == NONE));
            assert!(answers[depth..].iter().all(|&a| a == tokens[depth]));
        }
    }
}

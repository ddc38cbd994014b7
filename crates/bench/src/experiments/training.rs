//! How fast models are trained: steps of forward pass, backward pass and AdamW with dropout,
//! of one transformer block and of a small BERT on texts of mixed length, and whole steps of the
//! built-in encoder's distillation, beside PyTorch if a `--peer` runs it
//! (parity/peers/torch_training.py) with the same number of threads.
//!
//! Ours packs texts without padding; the peer pads them to the longest, as is usual. Rates
//! are of real tokens, by the fastest step.
//!
//! A peer is called as `COMMAND train REQUEST -`, with JSON in the file REQUEST: `config`
//! (fields of a BERT configuration, or of the built-in encoder's with `model_type`
//! `keyfold_token_mixer`), `lengths` (tokens of the texts of the batch), `threads`
//! and `steps`; it prints `{"steps": [[forward, backward, optimiser], ..]}`, milliseconds.

use std::time::Instant;

use burn::optim::GradientsParams;
use burn::tensor::Device;
use half::f16;
use keyfold_core::{NoProgress, Progress};
use keyfold_nn::{AdamW, Bert, BertConfig, random};
use keyfold_text::distill::{self, DistillConfig, Targets};
use serde_json::{Value, json};

use super::peers::Engine;
use crate::plot;
use crate::report::{Report, Table, reached};
use crate::timing::shortest_step;
use crate::{BenchError, BenchOptions, Experiment, Scale};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "training",
    about: "training steps of a transformer block, a small BERT and the built-in encoder, beside PyTorch (--peer)",
    run,
};

/// What is aimed at, as a share of a peer's rate.
const AIM: f64 = 1.0;

/// A model and a batch.
struct Case {
    name: &'static str,
    config: Value,
    lengths: Vec<usize>,
    steps: usize,
}

/// Layers, hidden size, heads, width of the feed-forward part, ids.
fn config([layers, hidden, heads, inner, ids]: [usize; 5]) -> Value {
    json!({
        "model_type": "bert", "num_hidden_layers": layers, "hidden_size": hidden,
        "num_attention_heads": heads, "intermediate_size": inner, "vocab_size": ids,
        "max_position_embeddings": 512,
    })
}

fn cases(options: &BenchOptions) -> Vec<Case> {
    let lengths = |texts: u64, longest: u64| {
        let length = |i| 16 + random::derive(options.seed, i) % (longest - 15);
        (0..texts).map(|i| length(i) as usize).collect()
    };
    if options.scale == Scale::Smoke {
        return vec![
            Case {
                name: "a tiny BERT, 4 texts of 16 to 32 tokens",
                config: config([2, 32, 2, 64, 100]),
                lengths: lengths(4, 32),
                steps: 3,
            },
            Case {
                name: "a tiny encoder of the built-in kind, 4 texts of 16 to 32 tokens",
                config: mixer([16, 1, 3, 8, 8, 100]),
                lengths: lengths(4, 32),
                steps: 3,
            },
        ];
    }
    let times = if options.scale == Scale::Full { 4 } else { 1 };
    vec![
        Case {
            name: "block (256 wide, 4 heads, 1024 inner), 8 texts of 128 tokens",
            // The block is what counts beside so few ids.
            config: config([1, 256, 4, 1024, 100]),
            lengths: vec![128; 8],
            steps: 20 * times,
        },
        Case {
            name: "BERT-small (4 layers, 512 wide), 16 texts of 16 to 128 tokens",
            config: config([4, 512, 8, 2048, 30_522]),
            lengths: lengths(16, 128),
            steps: 4 * times,
        },
        Case {
            name: "the built-in encoder, 28 texts of 16 to 128 tokens",
            config: mixer([256, 2, 7, 128, 96, 30_522]),
            lengths: lengths(28, 128),
            steps: 20 * times,
        },
    ]
}

/// What configurations of the built-in encoder say that they are.
const MIXER: &str = "keyfold_token_mixer";

/// Hidden size, blocks, tokens of a convolution, width inside, numbers of a key, ids.
fn mixer([hidden, blocks, kernel, inner, output, ids]: [usize; 6]) -> Value {
    json!({
        "model_type": MIXER, "hidden_size": hidden, "num_blocks": blocks, "kernel_size": kernel,
        "intermediate_size": inner, "output_size": output, "vocab_size": ids,
    })
}

fn run(options: &BenchOptions, progress: &dyn Progress) -> Result<Report, BenchError> {
    let threads = options.thread_count();
    let peers = options.peers.iter().map(|p| Engine::parse(p));
    let peers: Vec<Engine> = peers.collect::<Result<_, _>>()?;
    let mut table = Table::new(
        &format!("training steps, {threads} threads"),
        &[
            "case",
            "by",
            "forward, ms",
            "backward, ms",
            "optimiser, ms (all, where it stands alone)",
            "tokens a second",
        ],
    );
    let (mut findings, mut values, mut bars) = (Vec::new(), Vec::new(), Vec::new());
    let cases = cases(options);
    progress.start("train", "cases", Some(cases.len() as u64));
    for case in &cases {
        if progress.cancelled() {
            return Err(BenchError::Cancelled);
        }
        let ours = match case.config["model_type"] == MIXER {
            true => distilled(case, threads, options.seed)?,
            false => ours(case, threads, options.seed)?,
        };
        let mut rows = vec![("keyfold".to_owned(), ours)];
        for peer in &peers {
            rows.push((peer.name.clone(), theirs(peer, case, threads)?));
        }
        let tokens: usize = case.lengths.iter().sum();
        let rate =
            |steps: &[[f64; 3]]| 1e3 * tokens as f64 / shortest_step(steps).iter().sum::<f64>();
        for (by, steps) in &rows {
            // The built-in encoder's trainer takes no step apart.
            let part = |time: f64| match time > 0.0 {
                true => plot::shown(time),
                false => String::new(),
            };
            let [forward, backward, optimiser] = shortest_step(steps).map(part);
            let shown = plot::shown(rate(steps));
            table.row([
                case.name.to_owned(),
                by.clone(),
                forward,
                backward,
                optimiser,
                shown,
            ]);
            bars.push((format!("{by}: {}", case.name), rate(steps)));
        }
        for (by, steps) in &rows[1..] {
            let ratio = rate(&rows[0].1) / rate(steps);
            findings.push(format!(
                "{}: {ratio:.2} times the tokens a second of {by}; aim: {AIM:.1}, {}.",
                case.name,
                reached(ratio >= AIM)
            ));
        }
        let by = rows
            .iter()
            .map(|(by, steps)| json!({"by": by, "steps_ms": steps}));
        values.push(json!({
            "case": case.name, "config": case.config, "lengths": case.lengths,
            "by": by.collect::<Vec<_>>(),
        }));
        progress.advance(1);
    }
    progress.finish();
    Ok(Report {
        name: EXPERIMENT.name.to_owned(),
        tables: vec![table],
        findings,
        values: json!({"threads": threads, "cases": values}),
        svg: plot::bars("Training", "tokens a second", &bars, None)?,
    })
}

/// Milliseconds of each step: forward pass, backward pass, optimiser.
fn ours(case: &Case, threads: usize, seed: u64) -> Result<Vec<[f64; 3]>, BenchError> {
    let failed = |what: String| BenchError::data(case.name, what);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    let pool = pool.build().map_err(|e| failed(e.to_string()))?;
    let config = serde_json::from_value(case.config.clone());
    let config: BertConfig = config.map_err(|e| failed(e.to_string()))?;
    let ids = config.vocab_size as u64;
    let model = Bert::init(config, seed, &Device::flex().autodiff());
    let mut model = model.map_err(|e| failed(e.to_string()))?;
    let text = |(text, &len): (usize, &usize)| -> Vec<u32> {
        let seed = random::derive(seed, text as u64);
        let ids = (0..len as u64).map(|i| (random::derive(seed, i) % ids) as u32);
        ids.collect()
    };
    let texts: Vec<Vec<u32>> = case.lengths.iter().enumerate().map(text).collect();
    let batch = model.pack(&texts).map_err(|e| failed(e.to_string()))?;
    let mut optimiser = AdamW::default().init();
    Ok(pool.install(|| {
        let mut steps = Vec::new();
        for number in 0..case.steps as u64 {
            let clock = Instant::now();
            let loss = model.forward(&batch, Some(number)).square().mean();
            let forward = clock.elapsed();
            let gradients = loss.backward();
            let backward = clock.elapsed();
            let gradients = GradientsParams::from_grads(gradients, &model);
            model = optimiser.step(1e-4, model, gradients);
            let parts = [forward, backward - forward, clock.elapsed() - backward];
            steps.push(parts.map(|time| 1e3 * time.as_secs_f64()));
        }
        steps
    }))
}

/// Milliseconds of a whole step of the distillation: what more steps take longer than one. A
/// batch has all texts, whose tokens and goals are random.
fn distilled(case: &Case, threads: usize, seed: u64) -> Result<Vec<[f64; 3]>, BenchError> {
    let size = |name: &str| case.config[name].as_u64().unwrap_or(0) as usize;
    let (hidden, output, vocab) = (size("hidden_size"), size("output_size"), size("vocab_size"));
    let tokens: usize = case.lengths.iter().sum();
    let ids = (0..tokens as u64).map(|i| (random::derive(seed, i) % vocab as u64) as u32);
    let mut starts = vec![0];
    for length in &case.lengths {
        starts.push(starts[starts.len() - 1] + length);
    }
    let states = random::normal(random::derive(seed, 1), tokens * output, 1.0);
    let targets = Targets {
        ids: ids.collect(),
        starts,
        states: states.into_iter().map(f16::from_f32).collect(),
        table: random::normal(random::derive(seed, 2), vocab * hidden, 0.5),
    };
    let is_key = vec![true; vocab];
    let time = |steps: usize| {
        let config = DistillConfig {
            hidden_size: hidden,
            num_blocks: size("num_blocks"),
            kernel_size: size("kernel_size"),
            intermediate_size: size("intermediate_size"),
            output_size: output,
            // One text is held out.
            batch_tokens: tokens - case.lengths[0],
            steps,
            threads,
            seed,
            ..DistillConfig::default()
        };
        let clock = Instant::now();
        distill::train(&targets, &is_key, &config, &NoProgress)
            .map_err(|e| BenchError::data(case.name, e.to_string()))?;
        Ok::<_, BenchError>(1e3 * clock.elapsed().as_secs_f64())
    };
    let learned = (tokens - case.lengths[0]) as f64 / tokens as f64;
    let mut steps = Vec::new();
    for _ in 0..3 {
        let (all, one) = (time(1 + case.steps)?, time(1)?);
        // Where steps are so short that other programs decide, at least no less than nothing.
        let more = match all > one {
            true => (all - one) / case.steps as f64,
            false => all / (1 + case.steps) as f64,
        };
        // As if a step had all texts.
        steps.push([0.0, 0.0, more / learned]);
    }
    Ok(steps)
}

/// The same by a peer.
fn theirs(peer: &Engine, case: &Case, threads: usize) -> Result<Vec<[f64; 3]>, BenchError> {
    let folder = tempfile::tempdir()?;
    let request = folder.path().join("request.json");
    let asked = json!({
        "config": case.config, "lengths": case.lengths, "threads": threads, "steps": case.steps,
    });
    std::fs::write(&request, asked.to_string())?;
    let lines = peer.run("train", &request, "-".as_ref())?;
    let steps = lines.into_iter().find_map(|mut line| {
        let steps = line.get_mut("steps")?.take();
        serde_json::from_value(steps).ok()
    });
    steps.ok_or_else(|| BenchError::data(&peer.name, "as a peer it printed no times of steps"))
}

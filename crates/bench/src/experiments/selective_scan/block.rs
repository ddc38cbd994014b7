//! A training step of one block of Mamba-2: forward pass, backward pass and AdamW.

use std::time::Instant;

use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, TensorData};
use keyfold_kernels::scan::SSD_CHUNK;
use keyfold_nn::mixers::{Mamba2, Mamba2Config};
use keyfold_nn::{AdamW, ModelError, random};
use serde_json::{Value, json};

use super::{Bench, asked};
use crate::report::{Table, reached};
use crate::timing::shortest_step;
use crate::{BenchError, plot};

/// What is aimed at, as a share of a peer's rate.
const AIM: f64 = 1.0;

/// Milliseconds of a step: forward pass, backward pass, optimiser.
type Step = [f64; 3];

pub(super) fn run(bench: &mut Bench) -> Result<(Table, Value), BenchError> {
    let sizes = &bench.sizes;
    let [texts, length] = sizes.texts;
    let config = Mamba2Config {
        d_model: sizes.channels / 2,
        d_state: sizes.head_states,
        headdim: sizes.width,
        ..Mamba2Config::default()
    };
    let threads = bench.team.threads();
    let ours = ours(&config, bench).map_err(|e| BenchError::data("mamba2", e.to_string()))?;
    let mut rows = vec![("keyfold".to_owned(), ours)];
    let mut request = json!(config);
    for (field, value) in [
        ("texts", texts),
        ("length", length),
        ("chunk", SSD_CHUNK),
        ("threads", threads),
        ("steps", sizes.steps),
    ] {
        request[field] = json!(value);
    }
    for peer in &bench.peers {
        let steps = asked(peer, "mamba2-block", &request, |line| {
            let steps: Vec<Step> = serde_json::from_value(line.get("steps")?.clone()).ok()?;
            (!steps.is_empty()).then_some(steps)
        })?;
        rows.push((peer.name.clone(), steps));
    }
    let mut table = Table::new(
        &format!(
            "a training step of a block of Mamba-2, {} wide, {texts} texts of {length} tokens, {threads} threads",
            config.d_model
        ),
        &[
            "by",
            "forward, ms",
            "backward, ms",
            "optimiser, ms",
            "tokens a second",
        ],
    );
    let rate =
        |steps: &[Step]| (texts * length) as f64 * 1e3 / shortest_step(steps).iter().sum::<f64>();
    for (by, steps) in &rows {
        let [forward, backward, optimiser] = shortest_step(steps).map(plot::shown);
        table.row([
            by.clone(),
            forward,
            backward,
            optimiser,
            plot::shown(rate(steps)),
        ]);
    }
    for (by, steps) in &rows[1..] {
        let ratio = rate(&rows[0].1) / rate(steps);
        bench.findings.push(format!(
            "A training step of a block of Mamba-2: {ratio:.2} times the tokens a second of {by}; aim: {AIM:.1}, {}.",
            reached(ratio >= AIM)
        ));
    }
    let by = rows
        .iter()
        .map(|(by, steps)| json!({"by": by, "steps_ms": steps}));
    Ok((
        table,
        json!({"asked": request, "by": by.collect::<Vec<_>>()}),
    ))
}

fn ours(config: &Mamba2Config, bench: &Bench) -> Result<Vec<Step>, Box<dyn std::error::Error>> {
    let (seed, [texts, length]) = (bench.options.seed, bench.sizes.texts);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(bench.team.threads());
    let pool = pool.build()?;
    let device = Device::flex().autodiff();
    let deviation = (3.0 * config.d_model as f32).sqrt().recip();
    let model: Result<Mamba2, ModelError> = Mamba2::init(config, deviation, seed, &device);
    let mut model = model?;
    let rows = texts * length;
    let numbers = random::normal(random::derive(seed, 1), rows * config.d_model, 1.0);
    let input = Tensor::<2>::from_data(TensorData::new(numbers, [rows, config.d_model]), &device);
    let starts: Vec<usize> = (0..=texts).map(|text| text * length).collect();
    let mut optimiser = AdamW::default().init();
    Ok(pool.install(|| {
        let mut steps = Vec::new();
        for _ in 0..bench.sizes.steps {
            let clock = Instant::now();
            let loss = model.forward(input.clone(), &starts).square().mean();
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

//! The scans of Mamba and Mamba-2: how fast they are, beside a plain loop, and PyTorch if a
//! `--peer` runs it (parity/peers/selective_scan.py).
//!
//! Measured: a scan of 2,048 tokens, 1,536 channels and 16 state numbers (mamba-130m) forward
//! and backward; the chunked scan of Mamba-2 (mamba2-130m) against its recurrence; tokens a
//! second of whole models of these sizes with random weights.
//!
//! A peer is called as `COMMAND selective-scan REQUEST -`, with JSON in the file REQUEST:
//! `length`, `channels`, `states`, `threads` and `runs`; it prints
//! `{"forward_ms": [..], "backward_ms": [..]}`.

use std::time::Instant;

use keyfold_core::{NoProgress, Progress};
use keyfold_kernels::scan::{
    Rows, SSD_CHUNK, Selective, Ssd, selective_scan, selective_scan_backward, ssd_scan,
    ssd_scan_backward,
};
use keyfold_kernels::{Team, peak};
use keyfold_lm::mamba::{MambaConfig, MambaSession, Mixer};
use keyfold_lm::{Reading, synthetic};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::peers::Engine;
use crate::plot;
use crate::report::{Report, Table, reached};
use crate::{BenchError, BenchOptions, Experiment, Scale};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "selective-scan",
    about: "the scans of Mamba and Mamba-2 beside a plain loop and PyTorch (--peer)",
    run,
};

/// Times as fast as the best other way that a scan shall be.
const AIM: f64 = 3.0;

/// Times as fast as token by token that chunks shall be.
const CHUNKS: f64 = 2.0;

/// Sizes of what is measured.
struct Sizes {
    length: usize,
    channels: usize,
    states: usize,
    heads: usize,
    width: usize,
    head_states: usize,
    runs: usize,
    layers: usize,
    vocab: usize,
}

fn sizes(scale: Scale) -> Sizes {
    match scale {
        Scale::Smoke => Sizes {
            length: 100,
            channels: 40,
            states: 4,
            heads: 2,
            width: 16,
            head_states: 16,
            runs: 2,
            layers: 2,
            vocab: 64,
        },
        Scale::Small | Scale::Full => Sizes {
            length: 2_048,
            channels: 1_536,
            states: 16,
            heads: 24,
            width: 64,
            head_states: 128,
            runs: if scale == Scale::Full { 30 } else { 7 },
            layers: 24,
            vocab: 50_280,
        },
    }
}

fn run(options: &BenchOptions, progress: &dyn Progress) -> Result<Report, BenchError> {
    let sizes = sizes(options.scale);
    let team = Team::new(options.thread_count());
    let (mut findings, mut bars) = (Vec::new(), Vec::new());
    progress.start("scans", "parts", Some(3));
    let mut table = Table::new(
        &format!(
            "a scan of {} tokens, {} threads; the fastest of {} runs",
            sizes.length,
            team.threads(),
            sizes.runs
        ),
        &["what", "by", "forward, ms", "backward, ms"],
    );
    let one = one(options, &sizes, &team, &mut table, &mut findings, &mut bars)?;
    progress.advance(1);
    if progress.cancelled() {
        return Err(BenchError::Cancelled);
    }
    let two = two(options, &sizes, &team, &mut table, &mut findings, &mut bars);
    progress.advance(1);
    let (models, rates) = models(options, &sizes, progress)?;
    progress.finish();
    Ok(Report {
        name: EXPERIMENT.name.to_owned(),
        tables: vec![table, models],
        findings,
        values: json!({"threads": team.threads(), "mamba": one, "mamba2": two, "models": rates}),
        svg: plot::bars("A scan, forward", "milliseconds", &bars, None)?,
    })
}

fn draw(rng: &mut StdRng, n: usize, low: f32, high: f32) -> Vec<f32> {
    (0..n).map(|_| rng.random_range(low..high)).collect()
}

/// The least of some times, in milliseconds.
fn fastest(runs: usize, mut what: impl FnMut()) -> f64 {
    let times = (0..runs).map(|_| {
        let clock = Instant::now();
        what();
        1e3 * clock.elapsed().as_secs_f64()
    });
    times.fold(f64::INFINITY, f64::min)
}

type Bars = Vec<(String, f64)>;

/// Mamba's scan, ours and others'.
fn one(
    options: &BenchOptions,
    sizes: &Sizes,
    team: &Team,
    table: &mut Table,
    findings: &mut Vec<String>,
    bars: &mut Bars,
) -> Result<Value, BenchError> {
    let (l, d, n) = (sizes.length, sizes.channels, sizes.states);
    let rng = &mut StdRng::seed_from_u64(options.seed);
    let (x, dt) = (draw(rng, l * d, -1.0, 1.0), draw(rng, l * d, 0.001, 0.1));
    let (b, c) = (draw(rng, l * n, -1.0, 1.0), draw(rng, l * n, -1.0, 1.0));
    let a: Vec<f32> = (0..n * d).map(|i| -((i / d + 1) as f32)).collect();
    let skip = vec![1.0; d];
    let inputs = Selective {
        x: Rows::new(&x, d),
        dt: Rows::new(&dt, d),
        a: &a,
        b: Rows::new(&b, n),
        c: Rows::new(&c, n),
        d: Some(&skip),
    };
    let mut out = vec![0.0; l * d];
    let forward = fastest(sizes.runs, || {
        let mut state = vec![0.0; n * d];
        selective_scan(&inputs, None, &mut state, &mut out, team);
    });
    let zeros = vec![0.0; n * d];
    let backward = fastest(sizes.runs.div_ceil(2), || {
        let mut dstate = zeros.clone();
        let _ = selective_scan_backward(&inputs, &zeros, &x, &mut dstate, team);
    });
    let mut plain = vec![0.0; l * d];
    let looped = fastest(sizes.runs.div_ceil(2), || {
        plain_loop(&inputs, [l, d, n], &mut plain, team);
    });
    let far = out.iter().zip(&plain).map(|(a, b)| (a - b).abs());
    let far = far.fold(0.0, f32::max);
    let what = format!("Mamba, {d} channels, {n} states");
    let mut rows = vec![
        ("keyfold".to_owned(), forward, Some(backward)),
        ("a plain loop, all threads".to_owned(), looped, None),
    ];
    for peer in &options.peers {
        let peer = Engine::parse(peer)?;
        let request = json!({
            "length": l, "channels": d, "states": n, "threads": team.threads(), "runs": sizes.runs.min(3),
        });
        let (there, back) = theirs(&peer, &request)?;
        rows.push((peer.name.clone(), there, Some(back)));
    }
    for (by, there, back) in &rows {
        let back = back.map_or(String::new(), plot::shown);
        table.row([what.clone(), by.clone(), plot::shown(*there), back]);
        bars.push((format!("{what}: {by}"), *there));
    }
    let others = rows[1..].iter().map(|r| (r.1, r.0.as_str()));
    let best = others.min_by(|a, b| a.0.total_cmp(&b.0));
    let (best, by) = best.unwrap_or((f64::INFINITY, "none"));
    findings.push(format!(
        "Mamba's scan is {:.1} times as fast as the best other way ({by}); aim: {AIM}, {}.",
        best / forward,
        reached(best / forward >= AIM)
    ));
    // An exponential is counted as the 13 operations that it is made of here.
    let operations = (l * d * n) as f64 * (13.0 + 5.0);
    let share = operations / (forward / 1e3) / peak::peak_flops(team.threads());
    findings.push(format!(
        "It does {:.0} % of the multiply-adds that the machine can do at most; the plain loop differs by {far:.1e}.",
        100.0 * share
    ));
    let by = rows
        .iter()
        .map(|(by, there, back)| json!({"by": by, "forward_ms": there, "backward_ms": back}));
    Ok(json!({
        "length": l, "channels": d, "states": n, "share_of_peak": share, "by": by.collect::<Vec<_>>(),
    }))
}

/// The scan as small programs have it: one number after the other; channels are shared by
/// threads.
fn plain_loop(inputs: &Selective, [l, d, n]: [usize; 3], out: &mut [f32], team: &Team) {
    let mut by_channel = vec![0.0; l * d];
    team.split(&mut by_channel, l, |first, out| {
        for (i, out) in out.chunks_exact_mut(l).enumerate() {
            let channel = first / l + i;
            let mut h = vec![0.0f32; n];
            for (t, out) in out.iter_mut().enumerate() {
                let (x, dt) = (inputs.x.row(t)[channel], inputs.dt.row(t)[channel]);
                let (b, c) = (inputs.b.row(t), inputs.c.row(t));
                let mut y = x;
                for s in 0..n {
                    h[s] = (dt * inputs.a[s * d + channel]).exp() * h[s] + dt * b[s] * x;
                    y += h[s] * c[s];
                }
                *out = y;
            }
        }
    });
    for (i, out) in out.iter_mut().enumerate() {
        *out = by_channel[i % d * l + i / d];
    }
}

/// Milliseconds of a peer, forward and backward.
fn theirs(peer: &Engine, request: &Value) -> Result<(f64, f64), BenchError> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("request.json");
    std::fs::write(&file, request.to_string())?;
    let lines = peer.run("selective-scan", &file, "-".as_ref())?;
    let least = |line: &Value, name: &str| {
        let times = line.get(name)?.as_array()?.iter().filter_map(Value::as_f64);
        Some(times.fold(f64::INFINITY, f64::min))
    };
    let found = lines
        .iter()
        .find_map(|line| Some((least(line, "forward_ms")?, least(line, "backward_ms")?)));
    found.ok_or_else(|| BenchError::data(&peer.name, "as a peer it printed no times of scans"))
}

/// Mamba-2's scan, in chunks and token by token.
fn two(
    options: &BenchOptions,
    sizes: &Sizes,
    team: &Team,
    table: &mut Table,
    findings: &mut Vec<String>,
    bars: &mut Bars,
) -> Value {
    let (l, heads, width, n) = (sizes.length, sizes.heads, sizes.width, sizes.head_states);
    let rng = &mut StdRng::seed_from_u64(options.seed);
    let x = draw(rng, l * heads * width, -1.0, 1.0);
    let dt = draw(rng, l * heads, 0.001, 0.1);
    let a = draw(rng, heads, -16.0, -1.0);
    let (b, c) = (draw(rng, l * n, -1.0, 1.0), draw(rng, l * n, -1.0, 1.0));
    let skip = vec![1.0; heads];
    let inputs = Ssd {
        x: Rows::new(&x, heads * width),
        dt: Rows::new(&dt, heads),
        a: &a,
        b: Rows::new(&b, n),
        c: Rows::new(&c, n),
        d: Some(&skip),
        groups: 1,
    };
    let zeros = vec![0.0; heads * width * n];
    let mut out = vec![0.0; x.len()];
    let chunked = fastest(sizes.runs, || {
        let mut state = zeros.clone();
        ssd_scan(&inputs, SSD_CHUNK, &mut state, &mut out, team);
    });
    let backward = fastest(sizes.runs.div_ceil(2), || {
        let mut dstate = zeros.clone();
        let _ = ssd_scan_backward(&inputs, SSD_CHUNK, &zeros, &x, &mut dstate, team);
    });
    let stepped = fastest(sizes.runs.div_ceil(3), || {
        let mut state = zeros.clone();
        for (t, out) in out.chunks_exact_mut(heads * width).enumerate() {
            ssd_scan(&inputs.tokens(t..t + 1), SSD_CHUNK, &mut state, out, team);
        }
    });
    let what = format!("Mamba-2, {heads} heads of {width}, {n} states");
    let rows = [
        (format!("chunks of {SSD_CHUNK}"), chunked, Some(backward)),
        ("token by token".to_owned(), stepped, None),
    ];
    for (by, there, back) in &rows {
        let back = back.map_or(String::new(), plot::shown);
        table.row([what.clone(), by.clone(), plot::shown(*there), back]);
        bars.push((format!("{what}: {by}"), *there));
    }
    findings.push(format!(
        "Mamba-2's scan is {:.1} times as fast in chunks as token by token; aim: {CHUNKS}, {}.",
        stepped / chunked,
        reached(stepped / chunked >= CHUNKS)
    ));
    json!({"chunked_ms": chunked, "stepped_ms": stepped, "backward_ms": backward})
}

/// Whole models: tokens a second of a prompt and of decoding.
fn models(
    options: &BenchOptions,
    sizes: &Sizes,
    progress: &dyn Progress,
) -> Result<(Table, Vec<Value>), BenchError> {
    let mut table = Table::new(
        "models with random weights in 32 bits",
        &[
            "model",
            "state, MB",
            "prompt, tokens a second",
            "decoding, tokens a second",
        ],
    );
    let d_model = sizes.channels / 2;
    let config = |mixer, d_state, vocab_size| MambaConfig {
        d_model,
        n_layer: sizes.layers,
        vocab_size,
        d_inner: sizes.channels,
        d_state,
        d_conv: 4,
        mixer,
        bias: false,
        conv_bias: true,
        norm_eps: 1e-5,
        tie_embeddings: true,
        bos_token_id: None,
        eos_token_ids: Vec::new(),
    };
    let two = Mixer::Two {
        headdim: sizes.channels / sizes.heads,
        ngroups: 1,
        dt_limit: (0.0, f32::INFINITY),
        d_has_hdim: false,
    };
    let one = Mixer::One {
        dt_rank: d_model.div_ceil(16),
    };
    let cases = [
        ("mamba-130m's sizes", config(one, sizes.states, sizes.vocab)),
        (
            "mamba2-130m's sizes",
            config(two, sizes.head_states, sizes.vocab),
        ),
    ];
    let mut values = Vec::new();
    for (name, config) in cases {
        let failed = |e: keyfold_lm::LmError| BenchError::data(name, e.to_string());
        let lm = synthetic::random_mamba(config, options.seed).map_err(failed)?;
        let team = Team::new(options.thread_count());
        let mut session = MambaSession::new(lm.into(), team.into());
        let prompt: Vec<u32> = (0..sizes.length.min(512) as u32)
            .map(|i| i * 7 % 60)
            .collect();
        session.prefill(&prompt, &NoProgress).map_err(failed)?;
        for token in 0..24 {
            if progress.cancelled() {
                return Err(BenchError::Cancelled);
            }
            session.step(token).map_err(failed)?;
        }
        let report = session.report();
        let read = report.prompt_tokens as f64 / report.prompt_time.as_secs_f64();
        let write = report.decoded_tokens as f64 / report.decode_time.as_secs_f64();
        let state = session.cache_bytes() as f64 / 1e6;
        table.row([
            name.to_owned(),
            plot::shown(state),
            plot::shown(read),
            plot::shown(write),
        ]);
        values.push(json!({"model": name, "prompt_tokens_per_second": read, "decoded_tokens_per_second": write}));
    }
    Ok((table, values))
}

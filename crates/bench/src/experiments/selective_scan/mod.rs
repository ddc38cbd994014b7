//! The scans of Mamba and Mamba-2, a training step and decoding: how fast they are, beside the
//! loops that other programs have, and PyTorch if a `--peer` runs it
//! (parity/peers/selective_scan.py).
//!
//! Measured, all in one run: a scan of 2,048 tokens, 1,536 channels and 16 state numbers
//! (mamba-130m) forward and backward ([`scans`], [`loops`]); the chunked scan of Mamba-2
//! (mamba2-130m) against its recurrence; a training step of a block of Mamba-2 ([`block`]); tokens
//! a second of whole models of these sizes with random weights ([`models`]).
//!
//! A peer is called as `COMMAND TASK REQUEST -`, with JSON in the file REQUEST, and prints JSON:
//!
//! | task | request | prints |
//! |---|---|---|
//! | `selective-scan` | `length`, `channels`, `states`, `threads`, `runs` | `{"forward_ms": [..], "backward_ms": [..]}` |
//! | `mamba2-block` | `texts`, `length`, `chunk`, fields of the layer's configuration, `threads`, `steps` | `{"steps": [[forward, backward, optimiser], ..]}`, milliseconds |
//! | `mamba-decode` | `d_model`, `n_layer`, `d_inner`, `d_state`, `d_conv`, `dt_rank`, `vocab_size`, `threads`, `tokens` | `{"tokens_per_second": ..}` |

mod block;
mod loops;
mod models;
mod scans;

use keyfold_core::Progress;
use keyfold_kernels::Team;
use serde_json::{Value, json};

use super::peers::Engine;
use crate::plot;
use crate::report::{Report, Table};
use crate::{BenchError, BenchOptions, Experiment, Scale};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "selective-scan",
    about: "the scans, a training step and decoding of Mamba, beside scalar loops and PyTorch (--peer)",
    run,
};

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
    /// Texts of a training step, and their tokens.
    texts: [usize; 2],
    steps: usize,
    /// Tokens that are decoded.
    tokens: usize,
}

fn sizes(scale: Scale) -> Sizes {
    match scale {
        Scale::Smoke => Sizes {
            length: 100,
            channels: 64,
            states: 4,
            heads: 4,
            width: 16,
            head_states: 16,
            runs: 2,
            layers: 2,
            vocab: 64,
            texts: [2, 70],
            steps: 2,
            tokens: 8,
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
            texts: [4, 512],
            steps: if scale == Scale::Full { 12 } else { 4 },
            tokens: if scale == Scale::Full { 96 } else { 32 },
        },
    }
}

/// What a part measures with, and what it has found so far.
struct Bench<'a> {
    options: &'a BenchOptions,
    sizes: Sizes,
    team: Team,
    peers: Vec<Engine>,
    findings: Vec<String>,
    /// What was measured in milliseconds, by whom.
    bars: Vec<(String, f64)>,
}

fn run(options: &BenchOptions, progress: &dyn Progress) -> Result<Report, BenchError> {
    let peers = options.peers.iter().map(|p| Engine::parse(p));
    let mut bench = Bench {
        options,
        sizes: sizes(options.scale),
        team: Team::new(options.thread_count()),
        peers: peers.collect::<Result<_, _>>()?,
        findings: Vec::new(),
        bars: Vec::new(),
    };
    progress.start("scans", "parts", Some(4));
    let done = |progress: &dyn Progress| {
        progress.advance(1);
        match progress.cancelled() {
            true => Err(BenchError::Cancelled),
            false => Ok(()),
        }
    };
    let mut scans = Table::new(
        &format!(
            "a scan of {} tokens, {} threads; the fastest of up to {} runs",
            bench.sizes.length,
            bench.team.threads(),
            bench.sizes.runs
        ),
        &["what", "by", "forward, ms", "backward, ms"],
    );
    let mamba = scans::one(&mut bench, &mut scans)?;
    done(progress)?;
    let mamba2 = scans::two(&mut bench, &mut scans);
    done(progress)?;
    let (steps, block) = block::run(&mut bench)?;
    done(progress)?;
    let (models, rates) = models::run(&mut bench, progress)?;
    progress.finish();
    Ok(Report {
        name: EXPERIMENT.name.to_owned(),
        tables: vec![scans, steps, models],
        values: json!({
            "threads": bench.team.threads(), "mamba": mamba, "mamba2": mamba2, "block": block,
            "models": rates,
        }),
        svg: plot::bars("A scan, forward", "milliseconds", &bench.bars, None)?,
        findings: bench.findings,
    })
}

/// What `read` finds in what a peer prints for a task.
fn asked<T>(
    peer: &Engine,
    task: &str,
    request: &Value,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<T, BenchError> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("request.json");
    std::fs::write(&file, request.to_string())?;
    let lines = peer.run(task, &file, "-".as_ref())?;
    lines.iter().find_map(read).ok_or_else(|| {
        BenchError::data(
            &peer.name,
            format!("as a peer it printed no times of {task}"),
        )
    })
}

//! Whole models: tokens a second of a prompt and of decoding.

use keyfold_core::{NoProgress, Progress};
use keyfold_kernels::{Team, peak};
use keyfold_lm::mamba::{MambaConfig, MambaSession, Mixer};
use keyfold_lm::{LmError, Reading, synthetic};
use serde_json::{Value, json};

use super::{Bench, Sizes, asked};
use crate::report::{Table, reached};
use crate::{BenchError, plot};

/// What is aimed at, as a share of a peer's rate.
const AIM: f64 = 1.0;

/// The most tokens of a prompt.
const PROMPT: usize = 512;

fn config(sizes: &Sizes, mixer: Mixer, d_state: usize) -> MambaConfig {
    MambaConfig {
        d_model: sizes.channels / 2,
        n_layer: sizes.layers,
        vocab_size: sizes.vocab,
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
    }
}

pub(super) fn run(
    bench: &mut Bench,
    progress: &dyn Progress,
) -> Result<(Table, Vec<Value>), BenchError> {
    let sizes = &bench.sizes;
    let bandwidth = peak::read_bandwidth(bench.team.threads());
    let mut table = Table::new(
        &format!(
            "models with random weights in 32 bits, {} threads; memory reads {:.1} GB a second",
            bench.team.threads(),
            bandwidth / 1e9
        ),
        &[
            "model",
            "by",
            "state, MB",
            "prompt, tokens a second",
            "decoding, tokens a second",
            "memory allows",
        ],
    );
    let dt_rank = sizes.channels.div_ceil(32);
    let one = config(sizes, Mixer::One { dt_rank }, sizes.states);
    let two = Mixer::Two {
        headdim: sizes.channels / sizes.heads,
        ngroups: 1,
        dt_limit: (0.0, f32::INFINITY),
        d_has_hdim: false,
    };
    let two = config(sizes, two, sizes.head_states);
    let request = json!({
        "d_model": one.d_model, "n_layer": one.n_layer, "d_inner": one.d_inner,
        "d_state": one.d_state, "d_conv": one.d_conv, "dt_rank": dt_rank,
        "vocab_size": one.vocab_size, "threads": bench.team.threads(), "tokens": sizes.tokens,
    });
    let (mut values, mut findings) = (Vec::new(), Vec::new());
    for (name, config, peers) in [
        ("mamba-130m's sizes", one, &bench.peers[..]),
        ("mamba2-130m's sizes", two, &[]),
    ] {
        let ours = measured(name, config, bench, progress)?;
        let allowed = bandwidth / ours.bytes;
        table.row([
            name.to_owned(),
            "keyfold".to_owned(),
            plot::shown(ours.state_bytes as f64 / 1e6),
            plot::shown(ours.read),
            plot::shown(ours.written),
            plot::shown(allowed),
        ]);
        values.push(json!({
            "model": name, "by": "keyfold", "prompt_tokens_per_second": ours.read,
            "decoded_tokens_per_second": ours.written, "memory_allows": allowed,
        }));
        for peer in peers {
            let rate = asked(peer, "mamba-decode", &request, |line| {
                let rate = line.get("tokens_per_second")?.as_f64();
                rate.filter(|rate| *rate > 0.0)
            })?;
            let none = String::new;
            table.row([
                name.to_owned(),
                peer.name.clone(),
                none(),
                none(),
                plot::shown(rate),
                plot::shown(allowed),
            ]);
            values.push(json!({
                "model": name, "by": peer.name, "decoded_tokens_per_second": rate,
            }));
            let ratio = ours.written / rate;
            findings.push(format!(
                "Decoding with {name}: {ratio:.2} times the tokens a second of {}; aim: {AIM:.1}, {}.",
                peer.name,
                reached(ratio >= AIM)
            ));
        }
    }
    bench.findings.extend(findings);
    Ok((table, values))
}

/// Tokens a second of a model.
struct Rates {
    read: f64,
    written: f64,
    state_bytes: u64,
    /// Bytes of weights and state that a written token reads.
    bytes: f64,
}

fn measured(
    name: &str,
    config: MambaConfig,
    bench: &Bench,
    progress: &dyn Progress,
) -> Result<Rates, BenchError> {
    let failed = |e: LmError| BenchError::data(name, e.to_string());
    let lm = synthetic::random_mamba(config, bench.options.seed).map_err(failed)?;
    let team = Team::new(bench.team.threads());
    let mut session = MambaSession::new(lm.into(), team.into());
    let prompt = 0..bench.sizes.length.min(PROMPT) as u32;
    let prompt: Vec<u32> = prompt.map(|i| i * 7 % 60).collect();
    session.prefill(&prompt, &NoProgress).map_err(failed)?;
    for token in 0..bench.sizes.tokens as u32 {
        if progress.cancelled() {
            return Err(BenchError::Cancelled);
        }
        session.step(token % 60).map_err(failed)?;
    }
    let report = session.report();
    Ok(Rates {
        read: report.prompt_tokens as f64 / report.prompt_time.as_secs_f64(),
        written: report.decoded_tokens as f64 / report.decode_time.as_secs_f64(),
        state_bytes: session.cache_bytes(),
        bytes: (report.weight_bytes + report.row_bytes) as f64
            / report.decoded_tokens.max(1) as f64,
    })
}

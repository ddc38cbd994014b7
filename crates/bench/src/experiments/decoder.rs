//! How fast language models read and write here, beside another engine if a `--peer` runs it
//! (parity/peers/llamacpp.py) with the same files and the same number of threads; and how fast
//! they write at long contexts when selectors choose the rows that are read.
//!
//! The model is the user's (`--model FILE.gguf`) or random weights of published sizes
//! (`--model random:qwen3-0.6b:q4_k` names one of them). What
//! memory allows stands beside every rate: bytes that a written token reads, over bytes a
//! second that this machine reads. Rates are the best of several runs.
//!
//! A peer is called as `COMMAND decode REQUEST -`, with JSON in the file REQUEST: `model`,
//! `threads`, `contexts`, `write` and `repeat`, and `cache` (f16, q8_0, q4_0) where it is not f16;
//! it prints a line for each context:
//! `{"context": n, "read": tokens a second, "written": tokens a second}`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use keyfold_core::{NoProgress, Progress};
use keyfold_kernels::blocks::BlockType;
use keyfold_kernels::{Team, peak};
use keyfold_lm::ModelFile;
use keyfold_lm::decoding::argmax;
use keyfold_lm::model::Decoder;
use keyfold_lm::session::{Policy, Session};
use keyfold_lm::store::CacheType;
use keyfold_lm::synthetic::{Geometry, write_random};
use serde_json::{Value, json};

use super::long_context::whole;
use super::peers::Engine;
use crate::plot;
use crate::report::{Report, Table, reached};
use crate::{BenchError, BenchOptions, Experiment, Scale};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "decoder",
    about: "tokens a second of language models, read and written, beside llama.cpp (--peer)",
    run,
};

/// Before the size and the type of random weights in `--model`.
const RANDOM: &str = "random:";

/// The options with a model file in the place of `random:SIZE:TYPE`.
fn with_file(options: &BenchOptions, scratch: &Path) -> Result<BenchOptions, BenchError> {
    let mut options = options.clone();
    let Some(wanted) = options
        .model
        .as_deref()
        .and_then(|m| m.strip_prefix(RANDOM))
    else {
        return Ok(options);
    };
    let known = || {
        let what = "choose smollm-135m, qwen3-0.6b or llama3-8b:LAYERS, then q4_1, q8_0, q4_k or f16, as \
                    random:qwen3-0.6b:q4_k";
        BenchError::data(wanted, what)
    };
    let (size, kind) = wanted.rsplit_once(':').ok_or_else(known)?;
    let geometry = match size.split_once(':') {
        Some(("llama3-8b", layers)) => layers
            .parse()
            .ok()
            .filter(|n| *n > 0)
            .map(Geometry::llama3_8b),
        None if size == "smollm-135m" => Some(Geometry::smollm_135m()),
        None if size == "qwen3-0.6b" => Some(Geometry::qwen3_06b()),
        _ => None,
    };
    let kinds = [
        BlockType::Q4_1,
        BlockType::Q8_0,
        BlockType::Q4K,
        BlockType::F16,
    ];
    let kind = kinds
        .into_iter()
        .find(|k| k.name().eq_ignore_ascii_case(kind));
    let (geometry, kind) = geometry.zip(kind).ok_or_else(known)?;
    let path = scratch.join(format!("{}.gguf", wanted.replace(':', "-")));
    write_random(&geometry, kind, options.seed, &path)
        .map_err(|e| BenchError::data(wanted, e.to_string()))?;
    options.model = Some(path.to_string_lossy().into_owned());
    Ok(options)
}

/// A model file and the contexts it is measured at.
struct Case {
    name: String,
    path: PathBuf,
    contexts: Vec<usize>,
    write: usize,
    repeat: usize,
}

/// Tokens a second at one context.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rates {
    pub(super) context: usize,
    read: f64,
    pub(super) written: f64,
    /// Bytes that a written token reads; 0 where unknown.
    bytes: u64,
}

/// What is aimed at, as a share of a peer's rate: with a short context, and at 4,000 tokens
/// and more, where the peer falls far below what memory allows.
const AIM_SHORT: f64 = 1.0;
const AIM_LONG: f64 = 2.5;
const LONG: usize = 4_000;

fn cases(options: &BenchOptions, scratch: &Path) -> Result<Vec<Case>, BenchError> {
    if let Some(model) = &options.model {
        // A size of random weights is measured at fewer contexts: a peer takes minutes for each.
        let contexts = match options.scale {
            Scale::Smoke => vec![16],
            Scale::Small if Path::new(model).starts_with(scratch) => vec![64, 4200],
            Scale::Small => vec![64, 1024, 4200],
            Scale::Full => vec![64, 1024, 4200, 8000],
        };
        let name = Path::new(model)
            .file_name()
            .map_or(model.clone(), |n| n.to_string_lossy().into_owned());
        return Ok(vec![Case {
            name,
            path: model.into(),
            contexts,
            write: 64,
            repeat: 2,
        }]);
    }
    let tiny = Geometry {
        layers: 2,
        hidden: 256,
        intermediate: 512,
        heads: 4,
        kv_heads: 2,
        vocab: 512,
        ..Geometry::smollm_135m()
    };
    let sizes: Vec<(&str, Geometry, BlockType)> = match options.scale {
        Scale::Smoke => vec![("tiny", tiny, BlockType::Q4_1)],
        Scale::Small => vec![
            ("SmolLM-135M", Geometry::smollm_135m(), BlockType::Q8_0),
            ("SmolLM-135M", Geometry::smollm_135m(), BlockType::Q4K),
            ("Qwen3-0.6B", Geometry::qwen3_06b(), BlockType::Q8_0),
            ("Qwen3-0.6B", Geometry::qwen3_06b(), BlockType::Q4K),
        ],
        Scale::Full => vec![
            ("SmolLM-135M", Geometry::smollm_135m(), BlockType::Q4_1),
            ("SmolLM-135M", Geometry::smollm_135m(), BlockType::Q8_0),
            ("SmolLM-135M", Geometry::smollm_135m(), BlockType::Q4K),
            ("SmolLM-135M", Geometry::smollm_135m(), BlockType::F16),
            ("Qwen3-0.6B", Geometry::qwen3_06b(), BlockType::Q8_0),
            ("Qwen3-0.6B", Geometry::qwen3_06b(), BlockType::Q4K),
            (
                "Llama-3-8B, 4 layers",
                Geometry::llama3_8b(4),
                BlockType::Q4K,
            ),
        ],
    };
    let contexts = match options.scale {
        Scale::Smoke => vec![16, 64],
        Scale::Small => vec![64, 4200],
        Scale::Full => vec![64, 4200, 8200, 32_000],
    };
    let made = sizes
        .into_iter()
        .enumerate()
        .map(|(i, (name, geometry, kind))| {
            let path = scratch.join(format!("{i}.gguf"));
            write_random(&geometry, kind, options.seed, &path)
                .map_err(|e| BenchError::data(name, e.to_string()))?;
            let write = if options.scale == Scale::Smoke { 4 } else { 32 };
            let repeat = if options.scale == Scale::Smoke { 1 } else { 2 };
            Ok(Case {
                name: format!("{name} {}", kind.name()),
                path,
                contexts: contexts.clone(),
                write,
                repeat,
            })
        });
    made.collect()
}

fn run(options: &BenchOptions, progress: &dyn Progress) -> Result<Report, BenchError> {
    let threads = options.thread_count();
    let peers = options.peers.iter().map(|p| Engine::parse(p));
    let peers: Vec<Engine> = peers.collect::<Result<_, _>>()?;
    let scratch = tempfile::tempdir()?;
    let options = &with_file(options, scratch.path())?;
    let cases = cases(options, scratch.path())?;
    let bandwidth = peak::read_bandwidth(threads);
    let mut table = Table::new(
        &format!(
            "tokens a second, {threads} threads; memory reads {:.1} GB a second",
            bandwidth / 1e9
        ),
        &[
            "model",
            "context",
            "by",
            "read",
            "written",
            "memory allows",
            "of it, %",
        ],
    );
    let (mut findings, mut values, mut bars) = (Vec::new(), Vec::new(), Vec::new());
    progress.start("read and write", "models", Some(cases.len() as u64));
    for case in &cases {
        if progress.cancelled() {
            return Err(BenchError::Cancelled);
        }
        let ours = ours(case, threads, options.seed)?;
        let mut rows: Vec<(String, Vec<Rates>)> = vec![("keyfold".to_owned(), ours.clone())];
        for peer in &peers {
            rows.push((peer.name.clone(), theirs(peer, case, threads)?));
        }
        for (by, rates) in &rows {
            for (rate, own) in rates.iter().zip(&ours) {
                let ideal = bandwidth / own.bytes.max(1) as f64;
                table.row([
                    case.name.clone(),
                    rate.context.to_string(),
                    by.clone(),
                    plot::shown(rate.read),
                    plot::shown(rate.written),
                    plot::shown(ideal),
                    format!("{:.0}", 100.0 * rate.written / ideal),
                ]);
                bars.push((
                    format!("{by}: {} at {}", case.name, rate.context),
                    rate.written,
                ));
                values.push(json!({
                    "model": case.name, "by": by, "context": rate.context, "read": rate.read,
                    "written": rate.written, "bytes_per_token": own.bytes, "memory_allows": ideal,
                }));
            }
        }
        for (by, rates) in &rows[1..] {
            for (own, rate) in ours.iter().zip(rates) {
                let (write, read) = (own.written / rate.written, own.read / rate.read);
                let aim = if own.context >= LONG {
                    AIM_LONG
                } else {
                    AIM_SHORT
                };
                findings.push(format!(
                    "{} at {}: {write:.2} times the written and {read:.2} times the read tokens a second of {by}; \
                     aims: {aim:.1} ({}) and {AIM_SHORT:.1} ({}).",
                    case.name,
                    own.context,
                    reached(write >= aim),
                    reached(read >= AIM_SHORT),
                ));
            }
        }
        progress.advance(1);
    }
    progress.finish();
    let mut tables = vec![table];
    let selectors = whole::selectors(options, progress, &mut tables, &mut findings)?;
    Ok(Report {
        name: EXPERIMENT.name.to_owned(),
        tables,
        findings,
        values: json!({
            "threads": threads, "bytes_per_second": bandwidth, "rows": values, "selectors": selectors,
        }),
        svg: plot::bars(
            "Writing with language models",
            "tokens a second",
            &bars,
            None,
        )?,
    })
}

/// The best rates of several runs.
fn ours(case: &Case, threads: usize, seed: u64) -> Result<Vec<Rates>, BenchError> {
    let failed = |e: keyfold_lm::LmError| BenchError::data(&case.name, e.to_string());
    let file = ModelFile::open(&case.path).map_err(failed)?;
    let decoder = Arc::new(Decoder::load(&file).map_err(failed)?);
    let team = Arc::new(Team::new(threads));
    let vocab = decoder.config().dims.vocab as u64;
    let mut found = Vec::new();
    for &context in &case.contexts {
        let mut best = Rates {
            context,
            read: 0.0,
            written: 0.0,
            bytes: 0,
        };
        for _ in 0..case.repeat {
            let policy =
                Policy::dense(&decoder, CacheType::F16, context + case.write).map_err(failed)?;
            let mut session = Session::new(Arc::clone(&decoder), policy, Arc::clone(&team));
            let token = |i: usize| (keyfold_nn::random::derive(seed, i as u64) % vocab) as u32;
            let prompt: Vec<u32> = (0..context).map(token).collect();
            session.prefill(&prompt, &NoProgress).map_err(failed)?;
            for _ in 0..case.write {
                let next = argmax(session.logits());
                session.step(next).map_err(failed)?;
            }
            let report = session.report();
            best.read = best
                .read
                .max(context as f64 / report.prompt_time.as_secs_f64());
            best.written = best
                .written
                .max(case.write as f64 / report.decode_time.as_secs_f64());
            best.bytes = (report.weight_bytes + report.row_bytes) / case.write.max(1) as u64;
        }
        found.push(best);
    }
    Ok(found)
}

/// The same by a peer.
fn theirs(peer: &Engine, case: &Case, threads: usize) -> Result<Vec<Rates>, BenchError> {
    let asked = json!({
        "model": case.path, "contexts": case.contexts, "write": case.write, "threads": threads,
        "repeat": case.repeat,
    });
    ask(peer, &asked, case.contexts.len())
}

/// What a peer answers to a request: rates at so many contexts.
pub(super) fn ask(peer: &Engine, asked: &Value, contexts: usize) -> Result<Vec<Rates>, BenchError> {
    let folder = tempfile::tempdir()?;
    let request = folder.path().join("request.json");
    std::fs::write(&request, asked.to_string())?;
    let lines = peer.run("decode", &request, "-".as_ref())?;
    let rates = lines.iter().filter_map(|line| {
        let number = |name: &str| line.get(name)?.as_f64();
        let context = number("context")? as usize;
        Some(Rates {
            context,
            read: number("read")?,
            written: number("written")?,
            bytes: 0,
        })
    });
    let rates: Vec<Rates> = rates.collect();
    if rates.len() != contexts {
        return Err(BenchError::data(
            &peer.name,
            "as a peer it printed no rates for some contexts",
        ));
    }
    Ok(rates)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_types_of_random_weights_are_known_or_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let of = |name: &str| {
            let options = BenchOptions {
                model: Some(name.to_owned()),
                ..BenchOptions::default()
            };
            with_file(&options, scratch.path()).map(|o| o.model.unwrap_or_default())
        };
        assert_eq!(of("model.gguf").unwrap(), "model.gguf");
        for wrong in [
            "random:",
            "random:smollm-135m",
            "random:smollm-135m:q9",
            "random:llama3-8b:0:q8_0",
        ] {
            let message = of(wrong).unwrap_err().to_string();
            assert!(message.contains("smollm-135m"), "{wrong}: {message}");
        }
    }
}
